"""Reading and rewriting ONNX graphs: a ModelProto in, a ModelProto or a quantization scheme out.

Read the files in this order.

- Graphs: ``index`` says who makes and who reads a tensor, ``ops`` names the families of operators, ``edit`` has the
  elementary edits, and ``writer`` puts several nodes in the place of one. ``shapes``, ``weightless``, ``liveness``,
  ``extract``, ``bodies`` and ``cuts`` describe graphs and take them apart. ``draws`` finds operators that draw
  random values, ``states`` the inputs that outputs fill in the next step.
- ``load``, ``check`` and ``save`` are the way in and out; ``wire``, ``external``, ``tensors``, ``structure`` and
  ``finite`` refuse what is no usable model. ``values`` reads the values of tensors, which large models keep in files;
  ``parse`` leaves them there, ``weight_file`` takes new ones, ``stream`` writes models from there, and ``constants``
  counts their bytes.
- Functions: ``patterns`` finds those that are written out as several nodes, by what ``probe_values`` computes of them.
  ``squashed`` finds tensors that one function alone reads.
- What is quantized: ``fusion`` has the rules of onnxruntime, ``names`` resolves what a user names, and ``layers``,
  ``layout``, ``embeddings``, ``around``, ``sharing``, ``norm_sums``, ``activation_bits`` and ``scheme`` decide, with
  ``weight_readers`` for layers of one weight, ``blocks_of_inputs`` for weights alone, ``layer_inputs`` for TensorRT and
  ``groups`` for devices of whole groups. ``unfuse`` keeps in float what onnxruntime would fuse.
- What stays in float: ``joins``, ``positions``, ``places``, ``angles`` and ``magnitudes`` are rules. ``kernel_times``
  and ``units`` say what integers cost, ``twins`` measures what rounding does to each layer, and ``float_weights`` lists
  what is left.
- ``residuals`` and ``blocks`` partition the graph, ``tokens`` follows the axes of sequences, ``mask_values`` what masks
  hide, and ``parts`` the axes of outputs that a Concat joins. ``channel_norms``, ``residual_stream`` and ``heads``
  find channels of transformers that may be rotated. ``steps`` finds operators whose output jumps, and cuts
  off what lies behind them. ``emit`` writes the QDQ model, with ``new_nodes``, ``layer_params``, ``weight_nodes``,
  ``stored_once``, ``tables``, ``gates``, ``dynamic``, ``scaled_weights``, ``recurrent`` and ``dynamic_lstm``, or in
  part as onnxruntime's own operators, which ``packed`` describes and ``packed_layers`` writes. In the model of
  ``switches`` a run chooses the grids, in that of ``factors`` factors and weights too. ``integer_ends`` lets a part of
  it read and give integers.

``passes`` prepare a model, ``inspect`` reads a quantized one.
"""
