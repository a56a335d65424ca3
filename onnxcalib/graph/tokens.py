"""Which axes of a graph's tensors count the tokens of a sequence, followed from its inputs operator by operator."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from onnx import ModelProto, NodeProto

from .index import Index, attribute_of, constant, is_op, subgraphs
from .shapes import Shape, infer_shapes

Axes = tuple[int, ...]
# Sizes that stand for unknown numbers of samples and of tokens where a Reshape is followed: primes that no model has.
SAMPLES, TOKENS = 1_000_003, 1_000_033
# These give numbers about a tensor, which have none of its axes.
WITHOUT_AXES = ("ConstantOfShape", "NonZero", "Range", "Shape", "Size")
RESHAPES = ("Flatten", "Reshape", "Unsqueeze")


class TokenAxes(NamedTuple):
    """Axes of a tensor that count tokens, and the axis that counts samples; None where axis 0 merges both."""

    tokens: Axes
    samples: int | None = 0


def find_tokens(model: ModelProto, inputs: Iterable[str], shape: Shape = (None, None)) -> dict[str, TokenAxes]:
    """The axes of each tensor that counts tokens; ``inputs`` have axes (samples, tokens, ...) of the sizes ``shape``.

    Axes are followed through what the operators do, and not told by their length: a feature axis may be as long.
    """
    index, shapes = Index(model.graph), infer_shapes(model)
    given = [name for name in inputs if name in index.inputs]
    tokens, samples = (
        _Follower(index, shapes, length, merges=merges) for length, merges in ((shape[1], True), (shape[0], False))
    )
    for axis, follower in ((1, tokens), (0, samples)):
        follower.axes.update(dict.fromkeys(given, (axis,)))
        for node in model.graph.node:
            follower.follow(node)
    found = {}
    for tensor, axes in tokens.axes.items():
        first = [axis for axis in samples.axes.get(tensor, ()) if axis not in axes]
        if len(first) == 1:
            found[tensor] = TokenAxes(axes, first[0])
        elif axes == samples.axes.get(tensor) == (0,):
            found[tensor] = TokenAxes(axes, None)
    return found


class _Follower:
    """Follows the axes of one kind, samples or tokens, from the inputs of each operator to its outputs.

    axes: of the tensors met so far. length: the size of the followed axes, if it is fixed. merges: tokens are followed,
    which come second, so that axis 0 may count samples and tokens merged into one.
    """

    def __init__(self, index: Index, shapes: dict[str, Shape], length: int | None, *, merges: bool) -> None:
        self.index, self.shapes, self.length, self.merges = index, shapes, length, merges
        self.axes: dict[str, Axes] = {}

    def follow(self, node: NodeProto) -> None:
        """Find the axes of the node's outputs."""
        read = [name for name in node.input if name in self.axes]
        bodies = any(True for _ in subgraphs(node))
        if (not read and not bodies) or is_op(node, *WITHOUT_AXES):
            return
        rule = self._rule(node)
        for output in node.output:
            found = self._guess(output) if bodies else rule(node, output)
            found = [axis for axis in sorted(set(found)) if self._fits(output, axis)]
            if found:
                self.axes[output] = tuple(found)

    def _rule(self, node: NodeProto) -> Callable[[NodeProto, str], Iterable[int]]:
        rules: dict[str, Callable[[NodeProto, str], Iterable[int]]] = {
            **dict.fromkeys(RESHAPES, self._reshape),
            **dict.fromkeys(("ArgMax", "ArgMin"), self._reduce),
            "Transpose": self._transpose,
            "Squeeze": self._squeeze,
            "MatMul": self._multiply,
            "Gemm": self._gemm,
            "Gather": self._gather,
            "Einsum": self._sum_products,
            "OneHot": self._keep,
        }
        if node.op_type.startswith("Reduce"):
            return self._reduce
        return rules.get(node.op_type, self._align) if not node.domain else self._align

    def _of(self, name: str) -> Axes:
        return self.axes.get(name, ())

    def _rank(self, name: str) -> int | None:
        return len(self.shapes[name]) if name in self.shapes else None

    def _fits(self, name: str, axis: int) -> bool:
        """Whether the axis, as far as its length is known, can count tokens."""
        if name not in self.shapes:
            return True
        shape = self.shapes[name]
        if axis >= len(shape):
            return False
        size = shape[axis]
        return size is None or self.length is None or size == self.length or (axis == 0 and size % self.length == 0)

    def _guess(self, name: str) -> Axes:
        """Take a tensor that has the shape of (samples, tokens, features) for one, as behind a body."""
        shape, axis = self.shapes.get(name, ()), int(self.merges)
        return (axis,) if len(shape) > 2 and shape[axis] == self.length else ()

    def _align(self, node: NodeProto, output: str) -> Iterable[int]:
        """Axes of all inputs, counted from the last one as in broadcasting."""
        rank = self._rank(output)
        for name in node.input:
            own = self._rank(name)
            shift = 0 if rank is None or own is None else rank - own
            yield from (axis + shift for axis in self._of(name) if shift >= 0)

    def _keep(self, node: NodeProto, output: str) -> Axes:
        return self._of(node.input[0])

    def _transpose(self, node: NodeProto, output: str) -> list[int]:
        own = self._of(node.input[0])
        order = attribute_of(node, "perm", None) or list(reversed(range(self._rank(node.input[0]) or 0)))
        return [position for position, axis in enumerate(order) if axis in own]

    def _multiply(self, node: NodeProto, output: str) -> Iterable[int]:
        left, right = node.input
        left_rank, right_rank = self._rank(left), self._rank(right)
        if left_rank is None or right_rank is None or min(left_rank, right_rank) < 2:
            yield from (axis for axis in self._of(left) if left_rank is None or axis < left_rank - 1)
            return
        rank = max(left_rank, right_rank)
        yield from (axis + rank - left_rank for axis in self._of(left) if axis != left_rank - 1)
        yield from (axis + rank - right_rank for axis in self._of(right) if axis != right_rank - 2)

    def _gemm(self, node: NodeProto, output: str) -> Axes:
        return (0,) if 0 in self._of(node.input[0]) and not attribute_of(node, "transA", 0) else ()

    def _gather(self, node: NodeProto, output: str) -> Iterable[int]:
        data, indices = node.input
        data_rank, indices_rank = self._rank(data), self._rank(indices)
        if data_rank is None or indices_rank is None:
            return
        axis = attribute_of(node, "axis", 0) % data_rank
        yield from (axis + own for own in self._of(indices))
        yield from (own if own < axis else own + indices_rank - 1 for own in self._of(data) if own != axis)

    def _reduce(self, node: NodeProto, output: str) -> Iterable[int]:
        over = [attribute_of(node, "axis", 0)] if node.op_type.startswith("Arg") else self._written_axes(node)
        rank = self._rank(node.input[0])
        if over is None or rank is None:
            return ()
        gone = {axis % rank for axis in over}
        kept = [axis for axis in self._of(node.input[0]) if axis not in gone]
        return kept if attribute_of(node, "keepdims", 1) else _shift(kept, gone)

    def _squeeze(self, node: NodeProto, output: str) -> Iterable[int]:
        over, rank = self._written_axes(node), self._rank(node.input[0])
        if over is None or rank is None:
            return self._reshape(node, output)
        return _shift(self._of(node.input[0]), {axis % rank for axis in over})

    def _written_axes(self, node: NodeProto) -> list[int] | None:
        """The operator's axes, an attribute or an input by its opset; None where they are no constants."""
        if len(node.input) > 1 and node.input[1]:
            axes = constant(self.index, node.input[1])
        else:
            axes = attribute_of(node, "axes", None)
        return None if axes is None else [int(axis) for axis in axes]

    def _sum_products(self, node: NodeProto, output: str) -> list[int]:
        before, arrow, after = attribute_of(node, "equation", b"").decode().replace(" ", "").partition("->")
        terms = before.split(",")
        if not arrow or "." in before:
            return []
        letters = {term[axis] for term, name in zip(terms, node.input, strict=True) for axis in self._of(name)}
        return [axis for axis, letter in enumerate(after) if letter in letters]

    def _reshape(self, node: NodeProto, output: str) -> Iterable[int]:
        own, before, after = self._of(node.input[0]), self.shapes.get(node.input[0]), self.shapes.get(output)
        if not own:
            return ()
        sizes = None if before is None or after is None else self._fill(own, before, after)
        if sizes is None:
            return self._guess(output)
        return _Reshape(*sizes, self.length or TOKENS, self.merges).follow(own)

    def _fill(self, own: Axes, before: Shape, after: Shape) -> tuple[list[int], list[int]] | None:
        """Both shapes with numbers for unknown sizes; None where more than one of ``after`` is left."""
        length = self.length or TOKENS
        given = [size or self._stand_in(own, axis, length) for axis, size in enumerate(before)]
        total, known = math.prod(given), [size for size in after if size is not None]
        unknown = [axis for axis, size in enumerate(after) if size is None]
        first = None
        if len(unknown) > 1 and unknown[0] == 0 and before[0] is None:
            first = given[0]
            known.append(first)
            unknown = unknown[1:]
        if len(unknown) > 1 or 0 in known or total % math.prod(known):
            return None
        rest = total // math.prod(known)
        filled = [rest if size is None else size for size in after]
        if first is not None:
            filled[0] = first
        return given, filled

    def _stand_in(self, own: Axes, axis: int, length: int) -> int:
        """The number that stands for the unknown size of an axis."""
        if axis not in own:
            return SAMPLES if axis == 0 else TOKENS + axis
        return SAMPLES * length if axis == 0 and self.merges else length


