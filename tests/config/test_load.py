"""TOML files and options: how they are merged, and in which words a fault in either is refused."""

from __future__ import annotations

import os

import pytest

from onnxcalib.config import DataConfig, LayerConfig, QuantizeConfig, ValidateConfig, load_config
from onnxcalib.errors import ConfigError


@pytest.fixture
def write(tmp_path):
    def write_toml(text: str):
        path = tmp_path / "run.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_toml


def test_a_file_sets_what_it_names_with_dashes_or_underscores_and_data_flat_or_in_a_table(write):
    config = load_config(
        write('weight-bits = 4\nfirst_last_bits = 4\nresize = 256\n[data]\ncrop = "224x200"\nstd = 0.5\n')
    )
    expected = QuantizeConfig(weight_bits=4, first_last_bits=4, data=DataConfig(resize=256, crop="224x200", std=0.5))
    assert config == expected


def test_options_win_over_the_file_and_missing_options_leave_it(write):
    path = write("steps = 7\nseed = 3\n[data]\nresize = 40\n")
    config = load_config(path, {"steps": 9, "seed": None, "crop": "32", "reconstruct": False})
    assert config == QuantizeConfig(steps=9, seed=3, reconstruct=False, data=DataConfig(resize=40, crop=32))


def test_without_file_and_options_the_defaults_hold():
    assert load_config() == QuantizeConfig()


def test_a_bad_option_is_named_as_the_user_wrote_it():
    with pytest.raises(ConfigError, match=r"^--weight-bits: found 5; allowed: 8, 4, 3 or 2$"):
        load_config(None, {"weight_bits": 5})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("weight-bitz = 4", "weight-bitz: unknown setting; did you mean 'weight_bits'?"),
        ("[data]\nrezise = 4", "rezise: unknown setting; did you mean 'resize'?"),
        (
            "[data]\nepochs = 4",
            "epochs: unknown setting; 'epochs' is none of pixel_range, mean, std, resize, crop, letterbox",
        ),
        ("[data]\nsteps = 4", "steps: unknown setting; it belongs at the top of the file (QuantizeConfig)"),
        ("min-sqnr = 9", "min-sqnr: unknown setting; it belongs under [validate] (ValidateConfig)"),
        ("[validate]\nresize = 9", "resize: unknown setting; it belongs under [data] (DataConfig)"),
        (
            "[validate]\nweight_bits = 4",
            "weight_bits: unknown setting; it belongs at the top of the file (QuantizeConfig) or under"
            ' [layers."NAME"] (LayerConfig)',
        ),
        (
            "[layers.stem]\nmax_drop = 1",
            "layers: 'stem': max_drop: unknown setting; it belongs under [validate] (ValidateConfig); max_drop, a gate",
        ),
        ("steps = 1\n[quantize]\nseed = 1", "[quantize]: unknown table; seed belongs at the top of the file"),
        ("[gates]\nmax-drop = 1", "[gates]: unknown table; max-drop belongs under [validate]"),
        ("[gates]", "[gates]: unknown table; the tables are [data], [validate] for the gates, and [layers"),
        ("weight-bits = 4\nweight_bits = 8", "weight_bits: given twice; keep one"),
        ("resize = 4\n[data]\nresize = 8", "resize: given twice; keep one"),
        ("weight-bits = 16", "weight_bits: found 16; allowed: 8, 4, 3 or 2"),
        ("data = 3", "data: found 3; it is a table; write [data] above its settings"),
        ("steps = 1\nseed = = 2", "not TOML: Invalid value (at line 2, column 8)"),
    ],
)
def test_a_bad_file_is_refused_with_its_name(write, text, complaint):
    path = write(text)
    with pytest.raises(ConfigError) as refusal:
        load_config(path)
    assert str(refusal.value).startswith(f"{path}: {complaint}")
    assert "\n" not in str(refusal.value)


