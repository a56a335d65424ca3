"""Files of texts: what any table gives back, however it is written, and what any other file is refused with."""

from __future__ import annotations

import csv
import io
import json
import os
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from onnxcalib.config import DataConfig
from onnxcalib.data.textfiles import read_rows
from onnxcalib.errors import ConfigError, DataError

BOM = "\ufeff"
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
LINES = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), max_size=8)
TAB_CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0\t\r\n"), max_size=8)
ENDS = st.sampled_from(["\n", "\r\n"])
BOMS = st.sampled_from(["", BOM])
# Files of the characters that mean something to a parser, and any bytes.
FILES = st.text(st.sampled_from('",\t\n\r{}[]:a1\\\x00é')).map(str.encode) | st.binary()


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """The rows of a file of this name and content."""
    folder = tmp_path_factory.mktemp("texts")

    def make(name, content, **settings):
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return list(read_rows(path, DataConfig(**settings)))

    return make


def write_csv(rows, **options):
    file = io.StringIO(newline="")
    csv.writer(file, **options).writerows(rows)
    return file.getvalue()


@settings(deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(TEXTS, TEXTS, TEXTS)),
    BOMS,
    # Between "\n" alone the writer leaves a "\r" unquoted, which its reader does not take.
    st.sampled_from([("\n", csv.QUOTE_ALL), ("\r\n", csv.QUOTE_ALL), ("\r\n", csv.QUOTE_MINIMAL)]),
    st.permutations([0, 1, 2]),
)
@example([("a\r\nb", 'say "so"', "x,y"), ("", "", "")], BOM, ("\r\n", csv.QUOTE_MINIMAL), [2, 0, 1])
def test_a_csv_gives_the_cells_of_the_columns_that_are_named(read, rows, bom, form, order):
    end, quoting = form
    content = bom + write_csv([("first", "second", "third"), *rows], lineterminator=end, quoting=quoting)
    names = [("first", "second", "third")[column] for column in order[:2]]
    found = read("x.csv", content, text_column=tuple(names), pairs=True)
    assert [row.texts for row in found] == [(row[order[0]], row[order[1]]) for row in rows]
    ends = [row.line for row in found]
    assert ends == sorted(set(ends)) and (not ends or ends[-1] == content.count("\n"))


@settings(deadline=None, derandomize=True)
@given(st.lists(TEXTS), BOMS, ENDS)
def test_a_csv_of_one_column_gives_its_cells_and_an_empty_text_for_blank_ones(read, cells, bom, end):
    content = bom + write_csv([["text"], *([cell] for cell in cells)], lineterminator=end, quoting=csv.QUOTE_ALL)
    assert [row.texts for row in read("x.csv", content)] == [(cell if cell.strip() else "",) for cell in cells]


@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(TAB_CELLS, TAB_CELLS)), BOMS, ENDS, st.sampled_from(["x.tsv", "x.csv"]))
@example([('"', "it's 5\" long")], "", "\n", "x.tsv")
def test_a_table_between_tabs_gives_its_cells_with_their_quotes(read, rows, bom, end, name):
    content = bom + "".join("\t".join(row) + end for row in [("id", "text"), *rows])
    assert [row.texts for row in read(name, content)] == [(row[1],) for row in rows]
    found = read(name, content, text_column="1,2")  # by number the first row is one of texts
    assert [(row.line, *row.texts) for row in found] == [
        (number, *row) for number, row in enumerate([("id", "text"), *rows], 1)
    ]


@settings(deadline=None, derandomize=True)
@given(st.lists(TEXTS | st.none()), BOMS, ENDS, st.booleans(), st.booleans())
def test_a_jsonl_gives_its_texts_by_key_or_by_themselves(read, texts, bom, end, ascii_only, keyed):
    def spell(text):
        value = {"id": 1, "sentence": text, "z": [None]} if keyed else text
        return "" if text is None else json.dumps(value, ensure_ascii=ascii_only)

    content = bom + "".join(spell(text) + end for text in texts)
    assert [(row.line, row.texts) for row in read("x.jsonl", content)] == [
        (number, (text or "",)) for number, text in enumerate(texts, 1)
    ]


@settings(deadline=None, derandomize=True)
@given(st.lists(LINES), BOMS, ENDS)
def test_a_txt_gives_its_lines(read, lines, bom, end):
    content = bom + "".join(line + end for line in lines)
    if not bom and content.startswith(BOM):  # a text's own first character is then the file's mark
        lines = [lines[0][1:], *lines[1:]]
    assert [(row.line, *row.texts) for row in read("x.txt", content)] == list(enumerate(lines, 1))


