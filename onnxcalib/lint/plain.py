"""The one form of a model whose nodes the rules are read off: no functions, and one name of ONNX's own domain."""

from __future__ import annotations

from onnx import ModelProto

from ..errors import ModelError, escape_controls
from ..graph.edit import copy_model
from ..graph.index import all_nodes
from ..graph.passes.normalise import STANDARD_DOMAIN, inline_functions, spell_domain


def make_plain(model: ModelProto, name: str) -> ModelProto:
    """The model, or a copy where its nodes call functions of its own or spell out ONNX's domain.

    Nodes inside functions have the names that onnx's inliner gives them. Raises ModelError for functions that cannot be
    put in place.
    """
    spelled = any(entry.domain == STANDARD_DOMAIN for entry in model.opset_import)
    if not model.functions and not spelled and all(node.domain != STANDARD_DOMAIN for node in all_nodes(model.graph)):
        return model
    plain = copy_model(model)
    spell_domain(plain)
    inline_functions(plain)
    for function in plain.functions:
        raise ModelError(
            f"{name}: found the function {escape_controls(function.name)}, which is written for another opset than the"
            " model; rules are read off the nodes of graphs; export the model without functions"
        )
    return plain
