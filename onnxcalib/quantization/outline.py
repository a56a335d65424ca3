"""What the structure of a model and the settings decide before any sample is looked at: a scheme, and what is in float.

It starts no torch, so that ``inspect`` tells of a model what a run will do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

from onnx import ModelProto

from ..bitplan import BitPlan
from ..config import FLOAT_BITS, FULL_BITS, LayerConfig, QuantizeConfig
from ..graph.index import has_bodies
from ..graph.names import Selection, resolve_names
from ..graph.parts import Part
from ..graph.scheme import make_scheme
from ..spec import Around, Candidate, QuantScheme, Requirements
from ..targets import Target


@dataclass(frozen=True, kw_only=True)
class Outline:
    """A float model that was rewritten for quantization, and the scheme of its settings.

    original: the model as it was given. model: the rewritten model. scheme: that of the settings. in_float: node -> why
    the tool itself leaves it in float; no scheme of this model quantizes these. alone: layers that read float in place
    of what each run would round. parts: those of the outputs, which are judged apart. tied: see ``find_tied``.
    """

    config: QuantizeConfig
    original: ModelProto = field(repr=False)
    model: ModelProto = field(repr=False)
    scheme: QuantScheme
    in_float: Mapping[str, str] = field(default_factory=dict)
    alone: frozenset[str] = frozenset()
    parts: Mapping[str, tuple[Part, ...]] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)

    @property
    def target(self) -> Target:
        """What the file is made for."""
        raise NotImplementedError

    @property
    def settings(self) -> QuantizeConfig:
        """``config``, with what is set for single nodes in bodies."""
        return self.config

    @property
    def around(self) -> Around | None:
        """What the graph around a body says; None of a model's own graph."""
        return None

    def leave_out(self, what: str, reason: str) -> None:
        """Take note of what is not done, and why."""
        raise NotImplementedError

    def make_scheme(
        self,
        layers: Mapping[str, LayerConfig] | None = None,
        bits: Candidate | None = None,
        tensors: Mapping[str, int] | None = None,
    ) -> QuantScheme:
        """The scheme of the settings, or of ``bits`` for all layers; ``layers`` and ``tensors`` override both."""
        return make_settings_scheme(
            self.model,
            self.config,
            self.original,
            self.target.requirements,
            in_float=self.in_float,
            around=self.around,
            tied=self.tied,
            alone=self.alone,
            layers=layers,
            bits=bits,
            tensors=tensors,
        )

    @cached_property
    def widest_scheme(self) -> QuantScheme:
        """The scheme of the settings; where a plan will choose the bits, that of the most that it may give."""
        return self.make_widest_scheme() if self.config.planned else self.scheme

    def make_widest_scheme(self) -> QuantScheme:
        """The same, made anew of a model that has changed."""
        chosen = self.config.planned and not self.config.planned_alone
        bits = Candidate(self.config.weight_bits, FULL_BITS) if chosen else None
        return self.make_scheme(bits=bits)

    def leave(self, reasons: Mapping[str, str]) -> Self:
        """The same model with these nodes left in float, beside those that are already."""
        if reasons.items() <= self.in_float.items():
            return self
        left = replace(self, in_float={**self.in_float, **reasons})
        return replace(left, scheme=left.make_scheme())

    def read_float(self, layers: Collection[str]) -> Self:
        """The same model with the weights alone of these layers quantized."""
        found = replace(self, alone=self.alone.union(layers))
        return replace(found, scheme=found.make_scheme()) if layers else self


def make_settings_scheme(
    model: ModelProto,
    config: QuantizeConfig,
    original: ModelProto,
    requirements: Requirements,
    *,
    in_float: Mapping[str, str] | None = None,
    around: Around | None = None,
    tied: Mapping[str, str] | None = None,
    alone: Collection[str] = (),
    layers: Mapping[str, LayerConfig] | None = None,
    bits: Candidate | None = None,
    tensors: Mapping[str, int] | None = None,
) -> QuantScheme:
    """The scheme of the settings; see ``Outline`` for ``in_float`` to ``alone``, its ``make_scheme`` for the rest."""
    chosen = resolve_names(model, config, before=original)
    # The last entry of a layer holds: it has the weights' bits that the settings give.
    own = {name: chosen.settings(name).model_copy(update={"activation_bits": FLOAT_BITS}) for name in alone}
    bits = bits or Candidate(config.weight_bits, config.activation_bits)
    if config.encoding == "standard":  # which has operators of ONNX alone
        requirements = replace(requirements, recurrent=False)
    if config.max_a16 is not None:  # what has 16 bits is chosen, and counts
        requirements = replace(requirements, wide_sums=False)
    return make_scheme(
        model,
        weight_bits=bits.weight_bits,
        activation_bits=bits.activation_bits,
        first_last_bits=config.first_last_bits,
        block_size=config.block_size,
        symmetric=config.weight_symmetry == "symmetric",
        embedding_bits=config.table_bits,
        tied=tied if config.embedding_bits is None else None,
        pair_limits=config.weight_range == "bounded",
        dynamic=config.activations == "dynamic",
        requirements=requirements,
        around=around,
        tensors={**config.tensors, **(tensors or {})},
        selection=Selection(
            chosen.excluded.union(in_float or ()), (*chosen.layers, *own.items(), *(layers or {}).items())
        ),
    )


def list_reasons(plan: BitPlan | None, model: ModelProto) -> dict[str, str]:
    """The nodes of the model that a plan leaves in float, and why."""
    nodes = {node.name for node in model.graph.node}
    return {} if plan is None else {name: why for name, why in plan.reasons().items() if name in nodes}


def take_own(plan: BitPlan, model: ModelProto, original: ModelProto, *, inside: bool = False) -> dict[str, LayerConfig]:
    """The bits that a plan gives to layers of a graph's own, before or behind preparation.

    Without bodies all of the plan is for the graph, unless it is ``inside`` of another.
    """
    if not inside and not any(map(has_bodies, original.graph.node)):
        return plan.settings()
    names = {node.name for each in (model, original) for node in each.graph.node}
    return {name: each for name, each in plan.settings().items() if name in names}


def with_bits(
    config: QuantizeConfig, layers: Mapping[str, LayerConfig], tensors: Mapping[str, int] | None = None
) -> QuantizeConfig:
    """The settings with these bits for single layers and tensors."""
    others = {name: each for name, each in config.layers.items() if name not in layers}
    bits = {"layers": {**others, **layers}, "tensors": {**config.tensors, **(tensors or {})}}
    return config.model_copy(update=bits)  # the last entry that names a layer holds
