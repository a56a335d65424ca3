"""One run over one model: its settings, what it says and times, the prepared model, its schemes and what they write."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from onnx import ModelProto

from ..bitplan import BitPlan
from ..config import BUDGETS, FLOAT_BITS, FULL_BITS, PLACES, LayerConfig, QuantizeConfig
from ..data import CalibrationSet, open_calibration
from ..errors import ConfigError
from ..graph.emit import emit_qdq
from ..graph.load import inputs_of, load_model
from ..graph.names import Selection, resolve_names
from ..graph.passes.rescale import fold_integer_pads
from ..graph.scheme import make_scheme
from ..numeric.histogram import Histogram
from ..report import Observer
from ..runtime.device import choose_device
from ..runtime.session import Session
from ..spec import VERSION_KEY, QParams, QuantScheme
from .calibrate import choose_grids, collect_histograms
from .input_grid import find_lossless_grids, keep_lossless
from .prepare import Prepared, check_unchanged, prepare
from .smoke_test import run_longest_texts

# The text of the settings fills multiples of so many bytes: a file's size, which may be limited, hardly depends on it.
SETTINGS_BYTES = 256
# Settings that do not go into the file: what they name lies on the machine of the run, or became the layers' bits.
_UNTOLD = {**dict.fromkeys((*PLACES, *BUDGETS, "candidates", "latencies"), True), "data": {"tokenizer"}}


@dataclass(frozen=True)
class Ready:
    """The model as it was given and as it is prepared, its nodes' names before, and what its samples say of it."""

    original: ModelProto
    prepared: Prepared
    names: list[str]
    samples: CalibrationSet
    fixed: dict[str, QParams]


class Run:
    """What the jobs on one model share.

    given: the settings as a user gave them; config: the same, with the bits of a plan once it is obeyed.
    """

    def __init__(self, config: QuantizeConfig, observer: Observer):
        """Raises ConfigError for settings that do not go together."""
        if config.planned and config.float_activations:
            raise ConfigError(
                f"activation_bits: found {FLOAT_BITS} beside a budget; bits are planned for layers that read 8 or 4;"
                " take one of them out"
            )
        self.given = self.config = config
        self.observer = observer
        self.threads = config.threads or 0
        self.device = choose_device(config.device)
        self.seconds: dict[str, float] = {}
        self.warnings: list[str] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Tell the observer of a stage, and time it."""
        self.observer.stage(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start

    def prepare(self, model, calibration) -> Ready:
        """Load and rewrite the model, open the samples, and see that the outputs are as before."""
        with self.stage("prepare"):
            original = load(model)
            session = Session(original, threads=self.threads)
            samples = self._open(original, calibration)
            run_longest_texts(session, samples)
            del session  # large models are held once
            prepared = prepare(load_model(original), self.config)
            ready = Ready(original, prepared, [n.name for n in original.graph.node if n.name], samples, {})
            # Bits that are planned may be more than the settings': whether to rescale must not depend on them.
            scheme = self.scheme(ready, **({"activation_bits": FULL_BITS} if self.config.planned else {}))
            fixed, rescaled = find_lossless_grids(prepared.model, scheme, samples, self.threads)
            if rescaled:
                prepared.passes["rescale_input"] = rescaled
                scheme = self.scheme(ready)
            for name, count in prepared.passes.items():
                if count:
                    self.observer.note(f"{name}: {count}")
            feeds = samples.read(range(samples.fixed_batch or 1))
            change = check_unchanged(original, prepared.model, feeds, self.threads, tolerance=prepared.tolerance)
            self.observer.note(f"outputs unchanged by preparation to {change:.1e} of their largest value")
            self.observer.note(f"{len(scheme.layers)} layers and {len(scheme.activations)} activations to quantize")
        return replace(ready, fixed=fixed)

    def _open(self, model: ModelProto, calibration) -> CalibrationSet:
        samples = open_calibration(calibration, inputs_of(model), self.config.data, limit=self.config.samples)
        for text in samples.warnings:
            self.warn(text)
        return samples

    def warn(self, text: str) -> None:
        """Tell the observer, and the report."""
        self.warnings.append(text)
        self.observer.warn(text)

    def scheme(self, ready: Ready, layers: Mapping[str, LayerConfig] | None = None, **bits: int) -> QuantScheme:
        """The scheme of the settings, or of other bits; those of ``layers``, by name, stand above both."""
        model = ready.prepared.model
        chosen = resolve_names(model, self.config, before=ready.names)
        return make_scheme(
            model,
            weight_bits=bits.get("weight_bits", self.config.weight_bits),
            activation_bits=bits.get("activation_bits", self.config.activation_bits),
            first_last_bits=self.config.first_last_bits,
            block_size=self.config.block_size,
            embedding_bits=self.config.embedding_bits or self.config.weight_bits,
            pair_limits=self.config.weight_range == "bounded",
            selection=Selection(chosen.excluded, (*chosen.layers, *(layers or {}).items())),
        )

    def grids(
        self, ready: Ready, scheme: QuantScheme, histograms, known: dict[Any, QParams] | None = None
    ) -> tuple[dict[str, QParams], dict[str, QParams]]:
        """Grids of the planned tensors, those of the model's inputs on the levels of their values if that can be."""
        activations, requantized = choose_grids(scheme, histograms, self.config, known)
        return activations | self.keep_lossless(ready, scheme, histograms), requantized

    def keep_lossless(self, ready: Ready, scheme: QuantScheme, histograms) -> dict[str, QParams]:
        """Grids on the levels of the inputs' values that hold for all samples."""
        fixed = {t: grid for t, grid in ready.fixed.items() if scheme.activations[t].bits == grid.spec.bits}
        return keep_lossless(fixed, histograms)

    def collect(self, ready: Ready, scheme: QuantScheme) -> dict[str, Histogram]:
        """Histograms of the planned tensors over all samples."""
        return collect_histograms(ready.prepared.model, list(scheme.activations), ready.samples, threads=self.threads)

    def obey(self, plan: BitPlan) -> None:
        """Give every layer the bits of a plan."""
        self.config = with_bits(self.config, plan.settings())

    def emit(self, model: ModelProto, scheme: QuantScheme, grids, layers) -> ModelProto:
        """The QDQ model, which names the tool's version, the settings as they were given and every layer's bits."""
        quantized = emit_qdq(model, scheme, *grids, layers, encoding=self.config.encoding, keep_outputs=False)
        fold_integer_pads(quantized)
        settings = self.given.model_dump_json(exclude=_UNTOLD)
        entries = {
            VERSION_KEY: version("onnxcalib"),
            "onnxcalib.settings": settings.ljust(-(-len(settings) // SETTINGS_BYTES) * SETTINGS_BYTES),
            "onnxcalib.bits": json.dumps({k.name: str(k.bits) for k in (*scheme.embeddings, *scheme.layers)}),
        }
        for key, value in entries.items():
            entry = quantized.metadata_props.add()
            entry.key, entry.value = key, value
        return quantized


def load(model: str | Path | ModelProto) -> ModelProto:
    """A copy of the model, or that of a file. Raises ModelError."""
    return load_model(model if isinstance(model, ModelProto) else Path(model))


def with_bits(config: QuantizeConfig, layers: Mapping[str, LayerConfig]) -> QuantizeConfig:
    """The settings with these bits of single layers."""
    others = {name: each for name, each in config.layers.items() if name not in layers}
    return config.model_copy(update={"layers": {**others, **layers}})  # the last entry that names a layer holds
