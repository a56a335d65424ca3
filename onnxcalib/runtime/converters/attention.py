"""Attention and RotaryEmbedding, which exporters write as single nodes from opset 23 on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .registry import Converted, OnnxGraph, OnnxNode, has_one_output, refuse_unless, register

_FLOAT = 1  # TensorProto.FLOAT, the precision of softmax


class Attention(nn.Module):
    """``softmax(scale Q K^T + mask) V`` in heads.

    Q, K and V are (samples, heads, tokens, width), or (samples, tokens, heads * width) where the heads are told. There
    may be several heads of Q to one of K and V.
    """

    def __init__(self, heads: tuple[int, int], scale: float | None, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.scale, self.causal = heads, scale, causal

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        joined = query.dim() == 3
        if joined:
            parts = zip((query, key, value), (self.heads[0], self.heads[1], self.heads[1]), strict=True)
            query, key, value = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part, heads in parts)
        shared = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
        scale = query.shape[-1] ** -0.5 if self.scale is None else self.scale
        scores = query @ key.transpose(2, 3) * scale
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        if self.causal:
            seen = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).tril()
            scores = scores.masked_fill(~seen, -torch.inf)
        # A token that sees nothing gets nothing.
        blind = scores.isneginf().all(-1, keepdim=True)
        found = scores.masked_fill(blind, 0.0).softmax(-1).masked_fill(blind, 0.0) @ value
        return found.transpose(1, 2).flatten(2) if joined else found


class RotaryEmbedding(nn.Module):
    """Turn pairs of a head's first ``width`` values (all for 0) by the angles of their places.

    Pairs are neighbours where ``interleaved``, else halves. x is (samples, heads, tokens, width), or (samples, tokens,
    heads * width) where the heads are told; cosines are (places, pairs) to look up, or (samples, tokens, pairs).
    """

    def __init__(self, heads: int, width: int, *, interleaved: bool) -> None:
        super().__init__()
        self.heads, self.width, self.interleaved = heads, width, interleaved

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor, places: Tensor | None = None) -> Tensor:
        joined = x.dim() == 3
        heads = x.unflatten(2, (self.heads, -1)) if joined else x.transpose(1, 2)
        if places is not None:
            cosine, sine = cosine[places], sine[places]
        cosine, sine = cosine.unsqueeze(2), sine.unsqueeze(2)
        width = self.width or heads.shape[-1]
        turned, rest = heads[..., :width], heads[..., width:]
        one, two = (turned[..., 0::2], turned[..., 1::2]) if self.interleaved else turned.chunk(2, -1)
        real, imaginary = cosine * one - sine * two, sine * one + cosine * two
        if self.interleaved:
            turned = torch.stack((real, imaginary), -1).flatten(-2)
        else:
            turned = torch.cat((real, imaginary), -1)
        heads = torch.cat((turned, rest), -1)
        return heads.flatten(2) if joined else heads.transpose(1, 2)


@register("Attention", 23, 24)
def build_attention(node: OnnxNode, graph: OnnxGraph) -> Converted:
    """Without a cache of keys and values, soft caps, and a second output."""
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
    """With places that are looked up, or angles for each token."""
    attributes = node.attributes
    return RotaryEmbedding(
        attributes.get("num_heads", 1),
        attributes.get("rotary_embedding_dim", 0),
        interleaved=bool(attributes.get("interleaved", 0)),
    )