def test_a_missing_file_is_refused_with_its_name(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.toml: no such file; give --config a TOML file$"):
        load_config(tmp_path / "absent.toml")


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "run.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"run\.toml: not UTF-8 text"):
        load_config(tmp_path / "run.toml")


WHOLE = """steps = 7
resize = 40
exclude = "head"
[layers.stem]
weight-bits = 4
[validate]
max-drop = 1.5
min_agreement = 99
[data]
crop = 32
"""


def test_one_file_serves_both_commands_and_each_takes_its_own(write):
    path, data = write(WHOLE), DataConfig(resize=40, crop=32)
    assert load_config(path) == QuantizeConfig(
        steps=7, exclude=("head",), layers={"stem": LayerConfig(weight_bits=4)}, data=data
    )
    assert load_config(path, kind=ValidateConfig) == ValidateConfig(max_drop=1.5, min_agreement=99, data=data)
    assert load_config(write("steps = 7"), kind=ValidateConfig) == ValidateConfig()


def test_settings_of_both_commands_are_given_to_each_in_its_own_place(write):
    path = write("samples = 7\nthreads = 2\n[validate]\nsamples = 9\n")
    assert (load_config(path).samples, load_config(path).threads) == (7, 2)
    config = load_config(path, kind=ValidateConfig)
    assert (config.samples, config.threads) == (9, None)


def test_gates_on_the_command_line_win_over_the_file(write):
    options = {"max_drop": 0.5, "min_sqnr": None, "mean": "0.5", "confident": True}
    config = load_config(write(WHOLE), options, ValidateConfig)
    data = DataConfig(resize=40, crop=32, mean=0.5)
    assert config == ValidateConfig(max_drop=0.5, min_agreement=99, confident=True, data=data)


@pytest.mark.parametrize("kind", [QuantizeConfig, ValidateConfig])
@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[validate]\nmax-dropp = 1", "max-dropp: unknown setting; did you mean 'max_drop'?"),
        ("[validate]\nmin-agreement = 0.9", "min_agreement: found 0.9; is in %, above 1"),
        ("[validate]\nresize = 40", "resize: unknown setting;"),
        ("[validate]\nmax-drop = 1\nmax_drop = 2", "max_drop: given twice; keep one"),
        ("validate = 3", "validate: found 3; it is a table; write [validate] above its settings"),
        ("min-sqnr = 1", "min-sqnr: unknown setting;"),
        ("weight-bits = 16", "weight_bits: found 16; allowed: 8, 4, 3 or 2"),
        ("[layers.stem]\nweight-bits = 16", "layers: 'stem': weight_bits: found 16; allowed: 8, 4, 3 or 2"),
        ("[data]\nstd = 0", "std: found 0; must be greater than 0"),
    ],
)
def test_all_of_a_file_is_checked_for_either_command(write, kind, text, complaint):
    path = write(text)
    with pytest.raises(ConfigError) as refusal:
        load_config(path, kind=kind)
    assert str(refusal.value).startswith(f"{path}: {complaint}")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"min_agreement": 0.5},
            r"^--min-agreement: found 0\.5; is in %, .*; multiply it by 100$",
        ),
        ({"metric": "f"}, "^--metric: found 'f'; must be MODULE:FUNCTION"),
        ({"std": "0"}, "^--std: found '0'; must be greater than 0$"),
    ],
)
def test_a_bad_gate_is_named_as_the_user_wrote_it(options, text):
    with pytest.raises(ConfigError, match=text):
        load_config(None, options, ValidateConfig)


def test_nodes_excluded_on_the_command_line_stand_for_those_of_the_file(write):
    assert load_config(write('exclude = ["a", "b"]'), {"exclude": ["c"]}).exclude == ("c",)
    assert load_config(write('exclude = ["a", "b"]'), {"exclude": None}).exclude == ("a", "b")


def test_tables_of_layers_are_read_in_their_order_with_dashes_or_underscores(write):
    text = "[layers.'b.*']\nexclude = true\n[layers.'a/conv']\nweight-bits = 4\nactivation_bits = 8\n[layers.last]\n"
    layers = load_config(write(text)).layers
    assert list(layers.items()) == [
        ("b.*", LayerConfig(exclude=True)),
        ("a/conv", LayerConfig(weight_bits=4, activation_bits=8)),
        ("last", LayerConfig()),
    ]
    assert QuantizeConfig(layers=layers).layers == layers


@pytest.mark.parametrize(
    ("text", "home"),
    [
        ("max-drop = 1", "max-drop: unknown setting; it belongs under [validate] (ValidateConfig)"),
        (
            "[validate]\nmax_disagreement = 1",
            "max_disagreement: unknown setting; it belongs at the top of the file (QuantizeConfig)",
        ),
    ],
)
def test_a_budget_that_is_taken_for_the_gate_is_refused_with_the_difference(write, text, home):
    path = write(text)
    with pytest.raises(ConfigError) as refusal:
        load_config(path)
    assert str(refusal.value) == (
        f"{path}: {home}; max_drop, a gate of validate, limits the accuracy lost, in points; max_disagreement, a budget"
        " of bit plans, limits the samples whose top class changes, in %"
    )


