"""Attention and RotaryEmbedding, single nodes since opset 23."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .registry import Converted, OnnxGraph, OnnxNode, has_one_output, refuse_unless, register

_FLOAT = 1  # TensorProto.FLOAT, the precision of softmax


class Attention(nn.Module):
    """``softmax(scale Q K^T + mask) V`` in each head.

    Q, K and V are (samples, heads, tokens, width), or (samples, tokens, heads * width), for which ``heads`` has the
    numbers of heads of Q and of K and V. Several heads of Q may share one of K and V.
    """

    def __init__(self, heads: tuple[int, int], scale: float | None, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.scale, self.causal = heads, scale, causal

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        merged = query.dim() == 3
        if merged:
            parts = zip((query, key, value), (self.heads[0], self.heads[1], self.heads[1]), strict=True)
            query, key, value = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part, heads in parts)
        shared = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
        scale = query.shape[-1] ** -0.5 if self.scale is None else self.scale
        scores = query @ key.transpose(2, 3) * scale
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        if self.causal:
            visible = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).tril()
            scores = scores.masked_fill(~visible, -torch.inf)
        # A token whose mask hides all tokens gets zeros; softmax alone would give NaN.
        blind = scores.isneginf().all(-1, keepdim=True)
        output = scores.masked_fill(blind, 0.0).softmax(-1).masked_fill(blind, 0.0) @ value
        return output.transpose(1, 2).flatten(2) if merged else output


class RotaryEmbedding(nn.Module):
    """Rotate pairs of a head's first ``width`` values (0: of all) by the angle of the token's position.

    The values of a pair are neighbours where ``interleaved``, else one is from each half. x is (samples, heads, tokens,
    width), or (samples, tokens, heads * width), for which ``heads`` is given. Cosines and sines are (positions, pairs),
    looked up by the tokens' positions, or without these (samples, tokens, pairs).
    """

    def __init__(self, heads: int, width: int, *, interleaved: bool) -> None:
        super().__init__()
        self.heads, self.width, self.interleaved = heads, width, interleaved

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor, positions: Tensor | None = None) -> Tensor:
        merged = x.dim() == 3
        heads = x.unflatten(2, (self.heads, -1)) if merged else x.transpose(1, 2)
        if positions is not None:
            cosine, sine = cosine[positions], sine[positions]
        cosine, sine = cosine.unsqueeze(2), sine.unsqueeze(2)
        width = self.width or heads.shape[-1]
        rotated, rest = heads[..., :width], heads[..., width:]
        one, two = (rotated[..., 0::2], rotated[..., 1::2]) if self.interleaved else rotated.chunk(2, -1)
        real, imaginary = cosine * one - sine * two, sine * one + cosine * two
        if self.interleaved:
            rotated = torch.stack((real, imaginary), -1).flatten(-2)
        else:
            rotated = torch.cat((real, imaginary), -1)
        heads = torch.cat((rotated, rest), -1)
        return heads.flatten(2) if merged else heads.transpose(1, 2)


@register("Attention", 23, 24)
def build_attention(node: OnnxNode, graph: OnnxGraph) -> Converted:
    """Refuses cached keys and values, soft caps, and further outputs."""
    attributes = node.attributes
    refuse_unless(has_one_output(node), "Attention: more than one output is used")
    refuse_unless(not any(node.input_values[4:]), "Attention: keys and values of the past, or their lengths, are given")
    refuse_unless(not attributes.get("softcap", 0.0), "Attention: softcap")
    precision = attributes.get("softmax_precision", _FLOAT)
    refuse_unless(precision == _FLOAT, f"Attention: softmax_precision {precision}")
    heads = attributes.get("q_num_heads", 1), attributes.get("kv_num_heads", 1)
    module = Attention(heads, attributes.get("scale"), causal=bool(attributes.get("is_causal", 0)))
    return Converted(module, node.input_values[:4])


@register("RotaryEmbedding", 23)
def build_rotary_embedding(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """Angles are looked up by position, or given for each token."""
    attributes = node.attributes
    return RotaryEmbedding(
        attributes.get("num_heads", 1),
        attributes.get("rotary_embedding_dim", 0),
        interleaved=bool(attributes.get("interleaved", 0)),
    )
