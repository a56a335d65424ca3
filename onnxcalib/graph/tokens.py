"""Which axes of a graph's tensors count the tokens of a sequence, followed from its inputs operator by operator."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from onnx import ModelProto, NodeProto

from .index import Index, attribute_of, constant, is_op, subgraphs
from .shapes import Shape, infer_shapes

Axes = tuple[int, ...]
# Sizes that stand for open numbers of samples and of tokens where a Reshape is followed: primes that no model has.
SAMPLES, TOKENS = 1_000_003, 1_000_033
# What these give are numbers about a tensor, and no places of it.
NO_PLACES = ("ConstantOfShape", "NonZero", "Range", "Shape", "Size")
RESHAPES = ("Flatten", "Reshape", "Unsqueeze")


class TokenAxes(NamedTuple):
    """Axes of a tensor that count tokens, and the one that counts samples; None where axis 0 counts both in one."""

    tokens: Axes
    samples: int | None = 0


def find_tokens(model: ModelProto, inputs: Iterable[str], shape: Shape = (None, None)) -> dict[str, TokenAxes]:
    """Tensor -> its axes, of those that count tokens; ``inputs`` are (samples, tokens, ...), as in ``shape``.

    An axis is one of tokens by what the operators do, and not by its length: a feature axis may be as long.
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
    """The axes of one kind known so far, and the rules by which an operator's outputs have theirs.

    length: theirs, if fixed. merges: they come second, and axis 0 may count what comes first and them in one.
    """

    def __init__(self, index: Index, shapes: dict[str, Shape], length: int | None, *, merges: bool) -> None:
        self.index, self.shapes, self.length, self.merges = index, shapes, length, merges
        self.axes: dict[str, Axes] = {}

    def follow(self, node: NodeProto) -> None:
        """The axes of the node's outputs."""
        read = [name for name in node.input if name in self.axes]
        bodies = any(True for _ in subgraphs(node))
        if (not read and not bodies) or is_op(node, *NO_PLACES):
            return
        rule = self._rule(node)
        for output in node.output:
            found = self._guess(output) if bodies else rule(node, output)
            found = [axis for axis in sorted(set(found)) if self._fits(output, axis)]
            if found:
                self.axes[output] = tuple(found)

    def _rule(self, node: NodeProto) -> Callable[[NodeProto, str], Iterable[int]]:
        rules = {
            **dict.fromkeys(RESHAPES, self._reshape),
            **dict.fromkeys(("ArgMax", "ArgMin"), self._reduce),
            **{
                "Transpose": self._transpose,
                "Squeeze": self._squeeze,
                "MatMul": self._multiply,
                "Gemm": self._gemm,
                "Gather": self._gather,
            },
            **{"Einsum": self._sum_products, "OneHot": self._keep},
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
        """Behind a body, which is not followed: what looks like (samples, tokens, features) is taken for it."""
        shape, axis = self.shapes.get(name, ()), int(self.merges)
        return (axis,) if len(shape) > 2 and shape[axis] == self.length else ()

    def _align(self, node: NodeProto, output: str) -> Iterable[int]:
        """As broadcasting has it: axes count from the last one."""
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
        return [place for place, axis in enumerate(order) if axis in own]

    def _multiply(self, node: NodeProto, output: str) -> Iterable[int]:
        left, right = node.input
        ranks = [self._rank(name) for name in (left, right)]
        if None in ranks or min(ranks) < 2:
            yield from (axis for axis in self._of(left) if ranks[0] is None or axis < ranks[0] - 1)
            return
        rank = max(ranks)
        yield from (axis + rank - ranks[0] for axis in self._of(left) if axis != ranks[0] - 1)
        yield from (axis + rank - ranks[1] for axis in self._of(right) if axis != ranks[1] - 2)

    def _gemm(self, node: NodeProto, output: str) -> Axes:
        return (0,) if 0 in self._of(node.input[0]) and not attribute_of(node, "transA", 0) else ()

    def _gather(self, node: NodeProto, output: str) -> Iterable[int]:
        data, indices = node.input
        ranks = [self._rank(name) for name in (data, indices)]
        axis = attribute_of(node, "axis", 0)
        if None in ranks:
            return
        axis %= ranks[0]
        yield from (axis + own for own in self._of(indices))
        yield from (own if own < axis else own + ranks[1] - 1 for own in self._of(data) if own != axis)

    def _reduce(self, node: NodeProto, output: str) -> Iterable[int]:
        over = [attribute_of(node, "axis", 0)] if node.op_type.startswith("Arg") else self._listed(node)
        rank = self._rank(node.input[0])
        if over is None or rank is None:
            return ()
        gone = {int(axis) % rank for axis in over}
        kept = [axis for axis in self._of(node.input[0]) if axis not in gone]
        return kept if attribute_of(node, "keepdims", 1) else _shift(kept, gone)

    def _squeeze(self, node: NodeProto, output: str) -> Iterable[int]:
        over, rank = self._listed(node), self._rank(node.input[0])
        if over is None or rank is None:
            return self._reshape(node, output)
        return _shift(self._of(node.input[0]), {int(axis) % rank for axis in over})

    def _listed(self, node: NodeProto) -> Sequence[int] | None:
        """The operator's axes, an attribute or an input by its opset; None where they are not written down."""
        if len(node.input) > 1 and node.input[1]:
            return constant(self.index, node.input[1])
        return attribute_of(node, "axes", None)

    def _sum_products(self, node: NodeProto, output: str) -> list[int]:
        before, arrow, after = attribute_of(node, "equation", b"").decode().replace(" ", "").partition("->")
        terms = before.split(",")
        if not arrow or "." in before:
            return []
        letters = {term[axis] for term, name in zip(terms, node.input, strict=True) for axis in self._of(name)}
        return [axis for axis, letter in enumerate(after) if letter in letters]

    def _reshape(self, node: NodeProto, output: str) -> Iterable[int]:
        own, shapes = self._of(node.input[0]), [self.shapes.get(name) for name in (node.input[0], output)]
        if not own:
            return ()
        sizes = None if None in shapes else self._fill(own, *shapes)
        if sizes is None:
            return self._guess(output)
        return _follow_reshape(own, *sizes, self.length or TOKENS, merges=self.merges)

    def _fill(self, own: Axes, before: Shape, after: Shape) -> tuple[list[int], list[int]] | None:
        """Both shapes with numbers for what is open; None where more than one of the latter is left."""
        length = self.length or TOKENS
        given = [size or self._open(own, axis, length) for axis, size in enumerate(before)]
        total, known = math.prod(given), [size for size in after if size is not None]
        unknown = [axis for axis, size in enumerate(after) if size is None]
        filled = list(after)
        if len(unknown) > 1 and unknown[0] == 0 and before[0] is None:
            filled[0] = given[0]
            known.append(given[0])
            unknown = unknown[1:]
        if len(unknown) > 1 or 0 in known or total % math.prod(known):
            return None
        for axis in unknown:
            filled[axis] = total // math.prod(known)
        return given, filled

    def _open(self, own: Axes, axis: int, length: int) -> int:
        if axis not in own:
            return SAMPLES if axis == 0 else TOKENS + axis
        return SAMPLES * length if axis == 0 and self.merges else length


def _shift(axes: Iterable[int], gone: set[int]) -> list[int]:
    """The axes when those of ``gone`` are taken out, which are none of them."""
    return [axis - sum(each < axis for each in gone) for axis in axes]


def _follow_reshape(own: Axes, before: Sequence[int], after: Sequence[int], length: int, *, merges: bool) -> list[int]:
    """Axes behind a Reshape: runs of axes that hold as many values belong together."""
    found, i, j = [], 0, 0
    while i < len(before) and j < len(after):
        first, start = i, j
        sizes = [before[i], after[j]]
        i, j = i + 1, j + 1
        while sizes[0] != sizes[1]:
            if sizes[0] < sizes[1] and i < len(before):
                sizes[0], i = sizes[0] * before[i], i + 1
            elif sizes[1] < sizes[0] and j < len(after):
                sizes[1], j = sizes[1] * after[j], j + 1
            else:
                return found
        for axis in (axis for axis in own if first <= axis < i):
            merged = merges and axis == 0 and before[0] != length
            ahead = math.prod(before[first:axis])
            if axis == 0 and not merges:  # samples stay in front
                places = [0]
            elif merged:  # as they are, or samples and tokens apart again
                places = [0] if (i, j) == (1, 1) else [1] if after[1] == length else []
            elif merges and (axis, i, j) == (1, 2, 1):  # samples and tokens become one
                places = [0]
            else:
                places = [p for p in range(start, j) if after[p] == length and math.prod(after[start:p]) == ahead]
            found += places[:1]
    return found
