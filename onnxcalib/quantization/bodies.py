"""Bodies of If, Loop and Scan, each quantized as a model of its own on what it reads in runs of the model around it.

The model around comes first, with float bodies. Then each body in graph order reads what the model gives as far as it
is quantized by then, and the result takes its place. Bodies in bodies are quantized with those that hold them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from onnx import ModelProto

from ..bitplan import FLOAT
from ..config import FLOAT_BITS, DataConfig, QuantizeConfig
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
from .verify import compare_layers


def reconstruct_layers(prepared: Prepared, ranges: Ranges) -> Reconstruction:
    """Round or reconstruct the layers of the model, then those of its bodies.

    Raises ConfigError for ranges that do not fit the model, and ModelError where nothing could be quantized.
    """
    bodies = list_bodies(prepared.model)
    if not prepared.run.place:  # an earlier call may have had other ranges
        prepared.run.shared = SharedWeights() if bodies else None
    found = reconstruct_outside(prepared, ranges)
    if prepared.run.shared is not None:
        prepared.run.shared.keep(prepared.model, found.scheme, found.layers)
        prepared.run.shared.keep_factors(prepared.sources, found.layers, prepared.factors)
    if not bodies:
        return found
    done: list[QuantizedBody] = []
    left: list[FloatBody] = []
    excluded: set[str] = set()
    reason = explain_float(prepared)
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
    if not prepared.run.place:
        _refuse_unknown(prepared, done, left)
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


def _refuse_unknown(prepared: Prepared, done: Sequence[QuantizedBody], left: Sequence[FloatBody]) -> None:
    """Raise ConfigError for a plan that names a node which none of the model's graphs has."""
    plan, known = prepared.run.plan, set[str]()
    if plan is None:
        return
    known |= {node.name for model in (prepared.original, prepared.model) for node in all_nodes(model.graph)}
    known = known.union(*(body.nodes | body.bits.keys() for body in done), *(body.nodes for body in left))
    for name in plan.layers:
        if name not in known:
            raise ConfigError(
                f"plan: found bits of {name!r}; no node has this name, neither outside nor in bodies of If, Loop and"
                " Scan; plan again, or take it out"
            )


def tell_of_ranges(prepared: Prepared) -> None:
    """Say that a file of ranges has none of tensors in bodies."""
    if list_bodies(prepared.model):
        prepared.run.leave_out("ranges of bodies in the file", "each run calibrates bodies on what they read in it")


def explain_float(prepared: Prepared) -> str:
    """Why no body of the model is quantized; an empty text where bodies are."""
    run = prepared.run
    if not run.target.is_onnxruntime:
        return f"target {run.target.name!r} is not known to run integers inside of bodies"
    return ""


_Result = QuantizedBody | str


@dataclass(frozen=True)
class OpenBody:
    """A body as a float model with samples of its own.

    run: on it. names: what it captures -> the name of that in the quantized model around it. range_of: the ends of an
    input over its runs. rate: how often it runs in one sample of the model around it.
    """

    body: Body
    run: Run
    part: ModelProto
    samples: CalibrationSet
    names: Mapping[str, str]
    range_of: Callable[[Body, str], tuple[float, float]]
    rate: float


def open_bodies(
    prepared: Prepared, found: Reconstruction, around: ModelProto, given: tuple[Sequence[Body], str], store: Store
) -> Iterator[tuple[Body, OpenBody | str]]:
    """Each body of one node, or the reason why it stays in float, empty if that was asked for.

    given: the bodies, and why none is quantized. store: holds the samples of the bodies.
    """
    (bodies, reason), chosen, run = given, [], prepared.run
    for body in bodies:
        left = _explain_planned_float(prepared, body)
        if _is_excluded(prepared, body):
            yield body, ""
        elif reason:
            yield body, reason
        elif left is not None:
            yield body, left
        else:
            chosen.append(body)
    if not chosen:
        return
    try:
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
        yield from ((body, spell_fault(error, body)) for body in chosen)
        return
    for body in chosen:
        try:
            found_body: OpenBody | str = _open(prepared, found, around, (body, captured))
        except (ModelError, DataError) as error:
            found_body = spell_fault(error, body)
        yield body, found_body


def _open(prepared: Prepared, found: Reconstruction, around: ModelProto, given: tuple[Body, BodySamples]) -> OpenBody:
    (body, captured), names = given, find_names(prepared.model, around, given[0])
    said = describe_around(prepared, found, (body, names), captured.range_of)
    run = prepared.run.for_body(body.path, _settings(prepared), said)
    samples, run.quantized_samples = captured.open(body), captured.open(body, quantized=True)
    part = extract_body(
        prepared.model, body, {spec.name: tensor_type(spec.dtype, spec.shape) for spec in samples.inputs}
    )
    return OpenBody(body, run, part, samples, names, captured.range_of, captured.rate_of(body))


def _quantize(
    prepared: Prepared, found: Reconstruction, around: ModelProto, given: tuple[Sequence[Body], str]
) -> Iterator[tuple[Body, _Result]]:
    """Each body of one node with what became of it; see ``open_bodies``."""
    with Store() as store:
        for body, opened in open_bodies(prepared, found, around, given, store):
            if isinstance(opened, str):
                yield body, opened
                continue
            try:
                yield body, _run_stages(prepared, opened)
            except (ModelError, DataError) as error:
                yield body, spell_fault(error, body)
            finally:
                prepared.run.take(opened.run, body.path)


def spell_fault(error: Exception, body: Body) -> str:
    """What was found, of a message that begins with the graph, and goes on with what is allowed and what to do."""
    return str(error).removeprefix(f"graph {body.path}: ").removeprefix("data: ").partition("; ")[0]


def _run_stages(around: Prepared, opened: OpenBody) -> QuantizedBody:
    run, body = opened.run, opened.body
    prepared = prepare(run, opened.part, opened.samples, run.plan, test=opened.samples)
    found = reconstruct_layers(prepared, calibrate_ranges(prepared))
    quantized = emit_model(prepared, found)
    prepared = prepared.leave(found.in_float)
    with run.stage("verify"):
        layers = compare_layers(prepared, quantized, found.scheme.stored)
    return QuantizedBody(
        body=body,
        model=quantized,
        names=opened.names,
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
    records = list_in_float(prepared, found.scheme, prepared.run.config)
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
    return list_layers(prepared.model, body) <= _list_excluded_in(prepared, body)


def list_layers(model: ModelProto, body: Body) -> set[str]:
    """Names of the nodes of a body, and of bodies in it, that are layers where their weight is constant."""
    return {node.name for node in all_nodes(find_graph(model, body)) if node.op_type in (*LAYERS, *RECURRENT)}


def _explain_planned_float(prepared: Prepared, body: Body) -> str | None:
    """Why a body stays in float by the plan of the run, empty where it does not say; None where it does not."""
    plan = prepared.run.plan
    layers = list_layers(prepared.model, body)
    if plan is None or {plan.layers[name] for name in layers & plan.layers.keys()} != {FLOAT}:
        return None
    return next((plan.in_float[name] for name in sorted(layers) if name in plan.in_float), "")


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


def has_alone(found: Reconstruction) -> bool:
    """Whether a layer that is no recurrent one reads float."""
    inside = [layer for body in found.bodies for layer in body.layers if layer.op not in RECURRENT]
    return any(k.reads_float for k in found.scheme.layers) or any(k.activation_bits == FLOAT_BITS for k in inside)
