"""What the target of a run decides of its settings, and which of them it does not allow."""

from __future__ import annotations

from typing import Any

from ..config import FLOAT_BITS, LayerConfig, QuantizeConfig
from ..errors import ConfigError
from ..targets import Target


def settle(config: QuantizeConfig, target: Target) -> QuantizeConfig:
    """The settings, with what the target decides where they say nothing. Raises ConfigError for what it has not."""
    needs = target.requirements
    _check_bits(config, target)
    decided: dict[str, Any] = {"weight_range": "bounded" if target.bounded_weights else "full"}
    if not needs.through_cast:
        decided["encoding"] = "standard"
    if not target.is_onnxruntime:
        if config.placement != "all" and "placement" in config.model_fields_set:
            raise ConfigError(
                f"placement: found {config.placement!r} beside target {target.name!r}; times are known of"
                " onnxruntime alone; leave it out, and all that the target takes is quantized"
            )
        if config.max_latency is not None and config.latencies is None:
            raise ConfigError(
                f"max_latency: found {config.max_latency!r} beside target {target.name!r}, whose times cannot be"
                " measured here; give those of its layers as latencies"
            )
        decided |= {"placement": "all", "embedding_bits": FLOAT_BITS}
    return config.model_copy(update={k: v for k, v in decided.items() if k not in config.model_fields_set})


def _check_bits(config: QuantizeConfig, target: Target) -> None:
    """Refuse bits that the target has not, of all layers and of single ones."""
    needs = target.requirements
    every: tuple[tuple[str, QuantizeConfig | LayerConfig], ...] = (
        ("", config),
        *((f"layers: {name!r}: ", each) for name, each in config.layers.items()),
    )
    for where, settings in every:
        weight = settings.weight_bits or config.weight_bits
        activation = settings.activation_bits or config.activation_bits
        _check(f"{where}weight_bits", weight, needs.weight_bits, target)
        if activation != FLOAT_BITS:
            _check(f"{where}activation_bits", activation, needs.activation_bits, target)
        elif weight not in needs.weights_alone:
            alone = _join(needs.weights_alone) or "no weights"
            raise ConfigError(
                f"{where}activation_bits: found {FLOAT_BITS} beside weights of {weight} bits; target {target.name!r}"
                f" takes it beside {alone} alone; give other bits"
            )
    _check("first_last_bits", config.first_last_bits, needs.weight_bits, target)


def _check(name: str, found: int, allowed: tuple[int, ...], target: Target) -> None:
    if found not in allowed:
        raise ConfigError(
            f"{name}: found {found}; target {target.name!r} takes {_join(allowed)}; give bits that it takes, or another"
            " target"
        )


def _join(bits: tuple[int, ...]) -> str:
    return " or ".join(map(str, bits))
