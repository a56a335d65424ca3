"""Plan bits for one run's model: measure what sets of layers lose and cost, or recall it, and choose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto

from ..bitplan import CANDIDATE_OF, BitPlan, Frontier
from ..config import BUDGETS, EXECUTION, STAGES, LayerConfig, QuantizeConfig
from ..errors import ConfigError
from ..graph.index import Index
from ..graph.save import fingerprint
from ..graph.scheme import make_scheme
from ..quantization.calibrate import Batches, Statistics, batch_size
from ..quantization.run import Prepared
from ..quantization.solve import round_embeddings
from ..runtime.cache import Cache, machine
from ..runtime.session import Session
from ..spec import Candidate, Grids, QParams, QuantScheme
from .allocate import Bits
from .assemble import Assembler
from .choose import make_bit_plan, trace_frontier
from .latency import Latencies, look_up_times, time_sets
from .latency_table import read_latencies
from .sensitivity import Survey, UniformScheme, measure_sets


@dataclass(frozen=True)
class _Measured:
    """What there is to choose from, and the seconds that measuring it took, of all workers together."""

    whole: Assembler
    latencies: Latencies | None
    seconds: dict[str, float]
    name_of: Callable[[str, Candidate], str]

    def spell_time(self) -> str:
        """In passes of the float model over all samples."""
        spent = {
            "solving every layer at its candidates": self.seconds["solve"],
            "swapping them in": self.seconds["swap"],
            "assembled models": self.whole.seconds,
        }
        passes = self.whole.pass_seconds
        return ", ".join(f"{what} {seconds:.1f} s ({seconds / passes:.0f} passes)" for what, seconds in spent.items())


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
        whole = measured.whole
        names = {name for each in whole.sets for name in each.layers}
        excluded = [k.name for k in make_scheme(prepared.model).layers if k.name not in names]
        found = make_bit_plan(whole, config, measured.latencies, name_of=measured.name_of, excluded=excluded)
        run.observer.note(measured.spell_time())
        return found


def trace(prepared: Prepared) -> Frontier:
    """The least loss for every size of the file."""
    with prepared.run.stage("plan"):
        measured = _measure(prepared)
        prepared.run.observer.note(measured.spell_time())
        return trace_frontier(measured.whole, prepared.config, measured.name_of)


def _measure(prepared: Prepared) -> _Measured:
    """What every set loses and costs at each candidate, or what the cache has of it."""
    run, config = prepared.run, prepared.config
    if config.latencies is not None and config.max_latency is not None:
        read_latencies(Path(config.latencies))  # a fault of it comes before the work
    activations = list(prepared.scheme.activations)
    size = batch_size(Session(prepared.model, also=activations, threads=run.threads), prepared.samples)
    batches = Batches(prepared.samples, size)
    cache = _open_cache(prepared, batches)
    statistics = cache.recall("statistics", lambda: prepared.collect(prepared.scheme))
    schemes = _Schemes(prepared, statistics)
    run.observer.blocks(len(prepared.scheme.layers))
    # The same number of threads wherever a layer is measured: what is found must not depend on it.
    one_thread = config.model_copy(update={"threads": config.threads or 1})
    survey = Survey(prepared.model, prepared.padding, schemes.uniform, batches, one_thread, run.device)
    found = measure_sets(survey, cache, tell=run.observer.planned, warn=run.warn)
    embedded = round_embeddings(Index(prepared.model.graph), prepared.scheme)

    def assemble(bits: Bits) -> ModelProto:
        own = {n: c for each, c in zip(found.sets, bits, strict=True) for n in each.layers}
        params = embedded | {name: found.params[name][c] for name, c in own.items()}
        return prepared.emit(*schemes.mix(own), params)

    padding = prepared.original_padding
    whole = Assembler(prepared.original, assemble, prepared.samples, padding, cache, threads=run.threads)
    whole.sets, latencies = found.sets, None
    if config.max_latency is not None:
        if config.latencies is None:
            timed = cache.recall(f"latencies of {machine()}", lambda: time_sets(survey, found.sets, assemble))
        else:
            timed = look_up_times(Path(config.latencies), found.sets, schemes.name_of)
        whole.sets, latencies = timed
        whole.rest = latencies.rest
    return _Measured(whole, latencies, found.seconds, schemes.name_of)


def _open_cache(prepared: Prepared, batches: Batches) -> Cache:
    settings = _spell_settings(prepared.config)
    original = fingerprint(prepared.original)
    cache = Cache(f"{original} {batches.digest()} {prepared.run.device.type} {settings}", prepared.config.cache_dir)
    if cache.broken:
        prepared.run.warn(f"cache_dir: measurements are not kept: {cache.broken}")
    return cache


class _Schemes:
    """The schemes in which all layers have one candidate, and mixtures of them, on grids from the same statistics."""

    def __init__(self, prepared: Prepared, statistics: Statistics) -> None:
        self.prepared, self.statistics = prepared, statistics
        self.known: dict[Any, QParams] = {}
        names = dict.fromkeys(("W8A8", *prepared.config.candidates))
        self.uniform = {CANDIDATE_OF[name]: self._make(prepared.make_scheme(bits=CANDIDATE_OF[name])) for name in names}

    def _make(self, scheme: QuantScheme) -> UniformScheme:
        return UniformScheme(scheme, self.prepared.choose_grids(scheme, self.statistics, self.known))

    def mix(self, candidates: Mapping[str, Candidate]) -> tuple[QuantScheme, Grids]:
        """The scheme in which each layer has its own candidate, and its grids."""
        layers = {name: LayerConfig(**self._bits(name, c)._asdict()) for name, c in candidates.items()}
        scheme = self.prepared.make_scheme(layers)
        return scheme, self.prepared.choose_grids(scheme, self.statistics, self.known)

    def name_of(self, layer: str, candidate: Candidate) -> str:
        """The bits that a layer has at a candidate, which are its own where settings say so."""
        return str(self._bits(layer, candidate))

    def _bits(self, layer: str, candidate: Candidate) -> Candidate:
        return next(each.bits for each in self.uniform[candidate].scheme.layers if each.name == layer)


def _spell_settings(config: QuantizeConfig) -> str:
    """The settings on which measurements for a plan depend."""
    return config.model_dump_json(
        exclude={*EXECUTION, *BUDGETS, *STAGES, "latencies", "data", "pipeline", "steps", "views"}
    )
