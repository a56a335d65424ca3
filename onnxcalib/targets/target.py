"""Targets by name, or from a user's own file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from ..config import FULL_BITS, WIDE_BITS, find_nearest, read_toml, spell_allowed
from ..errors import ConfigError, escape_controls, spell_value
from ..spec import QuantSpec, Requirements
from .rewrites import Rewrites
from .rules import BiasKind, FixedGrids, IntegerType, Record, Rule, Rules

GIVE = "the name of a target, or the path of a TOML file of one, is needed; onnxcalib targets lists the names"
SUFFIX = ".toml"
OWN_RUNTIME = "onnxruntime"
DYNAMIC_LSTM = "DynamicQuantizeLSTM"
# The types that are written and their bits: of activations, and of weights. Activations of 4 bits are unsigned: those
# behind a Relu, where they are used, would lose half of signed ones.
SIGNED_BITS, UNSIGNED_BITS = {"int16": (16,), "int8": (8,)}, {"uint16": (16,), "uint8": (8,), "uint4": (4,)}
# 3 bits of weights are stored in 4.
WEIGHT_BITS = {"int8": (8,), "int4": (4, 3), "int2": (2,)}
# Operators of onnxruntime's own that may be written where a target takes both.
PACKED = frozenset(("MatMulNBits", "GatherBlockQuantized"))


class Target(Record):
    """A device, or a runtime, and what it needs of a file.

    runtime: the Python package that runs files for it; None where there is none. bounded_weights: its kernels for x86
    add pairs of products in 16 bits where the processor lacks VNNI, so that weights of fewer integers are exact there.
    wide_sums: sums in front of a norm have 16 bits where all else has 8; a sum may have more bits than what it adds.
    rewrites: what a model is brought into.
    """

    name: Annotated[str, Field(min_length=1, max_length=100)]
    description: str = ""
    runtime: Annotated[str, Field(pattern=r"^\w+$")] | None = None
    bounded_weights: Annotated[bool, Field(strict=True)] = False
    wide_sums: Annotated[bool, Field(strict=True)] = False
    rules: Rules
    rewrites: Rewrites = Rewrites()

    def list_rules(self) -> dict[str, Rule]:
        """The rules that hold for it by name, in the order in which they are judged."""
        found = {name: getattr(self.rules, name) for name in Rules.model_fields}
        return {name: rule for name, rule in found.items() if rule is not None}

    @property
    def requirements(self) -> Requirements:
        """What the rules say of a file that is to be written; the first of several types is the one to write."""
        rules = self.rules
        listed: tuple[IntegerType, ...] = rules.activation_types.types if rules.activation_types else ("uint8",)
        types = [each for each in listed if not (self.wide_in_float and _bits_of(each) == WIDE_BITS)]
        points, power = rules.activation_zero_points, rules.power_of_two
        first = (types or listed)[0]
        activation = QuantSpec(
            FULL_BITS,
            signed=first.startswith("int"),
            symmetric=points is not None and (not points.types or first in points.types),
            power_of_two=power is not None and "activations" in power.of,
            least_range=rules.least_range.least if rules.least_range else 0.0,
        )
        weights = rules.weight_types.types if rules.weight_types else ("int8",)
        biases, outputs = rules.biases, rules.quantized_outputs
        inputs = rules.quantized_inputs.operators if rules.quantized_inputs and outputs else {}
        only_alone = rules.quantized_inputs.only_alone if rules.quantized_inputs else ()
        return Requirements(
            activation=activation,
            activation_bits=_list_bits(types, SIGNED_BITS if activation.signed else UNSIGNED_BITS),
            weight_bits=_list_bits([each for each in weights if each not in only_alone], WEIGHT_BITS),
            alone=frozenset(rules.quantized_inputs.alone if rules.quantized_inputs else ()),
            in_blocks=rules.weight_scales is None or rules.weight_scales.granularity == "block",
            blocks=rules.weight_scales.blocks if rules.weight_scales else (),
            weights_alone=_list_bits(
                rules.quantized_inputs.weights_alone if rules.quantized_inputs else weights, WEIGHT_BITS
            ),
            dynamic=self.is_onnxruntime,
            recurrent=rules.operators is not None and rules.operators.takes(DYNAMIC_LSTM),
            recurrent_weights=self.is_onnxruntime,
            asymmetric_alone=rules.weight_zero_points is None and "uint4" in weights,
            negative_scales=rules.positive_scales is not None and rules.positive_scales.negative_weights,
            one_weight_scale=rules.weight_scales is not None and rules.weight_scales.granularity == "tensor",
            power_of_two_weights=power is not None and "weights" in power.of,
            float_biases=frozenset(op for op, kinds in (biases.kinds if biases else {}).items() if _is_float(kinds)),
            takes_packed=rules.operators is not None and PACKED.issubset(rules.operators.taken),
            through_cast=rules.pairs is None or "Cast" in rules.pairs.between,
            placing="groups" if outputs else "inputs" if rules.residual_inputs else "fused",
            grouped=frozenset((*inputs, *(outputs.operators if outputs else ()))),
            through=frozenset(outputs.through if outputs else ()),
            at_exit=frozenset(outputs.at_exit if outputs else ()),
            even_bits=frozenset(rules.even_bits.operators if rules.even_bits else ()),
            aligned=frozenset(rules.aligned.operators if rules.aligned else ()),
            fixed_grids=_read_fixed(rules.fixed_grids, signed=activation.signed),
            opset=(rules.opset.least, rules.opset.most) if rules.opset else (None, None),
            for_onnxruntime=self.is_onnxruntime,
            wide_sums=self.wide_sums,
        )

    @property
    def is_onnxruntime(self) -> bool:
        """Whether onnxruntime itself runs its files, so that the tool's own sessions are those of users."""
        return self.runtime == OWN_RUNTIME

    @property
    def wide_in_float(self) -> bool:
        """Whether activations of 16 bits are computed in float."""
        rule = self.rules.activation_types
        return rule is not None and any(_bits_of(each) == WIDE_BITS for each in rule.in_float)

    @property
    def activations(self) -> str:
        """The types and grids of activations in a few words."""
        types, zeros, rules = self.rules.activation_types, self.rules.activation_zero_points, self.rules
        symmetric = zeros is not None and (not zeros.types or types is None or set(types.types) <= set(zeros.types))
        points = ["0", *(f"{point} of {kind}" for kind, point in zeros.instead.items())] if zeros else []
        words = [", ".join(types.types) if types else "any", f"zero point {', '.join(points)}" if symmetric else ""]
        return _join(words, power=rules.power_of_two is not None and "activations" in rules.power_of_two.of)

    @property
    def weights(self) -> str:
        """The types and grids of weights in a few words."""
        types, scales, power = self.rules.weight_types, self.rules.weight_scales, self.rules.power_of_two
        words = [", ".join(types.types) if types else "any", f"a scale a {scales.granularity}" if scales else ""]
        return _join(words, power=power is not None and "weights" in power.of)

    @property
    def proof(self) -> str:
        """What can be proved on this machine."""
        if self.runtime is None:
            return "lint only"
        return f"lint; {self.runtime} is installed" if find_spec(self.runtime) else f"lint; {self.runtime} is missing"


