"""Malformed settings: TOML, options of the command line, targets, plans, ranges, latencies and tokenizers."""

from __future__ import annotations

from hypothesis import strategies as st

from onnxcalib.config import QuantizeConfig, Setting, ValidateConfig, list_settings
from tests.fuzz.case import Case, Edit
from tests.fuzz.edits import TEXTS, VALUES, change_bytes, change_json, several

# Options whose values name code or machines, not data.
LEFT_OUT = {"metric", "scheduler"}
NUMBERS = ("integer", "number")
# Texts that are no number, and numbers that no setting takes.
NO_NUMBERS = ("", " ", "x", "nan", "inf", "-inf", "1e400", "1,5", "0x", "--", "~long", "\x1b[31mred", "a\0b", "١x")
NUMERALS = (
    "0",
    "1",
    "2",
    "-1",
    "3",
    "0.5",
    "100",
    "101",
    "2147483648",
    "18446744073709551616",
    "1e308",
    "1e-320",
    "٣",
    "~digits",
)
WORDS = (
    *TEXTS,
    *NO_NUMBERS,
    *NUMERALS,
    "true",
    "W4A4",
    "0.5,0.5,0.5",
    "1,2",
    "224x224",
    "0x0",
    "1x",
    "W8A8,",
    "all",
    "re:(",
    "(",
    "*",
)
WORDS += (
    "op:",
    "op:Gemm",
    "between:",
    "between:a -> b",
    "between:x -> y",
    "(a+)+$",
    "first",
    "1@8-bit",
    "5KB",
    "-5KB",
    "1e400KB",
    "1ms",
    "15%",
    "W8A8,W8A16",
    "W4A16",
    "qnn",
    "xint8",
    "tensorrt",
    "chip.toml",
    "1,8",
    "x=1,8",
    "x=",
    "image=1,8",
)
COMMANDS = {"quantize": "mlp", "plan": "plan", "calibrate": "calibrate", "validate": "validate"}
KEYS = (*(each.name for kind in (QuantizeConfig, ValidateConfig) for each in list_settings(kind)), "colour", "")
TABLES = (
    "",
    "[data]",
    "[validate]",
    "[layers.first]",
    '[layers."*"]',
    "[layers]",
    "[other]",
    "[[layers]]",
    "[data.data]",
    "[",
)
LINES = (
    "weight-bits = 4",
    "weight_bits = 4",
    'layers = "first"',
    "layers = 1",
    "data = 1",
    "validate = []",
    "exclude = [1, 2]",
    'exclude = ["("]',
    'exclude = "first"',
    "a.b.c = 1",
    "= 1",
    "key",
    "\0",
    "\x1b[31m = 1",
    '"\\u001b[31m" = 1',
    "a = 1\na = 2",
    "mean = [0.5, nan, 0.5]",
    "std = [1.0, 1e400, 1.0]",
    "crop = [8, -8]",
    "crop = [99999999999999999999, 8]",
    'candidates = ["W9A9"]',
    'tokenizer = "tokenizer\\u0000.json"',
    'latencies = "/dev/zero"',
    'cache-dir = "mlp.npy"',
    "max_size = '0'",
    "max-size = inf",
    'metric = "json:nothing"',
    'metric = "nothing:at_all"',
    'metric = "math:sqrt"',
    "first.weight-bits = 99",
    "seed = 9223372036854775808",
    'scheduler = "x"',
    'scheduler = "tcp://"',
    'scheduler = "no://host"',
)

# Rules of targets as a user may write them: the name of each, and its keys.
RULES = (
    *(("activation_types", f"types = {types}") for types in ("['int8']", "['uint16', 'uint8']", "['int8', 'int4']")),
    ("activation_types", "types = ['uint16']\nin_float = ['uint16']"),
    ("activation_types", "types = ['int32']"),
    ("activation_zero_points", "instead = { uint8 = 128 }"),
    *(("weight_types", f"types = {types}") for types in ("['uint8']", "['int4']", "['int8', 'int4']")),
    *(("weight_scales", f"granularity = '{each}'") for each in ("tensor", "channel", "block")),
    ("weight_scales", "granularity = 'block'\nblocks = [16]"),
    ("power_of_two", "of = ['activations', 'weights']"),
    ("power_of_two", "of = ['biases', 'constants']"),
    ("quantized_outputs", "operators = ['Conv']"),
    ("quantized_outputs", "operators = ['Gemm']\nthrough = ['Relu']\nat_exit = ['Gemm']"),
    ("quantized_inputs", "operators = { Gemm = [0, 1], Add = [] }"),
    ("residual_inputs", ""),
    ("aligned", "operators = ['Gemm', 'Relu']"),
    ("biases", "kinds = { Gemm = ['int8'] }"),
    ("biases", "kinds = { Gemm = ['float'] }"),
    ("opset", "least = 17\nmost = 17"),
    ("opset", "most = 12"),
    ("least_range", "least = 50.0"),
    ("fixed_grids", "grids = { Relu = { uint8 = [0.1, 0] } }"),
    ("shift_cut", "operators = ['Gemm']\nends = [0, 2]"),
    ("static_shapes", ""),
    ("operators", "forbidden = ['Relu']"),
)
RULE_KEYS = ("types", "least", "of", "operators", "granularity", "blocks", "level", "runtime", "wide_sums", "between")
TARGET_LINES = (
    "[rewrites]\nopset = 21",
    "[rewrites]\nmasks = 1.0",
    "[rules]",
    "[rules.pairs]",
    "wide_sums = true",
    "[",
)


