"""Raise a model's opset with onnx's version converter, and correct what the converter gets wrong."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import GraphProto, ModelProto, TypeProto, ValueInfoProto, checker, helper, version_converter

from ...errors import ModelError, first_line
from ..check import copy_for_checker, correct_shapes
from ..edit import copy_model, drop_dead, refill, rename, replace_names, write_attributes
from ..index import Index, attribute_of, captured, captured_by, constant, has_bodies, is_op, subgraphs
from ..shapes import INFERENCE_FAULTS, infer_graph
from ..weightless import copy_without_weights, replace_around_weights
from .normalise import drop_initializer_inputs, lift_constants, name_nodes

# Resize got its coordinate modes here (onnx changelog, Resize-11). The converter leaves them out, which stands for
# half_pixel and round_prefer_floor. Before, ``x / scale`` was rounded down, or up by onnxruntime if the Resize shrinks.
RESIZE_MODES_OPSET = 11
# Domain of the nodes that replace those with bodies for the converter, which leaves unknown domains alone.
BODY_DOMAIN = "onnxcalib.body"


def raise_opset(model: ModelProto, least: int) -> bool:
    """Raise the model to opset ``least``, bodies included; returns False if it has that opset or a newer one already.

    Inputs, outputs, tensor and node names, and metadata survive; initializers are no inputs afterwards. Raises
    ModelError where an operator cannot be converted.
    """
    found = opset_of(model)
    if found >= least:
        return False
    where = f"graph {model.graph.name}: opset {found} cannot be raised to {least}"
    advice = f"opset {least} or newer is needed; export the model at that opset"
    old = copy_without_weights(model)
    drop_initializer_inputs(old)
    lift_constants(old)
    correct_shapes(old)
    try:
        new = _convert(old, least, _types(old.graph, infer_graph(old)))
    except (version_converter.ConvertError, *INFERENCE_FAULTS) as error:
        raise ModelError(f"{where} ({first_line(error)}); {advice}") from error
    _restore(new, old)
    for rewrite in (lift_constants, drop_dead, name_nodes):
        rewrite(new)
    try:
        checker.check_model(copy_for_checker(new))
    except checker.ValidationError as error:
        raise ModelError(f"{where} ({first_line(error)}); {advice}") from error
    replace_around_weights(model, new)
    drop_initializer_inputs(model)
    drop_dead(model)
    return True


def opset_of(model: ModelProto) -> int:
    """Version of the standard operators that the model asks for, 0 if none."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def _convert(old: ModelProto, least: int, types: Mapping[str, TypeProto]) -> ModelProto:
    """The converted model, its bodies converted one by one.

    The converter leaves bodies as they were, at an opset that is not theirs. It fails if it replaces what a body
    captures. So it is given nodes without bodies that read what the bodies capture.
    """
    bare = copy_model(old)
    owners = {node.output[0]: node for node in old.graph.node if has_bodies(node)}
    for node in bare.graph.node:
        if node.output[0] in owners:
            node.input.extend(sorted(captured(node)))
            node.domain = BODY_DOMAIN
            del node.attribute[:]
            named = [name for name in node.output if name in types and name not in {v.name for v in old.graph.output}]
            bare.graph.value_info.extend(ValueInfoProto(name=name, type=types[name]) for name in named)
    for node in bare.graph.node:
        if is_op(node, "Pad") and attribute_of(node, "mode", b"constant") != b"constant":
            write_attributes(node, {}, drop=("value",))  # the converter keeps what no reflection has from opset 11 on
    if owners:
        bare.opset_import.append(helper.make_opsetid(BODY_DOMAIN, 1))
    new = version_converter.convert_version(bare, least)
    if opset_of(old) < RESIZE_MODES_OPSET:
        _keep_resize_modes(new, old)
    for node in new.graph.node:
        if node.domain == BODY_DOMAIN:
            owner = owners[node.output[0]]
            node.CopyFrom(owner)
            for number, body in enumerate(subgraphs(node)):
                converted = _convert_body(body, old, least, types)
                _rename_new(converted, body, f"{node.output[0]}.{number}.")
                body.CopyFrom(converted)
    refill(new.opset_import, [entry for entry in new.opset_import if entry.domain != BODY_DOMAIN])
    _keep_metadata(new, old)
    return new


