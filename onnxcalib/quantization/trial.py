"""Try the file of a scheme out in onnxruntime, and find the nodes on integers that it refuses.

That is done twice. Before the expensive stages the file has the scheme's nodes and types, zeros as weights, and
placeholders as grids, so that a trial costs about as much as loading an 8-bit model. After them it is the file itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto

from ..errors import ConfigError, ModelError
from ..graph.emit import emit_qdq
from ..graph.index import Index, reads
from ..graph.layer_params import LayerParams
from ..graph.ops import RECURRENT
from ..graph.passes.joint_reads import join_reads
from ..graph.passes.rescale import fold_integer_pads
from ..graph.recurrent import zeros_of_recurrent
from ..graph.weight_file import put_zeros
from ..numeric.ranges import make_grid
from ..runtime.session import Session
from ..spec import Grids, LayerScheme, QParams, QuantScheme, QuantSpec

# Nodes that are looked for one by one; where onnxruntime refuses more, all in front of the last one stay in float.
MOST_CULPRITS = 16
# Characters of what onnxruntime says.
MOST_QUOTED = 160
# Largest value of the placeholder grids. Each set of tensors has another, so that none are equal by chance.
LARGEST, STEP = 4.0, 2.0**-10

MakeScheme = Callable[[Mapping[str, str]], QuantScheme]
Emit = Callable[[QuantScheme], ModelProto]


@dataclass(frozen=True)
class Trial:
    """What is needed to try schemes of one prepared model.

    make: the scheme without the nodes that stay in float. emit: the file of a scheme. feeds: one batch. fused:
    whether the target's kernels are those that onnxruntime's optimizations put in.
    """

    model: ModelProto
    make: MakeScheme
    emit: Emit
    feeds: Mapping[str, Any]
    threads: int = 0
    fused: bool = True

    def find_fault(self, scheme: QuantScheme) -> str | None:
        """What onnxruntime says where it cannot load or run the file of a scheme; None where it can."""
        return find_fault(self.emit(scheme), self.feeds, self.threads, fused=self.fused)

    def find_refused(self, in_float: Mapping[str, str]) -> dict[str, str]:
        """Nodes without which onnxruntime takes the file, each with the reason; none where it takes all of them.

        Operators without a weight are looked at first, as they cost less in float. Raises ModelError where no layer is
        left.
        """
        scheme = self.make(in_float)
        fault = first = self.find_fault(scheme)
        culprits: dict[str, str] = {}
        names = _list_candidates(self.model, scheme)
        while fault is not None and names:
            reason = f"with it on integers, onnxruntime cannot take the file: {fault}"
            count = self._count_refused(names, {**in_float, **culprits})
            found = names[count - 1 : count] if len(culprits) < MOST_CULPRITS else names[:count]
            culprits |= dict.fromkeys(found, reason)
            names = [name for name in names if name not in culprits]
            fault = self._try({**in_float, **culprits})
        for name in list(culprits)[:-1]:
            others = {other: reason for other, reason in culprits.items() if other != name}
            if self._try({**in_float, **others}) is None:
                culprits = others
        if culprits and not self._has_layers({**in_float, **culprits}):
            raise ModelError(f"graph: onnxruntime takes no layer of it on integers: {first}; keep the float model")
        return culprits

    def _count_refused(self, names: list[str], in_float: Mapping[str, str]) -> int:
        """The least number of the first nodes that have to stay in float for the others to load, by bisection."""
        low, high = 0, len(names)
        while low < high:
            middle = (low + high) // 2
            if self._try({**in_float, **dict.fromkeys(names[:middle], "")}) is None:
                high = middle
            else:
                low = middle + 1
        return high

    def _try(self, in_float: Mapping[str, str]) -> str | None:
        return self.find_fault(self.make(in_float)) if self._has_layers(in_float) else None

    def _has_layers(self, in_float: Mapping[str, str]) -> bool:
        try:
            self.make(in_float)
        except ConfigError:
            return False
        return True


def find_fault(model: ModelProto, feeds: Mapping[str, Any], threads: int = 0, *, fused: bool = True) -> str | None:
    """What onnxruntime says where it cannot load a model, with all optimizations or with none, and run one batch."""
    try:
        Session(model, deployed=fused, optimize=fused, threads=threads).run(feeds)
    except ModelError as error:
        text = " ".join(str(error.__cause__ or error).split())
        return text if len(text) <= MOST_QUOTED else f"{text[:MOST_QUOTED]}..."
    return None


def emit_placeholders(model: ModelProto, scheme: QuantScheme, encoding: str) -> ModelProto:
    """A file with the nodes and types of a scheme; encoding: see ``emit_qdq``."""
    grids, index = make_placeholders(scheme), Index(model.graph)
    layers = {layer.name: make_zeros(layer, index) for layer in _all_layers(scheme)}
    quantized = emit_qdq(model, scheme, grids, layers, encoding=encoding, keep_outputs=False)
    if scheme.requirements.placing != "groups":
        fold_integer_pads(quantized)
    if scheme.requirements.for_onnxruntime:
        join_reads(quantized)
    return quantized


def make_placeholders(scheme: QuantScheme) -> Grids:
    """Grids of the scheme's tensors with the zero points that their operators ask for."""
    sets = {scheme.members_of(tensor): number for number, tensor in enumerate(scheme.activations)}

    def choose(tensor: str, spec: QuantSpec) -> QParams:
        members = scheme.members_of(tensor)
        largest = LARGEST + STEP * sets[members]
        return make_grid(-largest, largest, spec, bound=scheme.bound_of(members))

    return Grids(
        {tensor: choose(tensor, spec) for tensor, spec in scheme.activations.items()},
        {tensor: choose(tensor, spec) for tensor, spec in scheme.requantized.items()},
    )


def _all_layers(scheme: QuantScheme) -> tuple[LayerScheme, ...]:
    return (*scheme.layers, *scheme.embeddings, *scheme.recurrent)


def make_zeros(layer: LayerScheme, index: Index) -> LayerParams:
    """Parameters of a layer that hold no values of its weight."""
    if layer.op in RECURRENT:
        return zeros_of_recurrent(layer, index)
    spec, dims = layer.weight_spec, tuple(index.initializers[layer.weight].dims)
    shape = [] if spec.axis is None else [dims[spec.axis]]
    if spec.block is not None:
        other = 1 - layer.axis
        shape = [-(-size // spec.block) if axis == other else size for axis, size in enumerate(dims)]
    grid = QParams(np.ones(shape, np.float32), np.zeros(shape, np.int32), spec)
    bias = np.zeros(int(np.prod(index.initializers[layer.bias].dims)), np.float32) if layer.bias else None
    return LayerParams(put_zeros(dims, spec.bits), grid, bias)


def _list_candidates(model: ModelProto, scheme: QuantScheme) -> list[str]:
    """Names of the nodes that a scheme puts on integers or next to some, layers last, else in graph order."""
    layers = [layer.name for layer in _all_layers(scheme)]
    grids = scheme.activations.keys()
    beside = [n.name for n in model.graph.node if not grids.isdisjoint((*reads(n), *n.output))]
    return [*(name for name in beside if name not in layers), *layers]