def _config() -> st.SearchStrategy[Case]:
    """Lines of settings and values, some below tables."""
    line = st.one_of(
        st.builds(lambda key, value: f"{key} = {value}", st.sampled_from(KEYS), st.sampled_from(VALUES)),
        st.sampled_from(LINES),
        st.sampled_from(TABLES),
    )
    text = st.lists(line, min_size=1, max_size=4).map("\n".join)
    written = st.builds(Edit, st.just("write"), st.just("settings.toml"), st.tuples(text))
    return _case("TOML", st.just("config"), st.one_of(written, written, written, change_bytes("settings.toml")))


def _option(command: str) -> st.SearchStrategy[Case]:
    kind = ValidateConfig if command == "validate" else QuantizeConfig
    settings = [each for each in list_settings(kind) if not each.option.file_only and each.name not in LEFT_OUT]

    def make(setting: Setting, word: str, number: str, extra: tuple[str, ...]) -> Case:
        if setting.json_type == "boolean":
            return Case("options", COMMANDS[command], options=(setting.flag.split("/")[0], *extra))
        value = number if setting.json_type in NUMBERS else word
        known = command not in ("plan", "calibrate") and setting.json_type in NUMBERS
        return Case(
            "options",
            COMMANDS[command],
            options=(f"{setting.flag}={value}", *extra),
            refused=known and value in NO_NUMBERS and extra != ("--help",),
        )

    extras = st.sampled_from(
        (
            (),
            (),
            (),
            ("--quiet",),
            ("--verbose",),
            ("--nonsense",),
            ("extra",),
            ("--help",),
            ("--samples", "2"),
            ("--target=qnn", "--shape=1,8"),
            ("--target=xint8",),
            ("--",),
        )
    )
    numbers, words = st.sampled_from((*NO_NUMBERS, *NUMERALS)), st.sampled_from(WORDS)
    return st.builds(make, st.sampled_from(settings), words, numbers, extras)


def _records() -> st.SearchStrategy[Case]:
    files = {"use plan": "plan.json", "use wide plan": "wide.json", "use ranges": "ranges.json"}

    def make(base: str) -> st.SearchStrategy[Case]:
        change = change_json(files[base])
        return _case("plans and ranges", st.just(base), st.one_of(change, change, change, change_bytes(files[base])))

    return st.sampled_from(sorted(files)).flatmap(make)


def _targets() -> st.SearchStrategy[Case]:
    """A few rules that are good alone, with a key or two that may fit none."""
    rule = st.sampled_from(RULES).map(lambda each: f"[rules.{each[0]}]\nsource = 's'\n{each[1]}")
    line = st.one_of(
        st.builds(lambda key, value: f"{key} = {value}", st.sampled_from(RULE_KEYS), st.sampled_from(VALUES)),
        st.sampled_from(TARGET_LINES),
    )
    lines = st.lists(st.one_of(rule, rule, rule, rule, rule, line), min_size=1, max_size=4)
    text = lines.map(lambda own: "\n".join(["name = 'chip'", *own]))
    written = st.builds(Edit, st.just("write"), st.just("chip.toml"), st.tuples(text))
    whole = st.builds(Case, st.just("targets"), st.just("target"), st.tuples(written))
    return st.one_of(whole, whole, whole, _case("targets", st.just("target"), change_bytes("chip.toml")))


def _latencies() -> st.SearchStrategy[Case]:
    rows = st.lists(
        st.builds(
            lambda layer, bits, time: f"{layer},{bits},{time}",
            st.sampled_from(("first", "second", "", "third", '"first', "\x1b[31m", "x" * 99)),
            st.sampled_from(("W8A8", "W4A8", "W4A4", "W8A4", "W8A16", "w8a8", "W9A9", "", "float")),
            st.sampled_from(("1", "0.5", "0", "-1", "nan", "inf", "1e400", "", "x", "1e-320", "1,1")),
        ),
        max_size=9,
    )
    heads = st.sampled_from(
        ("layer,configuration,milliseconds", "layer,configuration", "", "\ufefflayer,configuration,milliseconds")
    )
    text = st.builds(lambda head, lines: "\n".join([head, *lines]), heads, rows)
    written = st.builds(Edit, st.just("write"), st.just("latencies.csv"), st.tuples(text))
    return _case("latencies", st.just("latencies"), st.one_of(written, change_bytes("latencies.csv")))


def _tokenizers() -> st.SearchStrategy[Case]:
    change = change_json("tokenizer.json")
    changes = st.one_of(change, change, change, change_bytes("tokenizer.json"))
    return _case("tokenizers", st.sampled_from(("encoder", "csv", "jsonl")), changes)


def _case(generator: str, base: st.SearchStrategy[str], change: st.SearchStrategy[Edit]) -> st.SearchStrategy[Case]:
    return st.builds(Case, st.just(generator), base, several(change, 2))


GENERATORS: dict[str, st.SearchStrategy[Case]] = {
    "TOML": _config(),
    "targets": _targets(),
    "options": st.sampled_from(sorted(COMMANDS)).flatmap(_option),
    "plans and ranges": _records(),
    "latencies": _latencies(),
    "tokenizers": _tokenizers(),
}
