"""Families of operators by name: what passes, rules and reports mean by a layer, a pool or a quantized operator."""

from __future__ import annotations

# Layers: operators that multiply activations by a weight.
CONVOLUTIONS = ("Conv", "ConvTranspose")
MATRIX_LAYERS = ("Gemm", "MatMul")
LAYERS = (*CONVOLUTIONS, *MATRIX_LAYERS)
# Layers that carry a state from one time step to the next.
RECURRENT = ("LSTM", "GRU", "RNN")
# Layers that own one scale and one bias an output channel, into which arithmetic by channel can be folded.
CHANNEL_LAYERS = (*CONVOLUTIONS, "Gemm")
# Layers whose integer kernel gives a float output where no QuantizeLinear follows; a Conv stays float without one.
FLOAT_OUTPUT_LAYERS = (*MATRIX_LAYERS, "ConvTranspose")

# Movers: operators whose output holds values of their first input and nothing else, so that they run on integers.
MOVERS = (
    "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "MaxPool", "GlobalMaxPool", "ReduceMax", "Slice",
    "Split", "Gather", "DepthToSpace", "SpaceToDepth", "Expand", "Tile",
)  # fmt: skip
# Operators with an integer kernel between a DequantizeLinear and a QuantizeLinear.
INTEGER_OPS = ("Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "Sigmoid", "LeakyRelu", "Softmax")
# Operators that give no negative values.
NONNEGATIVE_OPS = ("Sigmoid", "HardSigmoid", "Softmax", "Abs")
# Operators that, like movers, give negative values only if they read some.
AVERAGES = ("AveragePool", "GlobalAveragePool")
# Pools with a kernel, strides and pads.
POOLS = ("MaxPool", "AveragePool")
# Operators of which activation functions are made. They belong to their layer if they read nothing but its output.
ACTIVATIONS = (
    "Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "HardSwish", "HardSigmoid", "Tanh", "Gelu", "Elu", "Erf",
    "Softplus", "Add", "Sub", "Mul", "Div", "LayerNormalization",
)  # fmt: skip
# Operators that read a tensor's dimensions and none of its values.
SHAPE_READERS = ("Shape", "Size")
# Operators that draw other values in each run.
RANDOM_OPS = (
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout",
)  # fmt: skip
# Operators that choose among values or sort them: those that are nearly equal change places with the least change.
ORDERS = ("TopK", "ArgMax", "ArgMin", "NonMaxSuppression", "Unique")
# Operators that take values of their first input at the places that their second input holds.
INDEXED = ("Gather", "GatherElements", "GatherND")
# Operators whose output may jump where their input hardly changes.
STEPS = (
    *ORDERS, "Round", "Floor", "Ceil", "Sign", "Mod", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual",
    "Hardmax", "NonZero", "ThresholdedRelu", "Shrink", "IsInf", "Multinomial", "Bernoulli", "QuantizeLinear",
    "DynamicQuantizeLinear",
)  # fmt: skip

# From float to integers and back, one scale times an integer.
QUANTIZE, DEQUANTIZE = LINEAR_OPS = ("QuantizeLinear", "DequantizeLinear")
# From float to uint8 on the grid of the values of this very run, and the product of such integers with int8 weights.
AXES_AS_INPUT_OPSET = 18  # from which ReduceMax has its axes as an input
DYNAMIC_QUANTIZE, INTEGER_PRODUCT = "DynamicQuantizeLinear", "MatMulInteger"
# Layers that read integers, of onnxruntime's own domain too: those that onnxruntime makes of a quantized model,
QLINEAR_LAYERS = ("QLinearConv", "QLinearMatMul", "QGemm")
# those that quantize their activations as they run, or whose output is no 8-bit integer,
DYNAMIC_LAYERS = (
    "ConvInteger", "MatMulInteger", "MatMulInteger16", "MatMulIntegerToFloat", "DynamicQuantizeMatMul",
    "DynamicQuantizeLSTM", "QAttention",
)  # fmt: skip
# and those of which the weight alone is quantized.
PACKED_LAYERS = ("MatMulNBits", "MatMulBnb4")
# A float model may have these two beside float layers: they read and give floats, and their weights are integers.
PACKED_WEIGHTS = (*PACKED_LAYERS, "GatherBlockQuantized")
# Operators that only a quantized model has. There are more, whose names begin with QLinear.
QUANTIZED_OPS = (
    *LINEAR_OPS, "DynamicQuantizeLinear", *QLINEAR_LAYERS, *DYNAMIC_LAYERS, *PACKED_WEIGHTS,
    "QMoE", "QEmbedLayerNormalization",
)  # fmt: skip
