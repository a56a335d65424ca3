"""What ``quantize`` makes of a model for a device, beyond what the rules say of a file."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .rules import Number, Record, Version

# A number above this hides no score: those of trained networks stay within some hundreds.
MOST_MASK = -100.0


class Rewrites(Record):
    """The rewrites that a target needs; without a key, a model keeps its own form.

    opset: the least that is written where all operators have a form at it: there operators are whole that older opsets
    spell out, as Gelu is at 20. masks: attention masks become (1 - mask) times this number, which is added to scores:
    for devices without booleans, or on which the least float32 overflows. l2_norms: what divides vectors by their
    length becomes an LpNormalization. flat_products: a product of more than two axes, and the bias that is added to it,
    become a Gemm between Reshapes, so that nothing is rounded before the bias is added. rescaled_inputs: for devices of
    whole groups, a Pad, a Mul and an Add in float in front of them put the pixels of an image on the integers of its
    grid, which then holds them without error.
    """

    opset: Version | None = None
    masks: Annotated[Number, Field(le=MOST_MASK, ge=-1e6)] | None = None
    l2_norms: Annotated[bool, Field(strict=True)] = False
    flat_products: Annotated[bool, Field(strict=True)] = False
    rescaled_inputs: Annotated[bool, Field(strict=True)] = False
