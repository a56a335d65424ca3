"""Texts: files of lines, columns and JSON lines, encoded by a tokenizer, and every fault that is refused."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from onnxcalib.config import DataConfig
from onnxcalib.data import open_calibration
from onnxcalib.errors import DataError
from onnxcalib.spec import InputSpec

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "b", "c", "text", "sentence"]
CLS, SEP, A, B, C = 1, 2, 4, 5, 6


def make_specs(*names, dtype=np.int64, shape=(None, None)):
    return [InputSpec(name, np.dtype(dtype), shape) for name in names]


BERT = make_specs("input_ids", "attention_mask", "token_type_ids")
IDS = make_specs("input_ids")


@pytest.fixture
def tokenizer(tmp_path):
    """A tokenizer of words, which puts [CLS] and [SEP] around them and pads, as those of BERT are saved."""
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    made.enable_padding(length=20)
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    return path


@pytest.fixture
def read(tokenizer, tmp_path):
    """Token ids without the special ones of every sample of a file."""

    def make(name, content, inputs=IDS, limit=None, **settings):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        samples = open_calibration(path, inputs, DataConfig(tokenizer=tokenizer, **settings), limit=limit)
        return [samples.read([i])["input_ids"][0, 1:-1].tolist() for i in range(len(samples))]

    return make


def refuse(text, call, *arguments, **options):
    with pytest.raises(DataError, match=re.escape(text)) as refusal:
        call(*arguments, **options)
    assert "\n" not in str(refusal.value)


def test_a_text_becomes_all_that_a_tokenizer_gives(tokenizer):
    inputs = [*BERT, *make_specs("position_ids", dtype=np.int32)]
    samples = open_calibration(["a b c", "c"], inputs, DataConfig(tokenizer=tokenizer))
    first, second = samples.read([0]), samples.read([1])
    assert first["input_ids"].tolist() == [[CLS, A, B, C, SEP]] and second["input_ids"].tolist() == [[CLS, C, SEP]]
    assert first["attention_mask"].tolist() == [[1] * 5] and second["token_type_ids"].tolist() == [[0] * 3]
    assert first["position_ids"].tolist() == [[0, 1, 2, 3, 4]] and first["position_ids"].dtype == np.int32
    assert first["input_ids"].dtype == np.int64 and samples.warnings == ()


def test_texts_are_not_padded_for_a_model_without_a_mask(tokenizer):
    samples = open_calibration(["a b c", "c"], IDS, DataConfig(tokenizer=tokenizer))
    assert [batch["input_ids"].shape for batch in samples.batches(8)] == [(1, 5), (1, 3)]


def test_texts_are_padded_to_the_tokens_that_a_model_fixes(tokenizer):
    inputs = make_specs("input_ids", "attention_mask", shape=(None, 4))
    samples = open_calibration(["a b c", "c"], inputs, DataConfig(tokenizer=tokenizer))
    (batch,) = samples.batches(8)
    assert batch["input_ids"].tolist() == [[CLS, A, B, SEP], [CLS, C, SEP, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    (warning,) = samples.warnings
    assert "padding is run: the model takes 4 tokens; its mask keeps it out of what is measured" in warning


def test_padding_of_a_model_without_a_mask_is_said_to_enter_ranges(tokenizer):
    fixed = make_specs("input_ids", shape=(None, 4))
    samples = open_calibration(["a b c", "c"], fixed, DataConfig(tokenizer=tokenizer))
    assert samples.warnings == (
        "data: padding is run: the model takes 4 tokens; the model has no mask, so that it enters ranges, solving and"
        " losses",
    )


def test_truncation_and_padding_are_on_the_side_that_the_tokenizer_has_them(tokenizer):
    own = Tokenizer.from_file(str(tokenizer))
    own.enable_truncation(4, direction="left", stride=1)
    own.enable_padding(direction="left", pad_id=3, pad_type_id=2)
    own.save(str(tokenizer))
    fixed = make_specs("input_ids", "attention_mask", "token_type_ids", "position_ids", shape=(None, 5))
    batch = open_calibration(["a a b c", "c"], fixed, DataConfig(tokenizer=tokenizer)).read([0, 1])
    assert batch["input_ids"].tolist() == [[3, CLS, B, C, SEP], [3, 3, CLS, C, SEP]]
    assert batch["attention_mask"].tolist() == [[0, 1, 1, 1, 1], [0, 0, 1, 1, 1]]
    assert batch["token_type_ids"].tolist() == [[2, 0, 0, 0, 0], [2, 2, 0, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 0, 1, 2, 3], [0, 0, 0, 1, 2]]
    samples = open_calibration(["a a b c", "c"], BERT, DataConfig(tokenizer=tokenizer))
    assert [samples.read([i])["input_ids"].tolist() for i in (0, 1)] == [[[CLS, B, C, SEP]], [[CLS, C, SEP]]]


def test_pairs_are_truncated_by_the_strategy_of_the_tokenizer(tokenizer, tmp_path):
    own = Tokenizer.from_file(str(tokenizer))
    own.enable_truncation(6, strategy="only_second")
    own.save(str(tokenizer))
    config = DataConfig(tokenizer=tokenizer, text_column="1,2", pairs=True)
    (tmp_path / "x.tsv").write_text("a b\tb c c c c\n")
    ids = open_calibration(tmp_path / "x.tsv", IDS, config).read([0])["input_ids"]
    assert ids.tolist() == [[CLS, A, B, SEP, B, SEP]]
    (tmp_path / "x.tsv").write_text("b c c c c\ta\n")
    refuse("cannot encode lines 1 to 1 (Truncation error", open_calibration, tmp_path / "x.tsv", IDS, config)


def test_many_texts_are_encoded_a_few_at_a_time_and_kept_by_their_own_lengths(tokenizer):
    texts = ["a b"] * 3000 + ["a " * 500] + ["", "c"]
    samples = open_calibration(texts, BERT, DataConfig(tokenizer=tokenizer))
    assert len(samples) == 3002 and samples.read([3001])["input_ids"].tolist() == [[CLS, C, SEP]]
    assert samples.read([3000])["input_ids"].shape == (1, 502)
    assert samples.warnings == ("data: 1 text is empty and left out, the first at text 3002",)


@pytest.mark.parametrize(
    ("name", "content", "settings", "kept", "warning"),
    [
        ("x.txt", "a\n\n \nb\n", {}, [[A], [B]], "2 texts are empty and left out, the first at line 2"),
        ("x.csv", "id,text\n1,a\n2,\n\n3,b\n", {}, [[A], [B]], "2 texts are empty and left out, the first at line 3"),
        (
            "x.tsv",
            "\na\t\nb\tc",
            {"text_column": "1,2"},
            [[A], [B], [C]],
            "2 texts are empty and left out, the first at line 1",
        ),
        (
            "x.csv",
            "a,\nb,c",
            {"text_column": "1,2", "pairs": True},
            [[B, SEP, C]],
            "1 text is empty and left out, the first at line 1",
        ),
        ("x.jsonl", '\n"a"\n{"text": ""}', {}, [[A]], "2 texts are empty and left out, the first at line 1"),
    ],
)
def test_empty_texts_are_left_out_and_reported(tokenizer, tmp_path, name, content, settings, kept, warning):
    (tmp_path / name).write_text(content)
    samples = open_calibration(tmp_path / name, IDS, DataConfig(tokenizer=tokenizer, **settings))
    assert [samples.read([i])["input_ids"][0, 1:-1].tolist() for i in range(len(samples))] == kept
    assert samples.warnings == (f"{tmp_path / name}: {warning}",)


def test_texts_of_no_tokens_are_left_out_and_reported(tokenizer):
    own = Tokenizer(models.WordLevel({"a": 0}))
    own.pre_tokenizer, own.normalizer = pre_tokenizers.Whitespace(), normalizers.Replace("b", "")
    own.save(str(tokenizer))
    samples = open_calibration(["a", "b", "a a", " "], IDS, DataConfig(tokenizer=tokenizer), limit=2)
    assert [samples.read([i])["input_ids"].tolist() for i in range(len(samples))] == [[[0]], [[0, 0]]]
    assert samples.warnings == ("data: 1 text is empty and left out, the first at text 2",)


def test_half_a_character_is_refused_with_its_line(tokenizer, tmp_path):
    config = DataConfig(tokenizer=tokenizer)
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n{"text": "b \\ud800"}')
    refuse("x.jsonl: line 2: found '\\ud800', a lone surrogate", open_calibration, tmp_path / "x.jsonl", IDS, config)
    refuse("data: text 2: found '\\udfff', a lone surrogate", open_calibration, ["a", "\udfff"], IDS, config)


def test_blank_lines_within_quotes_are_text_and_others_are_counted(read):
    assert read("x.csv", 'text,n\n"a\n\nb",1\n\nc,2\n') == [[A, B], [C]]
    refuse("x.csv: line 6: found 1 columns; the first row has 2", read, "x.csv", 'n,text\n1,"a\n\nb"\n\n2\n')


def test_more_tabs_than_commas_in_the_first_line_separate_columns(read):
    assert read("x.csv", "1\ta, b\tc\n", text_column=2) == [[A, 3, B]]
    assert read("x.csv", "1,a\tb,c\n", text_column=2) == [[A, B]]


def test_lines_of_a_text_file_are_samples_and_blank_ones_are_none(read):
    assert read("x.txt", "a b\r\n\n c\nb") == [[A, B], [C], [B]]


def test_a_limit_ends_reading_where_it_is_reached(read):
    assert read("x.jsonl", '"a"\n"b"\nno json', limit=2) == [[A], [B]]


def test_columns_are_named_by_the_header_or_counted_from_one(read):
    table = 'id,text,"other"\n1,a,"b, ""c"""\n2,b,c\n'
    assert read("x.csv", table) == [[A], [B]]
    assert read("x.csv", table, text_column="other,text") == [[B, 3, 3, C, 3], [A], [C], [B]]
    assert read("x.csv", "1,a\n2,b\n", text_column=2) == [[A], [B]]
    assert read("x.csv", "a\nb\n") == [[A], [B]]
    assert read("x.csv", "sentence\nb\n") == [[B]]


