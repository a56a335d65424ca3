"""Layers whose weights a target does not take beside float activations, and which therefore stay in float."""

from __future__ import annotations

from ..errors import ConfigError
from ..graph.index import Index
from ..spec import LayerScheme
from .outline import Outline


def find_not_alone(outline: Outline) -> dict[str, str]:
    """Maps the layers that would read float, and that the target has not for that, to why they stay in float.

    Raises ConfigError where no layer would be left.
    """
    target, index = outline.target, Index(outline.model.graph)
    needs = target.requirements

    def explain(layer: LayerScheme) -> str | None:
        if needs.alone and layer.op not in needs.alone:
            ops = " and ".join(sorted(needs.alone))
            return f"target {target.name!r} takes weights beside float activations in {ops} alone"
        block, shape = layer.weight_spec.block, index.initializers[layer.weight].dims
        inputs = shape[1 - (layer.weight_spec.axis or 0)]
        if needs.blocks and block is not None and inputs % block:
            return f"its weight has {inputs} inputs, and target {target.name!r} takes whole blocks of {block}"
        return None

    found = {layer.name: explain(layer) for layer in outline.scheme.layers if layer.reads_float}
    left = {name: reason for name, reason in found.items() if reason is not None}
    if left and len(left) == len(outline.scheme.layers):
        name, reason = next(iter(left.items()))
        raise ConfigError(
            f"activation_bits: found 32, and no layer that can have it; {name} stays in float, as {reason}; give 8, or"
            " another target"
        )
    return left
