"""The kinds of rules that a file can be held to. What a kind means is code; its parameters and its source are data."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

IntegerType = Literal["int2", "uint2", "int4", "uint4", "int8", "uint8", "int16", "uint16", "int32"]
BiasKind = Literal["int32", "int16", "int8", "float"]
Granularity = Literal["tensor", "channel", "block"]
# What a device does with a file that breaks a rule: it refuses the file or gives other numbers, or it runs the place in
# float or on the CPU, or the versions that were measured run it all the same.
Level = Literal["refused", "slower", "advice"]
Quantity = Literal["activations", "weights", "biases", "constants"]
Whole = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Version = Annotated[int, Field(strict=True, ge=1, le=1000)]


def check_range(ends: tuple[int, int]) -> tuple[int, int]:
    """Both ends of a range. Raises ValueError where the first is larger."""
    if ends[0] > ends[1]:
        raise ValueError("must be the least and the most, in this order")
    return ends


Ends = Annotated[tuple[Whole, Whole], AfterValidator(check_range)]
Names = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
Types = Annotated[tuple[IntegerType, ...], Field(min_length=1)]
Value = TypeVar("Value")
ByOperator = Annotated[dict[str, Value], Field(min_length=1)]


class Record(BaseModel):
    """Frozen, with no room for unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Rule(Record):
    """A rule without parameters.

    source: where it comes from, which is printed with each violation. level: what breaking it means. levels: the same
    of grids of these types alone.
    """

    source: Annotated[str, Field(min_length=1)]
    level: Level = "refused"
    levels: dict[IntegerType, Level] = {}


class Opset(Rule):
    """The opset of the standard operators. types: the least opset at which a type may be quantized or dequantized."""

    least: Version | None = None
    most: Version | None = None
    types: dict[IntegerType, Version] = {}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.least is None and self.most is None and not self.types:
            raise ValueError("least, most or types is needed")
        if self.least is not None and self.most is not None and self.least > self.most:
            raise ValueError("least must not be above most")
        return self


class Operators(Rule):
    """Operators as patterns: ``QLinear*``.

    forbidden: what a file must not have. taken: quantized operators, beside QuantizeLinear and DequantizeLinear, that
    the target is known to run; those that are neither are not judged, which the lint says.
    """

    forbidden: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.forbidden and not self.taken:
            raise ValueError("forbidden or taken is needed")
        return self

    def takes(self, operator: str) -> bool:
        """Whether the target is known to run a quantized operator."""
        return any(fnmatchcase(operator, each) for each in self.taken)


class Pairs(Rule):
    """A QuantizeLinear has its DequantizeLinear and the reverse. between: operators that may stand in the middle."""

    between: tuple[str, ...] = ()


class ActivationTypes(Rule):
    """The types of activations. in_float: those of them that are computed in float, which is slower."""

    types: Types
    in_float: tuple[IntegerType, ...] = ()


class ZeroPoints(Rule):
    """The zero point is 0.

    types: those of which it must be; empty for all. instead: the only zero point of other types, such as 128 of uint8.
    """

    types: tuple[IntegerType, ...] = ()
    instead: dict[IntegerType, Whole] = {}


class LeastRange(Rule):
    """The least distance between the ends of an activation's grid."""

    least: Annotated[Number, Field(gt=0)]


class FixedGrids(Rule):
    """The only grid, scale and zero point, of what an operator gives: ``Sigmoid = {uint16 = [0.5, 0]}``."""

    grids: ByOperator[dict[IntegerType, tuple[Number, Whole]]]


class PositiveScales(Rule):
    """Scales are constants and positive. negative_weights: those of weights, and of biases, may be negative."""

    negative_weights: Annotated[bool, Field(strict=True)] = False


class WeightTypes(Rule):
    """The types in which weights are stored.

    through_cast: those of them that no DequantizeLinear may read directly in front of ``operators``, but through a Cast
    to 8 bits.
    """

    types: Types
    through_cast: tuple[IntegerType, ...] = ()
    operators: tuple[str, ...] = ()


class WeightScales(Rule):
    """The finest grid of a weight.

    axes: of the channels by operator, negative from the end, Gemm's as without transB. blocks: how many neighbours may
    share a scale where the grid has blocks; any number without it.
    """

    granularity: Granularity
    axes: dict[str, Whole] = {}
    blocks: tuple[Annotated[int, Field(strict=True, ge=2)], ...] = ()


