"""Bodies of If, Loop and Scan, each quantized as a model of its own on what it reads in runs of the model around it.

The model around comes first, with float bodies. Then each body in graph order reads what the model gives as far as it
is quantized by then, and the result takes its place. Bodies in bodies are quantized with those that hold them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from itertools import groupby
from typing import Any

from onnx import ModelProto

from ..config import DataConfig, QuantizeConfig
from ..data import CalibrationSet
from ..errors import ConfigError, DataError, ModelError
from ..graph.bodies import Body, extract_body, find_graph, list_bodies, match_captured
from ..graph.index import all_nodes
from ..graph.names import keep_selectors, resolve_names
from ..graph.ops import LAYERS, RECURRENT
from ..report import FloatRecord, name_some
from ..runtime.bodies import tensor_type
from ..runtime.store import Store
from .body_samples import BodySamples
from .body_surroundings import describe_around
from .in_float import list_in_float
from .placed_bodies import FloatBody, QuantizedBody, place_bodies
from .prepare import prepare
from .prepared import Prepared
from .ranges import Ranges
from .run import Run
from .shared_weights import SharedWeights
from .stages import Reconstruction, calibrate_ranges, emit_model
from .stages import reconstruct_layers as reconstruct_outside
from .state import QUANTIZED
from .verify import compare_layers


def reconstruct_layers(prepared: Prepared, ranges: Ranges) -> Reconstruction:
    """Round or reconstruct the layers of the model, then those of its bodies.

    Raises ConfigError for ranges that do not fit the model, and ModelError where nothing could be quantized.
    """
    if not prepared.run.place:
        prepared.run.shared = None  # an earlier call may have had other ranges
    found, bodies = reconstruct_outside(prepared, ranges), list_bodies(prepared.model)
    if bodies and prepared.run.shared is None:
        prepared.run.shared = SharedWeights()
    if prepared.run.shared is not None:
        prepared.run.shared.keep(prepared.model, found.scheme, found.layers)
    if not bodies:
        return found
    done: list[QuantizedBody] = []
    left: list[FloatBody] = []
    excluded: set[str] = set()
    reason = _find_reason(prepared)
    around = emit_model(prepared, found)
    for _, group in groupby(bodies, key=lambda body: body.owner):
        for body, result in _quantize(prepared, found, around, (tuple(group), reason)):
            if isinstance(result, QuantizedBody):
                place_bodies(around, [result])
                done.append(result)
                continue
            excluded |= _list_excluded_in(prepared, body)
            if result:
                left.append(FloatBody(body.path, body.op, result, _list_nodes(prepared.model, body)))
                prepared.run.observer.note(f"{body.path}: stays in float: {result}")
    if not found.scheme.stored and not done:
        if not left:
            raise ConfigError("exclude: no layer is left to quantize; exclude fewer nodes")
        paths: dict[str, list[str]] = {}
        for each in left:
            paths.setdefault(each.reason, []).append(each.path)
        reasons = "; ".join(f"{name_some(names)}: {why}" for why, names in paths.items())
        raise ModelError(
            f"graph {prepared.model.graph.name}: no layer could be quantized: {reasons}; layers outside of bodies, or"
            " bodies that can be quantized, are needed; mend what is said of them, or choose another model"
        )
    return replace(found, bodies=tuple(done), float_bodies=tuple(left), excluded=frozenset(excluded))


def _find_reason(prepared: Prepared) -> str:
    """Why no body of the model is quantized; an empty text where bodies are."""
    run = prepared.run
    if not run.target.is_onnxruntime:
        return f"target {run.target.name!r} is not known to run integers inside of bodies"
    if run.config.planned or prepared.config is not run.config:
        return "a plan gives the bits of the layers outside of bodies alone"
    return ""


_Result = QuantizedBody | str


def _quantize(
    prepared: Prepared, found: Reconstruction, around: ModelProto, given: tuple[Sequence[Body], str]
) -> Iterator[tuple[Body, _Result]]:
    """Each body of one node with what became of it: the reason where it stays in float, empty if that was asked for.

    given: the bodies, and why none is quantized.
    """
    (bodies, reason), chosen = given, []
    for body in bodies:
        if _is_excluded(prepared, body):
            yield body, ""
        elif reason:
            yield body, reason
        else:
            chosen.append(body)
    if not chosen:
        return
    with Store() as store:
        try:
            run = prepared.run
            captured = BodySamples(
                prepared.model,
                around,
                chosen,
                prepared.samples,
                quantized=run.quantized_samples,
                store=store,
                threads=run.threads,
            )
        except ModelError as error:
            yield from ((body, _spell(error, body)) for body in chosen)
            return
        for body in chosen:
            yield body, _quantize_one(prepared, found, around, (body, captured))


def _quantize_one(
    prepared: Prepared, found: Reconstruction, around: ModelProto, given: tuple[Body, BodySamples]
) -> _Result:
    (body, captured), names = given, find_names(prepared.model, around, given[0])
    said = describe_around(prepared, found, (body, names), captured.range_of)
    run = prepared.run.for_body(body.path, _settings(prepared), said)
    try:
        samples, run.quantized_samples = captured.open(body), captured.open(body, QUANTIZED)
        part = extract_body(
            prepared.model, body, {spec.name: tensor_type(spec.dtype, spec.shape) for spec in samples.inputs}
        )
        return _run_stages(run, prepared, body, (part, samples), names)
    except (ModelError, DataError) as error:
        return _spell(error, body)
    finally:
        prepared.run.take(run, body.path)


def _spell(error: Exception, body: Body) -> str:
    """What was found, of a message that begins with the graph, and goes on with what is allowed and what to do."""
    return str(error).removeprefix(f"graph {body.path}: ").removeprefix("data: ").partition("; ")[0]


def _run_stages(
    run: Run, around: Prepared, body: Body, given: tuple[ModelProto, CalibrationSet], names: Mapping[str, str]
) -> QuantizedBody:
    part, samples = given
    prepared = prepare(run, part, samples, test=samples)
    found = reconstruct_layers(prepared, calibrate_ranges(prepared))
    quantized = emit_model(prepared, found)
    prepared = prepared.leave(found.in_float)
    with run.stage("verify"):
        layers = compare_layers(prepared, quantized, found.scheme.stored)
    return QuantizedBody(
        body=body,
        model=quantized,
        names=names,
        layers=(*layers, *(layer for inner in found.bodies for layer in inner.layers)),
        blocks=(*found.blocks, *(block for inner in found.bodies for block in inner.blocks)),
        nodes=_list_nodes(around.model, body),
        in_float=list_left(prepared, found),
        excluded=list_excluded(prepared, found),
        bits={layer.name: str(layer.bits) for layer in found.scheme.stored}
        | {name: bits for inner in found.bodies for name, bits in inner.bits.items()},
    )


def list_left(prepared: Prepared, found: Reconstruction) -> tuple[FloatRecord, ...]:
    """What stays in float, in the model and in its bodies, but excluded nodes."""
    records = list_in_float(prepared, found.scheme)
    told = found.excluded.union(*(body.nodes for body in found.bodies))
    reasons = {name: body for body in found.float_bodies for name in body.nodes}
    own = [
        replace(
            record, reason=f"inside {reasons[record.name].path}, which stays in float: {reasons[record.name].reason}"
        )
        if record.name in reasons
        else record
        for record in records
        if record.name not in told
    ]
    return (*own, *(record for body in found.bodies for record in body.in_float))


def list_excluded(prepared: Prepared, found: Reconstruction) -> frozenset[str]:
    """Names of the nodes that the settings leave in float, in the model and in its bodies."""
    own = resolve_names(prepared.model, prepared.config, before=prepared.original).excluded
    return own.union(found.excluded, *(body.excluded for body in found.bodies))


def find_names(model: ModelProto, around: ModelProto, body: Body) -> dict[str, str]:
    """Captured tensor -> its name in the quantized model around the body."""
    return match_captured(find_graph(model, body), find_graph(around, body))


def _list_nodes(model: ModelProto, body: Body) -> frozenset[str]:
    return frozenset(node.name for node in all_nodes(find_graph(model, body)))


def _is_excluded(prepared: Prepared, body: Body) -> bool:
    """Whether the settings leave all layers of a body in float."""
    nodes = all_nodes(find_graph(prepared.model, body))
    layers = {node.name for node in nodes if node.op_type in (*LAYERS, *RECURRENT)}
    return layers <= _list_excluded_in(prepared, body)


def _list_excluded_in(prepared: Prepared, body: Body) -> frozenset[str]:
    """Names of the nodes in a body that the settings leave in float; all of them where they do so with its owner."""
    config = prepared.run.given
    if not config.exclude and not config.layers:
        return frozenset()
    outside = resolve_names(prepared.model, prepared.run.config, before=prepared.original).excluded
    return _follow_excluded(prepared.model, body, config, outside)


def _follow_excluded(model: ModelProto, body: Body, config: QuantizeConfig, outside: Set[str]) -> frozenset[str]:
    if body.owner in outside:
        return _list_nodes(model, body)
    part = extract_body(model, body, {})
    own = keep_selectors(config, part, inside=True)
    own = own.model_copy(update={"layers": {name: each for name, each in own.layers.items() if each.exclude}})
    excluded = resolve_names(part, own).excluded
    return excluded.union(*(_follow_excluded(part, inner, config, excluded) for inner in list_bodies(part)))


def _settings(prepared: Prepared) -> QuantizeConfig:
    """The settings of a body: those of its nodes; and none of how files are read, and of workers."""
    own: dict[str, Any] = {"data": DataConfig(), "class_axis": (), "tensors": {}}
    own |= dict.fromkeys(("samples", "jobs", "scheduler"))
    return prepared.run.given.model_copy(update=own)
