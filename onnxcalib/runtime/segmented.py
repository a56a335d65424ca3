"""A model in onnxruntime segment by segment: what is held are the weights of one, and what later ones read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import onnxruntime as ort
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from ..files.scratch import Scratch
from ..graph.cuts import Segment, find_segments, join_segments, take_segment

# Types of onnxruntime of which it gives and takes arrays.
ARRAYS = {f"int{bits}": getattr(TensorProto, f"INT{bits}") for bits in (8, 16, 32, 64)}
ARRAYS |= {f"uint{bits}": getattr(TensorProto, f"UINT{bits}") for bits in (8, 16, 32, 64)}
ARRAYS |= {name: getattr(TensorProto, name.upper()) for name in ("float", "double", "float16", "bool", "string")}
Loaded = tuple[ort.InferenceSession, Scratch | None]
OpenSegment = Callable[[ModelProto, Sequence[str], Path | None], Loaded]


class _Arg(NamedTuple):
    """A model's input or output, as onnxruntime describes it."""

    name: str
    type: str


class Segmented:
    """Takes the place of an InferenceSession whose model has large weights.

    The session of a segment is opened for each run, which takes milliseconds where weights are mapped, and closed after
    it. All are opened once at first, which finds out whether onnxruntime takes them.
    """

    def __init__(
        self, model: ModelProto, outputs: Sequence[str], most_bytes: int, open_segment: OpenSegment, dump: Path | None
    ) -> None:
        """Raises what ``open_segment`` raises.

        outputs: the names of all tensors to give. open_segment: makes the session of a segment, which gives more
        tensors than its outputs. dump: the file for the optimized graph, the segments' weights in files beside it.
        """
        self._open_segment, self._declared = open_segment, {value.name for value in model.graph.output}
        whole, lacking = set[str](), {""}
        while lacking:
            segments = find_segments(model, outputs, most_bytes, whole=whole)
            dumps = [dump and dump.with_name(f"{dump.name}.{number}") for number in range(len(segments))]
            lacking = self._try(model, segments, dumps)
            whole |= lacking
        if dump is not None:
            graphs = [onnx.load(path, load_external_data=False).graph for path in filter(None, dumps)]
            dump.write_bytes(ModelProto(graph=join_segments(graphs)).SerializeToString())
        initializers = {tensor.name for tensor in model.graph.initializer}
        self._inputs = [_describe(value) for value in model.graph.input if value.name not in initializers]
        self._outputs = [_Arg(name, self._types.get(name, "")) for name in outputs]

    def get_inputs(self) -> list[_Arg]:
        return self._inputs

    def get_outputs(self) -> list[_Arg]:
        return self._outputs

    def run(self, names: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        """The tensors of these names; segments on which none of them depends are left out."""
        values, waiting = dict(feeds), self._find_needed(names)
        while waiting:
            segment, model, wanted = waiting.pop(0)
            session, _folder = self._open(segment, model)
            given = session.run(wanted, {name: values[name] for name in segment.inputs if name in values})
            del session, _folder
            values.update(zip(wanted, given, strict=True))
            later = {name for other, *_ in waiting for name in other.inputs}.union(names)
            values = {name: value for name, value in values.items() if name in later}
        return [values[name] for name in names]

    def _find_needed(self, names: Sequence[str]) -> list[tuple[Segment, ModelProto, list[str]]]:
        needed, found = set(names), []
        for segment, model in reversed(self._segments):
            if wanted := [name for name in segment.outputs if name in needed]:
                found.append((segment, model, wanted))
                needed.update(segment.inputs)
        return found[::-1]

    def _open(self, segment: Segment, model: ModelProto, dump: Path | None = None) -> Loaded:
        return self._open_segment(model, [name for name in segment.outputs if name not in self._declared], dump)

    def _try(self, model: ModelProto, segments: Sequence[Segment], dumps: Sequence[Path | None]) -> set[str]:
        """Open every segment once; gives the tensors between segments that arrays cannot hold."""
        known = {value.name: value for value in model.graph.input}
        named = {dim.dim_param for value in model.graph.input for dim in value.type.tensor_type.shape.dim}
        self._segments, self._types = list[tuple[Segment, ModelProto]](), dict[str, str]()
        for segment, dump in zip(segments, dumps, strict=True):
            own = take_segment(model, segment, known)
            session, _folder = self._open(segment, own, dump)
            self._segments.append((segment, own))
            for arg in session.get_outputs():
                self._types[arg.name] = arg.type
                if (value := _describe_between(arg, named)) is not None:
                    known[arg.name] = value
            del session, _folder
            later = {name for other in segments for name in other.inputs}
            if lacking := later.intersection(segment.outputs) - known.keys():
                return lacking
        return set()


def _describe(value: ValueInfoProto) -> _Arg:
    kind = value.type.tensor_type.elem_type
    names = {number: name for name, number in ARRAYS.items()}
    return _Arg(value.name, f"tensor({names.get(kind, kind)})")


def _describe_between(arg: ort.NodeArg, named: set[str]) -> ValueInfoProto | None:
    """The input of a later segment that another gives; None where no array can hold it.

    Of its dimensions those are kept that are numbers, or names that the model's own inputs have: onnxruntime may give
    one name of its own to different dimensions of two segments.
    """
    match = re.fullmatch(r"tensor\((\w+)\)", arg.type)
    if match is None or match[1] not in ARRAYS:
        return None
    shape = [size if isinstance(size, int) or size in named else None for size in arg.shape]
    return helper.make_tensor_value_info(arg.name, ARRAYS[match[1]], shape or None)
