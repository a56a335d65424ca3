"""Settings: defaults, what they refuse and in which words, and how files and options are merged."""

from __future__ import annotations

import pytest

from onnxcalib.config import DataConfig, QuantizeConfig, load_config
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
    assert (config.reconstruct, config.steps, config.samples, config.seed, config.threads) == (True, 100, None, 0, None)
    assert config.data == DataConfig(mean=0, std=1, resize=None, crop=None, layout=None, channels=None)


@pytest.mark.parametrize("value", ["0.1,0.2,0.3", [0.1, 0.2, 0.3], (0.1, 0.2, 0.3)])
def test_mean_is_given_as_text_or_as_numbers(value):
    assert DataConfig(mean=value).mean == (0.1, 0.2, 0.3)


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
        ({"steps": 0}, "steps: found 0; input should be greater than or equal to 1"),
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
