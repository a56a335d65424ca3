"""Whether preparation left a model's outputs as they were, but for what float rounding decides in any case."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from ..errors import ModelError
from ..graph.extract import infer_types
from ..graph.index import Index, reads
from ..graph.steps import is_step
from ..runtime.session import Session, is_float

# Graph passes only reorder float32 sums, which changes an output by less than this share of its largest value. A
# float16 model then computes in float32, and its outputs change by the rounding that it had.
TOLERANCE, FLOAT16_TOLERANCE = 1e-3, 0.1
# Preparation may change a model by so many times of what onnxruntime's optimizations change, in size or in number.
OWN_TIMES = 10
# A fault changes more than this share of an output's values. Fewer are told.
FEW = 1e-3
# Larger changes have no number in texts: the largest value before was about 0, or one is not finite now.
MOST_SPELLED = 100
# Element types that onnxruntime returns as arrays, and whose values can be subtracted.
COMPARED = (
    TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL,
)  # fmt: skip


@dataclass(frozen=True)
class Change:
    """How an output changed: its largest change relative to its largest value, and the share of values above tolerance.

    Where the shape changed, the first is infinite and the second 1.
    """

    size: float
    share: float
    reshaped: bool = False

    def is_within(self, other: Change) -> bool:
        """Whether it is as large, or as rare, as the other one, up to OWN_TIMES."""
        return self.size <= OWN_TIMES * other.size or self.share <= OWN_TIMES * other.share


@dataclass(frozen=True)
class Unchanged:
    """largest: of the changes within the tolerance, None without any. remarks: one for each larger change."""

    largest: float | None
    remarks: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """What a run says of it."""
        if self.largest is None:
            return list(self.remarks)
        rest = "all other outputs" if self.remarks else "outputs"
        return [*self.remarks, f"{rest} unchanged by preparation to {self.largest:.1e} of their largest value"]


def check_unchanged(
    original: ModelProto,
    prepared: ModelProto,
    wanted: Mapping[str, Any],
    feeds: Mapping[str, Any],
    *,
    threads: int = 0,
    tolerance: float = TOLERANCE,
) -> Unchanged:
    """Compare the float outputs of a prepared model with ``wanted``, those of the original, on one batch.

    An output may change by ``tolerance`` of its largest value. It may change by more where few values do; where
    onnxruntime's own optimizations change the original model likewise; and behind operators that turn rounding into
    jumps, whose inputs did not change. Raises ModelError for any other change, and names the node where it begins.
    Values of ``wanted`` that are not finite are ignored here: calibration names the tensor that they come from.
    """
    given = Session(prepared, name="the prepared model", threads=threads).run(feeds)
    changes = {name: _change(value, given[name], tolerance) for name, value in wanted.items() if is_float(value)}
    plain = {name: change.size for name, change in changes.items() if change.size <= tolerance}
    largest = max(plain.values(), default=None if changes else 0.0)
    if len(plain) == len(changes):
        return Unchanged(largest)
    own = Session(original, optimize=False, threads=threads).run(feeds)
    trace = _Trace(original, prepared, feeds, threads=threads, tolerance=tolerance)
    remarks = []
    for name, change in changes.items():
        if name in plain:
            continue
        said = f"output {name}: preparation changed {_spell(change)}"
        if not trace.changed.get(name, True):
            remarks.append(f"{said}, through onnxruntime's optimizations alone; without them it is unchanged")
        elif steps := trace.find_steps(name):
            remarks.append(f"{said}, as {steps} jumps where its input is rounded otherwise; what it reads is unchanged")
        elif change.is_within(_change(wanted[name], own[name], tolerance)):
            remarks.append(f"{said}, as onnxruntime's own optimizations do; float rounding decides these values")
        elif change.share <= FEW:
            remarks.append(f"{said}; all others are unchanged")
        else:
            raise ModelError(
                f"{said}{trace.spell_origin(name)}; {tolerance:.0e}, or what onnxruntime's own optimizations change, is"
                " allowed; export the model at another opset, or simplify it first"
            )
    return Unchanged(largest, tuple(remarks))


def _spell(change: Change) -> str:
    if change.reshaped:
        return "its shape"
    size = f"up to {change.size:.1e} of" if change.size < MOST_SPELLED else "far more than"
    return f"{100 * change.share:.3g}% of its values, by {size} the largest"


def _change(wanted: np.ndarray, given: np.ndarray, tolerance: float) -> Change:
    if wanted.shape != given.shape:
        return Change(np.inf, 1.0, reshaped=True)
    finite = np.isfinite(wanted)
    if not finite.any():
        return Change(0.0, 0.0)
    before, after = wanted[finite].astype(np.float64), given[finite].astype(np.float64)
    change = np.abs(before - after) / max(float(np.abs(before).max()), np.finfo(np.float32).tiny)
    change[np.isnan(change)] = np.inf
    least = tolerance if wanted.dtype.kind == "f" else 0.0  # indices are other ones however near they are
    return Change(float(change.max()), float((change > least).mean()))


class _Trace:
    """The tensors that both models make, computed without graph optimizations, and which of them changed."""

    def __init__(
        self, original: ModelProto, prepared: ModelProto, feeds: Mapping[str, Any], *, threads: int, tolerance: float
    ):
        self.index = Index(original.graph)
        types = infer_types(prepared)
        made = {name for node in prepared.graph.node for name in node.output if name in self.index.producer}
        kept = [name for name in made if name in types and types[name].type.tensor_type.elem_type in COMPARED]
        before, after = (
            Session(model, also=sorted(kept), optimize=False, threads=threads).run(feeds)
            for model in (original, prepared)
        )
        self.changed = {
            name: _change(before[name], after[name], tolerance).share > 0
            for name in {*kept, *self.index.outputs}
            if isinstance(before.get(name), np.ndarray) and isinstance(after.get(name), np.ndarray)
        }

    def find_steps(self, output: str) -> str:
        """The first operator that explains the output's change by a jump; an empty text where any part has none."""
        found = [next(filter(is_step, nodes), None) for nodes in self._origins(output)]
        step = found[0] if found else None
        return "" if step is None or None in found else f"{step.op_type} ({step.name or step.output[0]})"

    def spell_origin(self, output: str) -> str:
        """Where the output's change begins, as a part of a sentence."""
        node = next((node for nodes in self._origins(output) for node in nodes), None)
        return "" if node is None else f", from node {node.name or node.output[0]} ({node.op_type}) on"

    def _origins(self, output: str) -> Iterator[list[NodeProto]]:
        """The nodes between tensors that did not change and one that did, for each place where a change begins."""
        stack, seen = [output], {output}
        while stack:
            nodes, above = self._look_behind(stack.pop())
            changed = [name for name in above if self.changed.get(name, False)]
            if not changed:
                yield nodes
            stack.extend(name for name in changed if name not in seen)
            seen.update(changed)

    def _look_behind(self, tensor: str) -> tuple[list[NodeProto], set[str]]:
        """The nodes behind a tensor up to the nearest ones that were compared, and these."""
        nodes: dict[str, NodeProto] = {}
        above: set[str] = set()
        stack = [tensor]
        while stack:
            node = self.index.producer.get(stack.pop())
            if node is None or node.output[0] in nodes:
                continue
            nodes[node.output[0]] = node
            for name in reads(node):
                if name in self.changed:
                    above.add(name)
                else:
                    stack.append(name)
        return list(nodes.values()), above
