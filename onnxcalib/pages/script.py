"""The plotting library that stands in every page: Vega-Lite, as the package vl-convert-python carries it."""

from __future__ import annotations

import hashlib
import importlib.util
from contextlib import suppress
from pathlib import Path

from ..errors import ConfigError, OutputError
from ..files.writing import write_file

NEEDED = {"jinja2": "jinja2"}  # module -> its package
# All that a page calls; what it does not call is left out of the script.
SNIPPET = "window.vegaEmbed = vegaEmbed;"


def check_installed() -> None:
    """Raise ConfigError where a package that no page can be made without is missing, before any work is done."""
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ConfigError(
            f"html: found no {missing[0]}; pages are made with it; pip install {missing[0]}, or leave --html out"
        )


def load_script() -> str | None:
    """The library's text; None where vl-convert-python, which takes 84 MB, is not installed.

    It takes 2 s to put together, so it is kept in the user's cache folder for the next page.
    """
    if importlib.util.find_spec("vl_convert") is None:
        return None
    from importlib.metadata import version  # not before, as every command starts with this module

    import platformdirs

    path = platformdirs.user_cache_path("onnxcalib") / f"vega-lite-{version('vl-convert-python')}.js"
    kept = _read(path)
    if kept is not None:
        return kept
    import vl_convert

    text: str = vl_convert.javascript_bundle(SNIPPET)
    if not path.is_absolute():  # the user has no home folder
        return text
    with suppress(OSError, OutputError):  # without a cache it is put together each time
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, f"// {_digest(text)}\n{text}")
    return text


def _read(path: Path) -> str | None:
    """What is kept, if it is whole."""
    try:
        first, _, text = path.read_text("utf-8").partition("\n")
    except (OSError, ValueError):
        return None
    return text if first == f"// {_digest(text)}" else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
