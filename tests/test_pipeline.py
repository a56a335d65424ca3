"""The main job from Python, end to end on small models."""

import gc
import json
import re
import weakref
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from PIL import Image
from typer.testing import CliRunner

import onnxcalib
import onnxcalib.graph.load
import onnxcalib.pipeline
from onnxcalib import ConfigError, DataConfig, DataError, ModelError, OutputError, QuantizeConfig, quantize
from onnxcalib.cli.app import app
from onnxcalib.config import load_config
from onnxcalib.report import MeasuredOn, Observer
from tests.device import FAR, FarDevice

SAMPLES = np.random.default_rng(3).normal(size=(24, 3, 8, 8)).astype(np.float32)
NET = """g (float[N, 3, 8, 8] image) => (float[N, 4] scores) {
    [stem] a = Conv <pads = [1, 1, 1, 1]> (image, w1, b1)  [relu1] r = Relu (a)
    [inner] c = Conv <pads = [1, 1, 1, 1]> (r, w2, b2)  [add] s = Add (c, r)  [relu2] t = Relu (s)
    [deep] d = Conv <pads = [1, 1, 1, 1], group = 8> (t, w3)  [clip] e = Clip (d, zero, six)
    [mean] m = GlobalAveragePool (e)  [flat] f = Flatten (m)  [head] scores = Gemm <transB = 1> (f, w4, b4)
}"""
LIMITS = {"zero": np.float32(0), "six": np.float32(6)}


@pytest.fixture
def net(build, weigh):
    weights = {"w1": weigh(8, 3, 3, 3), "w2": weigh(8, 8, 3, 3), "w3": weigh(8, 1, 3, 3), "w4": weigh(4, 8)}
    return build(NET, **weights, b1=weigh(8), b2=weigh(8), b4=weigh(4), **LIMITS)


def settings(**changes):
    return QuantizeConfig(**{"steps": 5} | changes)


ON_HTP = {"target": "qnn", "data": DataConfig(shape="1,3,8,8")}
BITS = [(8, 8, 35), (4, 8, 15), (4, 4, 10), (8, 4, 12)]


@pytest.mark.parametrize(("weight_bits", "activation_bits", "least"), BITS)
def test_every_pair_of_bits_gives_a_checked_model_near_the_float_one(net, weight_bits, activation_bits, least):
    result = quantize(net, SAMPLES, settings(weight_bits=weight_bits, activation_bits=activation_bits))
    onnx.checker.check_model(result.model, full_check=True)
    (output,) = result.report.outputs
    assert output.name == "scores" and output.sqnr_db > least and 0 <= output.agreement <= 1
    bits = {layer.name: (layer.weight_bits, layer.activation_bits) for layer in result.report.layers}
    assert bits == {
        "stem": (8, 8),
        "inner": (weight_bits, activation_bits),
        "deep": (weight_bits, activation_bits),
        "head": (8, 8),
    }


@pytest.mark.parametrize(("weight_bits", "least"), [(8, 45), (4, 15)])
def test_activations_of_16_bits_cost_next_to_nothing(net, weight_bits, least):
    result = quantize(net, SAMPLES, settings(weight_bits=weight_bits, activation_bits=16, **ON_HTP))
    onnx.checker.check_model(result.model, full_check=True)
    (output,) = result.report.outputs
    assert output.sqnr_db > least and {layer.activation_bits for layer in result.report.layers} == {16}
    written = {node.input[2] for node in result.model.graph.node if node.op_type == "QuantizeLinear"}
    types = {t.data_type for t in result.model.graph.initializer if t.name in written}
    assert types == {onnx.TensorProto.UINT16} and result.model.opset_import[0].version >= 21


def test_single_tensors_may_have_16_bits(net):
    result = quantize(net, SAMPLES, settings(tensors={"r": 16}, **ON_HTP))
    bits = {layer.name: layer.activation_bits for layer in result.report.layers}
    assert bits == {"stem": 8, "inner": 16, "deep": 8, "head": 8}


def test_bits_of_a_tensor_without_a_grid_are_refused(net):
    complaint = "tensors: found bits of 'q'; a tensor that is quantized has bits, such as 'image'; take it out"
    with pytest.raises(ConfigError, match="^" + re.escape(complaint)):
        quantize(net, SAMPLES, settings(tensors={"q": 16}, **ON_HTP))


@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(4, 8), (4, 4), (8, 4)])
def test_both_encodings_give_the_same_numbers_without_optimizations(net, run_plain, weight_bits, activation_bits):
    given = []
    for encoding in ("runtime", "standard"):
        config = settings(weight_bits=weight_bits, activation_bits=activation_bits, encoding=encoding)
        given.append(run_plain(quantize(net, SAMPLES, config).model, SAMPLES))
    np.testing.assert_allclose(given[0], given[1], rtol=1e-5, atol=1e-6)


HOW = [
    {},
    {"weight_bits": 2, "pipeline": "advanced", "steps": 5},
    {"activation_bits": 4},
    {"pipeline": "light"},
    {"pipeline": "advanced"},
    {"steps": 30, "effort": "best"},
]


@pytest.mark.parametrize("how", HOW, ids=str)
def test_no_kernel_of_what_is_written_can_saturate(net, how):
    result = quantize(net, SAMPLES, settings(**how))
    assert (result.report.saturation.kernels, result.report.saturation.layers) == (4, ())
    assert result.report.outputs[0].sqnr_db > 5 and not result.report.left_out
    assert read_settings(result.model)["weight_range"] == "bounded"


def test_with_the_whole_range_of_the_weights_some_can(net):
    result = quantize(net, SAMPLES, settings(weight_range="full", reconstruct=False))
    assert result.report.saturation.layers
    assert read_settings(result.model)["weight_range"] == "full"


def read_settings(model):
    return json.loads(next(e.value for e in model.metadata_props if e.key == "onnxcalib.settings"))


@pytest.mark.parametrize("encoding", ["runtime", "standard"])
def test_the_encoding_asked_for_is_written(net, encoding):
    result = quantize(net, SAMPLES, settings(weight_bits=4, encoding=encoding, reconstruct=False))
    types = {t.name: t.data_type for t in result.model.graph.initializer}
    assert types["w2_quantized"] == onnx.TensorProto.INT4
    readers = {node.op_type for node in result.model.graph.node if "w2_quantized" in node.input}
    assert readers == {"Cast" if encoding == "runtime" else "DequantizeLinear"}


@pytest.fixture
def run_plain():
    from onnxcalib.runtime.session import Session

    return lambda model, x: Session(model, optimize=False).run({"image": x})["scores"]


def test_the_model_given_is_left_as_it_was(net):
    before = net.SerializeToString()
    quantize(net, SAMPLES, settings())
    assert net.SerializeToString() == before


def test_paths_arrays_and_dicts_give_the_same_file(net, tmp_path):
    onnx.save(net, tmp_path / "net.onnx")
    np.save(tmp_path / "samples.npy", SAMPLES)
    one = quantize(net, {"image": SAMPLES}, settings())
    two = quantize(tmp_path / "net.onnx", tmp_path / "samples.npy", settings())
    two.save(tmp_path / "out.onnx")
    assert one.model.SerializeToString() == onnx.load(tmp_path / "out.onnx").SerializeToString()


