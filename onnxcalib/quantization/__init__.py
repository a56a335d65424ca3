"""Job 1: a float model and a few samples in, a quantized model out.

Read the files in the order of the work:

- ``run`` holds the settings and the observer that all stages share, and ``target_settings`` what a target decides of
  them; ``floor`` says what memory is needed. ``run_samples`` opens samples by ``smoke_test``, ``past`` and
  ``closed_loop``, and leaves out ``odd_samples``. ``prepare`` makes the model ready: it calls ``rewrite``,
  ``approximations``, ``unchanged``, ``rotation`` of what is ``rotatable``, ``smoothing``, ``channel_scales``,
  ``join_scales``, ``bottlenecks`` and ``even_layers`` by ``noise_gains``, and finds ``output_parts``. ``prepared``
  describes the result.
- ``outline`` is what settings and structure decide of a model. ``placement`` has the rules of what stays in float,
  those of ``structure_rules`` first: ``weights_alone``, ``last_layers``, ``patch_layers``, ``cost_placement`` by
  ``tensor_shapes``, or ``measured_placement``, ``coarse_inputs``, ``coarse_runs``, ``coarse_products``,
  ``coarse_steps``, ``part_precision`` by ``part_errors``, and ``trial``. ``final_trial`` follows the solved layers,
  and ``in_float`` reports.
- ``stages`` has the stages after that. ``calibrate``, whose statistics are ``kept_statistics``, ``input_grid`` and
  ``powers`` choose the grids of activations, ``shifts`` brings them as near to each other as a device's shifts need,
  and ``ranges`` reads and writes their ranges as a file, ``histogram_file`` the histograms they come from.
  ``float_outputs`` keeps what the float model gave meanwhile.
- ``recurrent`` solves LSTM, GRU and RNN, then ``reconstruct`` goes from block to block. ``solve`` finds the integers of
  a layer on the ``columns`` that it reads, of which ``column_choice`` takes some, and ``active_range`` tells what a
  Relu or Clip behind it lets through; ``layer_targets`` are what the float model gives there. ``siblings`` are solved
  together, and ``shortcuts`` are made up for. ``passing`` runs a block that is not learned, while its layers are
  solved. ``probes`` measure how their errors change the model's outputs, and ``learn`` runs AdaQuant, on blocks
  ``unpadded`` where texts are padded. ``params`` makes layers of it, ``state`` holds them. ``views`` of samples are
  stored beside them where these are few. ``parallel`` reconstructs blocks apart from each other, and ``spread`` gives
  them to workers. ``shares`` lets workers sum the moments of layers in order, each on some of the samples. Either way
  samples are ``carried`` to them.
- ``bodies`` does all of this with the bodies of If, Loop and Scan, on ``body_samples``, and ``placed_bodies`` has what
  became of them; ``body_surroundings`` tell them what is around.
  ``shared_weights`` are those that several graphs read. Of those that layers of one graph read, ``reader_moments`` has
  what the later ones read.
- ``distill`` trains weights alone by the outputs that are ``compared``, and ``distill_all`` all that is quantized where
  layers read few bits. ``statistics`` and ``biases`` tune the whole model, and ``evaluate`` decides whether their
  results are kept. ``joined_runs`` compares small runs together.
- ``checkpoints`` keeps what these have found until the file is written, and ``block_checkpoints`` the state after each
  block.
- ``verify`` measures the quantized model, with ``class_axes``, ``output_tally``, ``flips``, ``ordering``, ``growth``
  over the steps of sequences, and ``saturation``; ``layer_facts`` says what layers are in the
  file, ``layer_histograms`` how their values lie on the grids, and ``speed`` times it.

``batches`` divides samples into runs. ``padding_mask`` leaves the padding of token sequences out of all of these, and
``masked_scores`` makes sure that what is quantized does so too.
"""
