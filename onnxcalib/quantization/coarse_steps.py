"""Small parts of a network that decide what a step gives, such as the first layer in front of a threshold.

256 levels move values across the step, and that spoils the outputs more than all rounding does. Where all that leads to
the step costs little in float, it stays there, and nothing crosses.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto

from ..graph.extract import infer_types, needed_nodes
from ..graph.index import Index, reads
from ..graph.steps import Step, find_steps, is_step
from ..progress import track
from ..spec import Grids, QuantScheme
from .calibrate import choose_grids, collect_statistics
from .flips import expect_flips
from .last_layers import count_costs
from .prepared import Prepared
from .speed import read_median
from .tensor_shapes import measure_shapes

# The least SQNR of an output with the jumps of a step alone, as of products.
LEAST_DB = 30.0
# The layers in front of a step that stay in float have no more than this share of the model's products.
MOST_SHARE = 0.2
# Samples on which a step is tried, and pairs of one of them and the errors of another; a net may have many steps.
SAMPLES, PAIRS = 128, 512


def find_coarse_steps(prepared: Prepared) -> dict[str, str]:
    """Maps nodes in front of steps to the reason, where they cost little and 256 levels of them spoil an output."""
    found: dict[str, str] = {}
    fronts = _find_fronts(prepared.model, prepared.scheme)
    shares = _count_shares(prepared) if fronts else {}
    for step, front in track([*fronts.items()]):
        cheap = sum(shares.get(name, 0.0) for name in front) <= MOST_SHARE
        if not set(front) <= found.keys() and cheap and (why := _explain(prepared, step, front)):
            found |= dict.fromkeys(front, why)
    return found


def _find_fronts(model: ModelProto, scheme: QuantScheme) -> dict[Step, list[str]]:
    """For each step the nodes on grids in front of it, where some of the layers are among them, but not all."""
    if not any(is_step(node) for node in model.graph.node):
        return {}
    index, layers = Index(model.graph), {layer.name for layer in scheme.layers}
    fronts = {}
    for step in find_steps(model, index, infer_types(model)):
        before = needed_nodes(index, (), step.tensors)
        nodes = (node for node in model.graph.node if node.name in before)
        front = [n.name for n in nodes if not scheme.activations.keys().isdisjoint((*reads(n), *n.output))]
        if not step.mixed and not layers.isdisjoint(front) and not layers <= set(front):
            fronts[step] = front
    return fronts


def _count_shares(prepared: Prepared) -> dict[str, float]:
    """The share of each layer in the model's products."""
    model = prepared.model
    shapes = measure_shapes(model, read_median(prepared.samples), prepared.run.threads)
    costs = count_costs(model, Index(model.graph), shapes)
    total = sum(macs for macs, _ in costs.values())
    return {name: macs / max(total, 1) for name, (macs, _) in costs.items()}


def _explain(prepared: Prepared, step: Step, front: list[str]) -> str:
    """Why the nodes stay in float; an empty text where the step jumps so rarely on grids that no output shows it."""
    model, threads, padding = prepared.model, prepared.run.threads, prepared.padding
    nodes = Index(model.graph).nodes
    tensors = [t for name in front for t in (*reads(nodes[name]), *nodes[name].output)]
    scheme = QuantScheme(
        layers=(),
        activations={t: spec for t, spec in prepared.scheme.activations.items() if t in tensors},
        nonnegative=prepared.scheme.nonnegative,
    )
    samples = prepared.samples.take(range(min(SAMPLES, len(prepared.samples))))
    statistics = collect_statistics(model, list(scheme.activations), samples, padding, threads=threads)
    grids = choose_grids(scheme, statistics.histograms, prepared.config).activations
    decibels = expect_flips(
        model,
        prepared.emit_grids(scheme, Grids(grids)),
        samples,
        (statistics.batch, len(samples)),
        padding=padding,
        parts=prepared.parts,
        pairs=PAIRS,
        threads=threads,
    )
    output, least = min(decibels.items(), key=lambda each: each[1], default=("", LEAST_DB))
    if least >= LEAST_DB:
        return ""
    left = f"leaves {least:.1f} dB of" if np.isfinite(least) else "makes values infinite of"
    return f"256 levels of it make {step.op} ({step.name}) jump, which {left} output {output}"
