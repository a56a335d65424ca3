"""Inputs of levels are read without error; others are left alone."""

from importlib.resources import files

import numpy as np
import pytest
from onnx import ModelProto

import onnxcalib
from onnxcalib import QuantizeConfig
from onnxcalib.data import open_calibration
from onnxcalib.data.calibration_set import DataConfig
from onnxcalib.graph.load import inputs_of
from onnxcalib.graph.scheme import make_scheme
from onnxcalib.numeric.histogram import Histogram
from onnxcalib.numeric.ranges import make_grid
from onnxcalib.numeric.rounding import fake_quantize
from onnxcalib.quantization.calibrate import collect_statistics
from onnxcalib.quantization.input_grid import find_lossless_grids, keep_lossless
from onnxcalib.quantization.padding_mask import PaddingMask
from onnxcalib.quantization.prepare import AHEAD
from onnxcalib.spec import QuantSpec

MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
IMAGE = "g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y)"
FIRST = "[a] c = Conv <pads = [1, 1, 1, 1]> (x, w)  r = Relu (c)  [b] y = Conv (r, v)"


@pytest.fixture
def model(build, draw):
    return build(f"{IMAGE} {{ {FIRST} }}", w=draw(4, 3, 3, 3), v=draw(4, 4, 1, 1))


def photographs(count=12, seed=0):
    drawn = np.random.default_rng(seed).integers(0, 256, (count, 3, 8, 8))
    drawn[:, :, 0, :2] = 0, 255
    return drawn.astype(np.float32)


def normalized(images, mean=MEAN, std=STD):
    return ((images / np.float32(255) - mean[:, None, None]) / std[:, None, None]).astype(np.float32)


def find(model, data, **bits):
    samples = open_calibration(data, inputs_of(model), DataConfig())
    return find_lossless_grids(model, make_scheme(model, **bits), samples, PaddingMask(model), threads=1)


def error_of(values, grid):
    return np.abs(fake_quantize(values, float(grid.scale), float(grid.zero_point), grid.spec) - values).max()


def test_normalized_pixels_are_read_in_their_own_units(model, run):
    x = normalized(photographs())
    before = run(model, x)[0]
    fixed, rescaled = find(model, x)
    assert len(rescaled) == 1 and [n.op_type for n in model.graph.node][:4] == ["Pad", "Mul", "Add", "Conv"]
    ((tensor, grid),) = fixed.items()
    assert make_scheme(model).layers[0].input == tensor
    np.testing.assert_allclose(run(model, x)[0], before, rtol=1e-3, atol=1e-3)
    model.graph.output[0].name = tensor
    read = run(model, x)[0]
    inner = read[:, :, 1:-1, 1:-1] + float(grid.zero_point)
    np.testing.assert_allclose(inner, photographs(), atol=0.02)
    assert error_of(read, grid) <= 0.5  # what pads them are zeros, between levels


def test_pixels_of_one_scale_need_no_rewriting(model):
    before = model.SerializeToString()
    x = photographs() / np.float32(255)
    fixed, rescaled = find(model, x)
    assert len(rescaled) == 0 and model.SerializeToString() == before
    assert error_of(x, fixed["x"]) < 1e-6


def test_normalization_inside_the_model_is_seen_through(build, draw):
    model = build(
        f"{IMAGE} {{ [s] n = Sub (x, m)  [d] x2 = Div (n, s)  {FIRST.replace('(x,', '(x2,')} }}",
        m=MEAN[:, None, None] * 255, s=STD[:, None, None] * 255, w=draw(4, 3, 3, 3), v=draw(4, 4, 1, 1),
    )  # fmt: skip
    fixed, rescaled = find(model, photographs())
    assert len(rescaled) == 1 and len(fixed) == 1


def test_a_transpose_and_its_input_have_the_one_grid(build, draw):
    model = build(
        f"""g (float[N, 8, 8, 3] h) => (float[N, 4, 8, 8] y)
        {{ [t] x = Transpose <perm = [0, 3, 1, 2]> (h)  {FIRST} }}""",
        w=draw(4, 3, 3, 3), v=draw(4, 4, 1, 1),
    )  # fmt: skip
    fixed, rescaled = find(model, photographs().transpose(0, 2, 3, 1) / np.float32(255))
    assert len(rescaled) == 0 and fixed.keys() == {"h", "x"} and fixed["h"] is fixed["x"]


def test_a_dense_layer_has_the_levels_of_all_its_inputs(build, draw):
    model = build("g (float[N, 16] x) => (float[N, 4] y) { [a] y = MatMul (x, w) }", w=draw(16, 4))
    x = np.random.default_rng(0).integers(0, 17, (40, 16)).astype(np.float32) / np.float32(16)
    fixed, rescaled = find(model, x)
    assert len(rescaled) == 0 and error_of(x, fixed["x"]) < 1e-6
    x[:, 3] += np.float32(0.01)
    assert find(model, x) == ({}, ())


@pytest.mark.parametrize(
    ("bits", "data"),
    [
        ({}, np.random.default_rng(0).normal(size=(12, 3, 8, 8)).astype(np.float32)),
        ({}, np.ones((12, 3, 8, 8), np.float32)),
        ({"activation_bits": 4, "first_last_bits": 4}, normalized(photographs())),
    ],
    ids=["no levels", "one value", "4 bits"],
)
def test_what_has_no_levels_for_its_bits_is_left_alone(model, bits, data):
    before = model.SerializeToString()
    assert find(model, data, **bits) == ({}, ())
    assert model.SerializeToString() == before


