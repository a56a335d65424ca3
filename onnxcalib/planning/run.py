"""Plan bits for one prepared model: measure the losses and costs of its sets, or recall them, and choose."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnx import ModelProto

from ..bitplan import CANDIDATE_OF, NAME_OF, BitPlan, Frontier, settings_of
from ..config import BUDGETS, EXECUTION, FULL_BITS, STAGES, WIDE_BITS, CandidateName, QuantizeConfig
from ..errors import ConfigError
from ..graph.index import Index
from ..graph.save import fingerprint
from ..graph.scheme import make_scheme
from ..quantization.calibrate import Batches, Statistics, batch_size
from ..quantization.cost_placement import COSTS_MORE
from ..quantization.measured_placement import RAN_SLOWER
from ..quantization.prepared import Prepared
from ..quantization.recurrent import round_recurrent
from ..quantization.solve import round_embeddings
from ..quantization.trial import emit_placeholders
from ..runtime.cache import Cache, machine
from ..runtime.session import Session
from ..spec import BitSet, Candidate, Grids, QParams, QuantScheme
from .activations import Switched, make_sets
from .assemble import Assembler
from .bits import Bits
from .choose import make_bit_plan, trace_frontier
from .latency import Latencies, look_up_times, time_sets
from .latency_table import read_latencies
from .sensitivity import Measured, Survey, UniformScheme, measure_sets
from .weights import PlannedWeights

# The bits of ends and of other layers with bits of their own where activations may have 16.
WIDEST: CandidateName = "W8A16"


@dataclass(frozen=True)
class _Measurements:
    """What bits are chosen from. seconds: time of measuring the sets, summed over all workers."""

    assembler: Assembler
    latencies: Latencies | None
    seconds: dict[str, float]
    name_of: Callable[[str, Candidate], CandidateName]

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
    with run.stage("plan"):
        measured = _measure(prepared)
        assembler = measured.assembler
        names = {name for each in assembler.sets for name in each.layers}
        excluded = [
            k.name
            for k in make_scheme(prepared.model, requirements=prepared.run.target.requirements).layers
            if k.name not in names
        ]
        options: dict[str, Any] = {"name_of": measured.name_of, "excluded": excluded, "in_float": prepared.in_float}
        try:
            found = make_bit_plan(assembler, config, measured.latencies, **options)
        except ConfigError as error:
            slow = sum(reason in (COSTS_MORE, RAN_SLOWER) for reason in prepared.in_float.values())
            if not slow:
                raise
            raise ConfigError(
                f"{error}; or give placement all, which quantizes {slow} nodes that are left in float for speed"
            ) from error
        run.observer.note(measured.spell_time())
        return found


def trace(prepared: Prepared) -> Frontier:
    """Find the least loss for each of several sizes of the file."""
    with prepared.run.stage("plan"):
        measured = _measure(prepared)
        prepared.run.observer.note(measured.spell_time())
        return trace_frontier(measured.assembler, prepared.config, measured.name_of)


def _measure(prepared: Prepared) -> _Measurements:
    """Measure the loss and the costs of every set at each candidate, as far as the cache does not have them."""
    run, config = prepared.run, prepared.config
    if not prepared.scheme.stored:
        raise ConfigError(
            "max_size: found a budget, or a curve asked for, of a model all of whose layers are in bodies of If, Loop"
            " or Scan; bits are planned of layers outside; give bits, or those of single layers, instead"
        )
    if config.latencies is not None:
        read_latencies(Path(config.latencies))  # a fault of the file is found before the work
        if config.max_latency is None:
            run.warn("latencies: found without max_latency, the only limit for which they are read; give both or none")
    cache = _open_cache(prepared)
    if config.planned_alone:
        return _measure_weights(prepared, cache)
    batches = _make_batches(prepared)
    statistics = prepared.collect(prepared.scheme)
    schemes = _Schemes(prepared, statistics)
    if activations_alone(config):
        return _measure_alone(prepared, schemes, cache)
    run.observer.blocks(len(prepared.scheme.layers))
    # Every layer is measured with the same number of threads wherever that is done: the results must not depend on it.
    one_thread = config.model_copy(update={"threads": config.threads or 1})
    survey = Survey(prepared.model, prepared.padding, schemes.uniform, batches, one_thread, run.device, prepared.parts)
    found = measure_sets(survey, cache, tell=run.observer.planned, warn=run.warn)
    if any(c.activation_bits == WIDE_BITS for c in schemes.uniform):
        found = replace(found, sets=_add_tensors(prepared, schemes, found.sets, cache))
    emit = _make_emitter(prepared, schemes, found)
    latencies = None
    if config.max_latency is not None and config.latencies is not None:
        latencies = look_up_times(Path(config.latencies), found.sets, schemes.name_of)
    elif config.max_latency is not None:
        latencies = cache.recall(f"latencies of {machine()}", lambda: time_sets(survey, found.sets, emit), Latencies)
    assembler = Assembler(
        prepared.original,
        emit,
        prepared.samples,
        prepared.original_padding,
        cache,
        parts=prepared.parts,
        class_axes=prepared.class_axes,
        sets=found.sets if latencies is None else latencies.sets,
        rest=0.0 if latencies is None else latencies.rest,
        threads=run.threads,
        fused=run.target.is_onnxruntime,
    )
    return _Measurements(assembler, latencies, found.seconds, schemes.name_of)


def _measure_weights(prepared: Prepared, cache: Cache) -> _Measurements:
    """As ``_measure`` where weights alone are chosen: losses are those of rounded weights."""
    config, start = prepared.config, time.perf_counter()
    planned = PlannedWeights.of(prepared)
    # The subject of the cache leaves the stages out.
    name = f"losses of weights alone, {'solved' if config.does('reconstruct') else 'rounded'}"
    losses = cache.recall(name, planned.measure_losses, dict[str, float])
    sets = planned.make_sets(losses)
    seconds = {"evaluate": time.perf_counter() - start}
    latencies = None
    if config.latencies is not None and config.max_latency is not None:
        latencies = look_up_times(Path(config.latencies), sets, planned.name_of)
        sets = latencies.sets
    assembler = Assembler(
        prepared.original,
        lambda bits: planned.emit(sets, bits),
        prepared.samples,
        prepared.original_padding,
        cache,
        parts=prepared.parts,
        class_axes=prepared.class_axes,
        sets=sets,
        rest=0.0,
        threads=prepared.run.threads,
        fused=prepared.run.target.is_onnxruntime,
        compared=planned.compared,
        emit_empty=lambda bits: planned.emit_empty(sets, bits),
    )
    return _Measurements(assembler, latencies, seconds, planned.name_of)


def activations_alone(config: QuantizeConfig) -> bool:
    """Whether all candidates differ by 8 or 16 bits of activations alone, and no budget is on what the model loses."""
    found = [CANDIDATE_OF[name] for name in config.candidates]
    widths = {c.activation_bits for c in found}
    same = len({c.weight_bits for c in found}) == 1 and widths == {FULL_BITS, WIDE_BITS}
    return same and config.max_loss is None and config.max_disagreement is None


def _measure_alone(prepared: Prepared, schemes: _Schemes, cache: Cache) -> _Measurements:
    """As ``_measure`` where activations alone are chosen: no layer is solved, and losses are those of activations."""
    run, config = prepared.run, prepared.config
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
    return _Measurements(assembler, latencies, seconds, schemes.name_of)


def _measure_activations(prepared: Prepared, schemes: _Schemes, cache: Cache) -> tuple[Switched, dict[str, float]]:
    """A session in which activations are switched to 8 bits, and what each set of them loses alone on these."""
    eight = schemes.uniform[Candidate(FULL_BITS, FULL_BITS)]
    switched = Switched.of(prepared, eight.scheme, eight.grids)
    # Sums that have 16 bits whatever is planned are no sets of it.
    name = f"losses of {len(switched.sets)} sets of activations"
    return switched, cache.recall(name, switched.measure_each, dict[str, float])


def _add_tensors(prepared: Prepared, schemes: _Schemes, sets: tuple[BitSet, ...], cache: Cache) -> tuple[BitSet, ...]:
    """The sets of layers with their tensors, and the sets of tensors that no layer reads."""
    _, losses = _measure_activations(prepared, schemes, cache)
    uniform = {c: each.scheme for c, each in schemes.uniform.items() if c.activation_bits >= FULL_BITS}
    return make_sets(prepared, uniform, losses, sets)


def _make_batches(prepared: Prepared) -> Batches:
    """The samples in batches whose activations fit into memory."""
    activations = prepared.scheme.computed
    session = Session(prepared.model, also=activations, threads=prepared.run.threads)
    return Batches(prepared.samples, batch_size(session, prepared.samples))


def _make_emitter(prepared: Prepared, schemes: _Schemes, measured: Measured) -> Callable[[Bits], ModelProto]:
    """A function that assembles the model at the bits of all sets."""
    index = Index(prepared.model.graph)
    embedded = round_embeddings(index, prepared.scheme) | round_recurrent(index, prepared.scheme)

    def emit(bits: Bits) -> ModelProto:
        candidates = {name: c for each, c in zip(measured.sets, bits, strict=True) for name in each.layers}
        params = embedded | {name: measured.params[name][c] for name, c in candidates.items()}
        scheme = schemes.mix(measured.sets, bits)
        return prepared.emit(scheme, schemes.choose_grids(scheme), params)

    return emit


def _open_cache(prepared: Prepared) -> Cache:
    settings = _spell_settings(prepared.config)
    original = fingerprint(prepared.original)
    # Rules that measure may leave other nodes in float on another machine.
    in_float = sorted(prepared.in_float)
    target = prepared.run.target.model_dump_json(exclude={"name", "description"})  # its file may have changed
    subject = (
        f"{original} {prepared.run.digest(prepared.samples)} {prepared.run.device.type} {settings} {target} {in_float}"
    )
    return Cache(subject, prepared.config.cache_dir, prepared.run.warn)


class _Schemes:
    """The schemes in which all layers have one candidate, and mixtures of them; all grids are from the same statistics.

    uniform: candidate -> the scheme in which all layers have it.
    """

    def __init__(self, prepared: Prepared, statistics: Statistics) -> None:
        self.prepared, self.statistics = prepared, statistics
        self.known: dict[Any, QParams] = {}
        wide = [WIDEST for name in prepared.config.candidates if CANDIDATE_OF[name].activation_bits == WIDE_BITS]
        names = dict.fromkeys(("W8A8", *prepared.config.candidates, *wide))
        self.uniform = {CANDIDATE_OF[name]: self._make(prepared.make_scheme(bits=CANDIDATE_OF[name])) for name in names}

    def _make(self, scheme: QuantScheme) -> UniformScheme:
        return UniformScheme(scheme, self.choose_grids(scheme))

    def choose_grids(self, scheme: QuantScheme) -> Grids:
        return self.prepared.choose_grids(scheme, self.statistics, self.known)

    def mix(self, sets: Sequence[BitSet], bits: Bits) -> QuantScheme:
        """The scheme in which each set has the candidate that the bits give it."""
        chosen = list(zip(sets, bits, strict=True))
        layers = {name: settings_of(self._bits(name, c)) for each, c in chosen for name in each.layers}
        tensors = {each.tensors[0]: c.activation_bits for each, c in chosen if not each.layers}
        return self.prepared.make_scheme(layers, tensors=tensors)

    def name_of(self, layer: str, candidate: Candidate) -> CandidateName:
        """The bits that a layer has at a candidate; a layer that the settings name keeps its own."""
        return NAME_OF[self._bits(layer, candidate)]

    def _bits(self, layer: str, candidate: Candidate) -> Candidate:
        return next(each.bits for each in self.uniform[candidate].scheme.layers if each.name == layer)


def _spell_settings(config: QuantizeConfig) -> str:
    """The settings on which measurements for a plan depend, without the target."""
    return config.model_dump_json(
        exclude={*EXECUTION, *BUDGETS, *STAGES, "target", "latencies", "data", "pipeline", "steps", "views"}
    )