def _shift(axes: Iterable[int], gone: set[int]) -> list[int]:
    """The numbers of axes once those of ``gone``, which are others, are taken out."""
    return [axis - sum(each < axis for each in gone) for axis in axes]


class _Run(NamedTuple):
    """Neighbouring axes of the input of a Reshape, and those of its output that hold the same values."""

    before: range
    after: range


@dataclass(frozen=True)
class _Reshape:
    """A Reshape between two shapes of known numbers; ``length`` and ``merges`` are those of ``_Follower``."""

    before: Sequence[int]
    after: Sequence[int]
    length: int
    merges: bool

    def follow(self, own: Axes) -> list[int]:
        """The axes of the output that are the axes ``own`` of the input."""
        found = (self._find_axis(axis, run) for run in self._match_runs() for axis in own if axis in run.before)
        return [axis for axis in found if axis is not None]

    def _match_runs(self) -> Iterator[_Run]:
        """The shortest runs of axes from the left that have as many values before and after."""
        i = j = 0
        while i < len(self.before) and j < len(self.after):
            first_before, first_after = i, j
            size_before, size_after = self.before[i], self.after[j]
            i, j = i + 1, j + 1
            while size_before != size_after:
                if size_before < size_after and i < len(self.before):
                    size_before, i = size_before * self.before[i], i + 1
                elif size_after < size_before and j < len(self.after):
                    size_after, j = size_after * self.after[j], j + 1
                else:
                    return
            yield _Run(range(first_before, i), range(first_after, j))

    def _find_axis(self, axis: int, run: _Run) -> int | None:
        if axis == 0 and not self.merges:
            return 0  # samples stay in front
        if axis == 0 and self.before[0] != self.length:
            return self._part_samples(run)
        if axis == 1 and self.merges and run == _Run(range(2), range(1)):
            return 0  # samples and tokens are merged
        values_ahead = math.prod(self.before[run.before.start : axis])
        for candidate in run.after:
            ahead = math.prod(self.after[run.after.start : candidate])
            if self.after[candidate] == self.length and ahead == values_ahead:
                return candidate
        return None

    def _part_samples(self, run: _Run) -> int | None:
        """The axis of tokens where axis 0 merged samples and tokens: it stays as it is, or they are parted again."""
        if run == _Run(range(1), range(1)):
            return 0
        return 1 if len(self.after) > 1 and self.after[1] == self.length else None