def test_levels_in_some_samples_alone_are_none(model):
    x = normalized(photographs())
    x[-1, 0, 4, 4] += np.float32(0.005)
    assert find(model, x) == ({}, ())


def test_only_first_layers_are_looked_at(model):
    """The second layer's input has levels too, where the first one's weights are zero but for one."""
    weight = np.zeros((4, 3, 3, 3), np.float32)
    weight[:, 0, 1, 1] = 1
    model.graph.initializer[0].raw_data = weight.tobytes()
    fixed, _ = find(model, photographs() / np.float32(255))
    assert fixed.keys() == {"x"}


@pytest.mark.parametrize("pixels", [photographs() / 4, photographs() / 4 + 190])
def test_zeros_around_dark_and_bright_images_are_on_the_grid(model, run, pixels):
    x = normalized(np.floor(pixels))
    fixed, rescaled = find(model, x)
    ((tensor, grid),) = fixed.items()
    model.graph.output[0].name = tensor
    assert len(rescaled) == 1 and error_of(run(model, x)[0], grid) <= 0.5


def test_images_with_a_mask_are_read_in_one_unit(build, draw):
    model = build(f"{IMAGE.replace('3,', '4,')} {{ {FIRST} }}", w=draw(4, 4, 3, 3), v=draw(4, 4, 1, 1))
    mask = np.random.default_rng(0).integers(0, 2, (12, 1, 8, 8)).astype(np.float32)
    before = np.abs(np.frombuffer(model.graph.initializer[0].raw_data, np.float32)).max()
    _, rescaled = find(model, np.concatenate([normalized(photographs()), mask], 1))
    weight = np.frombuffer(next(i for i in model.graph.initializer if i.name == "w").raw_data, np.float32)
    assert len(rescaled) == 1 and np.abs(weight).max() > before / 70  # the pixels' unit is 1 / 58


def test_a_grid_that_does_not_hold_the_whole_set_is_not_kept(build, draw):
    model = build("g (float[N, 16] x) => (float[N, 4] y) { [a] y = MatMul (x, w) }", w=draw(16, 4))
    x = np.random.default_rng(0).integers(0, 40, (200, 16)).astype(np.float32)
    samples = open_calibration(x, inputs_of(model), DataConfig())
    fixed, _ = find_lossless_grids(model, make_scheme(model), samples, PaddingMask(model))
    assert keep_lossless(fixed, collect_statistics(model, ["x"], samples, PaddingMask(model)).histograms) == fixed
    x[7, 3] = 400
    assert keep_lossless(fixed, collect_statistics(model, ["x"], samples, PaddingMask(model)).histograms) == {}


def test_a_shared_grid_is_kept_for_all_or_for_none():
    grid, other = (make_grid(0, 255, QuantSpec(8)) for _ in range(2))
    histograms = {name: Histogram() for name in "abc"}
    for name, most in (("a", 300), ("b", 200), ("c", 200)):
        histograms[name].add(np.float32([0, most]))
    assert keep_lossless({"a": grid, "b": grid, "c": other}, histograms) == {"c": other}


def test_a_model_of_fixed_batch_gets_whole_batches(build, draw):
    model = build(f"{IMAGE} {{ {FIRST} }}".replace("N,", "5,"), w=draw(4, 3, 3, 3), v=draw(4, 4, 1, 1))
    fixed, rescaled = find(ModelProto.FromString(model.SerializeToString()), normalized(photographs(12)))
    assert len(rescaled) == 1 and next(iter(fixed.values())).spec == QuantSpec(8)


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    """The file of a device that runs whole groups of int8 in powers of two, with or without rescaled inputs."""

    def write(rescales: bool) -> str:
        text = (files("onnxcalib.targets") / "xint8.toml").read_text(encoding="utf-8")
        text = text.replace('name = "xint8"', 'name = "chip"')
        path = tmp_path_factory.mktemp("target") / "chip.toml"
        path.write_text(text.replace("rescaled_inputs = true", f"rescaled_inputs = {str(rescales).lower()}"))
        return str(path)

    return write


@pytest.mark.parametrize("rescales", [True, False])
def test_a_device_of_whole_groups_gets_levels_in_front_of_it_where_its_target_says_so(model, device, rescales):
    config = QuantizeConfig(target=device(rescales), reconstruct=False, data=DataConfig(shape="2,3,8,8"))
    prepared = onnxcalib.prepare(model, normalized(photographs(8)), config)
    ahead = [prepared.model.graph.node[i].op_type for i in range(3)] if rescales else []
    assert ahead == (["Pad", "Mul", "Add"] if rescales else [])
    assert list(prepared.in_float.values()) == [AHEAD] * len(ahead)
    quantized = onnxcalib.emit(prepared, onnxcalib.reconstruct(prepared))
    first = next(node for node in quantized.graph.node if node.op_type == "QuantizeLinear")
    assert first.input[0] == (prepared.model.graph.node[2].output[0] if rescales else "x")
    assert onnxcalib.check_target(quantized, device(rescales)).violations == ()