# Code


CODE = [
    ("[validate]\nmetric = 'scores:f'", "metric", "scores:f", ValidateConfig),
    ("scheduler = 'tcp://a:1'", "scheduler", "tcp://a:1", QuantizeConfig),
]


@pytest.mark.parametrize(("text", "name", "value", "kind"), CODE)
def test_a_file_names_no_code_unless_that_is_allowed(write, text, name, value, kind):
    path = write(text)
    with pytest.raises(ConfigError) as refusal:
        load_config(path, {"samples": 3}, kind)
    said, option = str(refusal.value), name.replace("_", "-")
    assert said.startswith(f"{path}: {name}: found {value!r}; ")
    assert said.endswith(
        f"; give --{option} on the command line, or --allow-code (in Python allow_code=True) for a file that you trust"
    )
    assert getattr(load_config(path, None, kind, allow_code=True), name) == value
    assert getattr(load_config(path, kind=kind, allow_code=True), name) == value
    other = value.replace("a", "b").replace("kept", "mine")
    assert getattr(load_config(path, {name: other}, kind), name) == other


def test_code_in_the_table_of_another_command_is_left_alone(write):
    assert load_config(write("[validate]\nmetric = 'scores:f'")) == QuantizeConfig()
    assert load_config(write("scheduler = 'tcp://a:1'"), kind=ValidateConfig) == ValidateConfig()


# Faults of any kind


NESTED = "[" * 20_000 + "]" * 20_000


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (f"steps = {NESTED}", "not TOML: nested too deep; see https://toml.io"),
        ("steps." + "a." * 20_000 + "b = 1", "found a key of more than 50 parts; none needs so many; shorten it"),
        ("[" + "'a' . \"b\"." * 30 + "b]", "found a key of more than 50 parts"),
        ("steps." + "a." * 20 + "b = 1", "steps: "),
        ("steps = " + "9" * 5000, "not TOML: "),
        ("steps = 0x" + "f" * 5000, "steps: found a value of type int that is too long to be shown; "),
        ("seed = 99999999999999999999", "seed: found 99999999999999999999; input should be less than 4294967296"),
        ("max-loss = 1e400", "max_loss: found inf; input should be a finite number"),
        ("max-loss = nan", "max_loss: found nan; input should be a finite number"),
        ("weight-bits = 8.0", "weight_bits: found 8.0; must be a whole number, written without a point"),
        ("weight-bits = true", "weight_bits: found True; allowed: 8, 4, 3 or 2"),
        ("weight-bits = '8'", "weight_bits: found '8'; allowed: 8, 4, 3 or 2"),
        ("percentile = '99'", "percentile: found '99'; input should be a valid number"),
        ("[data]\nmean = [true]", "mean: found True; input should be a valid number"),
        ("steps = 1979-05-27", "steps: found datetime.date(1979, 5, 27); input should be a valid integer"),
        ("exclude = ''", "exclude: found ''; must name something; leave it out where nothing is meant"),
        ("class-axis = 'y='", "class_axis: found 'y='; must be an axis such as -1, or NAME=AXIS with the name of an"),
        ("class-axis = '=1'", "class_axis: found '=1'; must be an axis such as -1, or NAME=AXIS"),
        ("class-axis = true", "class_axis: found True; must be an axis such as -1, or NAME=AXIS"),
        ("class-axis = ['y=1', 'y=2']", "class_axis: found ['y=1', 'y=2']; has two axes for one output, or two for "),
        ("class-axis = [1, 2]", "class_axis: found [1, 2]; has two axes for one output, or two for "),
        (
            "shape = 'x=1,0'",
            "shape: found 'x=1,0'; must be a shape such as 1,3,224,224, of numbers from 1 on, or NAME=",
        ),
        ("shape = ''", "shape: found ''; must be a shape such as 1,3,224,224"),
        ("shape = '=1'", "shape: found '=1'; must be a shape such as 1,3,224,224"),
        ("shape = [1, 3]", "shape: found [1, 3]; must be a shape such as 1,3,224,224"),
        ("shape = '1,-1'", "shape: found '1,-1'; must be a shape such as 1,3,224,224"),
        (f"shape = '{'1,' * 16}1'", f"shape: found '{'1,' * 16}1'; must be a shape such as 1,3,224,224"),
        ("shape = ['x=1', 'x=2']", "shape: found ['x=1', 'x=2']; has two shapes for one input, or two for all"),
        ("candidates = []", "candidates: found []; value should have at least 1 item after validation, not 0"),
        ("[layers.'']\nexclude = true", "layers: '': must name something; leave it out where nothing is meant"),
        ("layers = 3", "layers: found 3; it holds a table for each layer"),
        ("[[layers]]", "layers: found [{}]; it holds a table for each layer"),
        ("[layers.'\u202e']\nweight-bits = 5", r"layers: '\u202e': weight_bits: found 5; allowed: 8, 4, 3 or 2"),
        ("'a\u202e' = 3", r"a\u202e: unknown setting; 'a\u202e' is none of weight_bits"),
        ("['\u2066x']\ny = 1", r"[\u2066x]: unknown table; the tables are [data]"),
        ("x" * 10**6 + " = 1", "x" * 100 + ": unknown setting; 'xxx"),
        ("data = [1]", "data: found [1]; it is a table"),
        ("steps = 1\nsteps = 2", "not TOML: Cannot overwrite a value"),
        ("a\0 = 1", "not TOML: "),
        ("# \x1b", "not TOML: "),
    ],
)
def test_a_malformed_file_is_refused_in_one_short_line(write, text, complaint):
    path = write(text)
    with pytest.raises(ConfigError) as refusal:
        load_config(path)
    assert str(refusal.value).startswith(f"{path}: {complaint}")
    assert str(refusal.value).isprintable() and len(str(refusal.value)) < 1500


