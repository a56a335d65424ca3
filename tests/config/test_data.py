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


def test_a_mean_on_the_scale_of_pixels_is_refused_with_the_remedy():
    with pytest.raises(ConfigError, match=r"^mean: found '123.7,116.3,103.5'; .*divide it by 255$"):
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
    ("name", "most"), [("resize", 16_384), ("crop", 16_384), ("max_length", 1_048_576), ("max_pixels", 178_956_970)]
)
def test_numbers_have_an_upper_and_a_lower_bound(name, most):
    DataConfig(**{name: most})
    for value in (most + 1, 0, -1, 10**30, True, 1.5):
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
