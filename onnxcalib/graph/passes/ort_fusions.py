"""Take apart operators of com.microsoft into which onnxruntime's optimizer fused standard ones.

onnxruntime makes the same operators again from what is written here, where they stay in float.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto

from ..index import attribute_of, constant
from ..shapes import infer_shapes
from ..writer import Writer
from .opset import opset_of

DOMAIN = "com.microsoft"
# onnxruntime's own too, though it writes this one among the operators of onnx, which has none of the name.
RMS_NORM = "SimplifiedLayerNormalization"
# Opsets that brought Gelu and LayerNormalization, and that made the ends of a Clip and the axes of a mean inputs (onnx
# changelog).
GELU_OPSET, LAYER_NORM_OPSET, CLIP_INPUTS_OPSET, MEAN_AXES_OPSET = 20, 17, 11, 18
# Gelu by Tanh, as onnx defines it.
TANH_FACTOR, CUBE_FACTOR = math.sqrt(2 / math.pi), 0.044715
CONV_ATTRIBUTES = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
GEMM_ATTRIBUTES = ("alpha", "beta", "transA", "transB")
# Where it is left out: of SkipLayerNormalization and EmbedLayerNormalization, and of SimplifiedLayerNormalization.
NORM_EPSILON, RMS_EPSILON = 1e-12, 1e-5


def split_fusions(model: ModelProto) -> int:
    """Write standard operators in the place of onnxruntime's fused ones; returns how many were taken apart.

    Those of an unknown form stay, such as an Attention with a mask. The layer has the fused node's name.
    """
    count = 0
    while True:  # shapes behind a fused operator are known once it is taken apart
        known = any(_is_fused(node) and node.op_type in _WRITERS for node in model.graph.node)
        shapes = infer_shapes(model) if known else {}
        writer = Writer(model)
        for node in model.graph.node:
            write = _WRITERS.get(node.op_type) if _is_fused(node) else None
            fusion = _Fusion(writer, node, opset_of(model), {name: len(shape) for name, shape in shapes.items()})
            if write is None or not write(fusion):
                writer.keep(node)
        done = writer.finish()
        if not done:
            return count
        count += done


def _is_fused(node: NodeProto) -> bool:
    return node.domain == DOMAIN or (node.op_type == RMS_NORM and not node.domain)


class _Fusion:
    """A fused node, and how to write what it was made of. ranks: tensor -> its number of axes, where that is known."""

    def __init__(self, writer: Writer, node: NodeProto, opset: int, ranks: dict[str, int]) -> None:
        self.writer, self.node, self.opset, self.ranks = writer, node, opset, ranks
        self.inputs = [*node.input, *[""] * 9]

    def add(self, op: str, *inputs: str | float, main: bool = False, **attributes: Any) -> str:
        """A node of tensors and of numbers."""
        names = [each if isinstance(each, str) else self.number(each) for each in inputs]
        return self.writer.add(self.node, op, *names, main=main, **attributes)

    def number(self, value: float) -> str:
        return self.writer.constant(f"number_{value:.9g}", np.array(value, np.float32))

    def attribute(self, name: str, default: Any) -> Any:
        return attribute_of(self.node, name, default)

    def attributes(self, names: tuple[str, ...]) -> dict[str, Any]:
        return {name: value for name in names if (value := attribute_of(self.node, name, None)) is not None}

    def end(self) -> bool:
        self.writer.end(self.node.output[0])
        return True

    def gives(self, number: int) -> bool:
        """Whether the output of this number is read, or given to the user."""
        name = self.node.output[number] if number < len(self.node.output) else ""
        return bool(name) and (bool(self.writer.index.readers(name)) or name in self.writer.index.outputs)


def _add_activation(fusion: _Fusion, source: str, params: list[float]) -> None:
    """The activation function behind a layer, which ``_knows_activation``."""
    kind = fusion.attribute("activation", b"").decode()
    if kind == "LeakyRelu":
        fusion.add(kind, source, alpha=params[0])
    elif kind == "HardSigmoid":
        fusion.add(kind, source, alpha=params[0], beta=params[1])
    elif kind:
        fusion.add(kind, source, *(params[:2] if kind == "Clip" else []))


def _knows_activation(fusion: _Fusion, params: list[float]) -> bool:
    kind = fusion.attribute("activation", b"").decode()
    needs = {"Relu": 0, "Sigmoid": 0, "Tanh": 0, "": 0, "LeakyRelu": 1, "HardSigmoid": 2, "Clip": 2}
    return len(params) >= needs.get(kind, 99) and (kind != "Clip" or fusion.opset >= CLIP_INPUTS_OPSET)


def _write_conv(fusion: _Fusion) -> bool:
    params = list(fusion.attribute("activation_params", []))
    if not _knows_activation(fusion, params):
        return False
    inputs = fusion.inputs[: 3 if fusion.inputs[2] else 2]
    made = fusion.add("Conv", *inputs, main=True, **fusion.attributes(CONV_ATTRIBUTES))
    if fusion.inputs[3]:
        made = fusion.add("Add", made, fusion.inputs[3])
    _add_activation(fusion, made, params)
    return fusion.end()


def _write_gemm(fusion: _Fusion) -> bool:
    names = [f"activation_{name}" for name in ("alpha", "beta", "gamma")]
    params = [value for name in names if (value := fusion.attribute(name, None)) is not None]
    if not _knows_activation(fusion, params):
        return False
    inputs = fusion.inputs[: 3 if fusion.inputs[2] else 2]
    _add_activation(fusion, fusion.add("Gemm", *inputs, main=True, **fusion.attributes(GEMM_ATTRIBUTES)), params)
    return fusion.end()


def _write_matmul(fusion: _Fusion) -> bool:
    if fusion.attribute("transBatchA", 0) or fusion.attribute("transBatchB", 0):
        return False
    turned = [fusion.attribute(name, 0) for name in ("transA", "transB")]
    ranks = [fusion.ranks.get(name) for name in fusion.inputs[:2]]
    if any(turn and (rank is None or rank < 2) for turn, rank in zip(turned, ranks, strict=True)):
        return False
    operands = []
    for name, turn, rank in zip(fusion.inputs, turned, ranks, strict=False):
        value = constant(fusion.writer.index, name) if turn else None
        if value is not None:
            name = fusion.writer.constant(f"{name}_turned", np.ascontiguousarray(np.swapaxes(value, -1, -2)))
        elif turn and rank:
            name = fusion.add("Transpose", name, perm=[*range(rank - 2), rank - 1, rank - 2])
        operands.append(name)
    made = fusion.add("MatMul", *operands, main=True)
    if (alpha := fusion.attribute("alpha", 1.0)) != 1:
        fusion.add("Mul", made, alpha)
    return fusion.end()


def _write_gelu(fusion: _Fusion) -> bool:
    source = fusion.inputs[0]
    if fusion.node.op_type == "BiasGelu":
        source = fusion.add("Add", source, fusion.inputs[1], main=True)
    if fusion.opset >= GELU_OPSET:
        fusion.add("Gelu", source)
    else:
        gate = fusion.add("Add", fusion.add("Erf", fusion.add("Div", source, math.sqrt(2))), 1.0)
        fusion.add("Mul", fusion.add("Mul", source, gate), 0.5)
    return fusion.end()


def _write_fast_gelu(fusion: _Fusion) -> bool:
    source = fusion.add("Add", *fusion.inputs[:2], main=True) if fusion.inputs[1] else fusion.inputs[0]
    if fusion.opset >= GELU_OPSET:
        fusion.add("Gelu", source, approximate="tanh")
        return fusion.end()
    cube = fusion.add("Mul", fusion.add("Mul", fusion.add("Mul", source, source), source), CUBE_FACTOR)
    tanh = fusion.add("Tanh", fusion.add("Mul", fusion.add("Add", source, cube), TANH_FACTOR))
    fusion.add("Mul", fusion.add("Mul", source, 0.5), fusion.add("Add", tanh, 1.0))
    return fusion.end()


def _write_quick_gelu(fusion: _Fusion) -> bool:
    source, alpha = fusion.inputs[0], fusion.attribute("alpha", 1.702)
    gate = fusion.add("Sigmoid", source if alpha == 1 else fusion.add("Mul", source, alpha))
    fusion.add("Mul", source, gate, main=True)
    return fusion.end()


def _add_norm(fusion: _Fusion, source: str, gamma: str, beta: str) -> None:
    epsilon = fusion.attribute("epsilon", NORM_EPSILON)
    if fusion.opset >= LAYER_NORM_OPSET:
        inputs = [source, gamma, *([beta] if beta else [])]
        fusion.add("LayerNormalization", *inputs, main=True, axis=-1, epsilon=epsilon)
        return
    centred = fusion.add("Sub", source, fusion.add("ReduceMean", source, axes=[-1]))
    variance = fusion.add("ReduceMean", fusion.add("Pow", centred, 2.0), axes=[-1])
    made = fusion.add("Div", centred, fusion.add("Sqrt", fusion.add("Add", variance, epsilon)), main=True)
    made = fusion.add("Mul", made, gamma)
    if beta:
        fusion.add("Add", made, beta)


def _add_sum(fusion: _Fusion, bias: str) -> str:
    """The sum of both inputs and of a bias, which is an output too where it is read."""
    total = fusion.add("Add", *fusion.inputs[:2])
    if bias:
        total = fusion.add("Add", total, bias)
    if fusion.gives(3):
        fusion.writer.end(fusion.node.output[3])
        fusion.writer.count -= 1
        total = fusion.node.output[3]
    return total


def _write_skip_norm(fusion: _Fusion) -> bool:
    if fusion.gives(1) or fusion.gives(2):
        return False
    _, _, gamma, beta, bias = fusion.inputs[:5]
    _add_norm(fusion, _add_sum(fusion, bias), gamma, beta)
    return fusion.end()


def _add_rms_norm(fusion: _Fusion, source: str, gamma: str, epsilon: float) -> None:
    """x / sqrt(mean(x^2) + epsilon) * gamma over the last axis, as onnxruntime fuses it."""
    square = fusion.add("Pow", source, 2.0)
    if fusion.opset >= MEAN_AXES_OPSET:
        axes = fusion.writer.constant("last_axis", np.array([-1], np.int64))
        mean = fusion.add("ReduceMean", square, axes, keepdims=1)
    else:
        mean = fusion.add("ReduceMean", square, axes=[-1], keepdims=1)
    made = fusion.add("Div", source, fusion.add("Sqrt", fusion.add("Add", mean, epsilon)))
    fusion.add("Mul", made, gamma, main=True)


def _write_rms_norm(fusion: _Fusion) -> bool:
    rank = fusion.ranks.get(fusion.inputs[0])
    if fusion.attribute("axis", -1) not in (-1, None if rank is None else rank - 1) or fusion.gives(1):
        return False
    source, gamma = fusion.inputs[:2]
    _add_rms_norm(fusion, source, gamma, fusion.attribute("epsilon", RMS_EPSILON))
    return fusion.end()


def _write_skip_rms_norm(fusion: _Fusion) -> bool:
    if fusion.gives(1) or fusion.gives(2):
        return False
    _, _, gamma, bias = fusion.inputs[:4]
    _add_rms_norm(fusion, _add_sum(fusion, bias), gamma, fusion.attribute("epsilon", NORM_EPSILON))
    return fusion.end()


def _write_embed_norm(fusion: _Fusion) -> bool:
    ids, segments, words, positions, segment_table, gamma, beta, _, given = fusion.inputs[:9]
    if fusion.gives(1) or fusion.gives(2):
        return False
    total = fusion.add("Gather", words, ids, axis=0)
    if given:
        places = fusion.add("Gather", positions, given, axis=0)
    else:
        zero, one = (fusion.writer.constant(f"row_{value}", np.array([value], np.int64)) for value in (0, 1))
        length = fusion.add("Gather", fusion.add("Shape", ids), one, axis=0)
        places = fusion.add("Slice", positions, zero, length, zero)
    total = fusion.add("Add", total, places)
    if segments:
        total = fusion.add("Add", total, fusion.add("Gather", segment_table, segments, axis=0))
    _add_norm(fusion, total, gamma, beta)
    return fusion.end()


def _write_attention(fusion: _Fusion) -> bool:
    """Attention of constant weights, without a mask or a past: three layers, and two products of activations."""
    source, stored, bias = fusion.inputs[:3]
    weight, offset = (constant(fusion.writer.index, name) if name else None for name in (stored, bias))
    plain = not any(fusion.inputs[number] for number in (3, 4, 6)) and not fusion.gives(1)
    if weight is None or not plain or fusion.attribute("unidirectional", 0) or fusion.attribute("do_rotary", 0):
        return False
    heads = fusion.attribute("num_heads", 1)
    sizes = list(fusion.attribute("qkv_hidden_sizes", None) or [weight.shape[1] // 3] * 3)
    ends = np.cumsum(sizes)[:-1]
    parts = np.split(weight, ends, axis=1)
    offsets = [None] * 3 if offset is None else np.split(offset, ends)
    made = []
    for letter, part, own, size in zip("qkv", parts, offsets, sizes, strict=True):
        name = fusion.writer.constant(f"{stored}_{letter}", np.ascontiguousarray(part))
        tensor = fusion.add("MatMul", source, name, main=letter == "q")
        if own is not None:
            tensor = fusion.add("Add", tensor, fusion.writer.constant(f"{bias}_{letter}", np.ascontiguousarray(own)))
        shape = np.array([0, 0, heads, size // heads], np.int64)
        tensor = fusion.add("Reshape", tensor, fusion.writer.constant(f"heads_{heads}_{size}", shape))
        made.append(fusion.add("Transpose", tensor, perm=[0, 2, 3, 1] if letter == "k" else [0, 2, 1, 3]))
    scale = fusion.attribute("scale", 0.0) or (sizes[0] // heads) ** -0.5
    scores = fusion.add("Mul", fusion.add("MatMul", made[0], made[1]), scale)
    if fusion.inputs[5]:
        scores = fusion.add("Add", scores, fusion.inputs[5])
    mixed = fusion.add("MatMul", fusion.add("Softmax", scores, axis=-1), made[2])
    shape = np.array([0, 0, sizes[2]], np.int64)
    whole = fusion.writer.constant(f"hidden_{sizes[2]}", shape)
    fusion.add("Reshape", fusion.add("Transpose", mixed, perm=[0, 2, 1, 3]), whole)
    return fusion.end()


_WRITERS: dict[str, Callable[[_Fusion], bool]] = {
    "FusedConv": _write_conv,
    "FusedGemm": _write_gemm,
    "FusedMatMul": _write_matmul,
    "Gelu": _write_gelu,
    "BiasGelu": _write_gelu,
    "FastGelu": _write_fast_gelu,
    "QuickGelu": _write_quick_gelu,
    "SkipLayerNormalization": _write_skip_norm,
    RMS_NORM: _write_rms_norm,
    "SkipSimplifiedLayerNormalization": _write_skip_rms_norm,
    "EmbedLayerNormalization": _write_embed_norm,
    "Attention": _write_attention,
}
