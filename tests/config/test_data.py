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
