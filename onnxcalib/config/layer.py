"""The settings of single layers, which override those of the whole model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from ..errors import ConfigError, spell_value
from ..values import check_name, check_whole, read_number_or_word
from .fields import BITS, Option, Settings, Switch

# 3 bits are stored in 4.
Bits = Annotated[Literal[8, 4, 3, 2], BeforeValidator(check_whole)]
COLUMN = "column"
BlockSize = Annotated[Literal[16, 32, 64, 128, 256, "column"], BeforeValidator(read_number_or_word)]
# Bits of what layers read: 32 leaves it in float, and quantizes the weights alone.
ActivationBits = Annotated[Literal[32, 16, 8, 4], BeforeValidator(check_whole)]


class LayerConfig(Settings):
    """Settings that override the global ones for a layer; None keeps the global value."""

    table: ClassVar[str] = 'layers."NAME"'

    weight_bits: Annotated[
        Bits | None, Field(description="Bits of the layer's weights."), Option(BITS, unset="those of the others")
    ] = None
    activation_bits: Annotated[
        ActivationBits | None,
        Field(description="Bits of the activations that the layer reads; 32 leaves them in float."),
        Option(BITS, unset="those of the others"),
    ] = None
    block_size: Annotated[
        BlockSize | None,
        Field(description="Inputs that share a scale, where the layer reads float activations; column stands for all."),
        Option(BITS, unset="that of the others"),
    ] = None
    activations: Annotated[
        Literal["static", "dynamic"] | None,
        Field(description="Of an LSTM: dynamic makes it DynamicQuantizeLSTM; static quantizes its weights alone."),
        Option(BITS, unset="as the others"),
    ] = None
    exclude: Annotated[Switch, Field(description="Leave the layer in float."), Option(BITS)] = False


def read_layers(value: Any) -> Any:
    """Tables of LayerConfig by node name, their faults with the name in front."""
    if not isinstance(value, Mapping):
        raise ConfigError(
            f'layers: found {spell_value(value)}; it holds a table for each layer; write [layers."NAME"] above its bits'
        )
    return {name: _read_layer(name, settings) for name, settings in value.items()}


def _read_layer(name: str, settings: Any) -> LayerConfig:
    where = spell_value(name)
    try:
        check_name(name)
    except ValueError as error:
        raise ConfigError(f"layers: {where}: {error}") from None
    if isinstance(settings, LayerConfig):
        return settings
    if not isinstance(settings, Mapping):
        raise ConfigError(
            f"layers: {where}: found {spell_value(settings)}; it is a table; write [layers.{where}] above its bits"
        )
    values: dict[str, Any] = {}
    for key, value in settings.items():
        setting = str(key).replace("-", "_")
        if setting in values:
            raise ConfigError(f"layers: {where}: {setting}: given twice; keep one")
        values[setting] = value
    try:
        return LayerConfig(**values)
    except ConfigError as error:
        raise ConfigError(f"layers: {where}: {error}") from None
