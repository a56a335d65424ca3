"""Raise a model's opset with onnx's version converter, and mend what the converter gets wrong."""

from __future__ import annotations

from onnx import ModelProto, ValueInfoProto, checker, helper, version_converter

from ..errors import ModelError
from .index import Index, attribute_of, constant, subgraphs
from .normalise import drop_dead, drop_initializer_inputs, lift_constants, name_nodes

# Resize got its coordinate modes here (onnx changelog, Resize-11); the converter leaves them out and so means
# half_pixel and round_prefer_floor. Before, ``x / scale`` was rounded down, or up by onnxruntime where it shrinks.
RESIZE_MODES_OPSET = 11


def raise_opset(model: ModelProto, least: int) -> tuple[ModelProto, bool]:
    """The model at opset ``least`` and True, or the model itself and False if it is there or above already.

    Inputs, outputs, tensor and node names, and metadata survive; initializers no longer appear among the inputs.
    Raises ModelError where an operator cannot be converted, or where a body of If, Loop or Scan would be left behind.
    """
    found = opset_of(model)
    if found >= least:
        return model, False
    where = f"graph {model.graph.name}: opset {found} cannot be raised to {least}"
    advice = f"opset {least} or newer is needed; export the model at such an opset"
    bodies = [node for node in model.graph.node if any(True for _ in subgraphs(node))]
    if bodies:
        raise ModelError(f"{where} as node {bodies[0].name or bodies[0].op_type} has a body; {advice}")
    old = ModelProto()
    old.CopyFrom(model)
    drop_initializer_inputs(old)
    lift_constants(old)
    try:
        new = version_converter.convert_version(old, least)
    except (version_converter.ConvertError, RuntimeError, ValueError) as error:
        raise ModelError(f"{where} ({str(error).strip().splitlines()[0]}); {advice}") from error
    if found < RESIZE_MODES_OPSET:
        _keep_resize_modes(new, old)
    _restore(new, old)
    for step in (lift_constants, drop_dead, name_nodes):
        step(new)
    try:
        checker.check_model(new)
    except checker.ValidationError as error:
        raise ModelError(f"{where} ({str(error).strip().splitlines()[0]}); {advice}") from error
    return new, True


def opset_of(model: ModelProto) -> int:
    """Version of the standard operators that the model asks for, 0 if none."""
    return next((entry.version for entry in model.opset_import if not entry.domain), 0)


def _keep_resize_modes(new: ModelProto, old: ModelProto) -> None:
    """Say what Upsample and the first Resize meant: asymmetric coordinates; old scales tell the rounding."""
    index = Index(old.graph)
    for node in new.graph.node:
        if node.op_type != "Resize" or node.domain:
            continue
        before = index.producer[node.output[0]]
        scales = constant(index, before.input[1]) if len(before.input) > 1 else None
        shrinks = scales is not None and (scales < 1).any()
        if shrinks and (scales > 1).any() and attribute_of(node, "mode", b"nearest") == b"nearest":
            raise ModelError(
                f"node {node.name or node.output[0]}: a nearest Resize that shrinks one axis and stretches another"
                f" found at opset {opset_of(old)}; from {RESIZE_MODES_OPSET} on none can; export the model at such an"
                " opset"
            )
        modes = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "ceil" if shrinks else "floor"}
        kept = [attribute for attribute in node.attribute if attribute.name not in modes]
        del node.attribute[:]
        node.attribute.extend(kept)
        node.attribute.extend(helper.make_attribute(name, value) for name, value in modes.items())


def _restore(new: ModelProto, old: ModelProto) -> None:
    """Put back what the converter drops or guesses: domains, interface, metadata, names of nodes it replaced."""
    others = [entry for entry in old.opset_import if entry.domain]
    present = {entry.domain for entry in new.opset_import}
    new.opset_import.extend(entry for entry in others if entry.domain not in present)
    for field in ("input", "output"):
        inferred = {value.name: value for value in getattr(new.graph, field)}
        values = [v if v.type.tensor_type.HasField("shape") else inferred[v.name] for v in getattr(old.graph, field)]
        copies = [ValueInfoProto.FromString(value.SerializeToString()) for value in values]
        del getattr(new.graph, field)[:]
        getattr(new.graph, field).extend(copies)
    del new.metadata_props[:]
    new.metadata_props.extend(old.metadata_props)
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
