"""Try the file with the layers as they were solved, and leave in float what onnxruntime refuses of it.

A file with placeholders was taken before. Real scales, zero points and integers may meet optimizations that those did
not. No layer is solved again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from onnx import ModelProto

from ..spec import Grids, QuantScheme
from .prepared import Prepared
from .state import ReconstructionState
from .trial import Trial


def leave_refused(prepared: Prepared, state: ReconstructionState) -> tuple[ReconstructionState, dict[str, str]]:
    """The state without the nodes that onnxruntime refuses to run on integers, and these with the reasons.

    Raises ModelError where no layer would be left.
    """

    def make(names: Mapping[str, str]) -> QuantScheme:
        return prepared.leave(names).scheme

    def emit(scheme: QuantScheme) -> ModelProto:
        return prepared.emit(scheme, _choose_grids(prepared, scheme, state.grids), state.layers)

    samples = prepared.samples
    feeds = samples.read(range(samples.fixed_batch or 1))
    found = Trial(
        prepared.model, make, emit, feeds, prepared.run.threads, prepared.run.target.is_onnxruntime
    ).find_refused(prepared.in_float)
    if not found:
        return state, found
    for name, reason in found.items():
        prepared.run.observer.note(f"{name}: left in float, as {reason}")
    scheme = make(found)
    layers = {each.name: state.layers[each.name] for each in scheme.stored}
    problem, grids = replace(state.problem, scheme=scheme), _choose_grids(prepared, scheme, state.grids)
    return replace(state, problem=problem, grids=grids, layers=layers), found


def _choose_grids(prepared: Prepared, scheme: QuantScheme, known: Grids) -> Grids:
    """The known grids of a scheme's tensors; where it asks for other bits of one, as calibrated."""
    grids = Grids(
        {t: grid for t, spec in scheme.activations.items() if (grid := known.of_bits(t, spec.bits))},
        {t: grid for t, spec in scheme.requantized.items() if (grid := known.of_bits(t, spec.bits))},
    )
    if grids.activations.keys() == scheme.activations.keys() and grids.requantized.keys() == scheme.requantized.keys():
        return grids
    calibrated = prepared.choose_grids(scheme, prepared.collect(scheme))
    return calibrated.updated(grids.activations, grids.requantized)
