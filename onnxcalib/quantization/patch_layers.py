"""First convolutions that give float operators what they make, such as the patches of a vision transformer.

onnxruntime's integer convolution gives integers. Where the next operators are float, as the sum with positions and the
norm are, one grid rounds what all blocks of the model go on from, and no kernel behind it gains by that.
"""

from __future__ import annotations

from onnx import ModelProto

from ..graph.index import Index, is_op, tensors_behind
from ..graph.kernel_times import Shapes
from ..graph.norm_sums import NORMS
from ..graph.ops import LAYERS, MOVERS, SHAPE_READERS
from ..spec import QuantScheme
from .last_layers import count_costs

# Such a convolution has no more than this share of the model's products: 0.8% in a ViT-S of patches of 14, 2.7% in a
# ViT-Ti of 16.
MOST_SHARE = 0.03


def find_patch_layers(model: ModelProto, scheme: QuantScheme, shapes: Shapes) -> dict[str, str]:
    """Maps first convolutions whose outputs no integer kernel reads to why they should read float.

    shapes: of all tensors in one run.
    """
    index = Index(model.graph)
    behind = tensors_behind(index, {layer.name for layer in scheme.layers})
    first = [each for each in scheme.layers if each.op == "Conv" and each.on_grid and each.input not in behind]
    found = [each.name for each in first if each.output in scheme.activations and _is_float(index, scheme, each.output)]
    costs = count_costs(model, index, shapes) if found else {}
    total = sum(products for products, _ in costs.values())
    shares = {name: costs[name][0] / total for name in found if name in costs}
    reason = "256 levels would round what float operators read of it; {:.1f}% of the model's products"
    return {name: reason.format(100 * share) for name, share in shares.items() if share <= MOST_SHARE}


def _is_float(index: Index, scheme: QuantScheme, tensor: str) -> bool:
    """Whether norms, and operators that give no integers, read all of a tensor, as it is or moved."""
    readers = [node for node in index.readers(tensor) if not is_op(node, *SHAPE_READERS)]
    if not readers or tensor in index.outputs:
        return False
    for node in readers:
        if is_op(node, *MOVERS):
            if not all(_is_float(index, scheme, made) for made in node.output if made):
                return False
        elif is_op(node, *LAYERS) or (node.output[0] in scheme.activations and not is_op(node, *NORMS)):
            return False
    return True