def test_the_file_says_how_it_was_made(net):
    entries = {e.key: e.value for e in quantize(net, SAMPLES, settings(weight_bits=4)).model.metadata_props}
    assert entries["onnxcalib.version"] == onnxcalib.__version__
    assert json.loads(entries["onnxcalib.settings"])["weight_bits"] == 4
    assert json.loads(entries["onnxcalib.bits"]) == {"stem": "W8A8", "inner": "W4A8", "deep": "W4A8", "head": "W8A8"}


def test_the_report_is_whole_and_serialises(net):
    report = json.loads(quantize(net, SAMPLES, settings()).report.to_json())
    assert report["samples"] == 24 and report["float_bytes"] > 0 and report["quantized_bytes"] > 0
    assert set(report["seconds"]) == {"prepare", "calibrate", "reconstruct", "verify"}
    assert [block["layers"] for block in report["blocks"]] == [["stem"], ["inner"], ["deep"], ["head"]]
    assert [entry["reason"] for entry in report["unfused"]] == ["entry of the graph"]
    assert report["saturation"] == {
        "kernels": 4, "layers": [], "samples": 0, "outputs": [], "exact": [], "unread": [], "reason": None
    }  # fmt: skip
    assert len(report["outputs_unoptimized"]) == 1 and all(layer["sqnr_db"] for layer in report["layers"])


def test_weights_on_the_full_range_are_told_what_they_give_where_sums_saturate(net):
    report = quantize(net, SAMPLES, settings(weight_range="full")).report
    assert report.saturation.kernels == 4 and report.saturation.layers and report.saturation.samples >= 16
    assert report.saturation.outputs[0].sqnr_db < report.saturation.exact[0].sqnr_db


def test_without_reconstruction_weights_are_rounded_and_biases_kept(net):
    result = quantize(net, SAMPLES, settings(reconstruct=False))
    assert result.report.blocks == () and result.report.outputs[0].sqnr_db > 25
    values = {t.name: numpy_helper.to_array(t) for t in result.model.graph.initializer}
    wanted = next(numpy_helper.to_array(t) for t in net.graph.initializer if t.name == "b1")
    steps = values["b1_scale"]
    assert np.all(np.abs(values["b1_quantized"] * steps - wanted) <= 0.51 * steps)


def test_stages_are_heard_in_order(net):
    class Listener(Observer):
        def __init__(self):
            self.stages, self.notes = [], []

        def stage(self, name):
            self.stages.append(name)

        def note(self, text):
            self.notes.append(text)

    listener = Listener()
    quantize(net, SAMPLES, settings(), observer=listener)
    assert listener.stages == ["prepare", "calibrate", "reconstruct", "verify"]
    assert any(text.startswith("outputs unchanged by preparation to") for text in listener.notes)


@pytest.mark.parametrize("name", ["loop", "a\0b"])
def test_samples_under_a_name_that_leads_nowhere_are_refused(net, tmp_path, name):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(
        DataError, match=r"(loop: cannot be read|b: is no name of a file) \(.*\); give a folder of images"
    ):
        quantize(net, tmp_path / name, settings())


def test_a_fixed_batch_and_an_old_opset_are_taken(build, weigh):
    text = """g (float[1, 1, 8, 8] x) => (float[1, 3] y) {
        c = Conv <auto_pad = "SAME_UPPER", kernel_shape = [3, 3]> (x, w1)  a = Add (c, b1)  r = Relu (a)
        p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)  f = Flatten (p)  m = MatMul (f, w2)  y = Add (m, b2)
    }"""
    weights = {"w1": weigh(4, 1, 3, 3), "b1": weigh(4, 1, 1), "w2": weigh(64, 3), "b2": weigh(1, 3)}
    result = quantize(build(text, opset=8, ir=3, **weights), SAMPLES[:, :1], settings())
    assert result.report.outputs[0].sqnr_db > 30 and len(result.report.layers) == 2


def test_two_inputs_a_transposed_convolution_and_a_matmul_of_rows(build, weigh, draw):
    text = """g (float[N, 4, 5, 5] x, float[N, 6, 8] rows) => (float[N, 3, 11, 11] image, float[N, 6, 5] z) {
        c = Conv (x, w1)  r = Relu (c)  image = ConvTranspose <strides = [2, 2]> (r, w2, b2)
        m = MatMul (rows, w3)  q = Relu (m)  z = MatMul (q, w4)
    }"""
    weights = {"w1": weigh(4, 4, 1, 1), "w2": weigh(4, 3, 3, 3), "b2": weigh(3), "w3": weigh(8, 8), "w4": weigh(8, 5)}
    data = {"x": draw(12, 4, 5, 5), "rows": draw(12, 6, 8)}
    result = quantize(build(text, **weights), data, settings(weight_bits=4, first_last_bits=4))
    assert len(result.report.layers) == 4 and all(output.sqnr_db > 10 for output in result.report.outputs)


def test_a_model_that_is_quantized_already_is_refused(net):
    with pytest.raises(ModelError, match="the model is quantized already; a float32 model is needed"):
        quantize(quantize(net, SAMPLES, settings(reconstruct=False)).model, SAMPLES, settings())


def test_a_model_without_layers_is_refused(build):
    with pytest.raises(ModelError, match="no quantizable layer"):
        quantize(build("g (float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y) { y = Relu (x) }"), SAMPLES, settings())


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (np.where(SAMPLES > 3, np.nan, SAMPLES), "image.*NaN"),
        (SAMPLES[:, :2], r"image.*found shape \(24, 2, 8, 8\)"),
        ({"imagee": SAMPLES}, "did you mean 'image'"),
    ],
)
def test_data_that_do_not_fit_are_refused_before_any_work(net, data, text):
    listener = Observer()
    listener.note = lambda text: pytest.fail("work began")
    with pytest.raises(DataError, match=text):
        quantize(net, data, settings(), observer=listener)


def test_a_set_that_was_opened_for_another_model_is_refused(net, build, weigh):
    other = build("g (float[N, 2] x) => (float[N, 2] y) { y = MatMul (x, w) }", w=weigh(2, 2))
    samples = onnxcalib.open_calibration(np.ones((3, 2), np.float32), onnxcalib.graph.load.inputs_of(other))
    with pytest.raises(DataError, match=r"the set was opened for the inputs 'x' .*; the model's are 'image'"):
        quantize(net, samples, settings())


@pytest.mark.parametrize(("opset", "bits"), [(17, 8), (17, 4), (11, 8), (11, 4)])
def test_what_a_body_reads_is_quantized_outside_of_it(build, weigh, opset, bits):
    text = """g (float[N, 3, 8, 8] image, bool[1] wide) => (float[N, 4, 8, 8] y) {
        c = Conv (image, w)  r = Relu (c)
        y = If (wide) <
            then_branch = one () => (float[N, 4, 8, 8] p) { p = Add (r, r) },
            else_branch = two () => (float[N, 4, 8, 8] q) { q = Softmax <axis = 1> (r) }
        >
    }"""
    model = build(text, opset=opset, w=weigh(4, 3, 1, 1))
    for wide in (True, False):
        config = settings(weight_bits=bits, first_last_bits=bits)
        result = quantize(model, {"image": SAMPLES[:1], "wide": np.array([wide])}, config)
        assert result.report.outputs[0].sqnr_db > (30 if bits == 8 else 15)
        assert [layer.op for layer in result.report.layers] == ["Conv"]


