"""Find the residual stream of pre-norm transformers: what all blocks add to, and what norms alone read.

A rotation of its channels leaves what the model computes, if it is folded into all that writes into the stream and into
all that reads it (Ashkboos et al. 2024, SliceGPT, section 3). A norm lies between the stream and its readers. It
commutes with an orthogonal matrix that keeps the vector of ones, once its own scale is folded into its readers: mean
and deviation of ``x Q`` are those of x.

Every tensor is followed with the axis of its channels. Where a node is not understood the whole stream is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from onnx import NodeProto, TensorProto

from .channel_norms import ChannelNorm, Operand
from .index import Index, attribute_of, constant, is_op
from .ops import SHAPE_READERS

Shape = tuple[int, ...]
# Operators that write the values of their first input in the same order, on other axes.
RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
REDUCTIONS = ("ReduceMean", "ReduceSum")
# Operators that move whole channels, by operands behind the first that are no values, and along axes of their own.
ALONG = ("Slice", "Split", "Gather", *REDUCTIONS)


class Writer(NamedTuple):
    """A weight or another constant that writes into the stream, with its bias, and the Mul by channel behind both."""

    operands: tuple[Operand, ...]
    scale: str | None = None


class Reader(NamedTuple):
    """A weight that reads the stream, and what can take the constant that a norm adds in front of it, if anything."""

    weight: Operand
    bias: Operand | None = None


class Norm(NamedTuple):
    """A norm on the stream, and all that reads what it gives."""

    made: ChannelNorm
    readers: tuple[Reader, ...]


class Stream(NamedTuple):
    """tensors: all activations that have other values when rotated. readers: those without a norm in front."""

    width: int
    tensors: tuple[str, ...]
    writers: tuple[Writer, ...]
    norms: tuple[Norm, ...]
    readers: tuple[Reader, ...]


class _Refusal(Exception):
    """Why a stream cannot be rotated."""


def find_streams(
    index: Index, shapes: Mapping[str, Shape], norms: Iterable[ChannelNorm]
) -> tuple[list[Stream], dict[str, str]]:
    """All residual streams of a graph, and of the others the first norm that reads them, with the reason.

    shapes: those of all tensors in a run. norms: see ``find_channel_norms``.
    """
    streams, refused, seen = list[Stream](), dict[str, str](), set[str]()
    parts = {name: norm for norm in norms for name in norm.nodes}
    for norm in dict.fromkeys(parts.values()):
        if norm.source in seen:
            continue
        finder = _Finder(index, shapes, parts)
        try:
            streams.append(finder.find(norm))
        except _Refusal as why:
            refused[norm.node] = str(why)
        seen |= finder.stream.keys()
    return streams, refused


class _Finder:
    """Follows one stream in both directions. stream, normed: activation -> the axis of its channels.

    parts: node -> the norm that it is, or is one of the nodes of.
    """

    def __init__(self, index: Index, shapes: Mapping[str, Shape], parts: Mapping[str, ChannelNorm]) -> None:
        self.index, self.shapes, self.parts = index, shapes, parts
        self.stream: dict[str, int] = {}
        self.normed: dict[str, int] = {}
        self.waiting: list[str] = []
        self.writers: list[Writer] = []
        self.norms: dict[str, Norm] = {}
        self.readers: list[Reader] = []
        self.width = 0

    def find(self, norm: ChannelNorm) -> Stream:
        """The stream that a norm reads. Raises _Refusal."""
        shape = self._shape(norm.source)
        self.width = shape[-1]
        if norm.source in self.index.initializers:
            raise _Refusal("it is a constant")
        self._add(norm.source, len(shape) - 1)
        while self.waiting:
            tensor = self.waiting.pop()
            if tensor in self.index.outputs:
                raise _Refusal(f"the model gives {tensor}, which lies on it")
            self._look_back(tensor)
            for node in self.index.readers(tensor):
                self._look_ahead(node, tensor)
        if not any(self.norms[name].readers for name in self.norms):
            raise _Refusal("no layer reads it")
        self._check_alone()
        inside = dict.fromkeys(tensor for norm in self.norms.values() for tensor in norm.made.inside)
        tensors = (*self.stream, *inside, *self.normed, *self._list_between())
        return Stream(self.width, tensors, tuple(self.writers), tuple(self.norms.values()), tuple(self.readers))

    def _list_between(self) -> dict[str, None]:
        """What lies off the stream but is another too: in front of a Mul by channel, and of a bias that takes a shift.

        Comparisons by name with the model that was given would tell of an error there that is none.
        """
        ahead = [each for writer in self.writers if writer.scale is not None for each in writer.operands]
        for norm in self.norms.values():
            ahead += [
                each.weight for each in norm.readers if each.bias is not None and each.bias.node != each.weight.node
            ]
        return dict.fromkeys(self.index.nodes[each.node].output[0] for each in ahead)

    def _shape(self, tensor: str) -> Shape:
        if tensor not in self.shapes:
            raise _Refusal(f"the shape of {tensor} is not known")
        return self.shapes[tensor]

    def _take(self, node: NodeProto, number: int, axis: int) -> None:
        """What a node reads as this input lies on the stream: an activation, or a constant that writes into it."""
        tensor = node.input[number]
        if self._shape(tensor)[axis : axis + 1] != (self.width,):
            raise _Refusal(f"{tensor}, which {node.name} adds, has not {self.width} channels")
        if tensor in self.index.initializers:
            self._write(Operand(node.name, number, axis))
        else:
            self._add(tensor, axis)

    def _add(self, tensor: str, axis: int) -> None:
        """An activation lies on the stream."""
        if tensor not in self.stream:
            self.waiting.append(tensor)
        if self.stream.setdefault(tensor, axis) != axis:
            raise _Refusal(f"{tensor} has its channels along two axes")

    def _write(self, *operands: Operand, scale: str | None = None) -> None:
        if all(operands[0] not in writer.operands for writer in self.writers):
            self.writers.append(Writer(operands, scale))

    def _look_back(self, tensor: str) -> None:
        """Take what makes an activation of the stream."""
        node, axis = self.index.producer.get(tensor), self.stream[tensor]
        if node is None:
            raise _Refusal(f"the model reads {tensor}, which lies on it")
        if node.name in self.parts:
            raise _Refusal(f"norm {self.parts[node.name].node} writes into it")
        if self._is_sum(node):
            rank = len(self._shape(tensor))
            for number, name in enumerate(node.input):
                self._take(node, number, axis - rank + len(self._shape(name)))
        elif layer := self._find_layer(tensor, axis):
            self._write(*layer)
        elif is_op(node, "Mul"):
            self._look_back_at_scale(node, tensor)
        elif is_op(node, "Gather") and node.input[0] in self.index.initializers:
            if attribute_of(node, "axis", 0) != 0 or axis != len(self._shape(tensor)) - 1:
                raise _Refusal(f"{node.name} takes channels")
            self._take(node, 0, len(self._shape(node.input[0])) - 1)
        elif is_op(node, "Concat"):
            if attribute_of(node, "axis", 0) % len(self._shape(tensor)) == axis:
                raise _Refusal(f"{node.name} joins channels")
            for number in range(len(node.input)):
                self._take(node, number, axis)
        elif self._moves(node):
            before = self._shape(node.input[0])
            found = [a for a, size in enumerate(before) if size == self.width and self._follow(node, a) == axis]
            if len(found) != 1:
                raise _Refusal(f"where channels lie in front of {node.name} is not known")
            self._take(node, 0, found[0])
        else:
            raise _Refusal(f"{node.op_type} {node.name} writes into it")

    def _is_sum(self, node: NodeProto) -> bool:
        return is_op(node, "Add", "Sub")

    def _find_layer(self, tensor: str, axis: int) -> tuple[Operand, ...]:
        """The constants of the layer, of one group, that makes a tensor; none where it is made otherwise.

        The bias in a later Add is not among them.
        """
        node = self.index.producer.get(tensor)
        if node is None or len(node.input) < 2 or node.input[1] not in self.index.initializers:
            return ()
        rank, dims = len(self._shape(tensor)), self._shape(node.input[1])
        if is_op(node, "MatMul") and len(dims) == 2 and axis == rank - 1:
            return (Operand(node.name, 1, 1),)
        if is_op(node, "Gemm") and axis == 1:
            weight = Operand(node.name, 1, 0 if attribute_of(node, "transB", 0) else 1)
        elif is_op(node, "Conv") and axis == 1 and attribute_of(node, "group", 1) == 1:
            weight = Operand(node.name, 1, 0)
        else:
            return ()
        if len(node.input) < 3 or not node.input[2]:
            return (weight,)
        bias = self.shapes.get(node.input[2], ())
        fits = node.input[2] in self.index.initializers and bias[-1:] == (self.width,)
        return (weight, Operand(node.name, 2, len(bias) - 1)) if fits else ()

    def _look_back_at_scale(self, node: NodeProto, tensor: str) -> None:
        """Take a Mul by one value, or by channels behind a layer and the bias in an Add."""
        axis, rank = self.stream[tensor], len(self._shape(tensor))
        number = next((n for n, name in enumerate(node.input) if name in self.index.initializers), None)
        if number is None:
            raise _Refusal(f"Mul {node.name} of two activations writes into it")
        factor, source = self._shape(node.input[number]), node.input[1 - number]
        if math.prod(factor) == 1:
            self._take(node, 1 - number, axis)
            return
        made, operands = source, list[Operand]()
        before = self.index.producer.get(made)
        if before is not None and is_op(before, "Add"):
            side = next((n for n, name in enumerate(before.input) if name in self.index.initializers), None)
            if side is not None and self._shape(before.input[side])[-1:] == (self.width,) and axis == rank - 1:
                operands.append(Operand(before.name, side, len(self._shape(before.input[side])) - 1))
                made = before.input[1 - side]
        layer = self._find_layer(made, axis)
        alone = all(len(self.index.readers(t)) == 1 and t not in self.index.outputs for t in (source, made))
        if not layer or not alone or math.prod(factor) != self.width or factor[axis - rank :][:1] != (self.width,):
            raise _Refusal(f"Mul {node.name} scales channels of it")
        self._write(*layer, *operands, scale=node.name)

    def _moves(self, node: NodeProto) -> bool:
        """Whether a node takes whole channels of its first input to other places, or reduces other axes."""
        same = is_op(node, "Cast") and attribute_of(node, "to", 0) == TensorProto.FLOAT  # as exporters put it in front
        return same or is_op(node, *RESHAPES, *ALONG, "Transpose", "Identity", "Expand")

    def _follow(self, node: NodeProto, axis: int) -> int | None:
        """The axis on which channels lie behind a node that ``_moves``; None where it does not keep them whole."""
        before, after = self._shape(node.input[0]), self._shape(node.output[0])
        if is_op(node, "Transpose"):
            perm = list(attribute_of(node, "perm", [*range(len(before))][::-1]))
            return perm.index(axis)
        if is_op(node, *RESHAPES):
            ahead = math.prod(before[:axis])
            fits = [a for a, size in enumerate(after) if size == self.width and math.prod(after[:a]) == ahead]
            return fits[0] if len(fits) == 1 else None
        if is_op(node, "Identity", "Cast", "Expand"):
            return axis + len(after) - len(before)
        axes = self._read_axes(node, len(before))
        if axes is None or axis in axes:
            return None
        behind = len(before) - axis  # what is cut, joined or gone lies on one side
        ahead_only = all(each < axis for each in axes)
        if len(after) == len(before):
            return axis
        return len(after) - behind if ahead_only else axis if all(each > axis for each in axes) else None

    def _read_axes(self, node: NodeProto, rank: int) -> set[int] | None:
        """The axes along which a node cuts, takes or reduces; None where they are not known."""
        if is_op(node, "Gather", "Split"):
            return {attribute_of(node, "axis", 0) % rank}
        number = 3 if is_op(node, "Slice") else 1
        axes = attribute_of(node, "axes", None)
        if axes is None:
            known = constant(self.index, node.input[number]) if len(node.input) > number else None
            axes = None if known is None else known.tolist()
        return None if axes is None else {int(axis) % rank for axis in axes}

    def _look_ahead(self, node: NodeProto, tensor: str) -> None:
        """Take what a reader of the stream makes of it."""
        axis, rank = self.stream[tensor], len(self._shape(tensor))
        if is_op(node, *SHAPE_READERS):
            return
        if node.name in self.parts:
            self._take_norm(self.parts[node.name], tensor)
        elif self._is_sum(node):
            self._add(node.output[0], axis - rank + len(self._shape(node.output[0])))
        elif is_op(node, "Concat"):
            self._add(node.output[0], axis)
        elif is_op(node, "Mul") and any(
            name in self.index.initializers and math.prod(self._shape(name)) == 1 for name in node.input
        ):
            self._add(node.output[0], axis - rank + len(self._shape(node.output[0])))
        elif self._moves(node) and node.input[0] == tensor and list(node.input).count(tensor) == 1:
            after = self._follow(node, axis)
            if after is None:
                raise _Refusal(f"{node.op_type} {node.name} takes its channels apart")
            for output in node.output:
                self._add(output, after)
        elif reader := self._find_reader(node, tensor, axis):
            self.readers.append(reader)
        else:
            raise _Refusal(f"{node.op_type} {node.name} reads it without a norm")

    def _take_norm(self, norm: ChannelNorm, tensor: str) -> None:
        """Take a norm of the stream's channels, and all that reads it; once, though several of its nodes may read."""
        if norm.node in self.norms and norm.source == tensor:
            return
        rank = len(self._shape(tensor))
        last = norm.axis % rank == rank - 1 == self.stream[tensor]
        if not last or not norm.fixed or norm.source != tensor:
            raise _Refusal(f"norm {norm.node} is not one of its channels by constants")
        readers, waiting = list[Reader](), [(norm.output, rank - 1)]
        while waiting:
            made, axis = waiting.pop()
            self.normed[made] = axis
            if made in self.index.outputs:
                raise _Refusal(f"the model gives what norm {norm.node} makes of it")
            for each in self.index.readers(made):
                if is_op(each, *SHAPE_READERS):
                    continue
                after = self._follow(each, axis) if self._moves(each) and each.input[0] == made else None
                reader = self._find_reader(each, made, axis)
                if after is not None:
                    waiting += [(output, after) for output in each.output]
                elif reader is not None:
                    readers.append(reader)
                else:
                    raise _Refusal(f"{each.op_type} {each.name} reads norm {norm.node}")
        self.norms[norm.node] = Norm(norm, tuple(readers))

    def _find_reader(self, node: NodeProto, tensor: str, axis: int) -> Reader | None:
        """The weight by which a layer of one group reads a tensor; None for all other nodes."""
        if len(node.input) < 2 or node.input[0] != tensor or node.input[1] not in self.index.initializers:
            return None
        rank, dims = len(self._shape(tensor)), self._shape(node.input[1])
        if is_op(node, "MatMul") and len(dims) == 2 and axis == rank - 1:
            made = self.index.readers(node.output[0])
            if len(made) == 1 and is_op(made[0], "Add") and node.output[0] not in self.index.outputs:
                number = 1 - list(made[0].input).index(node.output[0])
                shape = self._shape(made[0].input[number])
                if made[0].input[number] in self.index.initializers and shape[-1:] == dims[1:]:
                    return Reader(Operand(node.name, 1, 0), Operand(made[0].name, number, len(shape) - 1))
            return Reader(Operand(node.name, 1, 0))
        if is_op(node, "Gemm") and axis == 1 and not attribute_of(node, "transA", 0):
            own = len(node.input) < 3 or not node.input[2] or node.input[2] in self.index.initializers
            plain = attribute_of(node, "alpha", 1.0) == 1 == attribute_of(node, "beta", 1.0)
            bias = Operand(node.name, 2, -1) if own and plain else None
            return Reader(Operand(node.name, 1, 1 if attribute_of(node, "transB", 0) else 0), bias)
        if is_op(node, "Conv") and axis == 1 and attribute_of(node, "group", 1) == 1:
            return Reader(Operand(node.name, 1, 1))
        return None

    def _check_alone(self) -> None:
        """Refuse weights that other nodes read too: a rotated copy would be another weight."""
        readers = [norm_reader for norm in self.norms.values() for norm_reader in norm.readers]
        operands = [r.weight for r in (*readers, *self.readers)] + [w.operands[0] for w in self.writers]
        for each in operands:
            name = self.index.nodes[each.node].input[each.number]
            dims = self.index.initializers[name].dims
            users = [node.name for node in self.index.readers(name)]
            if (len(dims) > 1 and users != [each.node]) or name in self.index.outputs:
                others = ", ".join(user for user in users if user != each.node) or each.node
                raise _Refusal(f"{others} reads {name} too")
            if operands.count(each) > 1:
                raise _Refusal(f"{each.node} reads and writes it")
