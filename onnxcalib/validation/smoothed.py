"""Let a float model have the tensors that were given factors, or mixed, under their names in the quantized model.

No file tells the factors that a norm or a layer took. They are the ratio of both models' channels on some samples. What
mixes channels is in the file.
"""

from __future__ import annotations

import re

import numpy as np
from onnx import ModelProto, NodeProto, helper

from ..data import CalibrationSet
from ..graph.edit import add_constant, refill, reroute
from ..graph.index import Index, is_op, known_constant
from ..graph.layers import find_layers
from ..graph.passes.equalize import find_junctions, scale_junction
from ..graph.passes.mix import find_bottlenecks, mix_bottleneck
from ..graph.passes.rotate import ROTATED
from ..graph.passes.smooth import SMOOTHED
from ..quantization.batches import batch_size, choose_step
from ..runtime.session import Session

NAME = re.compile(rf"(.+)_{SMOOTHED}(?:_\d+)?")
MIXED = re.compile(rf".+_{ROTATED}(?:_\d+)?")
# Positions of a sample, about, on which a matrix is fitted.
POSITIONS = 256
# Condition of a matrix up to which it can be one that mixes channels.
WELL_POSED = 1e3
# By constants they make what a layer reads; the others put it on grids in between.
MIXERS, ROUNDERS = ("Mul", "Reshape", "MatMul"), ("QuantizeLinear", "Clip", "DequantizeLinear")


def write_smoothed(
    original: ModelProto, quantized: ModelProto, samples: CalibrationSet, most: int, threads: int
) -> None:
    """Write ``X_smoothed = X f`` and ``X = X_smoothed / f`` into ``original``, for all that the quantized model has.

    f, by channel: ``sum x_q x / sum x^2`` of the first ``most`` samples, and 1 where that is no factor.
    """
    index, made = Index(original.graph), {t for node in quantized.graph.node for t in node.output}
    named = ((name, match[1]) for name in sorted(made) if (match := NAME.fullmatch(name)) is not None)
    pairs = {name: base for name, base in named if base in index.producer and base not in made | set(index.outputs)}
    pairs = {name: base for name, base in pairs.items() if name not in index.producer}
    if not pairs:
        return
    behind: dict[str, list[NodeProto]] = {}
    for name, factor in _measure(original, quantized, pairs, samples, most=most, threads=threads).items():
        base, operand, back = pairs[name], add_constant(original.graph, f"{name}_factor", factor), f"{name}_undone"
        for reader in index.readers(base):
            reroute(reader, base, back)
        behind[base] = [
            helper.make_node("Mul", [base, operand], [name], name=name),
            helper.make_node("Div", [name, operand], [back], name=back),
        ]
    nodes = [(node, *(each for t in node.output for each in behind.get(t, ()))) for node in original.graph.node]
    refill(original.graph.node, [each for group in nodes for each in group])


def write_mixed(original: ModelProto, quantized: ModelProto) -> None:
    """Write the mixed channels that layers of the quantized model read into ``original``, by the nodes that mix them.

    No node of ``original`` reads them, and none is rounded.
    """
    index, taken = Index(quantized.graph), {t for node in original.graph.node for t in node.output}
    for name in [t for node in quantized.graph.node for t in node.output if MIXED.fullmatch(t)]:
        mixers, at = list[NodeProto](), name
        while at not in taken and (node := index.producer.get(at)) is not None and is_op(node, *MIXERS, *ROUNDERS):
            mixers += [node] if is_op(node, *MIXERS) else []
            at = node.input[0]
        constants = {t for node in mixers for t in node.input[1:]}
        if at not in taken or not mixers or not index.initializers.keys() >= constants:
            continue
        for node in reversed(mixers):
            values = [known_constant(index, t) for t in node.input[1:]]
            given = [add_constant(original.graph, f"{node.output[0]}_by_{i}", each) for i, each in enumerate(values)]
            made = helper.make_node(node.op_type, [at, *given], [*node.output], name=node.name)
            original.graph.node.append(made)
            at = node.output[0]
            taken.add(at)


