"""Tables fit: names are shortened in the middle, numbers stay whole, columns without room go into a second part."""

from __future__ import annotations

import io

import pytest

from onnxcalib.cli.console import WIDEST, open_console, print_lines, wrap
from onnxcalib.cli.table import lay_out, print_table, shorten
from onnxcalib.validation.sheet import Sheet

NAMES = [f"/model/layers.{i}/self_attn/{kind}_proj" for i in range(2) for kind in "qk"]
CELLS = ("MatMul", "W8A8", "98.44 (91.7 to 100.0)", "34.37 (33.5 to 35.3)", "0.999824", "0.9095")
SHEET = Sheet(
    ("worst layers", "op", "bits", "agreement % (95%)", "SQNR dB (95%)", "cosine", "max error"),
    tuple((name, *CELLS) for name in NAMES),
    keys=3,
)


@pytest.mark.parametrize("width", [60, 80, 100])
def test_no_line_is_wider_and_every_number_is_whole(width):
    parts = lay_out(SHEET, width)
    assert max(len(line) for part in parts for text in part for line in text.split("\n")) <= width
    for number in range(len(NAMES)):
        shown = " ".join(line.split("W8A8")[1] for part in parts for line in part[1 + number :: len(NAMES)])
        assert shown.split() == " ".join(CELLS[2:]).split()
    assert len(parts) == {60: 3, 80: 2, 100: 1}[width]
    assert all(line.startswith("/m") for part in parts for line in part[1:])


def test_a_name_keeps_its_beginning_and_more_of_its_end():
    assert shorten("/layer1/layer1.0/conv2/Conv", 16, "…", 5) == "/laye…conv2/Conv"
    assert shorten("short", 16, "…", 5) == "short"
    assert shorten("層" * 20, 15, "...", 4) == "層層...層層層層"


def test_names_that_would_look_alike_are_folded_instead():
    rows = tuple((f"/encoder/layer.{i}/attention/output/dense/MatMul", "1") for i in range(2))
    ((_, *lines),) = lay_out(Sheet(("layer", "loss"), rows), 45)
    assert [line.split() for line in lines] == [[f"/encode…{i}/attention/output/dense/MatMul", "1"] for i in range(2)]
    ((_, *lines),) = lay_out(Sheet(("layer", "loss"), rows), 24)
    assert "".join(line.split("  ")[0].strip() for line in lines) == "".join(name for name, _ in rows)


def test_of_a_long_table_the_first_and_the_last_rows_are_shown(capsys):
    rows = tuple((f"layer{i}", "W8A8", "1.00e-02") for i in range(500))
    print_table(open_console(), Sheet(("layer", "bits", "loss W8A8"), rows, keys=2), whole="plan.json")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 30 + 1 + 10 + 1 and lines[30].startswith("layer29 ") and lines[32].startswith("layer490 ")
    assert lines[31].strip() in ("… 460 more", "... 460 more") and lines[-1] == "all 500 rows are in plan.json"
    print_table(open_console(), Sheet(("layer",), tuple(row[:1] for row in rows[:41])))
    assert len(capsys.readouterr().out.splitlines()) == 42


def test_prose_goes_on_in_the_next_line_and_control_characters_are_visible():
    sheet = Sheet(("node", "reason"), (("a\x1b[2J", "nothing in front of it is quantized by this rule"),), prose=(1,))
    ((head, *lines),) = lay_out(sheet, 30)
    assert head.split() == ["node", "reason"] and len(lines) > 1 and lines[0].startswith("a\\x1b[2J  nothing")
    rows = (("a", "com.amd.quark.QuantizeLinear", "com.amd.quark.QuantizeLinear, with more", "8"),)
    parts = lay_out(Sheet(("node", "weight", "input", "bits"), rows, prose=(1, 2)), 60)
    assert len(parts) == 2 and all(len(line) <= 60 for part in parts for line in part)


def test_a_file_has_lines_of_one_width_without_control_characters(capsys, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    console = open_console()
    assert console.width == WIDEST
    monkeypatch.setenv("COLUMNS", "60")
    narrow = open_console()
    assert narrow.width == 60
    print_table(narrow, SHEET, before=True, after=True)
    print_lines(narrow, ["word " * 40], style="bold red")
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and shown.startswith("\nworst layers") and "word " * 40 in shown


def test_a_terminal_breaks_sentences_at_words_and_has_no_colour_where_none_is_wanted(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    console = open_console()
    console.file = io.StringIO()
    path = "/a/path/without/spaces" * 4
    print_lines(console, [f"  wrote {path} and sentences of words that a terminal would break anywhere"], style="red")
    assert [len(line) <= 60 or path in line for line in console.file.getvalue().splitlines()].count(False) == 0
    assert path in console.file.getvalue() and "[31m" not in console.file.getvalue()
    assert wrap("", 60) == [""]
