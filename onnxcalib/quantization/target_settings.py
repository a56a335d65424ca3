"""What the target of a run decides of its settings, and which of them it does not allow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnx import ModelProto

from ..bitplan import CANDIDATE_OF
from ..config import (
    ALONE,
    BUDGETS,
    CANDIDATES,
    COLUMN,
    FLOAT_BITS,
    FULL_BITS,
    WIDE_BITS,
    CandidateName,
    LayerConfig,
    QuantizeConfig,
)
from ..errors import ConfigError, ModelError
from ..graph.packed import LOOK_UP, MULTIPLY
from ..graph.passes.opset import opset_of
from ..spec import Candidate, InputSpec, Requirements, spell_shape
from ..targets import OWN_RUNTIME, Target
from .rewrite import least_opset

# Of the examples in a message: inputs that are shown, sides of an image, tokens of a text, and axes of a text.
MOST_EXAMPLES, USUAL_IMAGE, USUAL_TEXT, USUAL_RANK = 3, 224, 128, 3


def settle(config: QuantizeConfig, target: Target) -> QuantizeConfig:
    """The settings, with what the target decides where they say nothing. Raises ConfigError for what it has not."""
    needs = target.requirements
    _check_encoding(config, target)
    if config.activations == "dynamic":
        _check_dynamic(config, target)
    config = _settle_alone(config)
    check_bits(config, target)
    decided: dict[str, Any] = {
        "weight_range": "bounded" if target.bounded_weights else "full",
        "candidates": _choose_candidates(config, needs),
    }
    if not needs.through_cast:
        decided["encoding"] = "standard"
        if config.encoding != "standard" and "encoding" in config.model_fields_set:
            raise ConfigError(
                f"encoding: found {config.encoding!r}, which reads 4 bits through a Cast; target {target.name!r} takes"
                " none; leave it out"
            )
    if config.planned and not config.planned_alone and not _takes(needs, Candidate(FULL_BITS, FULL_BITS)):
        raise ConfigError(
            f"target: found {target.name!r} beside a budget; bits are planned against W8A8, which it does not take;"
            " leave the budget out"
        )
    if config.activation_bits == FLOAT_BITS:
        decided |= {"first_last_bits": config.weight_bits} if config.first_last_bits not in needs.weights_alone else {}
    if not target.is_onnxruntime:
        if config.placement != "all" and "placement" in config.model_fields_set:
            raise ConfigError(
                f"placement: found {config.placement!r} beside target {target.name!r}; times are known of"
                " onnxruntime alone; leave it out, and all that the target takes is quantized"
            )
        if config.max_latency is not None and config.latencies is None:
            raise ConfigError(
                f"max_latency: found {config.max_latency!r} beside target {target.name!r}, whose times cannot be"
                " measured here; give those of its layers as latencies"
            )
        decided |= {"placement": "all", "embedding_bits": FLOAT_BITS}
    return config.model_copy(update={k: v for k, v in decided.items() if k not in config.model_fields_set})


def _check_encoding(config: QuantizeConfig, target: Target) -> None:
    """Raise ConfigError for operators of onnxruntime's own that the target has not, or that have no use."""
    if config.encoding != "matmulnbits":
        return
    if not target.requirements.takes_packed:
        raise ConfigError(
            f"encoding: found 'matmulnbits', which writes {MULTIPLY} and {LOOK_UP} of onnxruntime; target"
            f" {target.name!r} takes the operators of ONNX alone; leave it out"
        )
    if not config.float_activations:
        raise ConfigError(
            f"encoding: found 'matmulnbits', and no layer to use it; {MULTIPLY} reads float activations; give"
            f" activation_bits {FLOAT_BITS}, or leave it out"
        )


def _check_dynamic(config: QuantizeConfig, target: Target) -> None:
    """Raise ConfigError where the target, or other settings, have no place for grids that each run chooses."""
    found = "activations: found 'dynamic'"
    if not target.requirements.dynamic:
        raise ConfigError(
            f"{found}; target {target.name!r} is not known to run layers on what each run gives; leave it out, or give"
            f" target {OWN_RUNTIME!r}"
        )
    if config.planned:
        raise ConfigError(f"{found} beside a budget; bits are planned for grids of the file; leave one of them out")


