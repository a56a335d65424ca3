"""A quantized file against the rules of a target, read off the file alone.

Read the files in this order. ``plain`` brings a model into the form that is read, and ``found`` is what a rule finds.
``whole`` has the rules of whole files and of operators, ``linear`` those of every QuantizeLinear and
DequantizeLinear, ``activations`` and ``weights`` those of either, ``groups`` those of what stands around a node,
``shifts`` those of powers of two, ``names`` has what a target may call operators, and ``run`` applies them all.
"""

from .run import check_target

__all__ = ["check_target"]