def test_two_runs_with_one_seed_give_the_same_bytes(net):
    config = settings(weight_bits=4, activation_bits=4, seed=7)
    one, two = (quantize(net, SAMPLES, config).model.SerializeToString() for _ in range(2))
    assert one == two


@pytest.mark.parametrize("bits", [8, 4])
def test_the_bytes_depend_neither_on_threads_nor_on_the_surroundings(net, tmp_path, monkeypatch, bits):
    """At every stage: a few AdaQuant steps, statistics and biases too. Torch begins with as many threads each time."""
    monkeypatch.setattr("onnxcalib.runtime.session.count_cores", lambda: 4)
    before, found = torch.get_num_threads(), set()
    bits = {"weight_bits": bits, "activation_bits": bits, "pipeline": "advanced", "effort": "best", "steps": 20}
    try:
        for threads, kept in ((1, None), (2, tmp_path / "a"), (3, tmp_path / "b"), (None, None)):
            torch.set_num_threads(threads or 4)
            config = QuantizeConfig(
                **bits, threads=threads, jobs=threads, cache_dir=kept, device="cpu" if kept else "auto"
            )
            found.add(quantize(net, SAMPLES, config).model.SerializeToString(deterministic=True))
    finally:
        torch.set_num_threads(before)
    assert len(found) == 1


@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(4, 4), (8, 8)])
def test_another_device_computes_the_same_file(net, monkeypatch, weight_bits, activation_bits):
    config = settings(weight_bits=weight_bits, activation_bits=activation_bits)
    wanted = quantize(net, SAMPLES, config)
    monkeypatch.setattr(onnxcalib.quantization.run, "choose_device", lambda _: FAR)
    with FarDevice() as device:
        found = quantize(net, SAMPLES, config)
    assert device.moved > 100
    assert [block.outcome for block in found.report.blocks] == [block.outcome for block in wanted.report.blocks]
    assert found.model.SerializeToString() == wanted.model.SerializeToString()


def test_a_device_that_is_not_there_is_refused_before_anything_is_read(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"^device: found 'cuda', but torch sees no CUDA device"):
        quantize("missing.onnx", SAMPLES, settings(device="cuda"))


