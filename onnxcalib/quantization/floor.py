"""The least memory that a run takes: what its largest layer needs while it is worked on, and a sample's activations."""

from __future__ import annotations

from dataclasses import replace

from onnx import ModelProto

from ..errors import ConfigError
from ..graph.index import all_graphs, all_nodes
from ..graph.values import count_bytes
from ..report import MemoryRecord
from ..runtime.memory import find_free, measure_peak
from ..runtime.session import SEGMENT_BYTES
from .run import Run

# The weight of a layer as floats, what is solved of it, and what a session makes of it. The sessions of models with
# larger weights hold a segment of them at once, which counts as a layer.
COPIES = 3
# Tables that a Gather looks up by row are read and rounded by rows.
ROW_WISE = ("Gather",)


def find_floor(run: Run, model: ModelProto, activations: int = 0) -> MemoryRecord:
    """The floor of a float model's run, whose layers may be in bodies of its nodes.

    activations: bytes of those of a sample; 0 before they are known.
    """
    sizes = {tensor.name: count_bytes(tensor) for graph in all_graphs(model.graph) for tensor in graph.initializer}
    layers = {
        node.name or next(filter(None, node.output), node.op_type): sum(sizes.get(name, 0) for name in {*node.input})
        for node in all_nodes(model.graph)
        if node.op_type not in ROW_WISE
    }
    name = max(layers, key=layers.__getitem__, default="")
    weights = max(layers.get(name, 0), min(SEGMENT_BYTES, sum(sizes.values())))
    return MemoryRecord(
        floor_bytes=run.resident + COPIES * weights + activations,
        largest=name,
        largest_bytes=weights,
        budget_bytes=run.config.memory_bytes,
    )


def check_memory(run: Run, model: ModelProto, activations: int = 0) -> None:
    """Refuse a budget below the floor, which is kept for the report. Raises ConfigError.

    Where the user gave no budget, what the machine has free is told if it is less than the floor.
    """
    floor = run.memory = find_floor(run, model, activations)
    given = floor.budget_bytes
    available = find_free() + run.resident if given is None else given
    if floor.floor_bytes <= available:
        return
    found = f"memory: found {_spell(available)}{' free' * (given is None)}"
    found += f"; {_spell(floor.floor_bytes)} are needed at least, {COPIES} times the {_spell(floor.largest_bytes)} of"
    found += f" the segment with layer {floor.largest}"
    found += f", {_spell(activations)} of activations of a sample" * bool(activations)
    found += f" and {_spell(run.resident)} of the process itself"
    if given is not None:
        raise ConfigError(f"{found}; give more, or leave it out")
    run.warn(f"{found}; the system may end the run; free memory, or take a larger machine")


def record_memory(run: Run, model: ModelProto) -> MemoryRecord:
    """What the run took at most, beside its floor; more than its budget is warned of.

    What the process had at most before the run began is not the run's.
    """
    found = replace(run.memory or find_floor(run, model), peak_bytes=measure_peak())
    if found.budget_bytes is not None and found.peak_bytes > max(found.budget_bytes, run.peak_before):
        run.warn(
            f"memory: found {_spell(found.peak_bytes)} taken of the {_spell(found.budget_bytes)} given; batches of"
            " activations and what a layer is solved on come beside the least that is needed; give more"
        )
    return found


def _spell(count: int) -> str:
    return f"{count / 1e9:.2f}GB" if count >= 1e8 else f"{count / 1e6:.1f}MB"
