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
    in_float={"loop": "it would run slower on integers"},
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


def test_reasons_are_of_nodes_that_have_no_bits():
    assert PLAN.reasons() == PLAN.in_float
    assert not PLAN.model_copy(update={"layers": {**PLAN.layers, "loop": "W8A8"}}).reasons()
    add = {"add": "256 levels of its output do not hold what deep reads"}
    assert PLAN.model_copy(update={"in_float": add}).reasons() == add


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"schema": 2}, r"plan.json: schema: found 2; this version reads 1; plan the model again$"),
        (
            {"layers": {"deep": "W5A8"}},
            r"plan.json: layers.deep: found 'W5A8'; Input should be 'W8A8', .*; correct it$",
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


def broken(**change):
    """The text of the plan with changes at dotted places."""
    data = json.loads(PLAN.to_json())
    for place, value in change.items():
        at = data
        *way, last = place.split("__")
        for key in way:
            at = at[int(key)] if isinstance(at, list) else at[key]
        at[last] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"schema": True}, "schema: found True; this version reads 1"),
        ({"schema": 1.0}, "schema: found 1.0; this version reads 1"),
        ({"layers": {}}, "layers: found {}; Dictionary should have at least 1 item"),
        ({"layers": []}, "layers: found []; "),
        ({"layers__stem": 8}, "layers.stem: found 8; "),
        ({"layers__stem": None}, "layers.stem: found None; "),
        ({"layers__stem": ["W8A8"]}, "layers.stem: found ['W8A8']; "),
        ({"model": 3}, "model: found 3; "),
        ({"budgets__max_size": float("nan")}, "budgets.max_size: found nan; "),
        ({"budgets__max_size": -1}, "budgets.max_size: found -1; "),
        ({"budgets__max_size": "120"}, "budgets.max_size: found '120'; "),
        ({"budgets__max_size": True}, "budgets.max_size: found True; "),
        ({"budgets__size": 1}, "budgets.size.[key]: found 'size'; "),
        ({"totals__bytes": -1}, "totals.bytes: found -1; "),
        ({"totals__bytes": 100.0}, "totals.bytes: found 100.0; "),
        ({"totals__bytes": 2**63}, "totals.bytes: found 9223372036854775808; "),
        ({"totals__bops": True}, "totals.bops: found True; "),
        ({"totals__measured_loss": float("inf")}, "totals.measured_loss: found inf; "),
        ({"eight_bit": None}, "eight_bit: found None; "),
        ({"bound": float("-inf")}, "bound: found -inf; "),
        ({"rounds": "1"}, "rounds: found '1'; "),
        ({"sets": {}}, "sets: found {}; "),
        ({"sets__0__macs": -5}, "sets.0.macs: found -5; "),
        ({"sets__0__loss__W4A8": float("inf")}, "sets.0.loss.W4A8: found inf; "),
        ({"sets__0__layers": "deep"}, "sets.0.layers: found 'deep'; "),
        ({"a\u202e\x1b": 1}, r"a\u202e\x1b: found 1; Extra inputs"),
    ],
)
def test_a_value_of_another_type_or_beyond_its_bounds_is_refused_with_its_place(tmp_path, change, place):
    path = tmp_path / "plan.json"
    path.write_text(broken(**change))
    with pytest.raises(ConfigError) as refusal:
        read_plan(path)
    assert str(refusal.value).startswith(f"{path}: {place}") and str(refusal.value).isprintable()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[" * 20_000 + "]" * 20_000, "not JSON: nested too deep"),
        ('{"schema": 1, "schema": 1}', "not JSON: the key 'schema' is given twice"),
        ('{"schema": ' + "9" * 5000 + "}", "not JSON: Exceeds the limit"),
        ('{"schema": 1e400}', "schema: found inf"),
        ("null", "schema: found None"),
        ("\0", "not JSON: "),
        ("", "not JSON: "),
    ],
)
def test_a_malformed_file_is_refused_in_one_line(tmp_path, text, complaint):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as refusal:
        read_plan(path)
    assert str(refusal.value).startswith(f"{path}: {complaint}") and "\n" not in str(refusal.value)


def test_a_plan_names_every_layer_that_is_quantized():
    PLAN.check_layers(["stem", "deep"])
    with pytest.raises(
        ConfigError, match=r"^plan: found no bits of layer 'head', nor of 1 more; those of every layer "
    ):
        PLAN.check_layers(["stem", "head", "tail"])


def test_a_plan_of_another_model_is_refused():
    with pytest.raises(
        ConfigError,
        match=r"^plan: found one for the model a\\x1ba; this model is bbb; plan this one too, with the same shape$",
    ):
        PLAN.model_copy(update={"model": "a\x1ba"}).check("bbb")
