"""Reading a quantized graph, whoever made it.

Read the files in this order. ``interface`` compares inputs and outputs with the float model's, ``integers`` finds the
integer tensors, ``grids`` every QuantizeLinear and DequantizeLinear, ``quantized_layers`` the layers that read them,
``layer_forms`` how layers are stored in any form, ``kernels`` the integer kernels that onnxruntime made of these
layers, ``unfused`` the QuantizeLinear and DequantizeLinear that it left, and ``sums`` what the kernels add up.
"""
