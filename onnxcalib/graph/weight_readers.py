"""Weights that several layers of one graph read in the same way, and so can have one set of integers."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

from ..spec import LayerScheme, QuantScheme
from .bodies import LEAST_SHARED_BYTES
from .index import Index
from .layout import count_inputs
from .ops import CONVOLUTIONS, MATRIX_LAYERS
from .packed import explain_unpacked
from .weightless import held_bytes


@dataclass(frozen=True)
class WeightReaders:
    """first: a layer -> the later layers that have its weight, in order. leaders: each of these -> the first layer.

    apart: layers of one weight whose integers the file has for each, as onnxruntime asks for it.
    """

    first: Mapping[str, tuple[LayerScheme, ...]] = field(default_factory=dict)
    leaders: Mapping[str, LayerScheme] = field(default_factory=dict)
    apart: tuple[tuple[LayerScheme, ...], ...] = ()

    @classmethod
    def find(cls, index: Index, scheme: QuantScheme, encoding: str) -> WeightReaders:
        """Layers of one constant of the graph whose grids agree. Small constants are each layer's own.

        The graph may be a part of the one that the scheme was made for.
        """
        found: dict[Hashable, list[LayerScheme]] = {}
        for layer in scheme.layers:
            weight = index.initializers.get(layer.weight)
            if weight is not None and held_bytes(weight) >= LEAST_SHARED_BYTES:
                rows = layer.op if layer.op in CONVOLUTIONS else layer.axis, layer.groups
                found.setdefault((layer.weight, layer.weight_spec, layer.takes_bias, rows), []).append(layer)
        grouped = [each for each in found.values() if len(each) > 1]
        several = [each for each in grouped if _can_share(each[0], index, scheme, encoding)]
        return cls(
            {each[0].name: tuple(each[1:]) for each in several},
            {layer.name: each[0] for each in several for layer in each[1:]},
            tuple(tuple(each) for each in grouped if each not in several),
        )

    def has(self, layer: str) -> bool:
        """Whether another layer has the weight of this one."""
        return layer in self.first or layer in self.leaders

    def describe(self, layer: LayerScheme) -> Hashable:
        """Equal for layers of one input whose weights are read at the same other places, by the same kind of reader."""
        if layer.name in self.leaders:
            return self.leaders[layer.name].input
        return tuple(other.input for other in self.first.get(layer.name, ()))


def _can_share(layer: LayerScheme, index: Index, scheme: QuantScheme, encoding: str) -> bool:
    """Whether several layers like this one can read the same integers in a file.

    onnxruntime 1.32 makes no MatMulNBits of a DequantizeLinear whose integers another one reads too
    (DQMatMulNodeGroupSelector): it would compute the float weight in each run.
    """
    if not layer.reads_float or layer.op not in MATRIX_LAYERS or not scheme.requirements.for_onnxruntime:
        return True
    inputs = count_inputs(index.initializers[layer.weight].dims, layer)
    return encoding == "matmulnbits" and explain_unpacked(layer, inputs) is None