def test_tabs_separate_columns_and_leave_quotes_alone(read):
    table = '1\ta b\t"c\n2\tb\tc, a\n'
    assert read("x.tsv", table, text_column=[2, 3]) == [[A, B], [3, C], [B], [C, 3, A]]
    assert read("x.csv", table, text_column="2") == [[A, B], [B]]


def test_keys_of_json_lines_are_columns(read):
    lines = "\n".join(json.dumps({"text": "a", "more": "b c", "label": 1}) for _ in range(2))
    assert read("x.jsonl", lines) == [[A], [A]]
    assert read("x.jsonl", lines, text_column=["more", "text"]) == [[B, C], [A], [B, C], [A]]


def test_two_columns_are_one_sample_where_pairs_are_asked_for(tokenizer, tmp_path):
    (tmp_path / "x.tsv").write_text("one\ttwo\na\tb c\n")
    config = DataConfig(tokenizer=tokenizer, text_column="one,two", pairs=True)
    (batch,) = open_calibration(tmp_path / "x.tsv", BERT, config).batches(8)
    assert batch["input_ids"].tolist() == [[CLS, A, SEP, B, C, SEP]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1]]


def test_texts_are_truncated_to_the_settings_or_to_what_the_tokenizer_says(tokenizer):
    long = [" ".join("a" * 600)]
    length = [open_calibration(long, IDS, DataConfig(tokenizer=tokenizer, max_length=7)).read([0])["input_ids"].size]
    length.append(open_calibration(long, IDS, DataConfig(tokenizer=tokenizer)).read([0])["input_ids"].size)
    own = Tokenizer.from_file(str(tokenizer))
    own.enable_truncation(9)
    own.save(str(tokenizer))
    length.append(open_calibration(long, IDS, DataConfig(tokenizer=tokenizer)).read([0])["input_ids"].size)
    assert length == [7, 512, 9]


