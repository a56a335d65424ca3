"""The mathematics of quantization: arrays and tensors in and out, no ONNX.

Read the files in this order.

- Grids: ``rounding`` defines integers, ``saturation`` what processors without VNNI can sum, and ``pairs`` the integers
  that never exceed it; ``histogram``, ``step_histogram``, ``bin_sums``, ``ranges`` and ``levels`` give activations
  their grids.
- Layers: ``gram`` has the moments that a layer's error depends on, by ``products``, ``active_sums`` those in front of a
  Relu or Clip, ``reader_sums`` those of several layers of one weight, ``prior`` their optimum, and ``output_metric``
  what errors do to the model's outputs; ``integer_search``, ``descent`` and ``solve`` find integers near the optimum,
  from the grids of ``row_grids`` on, with as much of that metric, and a ridge, as ``metric_choice`` finds to help,
  ``added_errors`` tells what these add to the layer's error, ``channel_solve`` those of layers whose channels have
  moments of their own, ``solve_blocks`` those of blocks of inputs with scales and zero points of their own, which
  ``scale_blocks`` fits, ``equalize`` evens channels that share a scale, ``smooth`` those of activations, and
  ``rotation`` and ``mixing`` mix these.
- Learning: ``adaquant`` and ``distill`` in torch, with a ``learned_weight`` in blocks, by ``adam``; ``statistics`` and
  ``views`` beside them.
- Measuring: ``metrics``, ``divergence``, ``intervals``, ``fill`` and ``diagnosis``; ``margins`` and ``unseen`` tell
  what to expect of other samples.
- Planning: ``fisher`` tells what a change of weights does, ``program`` is the integer program over bits, ``cut`` the
  least cut between float and integers.
"""
