"""Write Pads and Resizes of some axes as those of all axes.

onnxruntime (1.32) moves the transpositions that its convolutions of integers need through these operators, and fails
where their pads, scales or sizes are of some axes alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import ModelProto, NodeProto, helper

from ..edit import add_constant, refill, take_name, write_attributes
from ..index import Index, attribute_of, constant, is_op, list_names
from ..shapes import Shape, infer_shapes

# Positions among the inputs.
PADS, PAD_AXES = 1, 3
ROI, SCALES, SIZES = 1, 2, 3


def spell_axes(model: ModelProto) -> int:
    """Give Pads and Resizes that name their axes the values of all axes; returns the count.

    Values that are computed, and sizes beside sizes that are not fixed, are put together by a ScatterElements. A node
    stays where the rank of its input or its axes are not known, and a Resize that keeps the aspect ratio.
    """
    if not any(_names_axes(node) for node in model.graph.node):
        return 0
    writer = _Writer(model, infer_shapes(model))
    nodes: list[NodeProto] = []
    count = 0
    for node in model.graph.node:
        if _names_axes(node):
            count += writer.spell(node, nodes)
        nodes.append(node)
    refill(model.graph.node, nodes)
    return count


def _names_axes(node: NodeProto) -> bool:
    if is_op(node, "Resize"):
        return bool(attribute_of(node, "axes", None))
    return is_op(node, "Pad") and len(node.input) > PAD_AXES and bool(node.input[PAD_AXES])


class _Writer:
    def __init__(self, model: ModelProto, shapes: Mapping[str, Shape]) -> None:
        self.graph, self.shapes = model.graph, shapes
        self.index, self.taken = Index(model.graph), list_names(model)

    def spell(self, node: NodeProto, before: list[NodeProto]) -> bool:
        """Rewrite one node; ``before`` takes the nodes that stand in front of it. Returns whether it was possible."""
        shape = self.shapes.get(node.input[0])
        axes = self._axes_of(node, len(shape or ()))
        if not shape or axes is None:
            return False
        rank = len(shape)
        if is_op(node, "Pad"):
            both = np.concatenate([axes, axes + rank])
            self._spread(node, PADS, np.zeros(2 * rank, np.int64), both, before)
            del node.input[PAD_AXES:]
            return True
        if attribute_of(node, "keep_aspect_ratio_policy", b"stretch") != b"stretch":
            return False
        ends = np.repeat(np.array([0, 1], np.float32), rank)
        self._spread(node, ROI, ends, np.concatenate([axes, axes + rank]), before)
        self._spread(node, SCALES, np.ones(rank, np.float32), axes, before)
        fixed = [size for size in shape if size is not None]
        sizes = np.array(fixed, np.int64) if len(fixed) == rank else None
        self._spread(node, SIZES, sizes, axes, before)
        write_attributes(node, {}, drop=("axes",))
        return True

    def _axes_of(self, node: NodeProto, rank: int) -> np.ndarray | None:
        if is_op(node, "Resize"):
            axes = np.array(attribute_of(node, "axes", []), np.int64)
        else:
            given = constant(self.index, node.input[PAD_AXES])
            if given is None:
                return None
            axes = given.astype(np.int64)
        return np.where(axes < 0, axes + rank, axes)

    def _spread(
        self, node: NodeProto, number: int, base: np.ndarray | None, at: np.ndarray, before: list[NodeProto]
    ) -> None:
        """Replace an input by ``base``, or by the sizes of what the node reads, with its values at positions ``at``."""
        if len(node.input) <= number or not node.input[number]:
            return
        values = constant(self.index, node.input[number])
        if base is not None and values is not None:
            full = base.astype(values.dtype)
            full[at] = values
            node.input[number] = self._constant(node, full)
            return
        data = self._take(f"{node.name}_sizes")
        if base is None:
            before.append(helper.make_node("Shape", node.input[:1], [data], name=data))
        else:
            data = add_constant(self.graph, data, base)
        where, spread = self._constant(node, at), self._take(f"{node.name}_all_axes")
        before.append(helper.make_node("ScatterElements", [data, where, node.input[number]], [spread], name=spread))
        node.input[number] = spread

    def _constant(self, node: NodeProto, value: np.ndarray) -> str:
        return add_constant(self.graph, self._take(f"{node.name}_axes"), value)

    def _take(self, name: str) -> str:
        return take_name(name, self.taken)
