"""Regular expressions of users: matched by an engine whose time grows with the text alone, whatever the expression."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from pydantic import StringConstraints, TypeAdapter, ValidationError


def match_whole(expression: str, names: Iterable[str]) -> list[str]:
    """The names that the expression matches from end to end, in their order.

    Python's own engine tries all ways in which an expression may match: ``(a+)+$`` takes hours on a name of 40 letters.
    This one, pydantic's, is linear in the name. For that it has no look-around and no references back.

    Raises ValueError, in one line, for what is no expression.
    """
    try:
        _compile(expression)  # alone first: "a)|(b" is an expression in parentheses only
        whole = _compile(rf"\A(?:{expression})\z")
    except Exception as error:  # pydantic does not export the class of what its engine says of an expression
        raise ValueError(_spell_fault(error)) from None
    return [name for name in names if _accepts(whole, name)]


def _compile(expression: str) -> TypeAdapter[str]:
    return TypeAdapter(Annotated[str, StringConstraints(pattern=expression)])


def _accepts(adapter: TypeAdapter[str], name: str) -> bool:
    try:
        adapter.validate_python(name)
    except ValidationError:
        return False
    return True


def _spell_fault(error: Exception) -> str:
    """What is wrong with an expression, without the drawing that points to the place."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = next((line for line in reversed(lines) if line.startswith("error:")), lines[-1] if lines else "")
    return said.removeprefix("error:").removeprefix("SchemaError:").strip()
