"""Products of activations, and layers in front of a Log, that spoil the outputs by what 256 levels leave of operands.

A model with float weights, and grids in front of the products alone, is compared with the float model on a few samples:
once with all of them, and by bisection only where that falls below a bound. The error in a product does not show this:
of far points 256 levels keep 50 dB, and nothing of the distances between them, where large sums cancel. A logarithm
makes as much of quiet sounds, in a spectrum on the levels of loud ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from onnx import ModelProto

from ..graph.extract import extract, infer_types, needed_nodes
from ..graph.index import Index, is_op
from ..graph.liveness import find_live
from ..graph.magnitudes import is_magnitude
from ..numeric.histogram import Histogram
from ..numeric.step_histogram import StepHistogram
from ..runtime.session import Session
from ..spec import Grids, QParams, QuantScheme
from .batches import BATCH_BYTES, batch_size, pick_evenly
from .calibrate import AnyHistogram, add_values, choose_grids, join_all
from .coarse_inputs import check_some_left
from .output_tally import OutputTally
from .padding_mask import find_real
from .prepared import Prepared

# The least SQNR of each output with grids in front of one product. All products of attention together leave 33 dB in a
# sentence encoder of 6 blocks, and 45 in a ViT of 12.
LEAST_DB = 30.0
SAMPLES = 16
# A first look on few samples ends the search where all products together leave so much. In a ViT-S of 24 products 4
# samples show 32.3 dB, and 16 show 31.3; single products leave more. A group that leaves so much, or so little, on the
# first samples is not measured on the others.
FIRST_SAMPLES, ENOUGH_DB, TOO_LITTLE_DB = 4, 32.0, 28.0
# Layers are looked at on more, spread over all samples: those that lie together may be one recording, all of it loud.
LAYER_SAMPLES = 64
# A spectrum takes few layers.
MOST_BEFORE_LOG = 8
# Quantized models that are measured at most.
MOST_RUNS = 32
# The float model's tensors are kept at the first of each of so many equal parts of the products. What is in front of
# a group is not run again.
STRETCHES = 4


def find_coarse_products(prepared: Prepared) -> dict[str, str]:
    """Maps the products that alone leave less than LEAST_DB of an output, or of a part of one, to the reasons."""
    found = _search(prepared, _find_products(prepared.model, prepared.scheme))
    check_some_left(prepared.scheme, found)
    return found


def find_coarse_spectra(prepared: Prepared, *, behind: bool = False) -> dict[str, str]:
    """Maps the layers behind which a magnitude is taken, and that alone leave less than LEAST_DB, to the reasons.

    A magnitude, the root of a sum of squares, is what a spectrum of sounds is made of, loud ones and quiet ones.
    behind: look at the layers that read it, too. What they lose of quiet steps of a sequence stays in its states.
    """
    index = Index(prepared.model.graph)
    heads = [node.output[0] for node in index.nodes.values() if is_magnitude(index, node)]
    found = _find_before(prepared.model, prepared.scheme, heads)
    if behind:
        found |= _find_behind(prepared.scheme, heads)
    return _search(prepared, found)


def _find_behind(scheme: QuantScheme, heads: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Layers that read these tensors, each with its input on a grid."""
    grids, reads = scheme.activations, scheme.float_reads
    return {
        layer.name: (layer.input,)
        for layer in scheme.layers
        if layer.input in heads and layer.input in grids and layer.name not in reads.get(layer.input, ())
    }


