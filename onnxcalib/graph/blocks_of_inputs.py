"""Blocks of inputs that share a scale, and zero points, in the weights of layers that read float.

onnxruntime runs these layers as MatMulNBits. For some of its formats it has no fast kernel.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from ..config import COLUMN, FULL_BITS, LayerConfig
from ..errors import ConfigError
from ..spec import LayerScheme, Requirements
from .names import Selection
from .ops import MATRIX_LAYERS, RECURRENT

# Inputs that share a scale in weights of few bits: with 4 bits the error of 384 correlated normal inputs is 2.4 dB less
# than with 128 of them, for a fifth more bytes.
FLOAT_INPUT_BLOCK = 32
# Blocks for which onnxruntime 1.32 has fast kernels of 2 bits. Others take 80 times as long (1,024 x 1,024, one row:
# 6 to 9 ms, and .04 to .08 ms for these).
TWO_BIT_BLOCKS = (32, 64, 128)


def give_blocks(
    layers: Sequence[LayerScheme],
    block_size: int | str | None,
    requirements: Requirements,
    *,
    symmetric: bool,
    selection: Selection | None = None,
) -> tuple[LayerScheme, ...]:
    """Give blocks, or zero points, to the layers for which onnxruntime has a kernel that takes them.

    block_size: number of inputs that share a scale in a MatMul, Gemm or recurrent layer that reads float, or COLUMN for
    one scale a channel; None is that for 8-bit weights, and for others the target's own, or FLOAT_INPUT_BLOCK.
    symmetric: whether such weights have no zero points; those of recurrent layers never have any. selection: has block
    sizes of single layers, which override the other. Raises
    ConfigError where no layer can have them, or not fast.
    """
    matrices = {layer.name for layer in layers if layer.reads_float and layer.op in MATRIX_LAYERS}
    fit = matrices.union(layer.name for layer in layers if layer.reads_float and layer.op in RECURRENT)
    for setting, value, able in (
        ("block_size", block_size, fit),
        ("weight_symmetry", None if symmetric else "asymmetric", matrices),
    ):
        if value is not None and not able:
            raise ConfigError(
                f"{setting}: found {value}, and no layer to use it; those of a MatMul or Gemm with activation_bits 32"
                " have it; leave it out"
            )
    chosen = dict((selection or Selection()).layers)
    _check_used(chosen, {layer.name for layer in layers}, fit)
    own = {name: each.block_size for name, each in chosen.items()}
    usual = (requirements.blocks or (FLOAT_INPUT_BLOCK,))[0] if requirements.in_blocks else None

    def give(layer: LayerScheme) -> LayerScheme:
        if layer.name not in fit:
            return layer
        bits = layer.weight_spec.bits
        size = own.get(layer.name) or block_size
        block = (usual if bits < FULL_BITS else None) if size is None else _read(size)
        if layer.name in matrices:
            _check_fast(layer, block, symmetric=symmetric)
        centred = symmetric or layer.name not in matrices
        negative = centred and block is not None and bits < FULL_BITS and requirements.negative_scales
        spec = replace(layer.weight_spec, block=block, symmetric=centred, signed_scale=negative)
        return replace(layer, weight_spec=spec)

    return tuple(map(give, layers))


def _read(block_size: int | str) -> int | None:
    return None if block_size == COLUMN else int(block_size)


def _check_used(chosen: Mapping[str, LayerConfig], layers: Collection[str], fit: Collection[str]) -> None:
    """Raise ConfigError for blocks of single layers where none of those that an entry names can have them."""
    named: dict[int, list[str]] = {}  # one entry may select several layers
    for name, each in chosen.items():
        if each.block_size not in (None, COLUMN):
            named.setdefault(id(each), []).append(name)
    for names in named.values():
        if all(name in layers and name not in fit for name in names):
            raise ConfigError(
                f"layers: {names[0]!r}: block_size: found {chosen[names[0]].block_size}, and no layer to use it; a"
                " MatMul or Gemm with activation_bits 32 has it; leave it out"
            )


def _check_fast(layer: LayerScheme, block: int | None, *, symmetric: bool) -> None:
    """Raise ConfigError for 2 bits in a format for which onnxruntime has no fast kernel."""
    if layer.weight_spec.bits != 2:
        return
    if block is not None and block not in TWO_BIT_BLOCKS:
        allowed = ", ".join(map(str, TWO_BIT_BLOCKS))
        raise ConfigError(
            f"block_size: found {block} beside 2-bit weights of layer {layer.name}; onnxruntime computes them 80 times"
            f" more slowly than others; give {allowed} or {COLUMN}"
        )
    if not symmetric:  # fast with AVX-512; with AVX2 alone 12.6 ms, and .04 to .07 ms without zero points
        raise ConfigError(
            f"weight_symmetry: found asymmetric beside 2-bit weights of layer {layer.name}; onnxruntime computes them"
            " 100 times more slowly on some processors; give symmetric, or 3 or more bits"
        )
