"""Plan bits for one run's model: measure what sets of layers lose and cost, or recall it, and choose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto

from ..bitplan import CANDIDATE_OF, BitPlan, Frontier
from ..config import BUDGETS, PLACES, STEPS, LayerConfig, QuantizeConfig
from ..errors import ConfigError
from ..graph.index import Index
from ..graph.save import fingerprint
from ..graph.scheme import make_scheme
from ..quantization.calibrate import Batches, batch_size
from ..quantization.run import Ready, Run
from ..quantization.solve import round_embeddings
from ..runtime.cache import Cache, machine
from ..runtime.session import Session
from ..spec import Candidate, QuantScheme
from .allocate import Bits
from .assemble import Assembler
from .choose import make_bit_plan, trace_frontier
from .latency import Latencies, look_up_times, time_sets
from .latency_table import read_latencies
from .sensitivity import Grids, Survey, measure_sets


@dataclass(frozen=True)
class _Planned:
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
            "stitched models": self.whole.seconds,
        }
        passes = self.whole.pass_seconds
        return ", ".join(f"{what} {seconds:.1f} s ({seconds / passes:.0f} passes)" for what, seconds in spent.items())


def choose_bits(run: Run, ready: Ready) -> BitPlan:
    """Choose the sets' bits within the settings' budgets. Raises ConfigError."""
    if run.config.max_loss is not None and run.config.max_drop is not None:
        raise ConfigError(
            "max_drop: found max_loss beside it; each says what may be lost for the smallest file; give one of them"
        )
    with run.stage("plan"):
        measured = _measure(run, ready)
        whole = measured.whole
        names = {name for each in whole.sets for name in each.layers}
        excluded = [k.name for k in make_scheme(ready.prepared.model).layers if k.name not in names]
        found = make_bit_plan(whole, run.config, measured.latencies, name_of=measured.name_of, excluded=excluded)
        run.observer.note(measured.spell_time())
        return found


def trace(run: Run, ready: Ready) -> Frontier:
    """The least loss for every size of the file."""
    with run.stage("plan"):
        planned = _measure(run, ready)
        run.observer.note(planned.spell_time())
        return trace_frontier(planned.whole, run.config, planned.name_of)


def _measure(run: Run, ready: Ready) -> _Planned:
    """What every set loses and costs at each candidate, or what the cache has of it."""
    model, samples, config = ready.prepared.model, ready.samples, run.config
    size = batch_size(Session(model, also=list(run.scheme(ready).activations), threads=run.threads), samples)
    batches = Batches(samples, size)
    subject = f"{fingerprint(ready.original)} {batches.digest()} {run.device.type} {_spell_settings(config)}"
    cache = Cache(subject, config.cache_dir)
    if config.latencies is not None and config.max_latency is not None:
        read_latencies(Path(config.latencies))  # a fault of it comes before the work
    if cache.broken:
        run.warn(f"cache_dir: measurements are not kept: {cache.broken}")
    histograms = cache.recall("histograms", lambda: run.collect(ready, run.scheme(ready)))
    uniform, known = {}, {}
    for candidate in (CANDIDATE_OF[name] for name in dict.fromkeys(("W8A8", *config.candidates))):
        scheme = run.scheme(ready, **candidate._asdict())
        uniform[candidate] = Grids(scheme, *run.grids(ready, scheme, histograms, known))
    run.observer.blocks(len(uniform[candidate].scheme.layers))
    # The same number of threads wherever a layer is measured: what is found must not depend on it.
    own = config.model_copy(update={"threads": config.threads or 1})
    survey = Survey(model, uniform, batches, own, run.device)
    measured = measure_sets(survey, cache, tell=run.observer.planned, warn=run.warn)

    embedded = round_embeddings(Index(model.graph), run.scheme(ready))

    def assemble(bits: Bits) -> ModelProto:
        own = {n: c for each, c in zip(measured.sets, bits, strict=True) for n in each.layers}
        layers = {name: LayerConfig(**_bits_of(uniform[c].scheme, name)._asdict()) for name, c in own.items()}
        scheme = run.scheme(ready, layers)
        grids = run.grids(ready, scheme, histograms, known)
        params = embedded | {name: measured.params[name][c] for name, c in own.items()}
        return run.emit(model, scheme, grids, params)

    def name_of(layer: str, candidate: Candidate) -> str:
        return str(_bits_of(uniform[candidate].scheme, layer))

    whole = Assembler(ready.original, assemble, samples, cache, run.threads)
    whole.sets, latencies = measured.sets, None
    if config.max_latency is not None:
        if config.latencies is None:
            timed = cache.recall(f"latencies of {machine()}", lambda: time_sets(survey, measured.sets, assemble))
        else:
            timed = look_up_times(Path(config.latencies), measured.sets, name_of)
        whole.sets, latencies = timed
        whole.rest = latencies.rest
    return _Planned(whole, latencies, measured.seconds, name_of)


def _spell_settings(config: QuantizeConfig) -> str:
    """The settings on which measurements for a plan depend."""
    return config.model_dump_json(
        exclude={*PLACES, *BUDGETS, *STEPS, "latencies", "data", "pipeline", "steps", "views"}
    )


def _bits_of(scheme: QuantScheme, name: str) -> Candidate:
    return next(layer.bits for layer in scheme.layers if layer.name == name)