def test_a_missing_tokenizer_is_asked_for(tmp_path):
    refuse("data: texts need the model's tokenizer; give --tokenizer its tokenizer.json", open_calibration, ["a"], IDS)
    absent = DataConfig(tokenizer=tmp_path / "absent.json")
    refuse("absent.json: no such file; give --tokenizer", open_calibration, ["a"], IDS, absent)
    refuse("found a folder; give --tokenizer the file", open_calibration, ["a"], IDS, DataConfig(tokenizer=tmp_path))
    (tmp_path / "odd.json").write_text("{}")
    refuse("odd.json: not a tokenizer (", open_calibration, ["a"], IDS, DataConfig(tokenizer=tmp_path / "odd.json"))


def test_inputs_that_a_tokenizer_cannot_give_are_refused(tokenizer):
    config = DataConfig(tokenizer=tokenizer)
    refuse("the model's input 'pixels' is none of input_ids", open_calibration, ["a"], make_specs("pixels"), config)
    floats = make_specs("input_ids", dtype=np.float32)
    refuse("input 'input_ids' is float32 of 2 axes; give .npz", open_calibration, ["a"], floats, config)
    deep = make_specs("input_ids", shape=(None, 1, 4))
    refuse("input 'input_ids' is int64 of 3 axes; give .npz", open_calibration, ["a"], deep, config)