def fail_for_lack_of_memory(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


TOO_LITTLE = (
    r"^device: found too little memory on \w+ in the stage reconstruct \(CUDA out of memory\. Tried .* GiB\); .*"
)


def test_too_little_memory_of_the_device_is_an_error_that_says_what_to_do(net, monkeypatch):
    prepared = onnxcalib.prepare(net, SAMPLES, settings(weight_bits=4))
    monkeypatch.setattr("onnxcalib.quantization.columns.solve_layer", fail_for_lack_of_memory)
    for act in (lambda: onnxcalib.reconstruct(prepared), lambda: quantize(net, SAMPLES, settings(weight_bits=4))):
        with pytest.raises(onnxcalib.DeviceMemoryError, match=TOO_LITTLE):
            act()


def test_too_little_memory_of_the_device_while_a_block_is_learned_is_the_same_error(net, monkeypatch):
    monkeypatch.setattr("onnxcalib.quantization.learn.learn_block", fail_for_lack_of_memory)
    with pytest.raises(onnxcalib.DeviceMemoryError, match=TOO_LITTLE):
        quantize(net, SAMPLES, settings(weight_bits=4))


def test_too_little_memory_of_the_device_is_one_line_on_the_command_line(net, tmp_path, monkeypatch):
    onnx.save(net, tmp_path / "net.onnx")
    np.save(tmp_path / "samples.npy", SAMPLES)
    monkeypatch.setattr("onnxcalib.quantization.columns.solve_layer", fail_for_lack_of_memory)
    result = CliRunner().invoke(
        app, ["quantize", str(tmp_path / "net.onnx"), "--calib", str(tmp_path / "samples.npy"), "--weight-bits", "4"]
    )
    assert result.exit_code == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: device: found too little memory on ")
    assert last.endswith("take --device cpu, fewer --samples, or --effort fast")


def test_the_fast_effort_solves_and_learns_nothing(net):
    blocks = quantize(net, SAMPLES, QuantizeConfig(weight_bits=4, effort="fast")).report.blocks
    assert {block.outcome for block in blocks} == {"solved"} and all(block.loss_before is None for block in blocks)


def test_more_effort_is_for_weights_or_activations_of_few_bits(net, tmp_path):
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")

    def graph(effort, weight_bits):
        config = QuantizeConfig(effort=effort, weight_bits=weight_bits)
        return quantize(net, tmp_path, config).model.graph.SerializeToString(deterministic=True)

    assert graph("fast", 8) == graph("best", 8)
    assert graph("fast", 4) != graph("best", 4)


class Notes(Observer):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.mark.parametrize(
    ("effort", "said"), [("fast", []), ("best", ["layers solved for the model's outputs, by probes: 1"])]
)
def test_layers_are_solved_for_the_outputs_by_effort(build, weigh, draw, effort, said):
    text = "g (float[N, 4, 6, 6] x) => (float[N, 5, 4, 4] y) { [c] a = Conv (x, w, b)  [r] y = Relu (a) }"
    listener = Notes()
    config = QuantizeConfig(effort=effort, weight_bits=4, first_last_bits=4)
    quantize(build(text, w=weigh(5, 4, 3, 3), b=weigh(5)), draw(8, 4, 6, 6), config, observer=listener)
    assert [note for note in listener.notes if note.startswith("layers solved")] == said


def count_views(model, samples, config):
    """Views of each image that a run says it made, and its warnings about them."""
    listener = Notes()
    report = quantize(model, samples, config, observer=listener).report
    said = [text for text in listener.notes if re.fullmatch(r"\d+ views? of each image beside itself", text)]
    return [int(text.split()[0]) for text in said], tuple(text for text in report.warnings if text.startswith("views:"))


def test_image_files_have_views_by_effort_and_arrays_when_asked(net, tmp_path):
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    for samples, config, views in (
        (tmp_path, QuantizeConfig(weight_bits=4), [1]),
        (tmp_path, QuantizeConfig(), []),
        (tmp_path, QuantizeConfig(weight_bits=4, effort="fast"), []),
        (tmp_path, QuantizeConfig(weight_bits=4, views=0), []),
        (tmp_path, QuantizeConfig(weight_bits=4, activation_bits=4), []),  # with a layer of several groups
        (SAMPLES, QuantizeConfig(weight_bits=4), []),
        (SAMPLES, QuantizeConfig(views=3), [3]),
    ):
        assert count_views(net, samples, config) == (views, ()), config


def test_views_of_what_is_no_image_are_refused_with_a_warning(build, weigh, draw):
    model = build("g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) { y = Conv (x, w) }", w=weigh(4, 4, 1, 1))
    made, warnings = count_views(model, draw(8, 4, 6, 6), QuantizeConfig(views=2))
    assert made == [] and warnings == (
        "views: none were made; one input of images is needed, of 4 dimensions and 1 or 3 channels, or one of"
        " tokens, input_ids",
    )


MEAN, STD = np.float32([[[0.48]], [[0.46]], [[0.41]]]), np.float32([[[0.23]], [[0.22]], [[0.21]]])


@pytest.mark.parametrize(("mean", "std"), [(np.float32(0), np.float32(1)), (MEAN, STD)], ids=["plain", "normalized"])
@pytest.mark.parametrize("changes", [{"steps": 0}, {"steps": 5}, {"reconstruct": False}, {"encoding": "standard"}])
def test_pixels_reach_the_first_layer_without_error(net, run, mean, std, changes):
    pixels = np.random.default_rng(5).integers(0, 256, (24, 3, 8, 8)).astype(np.float32)
    pixels[:, :, 0, :2] = 0, 255
    images = (pixels / np.float32(255) - mean) / std
    listener = Notes()
    result = quantize(net, images, settings(**changes), observer=listener)
    model = result.model
    assert any("read on the levels" in text for text in listener.notes)
    assert result.report.passes.get("rescale_input", 0) == (mean is MEAN)
    stem = next(node for node in model.graph.node if node.name == "stem")
    model.graph.output[0].CopyFrom(onnx.helper.make_empty_tensor_value_info(stem.input[0]))
    (read,) = run(model, images)
    if mean is MEAN:
        levels = read[:, :, 1:-1, 1:-1] - read[:, :, 1:-1, 1:-1].min(axis=(0, 2, 3), keepdims=True)
        np.testing.assert_array_equal(levels, pixels)
    else:
        np.testing.assert_allclose(read, images, atol=1e-6)


def test_the_graph_keeps_its_names(net):
    graph = quantize(net, SAMPLES, settings(weight_bits=4)).model.graph
    assert {"stem", "inner", "add", "deep", "mean", "head"} <= {node.name for node in graph.node}
    assert {"image"} == {value.name for value in graph.input} and ["scores"] == [value.name for value in graph.output]


KINDS = {
    "gemm": ("h = Gemm (x, w1)  r = Relu (h)  y = Gemm <transB = 1> (r, w2, b2)", [(8, 9), (5, 9)], (8,)),
    "conv1d": (
        "h = Conv <strides = [2]> (x, w1)  r = Relu (h)  y = Conv <dilations = [2]> (r, w2)",
        [(6, 3, 3), (4, 6, 3)],
        (3, 21),
    ),
    "depthwise": (
        "h = Conv <group = 4, pads = [1, 1, 1, 1]> (x, w1)  r = Clip (h, zero, six)  y = Conv (r, w2, b2)",
        [(8, 1, 3, 3), (5, 8, 1, 1)],
        (4, 6, 6),
    ),
    "conv3d": (
        "h = Conv (x, w1)  r = LeakyRelu (h)  y = Conv (r, w2)",
        [(3, 2, 2, 2, 2), (2, 3, 1, 2, 1)],
        (2, 4, 5, 3),
    ),
    "matmul": ("h = MatMul (x, w1)  r = Softmax (h)  y = MatMul (r, w2)", [(6, 7), (7, 3)], (3, 2, 6)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", ["N", "2"])
def test_layers_of_every_kind_are_quantized(build, weigh, draw, kind, batch):
    text, weights, shape = KINDS[kind]
    dims = ", ".join(map(str, (batch, *shape)))
    values = {"w1": weigh(*weights[0]), "w2": weigh(*weights[1]), "b2": weigh(5)} | LIMITS
    model = build(f"g (float[{dims}] x) => (float y) {{ {text} }}", **values)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    result = quantize(model, draw(20, *shape), settings(weight_bits=4))
    assert len(result.report.layers) == 2 and result.report.outputs[0].sqnr_db > 20
    assert {block.outcome for block in result.report.blocks} <= {"reconstructed", "rolled back"}


def test_external_data_are_read_and_no_file_of_the_input_changes(net, tmp_path):
    onnx.save(net, tmp_path / "net.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    onnx.save(net, tmp_path / "whole.onnx")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"net.onnx", "weights.bin", "whole.onnx"}
    apart, whole = (quantize(tmp_path / name, SAMPLES, settings()).model for name in ("net.onnx", "whole.onnx"))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert apart.SerializeToString() == whole.SerializeToString()


def test_shapes_that_the_file_records_wrongly_do_not_stop_a_run(net):
    net.graph.value_info.append(onnx.helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, ["N", 7, 8, 8]))
    net.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 9
    result = quantize(net, SAMPLES, settings())
    onnx.checker.check_model(result.model, full_check=True)
    assert [d.dim_value for d in result.model.graph.output[0].type.tensor_type.shape.dim][1] == 4


def test_a_recurrence_between_layers_has_integers_as_weights_and_goes_to_torch(build, weigh, draw):
    text = """g (float[N, 6, 4] x) => (float[6, N, 3] y) {
        t = Transpose <perm = [1, 0, 2]> (x)  a = MatMul (t, w1)  b = Relu (a)
        h = LSTM <hidden_size = 5> (b, w, r)  s = Squeeze (h, one)  y = MatMul (s, w2)
    }"""
    weights = {"w1": weigh(4, 8), "w": weigh(1, 20, 8), "r": weigh(1, 20, 5), "w2": weigh(5, 3), "one": np.array([1])}
    result = quantize(build(text, **weights), draw(12, 6, 4), settings(biases=True, effort="best", weight_bits=4))
    assert result.report.outputs[0].sqnr_db > 20
    assert [layer.op for layer in result.report.layers] == ["MatMul", "MatMul", "LSTM"]
    assert "LSTM" in [node.op_type for node in result.model.graph.node]
    assert "cannot be converted" not in str([stage.reason for stage in result.report.steps])


def test_an_operator_that_torch_does_not_know_stays_in_float(build, weigh, draw):
    body = "{ c = Conv (x, w)  g = com.microsoft.SampleOp (c)  y = Conv (g, w) }"
    model = build(f"g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) {body}", w=weigh(4, 4, 1, 1))
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    result = quantize(model, draw(12, 4, 6, 6), settings())
    assert result.report.outputs[0].sqnr_db > 30
    assert "SampleOp" in [node.op_type for node in result.model.graph.node]


class Interrupter(Observer):
    """Presses Ctrl-C at a moment."""

    def __init__(self, moment):
        self.moment = moment

    def stage(self, name):
        if name == self.moment:
            raise KeyboardInterrupt

    def block(self, record):
        if self.moment == "block":
            raise KeyboardInterrupt


@pytest.mark.parametrize("moment", ["prepare", "calibrate", "reconstruct", "block", "verify"])
def test_an_interrupted_run_leaves_nothing_behind(net, tmp_path, monkeypatch, moment):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        quantize(net, SAMPLES, settings(), observer=Interrupter(moment))
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_temporary_files_are_gone_after_a_run_and_after_a_refusal(net, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    quantize(net, SAMPLES, settings())
    with pytest.raises(DataError):
        quantize(net, SAMPLES * np.float32(np.nan), settings())
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_no_sample_is_kept(net, monkeypatch):
    alive, seen, most = [], [], []
    read = onnxcalib.CalibrationSet.read
    # Batches of tensors that are counted together are held together, too.
    monkeypatch.setattr("onnxcalib.quantization.calibrate.TOGETHER_BYTES", 1)

    def watch(self, indices):
        values = read(self, indices)
        alive[:] = [ref for ref in (*alive, *map(weakref.ref, values.values())) if ref() is not None]
        seen.append(len(alive))
        return values

    monkeypatch.setattr(onnxcalib.CalibrationSet, "read", watch)
    for number in (64, 192):
        seen.clear()
        quantize(net, np.resize(SAMPLES, (number, 3, 8, 8)), settings())
        most.append(max(seen))
    assert len(seen) >= 3 * 192 // 32 and most[0] == most[1] <= 3


def test_only_the_first_samples_are_used_where_so_many_are_asked_for(net):
    bad = SAMPLES.copy()
    bad[10:] = np.nan
    assert quantize(net, bad, settings(samples=10)).report.samples == 10


def test_a_weight_that_is_infinite_is_refused_with_its_node_and_tensor(net):
    weight = next(t for t in net.graph.initializer if t.name == "w2")
    weight.CopyFrom(numpy_helper.from_array(np.full((8, 8, 3, 3), np.inf, np.float32), "w2"))
    with pytest.raises(ModelError, match=r"node inner: tensor w2 holds inf; finite weights up to 1e\+15 are needed"):
        quantize(net, SAMPLES, settings())


@pytest.mark.parametrize(
    ("content", "text"), [(None, "no such file"), (b"", "is empty"), (b"not a model", "not an ONNX model")]
)
def test_a_file_that_is_no_model_is_refused_with_its_name(tmp_path, content, text):
    path = tmp_path / "net.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=f"net.onnx: .*{text}"):
        quantize(path, SAMPLES, settings())


def test_a_model_that_onnxruntime_does_not_run_is_refused(build):
    model = build("g (float[N, 3] x) => (float[N, 3] y) { y = com.example.Nothing (x) }")
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    with pytest.raises(ModelError, match="onnxruntime cannot load the model"):
        quantize(model, np.ones((4, 3), np.float32), settings())


def test_a_quantized_model_that_fails_the_checker_is_a_model_error(net, monkeypatch):
    def refuse(*_given, **_named):
        raise onnx.checker.ValidationError("first line\nsecond line")

    monkeypatch.setattr(onnx.checker, "check_model", refuse)
    with pytest.raises(
        ModelError, match=r"the quantized model fails onnx's checker: first line; one that onnx accepts is"
    ):
        quantize(net, SAMPLES, settings(reconstruct=False))


def test_a_result_is_written_whole_or_not_at_all(net, tmp_path):
    result = quantize(net, SAMPLES, settings(reconstruct=False))
    result.save(tmp_path / "out.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx"]
    assert (tmp_path / "out.onnx").read_bytes() == result.model.SerializeToString()
    with pytest.raises(OutputError, match="nowhere"):
        result.save(tmp_path / "nowhere" / "out.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx"]


def test_a_file_that_the_run_read_is_not_overwritten(net, tmp_path):
    onnx.save(net, tmp_path / "net.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "samples").mkdir()
    np.save(tmp_path / "samples" / "x.npy", SAMPLES)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    result = quantize(tmp_path / "net.onnx", tmp_path / "samples", settings(reconstruct=False))
    for name in ("net.onnx", "weights.bin", "samples"):
        with pytest.raises(OutputError, match="is read by this run; what is read is never overwritten"):
            result.save(tmp_path / name)
    with pytest.raises(OutputError, match=r"small\.onnx: lies in .*samples, which this run reads"):
        result.save(tmp_path / "samples" / "small.onnx")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before
    onnxcalib.pipeline.Result(result.model, result.report).save(tmp_path / "net.onnx")
    assert (tmp_path / "net.onnx").read_bytes() != before[tmp_path / "net.onnx"]


def test_a_loop_of_links_among_what_is_read_is_told_by_its_reader(net, tmp_path):
    (tmp_path / "tokenizer.json").symlink_to("tokenizer.json")
    (tmp_path / "texts.txt").write_text("a")
    config = settings(data={"tokenizer": tmp_path / "tokenizer.json"})
    with pytest.raises(DataError, match=r"texts\.txt: .*|tokenizer\.json: cannot be read"):
        quantize(net, tmp_path / "texts.txt", config)


def test_settings_without_effect_are_warned_of(net, tmp_path):
    light = {"reconstruct": False}
    ranges = onnxcalib.pipeline.calibrate(onnxcalib.pipeline.prepare(net, SAMPLES))
    for config, given, text in (
        (settings(percentile=99, **light), {}, "percentile: found 99 beside range 'squared-error', which has no use"),
        (settings(range="min-max", **light), {"ranges": ranges}, "range: found beside ranges, which are used as they"),
    ):
        warned = quantize(net, SAMPLES, config, **given).report.warnings
        assert len([each for each in warned if each.startswith(text)]) == 1
    for config, given in (
        (settings(percentile=99, range="percentile", **light), {}),
        (settings(**light), {"ranges": ranges}),
    ):
        warned = quantize(net, SAMPLES, config, **given).report.warnings
        assert not any("found beside" in each or "percentile" in each for each in warned)


def test_excluded_functions_that_stay_on_integers_are_warned_of(build, weigh, draw):
    text = "g (float[N, 3, 4, 4] x) => (float[N, 3, 4, 4] y) { c = Conv (x, w) [act] r = Relu (c) y = Conv (r, w) }"
    net = build(text, w=weigh(3, 3, 1, 1))
    report = quantize(net, draw(20, 3, 4, 4), settings(reconstruct=False, exclude="act")).report
    assert (
        len(
            [
                each
                for each in report.warnings
                if each.startswith("exclude: act: found behind quantized nodes, which absorb")
            ]
        )
        == 1
    )


@pytest.mark.parametrize("config", [{"weight_bits": 4}, onnxcalib.ValidateConfig(), 4])
@pytest.mark.parametrize("job", ["quantize", "prepare", "plan", "frontier"])
def test_settings_of_another_type_are_refused(net, job, config):
    with pytest.raises(ConfigError, match=rf"^config: found {type(config).__name__}; a QuantizeConfig is needed; "):
        getattr(onnxcalib.pipeline, job)(net, SAMPLES, config)


def test_the_settings_of_validate_and_of_samples_have_their_types_too(net):
    with pytest.raises(ConfigError, match=r"^config: found dict; a ValidateConfig is needed; write ValidateConfig"):
        onnxcalib.validate(net, net, SAMPLES, {"max_drop": 1})
    with pytest.raises(ConfigError, match=r"^config: found QuantizeConfig; a DataConfig is needed; make one with"):
        onnxcalib.pipeline.open_calibration(SAMPLES, net, QuantizeConfig())


def test_a_stage_refuses_what_no_stage_made(net):
    stages = onnxcalib.pipeline
    prepared = stages.prepare(net, SAMPLES)
    for call, found in (
        (lambda: stages.calibrate("net.onnx"), "prepared: found str"),
        (lambda: stages.reconstruct(net), "prepared: found ModelProto"),
        (lambda: stages.emit(prepared, prepared), "reconstruction: found Prepared"),
    ):
        with pytest.raises(ConfigError, match=f"^{found}; .*; give the result of (prepare|reconstruct)"):
            call()


def bits_of(model):
    return json.loads(next(entry.value for entry in model.metadata_props if entry.key == "onnxcalib.bits"))


def stored_types(model):
    """Element type of each weight as it is stored, by the weight's name."""
    types = {t.name.removesuffix("_quantized"): t.data_type for t in model.graph.initializer}
    return {name: onnx.TensorProto.DataType.Name(types[name]) for name in ("w1", "w2", "w3", "w4")}


@pytest.mark.parametrize("reconstruct", [True, False])
def test_excluded_nodes_stay_float_and_the_rest_is_quantized(net, reconstruct):
    result = quantize(net, SAMPLES, settings(exclude=["inner", "mean"], weight_bits=4, reconstruct=reconstruct))
    assert bits_of(result.model) == {"stem": "W8A8", "deep": "W4A8", "head": "W8A8"}
    assert [layer.name for layer in result.report.layers] == ["stem", "deep", "head"]
    assert stored_types(result.model) == {"w1": "INT8", "w2": "FLOAT", "w3": "INT4", "w4": "INT8"}
    values = {t.name: numpy_helper.to_array(t) for t in result.model.graph.initializer}
    wanted = {t.name: numpy_helper.to_array(t) for t in net.graph.initializer}
    inner = next(node for node in result.model.graph.node if node.name == "inner")
    assert inner.input[1:] == ["w2", "b2"]
    np.testing.assert_array_equal(values["w2"], wanted["w2"])
    np.testing.assert_array_equal(values["b2"], wanted["b2"])
    onnx.checker.check_model(result.model, full_check=True)
    assert result.report.outputs[0].sqnr_db > 12


def test_an_expression_excludes_all_that_it_matches_whole(net):
    model = quantize(net, SAMPLES, settings(exclude=["(inn|de).*"], reconstruct=False)).model
    assert list(bits_of(model)) == ["stem", "head"]


def test_a_layer_keeps_its_own_bits_in_a_model_of_others(net):
    layers = {"inner": {"weight_bits": 8, "activation_bits": 8}, "stem": {"weight_bits": 4}, "deep": {}}
    result = quantize(net, SAMPLES, settings(weight_bits=4, activation_bits=4, layers=layers))
    assert bits_of(result.model) == {"stem": "W4A8", "inner": "W8A8", "deep": "W4A4", "head": "W8A8"}
    assert stored_types(result.model) == {"w1": "INT4", "w2": "INT8", "w3": "INT4", "w4": "INT8"}
    assert {k.name: (k.weight_bits, k.activation_bits) for k in result.report.layers}["inner"] == (8, 8)
    clipped = [node.output[0] for node in result.model.graph.node if node.op_type == "Clip"]
    assert clipped == ["t_clipped"]  # r, which the inner layer reads, keeps 8 bits


def test_one_layer_of_four_bits_makes_a_model_that_may_hold_them(net):
    result = quantize(net, SAMPLES, settings(layers={"deep": {"weight_bits": 4}}, reconstruct=False))
    assert stored_types(result.model) == {"w1": "INT8", "w2": "INT8", "w3": "INT4", "w4": "INT8"}
    onnx.checker.check_model(result.model, full_check=True)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"exclude": ["innr"]}, "exclude: 'innr': no node has this name, .* did you mean 'inner'?"),
        ({"exclude": ["in"]}, "exclude: 'in': no node has this name"),
        (
            {"layers": {"dep": {"weight_bits": 4}}},
            "layers: 'dep': no node with a constant weight has this name, .* did you mean 'deep'?",
        ),
        ({"layers": {"add": {"weight_bits": 4}}}, "layers: 'add': no node with a constant weight has this name"),
        ({"exclude": ["stem|inner|deep|head"]}, "exclude: no layer is left to quantize; exclude fewer nodes"),
    ],
)
def test_names_that_fit_no_node_are_refused_before_any_work(net, changes, text):
    listener = Observer()
    listener.stage = lambda name: pytest.fail("work began") if name != "prepare" else None
    with pytest.raises(ConfigError, match=text):
        quantize(net, SAMPLES, settings(**changes), observer=listener)


LAYERS = """weight-bits = 4
reconstruct = false
exclude = ["deep"]
[layers."in.*"]
weight-bits = 8
[layers.head]
exclude = true
"""


@pytest.mark.parametrize(
    ("options", "bits"),
    [
        ([], {"stem": "W8A8", "inner": "W8A8"}),
        (["--exclude", "inner", "--exclude", "relu."], {"stem": "W8A8", "deep": "W4A8"}),
    ],
)
def test_layers_and_exclusions_of_a_file_reach_the_model(net, tmp_path, options, bits):
    onnx.save(net, tmp_path / "net.onnx")
    np.save(tmp_path / "samples.npy", SAMPLES)
    (tmp_path / "run.toml").write_text(LAYERS)
    if not options:
        model = quantize(net, SAMPLES, load_config(tmp_path / "run.toml")).model
        assert bits_of(model) == bits
        entries = {entry.key: entry.value for entry in model.metadata_props}
        made = json.loads(entries["onnxcalib.settings"])
        assert made["exclude"] == ["deep"] and made["layers"]["in.*"]["weight_bits"] == 8
    arguments = [str(tmp_path / "net.onnx"), "--calib", str(tmp_path / "samples.npy")]
    arguments += ["--config", str(tmp_path / "run.toml"), "-o", str(tmp_path / "out.onnx"), *options]
    result = CliRunner().invoke(app, ["quantize", *arguments])
    assert result.exit_code == 0, result.stderr
    assert bits_of(onnx.load(tmp_path / "out.onnx")) == bits


def test_an_excluded_name_that_fits_no_node_is_a_usage_error_on_the_command_line(net, tmp_path):
    onnx.save(net, tmp_path / "net.onnx")
    np.save(tmp_path / "samples.npy", SAMPLES)
    arguments = [str(tmp_path / "net.onnx"), "--calib", str(tmp_path / "samples.npy"), "--exclude", "heat"]
    result = CliRunner().invoke(app, ["quantize", *arguments])
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("error: exclude: 'heat': no node has this name")
    assert result.stderr.splitlines()[-1].endswith("did you mean 'head'?")


def initializers(model):
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def test_statistics_tuning_changes_scales_and_biases_alone(build, weigh):
    weights = {"w1": weigh(8, 3, 3, 3), "w2": weigh(8, 8, 3, 3), "w3": weigh(8, 1, 3, 3), "w4": weigh(4, 8)}
    biases = {"b1": weigh(8), "b2": weigh(8), "b3": weigh(8), "b4": weigh(4)}
    net = build(NET.replace("(t, w3)", "(t, w3, b3)"), **weights, **biases, **LIMITS)
    light = quantize(net, SAMPLES, settings(weight_bits=4, pipeline="light"))
    plain = quantize(net, SAMPLES, settings(weight_bits=4, pipeline="light", statistics=False))
    nodes = [[node.SerializeToString() for node in result.model.graph.node] for result in (light, plain)]
    assert nodes[0] == nodes[1]
    before, after = initializers(plain.model), initializers(light.model)
    changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    dequantized = [node for node in light.model.graph.node if node.op_type == "DequantizeLinear"]
    scales = {node.input[1] for node in dequantized}
    biases = {node.input[0] for node in dequantized if after.get(node.input[0], SAMPLES).dtype == np.int32}
    assert before.keys() == after.keys() and changed and changed <= scales | biases
    assert [(stage.name, stage.outcome) for stage in light.report.steps] == [("round", "done"), ("statistics", "kept")]
    assert light.report.steps[1].outputs[0].sqnr_db > light.report.steps[0].outputs[0].sqnr_db
    assert light.report.steps[1].outputs[0].sqnr_db == pytest.approx(light.report.outputs[0].sqnr_db)
    assert plain.report.steps == () and not light.report.blocks


def test_a_stage_that_brings_the_outputs_no_nearer_is_rolled_back(net, monkeypatch):
    def spoil(state):
        state.layers["deep"] = replace(state.layers["deep"], bias=state.layers["deep"].bias + 100)
        return True, None

    plain = quantize(net, SAMPLES, settings(weight_bits=4))
    monkeypatch.setattr(onnxcalib.quantization.stages, "tune_statistics", spoil)
    result = quantize(net, SAMPLES, settings(weight_bits=4, statistics=True))
    assert [(stage.name, stage.outcome) for stage in result.report.steps] == [
        ("reconstruct", "done"),
        ("statistics", "rolled back"),
    ]
    refused = "by a first look on 8 samples the outputs were no nearer to the float model's"
    assert result.report.steps[1].reason == refused
    assert result.report.steps[0].outputs == result.report.steps[1].outputs
    assert all(np.array_equal(v, initializers(plain.model)[k]) for k, v in initializers(result.model).items())


def test_the_advanced_pipeline_takes_all_stages_in_order(net):
    result = quantize(net, SAMPLES, settings(weight_bits=4, pipeline="advanced"))
    assert [stage.name for stage in result.report.steps] == ["reconstruct", "statistics", "biases"]
    sqnr = [stage.outputs[0].sqnr_db for stage in result.report.steps]
    assert sqnr == sorted(sqnr) and result.report.blocks
    without = quantize(net, SAMPLES, settings(weight_bits=4, pipeline="advanced", biases=False))
    assert [stage.name for stage in without.report.steps] == ["reconstruct", "statistics"]


@pytest.mark.parametrize(("bits", "least"), [({"weight_bits": 8}, 38), ({"weight_bits": 4, "first_last_bits": 4}, 14)])
@pytest.mark.parametrize("pipeline", ["default", "advanced"])
def test_weights_alone_are_quantized_where_activations_are_float(net, pipeline, bits, least):
    result = quantize(net, SAMPLES, settings(activation_bits=32, pipeline=pipeline, **bits))
    assert result.report.outputs[0].sqnr_db > least
    assert {layer.activation_bits for layer in result.report.layers} == {32}
    assert not any(node.op_type == "QuantizeLinear" for node in result.model.graph.node)
    assert {block.outcome for block in result.report.blocks} == {"solved"}


TOKENS = """g (int64[N, S] ids, float[N, S] mask) => (float[N, 40] y) {
    [look] e = Gather (table, ids)
    [wide] a0 = MatMul (e, w1)  [wide_add] a = Add (a0, b1)  [tanh] t = Tanh (a)
    [back] c0 = MatMul (t, w2)  [back_add] c = Add (c0, b2)  [skip] s = Add (c, e)
    [last] l = MatMul (s, w3)
    [open] m = Unsqueeze (mask, two)  [masked] z = Mul (l, m)  [sum] y = ReduceMean <axes = [1], keepdims = 0> (z)
}"""


@pytest.fixture
def tokens(build, weigh, draw):
    weights = {"w1": weigh(40, 80), "w2": weigh(80, 40), "w3": weigh(40, 40), "b1": weigh(80), "b2": weigh(40)}
    return build(TOKENS, table=draw(500, 40), two=np.array([2]), **weights)


TEXT = {
    "ids": np.random.default_rng(5).integers(0, 500, (24, 6)),
    "mask": np.ones((24, 6), np.float32),
}


@pytest.mark.parametrize(
    ("bits", "least", "ratio"),
    [
        ({}, 28, 0.32),
        ({"weight_bits": 4}, 14, 0.24),
        ({"weight_bits": 4, "activation_bits": 32}, 14, 0.24),
        ({"weight_bits": 4, "activation_bits": 32, "first_last_bits": 4, "block_size": 128}, 14, 0.21),
        ({"activation_bits": 32, "block_size": 32}, 34, 0.36),
        ({"weight_bits": 3, "activation_bits": 32, "first_last_bits": 3}, 8, 0.24),
        ({"weight_bits": 2, "activation_bits": 32, "block_size": "column", "embedding_bits": 8}, 5, 0.3),
        ({"weight_bits": 4, "activation_bits": 32, "block_size": 16, "weight_symmetry": "asymmetric"}, 14, 0.25),
        ({"embedding_bits": 32}, 28, 0.9),
    ],
)
def test_embeddings_have_the_bits_of_the_weights_or_their_own(tokens, bits, least, ratio):
    result = quantize(tokens, TEXT, settings(**bits))
    assert result.report.outputs[0].sqnr_db > least
    assert result.report.quantized_bytes < ratio * result.report.float_bytes + 6000  # nodes and settings
    looked = [(k.op, k.weight_bits, k.activation_bits) for k in result.report.layers if k.name == "look"]
    wanted = bits.get("embedding_bits", max(bits.get("weight_bits", 8), 4))
    assert looked == ([] if wanted == 32 else [("Gather", wanted, 32)])


def test_a_block_that_reads_float_is_not_learned_and_says_so(tokens):
    result = quantize(tokens, TEXT, settings(weight_bits=4, activation_bits=32, biases=True))
    assert all(
        "what reads float activations is solved or rounded, and not learned" in b.reason for b in result.report.blocks
    )


def test_bits_are_not_planned_where_some_layers_alone_read_float(net):
    with pytest.raises(
        ConfigError, match=r"^layers: found activation_bits 32 of some beside a budget; .* take the budget out$"
    ):
        quantize(net, SAMPLES, settings(max_size="0.3", layers={"deep": {"activation_bits": 32}}))


def test_blocks_in_a_model_without_float_activations_are_refused(net):
    with pytest.raises(ConfigError, match=r"^block_size: found 32, and no layer to use it"):
        quantize(net, SAMPLES, settings(block_size=32))


@pytest.mark.parametrize("least", [-np.inf, np.finfo(np.float32).min])
def test_a_mask_right_behind_a_layer_is_no_bias(build, weigh, least):
    mask = np.where(np.arange(12) < 9, 0, least).astype(np.float32)
    text = "g (float[N, 8] x) => (float[N, 12] p) { m = MatMul (x, w) l = Add (m, mask) p = Softmax <axis = 1> (l) }"
    samples = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    result = quantize(build(text, w=weigh(8, 12), mask=mask), samples, settings())
    assert result.report.outputs[0].sqnr_db > 30 and result.report.layers


def draw_many(count, seed=5):
    return np.random.default_rng(seed).normal(size=(count, 3, 8, 8)).astype(np.float32)


def test_of_many_samples_some_are_held_out_and_what_they_hold_changes_nothing_but_the_figures(net):
    samples = draw_many(64)
    first = quantize(net, samples, settings(weight_bits=4))
    on = first.report.measured_on
    assert on == MeasuredOn("held out", 16, (*range(16, 24), *range(48, 56))) and first.report.samples == 48
    samples[list(on.indices)] *= 7
    other = quantize(net, samples, settings(weight_bits=4))
    assert other.model.SerializeToString() == first.model.SerializeToString()
    assert other.report.outputs != first.report.outputs and other.report.layers != first.report.layers
    stages = [prepared := onnxcalib.prepare(net, samples, settings(weight_bits=4)), onnxcalib.reconstruct(prepared)]
    assert onnxcalib.verify(*stages, onnxcalib.emit(*stages)).measured_on == on


def test_samples_to_test_on_are_measured_and_then_all_others_are_used(net, tmp_path):
    samples, test = draw_many(64), tmp_path / "test.npy"
    np.save(test, draw_many(5, seed=6) * 7)
    found = quantize(net, samples, settings(weight_bits=4), test=test)
    assert found.report.measured_on == MeasuredOn("test", 5) and found.report.samples == 64
    with pytest.raises(OutputError, match="is read by this run"):
        found.save(test)
    assert found.report.outputs[0].expected is None  # five are too few to estimate from
    used = quantize(net, samples, settings(weight_bits=4), test=samples)
    assert used.model.SerializeToString() == found.model.SerializeToString()
    assert used.report.outputs[0].sqnr_db > found.report.outputs[0].sqnr_db


def test_what_to_expect_of_others_is_estimated_from_all_samples_and_the_errors_of_those_held_out(net):
    samples = draw_many(64)
    found = quantize(net, samples, settings(weight_bits=4)).report
    output, expected = found.outputs[0], found.outputs[0].expected
    for value, own, counted in (
        (expected.sqnr_db, expected.sqnr_interval, output.sqnr_interval),
        (expected.agreement, expected.agreement_interval, output.agreement_interval),
    ):
        assert counted[0] <= value <= counted[1] and own[0] <= value <= own[1] and own != counted
    assert own[1] - own[0] < counted[1] - counted[0]
    assert expected.sqnr_db != output.sqnr_db and '"expected"' in found.to_json()
    assert found.outputs_unoptimized[0].expected is None
    other = quantize(net, samples, settings(weight_bits=4), test=draw_many(64, seed=6)).report.outputs[0]
    assert other.expected.sqnr_db == other.sqnr_db
    assert other.expected.agreement_interval != other.agreement_interval


def test_few_samples_are_used_and_measured_on(net):
    report = quantize(net, SAMPLES, settings()).report
    assert report.measured_on == MeasuredOn("calibration", len(SAMPLES)) and report.outputs[0].expected is None


ONE_SCALE = """name = "chip"
[rules.weight_scales]
granularity = "tensor"
source = "page 7"
[rules.operators]
forbidden = ["Conv"]
source = "page 8"
"""


def test_a_run_ends_with_its_file_held_to_the_rules_of_the_target_that_was_named(net, tmp_path):
    path = tmp_path / "chip.toml"
    path.write_text(ONE_SCALE)
    result = quantize(net, SAMPLES, settings(target=str(path), reconstruct=False))
    assert result.lint is result.report.lint and not result.lint.passed
    assert {each.rule for each in result.lint.violations} == {"operators"}
    assert json.loads(result.report.to_json())["lint"]["violations"][0]["source"] == "page 8"
    with pytest.raises(OutputError, match=r"chip\.toml: is read by this run; what is read is never overwritten"):
        result.save(path)
    assert quantize(net, SAMPLES, settings(reconstruct=False)).lint is None


def test_what_is_slower_where_a_layer_is_float_on_purpose_is_advice(net):
    result = quantize(net, SAMPLES, settings(target="xint8", reconstruct=False, exclude=("deep",)))
    told = {(each.where, each.rule): each.level for each in result.lint.violations}
    assert result.lint.passed and told["deep (Conv)", "quantized_inputs"] == "advice"
    alone = onnxcalib.check_target(result.model, "xint8")
    assert {each.level for each in alone.violations} == {"slower"} and not alone.passed


PERCEPTRON = """g (float[N, 12] x) => (float[N, 6] y) {
    [one] a = Gemm (x, w1, b1)  [r] r = Relu (a)  [two] c = MatMul (r, w2)  [three] d = MatMul (r, w3)
    [sum] s = Add (c, d)  [four] y = Gemm (s, w4, b4)
}"""


@pytest.mark.parametrize(("bits", "least"), [(8, 38), (4, 16)])
def test_dynamic_activations_need_no_ranges_and_give_a_file_that_validate_explains(build, weigh, bits, least):
    weights = {"w1": weigh(12, 16), "w2": weigh(16, 8), "w3": weigh(16, 8), "w4": weigh(8, 6)}
    model, data = build(PERCEPTRON, **weights, b1=weigh(16), b4=weigh(6)), SAMPLES.reshape(-1, 12)
    config = {"activations": "dynamic", "placement": "all", "weight_bits": bits, "first_last_bits": bits}
    result = quantize(model, data, QuantizeConfig(**config))
    report = result.report
    onnx.checker.check_model(result.model, full_check=True)
    assert report.outputs[0].sqnr_db > least and not report.unfused and not report.saturation.layers
    assert report.saturation.kernels == 4 and all(layer.dynamic for layer in report.layers)
    assert {block.outcome for block in report.blocks} == {"solved"}
    ranges = onnxcalib.calibrate(onnxcalib.prepare(model, data, QuantizeConfig(**config)))
    assert not ranges.activations
    rounded = quantize(model, data, QuantizeConfig(**config, reconstruct=False))
    assert bits == 8 or rounded.report.outputs[0].sqnr_db < report.outputs[0].sqnr_db
    verdict = onnxcalib.validate(model, result.model, data, explain=True)
    assert {loss.name for loss in verdict.explanation.layers} <= {"one", "two", "three", "four"}
    assert verdict.explanation.layers and not verdict.explanation.unmatched
