"""The operators that a target names are operators of ONNX: a rule of any other would hold for every file."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import defs

from ..errors import ConfigError, spell_value
from ..targets import Target
from ..targets.rules import Rule

# Keys of rules that hold operators, as values or as keys of their own. Patterns of forbidden ones may name any.
KEYS = ("operators", "through", "at_exit", "between", "axes", "kinds", "grids")


def check_names(target: Target) -> None:
    """Raise ConfigError for an operator that ONNX does not define."""
    known = {schema.name for schema in defs.get_all_schemas() if not schema.domain}
    for name, rule in target.list_rules().items():
        for key, operator in _list_operators(rule):
            if operator not in known:
                raise ConfigError(
                    f"target {spell_value(target.name)}: rules.{name}.{key}: found {spell_value(operator)}; operators"
                    " of ONNX are allowed, spelled as there; correct the name, or leave it out"
                )


def _list_operators(rule: Rule) -> Iterator[tuple[str, str]]:
    for key in KEYS:
        for operator in getattr(rule, key, ()):
            yield key, operator
