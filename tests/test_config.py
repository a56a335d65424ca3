"""Settings: defaults, what they refuse and in which words, and how files and options are merged."""

from __future__ import annotations

import itertools

import pytest

from onnxcalib.config import EFFORTS, STEPS, DataConfig, LayerConfig, QuantizeConfig, ValidateConfig, load_config
from onnxcalib.errors import ConfigError


@pytest.fixture
def write(tmp_path):
    def write_toml(text: str):
        path = tmp_path / "run.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_toml


def test_the_defaults_are_those_of_the_documentation():
    config = QuantizeConfig()
    assert (config.weight_bits, config.activation_bits, config.first_last_bits) == (8, 8, 8)
    assert (config.range, config.percentile, config.encoding) == ("squared-error", 99.99, "runtime")
    assert (config.pipeline, config.effort, config.steps, config.views) == ("default", "balanced", None, None)
    assert [step for step in STEPS if config.does(step)] == ["reconstruct"]
    assert (config.samples, config.seed, config.threads) == (None, 0, None)
    assert (config.device, config.exclude, config.layers) == ("auto", (), {})
    assert config.data == DataConfig(mean=0, std=1, resize=None, crop=None, layout=None, channels=None)


def test_more_effort_is_more_of_each_and_settings_of_their_own_win():
    efforts = [QuantizeConfig(effort=effort) for effort in ("fast", "balanced", "best")]
    for fast, slow in itertools.pairwise(efforts):
        assert fast.search_width(4) < slow.search_width(4) and fast.image_views(4) < slow.image_views(4)
        assert fast.search_width(8) == slow.search_width(8) == 1 and fast.image_views(8) == slow.image_views(8) == 0
        for solved, hard in itertools.product((False, True), repeat=2):
            kind = {"solved": solved, "hard": hard}
            assert fast.block_steps(**kind) <= slow.block_steps(**kind)
        assert EFFORTS[fast.effort] != EFFORTS[slow.effort]
    config = QuantizeConfig(effort="best", views=0, steps=0)
    assert (config.image_views(4), config.search_width(4)) == (0, efforts[2].search_width(4))
    assert QuantizeConfig(views=3).image_views(8) == 3
    assert config.block_steps(solved=True, hard=True) == config.block_steps(solved=False, hard=True) == 0
    assert efforts[2].block_steps(solved=True, hard=True) > efforts[2].block_steps(solved=True, hard=False) == 0
    assert QuantizeConfig(effort="fast", steps=3).block_steps(solved=True, hard=False) == 3


@pytest.mark.parametrize("value", ["0.1,0.2,0.3", [0.1, 0.2, 0.3], (0.1, 0.2, 0.3)])
def test_mean_is_given_as_text_or_as_numbers(value):
    assert DataConfig(mean=value).mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
    ("value", "columns"), [("a, b", ("a", "b")), (2, ("2",)), (["a", 3], ("a", "3")), (("a",), ("a",)), ([], ())]
)
def test_columns_of_texts_are_names_and_numbers(value, columns):
    assert DataConfig(text_column=value).text_column == columns


def test_a_column_is_no_switch():
    with pytest.raises(ConfigError, match="text_column: found True; input should be a valid string"):
        DataConfig(text_column=True)