def test_a_length_that_does_not_fit_is_refused(tokenizer):
    config = DataConfig(tokenizer=tokenizer, max_length=9)
    fixed = make_specs("input_ids", shape=(None, 8))
    refuse("max_length: found 9; the model takes 8 tokens; give no more", open_calibration, ["a"], fixed, config)
    config = DataConfig(tokenizer=tokenizer, max_length=2)
    refuse("max_length: found 2; 2 are the tokenizer's own", open_calibration, ["a"], IDS, config)


@pytest.mark.parametrize(
    ("name", "content", "settings", "text"),
    [
        ("x.txt", "\n \n", {}, "x.txt: found no text; give at least one"),
        ("x.csv", "", {}, "x.csv: found no text; give at least one"),
        ("x.txt", "a", {"text_column": "text"}, "x.txt: a .txt holds one text a line and no columns"),
        ("x.txt", b"\xff", {}, "x.txt: line 1: not UTF-8 text ("),
        (
            "x.csv",
            "id,note\n1,a",
            {},
            "text_column: found none; the columns are 'id', 'note'; give --text-column one of",
        ),
        ("x.csv", "id,note\n1,a", {"text_column": "text"}, "text_column: found 'text'; the columns are 'id', 'note'"),
        (
            "x.csv",
            "id,note\n1,a",
            {"text_column": 3},
            "found '3'; the columns are 'id', 'note'; give --text-column one",
        ),
        (
            "x.csv",
            "id,note\n1,a",
            {"text_column": "\u0661"},
            "text_column: found '\u0661'; the columns are 'id', 'note'",
        ),
        ("x.csv", "id,note\n1,a\n2", {"text_column": "note"}, "line 3: found 1 columns; the first row has 2; mend"),
        ("x.csv", 'id,note\n1,"a\n', {"text_column": "note"}, "x.csv: line 2: not CSV ("),
        ("x.csv", "a,b", {"pairs": True, "text_column": 1}, "pairs: found 1 columns; a pair needs two; give --text-"),
        ("x.jsonl", "{", {}, "x.jsonl: line 1: not JSON ("),
        ("x.jsonl", "[1]", {}, "x.jsonl: line 1: found list; write an object with the text under a key"),
        ("x.jsonl", '{"id": 1}', {}, "line 1: text_column: found none; the keys are 'id'; give one of these"),
        ("x.jsonl", '{"id": 1}', {"text_column": "no"}, "line 1: text_column: found 'no'; the keys are 'id'"),
        ("x.jsonl", '"a"\n{"text": 1}', {}, "x.jsonl: line 2: 'text' is int; a text is needed; mend the line"),
    ],
)
def test_a_file_without_the_texts_is_refused(read, name, content, settings, text):
    refuse(text, read, name, content, **settings)


def test_a_file_that_cannot_be_read_is_refused(read, tmp_path):
    (tmp_path / "x.txt").mkdir()
    config = DataConfig(tokenizer=tmp_path / "tokenizer.json")
    from onnxcalib.data.tokenized import open_texts

    refuse("x.txt: is a directory; give a file of texts", open_texts, tmp_path / "x.txt", IDS, config, None)


def test_columns_of_a_list_are_refused(tokenizer):
    config = DataConfig(tokenizer=tokenizer, text_column=1)
    refuse("text_column: a list of texts has no columns; leave out text_column", open_calibration, ["a"], IDS, config)


def test_settings_of_texts_beside_arrays_are_warned_of(tokenizer):
    samples = open_calibration(np.ones((2, 3), np.int64), IDS, DataConfig(tokenizer=tokenizer))
    assert samples.warnings == (
        "data: tokenizer, columns and lengths are for texts; these samples are used as they are",
    )


# Tokenizers that are not what they claim


def change(path, **fields):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | fields))
    return DataConfig(tokenizer=path)


def test_a_tokenizer_that_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "tokenizer.json")
    config = DataConfig(tokenizer=tmp_path / "tokenizer.json")
    refuse("tokenizer.json: is a pipe; give --tokenizer the model's", open_calibration, ["a"], IDS, config)
    long = DataConfig(tokenizer="t" * 4_000)
    refuse("cannot be read (File name too long); give --tokenizer", open_calibration, ["a"], IDS, long)


