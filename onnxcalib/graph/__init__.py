"""Reading and rewriting ONNX graphs: a ModelProto in, a ModelProto or a quantization scheme out.

Read the files in this order. ``index`` says who makes and who reads a tensor, ``ops`` names the families of operators,
``edit`` has the elementary edits. ``shapes``, ``weightless``, ``liveness`` and ``extract`` describe graphs and take
them apart. ``load``, ``check`` and ``save`` are the way in and out; ``wire``, ``external``, ``tensors``, ``structure``
and ``finite`` refuse what is no usable model. ``patterns`` finds functions that are written out as several nodes, by
what ``probe_values`` computes of them. ``fusion`` has the rules of onnxruntime, ``names`` resolves what a user
names, and ``layers``, ``layout``, ``embeddings`` and ``scheme`` decide which tensors are quantized. ``residuals`` and
``blocks`` partition the graph, ``tokens`` follows the axes of sequences, ``emit`` writes the QDQ model. ``passes``
prepare a model, ``inspect`` reads a quantized one.
"""
