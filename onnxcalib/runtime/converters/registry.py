"""Add operators to onnx2torch: the only module that imports it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import NamedTuple

from torch import Tensor, nn

# Domain of the nodes that only exist in the copy of a block that is handed to onnx2torch.
OWN_DOMAIN = "onnxcalib"
OWN_VERSION = 1


@contextmanager
def torchvision_stand_in() -> Iterator[None]:
    """Let ``import torchvision`` succeed inside, with an empty module where the real one does not import.

    onnx2torch imports torchvision for NonMaxSuppression and RoiAlign alone, and a torchvision built for CUDA does not
    import beside a CPU torch. The stand-in leaves sys.modules on exit; the two operators then fail when they run.
    """
    try:
        importlib.import_module("torchvision")
    except Exception:  # absent (ImportError), built for another torch (RuntimeError) or without its libraries (OSError)
        stand_in, operators = ModuleType("torchvision"), ModuleType("torchvision.ops")
        stand_in.ops = operators
        operators.roi_align = None
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
    from onnx2torch import convert  # noqa: F401  for blocks.py, so that one module imports onnx2torch
    from onnx2torch.node_converters import registry as _registry
    from onnx2torch.node_converters.registry import get_converter  # noqa: F401  as above
    from onnx2torch.onnx_graph import OnnxGraph
    from onnx2torch.onnx_node import OnnxNode
    from onnx2torch.utils.common import OnnxMapping, OperationConverterResult


class Converted(NamedTuple):
    """A module, and the tensors of the node that its ``forward`` takes."""

    module: nn.Module
    inputs: tuple[str, ...]


Build = Callable[[OnnxNode, OnnxGraph], nn.Module | Converted]


def register(op: str, *versions: int, replace: Sequence[int] = (), domain: str = "") -> Callable[[Build], Build]:
    """Decorate a function that turns a node into a module, for the since-versions ``versions`` and ``replace``.

    onnx2torch's own converter is dropped for the versions in ``replace``, where it refuses or errs; a version that it
    has and that is not listed there raises ValueError. A node that uses more than one output of ``op`` must get a
    module that returns a tuple. A bare module takes all inputs of the node.
    """

    def decorate(build: Build) -> Build:
        def converter(node: OnnxNode, graph: OnnxGraph):
            built = build(node, graph)
            if isinstance(built, nn.Module):
                built = Converted(built, node.input_values)
            mapping = OnnxMapping(inputs=tuple(built.inputs), outputs=node.output_values)
            return OperationConverterResult(torch_module=built.module, onnx_mapping=mapping)

        for version in (*versions, *replace):
            if version in replace:
                description = _registry.OperationDescription(domain, op, version)
                # onnx2torch offers no way to replace a converter; a missing one raises KeyError when it is upgraded.
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
    """Value of an input of ``node``, None where it is left out; raises NotImplementedError where it is computed."""
    if position >= len(node.input_values) or not node.input_values[position]:
        return None
    name = node.input_values[position]
    if name not in graph.initializers:
        raise NotImplementedError(f"{node.operation_type}: input {position} ({name}) is not a constant")
    return graph.initializers[name].to_torch()


def refuse_unless(condition: bool, what: str) -> None:
    """Raise NotImplementedError with ``what`` was found."""
    if not condition:
        raise NotImplementedError(what)


def has_one_output(node: OnnxNode) -> bool:
    """True where only the node's first output is used."""
    return not any(node.output_values[1:])
