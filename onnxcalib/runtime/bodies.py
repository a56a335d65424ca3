"""Control flow run step by step: what the bodies of an If, a Loop or a Scan read in a run of the model around them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TypeProto, ValueInfoProto, helper

from ..errors import ModelError
from ..graph.bodies import Body, extract_body, match_captured
from ..graph.extract import extract, infer_types
from ..graph.index import Index, attribute_of
from ..graph.shapes import recorded_shape
from ..graph.values import read_values
from .session import Session

Values = dict[str, np.ndarray]


class ControlFlow:
    """One node with bodies, in a model of which single runs are followed into them."""

    def __init__(self, model: ModelProto, around: ModelProto, bodies: Sequence[Body], *, threads: int = 0):
        """Raises ModelError where onnxruntime refuses a part of a model.

        model: the float model, whose bodies run. around: the model that gives what they read, ``model`` itself or its
        quantized form, in which the node's bodies are as they were. bodies: those of the one node to follow.
        """
        self._model, self._bodies, self._threads = model, {body.attribute: body for body in bodies}, threads
        self._sessions: dict[str, Session] = {}
        index, owner = Index(around.graph), bodies[0].owner
        self._node: NodeProto = index.nodes[owner]
        before = Index(model.graph)
        pairs = [(_graph(before.nodes[owner], name), _graph(self._node, name)) for name in self._bodies]
        self._names: dict[str, str] = {}
        for old, new in pairs:
            self._names |= match_captured(old, new)
        self._names = {name: now for name, now in self._names.items() if name not in before.initializers}
        wanted = dict.fromkeys([*filter(None, self._node.input), *self._names.values()])
        constants = index.initializers
        self._constants = {name: np.asarray(read_values(constants[name])) for name in wanted if name in constants}
        made = [name for name in wanted if name in index.producer]
        self._given = [name for name in wanted if name in index.inputs]
        self._front = None
        if made:
            part = extract(around, infer_types(around), inputs=index.inputs, outputs=made, index=index)
            self._front = Session(part, name=f"the model in front of {owner}", threads=threads)

    def follow(self, feeds: Mapping[str, Any]) -> Iterator[tuple[str, Values]]:
        """(attribute, what the body reads) for each time that a body runs in one run of the model.

        Raises ModelError where a value is no array, or onnxruntime cannot run a body.
        """
        values = {**self._constants, **{name: feeds[name] for name in self._given}}
        if self._front is not None:
            values |= self._front.run(feeds)
        own = [values[name] if name else None for name in self._node.input]
        outer = {name: values[now] for name, now in self._names.items()}
        if self._node.op_type == "If":
            taken = "then_branch" if bool(np.asarray(own[0]).reshape(-1)[0]) else "else_branch"
            if taken in self._bodies:
                yield taken, self._check(self._pick(taken, outer))
        elif self._node.op_type == "Loop":
            yield from self._loop(own, outer)
        else:
            yield from self._scan(own, outer)

    def _pick(self, attribute: str, outer: Mapping[str, Any]) -> dict[str, Any]:
        return {name: outer[name] for name in self._bodies[attribute].captured if name in outer}

    def _loop(self, own: Sequence[Any], outer: Mapping[str, Any]) -> Iterator[tuple[str, Values]]:
        """The turns of a Loop (operator Loop of ONNX): as many as its trip count, while its condition holds."""
        (attribute,) = self._bodies
        inputs = _graph(self._node, attribute).input
        names = [value.name for value in inputs]
        most = None if own[0] is None else int(np.asarray(own[0]).reshape(-1)[0])
        going = own[1] is None or bool(np.asarray(own[1]).reshape(-1)[0])
        carried, turn, fixed = list(own[2:]), 0, self._pick(attribute, outer)
        while going and (most is None or turn < most):
            turns = [
                _as_declared(np.array(turn, np.int64), inputs[0]),
                _as_declared(np.array(True), inputs[1]),
                *carried,
            ]
            given = self._check({**dict(zip(names, turns, strict=True)), **fixed})
            yield attribute, given
            outputs = self._run(attribute, given)
            going, carried, turn = bool(np.asarray(outputs[0]).reshape(-1)[0]), outputs[1 : 1 + len(carried)], turn + 1

    def _scan(self, own: Sequence[Any], outer: Mapping[str, Any]) -> Iterator[tuple[str, Values]]:
        """The turns of a Scan (operator Scan of ONNX, from opset 9 on): one for each slice of its scanned inputs."""
        (attribute,) = self._bodies
        names = [value.name for value in _graph(self._node, attribute).input]
        scanned = attribute_of(self._node, "num_scan_inputs", 1)
        state, rest = list(own[: len(own) - scanned]), [np.asarray(value) for value in own[len(own) - scanned :]]
        axes = attribute_of(self._node, "scan_input_axes", [0] * scanned)
        backward = attribute_of(self._node, "scan_input_directions", [0] * scanned)
        fixed = self._pick(attribute, outer)
        turns = [
            np.moveaxis(value, axis, 0)[:: -1 if back else 1]
            for value, axis, back in zip(rest, axes, backward, strict=True)
        ]
        for slices in zip(*turns, strict=True):
            given = self._check({**dict(zip(names, [*state, *slices], strict=True)), **fixed})
            yield attribute, given
            state = self._run(attribute, given)[: len(state)]

    def _run(self, attribute: str, given: Values) -> list[Any]:
        """The outputs of a body, in their order."""
        if attribute not in self._sessions:
            types = {name: tensor_type(value.dtype, None) for name, value in given.items()}
            part = extract_body(self._model, self._bodies[attribute], types)
            self._sessions[attribute] = Session(part, name=self._bodies[attribute].path, threads=self._threads)
        session = self._sessions[attribute]
        return [*session.run(given).values()]

    def _check(self, values: Mapping[str, Any]) -> Values:
        for name, value in values.items():
            if not isinstance(value, (np.ndarray, np.generic)):
                kind = "a sequence" if isinstance(value, list) else "an optional value" if value is None else "no array"
                raise ModelError(f"its input {name} is {kind}; bodies that read arrays alone are quantized")
        return {name: np.ascontiguousarray(value).reshape(np.shape(value)) for name, value in values.items()}


def tensor_type(dtype: Any, shape: Sequence[int | None] | None) -> TypeProto:
    """The type of a tensor; None for an open dimension, or for any rank."""
    return helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)


def _as_declared(value: np.ndarray, declared: ValueInfoProto) -> np.ndarray:
    """One value with as many axes as a body declares, which onnxruntime gives it: none, or one of size 1."""
    return value.reshape([1] * len(recorded_shape(declared) or ()))


def _graph(node: NodeProto, attribute: str) -> Any:
    return attribute_of(node, attribute, None)
