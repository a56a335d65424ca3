"""Settings of images and texts: the forms in which they may be written, and what they refuse."""

from __future__ import annotations

import pytest

from onnxcalib.config import DataConfig
from onnxcalib.errors import ConfigError


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
    ("value", "sides"), [(256, (256,)), ("256", (256,)), ("640x480", (640, 480)), ([640, 480], (640, 480)), ([9], (9,))]
)
def test_resize_is_the_shorter_side_or_height_and_width(value, sides):
    assert DataConfig(resize=value).resize == sides


@pytest.mark.parametrize("value", ["a", "1x2x3", [1, 2, 3], [], True, "0x4"])
def test_what_is_neither_one_side_nor_two_is_refused(value):
    with pytest.raises(ConfigError, match=r"^resize: found "):
        DataConfig(resize=value)


def test_mean_and_std_are_on_the_scale_of_the_pixels():
    config = DataConfig(pixel_range="0..255", mean="123.7,116.3,103.5", std=58.4)
    assert config.mean == (123.7, 116.3, 103.5) and config.std == (58.4,)
    for given, text in (
        (
            {"mean": 256},
            "mean: found 256; must be on the scale of pixels from 0 to 255, between -255 and 255; give it as",
        ),
        (
            {"std": 2551},
            "std: found 2551; must be on the scale of pixels from 0 to 255, from 0.0001 to 2,550; give it as",
        ),
    ):
        with pytest.raises(ConfigError, match=f"^{text}"):
            DataConfig(pixel_range="0..255", **given)


@pytest.mark.parametrize("name", ["resize", "crop"])
def test_a_letterbox_stands_alone(name):
    with pytest.raises(ConfigError, match=f"^letterbox: found 64; is given beside {name}, and fits the image alone;"):
        DataConfig(letterbox=64, **{name: 32})


@pytest.mark.parametrize("value", ["hn", ":h", "hn:", 3, ["hn:h", None]])
def test_a_state_is_an_output_and_an_input(value):
    with pytest.raises(ConfigError, match=r"state: found .*; must be OUT:IN, an output and the input that"):
        DataConfig(state=value)


def test_states_are_of_arrays_and_have_an_axis_of_steps():
    assert DataConfig(state="hn:h", sequence_axis=1).state == ("hn:h",)
    with pytest.raises(ConfigError, match=r"state: found .*; is given beside past 'filled'"):
        DataConfig(state="hn:h", past="filled")
    with pytest.raises(ConfigError, match=r"state: found .*; is given beside settings of texts; sequences are arrays"):
        DataConfig(state="hn:h", max_length=8)
    with pytest.raises(ConfigError, match=r"sequence_axis: found 1; is for sequences of models with states"):
        DataConfig(sequence_axis=1)


def test_a_crop_has_no_multiple():
    with pytest.raises(ConfigError, match=r"^multiple_of: found 32; is given beside crop, which sets the size; give"):
        DataConfig(multiple_of=32, crop=224)


def test_a_mean_on_the_scale_of_pixels_is_refused_with_the_remedy():
    with pytest.raises(
        ConfigError, match=r"^mean: found '123.7,116.3,103.5'; .*divide it by 255, or give pixel_range 0\.\.255$"
    ):
        DataConfig(mean="123.7,116.3,103.5")


@pytest.mark.parametrize("value", [58.395, "0.00001", [0.2, 0.2, 58.4], 1e300])
def test_a_deviation_that_no_pixels_have_is_refused_with_the_remedy(value):
    with pytest.raises(ConfigError, match=r"^std: found .*; must be on the scale of pixel / 255, from 0.0001 to 10"):
        DataConfig(std=value)


@pytest.mark.parametrize("name", ["mean", "std"])
@pytest.mark.parametrize(
    "value", [True, [True], "1e400", float("inf"), float("nan"), "nan", ["0.5"], [0.1, 0.2], 10**400, "", []]
)
def test_what_is_no_finite_number_is_refused(name, value):
    with pytest.raises(ConfigError, match=f"^{name}: "):
        DataConfig(**{name: value})


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("resize", 16_384),
        ("crop", 16_384),
        ("letterbox", 16_384),
        ("multiple_of", 16_384),
        ("fill", 255),
        ("max_length", 1_048_576),
        ("max_pixels", 178_956_970),
    ],
)
def test_numbers_have_an_upper_and_a_lower_bound(name, most):
    DataConfig(**{name: most})
    for value in (most + 1, 0 if name != "fill" else -2, -1, 10**30, True, 1.5):
        with pytest.raises(ConfigError, match=f"^{name}: "):
            DataConfig(**{name: value})


@pytest.mark.parametrize("value", ["", "a,", "a,,b", ["a", ""], "a" * 1_001])
def test_a_column_without_a_name_is_refused(value):
    with pytest.raises(
        ConfigError, match=r"^text_column: found .*; (must name something|string should have at most 1000 character)"
    ):
        DataConfig(text_column=value)


def test_a_column_that_is_named_twice_is_refused():
    with pytest.raises(ConfigError, match=r"^text_column: found 'a,a'; names a column twice; name each once"):
        DataConfig(text_column="a,a")


@pytest.mark.parametrize(
    ("value", "size"), [("4GB", 4e9), ("500 MB", 5e8), (2_000, 2e3), ("1e6", 1e6), ("1000GB", 1e12), ("1KB", 1e3)]
)
def test_sizes_are_written_with_or_without_a_unit(value, size):
    config = DataConfig(max_unpacked=value, max_line=value)
    assert config.unpacked_bytes == config.line_bytes == size


@pytest.mark.parametrize("name", ["max_unpacked", "max_line"])
@pytest.mark.parametrize("value", ["", "big", 0, -1, 0.5, "0.5@8-bit", "999B", "1001GB", "1e400", True, None, ["1GB"]])
def test_what_is_no_size_is_refused(name, value):
    with pytest.raises(ConfigError, match=f"^{name}: found .*; must be a size from 1KB to 1000GB, such as 4GB"):
        DataConfig(**{name: value})
