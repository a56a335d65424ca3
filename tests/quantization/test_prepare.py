"""A prepared model: its schemes, what the settings write into the file, and what the samples are warned of."""

import numpy as np
import pytest
from PIL import Image

import onnxcalib
from onnxcalib import DataConfig, LayerConfig, QuantizeConfig
from onnxcalib.quantization.outline import with_bits
from onnxcalib.quantization.prepare import load
from onnxcalib.quantization.prepared import SETTINGS_BYTES
from onnxcalib.quantization.run_samples import FEW_SAMPLES
from onnxcalib.spec import Candidate

NET = """g (float[N, 4] x) => (float[N, 4] y) {
    [one] h = MatMul (x, w)  [r] t = Relu (h)  [two] i = MatMul (t, v)  [s] u = Relu (i)  [three] y = MatMul (u, z)
}"""


@pytest.fixture
def net(build, weigh):
    return build(NET, w=weigh(4, 4), v=weigh(4, 4), z=weigh(4, 4))


def test_a_prepared_model_has_schemes_of_other_bits(net, draw):
    prepared = onnxcalib.prepare(net, draw(8, 4))

    def bits_of(scheme):
        return [str(layer.bits) for layer in scheme.layers]

    assert bits_of(prepared.scheme) == ["W8A8", "W8A8", "W8A8"]
    assert bits_of(prepared.make_scheme(bits=Candidate(4, 4))) == ["W8A8", "W4A4", "W8A8"]
    assert bits_of(prepared.make_scheme({"two": LayerConfig(weight_bits=4)})) == ["W8A8", "W4A8", "W8A8"]
    both = prepared.make_scheme({"two": LayerConfig(weight_bits=8)}, Candidate(4, 4))
    assert bits_of(both) == ["W8A8", "W8A4", "W8A8"]


def test_preparation_leaves_the_original_as_it_was(net, draw):
    before = net.SerializeToString()
    prepared = onnxcalib.prepare(net, draw(8, 4))
    assert net.SerializeToString() == before == prepared.original.SerializeToString()
    assert load(net, DataConfig()) is not net and load(net, DataConfig()) == net


def test_bits_of_single_layers_replace_those_of_the_settings():
    config = QuantizeConfig(layers={"one": {"weight_bits": 4}, "two": {"weight_bits": 4}})
    found = with_bits(config, {"one": LayerConfig(weight_bits=8)})
    assert {name: each.weight_bits for name, each in found.layers.items()} == {"two": 4, "one": 8}
    assert list(found.layers) == ["two", "one"]  # the last entry that names a layer holds


def test_the_settings_of_a_file_fill_whole_blocks_of_bytes(net, draw):
    for seed in (0, 123456):
        model = onnxcalib.quantize(net, draw(8, 4), QuantizeConfig(seed=seed, reconstruct=False)).model
        (text,) = (entry.value for entry in model.metadata_props if entry.key == "onnxcalib.settings")
        assert len(text) % SETTINGS_BYTES == 0


def test_metadata_of_ours_in_a_float_model_are_replaced(net, draw):
    for key, value in {"onnxcalib.version": "0", "author": "somebody"}.items():
        net.metadata_props.add(key=key, value=value)
    model = onnxcalib.quantize(net, draw(8, 4), QuantizeConfig(pipeline="light")).model
    keys = [entry.key for entry in model.metadata_props]
    assert keys.count("onnxcalib.version") == keys.count("author") == 1


def test_few_samples_are_warned_of(net, draw, listen):
    for count in (FEW_SAMPLES - 1, FEW_SAMPLES):
        listener = listen()
        onnxcalib.prepare(net, draw(count, 4), observer=listener)
        warned = [text for kind, text in listener.heard if kind == "warn" and text.startswith("samples: found 15;")]
        assert len(warned) == (count < FEW_SAMPLES)


def test_the_normalization_of_images_is_told(build, weigh, tmp_path, listen):
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.png")
    Image.new("RGB", (4, 4), "blue").save(tmp_path / "b.png")
    net = build("g (float[N, 3, 4, 4] x) => (float[N, 2, 4, 4] y) { y = Conv (x, w) }", w=weigh(2, 3, 1, 1))
    for mean, kind in (({}, "warn"), ({"mean": 0.5}, "note")):
        listener = listen()
        onnxcalib.prepare(net, tmp_path, QuantizeConfig(data=mean), observer=listener)
        assert [heard for heard, text in listener.heard if "images are read as" in text] == [kind]


def test_an_output_that_is_finite_for_no_sample_is_refused_and_one_that_is_for_some_is_not(build, draw):
    text = "g (float[N, 4] x) => (float[N, 4] y) { m = MatMul (x, w) y = Log (m) }"
    model, samples = build(text, w=np.eye(4, dtype=np.float32)), -1 - np.abs(draw(20, 4))
    with pytest.raises(onnxcalib.ModelError, match="output y: found no finite value in what the float model gives"):
        onnxcalib.prepare(model, samples)
    samples[-1] *= -1
    assert onnxcalib.prepare(model, samples).scheme.layers


def test_a_weight_that_spoils_a_whole_output_is_named(build, weigh, draw):
    text = "g (float[N, 4] x) => (float[N, 4] y) { [one] h = MatMul (x, w) [two] y = MatMul (h, v) }"
    model = build(text, w=weigh(4, 4) * np.float32(np.nan), v=weigh(4, 4))
    with pytest.raises(onnxcalib.ModelError, match="node one: tensor w holds nan"):
        onnxcalib.prepare(model, draw(20, 4))
