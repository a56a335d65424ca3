from dataclasses import replace

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

import onnxcalib
from onnxcalib.config import DataConfig, QuantizeConfig
from onnxcalib.data import open_calibration
from onnxcalib.errors import ModelError
from onnxcalib.graph.inspect.unfused import list_unfused
from onnxcalib.graph.load import inputs_of
from onnxcalib.graph.scheme import make_scheme
from onnxcalib.quantization import verify as verify_module
from onnxcalib.quantization.layer_facts import describe_layers
from onnxcalib.quantization.padding_mask import PaddingMask
from onnxcalib.quantization.prepared import Prepared
from onnxcalib.quantization.run import Run
from onnxcalib.quantization.verify import verify
from onnxcalib.report import MeasuredOn, Observer, SaturationRecord
from onnxcalib.runtime import optimized
from onnxcalib.runtime.optimized import optimize
from onnxcalib.runtime.session import Session

BODY = """{ [a] c = Conv (x, w1, b1)  [b] r = Relu (c)  [d] d = Conv (r, w2, b1)  [e] s = Add (d, r)
    [m] p = GlobalAveragePool (s)  [f] f = Flatten (p)  [h] y = Gemm <transB = 1> (f, w3, b3) }"""


@pytest.fixture
def model(build, draw):
    return build(
        f"g (float[N, 4, 6, 6] x) => (float[N, 5] y) {BODY}",
        w1=draw(4, 4, 1, 1), w2=draw(4, 4, 1, 1), w3=draw(5, 4), b1=draw(4), b3=draw(5),
    )  # fmt: skip


def samples_of(model, array):
    return open_calibration(array, inputs_of(model), DataConfig())


def compare(original, quantized, samples, prepared=None):
    return verify(
        prepared_of(original, samples, prepared or original), quantized, make_scheme(prepared or original).layers
    )


def prepared_of(original, samples, prepared):
    config = QuantizeConfig()
    run = Run(config, Observer())
    return Prepared(
        run=run,
        config=config,
        original=original,
        model=prepared,
        passes={},
        samples=samples,
        test=samples,
        measured_on=MeasuredOn("calibration", len(samples)),
        lossless={},
        padding=PaddingMask(prepared),
        scheme=make_scheme(prepared),
    )


def find_unfused(quantized):
    return list_unfused(quantized, optimize(quantized)[1])


def scale_initializer(model, name, factor):
    changed = ModelProto.FromString(model.SerializeToString())
    tensor = next(t for t in changed.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), name))
    return changed


def test_a_model_is_equal_to_itself(model, draw):
    found = compare(model, model, samples_of(model, draw(5, 4, 6, 6)))
    for (record,) in (found.outputs, found.outputs_unoptimized):
        assert record.name == "y" and record.sqnr_db > 120 and record.agreement == 1
        assert record.cosine == pytest.approx(1) and record.max_abs_error < 1e-5
    assert found.outputs[0].sqnr_db == float("inf")
    assert all(layer.sqnr_db > 120 for layer in found.layers)
    assert found.unfused == () and found.float_pass_seconds > 0


def test_a_good_model_is_told_from_a_wrong_one(model, rough, draw):
    x = draw(40, 4, 6, 6)
    quantized = rough(model, x)
    good = compare(model, quantized, samples_of(model, x))
    assert good.outputs[0].sqnr_db > 30 and good.outputs[0].agreement > 0.9
    assert good.outputs_unoptimized[0].sqnr_db > 30
    assert [k.name for k in good.layers] == ["a", "d", "h"] and min(k.sqnr_db for k in good.layers) > 30
    wrong = compare(model, scale_initializer(quantized, "w2_scale", 1.5), samples_of(model, x))
    assert wrong.outputs[0].sqnr_db < 10 and wrong.outputs_unoptimized[0].sqnr_db < 10
    by_name = {k.name: k.sqnr_db for k in wrong.layers}
    assert by_name["a"] > 30 and by_name["d"] < 10 and by_name["h"] < 10