def mix_bottlenecks_alike(
    original: ModelProto, quantized: ModelProto, samples: CalibrationSet, most: int, threads: int
) -> list[str]:
    """Mix the channels of bottlenecks of ``original`` as the quantized model's are: neither's outputs change by that.

    The matrix is the one that comes nearest to what the quantized layers give, by least squares. Returns the names of
    the layers around bottlenecks whose matrix the samples do not tell.
    """
    index, made = Index(original.graph), {t for node in quantized.graph.node for t in node.output}
    found = find_bottlenecks(original, {each.name: each for each in find_layers(original, index, 8, 8)})
    given = {each.makers[0].output: each for each in found if each.makers[0].output in made}
    if not given:
        return []
    sessions = [Session(each, also=sorted(given), threads=threads, optimize=False) for each in (original, quantized)]
    sums: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    done = 0
    for feeds in samples.batches(min(batch_size(sessions[0], samples), most)):
        pair = [session.run(feeds, sorted(given)) for session in sessions]
        for tensor in given:
            x, y = (_take_columns(values[tensor]) for values in pair)
            if len(x) == len(y):
                before = sums.get(tensor, (0.0, 0.0))
                sums[tensor] = before[0] + y @ x.T, before[1] + x @ x.T
        done += samples.count(feeds)
        if done >= most:
            break
    untold: list[str] = []
    for tensor, (both, own) in sums.items():
        finite = bool(np.isfinite(both).all() and np.isfinite(own).all())
        matrix = np.linalg.lstsq(own, both.T, rcond=None)[0].T if finite else np.zeros(own.shape)
        if np.linalg.cond(matrix) < WELL_POSED:  # few samples may not tell all of it
            mix_bottleneck(original, given[tensor], matrix)
        else:
            untold += [layer.name for layer in (*given[tensor].makers, *given[tensor].readers)]
    return untold


def _take_columns(values: np.ndarray) -> np.ndarray:
    """Some positions of all samples as columns (K, any), float64."""
    flat = values.reshape(*values.shape[:2], -1)
    some = flat[:, :, :: choose_step(flat.shape[2], POSITIONS)]
    return np.moveaxis(some, 1, 0).reshape(values.shape[1], -1).astype(np.float64)


def scale_evened(original: ModelProto, quantized: ModelProto, samples: CalibrationSet, most: int, threads: int) -> None:
    """Scale the channels between layers of ``original`` as ``even_layers`` has scaled the quantized model's.

    Neither model's outputs change by that, and all tensors of a set have the same factors: those of what a layer
    gives, in front of operators that cut values off, as grids do.
    """
    index, made = Index(original.graph), {t for node in quantized.graph.node for t in node.output}
    junctions, _ = find_junctions(original, {each.name: each for each in find_layers(original, index, 8, 8)})
    given = {t for each in junctions for layer in each.makers if (t := layer.output) in made}
    if not given:
        return
    found = _measure(original, quantized, {t: t for t in given}, samples, most=most, threads=threads, axis=1)
    for junction in junctions:
        known = junction.tensors.keys() & found.keys()
        if known:
            factors = np.ones(max((junction.tensors[t].start or 0) + found[t].size for t in known))
            for tensor in known:
                factors[junction.tensors[tensor]] = np.abs(found[tensor])
            scale_junction(original, junction, factors)


def _measure(
    original: ModelProto,
    quantized: ModelProto,
    pairs: dict[str, str],
    samples: CalibrationSet,
    *,
    most: int,
    threads: int,
    axis: int = -1,
) -> dict[str, np.ndarray]:
    """The factors of each tensor, whose channels are on this axis; none where shapes differ."""
    reference, other = (
        Session(model, also=sorted(names), threads=threads, optimize=False)
        for model, names in ((original, pairs.values()), (quantized, pairs))
    )
    sums: dict[str, np.ndarray] = {}
    done = 0
    for feeds in samples.batches(min(batch_size(reference, samples), most)):
        wanted, given = reference.run(feeds, sorted(set(pairs.values()))), other.run(feeds, sorted(pairs))
        for name, base in pairs.items():
            x, y = (each.astype(np.float64) for each in (wanted[base], given[name]))
            if x.shape == y.shape and x.ndim > 1:
                axes = tuple(each for each in range(x.ndim) if each != axis % x.ndim)
                found = np.stack(((x * y).sum(axes), (x * x).sum(axes)))
                sums[name] = sums[name] + found if name in sums else found
        done += samples.count(feeds)
        if done >= most:
            break
    return {name: _divide(*found) for name, found in sums.items()}


def _divide(products: np.ndarray, squares: np.ndarray) -> np.ndarray:
    usable = np.isfinite(products) & np.isfinite(squares) & (products != 0) & (squares > 0)
    found: np.ndarray = np.where(usable, products, 1) / np.where(usable, squares, 1)
    return found.astype(np.float32)
