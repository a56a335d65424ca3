"""The reference of all settings as Markdown: ``python -m onnxcalib.config.reference`` prints it."""

from __future__ import annotations

from collections.abc import Iterator

from .describe import Setting, list_settings
from .fields import PANELS, Settings
from .layer import LayerConfig
from .quantize import QuantizeConfig
from .validate import ValidateConfig

# Title, kind, and what is said above its tables. Settings of samples are shown once.
_SECTIONS: tuple[tuple[str, type[Settings], str], ...] = (
    (
        "quantize and plan",
        QuantizeConfig,
        "These stand at the top of the TOML file; those under `[data]` may stand there too. `plan` has no option for"
        " the settings marked *quantize*.",
    ),
    ("validate", ValidateConfig, "These stand under `[validate]`, beside the settings of samples above."),
    ("Single layers", LayerConfig, "These stand under a table for each layer, or for several that are named at once."),
)


def render_reference() -> str:
    """Tables of key, option, type, default and meaning, grouped by command and by panel of the help."""
    lines: list[str] = []
    shown: set[tuple[str, str]] = set()
    for title, kind, text in _SECTIONS:
        own = [each for each in list_settings(kind) if (each.table, each.name) not in shown]
        shown |= {(each.table, each.name) for each in own}
        lines += [f"## {title}", "", text, ""]
        for panel in PANELS:
            rows = [each for each in own if each.option.panel == panel]
            if rows:
                lines += [*_render_table(panel, rows), ""]
    return "\n".join(lines)


def _render_table(panel: str, settings: list[Setting]) -> Iterator[str]:
    yield f"### {panel}"
    yield ""
    yield "| key | option | type | default | what it does |"
    yield "|---|---|---|---|---|"
    for each in settings:
        cells = (_spell_key(each), _spell_option(each), _spell_type(each), each.default or "none", each.text)
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _spell_key(setting: Setting) -> str:
    return f"`[{setting.table}]` `{setting.name}`" if setting.table else f"`{setting.name}`"


def _spell_option(setting: Setting) -> str:
    if setting.option.file_only or setting.table == LayerConfig.table:
        return "in the file only"
    names = ", ".join(f"`{name}`" for name in setting.flag.split("/"))
    return names if setting.option.plan else f"{names} (*quantize*)"


def _spell_type(setting: Setting) -> str:
    if setting.option.form:
        return "; ".join((setting.option.form, *setting.bounds))
    if setting.json_type == "boolean":
        return "`true` or `false`"
    if setting.choices:
        return ", ".join(f"`{choice}`" for choice in setting.choices)
    return ", ".join((setting.json_type, *setting.bounds))


if __name__ == "__main__":
    print(render_reference(), end="")
