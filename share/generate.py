"""Make the manual page and the shell completions that the wheel installs from the commands' own help.

    python share/generate.py    # after each change of an option or its help; a test compares

The completions are static: no key press starts Python.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.main import get_command

from onnxcalib import __version__
from onnxcalib.cli.app import app
from onnxcalib.cli.exitstatus import ExitStatus
from onnxcalib.config import QuantizeConfig, ValidateConfig, list_settings

SHARE = Path(__file__).resolve().parent
MAN, BASH, ZSH, FISH = (
    "man/man1/onnxcalib.1",
    "bash-completion/completions/onnxcalib",
    "zsh/site-functions/_onnxcalib",
    "fish/vendor_completions.d/onnxcalib.fish",
)
COMMENT = "made by share/generate.py"
STATUSES = {
    ExitStatus.OK: "The work is done; for validate: every gate holds.",
    ExitStatus.ERROR: "The work could not be done. One line on stderr says why.",
    ExitStatus.USAGE: "Wrong usage, or settings that do not go together.",
    ExitStatus.GATE: "validate has finished, and a gate does not hold.",
    ExitStatus.INTERRUPTED: "Interrupted. Nothing half-written is left.",
}


@dataclass(frozen=True)
class Option:
    """An option or an argument of a command: names, what stands behind it, and the values to offer there."""

    names: tuple[str, ...]
    value: str
    text: str
    panel: str = "Options"
    choices: tuple[str, ...] = ()
    files: bool = False
    repeated: bool = False

    @property
    def short(self) -> str:
        """The first sentence of the text, or the first part of it."""
        return re.split(r"(?<=\w)[.;:](?=\s|$)| \[", self.text)[0]


@dataclass(frozen=True)
class Command:
    name: str
    text: tuple[str, ...]
    arguments: tuple[Option, ...]
    options: tuple[Option, ...]

    @property
    def short(self) -> str:
        return self.text[0].partition(".")[0]

    @property
    def names(self) -> list[str]:
        return [name for option in self.options for name in option.names]


HELP = Option(("--help",), "", "Show this message and exit.")


def list_commands() -> list[Command]:
    values = {s.name: s.choices for kind in (QuantizeConfig, ValidateConfig) for s in list_settings(kind)}
    return [_describe(name, command, values) for name, command in get_command(app).commands.items()]  # type: ignore[attr-defined]


def _describe(name: str, command: Any, values: dict[str, tuple[str, ...]]) -> Command:
    arguments, options = [], []
    for each in command.params:
        option = _read(each, values)
        (options if option.names[0].startswith("-") else arguments).append(option)
    paragraphs = tuple(" ".join(part.split()) for part in command.help.split("\n\n"))
    return Command(name, paragraphs, tuple(arguments), (*options, HELP))


def _read(given: Any, values: dict[str, tuple[str, ...]]) -> Option:
    of_path = given.type_descriptor.annotation is Path
    flag = getattr(given, "is_flag", False)
    value = "" if flag else given.metavar or ("FILE" if of_path else given.name.upper())
    placeholders = set(re.findall(r"[A-Z]+", value))
    return Option(
        names=(*given.opts, *given.secondary_opts),
        value=value.strip("<>"),
        text=(given.help or "").replace(r"\[", "["),
        panel=given.rich_help_panel or "Options",
        choices=() if flag else values.get(given.name, ()),
        files=not flag and (of_path or not placeholders.isdisjoint({"FILE", "DIR"})),
        repeated=given.multiple,
    )


def make_man(commands: list[Command]) -> str:
    """The manual page, in the macros of man(7)."""
    lines = [
        f'.\\" {COMMENT}',
        f'.TH ONNXCALIB 1 "" "onnxcalib {__version__}" "User Commands"',
        ".SH NAME",
        r"onnxcalib \- post-training quantization of ONNX models",
        ".SH SYNOPSIS",
    ]
    for command in commands:
        words = " ".join(rf"\fI{each.value}\fR" for each in command.arguments)
        lines += [".B onnxcalib " + command.name, rf"[\fIOPTIONS\fR] {words}".rstrip(), ".br"]
    lines[-1:] = [".SH DESCRIPTION", *_escape(get_command(app).help or ""), ".SH COMMANDS"]
    for command in commands:
        lines += [f".SS {command.name}"]
        lines += [line for paragraph in command.text for line in (".PP", *_escape(paragraph))]
        panel = None
        for option in (*command.arguments, *command.options):
            title = option.panel if option.names[0].startswith("-") else "Arguments"
            if title != panel:
                panel = title
                lines += [".PP", rf"\fI{_spell(title)}\fR"]
            lines += [".TP", _head(option), *_escape(option.text)]
    lines += [".SH EXIT STATUS"]
    lines += [line for status, text in STATUSES.items() for line in (".TP", rf"\fB{int(status)}\fR", *_escape(text))]
    return "\n".join(lines) + "\n"


def _head(option: Option) -> str:
    if not option.names[0].startswith("-"):
        return rf"\fI{option.value}\fR"
    names = ", ".join(rf"\fB{_spell(name)}\fR" for name in option.names)
    return f"{names} \\fI{_spell(option.value)}\\fR" if option.value else names


def _spell(text: str) -> str:
    return text.replace("\\", r"\e").replace("-", r"\-")


def _escape(text: str) -> Iterator[str]:
    """Sentences, one a line; none of them is taken for a request."""
    for sentence in re.split(r"(?<=[.;]) ", " ".join(text.split())):
        yield ("\\&" if sentence.startswith((".", "'")) else "") + _spell(sentence)


def make_bash(commands: list[Command]) -> str:
    names = " ".join(command.name for command in commands)
    lines = [
        "# shellcheck shell=bash",
        f"# {COMMENT}",
        "_onnxcalib() {",
        '    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} words=""',
        "    COMPREPLY=()",
        "    if ((COMP_CWORD == 1)); then",
        f'        words="{names} --version --help"',
        "    else",
        '        case "${COMP_WORDS[1]} $before" in',
    ]
    for command in commands:
        plain = [option for option in command.options if option.value and not (option.choices or option.files)]
        for option in command.options:
            if option.choices:
                keys = "|".join(f'"{command.name} {name}"' for name in option.names)
                lines.append(f'            {keys}) words="{" ".join(option.choices)}" ;;')
        if plain:  # values that nothing is known of, and that are no files
            keys = "|".join(f'"{command.name} {name}"' for option in plain for name in option.names)
            lines.append(f"            {keys}) compopt +o default 2>/dev/null; return ;;")
        files = [f'"{command.name} {name}"' for option in command.options if option.files for name in option.names]
        if files:
            lines.append(f"            {'|'.join(files)}) return ;;")
    lines += ["            *)", '                case "${COMP_WORDS[1]}" in']
    for command in commands:
        lines.append(f'                    {command.name}) words="{" ".join(command.names)}" ;;')
    lines += [
        "                esac",
        "                [[ $word == -* ]] || return ;;",
        "        esac",
        "    fi",
        '    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")',
        "}",
        "complete -o default -F _onnxcalib onnxcalib",
    ]
    return "\n".join(lines) + "\n"


def make_zsh(commands: list[Command]) -> str:
    lines = [
        "#compdef onnxcalib",
        f"# {COMMENT}",
        "local curcontext=$curcontext state line",
        "local -a commands",
        "commands=(",
        *(f"    {_quote(f'{command.name}:{command.short}')}" for command in commands),
        ")",
        "_arguments -C '--version[print the version]' '--help[show the help]' \\",
        "    '1:command:->command' '*::argument:->rest'",
        "case $state in",
        "    command) _describe command commands ;;",
        "    rest)",
        "        case $line[1] in",
    ]
    for command in commands:
        specs = [spec for option in command.options for spec in _list_specs(option)]
        specs += [f"{place}:{each.value}:_files" for place, each in enumerate(command.arguments, 1)]
        lines += [f"            {command.name})", "                _arguments \\"]
        lines += [f"                    {_quote(spec)} \\" for spec in specs]
        lines[-1] = lines[-1].removesuffix(" \\")
        lines += ["                ;;"]
    return "\n".join([*lines, "        esac", "        ;;", "esac"]) + "\n"


def _list_specs(option: Option) -> Iterator[str]:
    text = re.sub(r"([\[\]:\\])", r"\\\1", option.short)
    for name in option.names:
        value = ""
        if option.value:
            offered = f"({' '.join(option.choices)})" if option.choices else "_files" if option.files else " "
            value = ":" + option.value.replace(":", r"\:") + ":" + offered
        yield f"{'*' if option.repeated else ''}{name}[{text}]{value}"


def make_fish(commands: list[Command]) -> str:
    lines = [f"# fish completion for onnxcalib, {COMMENT}"]
    start = "complete --command onnxcalib --condition"
    for command in commands:
        lines += [f"{start} __fish_use_subcommand --no-files --arguments {command.name} -d {_quote(command.short)}"]
    for name, text in (("version", "print the version"), ("help", "show the help")):
        lines += [f"{start} __fish_use_subcommand --long-option {name} -d {_quote(text)}"]
    for command in commands:
        here = f"{start} '__fish_seen_subcommand_from {command.name}'"
        for option in command.options:
            for name in option.names:
                kind = "--long-option" if name.startswith("--") else "--short-option"
                words = [here, kind, name.lstrip("-"), "-d", _quote(option.short)]
                if option.choices:
                    words += ["--exclusive", "--arguments", _quote(" ".join(option.choices))]
                elif option.value:
                    words += ["--require-parameter", "--force-files"] if option.files else ["--exclusive"]
                lines.append(" ".join(words))
    return "\n".join(lines) + "\n"


def _quote(text: str) -> str:
    return "'" + text.replace("'", "’") + "'"


def make_all() -> dict[str, str]:
    """Path below share/ -> its text."""
    commands = list_commands()
    return {
        MAN: make_man(commands),
        BASH: make_bash(commands),
        ZSH: make_zsh(commands),
        FISH: make_fish(commands),
    }


if __name__ == "__main__":
    for name, text in make_all().items():
        path = SHARE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