@cache
def list_targets() -> tuple[Target, ...]:
    """The targets that come with the package, by name."""
    return tuple(map(_read, sorted(Path(__file__).parent.glob(f"*{SUFFIX}"))))


def load_target(source: str | Path | Target) -> Target:
    """A target by its name, or from the TOML file of this path, which has a suffix or a folder. Raises ConfigError."""
    if isinstance(source, Target):
        return source
    known = {target.name: target for target in list_targets()}
    if str(source) in known:
        return known[str(source)]
    if isinstance(source, str) and is_name(source):
        near = find_nearest(source, tuple(known))
        hint = f"did you mean {near!r}" if near else f"a file has the suffix {SUFFIX}"
        raise ConfigError(f"target: found {spell_value(source)}; {', '.join(known)}, or a TOML file, is needed; {hint}")
    found = _read(Path(source))
    if known.get(found.name, found) != found:  # reports and messages tell targets by their names
        raise ConfigError(
            f"{source}: name: found {spell_value(found.name)}, which is a target of this package; any other name is"
            f" allowed; rename yours, or give --target {found.name}"
        )
    return found


def is_name(source: str) -> bool:
    """Whether this is a target's name, and no path of a file."""
    return not Path(source).suffix and Path(source).name == source


def _is_float(kinds: Sequence[BiasKind]) -> bool:
    """Whether biases of these kinds are written in float: where it comes first, or int32 is none of them."""
    return kinds[0] == "float" or ("float" in kinds and "int32" not in kinds)


