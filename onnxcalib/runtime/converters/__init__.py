"""Our own onnx2torch registrations, one small file an operator family; importing this adds them all."""

from . import activation, layer, linear, norm, pad, pool, rearrange, recurrent, reduce, resize, retyped, shape, slice

__all__ = [
    "activation",
    "layer",
    "linear",
    "norm",
    "pad",
    "pool",
    "rearrange",
    "recurrent",
    "reduce",
    "resize",
    "retyped",
    "shape",
    "slice",
]