def _keep_metadata(new: ModelProto, old: ModelProto) -> None:
    """Give nodes back their metadata, which the converter drops."""
    before = {node.output[0]: node for node in old.graph.node if node.metadata_props}
    for node in new.graph.node:
        if node.output[0] in before and node.op_type == before[node.output[0]].op_type:
            refill(node.metadata_props, before[node.output[0]].metadata_props)


def _convert_body(body: GraphProto, owner: ModelProto, least: int, types: Mapping[str, TypeProto]) -> GraphProto:
    """The body, converted as a model of its own of which what it captures are inputs."""
    alone = helper.make_model(body, opset_imports=owner.opset_import, ir_version=owner.ir_version)
    outer = sorted(captured_by(body))
    for name in outer:
        alone.graph.input.append(ValueInfoProto(name=name, type=types.get(name)))
    lift_constants(alone)
    raised = _convert(alone, least, {**types, **_types(alone.graph, infer_graph(alone))}).graph
    refill(raised.input, body.input)
    del raised.value_info[:]
    return raised


def _rename_new(converted: GraphProto, body: GraphProto, prefix: str) -> None:
    """Give the tensors that the converter added unique names, as it uses the same ones in every graph."""
    made = {name for node in body.node for name in node.output} | {tensor.name for tensor in body.initializer}
    new = {name for node in converted.node for name in node.output if name and name not in made}
    rename(converted, {name: prefix + name for name in new})


def _types(graph: GraphProto, inferred: GraphProto | None) -> dict[str, TypeProto]:
    """Type of every tensor that has one."""
    known = (graph.input, graph.output, *(() if inferred is None else (inferred.value_info, inferred.output)))
    constants = {
        tensor.name: helper.make_tensor_type_proto(tensor.data_type, tensor.dims) for tensor in graph.initializer
    }
    return constants | {
        value.name: value.type for values in known for value in values if value.type.WhichOneof("value")
    }


def _keep_resize_modes(new: ModelProto, old: ModelProto) -> None:
    """Write out the modes of Upsample and the first Resize: asymmetric coordinates, and a rounding by their scales.

    Their outputs, which the converter renames inside a graph, get their names back.
    """
    index = Index(old.graph)
    resizes = [node for node in new.graph.node if is_op(node, "Resize")]
    originals = [node for node in old.graph.node if is_op(node, "Upsample", "Resize")]
    renamed = {node.output[0]: before.output[0] for node, before in zip(resizes, originals, strict=True)}
    for node in new.graph.node:
        replace_names(node.input, renamed)
        replace_names(node.output, renamed)
    for node, before in zip(resizes, originals, strict=True):
        scales = constant(index, before.input[1]) if len(before.input) > 1 else None
        shrinks = scales is not None and bool((scales < 1).any())
        stretches = scales is not None and bool((scales > 1).any())
        if shrinks and stretches and attribute_of(node, "mode", b"nearest") == b"nearest":
            raise ModelError(
                f"node {node.name or node.output[0]}: a nearest Resize that shrinks one axis and stretches another"
                f" found at opset {opset_of(old)}; from {RESIZE_MODES_OPSET} on none can; export the model at that"
                " opset"
            )
        rounding = "ceil" if shrinks else "floor"
        write_attributes(node, {"coordinate_transformation_mode": "asymmetric", "nearest_mode": rounding})


def _restore(new: ModelProto, old: ModelProto) -> None:
    """Put back what the converter drops or guesses: domains, inputs, outputs, metadata, names of replaced nodes."""
    others = [entry for entry in old.opset_import if entry.domain]
    present = {entry.domain for entry in new.opset_import}
    new.opset_import.extend(entry for entry in others if entry.domain not in present)
    for field in ("input", "output"):
        inferred = {value.name: value for value in getattr(new.graph, field)}
        values = [v if v.type.tensor_type.HasField("shape") else inferred[v.name] for v in getattr(old.graph, field)]
        refill(getattr(new.graph, field), values)
    refill(new.metadata_props, old.metadata_props)
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        setattr(new, field, getattr(old, field))
    names = {node.output[0]: node.name for node in old.graph.node}
    taken = {node.name for node in new.graph.node}
    for node in new.graph.node:
        if not node.name and names.get(node.output[0], "") not in taken:
            node.name = names[node.output[0]]
    new.graph.name, new.graph.doc_string = old.graph.name, old.graph.doc_string
    needed = helper.find_min_ir_version_for([e for e in new.opset_import if not e.domain])
    new.ir_version = max(old.ir_version, needed)