@pytest.mark.parametrize(
    ("value", "size"), [(224, (224, 224)), ("224", (224, 224)), ("200x300", (200, 300)), ([200, 300], (200, 300))]
)
def test_crop_is_one_size_or_height_and_width(value, size):
    assert DataConfig(crop=value).crop == size


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"weight_bits": 5}, "weight_bits: found 5; allowed: 8 or 4"),
        ({"range": "max"}, "range: found 'max'; allowed: 'min-max', 'percentile', 'squared-error' or 'entropy'"),
        ({"device": "gpu"}, "device: found 'gpu'; allowed: 'auto', 'cpu' or 'cuda'"),
        ({"steps": -1}, "steps: found -1; input should be greater than or equal to 0"),
        ({"views": -1}, "views: found -1; input should be greater than or equal to 0"),
        ({"views": 101}, "views: found 101; input should be less than or equal to 100"),
        ({"effort": "most"}, "effort: found 'most'; allowed: 'fast', 'balanced' or 'best'"),
        ({"samples": True}, "samples: found True; input should be a valid integer"),
        ({"reconstruct": "yes"}, "reconstruct: found 'yes'; input should be a valid boolean"),
        ({"percentile": 101}, "percentile: found 101; input should be less than or equal to 100"),
        ({"percentile": float("nan")}, "percentile: found nan; input should be a finite number"),
        ({"weight_bit": 8}, "weight_bit: unknown setting; did you mean 'weight_bits'?"),
        ({"data": {"means": 0}}, "means: unknown setting; did you mean 'mean'?"),
        ({"data": {"mean": "1,2"}}, "mean: found '1,2'; has 2 numbers; must be one number, or three as 'r,g,b'"),
        ({"data": {"mean": "a,b,c"}}, "mean: found 'a,b,c'; must be one number, or three as 'r,g,b'"),
        ({"data": {"std": "0.2,0,0.2"}}, "std: found '0.2,0,0.2'; must be greater than 0"),
        ({"data": {"crop": "big"}}, "crop: found 'big'; must be a size such as 224, or 'HxW'"),
    ],
)
def test_a_bad_value_is_refused_in_one_line(values, text):
    with pytest.raises(ConfigError) as refusal:
        QuantizeConfig(**values)
    assert str(refusal.value) == text


def test_a_mean_on_the_scale_of_pixels_is_refused_with_the_remedy():
    with pytest.raises(ConfigError, match=r"^mean: found '123.7,116.3,103.5'; .*divide it by 255$"):
        DataConfig(mean="123.7,116.3,103.5")


def test_a_configuration_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        QuantizeConfig().steps = 3


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
    with pytest.raises(ConfigError, match=r"^--weight-bits: found 5; allowed: 8 or 4$"):
        load_config(None, {"weight_bits": 5})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("weight-bitz = 4", "weight-bitz: unknown setting; did you mean 'weight_bits'?"),
        ("[data]\nrezise = 4", "rezise: unknown setting; did you mean 'resize'?"),
        ("[data]\nsteps = 4", "steps: unknown setting; 'steps' is none of mean, std, resize, crop, layout, channels"),
        ("steps = 1\n[quantize]\nseed = 1", "quantize: unknown setting;"),
        ("weight-bits = 4\nweight_bits = 8", "weight_bits: given twice; keep one"),
        ("resize = 4\n[data]\nresize = 8", "resize: given twice; keep one"),
        ("weight-bits = 16", "weight_bits: found 16; allowed: 8 or 4"),
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
    with pytest.raises(ConfigError, match=r"absent\.toml: cannot be read: No such file"):
        load_config(tmp_path / "absent.toml")


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "run.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"run\.toml: not TOML"):
        load_config(tmp_path / "run.toml")


def test_no_gate_but_that_of_steps_is_asked_for_by_default():
    gates = ValidateConfig().model_dump(exclude={"data"})
    assert {name: value for name, value in gates.items() if value is not None} == {
        "max_steps": 1, "confident": False, "batch": 1,
    }  # fmt: skip