def _bits_of(kind: str) -> int:
    return int(kind.lstrip("uint"))


def _list_bits(types: Sequence[str], written: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
    """The bits of those of the types that ``quantize`` writes, most bits first."""
    return tuple(sorted((bits for each in types for bits in written.get(each, ())), reverse=True))


def _read_fixed(rule: FixedGrids | None, *, signed: bool) -> dict[tuple[str, int], tuple[float, int]]:
    """The grids of what operators give, in types that are signed or are not."""
    kind = "int" if signed else "uint"
    return {
        (op, int(each.removeprefix(kind))): grid
        for op, grids in (rule.grids if rule else {}).items()
        for each, grid in grids.items()
        if each.startswith(kind)
    }


def _read(path: Path) -> Target:
    table = read_toml(path, give=GIVE)
    try:
        return Target.model_validate(_to_tuples(table))
    except ValidationError as error:
        raise ConfigError(f"{path}: {_describe(error)}") from None


def _to_tuples(value: Any) -> Any:
    """TOML's arrays as tuples, and its whole numbers as they are."""
    if isinstance(value, dict):
        return {key: _to_tuples(each) for key, each in value.items()}
    return tuple(map(_to_tuples, value)) if isinstance(value, list) else value


def _describe(error: ValidationError) -> str:
    """The first fault as ``key: what was found; what is allowed``."""
    fault = error.errors(include_url=False)[0]
    keys = [escape_controls(str(key))[:100] for key in fault["loc"]]
    where = re.sub(r"\.\[key\]$", "", ".".join(keys))
    if fault["type"] == "extra_forbidden":
        allowed = _list_keys(keys[:-1])
        near = find_nearest(keys[-1], allowed)
        return f"{where}: unknown key; " + (f"did you mean {near!r}?" if near else f"allowed: {', '.join(allowed)}")
    if fault["type"] == "missing":
        owner = "rule of its kind" if "rules" in keys[:-1] else "target"
        return f"{where}: is missing; every {owner} has it"
    if fault["type"] in ("model_type", "dict_type"):
        return f"{where}: found {spell_value(fault['input'])}; it is a table; write [{where}] above its keys"
    if fault["type"] == "tuple_type":
        return f"{where}: found {spell_value(fault['input'])}; it is an array; write its values in brackets"
    if fault["type"] == "too_short":
        return f"{where}: is empty; it names one or more; name them, or leave the rule out"
    return f"{where}: found {spell_value(fault['input'])}; {spell_allowed(fault)}"


def _list_keys(keys: list[str]) -> tuple[str, ...]:
    """The keys that a target's table may have, of the table at these keys."""
    fields: Mapping[str, Any] = Target.model_fields
    for key in keys:
        kinds = [fields[key].annotation, *getattr(fields[key].annotation, "__args__", ())]
        fields = next(kind.model_fields for kind in kinds if isinstance(kind, type) and issubclass(kind, Record))
    return tuple(fields)


def _join(words: list[str], *, power: bool) -> str:
    return "; ".join(filter(None, [*words, "powers of two" if power else ""]))