def test_a_tokenizer_that_is_too_large_is_not_read(tmp_path):
    with open(tmp_path / "tokenizer.json", "wb") as file:
        file.truncate(2**40)
    config = DataConfig(tokenizer=tmp_path / "tokenizer.json")
    text = "holds 1,099,511,627,776 bytes or more; at most 67,108,864 are read"
    refuse(text, open_calibration, ["a"], IDS, config)


@pytest.mark.parametrize("number", [2**31, 2**32 - 1])
def test_tokens_that_are_no_int32_are_refused(tokenizer, number):
    model = {"type": "WordLevel", "vocab": {"a": number, "[UNK]": 3}, "unk_token": "[UNK]"}
    config = change(tokenizer, model=model, post_processor=None)
    text = f"data: the tokenizer makes token {number} of text 1; 2147483647 is the most"
    refuse(text, open_calibration, ["a"], IDS, config)


def test_padding_with_a_token_that_is_no_int32_is_refused(tokenizer):
    padding = {
        "strategy": {"Fixed": 2**40}, "direction": "Right", "pad_to_multiple_of": 2**40, "pad_id": 2**32 - 1,
        "pad_type_id": 0, "pad_token": "[PAD]",
    }  # fmt: skip
    config = change(tokenizer, padding=padding)
    refuse("pads with token 4294967295 of type 0; 2147483647 is the most", open_calibration, ["a"], IDS, config)
    config = change(tokenizer, padding=padding | {"pad_id": 1})
    assert open_calibration(["a"], IDS, config).read([0])["input_ids"].shape == (1, 3)


@pytest.mark.parametrize(("length", "stride"), [(2**62, 0), (9, 2**62)])
def test_absurd_truncation_is_brought_within_bounds_or_refused(tokenizer, length, stride):
    truncation = {"direction": "Right", "max_length": length, "strategy": "LongestFirst", "stride": stride}
    config = change(tokenizer, truncation=truncation)
    try:
        samples = open_calibration(["a " * 20], IDS, config)
    except DataError as error:
        assert str(error).startswith(f"{tokenizer}: not a tokenizer (")
    else:
        assert samples.read([0])["input_ids"].shape == (1, min(length, 22))


def test_a_panic_of_the_package_is_refused_and_a_break_is_not(tokenizer, monkeypatch):
    class PanicException(BaseException):
        pass

    faults = [PanicException("index out of\nrange"), KeyboardInterrupt()]
    monkeypatch.setattr("tokenizers.Tokenizer", type("Broken", (), {"from_str": lambda _: raise_(faults.pop(0))}))
    config = DataConfig(tokenizer=tokenizer)
    refuse("tokenizer.json: not a tokenizer (index out of); give", open_calibration, ["a"], IDS, config)
    with pytest.raises(KeyboardInterrupt):
        open_calibration(["a"], IDS, config)


def raise_(error):
    raise error


def test_more_empty_texts_than_any_file_has_are_refused(tokenizer, monkeypatch):
    monkeypatch.setattr("onnxcalib.data.tokenized.MOST_EMPTY", 10)
    config = DataConfig(tokenizer=tokenizer)
    refuse("data: more than 10 texts are empty; take them out", open_calibration, ["a", *[""] * 11], IDS, config)


def test_long_texts_are_encoded_one_by_one(tokenizer, monkeypatch):
    monkeypatch.setattr("onnxcalib.data.tokenized.CHUNK_CHARACTERS", 10)
    samples = open_calibration(["a " * 9, "b", "c"] * 3, IDS, DataConfig(tokenizer=tokenizer))
    assert [samples.read([i])["input_ids"][0, 1] for i in range(9)] == [A, B, C] * 3


PANIC = {  # its merge is shorter than the prefix that is taken off it
    "type": "BPE", "vocab": {"aa": 0, "b": 1}, "merges": ["aa b"], "continuing_subword_prefix": "bbbbbb",
}  # fmt: skip


def test_what_a_panic_prints_is_kept_from_the_user_and_all_else_is_not(tokenizer, capfd, monkeypatch):
    config = change(tokenizer, model=PANIC, post_processor=None)
    refuse(f"{tokenizer}: not a tokenizer (range end index", open_calibration, ["a"], IDS, config)
    assert capfd.readouterr().err == ""

    def warn(_):
        os.write(2, b"from the package\n")
        raise ValueError("odd")

    monkeypatch.setattr("tokenizers.Tokenizer", type("Odd", (), {"from_str": warn}))
    refuse("not a tokenizer (odd)", open_calibration, ["a"], IDS, config)
    assert capfd.readouterr().err == "from the package\n"


