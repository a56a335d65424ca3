"""Samples from Python, through the public names alone: every job reads them from iterables as from arrays."""

from __future__ import annotations

import tracemalloc

import numpy as np
import onnx
import pytest
from torch.utils.data import DataLoader, TensorDataset

import onnxcalib

SAMPLES = np.random.default_rng(3).normal(size=(24, 3, 6, 6)).astype(np.float32)
NET = """g (float[N, 3, 6, 6] image) => (float[N, 4] scores) {
    [stem] a = Conv (image, w1, b1)  [relu] r = Relu (a)  [inner] c = Conv <pads = [1, 1, 1, 1]> (r, w2)
    [mean] m = GlobalAveragePool (c)  [flat] f = Flatten (m)  [head] scores = Gemm <transB = 1> (f, w3)
}"""


@pytest.fixture
def net(build, weigh):
    return build(NET, w1=weigh(4, 3, 3, 3), b1=weigh(4), w2=weigh(4, 4, 3, 3), w3=weigh(4, 4))


def settings(**changes):
    return onnxcalib.QuantizeConfig(**{"weight_bits": 8, "steps": 3, "threads": 1} | changes)


def test_a_generator_gives_the_same_bytes_as_the_stacked_array(net):
    sources = [SAMPLES, (sample for sample in SAMPLES), DataLoader(SAMPLES, batch_size=5)]
    wanted, *found = [onnxcalib.quantize(net, source, settings()).model.SerializeToString() for source in sources]
    assert found == [wanted, wanted]


def test_an_endless_generator_is_read_up_to_the_samples_of_the_settings(net):
    def yield_forever():
        while True:
            yield from SAMPLES

    result = onnxcalib.quantize(net, yield_forever(), settings(samples=10, pipeline="light"))
    assert result.report.samples == 10


def test_validate_reads_labels_from_a_generator(net, run):
    quantized = onnxcalib.quantize(net, SAMPLES, settings(pipeline="light")).model
    classes = run(net, SAMPLES)[0].argmax(1)
    items = ({"image": sample, "label": label} for sample, label in zip(SAMPLES, classes, strict=True))
    config = onnxcalib.ValidateConfig(max_drop=99.0, threads=1)
    verdict = onnxcalib.validate(net, quantized, items, config)
    stacked = onnxcalib.validate(net, quantized, {"image": SAMPLES, "label": classes}, config)
    assert verdict.passed and verdict.scores == stacked.scores and verdict.scores


def test_a_loader_with_labels_is_quantized_with_a_warning(net):
    import torch

    loader = DataLoader(TensorDataset(torch.from_numpy(SAMPLES), torch.zeros(24, dtype=torch.long)), batch_size=8)
    report = onnxcalib.quantize(net, loader, settings(pipeline="light")).report
    assert any("looks like labels and is not read" in warning for warning in report.warnings)


def test_a_plan_from_a_generator_by_two_workers_is_that_from_the_array(net, tmp_path, monkeypatch):
    monkeypatch.setattr("onnxcalib.planning.sensitivity.SETS_A_TASK", 1)  # so that there is work for two
    plans = []
    for jobs, source in ((1, SAMPLES), (2, (sample for sample in SAMPLES))):
        config = settings(max_size="1@8-bit", jobs=jobs, cache_dir=tmp_path / str(jobs))
        plans.append(onnxcalib.plan(net, source, config).layers)
    assert plans[0] == plans[1]


def test_a_frontier_is_drawn_from_an_iterator(net, tmp_path):
    assert onnxcalib.frontier(net, iter(SAMPLES), settings(cache_dir=tmp_path)).points


def test_a_set_is_opened_for_a_model_or_its_file_and_shared_by_the_jobs(net, tmp_path):
    onnx.save(net, tmp_path / "net.onnx")
    for model in (net, tmp_path / "net.onnx", str(tmp_path / "net.onnx")):
        samples = onnxcalib.open_calibration(iter(SAMPLES), model, limit=20)
        assert isinstance(samples, onnxcalib.CalibrationSet) and len(samples) == 20
    result = onnxcalib.quantize(net, samples, settings(pipeline="light"))
    assert onnxcalib.validate(net, result.model, samples, onnxcalib.ValidateConfig(threads=1)).samples == 20


def test_a_set_is_opened_for_inputs_that_are_described():
    spec = onnxcalib.InputSpec("x", np.dtype(np.uint8), (None, 2, 2, 1))
    samples = onnxcalib.open_calibration([np.ones((2, 2, 1), np.uint8)], [spec], onnxcalib.DataConfig(layout="nhwc"))
    assert samples.inputs == (spec,) and "are for image files" in samples.warnings[0]


def test_a_set_is_not_opened_for_a_model_or_data_that_cannot_be_used(net, tmp_path):
    with pytest.raises(onnxcalib.ModelError, match=r"absent\.onnx"):
        onnxcalib.open_calibration(SAMPLES, tmp_path / "absent.onnx")
    with pytest.raises(onnxcalib.DataError, match="item 0: no array for input 'image', found images"):
        onnxcalib.open_calibration([{"images": SAMPLES}], net)


def test_memory_does_not_grow_with_the_samples_of_a_generator(net):
    def measure(count):
        source = (SAMPLES[number % 24] for number in range(count))
        tracemalloc.start()
        samples = onnxcalib.open_calibration(source, net)
        held, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(samples) == count
        return held, peak

    measure(10)
    held, _ = measure(2000)
    assert held < 200_000 < 2000 * SAMPLES[0].nbytes
