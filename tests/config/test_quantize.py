"""Settings of a run: defaults, what they refuse and in which words, and what efforts and pipelines stand for."""

from __future__ import annotations

import itertools

import pytest

from onnxcalib.config import EFFORTS, STAGES, DataConfig, LayerConfig, QuantizeConfig
from onnxcalib.errors import ConfigError


def test_the_defaults_are_those_of_the_documentation():
    config = QuantizeConfig()
    assert (config.weight_bits, config.activation_bits, config.first_last_bits) == (8, 8, 8)
    assert (config.range, config.percentile, config.encoding) == ("squared-error", 99.99, "runtime")
    assert (config.pipeline, config.effort, config.steps, config.views) == ("default", "balanced", None, None)
    assert [stage for stage in STAGES if config.does(stage)] == ["reconstruct"]
    assert (config.samples, config.seed, config.threads) == (None, 0, None)
    assert (config.device, config.exclude, config.layers) == ("auto", (), {})
    assert config.data == DataConfig(mean=0, std=1, resize=None, crop=None, layout=None, channels=None)


def test_more_effort_is_more_of_each_and_settings_of_their_own_win():
    efforts = [QuantizeConfig(effort=effort) for effort in ("fast", "balanced", "best")]
    for fast, slow in itertools.pairwise(efforts):
        assert fast.search_width(4) < slow.search_width(4) and fast.count_views(4) < slow.count_views(4)
        assert (
            fast.count_views(4, texts=True) < slow.count_views(4, texts=True)
            and fast.count_views(8, texts=True) == slow.count_views(8, texts=True) == 0
        )
        assert fast.search_width(8) == slow.search_width(8) == 1 and fast.count_views(8) == slow.count_views(8) == 0
        for solved, hard in itertools.product((False, True), repeat=2):
            kind = {"solved": solved, "hard": hard}
            assert fast.block_steps(**kind) <= slow.block_steps(**kind)
        assert EFFORTS[fast.effort] != EFFORTS[slow.effort]
    config = QuantizeConfig(effort="best", views=0, steps=0)
    assert (config.count_views(4), config.search_width(4)) == (0, efforts[2].search_width(4))
    assert QuantizeConfig(views=3).count_views(8) == QuantizeConfig(views=3).count_views(8, texts=True) == 3
    assert config.block_steps(solved=True, hard=True) == config.block_steps(solved=False, hard=True) == 0
    assert efforts[2].block_steps(solved=True, hard=True) > efforts[2].block_steps(solved=True, hard=False) == 0
    assert QuantizeConfig(effort="fast", steps=3).block_steps(solved=True, hard=False) == 3


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"weight_bits": 5}, "weight_bits: found 5; allowed: 8, 4, 3 or 2"),
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
        ({"min_sqnr": 8}, "min_sqnr: unknown setting; it belongs under [validate] (ValidateConfig)"),
        (
            {"max_drop": 1},
            "max_drop: unknown setting; it belongs under [validate] (ValidateConfig); max_drop, a gate of validate,"
            " limits the accuracy lost, in points; max_disagreement, a budget of bit plans, limits the samples whose"
            " top class changes, in %",
        ),
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


def test_a_configuration_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        QuantizeConfig().steps = 3


@pytest.mark.parametrize("value", ["head", ["head"], ("head",)])
def test_one_node_is_excluded_by_its_name_alone(value):
    assert QuantizeConfig(exclude=value).exclude == ("head",)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"layers": 3}, """layers: found 3; it holds a table for each layer; write [layers."NAME"] above its bits"""),
        ({"layers": ["stem"]}, "layers: found ['stem']; it holds a table for each layer;"),
        ({"layers": {"stem": 4}}, "layers: 'stem': found 4; it is a table; write [layers.'stem'] above its bits"),
        ({"layers": {"stem": {"weight_bits": 5}}}, "layers: 'stem': weight_bits: found 5; allowed: 8, 4, 3 or 2"),
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
    ("settings", "stages"),
    [
        ({"pipeline": "light"}, ["statistics"]),
        ({"pipeline": "advanced"}, ["reconstruct", "distill", "statistics", "biases"]),
        ({"pipeline": "advanced", "biases": False}, ["reconstruct", "distill", "statistics"]),
        ({"statistics": True}, ["reconstruct", "statistics"]),
        ({"reconstruct": False}, []),
    ],
)
def test_stages_are_those_of_the_pipeline_unless_named(settings, stages):
    config = QuantizeConfig(**settings)
    assert [stage for stage in STAGES if config.does(stage)] == stages


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("steps", 0, 10**6), ("views", 0, 100), ("samples", 1, 10**9), ("seed", 0, 2**32 - 1), ("threads", 1, 1024),
        ("jobs", 1, 1024), ("percentile", 50.001, 100), ("max_loss", 1e-300, 1e9), ("max_disagreement", 1e-3, 99.99),
    ],
)  # fmt: skip
def test_numbers_are_taken_between_their_bounds_and_refused_beyond_and_of_other_types(name, least, most):
    for value in (least, most):
        assert getattr(QuantizeConfig(**{name: value}), name) == value
    wrong = [least - 1, most + 1, 10**5000, -(10**5000), 1e400, -1e400, float("nan"), True, str(most), [most], {}, b"1"]
    for value in [*wrong, *([0.5, float(most)] if isinstance(most, int) and name != "percentile" else [])]:
        with pytest.raises(ConfigError, match=f"^{name}: found .*"):
            QuantizeConfig(**{name: value})


@pytest.mark.parametrize(
    "values",
    [
        {"exclude": ""}, {"exclude": [" "]}, {"candidates": []}, {"candidates": ""}, {"latencies": ""},
        {"scheduler": ""}, {"cache_dir": ""}, {"max_size": ""}, {"layers": {"": {"exclude": True}}},
        {"layers": {"": LayerConfig()}}, {"data": {"tokenizer": ""}}, {"data": {"text_column": "a,"}}, {"range": ""},
        {"latencies": "a\0b"}, {"cache_dir": "x" * 5000}, {"layers": {3: {}}}, {"data": {"text_column": ""}},
    ],
)  # fmt: skip
def test_an_empty_text_where_something_is_asked_for_is_refused(values):
    with pytest.raises(ConfigError, match=r"^\w+: .*") as refusal:
        QuantizeConfig(**values)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 500


@pytest.mark.parametrize("bits", [8.0, True, "8", 4.0, 10**5000, None, [8]], ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("name", ["weight_bits", "activation_bits", "first_last_bits"])
def test_bits_are_whole_numbers(name, bits):
    with pytest.raises(ConfigError, match=f"^{name}: found "):
        QuantizeConfig(**{name: bits})


def test_a_setting_of_a_layer_is_given_once():
    with pytest.raises(ConfigError, match=r"^layers: 'stem': weight_bits: given twice; keep one$"):
        QuantizeConfig(layers={"stem": {"weight-bits": 4, "weight_bits": 8}})
