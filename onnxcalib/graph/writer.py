"""Write several nodes in the place of one: the form that most rewrites of single operators have."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper

from .edit import add_constant, refill, take_name
from .index import Index, list_names


class Writer:
    """The nodes of a graph as they are written anew, one after the other.

    A pass calls ``keep`` for a node that stays. For another it calls ``add`` for each node in its place, one of which
    has its name, and then ``end``. ``finish`` puts all nodes into the graph.
    """

    def __init__(self, model: ModelProto) -> None:
        self.graph, self.index = model.graph, Index(model.graph)
        self.count = 0
        self._model = model
        self._nodes: list[NodeProto] = []
        self._constants: dict[str, str] = {}

    def keep(self, node: NodeProto) -> None:
        """Leave a node as it is."""
        self._nodes.append(node)

    def add(self, node: NodeProto, op: str, *inputs: str, main: bool = False, **attributes: Any) -> str:
        """Write a node for ``node``, under its name if it is the ``main`` one; returns the node's output."""
        output = self._name(f"{node.output[0]}_{op}")
        name = node.name if main else self._name(f"{node.name}_{op}")
        text = node.doc_string if main else None
        self._nodes.append(helper.make_node(op, inputs, [output], name=name, doc_string=text, **attributes))
        return output

    def constant(self, name: str, value: np.ndarray | Collection[int]) -> str:
        """An initializer of about this name, which stands for one value: of a second call with it the first is used."""
        if name not in self._constants:
            self._constants[name] = add_constant(self.graph, self._name(name), np.asarray(value))
        return self._constants[name]

    def end(self, output: str) -> None:
        """Let the last node that was written make ``output``."""
        self._nodes[-1].output[0] = output
        self.count += 1

    def finish(self) -> int:
        """Put the nodes into the graph, if any is new; returns how many nodes were replaced."""
        if self.count:
            refill(self.graph.node, self._nodes)
        return self.count

    @cached_property
    def _taken(self) -> set[str]:
        return list_names(self._model)

    def _name(self, name: str) -> str:
        return take_name(name, self._taken)
