"""States: inputs that hold what an output gave in the step before, paired by the user or offered by their names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from onnx import ModelProto, ValueInfoProto, helper

from ..config import nearest
from ..errors import ConfigError, spell_value
from ..spec import InputSpec, spell_shape
from .shapes import Shape, recorded_shape

WILD = "*"
# What takes the place of a part of the input's name in that of the output with the value of the next step, by the names
# that exporters give. The first that fits counts.
PAST = (("past_key_values", "present"), ("past_key_values", "present_key_values"), ("past", "present"))
OTHERS = (
    ("$", "N"), ("$", "n"), ("$", "_n"), ("0$", "n"), ("0$", "N"), ("$", "_out"), ("_in$", "_out"), ("$", "_next"),
    ("$", "_new"), ("^", "new_"), ("^", "next_"), ("^", "out_"), ("^in_", "out_"), ("^prev_", "next_"), ("^prev_", ""),
)  # fmt: skip
SHOWN = 4  # pairs that are spelled in a line


def name_present(past: str) -> list[str]:
    """The names that an output may have which gives a past for the next run."""
    return [past.replace(old, new, 1) for old, new in PAST if old in past]


def mark_states(model: ModelProto, inputs: Sequence[InputSpec], pairs: Sequence[str]) -> tuple[InputSpec, ...]:
    """The inputs, those of ``pairs`` (OUT:IN) with the output whose value they hold in the next step.

    Raises ConfigError for names that the model does not have, and for outputs that do not fit their inputs.
    """
    outputs = {value.name: value for value in model.graph.output}
    found: dict[str, str] = {}
    for pair in pairs:
        for output, name in _match(pair, list(outputs), [spec.name for spec in inputs]):
            if found.setdefault(name, output) != output:
                raise ConfigError(
                    f"state: found outputs {found[name]!r} and {output!r} for input {name!r}; one output gives its next"
                    " value; leave one out"
                )
    marked = tuple(replace(spec, state=found[spec.name]) if spec.name in found else spec for spec in inputs)
    for spec in marked:
        if spec.state:
            _check(spec, outputs[spec.state])
    if found and all(spec.state for spec in marked):
        raise ConfigError("state: found a state for every input; steps need an input of their own; leave one out")
    return marked


def _match(pair: str, outputs: Sequence[str], inputs: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The pairs of names that ``OUT:IN`` means, a name of which may have colons of its own."""
    splits = [(pair[:at], pair[at + 1 :]) for at, letter in enumerate(pair) if letter == ":"]
    for output, name in splits:
        if WILD in output or WILD in name:
            matches = [*_match_wild(output, name, outputs, inputs)]
            if matches:
                yield from matches
                return
        elif output in outputs and name in inputs:
            yield output, name
            return
    known = [split for split in splits if split[0] in outputs or split[1] in inputs]
    output, name = (known or splits)[0]
    kind, wrong, allowed = ("input", name, inputs) if output in outputs else ("output", output, outputs)
    names = ", ".join(map(repr, allowed[:20]))
    raise ConfigError(
        f"state: found {spell_value(pair)}; no {kind} of the model has the name {spell_value(wrong)}; its {kind}s are"
        f" {names};{nearest(wrong, list(allowed)) or ' name one of them'}"
    )


def _match_wild(output: str, name: str, outputs: Sequence[str], inputs: Sequence[str]) -> Iterator[tuple[str, str]]:
    if output.count(WILD) != 1 or name.count(WILD) != 1:
        return
    pattern = re.compile("(.*)".join(map(re.escape, output.split(WILD))), re.DOTALL)
    for each in outputs:
        match = pattern.fullmatch(each)
        if match and name.replace(WILD, match[1]) in inputs:
            yield each, name.replace(WILD, match[1])


def _check(spec: InputSpec, output: ValueInfoProto) -> None:
    """Raise ConfigError for an output that cannot be the input's next value."""
    where = f"state: output {output.name!r}"
    if (held := output.type.WhichOneof("value")) not in (None, "tensor_type"):
        raise ConfigError(f"{where} is of {held.removesuffix('_type')} type; a state is a tensor; name another")
    kind = _find_type(output)
    if kind is not None and kind != np.dtype(spec.dtype):
        raise ConfigError(f"{where} is {kind}, input {spec.name!r} {spec.dtype}; a state has one type; name another")
    if spec.shape is None:
        raise ConfigError(
            f"state: input {spec.name!r} has no shape in the file; the first step starts from zeros of its shape; give"
            f" --shape '{spec.name}=...'"
        )
    shape = recorded_shape(output)
    if shape is not None and not _fits(shape, spec.shape):
        raise ConfigError(
            f"{where} has shape {spell_shape(shape)}, input {spec.name!r} {spell_shape(spec.shape)}; a state has one"
            " shape; name another"
        )


def _find_type(value: ValueInfoProto) -> np.dtype | None:
    kind = value.type.tensor_type.elem_type
    return np.dtype(helper.tensor_dtype_to_np_dtype(kind)) if kind else None


def _fits(shape: Shape, wanted: Shape) -> bool:
    return len(shape) == len(wanted) and all(None in (a, b) or a == b for a, b in zip(shape, wanted, strict=True))


def offer_states(model: ModelProto, inputs: Sequence[InputSpec]) -> str:
    """The options that pair outputs with inputs of the like names, which may be states; empty where none are."""
    outputs = {value.name: value for value in model.graph.output}
    found = {}
    for spec in inputs:
        names = [*name_present(spec.name), *(re.sub(old, new, spec.name) for old, new in OTHERS)]
        name = next((name for name in names if name != spec.name and name in outputs), None)
        if name is not None and spec.shape and _find_type(outputs[name]) == np.dtype(spec.dtype):
            shape = recorded_shape(outputs[name])
            if shape is None or _fits(shape, spec.shape):
                found[spec.name] = name
    if not found or len(found) == len(inputs):
        return ""
    return " ".join(f"--state {text}" for text in _shorten(found))


def _shorten(found: Mapping[str, str]) -> list[str]:
    """``OUT:IN`` of each pair, or of all that start alike with the rest as a ``*``."""
    if len(found) <= SHOWN:
        return [f"{output}:{name}" for name, output in found.items()]
    texts: dict[str, None] = {}
    for name, output in found.items():
        end = 0
        while end < min(len(name), len(output)) and name[-end - 1] == output[-end - 1]:
            end += 1
        rest = name[len(name) - end :]
        end = len(rest.partition(re.sub("^[a-zA-Z]*", "", rest)[:1])[2])  # words are not cut
        texts[f"'{output[: len(output) - end]}*:{name[: len(name) - end]}*'"] = None
    return [*texts]
