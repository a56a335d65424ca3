"""Which axes of a graph's tensors count the tokens of a sequence, followed from its inputs operator by operator."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from onnx import ModelProto, NodeProto

from .index import Index, attribute_of, constant, is_op, subgraphs
from .shapes import Shape, infer_shapes

Axes = tuple[int, ...]
# Sizes that stand for open numbers of samples and of tokens where a Reshape is followed: primes that no model has.
SAMPLES, TOKENS = 1_000_003, 1_000_033
# What these give are numbers about a tensor, and no places of it.
NO_PLACES = ("ConstantOfShape", "NonZero", "Range", "Shape", "Size")
RESHAPES = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")


def find_tokens(model: ModelProto, inputs: Iterable[str], length: int | None = None) -> dict[str, Axes]:
    """Tensor -> its axes of tokens, of those that have some; of ``inputs`` it is axis 1, ``length`` long if fixed.

    Tensors whose samples are not on axis 0, as those of query, key and value in one may be, are left out.
    Axis 0 stands for samples and tokens in one where it is longer than ``length``, else for the tokens alone. An axis
    is one of tokens by what the operators do, and not by its length: a feature axis may be as long.
    """
    follower = _Follower(model, length)
    follower.axes.update({name: (1,) for name in inputs if name in follower.index.inputs})
    for node in model.graph.node:
        follower.follow(node)
    return {tensor: axes for tensor, axes in follower.axes.items() if tensor not in follower.moved}


class _Follower:
    """The axes known so far, and the rules by which an operator's outputs have theirs.

    moved: tensors with another axis in front of the samples.
    """

    def __init__(self, model: ModelProto, length: int | None) -> None:
        self.index, self.shapes, self.length = Index(model.graph), infer_shapes(model), length
        self.axes: dict[str, Axes] = {}
        self.moved: set[str] = set()

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
                if self._moves(node, [name in self.moved for name in read]):
                    self.moved.add(output)

    def _moves(self, node: NodeProto, moved: list[bool]) -> bool:
        """Whether the outputs' samples are not on axis 0, by whether those of the inputs with tokens are not."""
        if is_op(node, "Transpose"):
            return moved[0] != (next(iter(attribute_of(node, "perm", None) or ()), -1) != 0)
        first = (self.shapes.get(node.input[0]) or (None,))[0]
        taken = is_op(node, "Gather") and attribute_of(node, "axis", 0) == 0 and self._rank(node.input[1]) == 0
        return any(moved) and not taken and not (is_op(node, "Squeeze") and first == 1)

    def _rule(self, node: NodeProto) -> Callable[[NodeProto, str], Iterable[int]]:
        rules = {
            **dict.fromkeys(RESHAPES, self._reshape),
            **dict.fromkeys(("ArgMax", "ArgMin"), self._reduce),
            **{"Transpose": self._transpose, "MatMul": self._multiply, "Gemm": self._gemm, "Gather": self._gather},
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
        """Behind a body, which is not followed: axis 1 of what looks like (samples, tokens, features)."""
        shape = self.shapes.get(name, ())
        return (1,) if len(shape) > 2 and shape[1] == self.length else ()

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

    def _reduce(self, node: NodeProto, output: str) -> list[int]:
        own, rank = self._of(node.input[0]), self._rank(node.input[0])
        over = attribute_of(node, "axes", None)
        if node.op_type.startswith("Arg"):
            over = [attribute_of(node, "axis", 0)]
        elif over is None and len(node.input) > 1 and node.input[1]:
            over = constant(self.index, node.input[1])
        if over is None or rank is None:
            return []
        gone = {int(axis) % rank for axis in over}
        kept = [axis for axis in own if axis not in gone]
        if attribute_of(node, "keepdims", 1):
            return kept
        return [axis - sum(each < axis for each in gone) for axis in kept]

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
        return self._guess(output) if sizes is None else _follow_reshape(own, *sizes, self.length or TOKENS)

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
        return SAMPLES * length if axis == 0 else length


def _follow_reshape(own: Axes, before: Sequence[int], after: Sequence[int], length: int) -> list[int]:
    """Axes of the tokens behind a Reshape: runs of axes that hold as many values belong together."""
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
            merged = axis == 0 and before[0] != length
            ahead = math.prod(before[first:axis])
            for place in range(start, j):
                alike = after[place] == length and math.prod(after[start:place]) == ahead and not merged
                apart = merged and start == 0 and place == 1 and after[1] == length
                whole = place == start == first == 0 and j == 1 and (i == 1 if merged else (axis, i) == (1, 2))
                if alike or apart or whole:
                    found.append(place)
                    break
    return found
