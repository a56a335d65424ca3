"""Read a model from disk or from memory, and refuse at once a model that cannot be quantized, with the reason."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper
from onnx.external_data_helper import uses_external_data

from ..errors import ModelError
from ..files.reading import check_file, open_file, spell_fault
from ..spec import InputSpec
from .bodies import list_bodies
from .external import find_data, read_external
from .float_weights import spell_holders
from .index import Index, all_nodes, has_bodies, index_graphs, is_op, own_constants
from .ops import LAYERS, PACKED_WEIGHTS, QUANTIZED_OPS, RECURRENT
from .parse import parse_model
from .recurrent import explain_float
from .scaled_weights import find_stored
from .shapes import infer_graph, recorded_shape
from .stream import model_bytes
from .structure import STANDARD, check_structure, check_texts
from .tensors import MOST_BYTES, check_tensor, list_tensors, make_dense, spell_node
from .values import TYPES, Place, can_name, is_large_model, read_entries, refer
from .weight_file import copy_out
from .wire import NotAMessage, Walk

GIVE = "an ONNX file is needed; export or download it again"
# protobuf's limit of one message.
MOST_FILE_BYTES = 2**31 - 1
# The first IR version with opset imports, without which operators have no defined meaning (onnx IR specification).
LEAST_IR_VERSION = 3
# onnxruntime guarantees no kernel below opset 7 (its page on compatibility).
LEAST_OPSET = 7
# onnx reads versions of all domains as 32-bit integers.
MOST_OPSET = 2**31 - 1
FLOAT_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


def load_model(source: Path | ModelProto) -> ModelProto:
    """The model of a file with its external data; a ModelProto is deep copied.

    Of a large file, large weights stay where they are, see ``values``; all others are in memory.

    Sparse constants become dense, and what only training needs is left out. Raises ModelError for a file that is
    missing, unreadable or not ONNX, for external data that are not what their tensors declare, and for a graph that no
    operator's definition allows.
    """
    if isinstance(source, ModelProto):
        where = "model"
        check_texts(source, where)
        _refuse_unread_data(source)
        check_tensors(source, where)
        model = copy_out(source)
    else:
        path = Path(source)
        (model, places), where = parse_file(path), str(path)
        take_data(model, path, places)
    accept_model(model, where)
    return model


def accept_model(model: ModelProto, where: str, *, checked: bool = False) -> None:
    """Refuse what ``load_model`` refuses of a model that is in memory, and make constants dense; mutates the model.

    checked: ``check_tensors`` has been called.
    """
    model.ClearField("training_info")
    _refuse_out_of_range(model, where)
    if not checked:
        check_tensors(model, where)
    make_dense(model)
    check_structure(model, where)
    _refuse_broken(model, where)
    refuse_giants(model, where)


def check_tensors(model: ModelProto, where: str) -> None:
    """Raise ModelError for a stored tensor whose data are not what it declares."""
    for name, tensor in list_tensors(model):
        check_tensor(tensor, f"{where}: {name}")


def take_data(model: ModelProto, path: Path, places: Mapping[int, Place]) -> None:
    """Read external data, or refer to them, and to the values of large weights that the model's own file holds."""
    tensors = [tensor for _, tensor in list_tensors(model) if uses_external_data(tensor)]
    weights = sum(map(uses_external_data, model.graph.initializer))  # which are listed first
    read_external(tensors, path, weights, large=bool(places))
    for number, place in places.items():
        refer(model.graph.initializer[number], place)


def stored_files(path: Path) -> tuple[Path, ...]:
    """The files of a model: its own, and those of its external data. Raises ModelError."""
    with open_file(path, ModelError, give=GIVE) as file:
        facts = os.fstat(file.fileno())
    return _list_files(path, (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns))


@lru_cache(maxsize=8)
def _list_files(path: Path, _identity: tuple[int, ...]) -> tuple[Path, ...]:
    """As ``stored_files``, which a run asks several times of a file that stays the same."""
    tensors = [tensor for _, tensor in list_tensors(parse_file(path)[0]) if uses_external_data(tensor)]
    return (path, *sorted({find_data(tensor, path)[0] for tensor in tensors}))


def stored_bytes(source: Path | ModelProto) -> int:
    """Bytes that a model takes on disk, its external data included."""
    if isinstance(source, ModelProto):
        return model_bytes(source)
    return sum(check_file(file, ModelError, give=GIVE) for file in stored_files(Path(source)))


def is_quantized(model: ModelProto) -> bool:
    """Whether a node, those inside of others and of functions included, is one that only quantized models hold.

    A layer whose weight is integers times scales is such a node too.
    """
    nodes = (node for owner in (model.graph, *model.functions) for node in all_nodes(owner))
    return any(map(is_quantized_op, nodes)) or _find_scaled(model) is not None


