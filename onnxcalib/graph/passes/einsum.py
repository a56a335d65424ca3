"""Write Einsums that are products of matrices as MatMul, between the Transposes and Reshapes that they take."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from string import ascii_letters

import numpy as np
from onnx import ModelProto, NodeProto

from ..index import attribute_of, constant, is_op
from ..shapes import Shape, infer_shapes
from ..writer import Writer

ELLIPSIS = "..."


@dataclass(frozen=True)
class _Letters:
    """The axes of a product of two operands: first and second those of one operand alone, which the output keeps.

    batch: of both and the output. summed: of both, but not of the output; in the order of the first operand.
    """

    operands: tuple[str, str]
    output: str
    batch: str
    summed: str
    first: str
    second: str


def einsum_as_matmul(model: ModelProto) -> int:
    """Rewrite Einsums of two operands that sum over an axis which both have; returns how many were rewritten.

    A constant operand may have several summed axes and several of its own, which are one each of its matrix, and one
    batch axis. Two activations have one axis of each kind beside their batch axes. Others stay, such as those of three
    operands, with an axis that only one operand has and that is summed, or with an ellipsis for axes whose number is
    not known. The MatMul has the name.
    """
    writer = Writer(model)
    shapes = cache(partial(infer_shapes, model))
    for node in model.graph.node:
        letters = _read(node, shapes) if is_op(node, "Einsum") else None
        if letters is None or not _write(writer, node, letters):
            writer.keep(node)
    return writer.finish()


def _read(node: NodeProto, shapes: Callable[[], Mapping[str, Shape]]) -> _Letters | None:
    left, arrow, output = attribute_of(node, "equation", b"").decode().replace(" ", "").partition("->")
    operands = tuple(left.split(","))
    if len(operands) != 2:
        return None
    if not arrow:
        once = {letter for letter in left if left.count(letter) == 1} - {",", "."}
        output = (ELLIPSIS if ELLIPSIS in left else "") + "".join(sorted(once))
    if ELLIPSIS in left:
        ranks = [len(shapes()[name]) if name in shapes() else None for name in node.input]
        spelled = _spell_ellipsis((*operands, output), ranks)
        if spelled is None:
            return None
        *spelled, output = spelled
        operands = tuple(spelled)
    one, other = operands
    if any(len(set(letters)) < len(letters) for letters in (one, other, output)):
        return None
    batch = "".join(letter for letter in output if letter in one and letter in other)
    summed = "".join(letter for letter in one if letter in other and letter not in output)
    first, second = ("".join(x for x in output if x in own and x not in batch) for own in (one, other))
    if not summed or len(batch + summed + first) < len(one) or len(batch + summed + second) < len(other):
        return None
    return _Letters((one, other), output, batch, summed, first, second)


def _spell_ellipsis(terms: Sequence[str], ranks: Sequence[int | None]) -> list[str] | None:
    """The terms of an equation, the output last, with letters for each ellipsis; None where their number is unknown.

    ranks: of the operands. The last of the axes that ellipses stand for are the same in all terms.
    """
    counts = []
    for term, rank in zip(terms, ranks, strict=False):
        if ELLIPSIS in term:
            if rank is None:
                return None
            counts.append(rank - len(term.replace(ELLIPSIS, "")))
    spare = "".join(letter for letter in ascii_letters if letter not in "".join(terms))
    most = max(counts)
    if min(counts) < 0 or most > len(spare) or ELLIPSIS not in terms[-1]:
        return None
    wanted = iter([*counts, most])
    return [t.replace(ELLIPSIS, spare[most - next(wanted) : most]) if ELLIPSIS in t else t for t in terms]


def _write(writer: Writer, node: NodeProto, letters: _Letters) -> bool:
    values = [constant(writer.index, name) for name in node.input]
    if values[0] is None and values[1] is None:
        return _write_activations(writer, node, letters)
    if values[0] is not None and values[1] is not None:
        return False
    if values[0] is not None:  # the constant second, as a product may be read either way
        one, other = letters.operands
        summed = "".join(letter for letter in other if letter in letters.summed)
        letters = _Letters((other, one), letters.output, letters.batch, summed, letters.second, letters.first)
        return _write_constant(writer, node, letters, node.input[1], node.input[0])
    return _write_constant(writer, node, letters, node.input[0], node.input[1])


def _write_activations(writer: Writer, node: NodeProto, letters: _Letters) -> bool:
    if not len(letters.summed) == len(letters.first) == len(letters.second) == 1:
        return False
    one, other = letters.operands
    left = _order(writer, node, node.input[0], one, letters.batch + letters.first + letters.summed)
    right = _order(writer, node, node.input[1], other, letters.batch + letters.summed + letters.second)
    made = writer.add(node, "MatMul", left, right, main=True)
    _order(writer, node, made, letters.batch + letters.first + letters.second, letters.output)
    writer.end(node.output[0])
    return True


def _write_constant(writer: Writer, node: NodeProto, letters: _Letters, source: str, stored: str) -> bool:
    """``source`` times a matrix, or a stack of them, of ``stored``; False where its axes make none."""
    value = constant(writer.index, stored)
    assert value is not None
    _, own = letters.operands
    if value.dtype != np.float32 or value.ndim != len(own) or not letters.first:
        return False
    sizes = dict(zip(own, value.shape, strict=True))
    if any(sizes[letter] < 2 for letter in letters.batch + letters.summed):  # an axis of 1 is spread, or sums nothing
        return False
    if len(letters.batch) > 1 or (letters.batch and len(letters.first) > 2):
        return False
    kept = letters.first[:1] + letters.batch + letters.first[1:] if letters.batch else letters.first
    made = _order(writer, node, source, letters.operands[0], kept + letters.summed)
    depth = math.prod(sizes[letter] for letter in letters.summed)
    widths = [sizes[letter] for letter in letters.second]
    if len(letters.summed) > 1:
        made = writer.add(node, "Reshape", made, _numbers(writer, [*[0] * len(kept), depth]))
    lone = bool(letters.batch) and len(letters.first) == 1  # each row of the stack's input is a matrix of one row
    if lone:
        made = writer.add(node, "Unsqueeze", made, _numbers(writer, [2]))
    made = writer.add(node, "MatMul", made, _store(writer, value, letters, stored, depth), main=True)
    if lone:
        made = writer.add(node, "Squeeze", made, _numbers(writer, [2]))
    if not widths:
        made = writer.add(node, "Squeeze", made, _numbers(writer, [-1]))
    if len(widths) > 1:
        made = writer.add(node, "Reshape", made, _numbers(writer, [*[0] * len(kept), *widths]))
    _order(writer, node, made, kept + letters.second, letters.output)
    writer.end(node.output[0])
    return True


def _store(writer: Writer, value: np.ndarray, letters: _Letters, stored: str, depth: int) -> str:
    """The constant as a matrix (summed axes, own axes), or a stack of them along its batch axis."""
    own = letters.operands[1]
    order = letters.batch + letters.summed + letters.second
    matrix = value.transpose([own.index(letter) for letter in order])
    matrix = matrix.reshape(*(value.shape[own.index(letter)] for letter in letters.batch), depth, -1)
    return writer.constant(f"{stored}_{own}_{order}", np.ascontiguousarray(matrix))


def _order(writer: Writer, node: NodeProto, tensor: str, letters: str, wanted: str) -> str:
    """The tensor with its axes in the wanted order."""
    if letters == wanted:
        return tensor
    return writer.add(node, "Transpose", tensor, perm=[letters.index(letter) for letter in wanted])


def _numbers(writer: Writer, values: Sequence[int]) -> str:
    return writer.constant(f"numbers_{'_'.join(map(str, values))}", np.array(values, np.int64))