def _settle_alone(config: QuantizeConfig) -> QuantizeConfig:
    """The settings; where candidates or bits are of weights alone, and bits are planned, both are.

    Raises ConfigError where they are mixed with others, and for a budget that weights alone do not have.
    """
    given = config.model_fields_set
    alone = [name for name in config.candidates if CANDIDATE_OF[name].activation_bits == FLOAT_BITS]
    if not config.planned:
        return config
    if "candidates" not in given and config.activation_bits == FLOAT_BITS:
        config = config.model_copy(update={"candidates": ALONE})
    elif alone and len(alone) < len(config.candidates):
        other = next(name for name in config.candidates if name not in alone)
        raise ConfigError(
            f"candidates: found {other} beside {alone[0]}; weights alone, with A32, are planned apart from others; give"
            " candidates of one kind"
        )
    elif alone and "activation_bits" in given and config.activation_bits != FLOAT_BITS:
        raise ConfigError(
            f"activation_bits: found {config.activation_bits} beside candidates {', '.join(alone)}, whose layers read"
            f" float; give {FLOAT_BITS}, or leave it out"
        )
    elif not alone and config.activation_bits == FLOAT_BITS:
        raise ConfigError(
            f"candidates: found {config.candidates[0]} beside activation_bits {FLOAT_BITS}; layers that read float have"
            f" those of A32, such as {', '.join(ALONE)}; leave one of both out"
        )
    elif alone:
        config = config.model_copy(update={"activation_bits": FLOAT_BITS})
    # Layers whose bits the settings give have it; all others have that of their candidate.
    if config.planned_alone and "block_size" in given and not config.layers and "first_last_bits" not in given:
        raise ConfigError(
            f"block_size: found {config.block_size} beside a budget, and no layer to use it; candidates have blocks of"
            " their own, such as W4A32g64; leave it out"
        )
    if config.planned_alone and config.max_latency is not None and config.latencies is None:
        raise ConfigError(
            "max_latency: found it beside weights alone, whose times are not measured; give those of the layers as"
            " latencies, or another budget"
        )
    if config.planned_alone and config.max_a16 is not None:
        raise ConfigError(
            "max_a16: found it beside activation_bits 32, which leaves activations in float; leave it out"
        )
    return config


def check_shapes(inputs: Sequence[InputSpec], target: Target) -> None:
    """Raise ConfigError for inputs of free dimensions where the target takes one size alone; with an example of one."""
    free = [spec for spec in inputs if spec.shape is None or None in spec.shape]
    if target.rules.static_shapes is None or not free:
        return
    found = ", ".join(
        f"{spec.name!r} {'of any rank' if spec.shape is None else spell_shape(spec.shape)}" for spec in free
    )
    example = " ".join(f"--shape {spec.name}={_choose_sides(spec)}" for spec in free[:MOST_EXAMPLES])
    raise ConfigError(
        f"shape: found free dimensions of input {found}; target {target.name!r} compiles a file for one size; give it,"
        f" as in {example}"
    )


def check_opset(model: ModelProto, config: QuantizeConfig, target: Target) -> None:
    """Raise ModelError for a model, and ConfigError for settings, that need a newer opset than the target takes."""
    most, found, least = target.requirements.opset[1], opset_of(model), least_opset(config, target)
    if most is not None and found > most:
        raise ModelError(
            f"graph {model.graph.name}: found opset {found}; target {target.name!r} takes {most} at most; export the"
            " model at that opset"
        )
    if most is not None and least > most:
        raise ConfigError(
            f"weight_bits: found settings of {min(config.least_bits, 4)} bits, which need opset {least}; target"
            f" {target.name!r} takes {most} at most; give 8 bits"
        )


def _choose_sides(spec: InputSpec) -> str:
    """Dimensions that an input may have, as an example: one sample, an image of usual size, or a text of that."""
    sides = (None, None) if spec.shape is None else spec.shape
    usual = USUAL_IMAGE if len(sides) > USUAL_RANK else USUAL_TEXT
    return ",".join(str(size or (usual if axis else 1)) for axis, size in enumerate(sides))


def check_bits(config: QuantizeConfig, target: Target, where: str = "") -> None:
    """Raise ConfigError for bits that the target has not: of all layers, single ones, tensors, tables, candidates.

    where: what gave the bits of single layers and tensors, in front of the message.
    """
    needs = target.requirements
    every: tuple[tuple[str, QuantizeConfig | LayerConfig], ...] = (
        ("", config),
        *((f"{where}layers: {name!r}: ", each) for name, each in config.layers.items()),
    )
    for place, settings in every:
        weight = settings.weight_bits or config.weight_bits
        activation = settings.activation_bits or config.activation_bits
        if config.activations == "dynamic":
            _check_ranged(place, activation)
        if activation != FLOAT_BITS:
            _check(f"{place}weight_bits", weight, needs.weight_bits, target)
            _check_activation(f"{place}activation_bits", activation, target)
        elif weight not in needs.weights_alone:
            alone = _join(needs.weights_alone) or "no weights"
            raise ConfigError(
                f"{place}activation_bits: found {FLOAT_BITS} beside weights of {weight} bits; target {target.name!r}"
                f" takes it beside {alone} alone; give other bits"
            )
    for name, bits in config.tensors.items():
        if bits < config.activation_bits < FLOAT_BITS:
            raise ConfigError(
                f"{where}tensors: {name!r}: found {bits} beside activation_bits {config.activation_bits}; a tensor may"
                " have more bits than the others; give all the fewest, and these to single tensors"
            )
        _check_activation(f"{where}tensors: {name!r}", bits, target)
    if config.max_a16 is not None:
        if WIDE_BITS not in needs.activation_bits:
            why = "computes 16 bits in float" if target.wide_in_float else f"takes {_join(needs.activation_bits)}"
            raise ConfigError(
                f"max_a16: found {config.max_a16:g}; target {target.name!r} {why}; give a target of 16-bit"
                " activations, such as qnn, or leave it out"
            )
    if "candidates" in config.model_fields_set:
        if config.max_a16 is not None and not config.wide:
            raise ConfigError(
                f"max_a16: found {config.max_a16:g} beside candidates {', '.join(config.candidates)}; one of 16 bits is"
                " needed; add W8A16"
            )
        for each in map(CANDIDATE_OF.__getitem__, config.candidates):
            _check_candidate(each, target)
    given_alone = config.activation_bits == FLOAT_BITS and "first_last_bits" in config.model_fields_set
    ends = needs.weights_alone if given_alone else needs.weight_bits
    _check("first_last_bits", config.first_last_bits, ends, target)
    _check_blocks(every, target)
    if not target.is_onnxruntime and not needs.through_cast and config.embedding_bits in (8, 4):
        raise ConfigError(
            f"embedding_bits: found {config.embedding_bits}; integers of a table are read through a Cast, which target"
            f" {target.name!r} does not take; leave it out"
        )


