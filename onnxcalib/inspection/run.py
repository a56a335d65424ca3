"""Inspect a file from end to end: a path in, what is in it as a record out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from onnx import ModelProto
from onnx.external_data_helper import uses_external_data

from ..contents import Contents, GridRecord, QuantizedRecord
from ..errors import ModelError
from ..graph.external import find_data
from ..graph.inspect.layer_forms import LayerForm, StoredGrid, find_forms
from ..graph.load import accept_model, check_tensors, parse_file, take_data
from ..graph.ops import PACKED_WEIGHTS
from ..graph.passes.normalise import name_nodes
from ..graph.tensors import check_declared, list_tensors
from ..graph.values import count_bytes
from ..quantization.placed_bodies import BITS_KEY
from ..spec import VERSION_KEY
from .kernels import Opened, open_in_onnxruntime
from .tally import count_operators, count_parameters, count_types, list_ports


def inspect(model: str | Path) -> Contents:
    """What is in an ONNX file, float or quantized by whichever tool; no code of the file's runs.

    A quantized file is opened in onnxruntime, which tells what runs on integers. Raises ModelError for a file that is
    missing or no whole ONNX model, and for external data that are missing or not what their tensors declare.
    """
    path = Path(model)
    found, places = parse_file(path)
    external, files = Counter[int](), dict[Path, int]()
    for _, tensor in list_tensors(found):
        if uses_external_data(tensor):
            check_declared(tensor, f"{path}: tensor {tensor.name}")
            file, size = find_data(tensor, path)
            external[tensor.data_type] += count_bytes(tensor)
            files[file] = size
    take_data(found, path, places)
    check_tensors(found, str(path))
    contents = _describe(path, found, external, sum(files.values()))
    try:
        accept_model(found, str(path), checked=True)
        name_nodes(found)
        forms = find_forms(found)
    except ModelError as error:
        return replace(contents, refused=str(error), parameters=count_parameters(found, ()))
    with ThreadPoolExecutor(1) as beside:  # onnxruntime takes half of the time, and lets Python work meanwhile
        opening = beside.submit(open_in_onnxruntime, found, forms) if forms else None
        contents = replace(contents, parameters=count_parameters(found, forms))
        if all(form.node.op_type in PACKED_WEIGHTS for form in forms):  # quantize takes the others
            contents = _look_ahead(contents, found, beside)
        return contents if opening is None else _tell_quantized(contents, forms, opening.result())


def _tell_quantized(contents: Contents, forms: Sequence[LayerForm], opened: Opened) -> Contents:
    return replace(
        contents,
        quantized=tuple(_record(form, opened) for form in forms),
        kernels=opened.kernels,
        unfused=opened.unfused,
        not_opened=opened.fault,
    )


def _look_ahead(contents: Contents, model: ModelProto, beside: Executor) -> Contents:
    from .outlook import look_ahead  # job 1 is half of what starting takes, and quantized files need none of it

    try:
        return replace(contents, outlook=look_ahead(model, contents.inputs, beside))
    except ModelError as error:
        return replace(contents, no_outlook=str(error))


def _describe(path: Path, model: ModelProto, external: Counter[int], beside: int) -> Contents:
    """What is read off the file as it stands."""
    constants = {tensor.name for tensor in model.graph.initializer}
    fed = [value for value in model.graph.input if value.name not in constants]
    operators = count_operators(model)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    return Contents(
        model=str(path),
        bytes=path.stat().st_size + beside,
        external_bytes=beside,
        ir_version=model.ir_version,
        producer=" ".join(filter(None, (model.producer_name, model.producer_version))),
        opsets={"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in model.opset_import},
        functions={f"{each.domain}.{each.name}": len(each.node) for each in model.functions},
        nodes=sum(each.count for each in operators),
        operators=operators,
        parameters=0,
        types=count_types(model, external),
        inputs=list_ports(fed),
        outputs=list_ports(model.graph.output),
        version=metadata.get(VERSION_KEY),
        bits=_read_bits(metadata.get(BITS_KEY, "")),
        metadata=metadata,
    )


def _read_bits(text: str) -> dict[str, str]:
    """The bits of layers in the metadata of a file that onnxcalib made; none of a text that is something else."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return {str(name): str(bits) for name, bits in found.items()} if isinstance(found, dict) else {}


def _record(form: LayerForm, opened: Opened) -> QuantizedRecord:
    runs, reason = opened.runs.get(form.node.name, (None, ""))
    weight, given = map(_record_grid, (form.weight, form.input))
    return QuantizedRecord(form.name, form.op, form.form, weight, given, form.values, runs, reason)


def _record_grid(grid: StoredGrid | None) -> GridRecord | None:
    return None if grid is None else GridRecord(grid.type, grid.bits, grid.symmetric, grid.scales)
