"""New nodes and constants of a graph that is written as QDQ, under names that it does not have yet."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from functools import partial

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from ..spec import QuantSpec
from .edit import take_name, write_attributes
from .ops import DEQUANTIZE
from .packed import Packing, pack_rows
from .weight_file import FileIntegers, store_integers


class NewNodes:
    """Makes nodes, and collects the new initializers in ``written``. taken: names that the graph has."""

    def __init__(self, taken: Collection[str]) -> None:
        self.written: list[TensorProto] = []
        self._taken = set(taken)
        self._shared: dict[str, str] = {}

    def name(self, name: str) -> str:
        """The name itself, numbered where the graph has it already; it is taken from now on."""
        return take_name(name, self._taken)

    def write(self, name: str, values: np.ndarray) -> str:
        """An initializer of this very name."""
        self.written.append(numpy_helper.from_array(np.asarray(values, order="C"), name))
        return name

    def constant(self, name: str, values: np.ndarray) -> str:
        """Name of a new initializer."""
        return self.write(self.name(name), values)

    def integers(
        self, name: str, values: np.ndarray | FileIntegers, spec: QuantSpec, shape: Sequence[int] | None = None
    ) -> str:
        """Name of a new initializer of a weight's integers, in another shape than theirs if one is given."""
        values = values.pack(spec) if isinstance(values, FileIntegers) else values
        if not isinstance(values, FileIntegers):
            return self.constant(name, store_integers(values if shape is None else values.reshape(shape), spec))
        self.written.append(values.store(self.name(name), shape))
        return self.written[-1].name

    def steps(self, name: str, values: np.ndarray | FileIntegers, form: tuple[int, np.ndarray], spec: QuantSpec) -> str:
        """Name of a new initializer of ``steps q + added`` of a weight's integers q, for ``form`` (steps, added)."""
        steps, added = form

        def move(integers: np.ndarray) -> np.ndarray:
            return store_integers(steps * integers + added, spec)

        return self._packed(name, values, (steps, added.tobytes()), move)

    def packed(self, name: str, values: np.ndarray | FileIntegers, packing: Packing, *, flat: bool = False) -> str:
        """Name of a new initializer of the bytes of a matrix (inputs, outputs). flat: without an axis of blocks."""

        def pack(integers: np.ndarray) -> np.ndarray:
            packed = packing.pack(integers)
            return packed.reshape(len(packed), -1) if flat else packed

        return self._packed(name, values, (packing, flat), pack)

    def packed_rows(self, name: str, values: np.ndarray | FileIntegers, bits: int) -> str:
        """Name of a new initializer of the bytes of a table (rows, width)."""
        return self._packed(name, values, bits, partial(pack_rows, bits=bits))

    def _packed(
        self, name: str, values: np.ndarray | FileIntegers, form: Hashable, pack: Callable[[np.ndarray], np.ndarray]
    ) -> str:
        if not isinstance(values, FileIntegers):
            return self.constant(name, pack(values))
        self.written.append(values.store_packed(self.name(name), form, pack))
        return self.written[-1].name

    def shared_constant(self, name: str, values: np.ndarray) -> str:
        """Name of the one initializer for all nodes that ask for this name."""
        if name not in self._shared:
            self._shared[name] = self.constant(name, values)
        return self._shared[name]

    def node(self, op: str, inputs: Sequence[str], output: str, prefix: str, **attributes: float) -> NodeProto:
        """A node that is in no graph yet."""
        node = helper.make_node(op, inputs, [output], name=self.name(f"{prefix}_{op}"))
        write_attributes(node, dict(sorted(attributes.items())))
        return node

    def dequantize(
        self, name: str, integers: str, scale: np.ndarray, zero_point: np.ndarray, spec: QuantSpec
    ) -> NodeProto:
        """DequantizeLinear of a constant; scales of groups of inputs lie along the axis that is not the channels'.

        zero_point: of the type of the integers, and of one value or of the shape of ``scale``.
        """
        scale = np.asarray(scale, np.float32)
        zeros = self.constant(f"{name}_zero_point", np.broadcast_to(zero_point, scale.shape))
        inputs = [integers, self.constant(f"{name}_scale", scale), zeros]
        attributes = {}
        if spec.axis is not None:
            attributes["axis"] = spec.axis if spec.block is None else 1 - spec.axis
        if spec.block is not None:
            attributes["block_size"] = spec.block
        return self.node(DEQUANTIZE, inputs, name, name, **attributes)
