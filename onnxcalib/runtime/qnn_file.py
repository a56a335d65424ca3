"""A file on Qualcomm's HTP by onnxruntime's plugin, which brings a simulator; it is imported in the worker alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np
import onnx
import onnxruntime as ort

from .placement import File, Off, Placement

NAME = "QNNExecutionProvider"
VERBOSE = 0
LINEAR = ("QuantizeLinear", "DequantizeLinear")
# In the plugin's verbose log: a group of nodes that it does not take, and why.
REFUSED = re.compile(r"Validation FAILED for \d+ nodes.*?\n((?:\tOperator type: .*\n)+)\s*REASON : (.*)")
MEMBER = re.compile(r"\tOperator type: (\S+) Node name: (.*) Node index: \d+")
INVALID = re.compile(r"backendValidateOpConfig\(\) failed for node `(.*?)` of type `(.*?)` with error code (\d+)")
# The plugin's reason for a Q or DQ at the edge of the graph, also for those that onnxruntime made of one with several
# readers, whose names are not in the file.
AT_EDGE = re.compile(r"configured to not take D?Q nodes that (consume|generate) a graph (input|output)")
NO_REASON = "the execution provider did not take it, and does not say why"


def open_qnn(file: File) -> QnnFile:
    return QnnFile(file)


class QnnFile:
    """A session of onnxruntime that gives the HTP what it takes, and the CPU the rest."""

    def __init__(self, file: File) -> None:
        import onnxruntime_qnn as plugin

        self._file = file
        self._graph = onnx.load(file.path, load_external_data=False).graph
        ort.register_execution_provider_library(NAME, plugin.get_library_path())
        options = ort.SessionOptions()
        options.log_severity_level = VERBOSE
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        if file.threads:
            options.intra_op_num_threads = file.threads
        for name, size in self._list_sizes():
            options.add_free_dimension_override_by_name(name, size)
        devices = [device for device in ort.get_ep_devices() if device.ep_name == NAME]
        options.add_provider_for_devices(devices, {"backend_path": plugin.get_qnn_htp_path()})
        self._session = ort.InferenceSession(str(file.path), options)
        self._inputs = [each.name for each in self._session.get_inputs()]

    def _list_sizes(self) -> Iterable[tuple[str, int]]:
        """The free dimensions of the inputs by name, as the samples have them: the HTP takes static shapes alone."""
        shapes = dict(self._file.shapes)
        for value in self._graph.input:
            dimensions = value.type.tensor_type.shape.dim
            for dimension, size in zip(dimensions, shapes.get(value.name, ()), strict=False):
                if dimension.dim_param:
                    yield dimension.dim_param, size

    def place(self) -> Placement:
        """The nodes of the graph as onnxruntime optimized it, without Q at its inputs and DQ at its outputs."""
        groups = [(each.ep_name, each.get_nodes()) for each in self._session.get_provider_graph_assignment_info()]
        edges = self._list_edges()
        on = sum(len(nodes) for provider, nodes in groups if provider == NAME)
        reasons = self._read_reasons()
        left = [
            node
            for provider, nodes in groups
            if provider != NAME
            for node in nodes
            if node.name not in edges and not AT_EDGE.search(reasons.get(node.name, ""))
        ]
        left.sort(key=lambda node: node.op_type in LINEAR)  # operators first
        off = tuple(Off(node.name, node.op_type, reasons.get(node.name, NO_REASON)) for node in left)
        return Placement("nodes on the HTP", on + len(off), off)

    def _list_edges(self) -> set[str]:
        """Nodes that turn float inputs of the graph into integers, or integers into its float outputs."""
        inputs, outputs = ({value.name for value in values} for values in (self._graph.input, self._graph.output))
        return {
            node.name
            for node in self._graph.node
            if (node.op_type == "QuantizeLinear" and node.input[0] in inputs)
            or (node.op_type == "DequantizeLinear" and node.output[0] in outputs)
        }

    def _read_reasons(self) -> dict[str, str]:
        """Node -> why the plugin did not take it, which only its log says."""
        text = self._file.log.read_text(encoding="utf-8", errors="replace")
        codes = {name: f"; QNN refuses {kind}, error {code}" for name, kind, code in INVALID.findall(text)}
        reasons: dict[str, str] = {}
        for members, reason in REFUSED.findall(text):
            names = [name for _, name in MEMBER.findall(members)]
            code = next((codes[name] for name in names if name in codes), "")
            reasons |= {name: reason.strip().rstrip(".") + code for name in names}
        return reasons

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs in the order of the graph's."""
        return list(self._session.run(None, {name: feeds[name] for name in self._inputs}))