def is_quantized_op(node: NodeProto) -> bool:
    """Whether only quantized models hold this operator."""
    return node.op_type in QUANTIZED_OPS or node.op_type.startswith("QLinear")


def _find_scaled(model: ModelProto) -> NodeProto | None:
    """A layer whose weight is integers times scales."""
    layers = (
        (node, index)
        for graph, index in index_graphs(model.graph)
        for node in graph.node
        if is_op(node, *LAYERS, *RECURRENT) and len(node.input) > 1
    )
    return next((node for node, index in layers if find_stored(index, node.input[1]) is not None), None)


def refuse_scaled(model: ModelProto) -> None:
    """Raise ModelError for a layer whose weight is integers times scales, while these are not folded to floats."""
    if (node := _find_scaled(model)) is not None:
        raise ModelError(
            f"node {node.name or node.op_type}: found a weight of integers times scales, so the model is quantized"
            " already; a float32 model is needed; give the file that it was made from"
        )


def inputs_of(model: ModelProto) -> tuple[InputSpec, ...]:
    """The inputs that a caller must feed, which are no initializers; dimensions below 1 count as unknown."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    specs = []
    for value in model.graph.input:
        if value.name in initializers:
            continue
        if not value.type.HasField("tensor_type"):
            kind = value.type.WhichOneof("value") or "nothing"
            raise ModelError(
                f"input {value.name}: its type is {kind}; only tensors can be calibrated; export the model without it"
            )
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
        specs.append(InputSpec(value.name, dtype, recorded_shape(value)))
    return tuple(specs)


def refuse_unsuitable(model: ModelProto, *, recurrent: bool = False) -> None:
    """Raise ModelError for a model that is quantized already, or that has no layer with a constant float32 weight.

    Layers in bodies count without a look at their weights, which may still be computed from constants.
    recurrent: LSTM, GRU and RNN are layers too.
    Operators whose weight alone is integers may stand beside such a layer, as they read and give floats.
    A model with operators that onnx does not know at its opset is refused too: onnxruntime runs some of them, but its
    checker accepts no such file. Constants must be folded before, as weights may be computed from them.
    """
    opset = next((entry.version for entry in model.opset_import if not entry.domain), 0)
    for node in all_nodes(model.graph):
        if is_quantized_op(node) and node.op_type not in PACKED_WEIGHTS:
            raise ModelError(
                f"node {node.name or node.op_type}: found {node.op_type}, so the model is quantized already;"
                " a float32 model is needed; give the file that it was made from"
            )
        if not node.domain and not onnx.defs.has(node.op_type, opset):
            raise ModelError(
                f"node {node.name or node.op_type}: found {node.op_type}, which opset {opset} does not have; the"
                " operators of the opset are allowed; export the model at the opset that has it"
            )
    types, index = weight_types(model.graph), Index(model.graph)
    cells = [node for node in model.graph.node if recurrent and is_op(node, *RECURRENT)]
    taken = TensorProto.FLOAT in types or any(explain_float(node, index) is None for node in cells)
    if taken or list_bodies(model):
        return
    if types & set(FLOAT_TYPES):
        names = ", ".join(sorted(TensorProto.DataType.Name(t).lower() for t in types & set(FLOAT_TYPES)))
        found = f"no quantizable layer found: all weights are {names}"
        advice = "export the model in float32"
    else:
        holders = spell_holders(model)
        found = f"no quantizable layer found{holders and f', as {holders}'}"
        advice = "nothing can be gained by quantizing this model"
    raise ModelError(
        f"graph {model.graph.name}: {found}; a {', '.join(LAYERS[:-1])} or {LAYERS[-1]} with a constant"
        f" float32 weight is needed; {advice}"
    )


def multiplies_constants(model: ModelProto) -> bool:
    """Whether a node of the graph that is a layer, or can be written as one, reads a constant."""
    constants = own_constants(model.graph)
    nodes = (node for node in model.graph.node if is_op(node, *LAYERS, *RECURRENT, "Einsum"))
    return any(not constants.keys().isdisjoint(node.input) for node in nodes)


def weight_types(graph: GraphProto) -> set[int]:
    """Element types of the constant weights of the graph's layers, those in bodies left out."""
    constants = own_constants(graph)
    return {
        constants[node.input[1]].data_type for node in graph.node if is_op(node, *LAYERS) and node.input[1] in constants
    }


