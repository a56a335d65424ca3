"""A large model whose weights stay in files, and which runs segment by segment, gives the file of the whole one."""

import gc
import pickle

import numpy as np
import onnx
from onnx import numpy_helper

from onnxcalib import QuantizeConfig, emit, prepare, quantize, reconstruct
from onnxcalib.graph import values
from onnxcalib.graph.values import has_outside
from onnxcalib.runtime import segmented, session

TEXT = """g (int64[N, 3] ids) => (float[N, 3, 150] y) {
    [look] x = Gather (table, ids)
    [up] h0 = MatMul (x, up)  h = Relu (h0)
    [norm] n = Mul (h, gain)
    [down] d = MatMul (n, down)  [join] y = Add (d, x)
}"""


def test_it_gives_the_same_file_up_to_the_last_bits_of_sums(build, draw, tmp_path, monkeypatch):
    model = build(TEXT, table=draw(600, 150), up=draw(150, 450), gain=draw(450), down=draw(450, 150) / 20)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data")
    samples = {"ids": np.random.default_rng(0).integers(0, 600, (16, 3))}
    config = QuantizeConfig(pipeline="light", weight_bits=4, threads=1)
    small = quantize(tmp_path / "m.onnx", samples, config)
    monkeypatch.setattr(values, "LEAST_LARGE_MODEL", 1)
    monkeypatch.setattr(session, "SEGMENT_BYTES", 4 * 150 * 450)
    opened, take = list[onnx.ModelProto](), segmented.take_segment
    monkeypatch.setattr(segmented, "take_segment", lambda *given: opened.append(take(*given)) or opened[-1])
    large = quantize(tmp_path / "m.onnx", samples, config)
    assert len(opened) > 8  # float and quantized models went segment by segment
    assert large.report.unfused == small.report.unfused
    assert small.stored is small.model and has_outside(large.stored) and not has_outside(large.model)
    assert large.model.graph.node == small.model.graph.node
    for ours, theirs in zip(large.model.graph.initializer, small.model.graph.initializer, strict=True):
        found, wanted = (numpy_helper.to_array(tensor).astype(np.float64) for tensor in (ours, theirs))
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=0, err_msg=ours.name)
    large.save(tmp_path / "large.onnx")
    assert (tmp_path / "large.onnx").read_bytes() == large.model.SerializeToString()
    copy, bare = pickle.loads(pickle.dumps(large)), large.model
    del large
    gc.collect()
    assert copy.model == bare and copy.report.unfused == small.report.unfused


def test_a_reconstruction_stays_when_what_it_was_made_of_ends(build, draw, monkeypatch):
    monkeypatch.setattr(values, "LEAST_LARGE_MODEL", 1)
    text = "g (float[N, 300] x) => (float[N, 301] y) { [up] h = MatMul (x, w)  y = Relu (h) }"
    model, samples = build(text, w=draw(300, 301)), draw(16, 300)
    config = QuantizeConfig(pipeline="light", statistics=False, threads=1)
    found = reconstruct(prepare(model, samples, config))
    gc.collect()
    prepared = prepare(model, samples, config)
    quantized = emit(prepared, found)
    assert quantized == emit(prepared, pickle.loads(pickle.dumps(found)))
