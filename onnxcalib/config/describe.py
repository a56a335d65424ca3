"""What users are told of a setting, read off its pydantic field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from .fields import Option, Settings

# Bounds of JSON Schema in words.
_BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


@dataclass(frozen=True)
class Setting:
    """A setting as the help and the reference show it.

    table: where it stands in a TOML file, empty for the top. json_type: integer, number, boolean, string, array or
    object. choices: its allowed values, where these are few. bounds: its limits in words. default: in words.
    """

    name: str
    table: str
    text: str
    json_type: str
    choices: tuple[str, ...]
    bounds: tuple[str, ...]
    default: str | None
    option: Option

    @property
    def flag(self) -> str:
        """The option's name, both names of a switch: ``--biases/--no-biases``."""
        spelled = self.name.replace("_", "-")
        off = self.option.off or f"no-{spelled}"
        return f"--{spelled}/--{off}" if self.json_type == "boolean" else f"--{spelled}"


@cache
def list_settings(kind: type[Settings]) -> tuple[Setting, ...]:
    """All settings of a kind in the order of its fields, those of samples included."""
    schema = kind.model_json_schema()
    found: list[Setting] = []
    for name, field in kind.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(default, Settings):
            found += list_settings(type(default))
            continue
        option = next(each for each in field.metadata if isinstance(each, Option))
        values = _find_values(schema["properties"][name])
        bounds = tuple(f"{word} {_spell_limit(values[key])}" for key, word in _BOUNDS.items() if key in values)
        found.append(
            Setting(
                name=name,
                table=kind.table,
                text=field.description or "",
                json_type=values.get("type", "string"),  # numbers or words
                choices=tuple(map(str, values.get("enum", ()))),
                bounds=bounds if option.bounds is None else (option.bounds,),
                default=option.unset if default in (None, (), {}) else _spell(default),
                option=option,
            )
        )
    return tuple(found)


def _find_values(field: Mapping[str, Any]) -> Mapping[str, Any]:
    """The JSON Schema of a field's values without null."""
    others: list[Mapping[str, Any]] = [each for each in field.get("anyOf", [field]) if each.get("type") != "null"]
    return others[0]


def _spell(default: object) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return ",".join(part if isinstance(part, str) else f"{part:g}" for part in default)
    return str(default)


def _spell_limit(limit: float) -> str:
    return f"{int(limit):,}" if limit == int(limit) else f"{limit:g}"
