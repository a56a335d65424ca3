"""The bits of activations: of each set of tensors that share a grid, by what reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..config import FULL_BITS, WIDE_BITS
from ..spec import LayerScheme, QuantSpec, Requirements
from .fusion import carried_outputs, moves_values
from .index import Index, is_op
from .ops import SHAPE_READERS
from .sharing import Sets

FixedGrids = dict[str, tuple[float, int]]  # tensor -> scale and zero point


def widen_layers(layers: tuple[LayerScheme, ...], shared: Sets, tensors: Mapping[str, int]) -> tuple[LayerScheme, ...]:
    """The layers, those of 8 bits that read one of the tensors of 16 bits, or what shares its grid, with as many."""
    wide = {name for name, bits in tensors.items() if bits == WIDE_BITS}
    wide |= {t for members in shared if not wide.isdisjoint(members) for t in members}
    return tuple(
        replace(layer, activation_spec=replace(layer.activation_spec, bits=WIDE_BITS))
        if layer.input in wide and layer.activation_spec.bits == FULL_BITS
        else layer
        for layer in layers
    )


def assign_bits(
    index: Index,
    layers: tuple[LayerScheme, ...],
    tensors: tuple[list[str], dict[str, frozenset[str]]],
    shared: Sets,
    *,
    spec: QuantSpec,
    tensor_bits: Mapping[str, int] | None = None,
) -> tuple[dict[str, QuantSpec], dict[str, QuantSpec]]:
    """The grid of each tensor, and the grid of fewer bits for which it is requantized.

    A set of tensors that only layers read has the bits of these layers. Others have 8 or more, and are requantized for
    the layers that need fewer. Constants have the bits of what is computed with them. tensors: those that are
    quantized, and who reads them in float. spec: of any bits; its own are those of all tensors that other nodes than
    layers read. tensor_bits: more bits, of single tensors.
    """
    quantized, float_reads = tensors
    bits_of = {layer.name: layer.activation_spec.bits for layer in layers if layer.on_grid}
    tensor_bits = tensor_bits or {}
    set_of = {t: members for members in shared for t in members}
    activations: dict[str, QuantSpec] = {}
    requantized: dict[str, QuantSpec] = {}
    for tensor in quantized:
        if tensor not in activations:
            members = set_of.get(tensor, (tensor,))
            needs = _bits_needed(index, members, bits_of, float_reads, others=spec.bits)
            needs.update(tensor_bits[t] for t in members if t in tensor_bits)
            bits = needs.pop() if len(needs) == 1 else max({spec.bits, *needs})
            activations |= {t: replace(spec, bits=bits) for t in members}
    _give_constants_bits(index, activations, set_of, given=tensor_bits)
    for tensor in quantized:
        bits = activations[tensor].bits
        fewer = {bits_of[n.name] for n in index.readers(tensor) if bits_of.get(n.name, bits) < bits}
        if fewer:
            requantized[tensor] = replace(spec, bits=min(fewer))
    return {t: activations[t] for t in quantized}, requantized


def _give_constants_bits(
    index: Index,
    activations: dict[str, QuantSpec],
    set_of: Mapping[str, tuple[str, ...]],
    *,
    given: Mapping[str, int],
) -> None:
    """Sets of constants have 16 bits where an operator that reads one of them gives 16, unless bits are given."""
    for tensor in [t for t in activations if t in index.initializers]:
        members = set_of.get(tensor, (tensor,))
        if not given.keys().isdisjoint(members) or not index.initializers.keys() >= set(members):
            continue
        made = [t for member in members for node in index.readers(member) for t in carried_outputs(index, node)]
        if any(t in activations and activations[t].bits == WIDE_BITS for t in made):
            activations |= {t: replace(activations[t], bits=WIDE_BITS) for t in members if t in activations}


def _bits_needed(
    index: Index,
    members: tuple[str, ...],
    bits_of: dict[str, int],
    float_reads: dict[str, frozenset[str]],
    *,
    others: int,
) -> set[int]:
    """Bits that the readers of a set of tensors need, without readers that move values inside the set.

    others: the bits that readers need which are no layers.
    """
    inside = set(members)
    needs = {others for t in members if t in index.outputs and t not in float_reads}
    for tensor, node in ((t, n) for t in members for n in index.readers(t)):
        if node.name in bits_of:
            needs.add(bits_of[node.name])
        elif is_op(node, *SHAPE_READERS) or node.name in float_reads.get(tensor, ()):
            continue
        elif not (is_op(node, "Concat") or moves_values(index, node)) or inside.isdisjoint(
            carried_outputs(index, node)
        ):
            needs.add(others)
    return needs


def find_fixed(
    index: Index, activations: Mapping[str, QuantSpec], shared: Sets, requirements: Requirements
) -> FixedGrids:
    """The tensors whose grid the target fixes at their bits, as an operator gives them or what shares their grid."""
    members_of = {t: members for members in shared for t in members}
    found: FixedGrids = {}
    for tensor, spec in activations.items():
        node = index.producer.get(tensor)
        if node is not None and not node.domain and (node.op_type, spec.bits) in requirements.fixed_grids:
            grid = requirements.fixed_grids[node.op_type, spec.bits]
            found |= dict.fromkeys(members_of.get(tensor, (tensor,)), grid)
    return found


def list_fixed(index: Index, requirements: Requirements) -> set[str]:
    """The tensors whose grid the target fixes at some bits."""
    operators = {op for op, _ in requirements.fixed_grids}
    return {t for t, node in index.producer.items() if is_op(node, *operators)}
