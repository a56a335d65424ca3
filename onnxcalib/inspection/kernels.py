"""What onnxruntime makes of each quantized layer: integer kernels or float ones, as its optimized graph shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import starmap

from onnx import ModelProto, NodeProto

from ..errors import ModelError
from ..graph.index import all_nodes, attribute_of
from ..graph.inspect.kernels import find_source
from ..graph.inspect.layer_forms import RUN, LayerForm
from ..graph.inspect.unfused import list_unfused
from ..graph.ops import CONVOLUTIONS, DYNAMIC_LAYERS, PACKED_LAYERS, PACKED_WEIGHTS, QLINEAR_LAYERS
from ..report import UnfusedRecord
from ..runtime.optimized import read_optimized

INTEGERS, FLOAT = "integers", "float"
# From this level on MatMulNBits computes in int8 (its schema, com.microsoft).
INT8_ACCURACY = 4
INTEGER_TYPES = ("int8", "uint8")
BIAS_TYPE, SCALE_TYPE = "int32", "float"  # which integer kernels have


@dataclass(frozen=True)
class Opened:
    """runs: name of a node -> the kind of its kernel, and why that is float. fault: what onnxruntime says of a file."""

    kernels: dict[str, int] = field(default_factory=dict)
    unfused: tuple[UnfusedRecord, ...] = ()
    runs: dict[str, tuple[str | None, str]] = field(default_factory=dict)
    fault: str | None = None


def open_in_onnxruntime(model: ModelProto, forms: Sequence[LayerForm]) -> Opened:
    """Open a session as users do, and read the graph that it runs. Every node of the model has a name of its own."""
    try:
        graph = read_optimized(model)
    except ModelError as error:
        return Opened(fault=str(error))
    names = {form.node.name for form in forms}
    made: dict[str, list[NodeProto]] = {}
    kernels: Counter[str] = Counter()
    for node in all_nodes(graph):
        if node.op_type in (*QLINEAR_LAYERS, *DYNAMIC_LAYERS, *PACKED_WEIGHTS) or node.op_type.startswith("QLinear"):
            kernels[node.op_type] += 1
        source = find_source(node.name, names)
        if source is not None:
            made.setdefault(source, []).append(node)
    return Opened(
        kernels=dict(kernels.most_common()),
        unfused=tuple(starmap(UnfusedRecord, list_unfused(model, graph))),
        runs={form.node.name: _judge(form, made.get(form.node.name, [])) for form in forms},
    )


def _judge(form: LayerForm, made: Sequence[NodeProto]) -> tuple[str | None, str]:
    """What runs in place of a layer, and why that is a float kernel."""
    if any(node.op_type in (*QLINEAR_LAYERS, *DYNAMIC_LAYERS) for node in made):
        return INTEGERS, ""
    packed = [node for node in made if node.op_type in PACKED_LAYERS]
    if any(attribute_of(node, "accuracy_level", 0) == INT8_ACCURACY for node in packed):
        return INTEGERS, ""
    if packed:
        return FLOAT, "its weight is unpacked as it runs, and its input stays float"
    if not made:
        return None, "onnxruntime puts it together with other nodes, and does not say with which"
    if form.op in ("Gather", *PACKED_WEIGHTS):
        return None, "a look-up, which multiplies nothing"
    return FLOAT, _explain_float(form)


def _explain_float(form: LayerForm) -> str:
    if form.input is None:
        return "it reads floats; its weight alone is quantized"
    if form.weight is None and (form.values or form.op != "MatMul"):
        return "its weight is float; its input alone is quantized"
    for what, grid in (("weight", form.weight), ("input", form.input)):
        if grid is not None and grid.type not in INTEGER_TYPES:
            return f"its {what} is {grid.type}, and onnxruntime's integer kernels read 8-bit integers"
        if grid is not None and grid.scales.startswith("block"):
            return "its weight has scales of blocks; integer kernels take one for each channel"
        if grid is not None and what == "input" and grid.scales == RUN:
            return "the scale of its input is computed as it runs"
    if form.scale not in ("", SCALE_TYPE):
        return f"its scales are {form.scale}, and onnxruntime's integer kernels take float32"
    if form.bias not in ("", BIAS_TYPE):
        return f"its bias is {form.bias}, and onnxruntime's integer kernels add {BIAS_TYPE}"
    if form.op in CONVOLUTIONS and form.behind is False:
        return "no QuantizeLinear alone reads what it gives"
    return f"onnxruntime makes no integer kernel of this {form.op} here"
