"""Ranges of activations: the same grids from a file, others where it was edited, clear errors for what cannot be."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcalib.errors import ConfigError
from onnxcalib.graph.scheme import make_scheme
from onnxcalib.numeric.ranges import make_grid
from onnxcalib.quantization.ranges import Ranges, ends_of, read_ranges
from onnxcalib.spec import Grids, QuantSpec

ENDS = st.floats(-(2.0**99), 2.0**99, allow_nan=False, width=32)


SPECS = [
    QuantSpec(bits, signed, symmetric, power_of_two=power_of_two, least_range=least_range)
    for bits in (4, 8, 16)
    for signed, symmetric in ((False, False), (True, True), (False, True), (True, False))
    for power_of_two in (False, True)
    for least_range in (0.0, 1e-4)
]


@given(ENDS, ENDS, st.sampled_from(SPECS), st.booleans())
def test_the_ends_of_a_grid_give_the_grid_again(one, other, spec, bounded):
    low, high = sorted((one, other))
    bound = abs(high) if bounded and high != 0 else None
    grid = make_grid(0.0 if bounded else low, high, spec, bound=bound)
    again = make_grid(*ends_of(grid), spec, bound=bound)
    assert again.scale == grid.scale and again.zero_point == grid.zero_point


@pytest.fixture
def scheme(build, draw):
    text = "g (float[N, 4] x) => (float[N, 4] y) { [one] h = MatMul (x, w) [r] t = Relu (h) [two] y = MatMul (t, v) }"
    return make_scheme(build(text, w=draw(4, 4), v=draw(4, 4)))


def make_ranges(scheme, **ends):
    grids = Grids({t: make_grid(*ends.get(t, (-1.5, 2.0)), spec) for t, spec in scheme.activations.items()})
    return grids, Ranges.of_grids(grids, model="a" * 64, batch=8)


def test_a_file_gives_the_same_grids(scheme, tmp_path):
    grids, ranges = make_ranges(scheme, x=(-0.37, 5.1))
    ranges.save(tmp_path / "ranges.json")
    read = read_ranges(tmp_path / "ranges.json")
    assert read == ranges
    found = read.grids(scheme).activations
    wanted = {t: grid for t, grid in grids.activations.items() if t not in scheme.nonnegative}
    assert wanted and {t: (found[t].scale, found[t].zero_point) for t in wanted} == {
        t: (grid.scale, grid.zero_point) for t, grid in wanted.items()
    }


def test_an_edited_range_is_that_of_the_grid(scheme, tmp_path):
    _, ranges = make_ranges(scheme)
    data = json.loads(ranges.to_json())
    data["activations"]["x"] = [-10, 245]
    (tmp_path / "ranges.json").write_text(json.dumps(data))
    grid = read_ranges(tmp_path / "ranges.json").grids(scheme).activations["x"]
    assert (float(grid.scale), int(grid.zero_point)) == (1.0, 10)


def test_a_tensor_that_is_never_negative_starts_at_zero_whatever_its_range(scheme):
    _, ranges = make_ranges(scheme)
    (tensor,) = set(scheme.nonnegative) & set(scheme.activations)
    assert ranges.grids(scheme).activations[tensor].zero_point == 0


def test_tensors_that_share_a_grid_share_the_union_of_their_ranges(build, draw):
    text = """g (float[N, 4, 4, 4] x) => (float[N, 8, 2, 2] y) {
        [one] h = Conv (x, w) [pool] p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (h) [two] y = Conv (p, v)
    }"""
    scheme = make_scheme(build(text, w=draw(8, 4, 1, 1), v=draw(8, 8, 1, 1)))
    (members,) = scheme.shared
    _, ranges = make_ranges(scheme, **{members[0]: (-4.0, 1.0), members[1]: (-1.0, 3.0)})
    grids = [ranges.grids(scheme).activations[t] for t in members]
    assert len({float(grid.scale) for grid in grids}) == 1
    low, high = ends_of(grids[0])
    assert (low, high) == pytest.approx((-4, 3), abs=0.03)


def test_a_tensor_without_a_range_is_named(scheme):
    _, ranges = make_ranges(scheme)
    fewer = ranges.model_copy(update={"activations": {}})
    with pytest.raises(
        ConfigError, match=r"^ranges: found none of tensor 'x'; every activation of the scheme needs one"
    ):
        fewer.grids(scheme)


def test_ranges_of_another_model_are_refused(scheme):
    _, ranges = make_ranges(scheme)
    ranges.check("a" * 64)
    with pytest.raises(ConfigError, match=r"^ranges: found those of another model, aaaaaaaaaaaa; this one is bbb"):
        ranges.check("b" * 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema: found 2; this version reads 1; calibrate the model again"),
        ({"batch": 0}, "batch: found 0; Input should be greater than or equal to 1; correct it"),
        (
            {"activations": {"x": [1, 2]}},
            "activations.x: found [1, 2]; the lowest value of a range comes first, and 0 lies",
        ),
        ({"activations": {"x": [2, -2]}}, "activations.x: found [2, -2]; the lowest value of a range comes first"),
        ({"activations": {"x": [0, 0]}}, "activations.x: found [0, 0]"),
        ({"activations": {"x": ["low", 2]}}, "activations.x.0: found 'low'; Input should be a valid number"),
        ({"more": 1}, "more: found 1; Extra inputs are not permitted"),
    ],
)
def test_a_file_that_cannot_be_is_refused_with_what_is_wrong(scheme, tmp_path, change, message):
    _, ranges = make_ranges(scheme)
    path = tmp_path / "ranges.json"
    path.write_text(json.dumps(json.loads(ranges.to_json()) | change))
    with pytest.raises(ConfigError) as fault:
        read_ranges(path)
    assert str(fault.value).startswith(f"{path}: {message}")


def test_a_file_that_is_missing_or_no_json_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"ranges\.json: no such file"):
        read_ranges(tmp_path / "ranges.json")
    (tmp_path / "ranges.json").write_text("{")
    with pytest.raises(ConfigError, match=r"ranges\.json: not JSON: .*; give --ranges a file of onnxcalib calibrate"):
        read_ranges(tmp_path / "ranges.json")


def test_not_a_number_is_no_end(scheme, tmp_path):
    _, ranges = make_ranges(scheme)
    data = json.loads(ranges.to_json())
    data["activations"]["x"] = [float("nan"), 1.0]
    (tmp_path / "ranges.json").write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=r"activations\.x\.0: found nan"):
        read_ranges(tmp_path / "ranges.json")
    assert np.isfinite(list(ranges.activations.values())).all()


def test_ranges_made_in_python_are_checked_too():
    with pytest.raises(ValueError, match="the lowest value of a range comes first"):
        Ranges(model="a" * 64, batch=8, activations={"x": (5.0, -1.0)})


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"schema": True}, "schema: found True; this version reads 1"),
        ({"batch": 8.0}, "batch: found 8.0; "),
        ({"batch": True}, "batch: found True; "),
        ({"batch": "8"}, "batch: found '8'; "),
        ({"batch": 0}, "batch: found 0; "),
        ({"batch": 2**63}, "batch: found 9223372036854775808; "),
        ({"activations": []}, "activations: found []; "),
        ({"activations": {"x": [0, "1"]}}, "activations.x.1: found '1'; "),
        ({"activations": {"x": [False, True]}}, "activations.x.0: found False; "),
        ({"activations": {"x": [0]}}, "activations.x.1: found [0]; "),
        ({"activations": {"x": [0, 1, 2]}}, "activations.x: found [0, 1, 2]; "),
        ({"activations": {"x": [0, 10**400]}}, "activations.x.1: found 1000"),
        (
            {"activations": {"x": [0, 1e39]}},
            "activations.x: found [0, 1e+39]; values end at 4e+38",
        ),
        ({"activations": {"x": None}}, "activations.x: found None; "),
        ({"requantized": {"x\u202e": {}}}, r"requantized.x\u202e: found {}; "),
        ({"model": None}, "model: found None; "),
    ],
)
def test_a_value_of_another_type_or_beyond_its_bounds_is_refused_with_its_place(tmp_path, change, place):
    path = tmp_path / "ranges.json"
    whole = {"schema": 1, "model": "m", "batch": 8, "activations": {"x": [0, 1]}, "requantized": {}}
    path.write_text(json.dumps(whole))
    assert read_ranges(path).activations == {"x": (0, 1)}
    path.write_text(json.dumps(whole | change))
    with pytest.raises(ConfigError) as refusal:
        read_ranges(path)
    assert str(refusal.value).startswith(f"{path}: {place}") and str(refusal.value).isprintable()
