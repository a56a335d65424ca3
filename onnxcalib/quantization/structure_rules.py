"""The rules of placement that look at the structure of a model alone: nodes, and the shapes of tensors.

They start no torch, so that ``inspect`` tells of a model what a run will do. ``placement`` has all rules in order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from ..data.padding import MASK
from ..graph.dynamic_lstm import DYNAMIC_LSTM, explain_slow
from ..graph.edit import copy_model
from ..graph.index import Index, is_op
from ..graph.joins import find_parted_joins
from ..graph.kernel_times import Shapes
from ..graph.names import resolve_names
from ..graph.ops import RECURRENT
from ..graph.places import find_placing
from ..graph.positions import find_positional
from ..graph.recurrent import LSTM, explain_all_float
from .last_layers import find_last_layers
from .outline import Outline
from .patch_layers import find_patch_layers
from .rewrite import Rewritten, rewrite
from .weights_alone import find_not_alone

PARTED = "it joins tensors that are taken apart again; on one grid the range of one would round the others"
NO_OPERATOR = "onnxruntime has an operator that rounds activations as it runs for LSTMs alone"
ENCODING_LACKS = f"encoding 'standard' has operators of ONNX alone, and {DYNAMIC_LSTM} is one of onnxruntime's own"
T = TypeVar("T", bound=Outline)


def apply_rules(outline: T, shapes: Shapes, find_slow: Callable[[T, Shapes], Mapping[str, str]]) -> T:
    """Leave in float what the graph and the shapes of its tensors tell to.

    shapes: of all tensors in one run. find_slow: the nodes that would be slower on integers, and why.
    """
    outline = outline.leave(find_not_alone(outline))
    model = outline.model
    index = Index(model.graph)
    outline = _place_recurrent(outline, index)
    # Where all else around them is on integers, masks are too: see masked_scores.
    masks = (MASK,) if outline.scheme.requirements.placing == "groups" else ()
    found = _keep_layers(
        outline,
        dict.fromkeys(sorted(find_parted_joins(model, index)), PARTED)
        | find_positional(model, index, masks)
        | find_placing(model.graph, index),
    )
    if outline.target.is_onnxruntime:
        found |= _find_on_grids(outline, find_last_layers(model, outline.parts, shapes))
    outline = outline.leave(found)
    if outline.target.is_onnxruntime and outline.config.placement != "all" and not outline.config.wide:
        outline = let_read_float(outline, find_patch_layers(model, outline.widest_scheme, shapes))
    return outline.leave(find_slow(outline, shapes))


def keep_operators(place: Callable[[Rewritten], T], rewritten: Rewritten) -> T:
    """The model with its nodes placed, in which a layer that stays in float has the operator that it came with.

    In float a product by a constant on the left, or by a stack of matrices, is faster than the Conv that it becomes.
    """
    outline, kept = place(rewritten), dict[str, str]()
    while True:
        config, original = outline.config, outline.original
        excluded = resolve_names(outline.model, config, before=original).excluded
        new = {name: outline.in_float.get(name, "") for name in rewritten.layers & (excluded | outline.in_float.keys())}
        if not new:
            return outline
        kept |= new
        rewritten = rewrite(copy_model(original), outline.settings, kept, outline.target)
        outline = place(rewritten).leave({name: why for name, why in kept.items() if why})


def let_read_float(outline: T, chosen: Mapping[str, str]) -> T:
    """Let layers to which the settings give no bits read float, and tell why."""
    named = list_named(outline) if chosen else ()
    found = {name: reason for name, reason in chosen.items() if name not in named}
    for name, reason in found.items():
        outline.leave_out(f"integer activations of {name}", f"{reason}; its weights alone are quantized")
    return outline.read_float(found)


def _place_recurrent(outline: T, index: Index) -> T:
    """Leave in float recurrent layers that the file cannot have; where rounding is no gain, let them read float."""
    needs = outline.scheme.requirements
    found = explain_all_float(outline.model, index)
    if not needs.recurrent_weights:
        target = outline.target.name
        lacks = f"target {target!r} is not known to take recurrent layers with integers as weights"
        found = {node.name: lacks for node in outline.model.graph.node if is_op(node, *RECURRENT)}
    outline = outline.leave(found)
    named, reasons = list_named(outline), dict[str, str]()
    for layer in outline.scheme.recurrent:
        reason = None
        if layer.dynamic and outline.config.placement != "all" and layer.name not in named:
            reason = explain_slow(layer, index)
        elif outline.config.activations == "dynamic" and not layer.dynamic and layer.name not in named:
            reason = NO_OPERATOR if layer.op != LSTM else ENCODING_LACKS
        if reason is not None:
            reasons[layer.name] = reason
            outline.leave_out(f"dynamic activations of {layer.name}", f"{reason}; its weights alone are quantized")
    return outline.read_float(reasons)


def list_named(outline: Outline) -> list[str]:
    """Names of the layers to which the settings or a plan give bits."""
    layers = resolve_names(outline.model, outline.config, before=outline.original).layers
    given = (name for name, each in layers if any((each.weight_bits, each.activation_bits, each.activations)))
    return list(dict.fromkeys(given))


def _find_on_grids(outline: Outline, chosen: Mapping[str, str]) -> dict[str, str]:
    """Those of the nodes that would have a grid on some side; to others it makes no difference."""
    grids = outline.widest_scheme.activations
    return {
        node.name: chosen[node.name]
        for node in outline.model.graph.node
        if node.name in chosen and any(t in grids for t in (*node.input, *node.output))
    }


def _keep_layers(outline: Outline, chosen: Mapping[str, str]) -> dict[str, str]:
    """The nodes with a grid on some side, but no layers where no other layer would be left."""
    layers = {layer.name for layer in outline.scheme.layers}
    kept = layers if layers <= chosen.keys() else set()
    return {name: why for name, why in _find_on_grids(outline, chosen).items() if name not in kept}
