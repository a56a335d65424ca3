"""Folders that a user names, and the names in them, as messages spell them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from ..errors import DataError
from ..files.reading import spell_fault

SHOWN = 3  # names listed in a message
# Characters in a message, since a file of another kind may hold anything: of a value, and of a name or of what a
# library says about a file.
SHOWN_VALUE = 40
SHOWN_TEXT = 200


def list_folder(folder: Path, *, give: str) -> list[Path]:
    """What is in a folder, sorted by name, without hidden files. Raises DataError where nothing is."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: {spell_fault(error)}; make it a folder that can be listed") from None
    if not entries:
        raise DataError(f"{folder}: the folder is empty; {give}")
    return entries


def natural_order(paths: Iterable[Path]) -> list[Path]:
    """Paths by name, in which numbers are sorted by value: step_2 stands before step_10."""
    return sorted(paths, key=lambda path: [_rank(text) for text in re.split("([0-9]+)", path.name)])


def _rank(text: str) -> tuple[int, int, str]:
    """How digits, in front of other texts, and all others are compared."""
    number = text.lstrip("0") if text.isascii() and text.isdigit() else None
    return (1, 0, text) if number is None else (0, len(number), number)


def shorten(text: str, length: int = SHOWN_TEXT) -> str:
    """The text, or its start and dots."""
    return text if len(text) <= length else text[:length] + "..."


def quote(text: str, length: int = SHOWN_TEXT) -> str:
    """The start of a text in quotes, with escapes for what cannot be printed."""
    return repr(text[:length]) + ("..." if len(text) > length else "")


def quote_some(names: Iterable[str], shown: int = SHOWN) -> str:
    """The first names in quotes, and dots where there are more."""
    first = [quote(name) for name in islice(names, shown + 1)]
    return ", ".join(first[:shown]) + (", ..." if len(first) > shown else "")


def list_names(names: Iterable[str], shown: int = 20) -> str:
    """The first names as they are, in quotes where they are no plain words, and dots where there are more."""
    first = list(islice(names, shown + 1))
    spelled = [name if name.isprintable() and len(name) <= SHOWN_TEXT else quote(name) for name in first[:shown]]
    return ", ".join(spelled) + (", ..." if len(first) > shown else "")
