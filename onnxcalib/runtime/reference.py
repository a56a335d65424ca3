"""Run models in onnx's reference evaluator, in NumPy, which says what a file means where two runtimes do not agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, defs, helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops import load_op

from ..errors import first_line
from ..graph.index import all_nodes, own_constants, reads
from ..graph.passes.draws import fix_draws
from ..graph.passes.normalise import tidy
from ..graph.values import is_outside, read_values
from .reference_faults import find_fault

# Domains of operators that the evaluator has.
DOMAINS = ("", "ai.onnx.ml")
# The evaluator has DequantizeLinear from here on. Before it, from the first opset on that has it, it means the same.
DEQUANTIZE_OPSET, FIRST_OPSET = 19, 10
MOST_SHOWN = 200  # characters of what the evaluator says
# Rounded values are cast to int32 before they are clipped: the cast turns larger ones to the other end.
MOST_ROUNDED = 2.0**31
MOVED = "values beyond 2^31 steps are quantized to the other end of the integers"


class ReferenceFault(Exception):
    """onnx's reference evaluator is no judge of a model. The text is one line: the node, and why."""


class Reference:
    """One model in onnx's reference evaluator, one node at a time; ``outputs`` are the names of its tensors.

    Operators that draw give the same values as in a ``Session``.
    """

    def __init__(self, model: ModelProto) -> None:
        """Raises ReferenceFault for a node that the evaluator does not have, or computes otherwise than ONNX says."""
        copy = tidy(fix_draws(model))
        self.outputs = [value.name for value in copy.graph.output]
        # Large weights of large models are read for each node that reads them.
        outside = {tensor.name: tensor for tensor in copy.graph.initializer if is_outside(tensor)}
        self._constants = {t.name: read_values(t) for t in copy.graph.initializer if t.name not in outside}
        self._outside = outside
        _refuse(copy)
        opsets = {entry.domain: entry.version for entry in copy.opset_import}
        self._nodes = [(node, _load(node, opsets, list(copy.functions))) for node in copy.graph.node]
        self._readers = Counter(name for node in copy.graph.node for name in reads(node))
        self._readers.update(self.outputs)

    def run(self, feeds: Mapping[str, np.ndarray | list[Any]]) -> dict[str, Any]:
        """The outputs by name. Raises ReferenceFault."""
        values: dict[str, Any] = {**self._constants, **feeds}
        waiting = Counter(self._readers)
        for node, evaluator in self._nodes:
            names = [name for name in node.output if name]
            given = {name: values[name] for name in reads(node) if name in values}
            given |= {name: read_values(self._outside[name]) for name in reads(node) if name in self._outside}
            try:
                with np.errstate(all="ignore"):
                    found = evaluator.run(names, given)
            except ReferenceFault:
                raise
            except Exception as error:  # the evaluator may raise anything
                raise _fault(node, f"the evaluator stops: {_spell(error)}") from error
            values.update(zip(names, found, strict=True))
            for name in given:  # of large models, tensors that are read no more
                waiting[name] -= 1
                if not waiting[name]:
                    values.pop(name, None)
        return {name: values[name] if name in values else read_values(self._outside[name]) for name in self.outputs}


def _refuse(model: ModelProto) -> None:
    opset = next((entry.version for entry in model.opset_import if not entry.domain), 0)
    own = {(function.domain, function.name) for function in model.functions}
    constants = own_constants(model.graph)
    for node in _list_nodes(model):
        if node.domain not in DOMAINS and (node.domain, node.op_type) not in own:
            raise _fault(node, f"ONNX does not define the operators of {node.domain}")
        if fault := find_fault(node, opset, constants):
            raise _fault(node, f"the evaluator computes it otherwise than ONNX says: {fault}")


def _list_nodes(model: ModelProto) -> Iterator[NodeProto]:
    yield from all_nodes(model.graph)
    for function in model.functions:
        yield from all_nodes(function)


def _load(node: NodeProto, opsets: dict[str, int], functions: list[FunctionProto]) -> ReferenceEvaluator:
    """An evaluator of this node alone, so that its faults have its name, and what is read no more can be let go."""
    graph = GraphProto(node=[node], name=node.name)
    graph.output.extend(helper.make_empty_tensor_value_info(name) for name in node.output if name)
    try:
        return ReferenceEvaluator(
            graph, opsets=opsets, functions=list(functions), new_ops=list(_mend(opsets.get("", 0)))
        )
    except Exception as error:  # the evaluator may raise anything
        raise _fault(node, f"the evaluator does not have it: {_spell(error)}") from error


def _mend(opset: int) -> Iterator[type[OpRun]]:
    """The evaluator's own classes for what it lacks below an opset, and for values that it would turn around."""
    if FIRST_OPSET <= opset < DEQUANTIZE_OPSET:
        yield _derive("DequantizeLinear", DEQUANTIZE_OPSET, opset, {})
    if opset >= FIRST_OPSET:
        found: Any = load_op("", "QuantizeLinear", opset)

        def run(self: Any, x: np.ndarray, scale: np.ndarray, *rest: Any, **attributes: Any) -> Any:
            # Of a scale for each row or block the least one is judged: a bound that is simple, and never too high.
            if x.size and not np.nanmax(np.abs(x)) < MOST_ROUNDED * np.abs(scale).min():
                raise _fault(self.onnx_node, f"the evaluator computes it otherwise than ONNX says: {MOVED}")
            return found._run(self, x, scale, *rest, **attributes)

        yield _derive("QuantizeLinear", opset, opset, {"_run": run})


def _derive(kind: str, taken: int, opset: int, members: dict[str, Any]) -> type[OpRun]:
    """The evaluator's class of this operator at opset ``taken``, for a model at ``opset``.

    The evaluator finds a class by its name, and the defaults of its attributes in its schema.
    """
    found = load_op("", kind, taken)
    return type(kind, (found,), {"op_domain": "", "op_schema": defs.get_schema(kind, opset, ""), **members})


def _fault(node: NodeProto, why: str) -> ReferenceFault:
    kind = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    return ReferenceFault(f"{node.name or node.output[0]} ({kind}): {why}")


def _spell(error: Exception) -> str:
    text = first_line(error).rstrip(".")
    return text if len(text) <= MOST_SHOWN else text[:MOST_SHOWN] + "..."