@settings(deadline=None, derandomize=True)
@given(FILES, st.sampled_from(["x.txt", "x.csv", "x.tsv", "x.jsonl"]), st.sampled_from(["", "1", "a", "1,2"]))
@example(b'"a', "x.csv", "")
@example(b"[" * 100_000, "x.jsonl", "")
@example(b"1" * 5_000, "x.jsonl", "")
@example(b"a" * 200_000, "x.csv", "")
@example(b"a\n\xff", "x.txt", "")
def test_any_other_file_is_refused_with_its_name_in_one_line(read, content, name, columns):
    settings = {"text_column": columns or (), "pairs": "," in columns} if name != "x.txt" else {}
    try:
        rows = read(name, content, **settings)
    except DataError as error:
        assert re.match(rf"\S*{name}: (line \d+: |text_column: )", str(error)) and "\n" not in str(error)
    else:
        assert all(isinstance(text, str) for row in rows for text in row.texts)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("x.csv", 'text\n"a"b\n', "x.csv: line 2: not CSV ("),
        ("x.csv", 'text\n"a\nb', "x.csv: line 3: not CSV ("),
        ("x.csv", "id,text\n1,a\n2\n", "x.csv: line 3: found 1 columns; the first row has 2; mend the row"),
        ("x.csv", "text,id\na, b,1\n", "x.csv: line 2: found 3 columns; the first row has 2; mend the row"),
        ("x.tsv", "id\ttext\n1\n", "x.tsv: line 2: found 1 columns; the first row has 2"),
        ("x.jsonl", '{"text": "a"}\n{"text": }', "x.jsonl: line 2: not JSON ("),
        ("x.jsonl", '{"text": "a"}\n["a"]', "x.jsonl: line 2: found list; write an object"),
        ("x.jsonl", '\n{"text": 1}', "x.jsonl: line 2: 'text' is int; a text is needed"),
        ("x.txt", b"a\nb\xff\n", "x.txt: line 2: not UTF-8 text (at byte 1); save the file as UTF-8"),
        ("x.csv", b"text\na\nb\xc3", "x.csv: line 3: not UTF-8 text (at byte 1)"),
    ],
)
def test_a_fault_is_refused_with_its_file_and_line(read, name, content, text):
    with pytest.raises(DataError, match=re.escape(text)):
        read(name, content)


@pytest.mark.parametrize("name", ["x.txt", "x.csv", "x.tsv", "x.jsonl"])
def test_a_line_that_is_too_long_is_refused_with_its_number_and_not_read_whole(read, tmp_path, name):
    text = (
        r"line 2: a line, or a row of several, is longer than 1,000 bytes; write one text a line, or raise --max-line"
    )
    with pytest.raises(DataError, match=text):
        read(name, '"text"\n' + "a" * 1_001, max_line="1KB")
    with open(tmp_path / name, "wb") as file:
        file.truncate(2**40)
    with pytest.raises(DataError, match=r"line 1: a line, or a row of several, is longer than 1,000,000 bytes"):
        list(read_rows(tmp_path / name, DataConfig()))


def test_a_row_of_many_lines_is_limited_as_one_line_is(read):
    row = '"a' + '\n","' * 400 + '"\n'
    with pytest.raises(DataError, match=r"x\.csv: line 251: a line, or a row of several, is longer than 1,000 bytes"):
        read("x.csv", row, text_column=1, max_line="1KB")
    assert len(read("x.csv", '"a\nb"\n' * 400, text_column=1, max_line="1KB")) == 400


@pytest.mark.parametrize("name", ["x.csv", "x.tsv"])
def test_a_long_text_in_a_table_is_read_as_far_as_a_line_may_be(read, name):
    (row,) = read(name, "text\n" + "a" * 900_000)
    assert len(row.texts[0]) == 900_000


def test_the_longest_line_that_is_allowed_is_read_without_its_end_too(read):
    for end in ("", "\n"):
        (row,) = read("x.txt", "a" * (1_000 - len(end)) + end, max_line="1KB")
        assert set(row.texts[0]) == {"a"}


@pytest.mark.parametrize("name", ["x.txt", "x.csv", "x.tsv", "x.jsonl"])
def test_null_bytes_are_no_text(read, name):
    with pytest.raises(DataError, match=f"{name}: line 1: found a null byte, so that it is no UTF-8 text; save the"):
        read(name, "ab".encode("utf-16-le"))


@pytest.mark.parametrize("columns", ["9" * 5_000, "9" * 500, "\u0661" * 400])
def test_a_number_of_a_column_may_have_any_length(read, columns):
    with pytest.raises((DataError, ConfigError), match=r"text_column: (found|string)"):
        read("x.csv", "1,a\n", text_column=columns)


def test_many_columns_are_not_all_listed(read):
    with pytest.raises(DataError, match=r"the columns are 'c0', .*, 'c19', ...; give") as refusal:
        read("x.csv", ",".join(f"c{number}" for number in range(1_000)) + "\n")
    assert len(str(refusal.value)) < 700


def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "x.txt")
    with pytest.raises(DataError, match=r"x\.txt: is a pipe; give a file of texts"):
        list(read_rows(tmp_path / "x.txt", DataConfig()))