def _search(prepared: Prepared, products: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    if not products:
        return {}
    probe = _Probe(prepared, products)
    if not probe.read(probe.first):
        return {}
    look = probe.measure(tuple(products))
    if look[1] >= ENOUGH_DB or not probe.read(probe.most):
        return {}
    return probe.search(look)


def _find_products(model: ModelProto, scheme: QuantScheme) -> dict[str, tuple[str, ...]]:
    """Products of activations, each with its operands, and the layers on which a Log depends."""
    grids, layers = scheme.activations, {layer.name for layer in scheme.layers}
    found = _find_before_logs(model, scheme)
    for node in model.graph.node:
        operands = tuple(dict.fromkeys(node.input))
        on_grids = all(t in grids and node.name not in scheme.float_reads.get(t, ()) for t in operands)
        if is_op(node, "MatMul") and on_grids and node.name not in layers | scheme.barred:
            found[node.name] = operands
    return found


def _find_before_logs(model: ModelProto, scheme: QuantScheme) -> dict[str, tuple[str, ...]]:
    """Layers on which a Log depends, each with its input and output on grids.

    Differences of scores pass a Softmax, whose Log is none here.
    """
    index = Index(model.graph)
    logs = (node for node in index.nodes.values() if is_op(node, "Log"))
    heads = [node.input[0] for node in logs if not is_op(index.producer.get(node.input[0], node), "Softmax")]
    return _find_before(model, scheme, heads)


def _find_before(model: ModelProto, scheme: QuantScheme, heads: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Layers on which these tensors depend, each with its input and output on grids.

    There are none where they are so many that a whole network ends there.
    """
    before = needed_nodes(Index(model.graph), (), heads)
    layers = [layer for layer in scheme.layers if layer.name in before]
    if len(layers) > MOST_BEFORE_LOG:
        return {}
    found = {k.name: tuple(t for t in (k.input, k.output) if t in scheme.activations) for k in layers}
    return {name: tensors for name, tensors in found.items() if tensors}


class _Cut(NamedTuple):
    """A place in the graph: the position of the first node behind it, and the tensors from which the rest is run.

    The start of the graph has no tensors.
    """

    position: int
    tensors: tuple[str, ...]


def _find_cuts(index: Index, model: ModelProto, products: Iterable[str], known: Container[str]) -> list[_Cut]:
    """The start of the graph, and the places in front of the first product of each stretch.

    known: tensors of known type, of which alone a part of a model can be made.
    """
    positions = sorted(index.position[name] for name in products)
    starts = sorted({positions[len(positions) * number // STRETCHES] for number in range(STRETCHES)} - {0})
    before = [next(filter(None, model.graph.node[start - 1].output)) for start in starts]
    live = find_live(model, before, index=index)
    cuts = [_Cut(start, live[tensor]) for start, tensor in zip(starts, before, strict=True)]
    return [_Cut(0, ()), *(cut for cut in cuts if all(t in known for t in cut.tensors))]


class _Probe:
    """The float model's outputs on some batches, and the grids of the operands.

    batches: of each the feeds, the outputs and the tensors at the cuts. first: the samples of a first look.
    """

    def __init__(self, prepared: Prepared, products: Mapping[str, tuple[str, ...]]) -> None:
        self.prepared, self.products = prepared, products
        self.index, self.types = Index(prepared.model.graph), infer_types(prepared.model)
        self.cuts = _find_cuts(self.index, prepared.model, products, self.types)
        make = StepHistogram if prepared.samples.steps else Histogram
        self.histograms: dict[str, AnyHistogram] = {t: make() for each in products.values() for t in each}
        also = [*self.histograms, *(t for cut in self.cuts for t in cut.tensors)]
        self.session = Session(prepared.model, also=also, threads=prepared.run.threads)
        of_layers = not products.keys().isdisjoint(layer.name for layer in prepared.scheme.layers)
        self.most = LAYER_SAMPLES if of_layers else SAMPLES
        self.first = LAYER_SAMPLES if of_layers else FIRST_SAMPLES
        runs = prepared.samples.split(min(batch_size(self.session, prepared.samples), FIRST_SAMPLES))
        if of_layers:
            runs = pick_evenly(runs, -(-self.most // len(runs[0])))
        self.unread = deque(runs)
        self.batches: list[tuple[dict[str, Any], ...]] = []
        self.grids: Mapping[str, QParams] = {}

    def read(self, most: int) -> bool:
        """Read on to so many samples, and choose the grids; False where a value is not finite, as calibration tells."""
        while self.unread and not self._has(most):
            feeds, padding = self.prepared.samples.read(self.unread.popleft()), self.prepared.padding
            values, real = {**feeds, **self.session.run(feeds)}, find_real(feeds)
            count = self.prepared.samples.count(feeds)
            for tensor, histogram in self.histograms.items():
                try:
                    add_values(histogram, values[tensor], padding.mask_of(tensor, values[tensor].shape, real), count)
                except ValueError:
                    return False
            self._keep(feeds, values)
        alone = _only(self.prepared.scheme, self.products, tuple(self.products), self.index)
        self.grids = choose_grids(alone, join_all(self.histograms), self.prepared.config).activations
        return True

    def _keep(self, feeds: dict[str, np.ndarray], values: Mapping[str, Any]) -> None:
        """Keep the outputs, and the tensors at the cuts unless those of SAMPLES would take more than BATCH_BYTES."""
        inner = {t: values[t] for cut in self.cuts for t in cut.tensors}
        if _count_bytes(inner) * SAMPLES > BATCH_BYTES * self.prepared.samples.count(feeds):
            inner, self.cuts = {}, self.cuts[:1]
        self.batches.append((feeds, {name: values[name] for name in self.index.outputs}, inner))

    def _has(self, most: int) -> bool:
        """Whether there are so many samples, or as many as may be held."""
        held = sum(_count_bytes(outputs) for _, outputs, _ in self.batches)
        return held >= BATCH_BYTES or sum(self.prepared.samples.count(feeds) for feeds, *_ in self.batches) >= most

    def search(self, look: tuple[str, float]) -> dict[str, str]:
        """Those of the products that alone fall below the bound, with the reasons; groups above it are not split.

        Large groups come first. Of those that are left when MOST_RUNS are done, all products are taken. look: what all
        of them leave on the first samples.
        """
        found: dict[str, str] = {}
        groups, runs = deque([(tuple(self.products), "")]), 0
        known = {tuple(self.products): look} if look[1] < TOO_LITTLE_DB and len(self.products) > 1 else {}
        while groups:
            names, above = groups.popleft()
            if runs == MOST_RUNS:
                found |= dict.fromkeys(names, f"{above}, and no more than {MOST_RUNS} groups are measured")
                continue
            runs += 1
            output, decibels = known.get(names) or self.measure(names)
            if decibels >= LEAST_DB:
                continue
            half, left = len(names) // 2, f"leave {decibels:.1f} dB of output {output}"
            if decibels == -np.inf:
                left = f"make values of output {output} infinite"
            if half:
                others = "another" if len(names) == 2 else f"{len(names) - 1} others"
                why = f"256 levels of the operands of this product and {others} {left}"
                groups += [(names[:half], why), (names[half:], why)]
            else:
                found[names[0]] = f"256 levels of its operands alone {left}"
        return {name: found[name] for name in self.products if name in found}

    def measure(self, names: Sequence[str]) -> tuple[str, float]:
        """The output, or part of one, that grids in front of these products spoil most, and its SQNR.

        It is that of the first samples where these leave no doubt. Of one product below the bound it is that of all.
        """
        prepared, place = self.prepared, min(self.index.position[name] for name in names)
        scheme = _only(prepared.scheme, self.products, names, self.index)
        grids = Grids({tensor: self.grids[tensor] for tensor in scheme.activations})
        cut = next(each for each in reversed(self.cuts) if each.position <= place)
        ends = [name for name in self.index.outputs if name not in cut.tensors]
        part = None
        if cut.position:
            part = extract(prepared.model, self.types, inputs=cut.tensors, outputs=ends, index=self.index)
        session = Session(prepared.emit_grids(scheme, grids, part), threads=prepared.run.threads)
        tally, count, output, decibels = OutputTally(prepared.padding, prepared.parts), 0, "", np.inf
        for feeds, outputs, inner in self.batches:
            wanted, given = {name: outputs[name] for name in ends}, session.run({**feeds, **inner})
            tally.add(wanted, given, prepared.samples.count(feeds), find_real(feeds))
            count += prepared.samples.count(feeds)
            if count < self.first and feeds is not self.batches[-1][0]:
                continue
            found = [part for record in tally.records() for part in (record.parts or (record,))]
            measured = [(each.sqnr_db, each.name) for each in found if each.sqnr_db is not None]
            decibels, output = min(measured, default=(np.inf, ""))
            if decibels >= ENOUGH_DB or (decibels < TOO_LITTLE_DB and len(names) > 1):
                break
        return output, decibels


def _count_bytes(values: Mapping[str, Any]) -> int:
    return sum(value.nbytes for value in values.values() if isinstance(value, np.ndarray))


def _only(
    scheme: QuantScheme, products: Mapping[str, tuple[str, ...]], names: Sequence[str], index: Index
) -> QuantScheme:
    """The scheme with grids in front of these products alone, and float weights."""
    tensors = dict.fromkeys(t for name in names for t in products[name])
    chosen = {*names}
    made = {t for t in tensors if t in index.producer and index.producer[t].name in chosen}
    others = {t: frozenset(n.name for n in index.readers(t) if n.name not in chosen and t not in made) for t in tensors}
    return QuantScheme(
        layers=(),
        activations={t: scheme.activations[t] for t in tensors},
        nonnegative={t: bound for t, bound in scheme.nonnegative.items() if t in tensors},
        float_reads=others,
    )