def test_layers_are_compared_with_the_prepared_model_and_outputs_with_the_original(model, draw):
    prepared = scale_initializer(model, "b1", 2)
    found = compare(model, prepared, samples_of(model, draw(5, 4, 6, 6)), prepared)
    assert found.outputs[0].sqnr_db < 20
    assert all(layer.sqnr_db > 120 for layer in found.layers)


def test_layers_carry_their_bits(model, rough, draw):
    x = draw(5, 4, 6, 6)
    model.opset_import[0].version, model.ir_version = 21, 10
    quantized = rough(model, x, weight_bits=4, activation_bits=4)
    layers = make_scheme(model, weight_bits=4, activation_bits=4).layers
    found = verify(prepared_of(model, samples_of(model, x), model), quantized, layers)
    assert [(k.name, k.op, k.weight_bits, k.activation_bits) for k in found.layers] == [
        ("a", "Conv", 8, 8), ("d", "Conv", 4, 4), ("h", "Gemm", 8, 8),
    ]  # fmt: skip
    # 16 or 20 integers and the scales of their channels.
    assert [k.bytes for k in found.layers] == [16 + 4 * 4, 16 // 2 + 4 * 4, 20 + 4 * 5]
    assert [(k.on_integers, k.reason) for k in found.layers] == [(True, "")] * 3


def test_agreement_is_for_class_scores_and_whole_numbers(build, draw):
    model = build(
        """g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] c, float[N, 4] s, int64[N, 1] top)
           { [a] c = Conv (x, w) [p] p = GlobalAveragePool (c) [f] s = Flatten (p) [t] top = ArgMax <axis = 1> (s) }""",
        w=draw(4, 4, 1, 1),
    )
    found = compare(model, model, samples_of(model, draw(5, 4, 6, 6)))
    assert {record.name: record.agreement for record in found.outputs} == {"c": None, "s": 1.0, "top": 1.0}
    opposite = compare(model, scale_initializer(model, "w", -1), samples_of(model, draw(50, 4, 6, 6)))
    assert max(record.agreement for record in opposite.outputs[1:]) < 0.2


def test_an_output_whose_shape_depends_on_its_values_is_listed_with_the_reason(build, draw):
    model = build(
        """g (float[N, 4] x) => (float[N, 4] y, float[M] z)
           { [a] y = MatMul (x, w) p = Relu (y) b = Cast <to = 9> (p) l = Reshape (b, flat) z = Compress (y, l) }""",
        w=np.eye(4, dtype=np.float32), flat=np.int64([-1]),
    )  # fmt: skip
    found = compare(model, scale_initializer(model, "w", -1), samples_of(model, draw(5, 4)))
    assert [record.name for record in found.outputs] == ["y"]
    (warning,) = found.warnings
    assert warning.startswith("output z was not compared: the float model gives shape (")


def test_a_float_model_without_a_finite_value_is_refused(build, draw):
    text = "g (float[N, 4] x) => (float[N, 4] y) { [a] m = MatMul (x, w) s = Abs (m) n = Neg (s) y = Log (n) }"
    model = build(text, w=draw(4, 4))
    with pytest.raises(ModelError, match=r"^output y: found no finite value in what the float model gives"):
        compare(model, model, samples_of(model, draw(5, 4)))


def test_what_is_not_finite_in_either_model_is_warned_of(build, draw):
    model = build(
        "g (float[N, 4] x) => (float[N, 4] y) { [a] m = MatMul (x, w) y = Sqrt (m) }", w=np.eye(4, dtype=np.float32)
    )
    x = draw(5, 4)
    found = compare(model, scale_initializer(model, "w", -1), samples_of(model, x))
    positive, negative = np.count_nonzero(x > 0), np.count_nonzero(x < 0)
    assert [text.partition(" are not finite")[0] for text in found.warnings] == [
        f"output y: {negative} values of the float model",
        f"output y: {positive} values of the quantized model",
    ]
    assert found.outputs[0].sqnr_db == found.outputs_unoptimized[0].sqnr_db == -np.inf


def test_every_sample_is_run_once_and_layers_are_compared_on_some(model, rough, draw, monkeypatch):
    runs, made = [], []

    class Watched(verify_module.Session):
        def __init__(self, *arguments, **options):
            made.append(self)
            super().__init__(*arguments, **options)

        def run(self, feeds, outputs=None):
            runs.append((made.index(self), len(feeds["x"])))
            return super().run(feeds, outputs)

    for module in (verify_module, optimized):
        monkeypatch.setattr(module, "Session", Watched)
    monkeypatch.setattr(verify_module, "INNER", 20)
    x = draw(70, 4, 6, 6)
    compare(model, rough(model, x), samples_of(model, x))
    assert len(made) == 4
    totals = [sum(count for session, count in runs if session == i) for i in range(4)]
    # One sample more tells how many fit into memory at once.
    assert sorted(totals) == [20, 21, 70, 90]


def test_what_calibration_has_of_the_float_model_is_compared_without_running_it_again(model, rough, draw, monkeypatch):
    x, counts = draw(200, 4, 6, 6), []
    samples = samples_of(model, x)
    prepared = replace(prepared_of(model, samples, model), test=samples_of(model, x.copy()))
    session = Session(model)
    prepared.run.float_outputs.start(40)
    for feeds in samples.batches(40):
        prepared.run.float_outputs.add(session.run(feeds))

    class Watched(Session):
        def run(self, feeds, outputs=None):
            counts.append(len(feeds["x"]))
            return super().run(feeds, outputs)

    def measure(own):
        counts.clear()
        found = verify(own, rough(model, x), make_scheme(model).layers)
        return found, sum(counts)

    for module in (verify_module, optimized):
        monkeypatch.setattr(module, "Session", Watched)
    known, few = measure(prepared)
    prepared.run.float_outputs.start(0)
    found, all_of_them = measure(prepared)
    assert few < all_of_them - 100 and known.float_pass_seconds > 0
    for one, other in zip(known.outputs, found.outputs, strict=True):  # batches of another size round differently
        assert one.sqnr_db == pytest.approx(other.sqnr_db) and one.agreement == other.agreement


def test_a_fixed_batch_is_kept_to(build, rough, draw):
    model = build("g (float[3, 4] x) => (float[3, 4] y) { [a] y = MatMul (x, w) }", w=draw(4, 4))
    x = draw(9, 4)
    found = compare(model, rough(model, x[:3]), samples_of(model, x))
    assert found.outputs[0].sqnr_db > 10


def left(model):
    return {(record.op, record.tensor): record.reason for record in find_unfused(model)}


def test_what_is_left_is_named_with_its_reason(model, rough, draw):
    assert left(rough(model, draw(4, 4, 6, 6))) == {("QuantizeLinear", "x"): "entry of the graph"}


def test_what_requantizes_in_the_standard_encoding_is_named(model, rough, draw):
    model.opset_import[0].version, model.ir_version = 21, 10
    reasons = left(rough(model, draw(4, 4, 6, 6), activation_bits=4, encoding="standard"))
    assert reasons["QuantizeLinear", "r_dequantized"] == "requantizes the tensor for the layers that read fewer bits"


def test_a_float_operator_between_layers_is_named_on_both_sides(build, rough, draw):
    model = build(
        """g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) {
            [s] s = Tanh (x)  [a] a = Conv (s, w, b)  [t] t = Tanh (a)  [d] d = Conv (t, w, b)  [u] y = Exp (d) }""",
        w=draw(4, 4, 1, 1), b=draw(4),
    )  # fmt: skip
    reasons = left(rough(model, draw(2, 4, 6, 6)))
    assert reasons["QuantizeLinear", "s"] == "entry of the graph: nothing before Tanh is quantized"
    assert reasons["QuantizeLinear", "t"] == "follows Tanh, which has no integer kernel in onnxruntime here"
    others = {reason for (op, _), reason in reasons.items() if op == "DequantizeLinear"}
    assert others == {
        "read by Tanh, which has no integer kernel in onnxruntime here",
        "exit of the graph: nothing behind Exp is quantized",
    }


def test_the_exit_and_weights_without_a_kernel_are_named(build, rough, draw):
    model = build(
        "g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) { [a] t = ConvTranspose (x, w) [b] y = Conv (t, w, b) }",
        w=draw(4, 4, 1, 1), b=draw(4),
    )  # fmt: skip
    reasons = left(rough(model, draw(2, 4, 6, 6)))
    assert reasons["DequantizeLinear", "y"] == "exit of the graph"
    constants = [r for r in reasons.values() if r.startswith("constant of ConvTranspose, which has no integer kernel")]
    assert len(constants) == 1
    quantized = rough(model, draw(2, 4, 6, 6))
    graph = optimize(quantized)[1]
    alone, conv = describe_layers(quantized, graph, list_unfused(quantized, graph))
    assert (alone.op, alone.on_integers, alone.reason) == ("ConvTranspose", False, f"DequantizeLinear: {constants[0]}")
    assert (conv.op, conv.on_integers) == ("Conv", True)
    assert describe_layers(quantized, None)[0].on_integers is None


def test_scales_of_blocks_count_once_in_the_bytes_of_a_layer(build, draw):
    model = build(
        """g (float[N, 8] x) => (float[N, 3] y) {
            d = DequantizeLinear <axis = 0, block_size = 4> (w, s)  [h] y = MatMul (x, d) }""",
        opset=21, ir=10, w=(20 * draw(8, 3)).astype(np.int8), s=np.full((2, 3), 0.1, np.float32),
    )  # fmt: skip
    (layer,) = describe_layers(model, None)
    assert (layer.name, layer.bytes, layer.activation_bits) == ("h", 8 * 3 + 4 * 2 * 3, 32)


def test_no_file_is_left_behind(model, rough, draw, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    find_unfused(rough(model, draw(2, 4, 6, 6)))
    assert list(tmp_path.iterdir()) == []


def test_what_saturates_elsewhere_is_measured_apart(model, rough, draw):
    x = draw(20, 4, 6, 6)
    quantized = rough(model, x)
    assert compare(model, quantized, samples_of(model, x)).saturation == SaturationRecord(3)
    tensor = next(t for t in quantized.graph.initializer if t.name == "w2_quantized")
    tensor.CopyFrom(numpy_helper.from_array(np.full((4, 4, 1, 1), 127, np.int8), tensor.name))
    found = compare(model, quantized, samples_of(model, x)).saturation
    assert [layer.name for layer in found.layers] == ["d"] and found.outputs[0].name == "y"


def test_what_another_target_runs_is_measured_without_the_optimizations_of_onnxruntime(model, draw, monkeypatch):
    samples = draw(8, 4, 6, 6)
    opened = []
    own = verify_module.Session

    def open_session(given, **options):
        opened.append((given is quantized, options.get("optimize", True)))
        return own(given, **options)

    prepared = onnxcalib.prepare(model, samples, QuantizeConfig(target="tensorrt", pipeline="light"))
    quantized = onnxcalib.emit(prepared, onnxcalib.reconstruct(prepared))
    for module in (verify_module, optimized):
        monkeypatch.setattr(module, "Session", open_session)
    found = verify(prepared, quantized, prepared.scheme.layers)
    assert {fused for of_quantized, fused in opened if of_quantized} == {False}
    assert found.outputs[0].sqnr_db > 20 and all(layer.sqnr_db for layer in found.layers)
    assert (found.unfused, found.saturation, found.outputs_unoptimized) == ((), SaturationRecord(), ())
