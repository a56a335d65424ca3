"""The bit plan's file: what is read, and what is refused."""

import json

import pytest

from onnxcalib import ConfigError
from onnxcalib.bitplan import BitPlan, Frontier, Point, SetRecord, Totals, read_plan
from onnxcalib.config import LayerConfig

TOTALS = Totals(predicted_loss=0.5, measured_loss=0.625, bytes=100, bops=6400)
PLAN = BitPlan(
    model="a" * 64,
    budgets={"max_size": 120.0},
    layers={"stem": "W8A8", "deep": "W4A8", "loop": "float"},
    totals=TOTALS,
    eight_bit=TOTALS,
    bound=0.5,
    rounds=1,
    sets=(SetRecord(layers=("deep",), macs=10, loss={"W4A8": 0.5}, bytes={"W4A8": 5}, bops={"W4A8": 320}),),
)

POINTS = [
    Point(bytes=size, bops=bops, loss=loss, layers={"deep": bits})
    for size, bops, loss, bits in ((100, 3200, 0.5, "W4A8"), (200, 6400, 1e-3, "W8A8"))
]
FRONTIER = Frontier(model="a" * 64, float_bytes=1000, points=POINTS, uniform={"W8A8": POINTS[1]})


def test_what_is_written_is_read_again(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(PLAN.to_json())
    assert read_plan(path) == PLAN and json.loads(path.read_text())["schema"] == 1


def test_bits_are_settings_of_single_layers():
    assert PLAN.settings()["deep"] == LayerConfig(weight_bits=4, activation_bits=8)
    assert PLAN.settings()["loop"] == LayerConfig(exclude=True)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"schema": 2}, r"plan.json: schema: found 2; this version reads 1; plan the model again$"),
        (
            {"layers": {"deep": "W3A8"}},
            r"plan.json: layers.deep: found 'W3A8'; Input should be 'W8A8', .*; correct it$",
        ),
        ({"bits": 4}, r"plan.json: bits: found 4; Extra inputs are not permitted; correct it$"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, change, text):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(json.loads(PLAN.to_json()) | change))
    with pytest.raises(ConfigError, match=text):
        read_plan(path)


@pytest.mark.parametrize("content", ["{", "[1]", "\xff"])
def test_what_is_no_plan_is_refused(tmp_path, content):
    path = tmp_path / "plan.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"plan.json: (not JSON: .*|not UTF-8 text .*|schema: found None; .*)$"):
        read_plan(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none.json: no such file; give --plan a file of onnxcalib"):
        read_plan(tmp_path / "none.json")


def test_a_frontier_is_json():
    found = json.loads(FRONTIER.to_json())
    assert found["points"][0] == {"bytes": 100, "bops": 3200, "loss": 0.5, "layers": {"deep": "W4A8"}}


def test_a_frontier_is_told_from_a_plan(tmp_path):
    path = tmp_path / "frontier.json"
    path.write_text(FRONTIER.to_json())
    with pytest.raises(ConfigError, match=r"frontier.json: is a frontier of .*, a curve .*; .* plan --max-size BYTES$"):
        read_plan(path)
