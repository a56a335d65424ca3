"""What activations lose on 8 bits: sets of tensors that share a grid, each alone on it, the weights in float.

All are tried in one session, in which each run says which sets are on their grids. 16 bits count as float: their steps
are 256 times as fine, so that their error is 48 dB below that of 8.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from ..config import FULL_BITS, WIDE_BITS
from ..graph.index import is_op
from ..graph.layers import count_macs
from ..graph.switches import add_switches, feed_switches
from ..progress import track
from ..quantization.batches import batch_size
from ..quantization.compared import find_comparable_outputs
from ..quantization.padding_mask import find_real
from ..quantization.prepared import Prepared
from ..quantization.speed import read_median
from ..quantization.tensor_shapes import measure_shapes
from ..runtime.session import Session
from ..spec import BitSet, Candidate, Cost, Grids, LayerScheme, QuantScheme
from .bits import Bits
from .loss import LOSS_SAMPLES, ReferenceBatch, divergence_of

# Operators of which the output has the values of the input where these lie.
VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")


def list_sets(scheme: QuantScheme) -> list[tuple[str, ...]]:
    """The sets of activations that share a grid, in the order of the scheme, without those of constants alone.

    Constants have the bits of what is computed with them.
    """
    return list(dict.fromkeys(map(scheme.members_of, scheme.computed)))


@dataclass(frozen=True)
class Switched:
    """A session of the float model in which each run puts some sets of activations on grids of 8 bits.

    sets: the tensors of each; a set is called by its first tensor.
    """

    sets: Sequence[tuple[str, ...]]
    grids: Grids
    session: Session
    references: Sequence[ReferenceBatch]
    names: Sequence[str]
    signed: bool

    @classmethod
    def of(cls, prepared: Prepared, scheme: QuantScheme, grids: Grids) -> Switched:
        """scheme, grids: of 8 bits. Raises ConfigError where no output can be compared."""
        sets = [each for each in list_sets(scheme) if scheme.activations[each[0]].bits == FULL_BITS]
        signed = scheme.requirements.activation.signed
        session = Session(add_switches(prepared.model, scheme, sets), threads=prepared.run.threads)
        size = min(batch_size(Session(prepared.model, threads=prepared.run.threads), prepared.samples), LOSS_SAMPLES)
        none, found, done = feed_switches(sets, {}, signed=signed), [], 0
        names = [value.name for value in prepared.model.graph.output]
        for feeds in prepared.samples.batches(size):
            blank = partial(prepared.padding.fill_padding, real=find_real(feeds))
            outputs = {name: blank(name, value) for name, value in session.run({**feeds, **none}, names).items()}
            found.append(ReferenceBatch(feeds, outputs, blank, prepared.parts))
            done += prepared.samples.count(feeds)
            if done >= LOSS_SAMPLES:
                break
        return cls(sets, grids, session, found, find_comparable_outputs([each.outputs for each in found]), signed)

    def measure(self, narrow: Collection[str]) -> float:
        """Divergence of the outputs with the sets of these first tensors on 8 bits, all else in float."""
        grids = {key: self.grids.activations[key] for key in narrow}
        feeds = feed_switches(self.sets, grids, signed=self.signed)
        batches = [
            ReferenceBatch({**each.feeds, **feeds}, each.outputs, each.blank, each.parts) for each in self.references
        ]
        return divergence_of(self.session, batches, self.names)

    def measure_choice(self, sets: Sequence[BitSet], bits: Bits) -> float:
        """Divergence of the outputs at these bits of activations, the weights in float."""
        return self.measure(
            [each.tensors[0] for each, c in zip(sets, bits, strict=True) if c.activation_bits == FULL_BITS]
        )

    def measure_each(self) -> dict[str, float]:
        """The loss of each set alone on 8 bits, by its first tensor."""
        return {key: self.measure([key]) for key, *_ in track(self.sets)}


def make_sets(
    prepared: Prepared,
    schemes: Mapping[Candidate, QuantScheme],
    losses: Mapping[str, float],
    known: Sequence[BitSet] = (),
) -> tuple[BitSet, ...]:
    """Every set of activations, with what it loses at its bits and the elements that it has, those of views once.

    schemes: by the bits that all have in each. losses: of sets alone on 8 bits, by the first tensor. known: sets of
    layers whose losses have been measured with their weights; they come first.
    """
    shapes = measure_shapes(prepared.model, read_median(prepared.samples), prepared.run.threads)
    constants = {each.name for each in prepared.model.graph.initializer}
    per_run = prepared.samples.fixed_batch or 1

    makers = {t: node for node in prepared.model.graph.node for t in node.output}

    def count(tensors: Sequence[str]) -> int:
        own = [t for t in tensors if t not in constants]
        views = {t for t in own if t in makers and is_op(makers[t], *VIEWS) and makers[t].input[0] in own}
        return sum(math.prod(shapes[t]) for t in own if t not in views) // per_run

    scheme = prepared.scheme
    members_of = {layer.name: scheme.members_of(layer.input) for layer in scheme.layers}
    found = [
        replace(each, tensors=members_of[each.layers[0]], elements=count(members_of[each.layers[0]])) for each in known
    ]
    measured = {each.tensors for each in found}
    for members in (members for members in list_sets(scheme) if members not in measured):
        layers = [layer for layer in scheme.layers if members_of[layer.name] == members]
        macs = {layer.name: _count_macs(prepared, layer, shapes) // per_run for layer in layers}
        own = {
            Candidate(c.weight_bits if layers else 0, c.activation_bits): each
            for c, each in schemes.items()
            if each.activations[members[0]].bits == c.activation_bits
        }
        found.append(
            BitSet(
                tuple(layer.name for layer in layers),
                sum(macs.values()),
                {c: 0.0 if c.activation_bits == WIDE_BITS else losses[members[0]] for c in own},
                {c: Cost(0, _count_bops(each, c.activation_bits, macs)) for c, each in own.items()},
                members,
                count(members),
            )
        )
    return tuple(found)


def _count_macs(prepared: Prepared, layer: LayerScheme, shapes: Mapping[str, tuple[int, ...]]) -> int:
    node = next(node for node in prepared.model.graph.node if node.name == layer.name)
    return count_macs(node, shapes[layer.weight], shapes[layer.input], shapes[layer.output])


def _count_bops(scheme: QuantScheme, activation_bits: int, macs: Mapping[str, int]) -> int:
    """Bit operations of the layers of which the MACs are given."""
    return sum(macs.get(layer.name, 0) * layer.weight_spec.bits * activation_bits for layer in scheme.layers)
