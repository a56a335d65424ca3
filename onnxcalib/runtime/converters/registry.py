"""Register converters with onnx2torch. This is the only module that imports it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import NamedTuple

from torch import Tensor, nn

__all__ = [
    "OWN_DOMAIN",
    "OWN_VERSION",
    "Converted",
    "OnnxGraph",
    "OnnxNode",
    "convert",
    "get_converter",
    "has_one_output",
    "initializer",
    "refuse_unless",
    "register",
    "repeat",
    "torchvision_stand_in",
]

# Domain of the nodes that only exist in the copy of a block that is handed to onnx2torch.
OWN_DOMAIN = "onnxcalib"
OWN_VERSION = 1


@contextmanager
def torchvision_stand_in() -> Iterator[None]:
    """Let ``import torchvision`` succeed inside this context, with an empty module if the real one cannot be imported.

    onnx2torch imports torchvision for NonMaxSuppression and RoiAlign only, and a torchvision that was built for CUDA
    cannot be imported beside a CPU torch. The stand-in is removed from sys.modules on exit. With it the two operators
    fail when they are executed.
    """
    try:
        importlib.import_module("torchvision")
    except Exception:  # absent (ImportError), built for another torch (RuntimeError) or without its libraries (OSError)
        stand_in, operators = ModuleType("torchvision"), ModuleType("torchvision.ops")
        vars(stand_in).update(ops=operators)
        vars(operators).update(roi_align=None)
        placed = {"torchvision": stand_in, "torchvision.ops": operators}
        before = {name: sys.modules.pop(name) for name in placed if name in sys.modules}
        sys.modules.update(placed)
        try:
            yield
        finally:
            for name in placed:
                del sys.modules[name]
            sys.modules.update(before)
    else:
        yield


with torchvision_stand_in():
    from onnx2torch import convert
    from onnx2torch.node_converters import registry as _registry
    from onnx2torch.node_converters.registry import get_converter
    from onnx2torch.onnx_graph import OnnxGraph
    from onnx2torch.onnx_node import OnnxNode
    from onnx2torch.utils.common import OnnxMapping, OperationConverterResult


class Converted(NamedTuple):
    """A module, and those of the node's input tensors that its ``forward`` takes, in order."""

    module: nn.Module
    inputs: tuple[str, ...]


Build = Callable[[OnnxNode, OnnxGraph], nn.Module | Converted]


def register(op: str, *versions: int, replace: Sequence[int] = (), domain: str = "") -> Callable[[Build], Build]:
    """Decorate a function that turns a node of type ``op`` into a module, for all since-versions that are listed.

    versions: those that onnx2torch lacks; replace: those whose converter in onnx2torch is dropped, because it refuses
    or is wrong. A module that is returned without a list of inputs takes all inputs of the node. The module of a node
    with more than one output must return a tuple.

    Raises ValueError for one of ``versions`` that onnx2torch has, KeyError for one of ``replace`` that it lacks.
    """

    def decorate(build: Build) -> Build:
        def converter(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
            built = build(node, graph)
            if isinstance(built, nn.Module):
                built = Converted(built, node.input_values)
            mapping = OnnxMapping(inputs=tuple(built.inputs), outputs=node.output_values)
            return OperationConverterResult(torch_module=built.module, onnx_mapping=mapping)

        for version in (*versions, *replace):
            if version in replace:
                description = _registry.OperationDescription(domain, op, version)
                # onnx2torch has no public way to replace a converter.
                del _registry._CONVERTER_REGISTRY[description]
            _registry.add_converter(op, version, domain)(converter)
        return build

    return decorate


def repeat(op: str, version: int, versions: Sequence[int]) -> None:
    """Let onnx2torch's converter of ``op`` at ``version`` serve ``versions`` too."""
    converter = _registry._CONVERTER_REGISTRY[_registry.OperationDescription("", op, version)]
    for later in versions:
        _registry.add_converter(op, later)(converter)


def initializer(graph: OnnxGraph, node: OnnxNode, position: int) -> Tensor | None:
    """Value of the node's input at ``position``, None where it is left out.

    Raises NotImplementedError where the input is not a constant.
    """
    if position >= len(node.input_values) or not node.input_values[position]:
        return None
    name = node.input_values[position]
    if name not in graph.initializers:
        raise NotImplementedError(f"{node.operation_type}: input {position} ({name}) is not a constant")
    value: Tensor = graph.initializers[name].to_torch()
    return value


def refuse_unless(condition: bool, what: str) -> None:
    """Raise NotImplementedError if not ``condition``; ``what`` says what was found."""
    if not condition:
        raise NotImplementedError(what)


def has_one_output(node: OnnxNode) -> bool:
    """Whether only the node's first output is used."""
    return not any(node.output_values[1:])