def test_dropout_of_a_tokenizer_is_left_to_training(tokenizer):
    parts = {"a": 0, "b": 1, "ab": 2, "[UNK]": 3}
    model = {"type": "BPE", "vocab": parts, "merges": ["a b"], "unk_token": "[UNK]", "dropout": 0.9}
    samples = open_calibration(["ab ab ab ab"], IDS, change(tokenizer, model=model, post_processor=None))
    assert samples.read([0])["input_ids"].tolist() == [[2, 2, 2, 2]]


def test_texts_are_one_stream_in_sequences_that_begin_as_the_tokenizer_begins_a_text(read, tokenizer, tmp_path):
    inputs = make_specs("input_ids", "attention_mask", "position_ids")
    settings = DataConfig(tokenizer=tokenizer, sequence_length=4)
    samples = open_calibration(["a b c", "", "b a", "c c b", "a"], inputs, settings)
    whole = samples.read(range(len(samples)))
    assert whole["input_ids"].tolist() == [[CLS, A, B, C], [CLS, B, A, C], [CLS, C, B, A]]
    assert whole["attention_mask"].tolist() == [[1] * 4] * 3 and whole["position_ids"].tolist() == [[0, 1, 2, 3]] * 3
    assert len(open_calibration(["a b c"] * 9, inputs, settings, limit=2)) == 2
    file = tmp_path / "texts.csv"
    file.write_text("text,other\na b,c\nc,b\n")
    found = open_calibration(file, IDS, DataConfig(tokenizer=tokenizer, sequence_length=4, text_column="text"))
    assert found.read([0])["input_ids"].tolist() == [[CLS, A, B, C]]


def test_line_feeds_between_texts_are_read_as_they_stand(tmp_path):
    made = Tokenizer(models.WordLevel({"a": 0, "\n": 1, "b": 2}))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.save(str(tmp_path / "letters.json"))
    (tmp_path / "texts.txt").write_text("aa\n\nb\n")
    config = DataConfig(tokenizer=tmp_path / "letters.json", sequence_length=6)
    samples = open_calibration(tmp_path / "texts.txt", IDS, config)
    assert samples.read([0])["input_ids"].tolist() == [[0, 0, 1, 1, 2, 1]]


def test_sequences_that_texts_or_the_model_cannot_fill_are_refused(tokenizer):
    settings = {"tokenizer": tokenizer, "sequence_length": 8}
    refuse(
        "data: found 3 tokens of text; a sequence takes 7; give more text, or a smaller --sequence-length",
        *(open_calibration, ["a b c"], IDS, DataConfig(**settings)),
    )
    fixed = make_specs("input_ids", shape=(1, 5))
    refuse("sequence_length: found 8; the model takes 5 tokens", open_calibration, ["a"], fixed, DataConfig(**settings))


def test_a_decoders_past_is_empty_where_texts_or_arrays_do_not_give_it(tokenizer):
    past = InputSpec("past_key_values.0.key", np.dtype(np.float32), (None, 2, None, 8))
    inputs = [*IDS, past]
    read = open_calibration(["a b c", "c"], inputs, DataConfig(tokenizer=tokenizer)).read([1])
    assert read["input_ids"].shape == (1, 3) and read[past.name].shape == (1, 2, 0, 8)
    ids = np.ones((5, 3), np.int64)
    for source in ({"input_ids": ids}, [{"input_ids": ids}], {"input_ids": ids, past.name: np.zeros((5, 2, 0, 8))}):
        samples = open_calibration(source, inputs)
        assert samples.warnings == () and samples.read([1, 4])[past.name].shape == (2, 2, 0, 8)
    given = open_calibration({"input_ids": ids, past.name: np.ones((5, 2, 6, 8), np.float32)}, inputs)
    assert given.read([0])[past.name].shape == (1, 2, 6, 8)
    fixed = InputSpec("past_key_values.0.key", np.dtype(np.float32), (None, 2, 4, 8))
    refuse("no array for input 'past_key_values.0.key'", open_calibration, {"input_ids": ids}, [*IDS, fixed])
    refuse(
        "the model's input 'past_key_values.0.key' is none of",
        *(open_calibration, ["a"], [*IDS, fixed], DataConfig(tokenizer=tokenizer)),
    )