def test_gates_take_the_ends_of_what_they_may_be():
    limits = {"max_drop": -0.5, "min_agreement": 100, "min_sqnr": -3, "max_size_ratio": 0.01, "min_speedup": 0.1}
    config = ValidateConfig(**limits, max_unfused=0, max_steps=0, max_saturating=0, metric="my.scores:Best.of")
    assert {name: getattr(config, name) for name in limits} == limits
    assert (config.max_unfused, config.max_steps, config.max_saturating) == (0, 0, 0)
    assert config.metric == "my.scores:Best.of"
    assert ValidateConfig(min_agreement=0).min_agreement == 0
    assert ValidateConfig(min_agreement=1.01).min_agreement == 1.01


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"min_agreement": 0.99}, "min_agreement: found 0.99; is in %, above 1 and at most 100; multiply it by 100"),
        ({"min_agreement": "0.99"}, "min_agreement: found '0.99'; is in %, above 1 and at most 100; multiply it by"),
        ({"min_agreement": 1}, "min_agreement: found 1; is in %, above 1 and at most 100"),
        ({"min_agreement": 101}, "min_agreement: found 101; input should be less than or equal to 100"),
        ({"min_agreement": -1}, "min_agreement: found -1; input should be greater than or equal to 0"),
        ({"min_agreement": float("nan")}, "min_agreement: found nan; input should be "),
        ({"max_drop": float("nan")}, "max_drop: found nan; input should be a finite number"),
        ({"max_drop": "one"}, "max_drop: found 'one'; input should be a valid number"),
        ({"min_sqnr": float("inf")}, "min_sqnr: found inf; input should be a finite number"),
        ({"max_size_ratio": 0}, "max_size_ratio: found 0; input should be greater than 0"),
        ({"max_size_ratio": float("inf")}, "max_size_ratio: found inf; input should be a finite number"),
        ({"min_speedup": -1}, "min_speedup: found -1; input should be greater than 0"),
        ({"max_unfused": -1}, "max_unfused: found -1; input should be greater than or equal to 0"),
        ({"max_unfused": True}, "max_unfused: found True; input should be a valid integer"),
        ({"max_unfused": 0.5}, "max_unfused: found 0.5; input should be a valid integer"),
        ({"max_steps": -1}, "max_steps: found -1; input should be greater than or equal to 0"),
        ({"max_steps": None}, "max_steps: found None; input should be a valid integer"),
        ({"max_saturating": -1}, "max_saturating: found -1; input should be greater than or equal to 0"),
        ({"max_saturating": 1.5}, "max_saturating: found 1.5; input should be a valid integer"),
        ({"confident": "yes"}, "confident: found 'yes'; input should be a valid boolean"),
        ({"metric": "scores"}, "metric: found 'scores'; must be MODULE:FUNCTION"),
        ({"metric": "my scores:f"}, "metric: found 'my scores:f'; must be MODULE:FUNCTION"),
        ({"batch": 0}, "batch: found 0; input should be greater than or equal to 1"),
        ({"weight_bits": 8}, "weight_bits: unknown setting; 'weight_bits' is none of max_drop, min_agreement"),
        ({"max_dropp": 8}, "max_dropp: unknown setting; did you mean 'max_drop'?"),
        ({"data": {"means": 0}}, "means: unknown setting; did you mean 'mean'?"),
    ],
)
def test_a_bad_gate_is_refused_in_one_line(values, text):
    with pytest.raises(ConfigError) as refusal:
        ValidateConfig(**values)
    assert str(refusal.value).startswith(text) and "\n" not in str(refusal.value)


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
        ("weight-bits = 16", "weight_bits: found 16; allowed: 8 or 4"),
        ("[layers.stem]\nweight-bits = 16", "layers: 'stem': weight_bits: found 16; allowed: 8 or 4"),
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


@pytest.mark.parametrize("value", ["head", ["head"], ("head",)])
def test_one_node_is_excluded_by_its_name_alone(value):
    assert QuantizeConfig(exclude=value).exclude == ("head",)


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
    ("values", "text"),
    [
        ({"layers": 3}, """layers: found 3; it holds a table for each layer; write [layers."NAME"] above its bits"""),
        ({"layers": ["stem"]}, "layers: found ['stem']; it holds a table for each layer;"),
        ({"layers": {"stem": 4}}, "layers: 'stem': found 4; it is a table; write [layers.'stem'] above its bits"),
        ({"layers": {"stem": {"weight_bits": 5}}}, "layers: 'stem': weight_bits: found 5; allowed: 8 or 4"),
        (
            {"layers": {"stem": {"weight_bit": 4}}},
            "layers: 'stem': weight_bit: unknown setting; did you mean 'weight_bits'?",
        ),
        ({"layers": {"stem": {"exclude": 1}}}, "layers: 'stem': exclude: found 1; input should be a valid boolean"),
        ({"exclude": 3}, "exclude: found 3; input should be a valid tuple"),
        ({"exclude": [3]}, "exclude: found 3; input should be a valid string"),
    ],
)
def test_bad_settings_of_layers_are_refused_with_the_layer(values, text):
    with pytest.raises(ConfigError) as refusal:
        QuantizeConfig(**values)
    assert str(refusal.value).startswith(text)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"pipeline": "light"}, ["statistics"]),
        ({"pipeline": "advanced"}, ["reconstruct", "statistics", "biases"]),
        ({"pipeline": "advanced", "biases": False}, ["reconstruct", "statistics"]),
        ({"statistics": True}, ["reconstruct", "statistics"]),
        ({"reconstruct": False}, []),
    ],
)
def test_steps_are_those_of_the_pipeline_unless_named(settings, steps):
    config = QuantizeConfig(**settings)
    assert [step for step in STEPS if config.does(step)] == steps
