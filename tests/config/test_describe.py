"""What users are told of settings: everything of it comes from the fields."""

from __future__ import annotations

import re

import pytest

from onnxcalib.config import PANELS, DataConfig, LayerConfig, QuantizeConfig, ValidateConfig, list_settings

KINDS = (QuantizeConfig, ValidateConfig, DataConfig, LayerConfig)


def find(name, kind=QuantizeConfig):
    return next(each for each in list_settings(kind) if each.name == name)


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_is_described_in_one_sentence_and_has_a_panel(kind):
    for setting in list_settings(kind):
        assert re.fullmatch(r"[A-Z].*[^.]\.", setting.text), setting
        assert setting.option.panel in PANELS


def test_settings_come_in_the_order_of_the_fields_with_those_of_samples_in_their_place():
    names = [each.name for each in list_settings(QuantizeConfig)]
    own = [name for name in QuantizeConfig.model_fields if name != "data"]
    assert names == [*own, *DataConfig.model_fields]
    tables = {each.table for each in list_settings(ValidateConfig)}
    assert tables == {"validate", "data"}


def test_types_bounds_and_choices_are_those_of_the_fields():
    assert (find("weight_bits").json_type, find("weight_bits").choices) == ("integer", ("8", "4", "3", "2"))
    assert find("activation_bits").choices == ("32", "16", "8", "4")
    assert (find("percentile").json_type, find("percentile").bounds) == ("number", ("above 50", "at most 100"))
    assert find("steps").bounds == ("at least 0", "at most 1,000,000") and find("views").bounds == (
        "at least 0",
        "at most 100",
    )
    assert find("max_disagreement").bounds == ("above 0", "below 100")
    assert (find("channels").json_type, find("channels").choices) == ("string", ("rgb", "bgr", "gray"))
    assert find("crop").json_type == "array" and find("biases").json_type == "boolean"
    assert find("min_agreement", ValidateConfig).bounds == ("at least 0", "at most 100")


@pytest.mark.parametrize("kind", [QuantizeConfig, ValidateConfig])
def test_every_number_has_a_least_and_a_most(kind):
    for setting in list_settings(kind):
        written = setting.option.metavar in ("SIZE", "BOPS", "TIME", "R,G,B", "N|HxW")
        if written or (setting.json_type in ("integer", "number") and not setting.choices):
            assert len(setting.bounds) == (1 if written else 2), setting


@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("weight_bits", "8"), ("range", "squared-error"), ("mean", "0"), ("candidates", "W8A8,W4A8,W4A4,W8A4"),
        ("pairs", "false"), ("layout", "from the model"), ("max_size", None), ("exclude", None), ("layers", None),
    ],
)  # fmt: skip
def test_defaults_are_those_of_the_fields_in_words(name, default):
    assert find(name).default == default


def test_a_switch_has_two_names():
    assert find("biases").flag == "--biases/--no-biases" and find("max_size").flag == "--max-size"