def _check_ranged(place: str, bits: int) -> None:
    """Raise ConfigError for bits of what each run gives a grid; single layers, with a ``place``, may read float."""
    if bits not in (FULL_BITS, *([FLOAT_BITS] if place else [])):
        raise ConfigError(
            f"{place}activation_bits: found {bits} beside activations 'dynamic'; the grid of a run has {FULL_BITS}"
            " bits; leave one of them out"
        )


def _choose_candidates(config: QuantizeConfig, needs: Requirements) -> tuple[CandidateName, ...]:
    """The candidates of the settings that the target takes.

    Where max_a16 is the only budget, they are those of the settings' weights; beside others, all with 8 bits or more.
    """
    names = config.candidates
    if config.max_a16 is not None:
        alone = [name for name in BUDGETS if getattr(config, name) is not None] == ["max_a16"]
        names = tuple(
            name
            for name, bits in ((name, CANDIDATE_OF[name]) for name in CANDIDATES)
            if FULL_BITS <= bits.activation_bits <= WIDE_BITS
            and bits.weight_bits in ((config.weight_bits,) if alone else (8, 4))
        )
    return tuple(name for name in names if _takes(needs, CANDIDATE_OF[name]))


def _takes(needs: Requirements, bits: Candidate) -> bool:
    if bits.activation_bits == FLOAT_BITS:
        in_blocks = needs.in_blocks and (not needs.blocks or bits.block_size in needs.blocks)
        return bits.weight_bits in needs.weights_alone and (in_blocks or not bits.block_size)
    return bits.weight_bits in needs.weight_bits and bits.activation_bits in needs.activation_bits


def _check_activation(name: str, found: int, target: Target) -> None:
    if found == WIDE_BITS and target.wide_in_float:
        raise ConfigError(
            f"{name}: found {found}; target {target.name!r} computes activations of {found} bits in float, more slowly"
            " than the float model; give bits of integers, or a target that has these, such as qnn"
        )
    _check(name, found, target.requirements.activation_bits, target)


def _check_blocks(every: Sequence[tuple[str, QuantizeConfig | LayerConfig]], target: Target) -> None:
    """Raise ConfigError for blocks, or zero points, of weights alone that the target has not.

    every: where settings stand, and these.
    """
    for place, settings in every:
        if settings.block_size not in (None, COLUMN):
            _check_block(int(settings.block_size), f"{place}block_size", target)
        asymmetric = isinstance(settings, QuantizeConfig) and settings.weight_symmetry == "asymmetric"
        if asymmetric and not target.requirements.asymmetric_alone:
            raise ConfigError(
                f"{place}weight_symmetry: found asymmetric; target {target.name!r} takes weights without zero points;"
                " leave it out"
            )


def _check_candidate(found: Candidate, target: Target) -> None:
    needs, setting = target.requirements, "candidates"
    if found.activation_bits != FLOAT_BITS:
        _check(setting, found.weight_bits, needs.weight_bits, target)
        _check_activation(setting, found.activation_bits, target)
        return
    _check(setting, found.weight_bits, needs.weights_alone, target)
    if found.block_size:
        _check_block(found.block_size, setting, target)


def _check_block(found: int, setting: str, target: Target) -> None:
    needs = target.requirements
    if not needs.in_blocks:
        raise ConfigError(f"{setting}: found {found}; target {target.name!r} takes no blocks; leave it out")
    if needs.blocks and found not in needs.blocks:
        raise ConfigError(f"{setting}: found {found}; target {target.name!r} takes {_join(needs.blocks)}; give that")


def _check(name: str, found: int, allowed: tuple[int, ...], target: Target) -> None:
    if not allowed:
        raise ConfigError(
            f"{name}: found {found}; target {target.name!r} takes no types that can be written; weights are int8 or"
            " int4, activations int16, int8, uint16, uint8 or uint4; give another target"
        )
    if found not in allowed:
        raise ConfigError(
            f"{name}: found {found}; target {target.name!r} takes {_join(allowed)}; give bits that it takes, or another"
            " target"
        )


def _join(bits: tuple[int, ...]) -> str:
    return " or ".join(map(str, bits))