def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, text in ((".", "is a directory"), ("pipe", "is a pipe"), ("/dev/zero", "is a device")):
        with pytest.raises(ConfigError, match=f"{text}; give --config a TOML file$"):
            load_config(tmp_path / name)


def test_a_file_may_begin_with_a_byte_order_mark_and_be_empty(tmp_path):
    (tmp_path / "run.toml").write_bytes(b"\xef\xbb\xbfsteps = 3\r\n")
    assert load_config(tmp_path / "run.toml").steps == 3
    (tmp_path / "run.toml").write_bytes(b"")
    assert load_config(tmp_path / "run.toml") == QuantizeConfig()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"steps": 10**20}, "--steps: found 100000000000000000000; input should be less than or equal to 1000000"),
        ({"threads": 100_000}, "--threads: found 100000; input should be less than or equal to 1024"),
        ({"exclude": [""]}, "--exclude: found ''; must name something; leave it out where nothing is meant"),
        ({"max_size": "1e400"}, "--max-size: found '1e400'; must be a share of at most 1e+06, or at most 1e18"),
        ({"max_size": "0"}, "--max-size: found '0'; must be a share of the float model such as 0.15"),
        ({"max_size": "-1"}, "--max-size: found '-1'; must be a share of the float model such as 0.15"),
        ({"max_size": "99999999999GB"}, "--max-size: found '99999999999GB'; must be a share of at most"),
        ({"candidates": ""}, "--candidates: found ''; allowed: "),
        ({"crop": "9" * 5000}, "--crop: found '999"),
        ({"exclude": ["\udcff"]}, r"--exclude: found '\udcff'; must be UTF-8 text"),
        ({"text_column": "\udcff"}, r"--text-column: found '\udcff'; must be UTF-8 text"),
        ({"cache_dir": ""}, "--cache-dir: found ''; must name a file or folder"),
    ],
)
def test_a_malformed_option_is_refused_in_one_short_line(options, text):
    with pytest.raises(ConfigError) as refusal:
        load_config(None, options)
    assert str(refusal.value).startswith(text)
    assert str(refusal.value).isprintable() and len(str(refusal.value)) < 600


def test_options_that_bear_on_each_other_are_checked_together():
    found = load_config(options={"pixel_range": "0..255", "mean": "123.7,116.3,103.5", "std": "58,57,57"})
    assert found.data.mean == (123.7, 116.3, 103.5)
    with pytest.raises(ConfigError, match=r"^--mean: found '123.7'; must be on the scale of pixel / 255"):
        load_config(options={"mean": "123.7"})
