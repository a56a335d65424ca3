"""Versions that differ from one that onnx2torch has only in the types that they allow, and are served by its converter.

This was read in the schemas: no version changes an attribute, input or output, except that Cast-19 and Cast-24 add
attributes for 8-bit floats, types that the converter refuses itself.
"""

from __future__ import annotations

from .registry import repeat

# operator -> (version that onnx2torch has, later versions that its converter serves too)
RETYPED = {
    "Acos": (7, (22,)),
    "Asin": (7, (22,)),
    "Atan": (7, (22,)),
    "Cast": (13, (19, 21, 23, 24, 25)),
    "Constant": (13, (19, 21, 23, 24, 25)),
    "ConstantOfShape": (9, (20, 21, 23, 24, 25)),
    "Cos": (7, (22,)),
    "Elu": (6, (22,)),
    "Equal": (13, (19,)),
    "GreaterOrEqual": (12, (16,)),
    "HardSigmoid": (6, (22,)),
    "HardSwish": (14, (22,)),
    "EyeLike": (9, (22,)),
    "Identity": (16, (19, 21, 23, 24, 25)),
    "IsNaN": (13, (20,)),
    "LessOrEqual": (12, (16,)),
    "Round": (11, (22,)),
    "Selu": (6, (22,)),
    "Sin": (7, (22,)),
    "Softplus": (1, (22,)),
    "Softsign": (1, (22,)),
    "Tan": (7, (22,)),
    "Transpose": (13, (21, 23, 24, 25)),
}

for _op, (_known, _later) in RETYPED.items():
    repeat(_op, _known, _later)
