"""Plan bits for one prepared model: measure the losses and costs of its sets, or recall them, and choose."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto

from ..bitplan import CANDIDATE_OF, NAME_OF, BitPlan, Frontier
from ..config import BUDGETS, EXECUTION, FULL_BITS, STAGES, WIDE_BITS, CandidateName, QuantizeConfig
from ..data import CalibrationSet
from ..errors import ConfigError
from ..graph.layer_params import LayerParams
from ..graph.save import fingerprint
from ..quantization.compared import Compared, find_compared
from ..quantization.cost_placement import COSTS_MORE
from ..quantization.measured_placement import RAN_SLOWER
from ..quantization.prepared import Prepared
from ..quantization.trial import emit_placeholders
from ..runtime.cache import Cache, machine
from ..runtime.session import Session
from ..spec import BitSet, Candidate
from .activations import Switched, make_sets
from .assemble import Assembler
from .bits import Bits
from .choose import make_bit_plan, trace_frontier
from .graphs import PlannedGraph, keep_unseen, make_chosen, open_graphs, order_samples
from .latency import Latencies, Timed, list_feeds, look_up_times, time_sets
from .latency_table import read_latencies
from .recurrent import measure_recurrent
from .schemes import Schemes
from .sensitivity import Survey, measure_sets
from .shared import SharedSets
from .weights import PlannedWeights, WeightLosses

# The candidate at which what a graph loses is measured, by the bits of weights to which it is nearest.
MIDDLE_BITS = 4


@dataclass(frozen=True)
class _Measurements:
    """What bits are chosen from.

    seconds: time of measuring the sets, summed over all workers. excluded: layers that stay in float. in_float: nodes
    that the tool itself leaves so -> why.
    """

    assembler: Assembler
    latencies: Latencies | None
    seconds: dict[str, float]
    name_of: Callable[[str, Candidate], CandidateName]
    excluded: list[str]
    in_float: dict[str, str]

    def spell_time(self) -> str:
        """Seconds of each part, and as many passes of the float model over all samples as take the same time."""
        spent = {
            **({"solving every layer at its candidates": self.seconds["solve"]} if "solve" in self.seconds else {}),
            "losses of single sets": self.seconds["evaluate"],
            "assembled models": self.assembler.seconds,
        }
        one_pass = self.assembler.pass_seconds
        return ", ".join(f"{what} {seconds:.1f} s ({seconds / one_pass:.0f} passes)" for what, seconds in spent.items())


def choose_bits(prepared: Prepared) -> BitPlan:
    """Choose the sets' bits within the settings' budgets. Raises ConfigError."""
    run, config = prepared.run, prepared.config
    if config.max_loss is not None and config.max_disagreement is not None:
        raise ConfigError(
            "max_disagreement: found max_loss beside it; each says what may be lost for the smallest file; give one of"
            " them"
        )
    with _measuring(prepared) as measured:
        options: dict[str, Any] = {
            "name_of": measured.name_of,
            "excluded": measured.excluded,
            "in_float": measured.in_float,
        }
        try:
            found = make_bit_plan(measured.assembler, config, measured.latencies, **options)
        except ConfigError as error:
            slow = sum(reason in (COSTS_MORE, RAN_SLOWER) for reason in measured.in_float.values())
            if not slow:
                raise
            raise ConfigError(
                f"{error}; or give placement all, which quantizes {slow} nodes that are left in float for speed"
            ) from error
        run.observer.note(measured.spell_time())
        return found


def trace(prepared: Prepared) -> Frontier:
    """Find the least loss for each of several sizes of the file."""
    with _measuring(prepared) as measured:
        prepared.run.observer.note(measured.spell_time())
        return trace_frontier(measured.assembler, prepared.config, measured.name_of)


@contextmanager
def _measuring(prepared: Prepared) -> Iterator[_Measurements]:
    """Measure the loss and the costs of every set at each candidate, as far as the cache does not have them."""
    run, config = prepared.run, prepared.config
    with run.stage("plan"):
        if config.latencies is not None:
            read_latencies(Path(config.latencies))  # a fault of the file is found before the work
            if config.max_latency is None:
                run.warn(
                    "latencies: found without max_latency, the only limit for which they are read; give both or none"
                )
        judged = order_samples(prepared)
        compared = _find_compared(prepared) if config.planned_alone else None
        with open_graphs(prepared, judged, compared) as graph:
            if graph.bodies or graph.left:
                run.observer.stage("plan")  # behind the stages in which bodies were prepared
            if config.planned_alone:
                yield _measure_weights(graph, judged, _open_cache(prepared, graph))
            elif activations_alone(config):
                yield _measure_alone(prepared, graph, _open_cache(prepared))
            else:
                yield _measure_graphs(graph, judged, _open_cache(prepared, graph))


def _measure_graphs(graph: PlannedGraph, judged: CalibrationSet, cache: Cache) -> _Measurements:
    """As ``_measuring`` where weights and activations are chosen, in all graphs of the model."""
    prepared, run, config = graph.prepared, graph.run, graph.prepared.config
    graphs, schemes = list(graph.walk()), graph.schemes
    run.observer.blocks(sum(len(each.prepared.scheme.layers) for each in graphs))
    shared, params = SharedSets(), dict[str, dict[Candidate, LayerParams]]()
    seconds = {"solve": 0.0, "evaluate": 0.0}
    surveys = {}
    for each in graphs:
        survey = surveys[each.path] = _survey(each, shared)
        found = measure_sets(survey, cache, tell=run.observer.planned, warn=run.warn, place=each.path)
        cells = measure_recurrent(each, cache)
        sets = (*found.sets, *cells.sets)
        shared.keep(each, sets if each.body is None else keep_unseen(each, sets), found.params)
        params |= found.params | cells.params
        seconds = {what: seconds[what] + found.seconds[what] + cells.seconds[what] for what in seconds}
    sets = _check_sets(graph, shared)
    if any(c.activation_bits == WIDE_BITS for c in schemes.uniform):
        sets = _add_tensors(prepared, schemes, sets, cache)
    names = {layer: each.schemes for each in graphs for layer in each.schemes.layers}

    def name_of(layer: str, candidate: Candidate) -> CandidateName:
        return names[layer].name_of(layer, candidate)

    def emit(bits: Bits) -> ModelProto:
        return graph.emit(lambda each: make_chosen(each, sets, bits, params))

    latencies = None
    if config.max_latency is not None and config.latencies is not None:
        latencies = look_up_times(Path(config.latencies), sets, name_of)
    elif config.max_latency is not None:
        layers = [layer for each in graphs for layer in (*each.prepared.scheme.layers, *each.prepared.scheme.recurrent)]
        timed = Timed(prepared.model, layers, list_feeds(graph), config.threads or 0)
        latencies = cache.recall(
            f"latencies of {machine()}", lambda: time_sets(timed, tuple(schemes.uniform), sets, emit), Latencies
        )
    assembler = Assembler(
        prepared.original,
        emit,
        judged,
        prepared.original_padding,
        cache,
        parts=prepared.parts,
        class_axes=prepared.class_axes,
        sets=sets if latencies is None else latencies.sets,
        rest=0.0 if latencies is None else latencies.rest,
        threads=run.threads,
        fused=run.target.is_onnxruntime,
        extent=graph.whole.extent,
    )
    return _Measurements(assembler, latencies, seconds, name_of, graph.list_excluded(sets), graph.list_in_float())


def _check_sets(graph: PlannedGraph, shared: SharedSets) -> tuple[BitSet, ...]:
    """The sets of all graphs. Raises ConfigError where there are none."""
    sets = shared.join()
    if not sets:
        raise ConfigError(
            "max_size: found a budget, or a curve asked for, of a model no layer of which can be planned:"
            f" {'; '.join(dict.fromkeys(graph.list_in_float().values())) or 'all are excluded'}; give bits instead"
        )
    return sets


def _survey(graph: PlannedGraph, shared: SharedSets) -> Survey:
    prepared = graph.prepared
    # Every layer is measured with the same number of threads wherever that is done: the results must not depend on it.
    one_thread = prepared.config.model_copy(update={"threads": prepared.config.threads or 1})
    return Survey(
        prepared.model,
        prepared.padding,
        graph.schemes.uniform,
        graph.batches,
        one_thread,
        graph.run.device,
        prepared.parts,
        whole=None if graph.body is None else graph.whole,
        rate=graph.rate,
        given=shared.list_given(graph),
        extent=graph.whole.extent,
    )


def _find_compared(prepared: Prepared) -> Compared:
    feeds = prepared.samples.read(range(prepared.samples.fixed_batch or 1))
    return find_compared(prepared, Session(prepared.model, threads=prepared.run.threads).run(feeds))


def _measure_weights(graph: PlannedGraph, judged: CalibrationSet, cache: Cache) -> _Measurements:
    """As ``_measuring`` where weights alone are chosen: losses are those of rounded weights."""
    prepared, config, start = graph.prepared, graph.prepared.config, time.perf_counter()
    graphs = list(graph.walk())
    planned = {each.path: PlannedWeights.of(each) for each in graphs}
    found = {each.path: _find_weight_losses(each, planned[each.path], cache, alone=len(graphs) == 1) for each in graphs}
    solved = config.does("reconstruct") and all(each.solved or not each.rounded for each in found.values())
    shared, recurrent = SharedSets(), dict[str, dict[Candidate, LayerParams]]()
    for each in graphs:
        losses, own = found[each.path], planned[each.path]
        cells = measure_recurrent(each, cache)
        recurrent |= cells.params
        sets = (*own.make_sets(losses.solved if solved else losses.rounded), *cells.sets)
        shared.keep(each, sets if each.body is None else keep_unseen(each, sets), {}, apart=own.list_apart())
    sets = _check_sets(graph, shared)
    seconds = {"evaluate": time.perf_counter() - start}
    latencies = None
    if config.latencies is not None and config.max_latency is not None:
        latencies = look_up_times(Path(config.latencies), sets, _name_alone)
        sets = latencies.sets
    marked = len(graphs) > 1

    def emit_empty(bits: Bits) -> ModelProto:
        return graph.emit(lambda each: planned[each.path].make_empty(sets, bits, recurrent, marked=marked))

    assembler = Assembler(
        prepared.original,
        lambda bits: graph.emit(lambda each: planned[each.path].make(each, sets, bits, recurrent)),
        judged,
        prepared.original_padding,
        cache,
        parts=prepared.parts,
        class_axes=prepared.class_axes,
        sets=sets,
        rest=0.0,
        threads=prepared.run.threads,
        fused=prepared.run.target.is_onnxruntime,
        compared=graph.whole.compared,
        emit_empty=emit_empty,
        extent=graph.whole.extent,
    )
    return _Measurements(assembler, latencies, seconds, _name_alone, graph.list_excluded(sets), graph.list_in_float())


def _name_alone(layer: str, candidate: Candidate) -> CandidateName:
    return NAME_OF[candidate]


def _find_weight_losses(graph: PlannedGraph, planned: PlannedWeights, cache: Cache, *, alone: bool) -> WeightLosses:
    """What the model's outputs lose by the weights of a graph.

    By gradients of the graph's own outputs where torch can run it, times what the model's outputs lose beside these,
    which is measured once. Otherwise each layer is measured. alone: the model has no other graph.
    """

    def find() -> WeightLosses:
        if alone:
            assert graph.whole.compared is not None
            return planned.measure_losses(graph.whole.compared)
        try:
            found = planned.measure_losses(_find_compared(graph.prepared))
        except ConfigError:
            return planned.measure_each(graph.whole)
        if not found.rounded:
            return found
        middle = min(graph.schemes.uniform, key=lambda c: abs(c.weight_bits - MIDDLE_BITS))
        measured, names = planned.measure_all(graph.whole, middle)
        told = sum(found.rounded[name] for name in names)
        factor = measured / told if told else math.inf
        return found.scale(factor) if math.isfinite(factor) else planned.measure_each(graph.whole)

    # The subject of the cache leaves the stages out.
    return cache.recall(f"{graph.path}losses of weights alone", find, WeightLosses)


def activations_alone(config: QuantizeConfig) -> bool:
    """Whether all candidates differ by 8 or 16 bits of activations alone, and no budget is on what the model loses."""
    found = [CANDIDATE_OF[name] for name in config.candidates]
    widths = {c.activation_bits for c in found}
    same = len({c.weight_bits for c in found}) == 1 and widths == {FULL_BITS, WIDE_BITS}
    return same and config.max_loss is None and config.max_disagreement is None


def _measure_alone(prepared: Prepared, graph: PlannedGraph, cache: Cache) -> _Measurements:
    """As ``_measuring`` where activations alone are chosen: no layer is solved, and losses are those of activations."""
    run, config, schemes = prepared.run, prepared.config, graph.schemes
    start = time.perf_counter()
    switched, losses = _measure_activations(prepared, schemes, cache)
    weight_bits = CANDIDATE_OF[config.candidates[0]].weight_bits
    uniform = {c: each.scheme for c, each in schemes.uniform.items() if c.weight_bits == weight_bits}
    sets = make_sets(prepared, uniform, losses)
    seconds = {"evaluate": time.perf_counter() - start}
    latencies = None
    if config.max_latency is not None and config.latencies is not None:
        latencies = look_up_times(Path(config.latencies), sets, schemes.name_of)
        sets = latencies.sets

    def emit(bits: Bits) -> ModelProto:
        return emit_placeholders(prepared.model, schemes.mix(sets, bits), config.encoding)

    assembler = Assembler(
        prepared.original,
        emit,
        prepared.samples,
        prepared.original_padding,
        cache,
        measure=lambda bits: switched.measure_choice(sets, bits),
        sets=sets,
        rest=0.0,
        threads=run.threads,
        fused=run.target.is_onnxruntime,
    )
    excluded, in_float = graph.list_excluded(sets), graph.list_in_float()
    return _Measurements(assembler, latencies, seconds, schemes.name_of, excluded, in_float)


def _measure_activations(prepared: Prepared, schemes: Schemes, cache: Cache) -> tuple[Switched, dict[str, float]]:
    """A session in which activations are switched to 8 bits, and what each set of them loses alone on these."""
    eight = schemes.uniform[Candidate(FULL_BITS, FULL_BITS)]
    switched = Switched.of(prepared, eight.scheme, eight.grids)
    # Sums that have 16 bits whatever is planned are no sets of it.
    name = f"losses of {len(switched.sets)} sets of activations"
    return switched, cache.recall(name, switched.measure_each, dict[str, float])


def _add_tensors(prepared: Prepared, schemes: Schemes, sets: tuple[BitSet, ...], cache: Cache) -> tuple[BitSet, ...]:
    """The sets of layers with their tensors, and the sets of tensors that no layer reads."""
    _, losses = _measure_activations(prepared, schemes, cache)
    uniform = {c: each.scheme for c, each in schemes.uniform.items() if c.activation_bits >= FULL_BITS}
    return make_sets(prepared, uniform, losses, sets)


def _open_cache(prepared: Prepared, graph: PlannedGraph | None = None) -> Cache:
    settings = _spell_settings(prepared.config)
    original = fingerprint(prepared.original)
    # Rules that measure may leave other nodes in float, or let other layers read it, on another machine.
    in_float = sorted(prepared.in_float if graph is None else graph.list_in_float())
    alone = sorted({name for each in (graph.walk() if graph else ()) for name in each.prepared.alone})
    target = prepared.run.target.model_dump_json(exclude={"name", "description"})  # its file may have changed
    subject = (
        f"{original} {prepared.run.digest(prepared.samples)} {prepared.run.device.type} {settings} {target} {in_float}"
        f" {alone}"
    )
    return Cache(subject, prepared.config.cache_dir, prepared.run.warn)


def _spell_settings(config: QuantizeConfig) -> str:
    """The settings on which measurements for a plan depend, without the target."""
    return config.model_dump_json(
        exclude={*EXECUTION, *BUDGETS, *STAGES, "target", "latencies", "data", "pipeline", "steps", "views"}
    )