def parse_file(path: Path) -> tuple[ModelProto, dict[int, Place]]:
    """The model of a file, without its external data, and where large weights are that a large file keeps.

    What is no model is not read whole.
    """
    with open_file(path, ModelError, give=GIVE) as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            raise ModelError(f"{path}: is empty; {GIVE}")
        if size > MOST_FILE_BYTES:
            raise ModelError(
                f"{path}: holds {size:,} bytes; protobuf allows {MOST_FILE_BYTES:,} in an ONNX file; give it external"
                " data"
            )
        try:
            Walk(file).check(ModelProto.DESCRIPTOR, size)
            model, places = parse_model(file, size, path, leave=is_large_model(size) and can_name(path.absolute()))
        except (NotAMessage, DecodeError):
            raise ModelError(f"{path}: is not an ONNX model, or is cut off; {GIVE}") from None
        except OSError as error:
            raise ModelError(f"{path}: {spell_fault(error)}; {GIVE}") from None
    if not model.HasField("graph") or not model.ir_version:
        raise ModelError(f"{path}: holds no ONNX graph; {GIVE}")
    check_texts(model, str(path))
    return model, places


def _refuse_unread_data(model: ModelProto) -> None:
    for _, tensor in list_tensors(model):
        if uses_external_data(tensor):
            raise ModelError(
                f"tensor {tensor.name}: its data are in the file {read_entries(tensor).get('location')}, and a model in"
                " memory has no folder; data inside the model are needed; give the path, or load the data first"
            )


def _refuse_out_of_range(model: ModelProto, where: str) -> None:
    if not LEAST_IR_VERSION <= model.ir_version <= onnx.IR_VERSION:
        raise ModelError(
            f"{where}: IR version {model.ir_version} found; {LEAST_IR_VERSION} to {onnx.IR_VERSION} are allowed;"
            " export the model again"
        )
    other = next((entry for entry in model.opset_import if not 0 <= entry.version <= MOST_OPSET), None)
    if other is not None:
        raise ModelError(
            f"{where}: opset {other.version} of domain {other.domain!r} found; 0 to {MOST_OPSET} are allowed; export it"
            " again"
        )
    newest = onnx.defs.onnx_opset_version()
    opsets = sorted({entry.version for entry in model.opset_import if entry.domain in STANDARD})
    if len(opsets) > 1:
        raise ModelError(f"{where}: opsets {opsets} of the standard operators found; one is needed; export it again")
    opset = next(iter(opsets), None)
    if opset is None or not LEAST_OPSET <= opset <= newest:
        found = "no opset" if opset is None else f"opset {opset}"
        raise ModelError(
            f"{where}: {found} of the standard operators found; {LEAST_OPSET} to {newest} are allowed;"
            " export the model again"
        )


def _refuse_broken(model: ModelProto, where: str) -> None:
    graph = model.graph
    if not graph.output:
        raise ModelError(f"{where}: the graph has no outputs; at least one is needed; export the model again")
    known = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    known |= {name for node in graph.node for name in node.output}
    wanted = [(f"node {n.name or n.op_type}", name) for n in graph.node for name in n.input if name]
    wanted += [("the graph's output list", value.name) for value in graph.output]
    for reader, name in wanted:
        if name not in known:
            raise ModelError(
                f"{where}: {reader} reads tensor {name}, which nothing makes; a complete graph is needed;"
                " export the model again"
            )


def refuse_giants(model: ModelProto, where: str) -> None:
    """Raise ModelError for computed tensors of a fixed size that cannot be.

    Those of constants alone may be no larger than stored ones, as onnxruntime computes them when it loads the model.
    Those of inputs may be as large as the machine's memory.
    """
    graph = infer_graph(model)
    makers, varying = {name: node for node in model.graph.node for name in node.output}, _list_varying(model.graph)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for value in () if graph is None else (*graph.value_info, *graph.output):
        kind = value.type.tensor_type
        sizes = [dim.dim_value for dim in kind.shape.dim if dim.HasField("dim_value")]
        needed = math.prod(sizes) * (TYPES[kind.elem_type].itemsize if kind.elem_type in TYPES else 1)
        allowed = max(memory, MOST_BYTES) if value.name in varying else MOST_BYTES
        if needed > allowed and value.name in makers:
            raise ModelError(
                f"{where}: node {spell_node(makers[value.name])}: its output {value.name} has dimensions {sizes}, which"
                f" are {needed:,} bytes; {allowed:,} are allowed in one tensor; export the model for smaller inputs"
            )


def _list_varying(graph: GraphProto) -> set[str]:
    """The tensors that depend on inputs. Nodes stand in their order; those with bodies count as if they depended."""
    varying = {value.name for value in graph.input} - {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if has_bodies(node) or not varying.isdisjoint(node.input):
            varying.update(filter(None, node.output))
    return varying