class Biases(Rule):
    """What the bias of a layer on integers may be, by operator.

    matched: an int32 bias has the scale of the input times that of the weight, and zero point 0.
    """

    kinds: ByOperator[Annotated[tuple[BiasKind, ...], Field(min_length=1)]]
    matched: Annotated[bool, Field(strict=True)] = True


class PowerOfTwo(Rule):
    """The scales are powers of two, of these quantities."""

    of: Annotated[tuple[Quantity, ...], Field(min_length=1)]


class QuantizedInputs(Rule):
    """The inputs, by number, that a DequantizeLinear must make where it makes one of them; an empty list names all.

    weights_alone: types of weights that may stand beside a float activation. alone: operators in which they may; all of
    the rule without it. only_alone: types of weights that may not stand beside a quantized activation.
    """

    operators: ByOperator[tuple[Annotated[int, Field(strict=True, ge=0)], ...]]
    weights_alone: tuple[IntegerType, ...] = ()
    alone: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    only_alone: tuple[IntegerType, ...] = ()


class WholeUnits(Rule):
    """The inputs, by number, that a DequantizeLinear must make where a QuantizeLinear reads the result."""

    operators: ByOperator[Annotated[tuple[Annotated[int, Field(strict=True, ge=0)], ...], Field(min_length=1)]]


class QuantizedOutputs(Rule):
    """Operators of which nothing but a QuantizeLinear may read the result where a DequantizeLinear feeds them.

    through: operators in between, of it and constants, that belong to the same step of the device. at_exit: those whose
    result may be float where it reaches outputs of the graph alone, by operators that move its values.
    """

    operators: Names
    through: tuple[str, ...] = ()
    at_exit: tuple[str, ...] = ()


class Attributes(Rule):
    """Attributes that must be written out, by operator."""

    operators: ByOperator[Names]


class EvenBits(Rule):
    """Operators around which all grids have 8 bits, or all have 16, but for those of weights and biases."""

    operators: Names


class Aligned(Rule):
    """Operators whose quantized inputs and outputs share scale and zero point."""

    operators: Names


class Shift(Rule):
    """The ends of a shift between the powers of two of a node's grids."""

    operators: Names
    ends: Ends


class ShiftBias(Rule):
    """As Shift; the lower end is min(0, shift_cut - room)."""

    operators: Names
    room: Whole
    most: Whole


class HardSigmoids(Rule):
    """The ends of the positions i and o on the two sides of a HardSigmoid, and of its shift, room + i - o."""

    inputs: Ends
    outputs: Ends
    room: Whole
    ends: Ends


class Rules(Record):
    """The rules of a target by kind; one that is None does not hold for it. In the order in which they are judged."""

    opset: Opset | None = None
    static_shapes: Rule | None = None
    operators: Operators | None = None
    attributes: Attributes | None = None
    pairs: Pairs | None = None
    positive_scales: PositiveScales | None = None
    explicit_zero_points: Rule | None = None
    own_zero_points: Rule | None = None
    activation_types: ActivationTypes | None = None
    activation_per_tensor: Rule | None = None
    activation_zero_points: ZeroPoints | None = None
    least_range: LeastRange | None = None
    fixed_grids: FixedGrids | None = None
    weight_types: WeightTypes | None = None
    weight_scales: WeightScales | None = None
    weight_zero_points: ZeroPoints | None = None
    biases: Biases | None = None
    power_of_two: PowerOfTwo | None = None
    quantized_inputs: QuantizedInputs | None = None
    whole_units: WholeUnits | None = None
    residual_inputs: Rule | None = None
    quantized_outputs: QuantizedOutputs | None = None
    float_outputs: Rule | None = None
    even_bits: EvenBits | None = None
    aligned: Aligned | None = None
    shift_cut: Shift | None = None
    shift_bias: ShiftBias | None = None
    shift_read: Shift | None = None
    shift_write_add: Shift | None = None
    shift_write_mul: Shift | None = None
    shift_swish: Shift | None = None
    hard_sigmoid: HardSigmoids | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("a target without rules passes every file; write one rule or more, such as [rules.pairs]")
        return self
