"""The second job from Python, end to end on small models: what is measured, what is refused, what is said."""

from __future__ import annotations

import importlib
import json
import math
import re
import sys

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper
from onnx.external_data_helper import convert_model_to_external_data

from onnxcalib import ConfigError, DataError, GateError, ModelError, QuantizeConfig, ValidateConfig, quantize, validate
from onnxcalib.report import Observer
from onnxcalib.validation import timing as clock
from onnxcalib.validation.score import load_metric
from tests.small_models import change_constant

NET = """g (float[N, 3, 8, 8] x) => (float[N, 7] y) {
    [stem] c = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)  [relu1] r = Relu (c)
    [inner] d = Conv <pads = [1, 1, 1, 1]> (r, w2, b2)  [add] s = Add (d, r)  [relu2] t = Relu (s)
    [mean] p = GlobalAveragePool (t)  [flat] f = Flatten (p)  [head] y = Gemm <transB = 1> (f, w3, b3) }"""
DATA = np.random.default_rng(7).normal(size=(24, 3, 8, 8)).astype(np.float32)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def net(build, weigh):
    return build(
        NET, w1=weigh(8, 3, 3, 3), w2=weigh(8, 8, 3, 3), w3=weigh(7, 8), b1=weigh(8), b2=weigh(8), b3=weigh(7)
    )  # fmt: skip


@pytest.fixture
def quantized(net):
    return round_only(net)


def round_only(model, data=DATA, **settings):
    return quantize(model, data, QuantizeConfig(reconstruct=False, **settings)).model


def answers(run, model):
    return run(model, DATA)[0].argmax(axis=1)


class Listener(Observer):
    def __init__(self):
        self.stages, self.warnings = [], []

    def stage(self, name):
        self.stages.append(name)

    def warn(self, text):
        self.warnings.append(text)


def write_module(name, text):
    """A module in the current folder, by a name that no other test takes."""
    with open(f"{name}.py", "w", encoding="utf-8") as file:
        file.write(text)
    importlib.invalidate_caches()


# What is measured


def test_a_right_model_passes_every_gate(net, quantized, run, tmp_path):
    config = ValidateConfig(
        max_drop=5, min_agreement=90, min_sqnr=25, max_size_ratio=2.5, min_speedup=0.01, max_unfused=2,
        max_saturating=3, samples=20,
    )  # fmt: skip
    np.save("labels.npy", answers(run, net))
    verdict = validate(net, quantized, DATA, config, labels="labels.npy")
    assert verdict.passed and [gate.passed for gate in verdict.gates] == [True] * 8
    assert (verdict.samples, verdict.float_model, verdict.quantized_model) == (20, "g", "g")
    assert [score.name for score in verdict.scores] == ["top-1", "top-5"] and verdict.scores[0].float_score == 100
    assert [output.name for output in verdict.outputs] == ["y"] and verdict.outputs[0].sqnr_db > 25
    assert verdict.latency.batch == 1 and verdict.latency.runs == clock.LEAST_ROUNDS
    assert [entry.reason for entry in verdict.unfused] == ["entry of the graph"]
    assert verdict.contract.samples == 20 and verdict.contract.steps <= 1 and verdict.contract.tensors
    assert verdict.explanation is None
    assert verdict.settings == config.model_dump(mode="json")


def test_a_wrong_model_fails_by_a_verdict_and_not_by_an_error(net, quantized):
    wrong = change_constant(quantized, "w2_scale", lambda scale: scale * 3)
    verdict = validate(net, wrong, DATA, ValidateConfig(min_sqnr=20))
    assert not verdict.passed
    assert {gate.name: gate.passed for gate in verdict.gates} == {"min_sqnr": False, "max_steps": True}


def test_without_gates_the_contract_alone_is_judged(net, quantized):
    verdict = validate(net, quantized, DATA)
    assert verdict.passed and [gate.name for gate in verdict.gates] == ["max_steps"]
    assert verdict.scores == ()


def test_the_models_given_stay_as_they_are(net, quantized):
    before = [model.SerializeToString() for model in (net, quantized)]
    validate(net, quantized, DATA, explain=True)
    assert [model.SerializeToString() for model in (net, quantized)] == before


def test_paths_are_read_and_their_files_measured_with_external_data(net, quantized, tmp_path):
    outside = ModelProto.FromString(quantized.SerializeToString())
    convert_model_to_external_data(outside, location="q.bin", size_threshold=0)
    onnx.save(net, "f.onnx")
    onnx.save(outside, "q.onnx")
    np.save("x.npy", DATA)
    verdict = validate("f.onnx", tmp_path / "q.onnx", "x.npy")
    assert (verdict.float_model, verdict.quantized_model) == ("f.onnx", str(tmp_path / "q.onnx"))
    assert verdict.float_bytes == (tmp_path / "f.onnx").stat().st_size
    assert verdict.quantized_bytes == sum((tmp_path / name).stat().st_size for name in ("q.onnx", "q.bin"))
    assert verdict.size_ratio == verdict.quantized_bytes / verdict.float_bytes


def test_explaining_names_the_spoilt_layer(net, quantized):
    verdict = validate(net, change_constant(quantized, "w2_scale", lambda scale: scale * 3), DATA, explain=True)
    assert verdict.explanation.layers[0].name == "inner"


def test_the_stages_are_heard_in_order(net, quantized):
    listener = Listener()
    validate(net, quantized, DATA, observer=listener)
    assert listener.stages == ["load", "compare", "clock", "check kernels", "saturate"]
    validate(net, quantized, DATA, explain=True, observer=listener)
    assert listener.stages[5:] == ["load", "compare", "clock", "check kernels", "saturate", "explain"]


def test_the_verdict_survives_json(net, quantized, run):
    np.save("labels.npy", answers(run, net))
    config = ValidateConfig(max_drop=50, min_sqnr=1, max_unfused=0)
    verdict = validate(net, quantized, DATA, config, labels="labels.npy", explain=True)
    read = json.loads(verdict.to_json())
    assert read["passed"] is False and read["samples"] == 24
    assert [(gate["name"], gate["passed"]) for gate in read["gates"]] == [
        ("max_drop", True), ("min_sqnr", True), ("max_unfused", False), ("max_steps", True)
    ]  # fmt: skip
    assert read["outputs"][0]["sqnr_db"] == verdict.outputs[0].sqnr_db
    assert read["scores"][0]["drop_interval"] == list(verdict.scores[0].drop_interval)
    assert read["latency"]["speedup"] == verdict.latency.speedup
    assert read["contract"]["tensors"][0]["steps"] == verdict.contract.tensors[0].steps
    assert read["explanation"]["layers"][0]["toml"] == verdict.explanation.layers[0].toml
    assert ValidateConfig(**read["settings"]) == config


def test_what_is_no_number_becomes_null_in_json(net):
    read = json.loads(validate(net, net, DATA).to_json())
    assert read["outputs"][0]["sqnr_db"] is None and read["outputs"][0]["sqnr_interval"] == [None, None]


def test_a_model_that_gives_nan_fails_every_gate_on_accuracy(net, quantized, run):
    np.save("labels.npy", answers(run, net))
    wrong = change_constant(quantized, "w3_scale", lambda scale: scale * np.nan)
    config = ValidateConfig(max_drop=90, min_agreement=2, min_sqnr=-1e4)
    for settings in (config, config.model_copy(update={"confident": True})):
        verdict = validate(net, wrong, DATA, settings, labels="labels.npy")
        assert [gate.passed for gate in verdict.gates[:3]] == [False] * 3
        json.loads(verdict.to_json())


@pytest.mark.parametrize("gates", [{}, {"min_sqnr": 20}, {"min_agreement": 90}])
def test_two_models_that_give_nan_are_no_equal_models(net, gates):
    wrong = change_constant(net, "w3", lambda value: value * np.nan)
    with pytest.raises(ModelError, match=r"^output y: found no finite value in what the float model gives"):
        validate(wrong, wrong, DATA, ValidateConfig(**gates))


def test_values_that_are_not_finite_are_in_the_json_and_in_the_warnings(build, draw):
    text = "g (float[N, 6] x) => (float[N, 6] y) {{ a = MatMul (x, w)  y = {} (a) }}"
    one, other = (build(text.format(op), w=np.eye(6, dtype=np.float32)) for op in ("Sqrt", "Log"))
    data = np.abs(draw(10, 6))
    data[0], data[1, 0] = -1, 0
    verdict = validate(one, other, data, ValidateConfig(min_sqnr=-1e4, min_agreement=50))
    (record,) = json.loads(verdict.to_json())["outputs"]
    assert (record["left_out"], record["broken"], record["sqnr_db"]) == (6, 1, None)
    assert record["agreement"] >= 0.5 and verdict.outputs[0].agreement_interval is not None
    assert not any(gate.passed for gate in verdict.gates)
    assert verdict.warnings[-2].startswith("output y: 6 values of the float model are not finite, and are left out")
    assert verdict.warnings[-1].startswith("output y: 1 values of the quantized model are not finite where")


def test_risks_on_other_machines_are_in_the_verdict(net, quantized):
    full = change_constant(quantized, "w2_quantized", lambda value: np.full_like(value, 127))
    halved = change_constant(quantized, "w2_quantized", lambda value: value // 2)
    for name in ("w1", "w3"):
        halved = change_constant(halved, f"{name}_quantized", lambda value: value // 2)
    listener = Listener()
    config = ValidateConfig(max_saturating=0)
    verdict = validate(net, full, DATA, config, observer=listener)
    assert "integer kernels can saturate on x86 without VNNI (in inner sums" in verdict.warnings[-1]
    assert listener.warnings == list(verdict.warnings)
    assert verdict.saturation.layers[0].name == "inner" and verdict.saturation.samples > 0
    (gate,) = [gate for gate in verdict.gates if not gate.passed]
    assert gate.name == "max_saturating" and "of 3 integer kernels can saturate on x86 without VNNI (" in gate.text
    read = json.loads(verdict.to_json())["saturation"]
    assert read["kernels"] == 3 and read["layers"][0]["name"] == "inner"
    assert read["outputs"][0]["sqnr_db"] == verdict.saturation.outputs[0].sqnr_db
    assert read["exact"][0]["sqnr_db"] == verdict.saturation.exact[0].sqnr_db
    sound = validate(net, halved, DATA, config)
    assert sound.warnings == () and sound.passed and sound.saturation.outputs == ()


# Order and shape of the models


def test_swapped_models_are_refused(net, quantized):
    text = "models: the first is quantized and the second is not; the float model comes first; swap the two"
    with pytest.raises(ModelError, match=re.escape(text)):
        validate(quantized, net, DATA)


def test_two_float_models_are_compared_with_a_warning(net):
    listener = Listener()
    verdict = validate(net, net, DATA, ValidateConfig(min_sqnr=100), observer=listener)
    text = "the second model has no quantized operator; two float models are compared"
    assert verdict.passed and verdict.outputs[0].sqnr_db == math.inf
    assert verdict.warnings == (text,) and listener.warnings == [text]


def test_two_quantized_models_are_compared(net, quantized):
    verdict = validate(quantized, quantized, DATA, ValidateConfig(min_sqnr=100))
    assert verdict.passed


def test_other_inputs_are_refused(net, quantized):
    other = ModelProto.FromString(quantized.SerializeToString())
    other.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1
    text = "input x: the float model has shape (any, 3, 8, 8), the quantized one (any, 1, 8, 8)"
    with pytest.raises(ModelError, match=re.escape(text)):
        validate(net, other, DATA)
    other.graph.input[0].name = "image"
    with pytest.raises(ModelError, match="inputs: the float model has x, the quantized one image"):
        validate(net, rename(quantized, "x", "image"), DATA)


def rename(model, old, new):
    changed = ModelProto.FromString(model.SerializeToString())
    for value in (*changed.graph.input, *changed.graph.output):
        value.name = new if value.name == old else value.name
    for node in changed.graph.node:
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                names[position] = new if name == old else name
    return changed


def test_other_outputs_are_refused(net, quantized):
    with pytest.raises(ModelError, match="outputs: the float model has y, the quantized one scores"):
        validate(net, rename(quantized, "y", "scores"), DATA)


def test_an_output_of_another_shape_at_run_time_fails_the_sqnr_gate_and_is_warned_of(build, draw):
    """Where neither file says how many columns there are."""
    text = "g (float[N, 6] x) => (float[N, K] y) {{ a = MatMul (x, w)  y = Slice (a, start, {}, axis) }}"
    more = {"start": np.array([0]), "axis": np.array([1]), "four": np.array([4]), "five": np.array([5])}
    one, other = (build(text.format(end), w=draw(6, 6), **more) for end in ("four", "five"))
    verdict = validate(one, other, draw(10, 6), ValidateConfig(min_sqnr=-1e4))
    assert not verdict.gates[0].passed and "output y could not be compared" in verdict.gates[0].text
    wanted = "output y was not compared: the float model gives shape (10, 4), the quantized one (10, 5)"
    assert verdict.warnings[-1] == wanted


def test_a_quantized_model_that_does_not_run_is_refused(net, quantized):
    with pytest.raises(ModelError, match=r"onnxruntime cannot (load|run)"):
        validate(net, change_shape(quantized, "w3_quantized"), DATA)


def change_shape(model, name):
    changed = ModelProto.FromString(model.SerializeToString())
    tensor = next(t for t in changed.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[:, :-1], name))
    return changed


def test_a_model_of_fixed_batch_is_validated(build, weigh, draw):
    text = "g (float[{}, 6] x) => (float[{}, 7] y) {{ [a] y = Gemm <transB = 1> (x, w) }}"
    weight = weigh(7, 6)
    fixed, free = (build(text.format(n, n), w=weight) for n in ("4", "N"))
    x = draw(10, 6)
    for one, other in ((fixed, fixed), (fixed, free), (free, fixed)):
        verdict = validate(one, round_only(other, x[:8]), x, ValidateConfig(min_sqnr=20))
        assert verdict.passed and verdict.samples == 8 and verdict.latency.batch == 4
        assert "the last 2 are left out" in verdict.warnings[0]
    with pytest.raises(ConfigError, match="batch: found 3; a run of this model on these samples takes 4"):
        validate(fixed, round_only(fixed, x[:8]), x, ValidateConfig(batch=3))


def test_a_model_of_whole_numbers_alone_is_judged_by_agreement(build, weigh, draw):
    text = "g (float[N, 6] x) => (int64[N, 1] best) { [a] y = Gemm <transB = 1> (x, w)  best = ArgMax <axis = 1> (y) }"
    model = build(text, w=weigh(7, 6))
    quantized = round_only(model, draw(40, 6))
    verdict = validate(model, quantized, draw(40, 6), ValidateConfig(min_agreement=80))
    assert verdict.passed and verdict.outputs[0].sqnr_db is None
    with pytest.raises(ConfigError, match="min_sqnr: found no output of floats"):
        validate(model, quantized, draw(40, 6), ValidateConfig(min_sqnr=1))


# Data and labels


def test_an_empty_set_is_refused(net, quantized, tmp_path):
    with pytest.raises(DataError, match=r"data: input 'x': found shape \(0, 3, 8, 8\), which holds no values"):
        validate(net, quantized, DATA[:0])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: the folder is empty"):
        validate(net, quantized, "empty")


def test_warnings_of_the_data_are_in_the_verdict(net, quantized):
    verdict = validate(net, quantized, np.full((3, 3, 8, 8), 0.5, np.float32))
    assert verdict.warnings[0] == "input 'x': every value is 0.5; real data vary"


def test_a_drop_without_labels_is_refused_before_any_model_runs(net, quantized):
    listener = Listener()
    text = (
        "max_drop: found no labels; accuracy needs the class of every sample; give --labels FILE, or ask for"
        " --min-agreement or --min-sqnr in its place"
    )
    with pytest.raises(ConfigError, match=re.escape(text)):
        validate(net, quantized, DATA, ValidateConfig(max_drop=1), observer=listener)
    assert listener.stages == ["load"]


def test_labels_that_the_data_carry_are_used_and_a_file_wins(net, quantized, run):
    np.savez("data.npz", x=DATA, labels=answers(run, net))
    config = ValidateConfig(max_drop=50)
    assert validate(net, quantized, "data.npz", config).scores[0].float_score == 100
    np.save("wrong.npy", (answers(run, net) + 1) % 7)
    verdict = validate(net, quantized, "data.npz", config, labels="wrong.npy")
    assert verdict.scores[0].float_score == 0
    assert (
        "labels: the float model is right in only 0.0% of the samples; check the preprocessing" in verdict.warnings[0]
    )


def test_bad_labels_are_refused(net, quantized, run):
    np.save("labels.npy", answers(run, net)[:-1])
    with pytest.raises(DataError, match=r"labels\.npy: found labels of shape \(23\); there are 24 samples"):
        validate(net, quantized, DATA, labels="labels.npy")
    np.save("labels.npy", answers(run, net) + 7)
    with pytest.raises(DataError, match="output y: 24 of 24 labels are no class of the model"):
        validate(net, quantized, DATA, labels="labels.npy")


def test_labels_are_also_taken_as_an_array_or_a_list(net, quantized, run):
    right = answers(run, net)
    for labels in (right, right[:, None], right.astype(np.uint8), right.tolist(), tuple(right)):
        verdict = validate(net, quantized, DATA, labels=labels)
        assert [score.name for score in verdict.scores] == ["top-1", "top-5"]
        assert verdict.scores[0].float_score == 100
    few = validate(net, quantized, DATA, ValidateConfig(samples=5), labels=right)
    assert (few.samples, few.scores[0].float_score) == (5, 100)


def test_a_metric_gets_the_floats_that_are_given_as_labels(net, quantized):
    write_module(
        "own_target", "def score(outputs, labels):\n    assert labels.dtype == 'float64'\n    return labels[0]\n"
    )
    config = ValidateConfig(metric="own_target:score")
    (score,) = validate(net, quantized, DATA, config, labels=np.full(24, 0.25, np.float32)).scores
    assert score.float_score == 0.25
    with pytest.raises(DataError, match="output y: labels are float64; class indices are integers"):
        validate(net, quantized, DATA, labels=[0.25] * 24)


ALLOWED = "a path, an array or a list of one number for each sample is allowed; give class indices"


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (np.zeros(23, int), "labels: found labels of shape (23); there are 24 samples; give one label for each"),
        ([1, 2], "labels: found labels of shape (2); there are 24 samples; give one label for each"),
        (np.zeros((24, 7)), "labels: found labels of shape (24, 7); there are 24 samples; give one label for each"),
        (["cat"] * 24, f"labels: found list of <U3; {ALLOWED}"),
        (np.zeros(24, bool), f"labels: found ndarray of bool; {ALLOWED}"),
        ([[1], [1, 2]], f"labels: found list of unlike rows; {ALLOWED}"),
        ({"a.png": 1}, f"labels: found dict; {ALLOWED}"),
        (3, f"labels: found int; {ALLOWED}"),
        (b"labels.npy", f"labels: found bytes; {ALLOWED}"),
    ],
)
def test_labels_of_a_wrong_length_or_type_are_refused(net, quantized, labels, text):
    with pytest.raises(DataError, match=re.escape(text)):
        validate(net, quantized, DATA, labels=labels)


@pytest.mark.parametrize("config", [{"max_drop": 1}, {}, QuantizeConfig(), "onnxcalib.toml"])
def test_a_config_of_another_type_is_refused(config):
    found = type(config).__name__
    with pytest.raises(ConfigError, match=f"config: found {found}; a ValidateConfig is needed"):
        validate("absent.onnx", "absent.onnx", "absent", config)


# Metrics


def test_a_metric_of_the_current_folder_is_judged_in_place_of_accuracy(net, quantized, run):
    write_module("own_accuracy", "def score(outputs, labels):\n    return 1.0 * (outputs['y'].argmax(1) == labels)\n")
    np.save("labels.npy", answers(run, net))
    config = ValidateConfig(metric="own_accuracy:score", max_drop=0.2, confident=True)
    verdict = validate(net, quantized, DATA, config, labels="labels.npy")
    score, top1, _ = verdict.scores
    assert (score.name, score.float_score) == ("own_accuracy:score", 1) and score.drop_interval is not None
    assert (top1.name, top1.drop) == ("top-1", pytest.approx(100 * score.drop))
    assert verdict.gates[0].name == "max_drop" and "own_accuracy:score 1 to " in verdict.gates[0].text


def test_a_metric_needs_no_labels(net, quantized):
    write_module(
        "own_norm", "def score(outputs, labels):\n    assert labels is None\n    return abs(outputs['y']).mean()\n"
    )
    verdict = validate(net, quantized, DATA, ValidateConfig(metric="own_norm:score", max_drop=0.5))
    assert verdict.passed and verdict.scores[0].drop_interval is None
    with pytest.raises(ConfigError, match="confident: found one number for all samples from metric own_norm:score"):
        validate(net, quantized, DATA, ValidateConfig(metric="own_norm:score", max_drop=0.5, confident=True))


def test_a_metric_is_found_in_installed_modules_and_in_classes_too():
    assert load_metric("math:fsum") == ("math:fsum", math.fsum)
    write_module("own_class", "class Scores:\n    @staticmethod\n    def best(outputs, labels):\n        return 3\n")
    before = list(sys.path)
    name, metric = load_metric("own_class:Scores.best")
    assert (name, metric({}, None)) == ("own_class:Scores.best", 3)
    assert sys.path == before


def test_the_current_folder_comes_before_other_modules(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    write_module("elsewhere/own_twin", "def f(outputs, labels):\n    return 1\n")
    write_module("own_twin", "def f(outputs, labels):\n    return 2\n")
    assert load_metric("own_twin:f")[1]({}, None) == 2


@pytest.mark.parametrize(
    ("module", "path", "text"),
    [
        ("", "own_absent:f", "cannot be loaded (ModuleNotFoundError: No module named 'own_absent')"),
        ("x = 1", "own_empty:f", "cannot be loaded (AttributeError: module 'own_empty' has no attribute 'f')"),
        ("1 / 0", "own_broken:f", "cannot be loaded (ZeroDivisionError: division by zero)"),
        ("import sys\nsys.exit(0)", "own_exit:f", "cannot be loaded (SystemExit: 0)"),
        ("def f(:", "own_syntax:f", "cannot be loaded (SyntaxError: "),
        (
            "x = 1\n  y = 2",
            "own_indent:f",
            "cannot be loaded (IndentationError: invalid indent (own_indent.py, line 2))",
        ),
        ("f = 3", "own_number:f", "is no function; name one that takes the outputs and the labels"),
    ],
)
def test_a_metric_that_cannot_be_loaded_is_refused_before_any_model_is_read(module, path, text):
    if module:
        write_module(path.partition(":")[0], module)
    before = list(sys.path)
    with pytest.raises(ConfigError, match=re.escape(f"metric {path}: {text}")):
        validate("absent.onnx", "absent.onnx", "absent", ValidateConfig(metric=path))
    assert sys.path == before


def test_a_metric_that_fails_ends_the_run_by_its_name(net, quantized):
    write_module("own_failing", "def f(outputs, labels):\n    return outputs['logits']\n")
    with pytest.raises(ConfigError, match="metric own_failing:f: raised KeyError: 'logits'"):
        validate(net, quantized, DATA, ValidateConfig(metric="own_failing:f"))


def test_labels_of_the_data_that_fit_no_output_are_passed_over_with_a_warning(build, weigh):
    model = build("g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) { y = Conv (x, w) }", w=weigh(4, 3, 1, 1))
    data, other = {"x": DATA, "labels": np.zeros(len(DATA), np.int64)}, round_only(model)
    verdict = validate(model, other, data)
    assert verdict.passed and verdict.scores == ()
    assert any("labels need class scores" in text and "are not used" in text for text in verdict.warnings)
    with pytest.raises(ConfigError, match=r"labels need class scores, .*; leave the labels out"):
        validate(model, other, data, ValidateConfig(max_drop=1))


def test_an_agreement_gate_fails_where_another_output_cannot_be_compared(build, draw):
    text = """g (float[N, 6] x) => (float[N, 6] y, float[M, 6] z) {
        y = MatMul (x, w)  z = Slice (y, start, end, axes) }"""
    weights = {"w": draw(6, 6), "start": np.int64([0]), "axes": np.int64([0])}
    models = [build(text, **weights, end=np.int64([end])) for end in (3, 2)]
    verdict = validate(*models, draw(12, 6), ValidateConfig(min_agreement=50))
    (failed,) = [gate for gate in verdict.gates if not gate.passed]
    assert failed.text == "output z could not be compared, at least 50%"


def test_a_float_model_that_is_quantized_too_is_warned_of(quantized):
    (text,) = [text for text in validate(quantized, quantized, DATA).warnings if "first model" in text]
    assert text == "the first model is quantized too; the loss against a float model is not measured"


def test_a_metric_that_is_no_number_for_the_quantized_model_fails_its_gate(net, quantized, tmp_path):
    (tmp_path / "no_number.py").write_text("def mean(outputs, labels):\n    return outputs['y'].mean()\n")
    broken = change_constant(quantized, "w3_scale", lambda scale: scale * np.nan)
    verdict = validate(net, broken, DATA, ValidateConfig(metric="no_number:mean", max_drop=0.1, confident=True))
    assert verdict.gates[0].name == "max_drop" and verdict.gates[0].text.startswith("no_number:mean")
    assert "to nan, a drop of nan" in verdict.gates[0].text and not verdict.gates[0].passed


def test_a_list_of_labels_beside_the_samples_is_named_where_labels_are_missing(net, quantized, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    np.save(folder / "a.npy", DATA[0])
    (folder / "labels.csv").write_text("a.npy,3\n")
    with pytest.raises(GateError, match=re.escape(f"give --labels {folder / 'labels.csv'}, or ask for")):
        validate(net, quantized, folder, ValidateConfig(max_drop=1))


def test_labels_are_compared_with_the_output_on_which_the_float_model_is_most_accurate(build, weigh, run):
    text = """g (float[N, 3, 8, 8] x) => (float[N, 8] feat, float[N, 7] y) {
        [stem] c = Conv (x, w1)  p = GlobalAveragePool (c)  feat = Flatten (p)
        [head] y = Gemm <transB = 1> (feat, w2) }"""
    model = build(text, w1=weigh(8, 3, 1, 1), w2=weigh(7, 8))
    other = round_only(model)
    wrong = change_constant(other, "w2_scale", lambda scale: -scale)
    np.save("labels.npy", run(model, DATA)[1].argmax(axis=1))
    config = ValidateConfig(max_drop=20)
    good, bad = (validate(model, each, DATA, config, labels="labels.npy") for each in (other, wrong))
    assert good.passed and "top-1 on y 100.00 to " in good.gates[0].text
    assert not bad.passed and bad.scores[0].output == "y"
    assert any("compared with output y, on which the float" in text and "feat" in text for text in good.warnings)


def test_models_that_draw_are_run_with_the_same_draws_which_is_said(build, weigh):
    text = NET.replace("s = Add (d, r)", "z = RandomNormalLike (d)  e = Add (z, r)  s = Add (d, e)")
    net = build(text, w1=weigh(8, 3, 3, 3), w2=weigh(8, 8, 3, 3), w3=weigh(7, 8), b1=weigh(8), b2=weigh(8), b3=weigh(7))
    verdict = validate(net, round_only(net), DATA)
    assert verdict.warnings[0] == (
        "1 operator (RandomNormalLike) draws random values; both models are run with the same draws"
    )
    assert verdict.outputs[0].sqnr_db > 25


def test_an_output_that_is_ordered_by_near_ties_is_told_with_the_sqnr_of_what_is_ordered(build, weigh):
    text = NET.replace("=> (float[N, 7] y)", "=> (float[N, 7] y, float[N, 5] z)").replace(
        "y = Gemm <transB = 1> (f, w3, b3)",
        "y = Gemm <transB = 1> (f, w3, b3)  v, i = TopK <axis = 1> (y, five)  z = Cast <to = 1> (i)",
    )
    net = build(
        text, w1=weigh(8, 3, 3, 3), w2=weigh(8, 8, 3, 3), w3=weigh(7, 8), b1=weigh(8), b2=weigh(8),
        b3=np.zeros(7, np.float32), five=np.int64([5]),
    )  # fmt: skip
    verdict = validate(net, round_only(net, activation_bits=4), DATA)
    assert re.search(
        r"^output z: its order is that of TopK \(\w+\), .*; judge it by what is ordered: y ",
        "\n".join(verdict.warnings),
        re.M,
    )


def test_a_step_that_spoils_one_part_of_an_output_is_warned_of(build, draw):
    text = """g (float[N, 6, 8] x) => (float[N, 8, 8] y) { b = MatMul (x, w)  [small] s = MatMul (x, v)
        [step] f = Floor (s)  part = Slice (f, zero, two, one)  y = Concat <axis = 1> (b, part) }"""
    constants = {"w": 100 * np.eye(8, dtype=np.float32), "zero": np.int64([0]), "two": np.int64([2])}
    weights = (np.eye(8, dtype=np.float32) + noise * draw(8, 8) for noise in (np.float32(0), np.float32(0.001)))
    one, other = (build(text, v=v, one=np.int64([1]), **constants) for v in weights)
    data = np.floor(4 * draw(64, 6, 8)) + np.float32(0.5)
    data[:, 0, 0] = np.round(data[:, 0, 0]) + np.float32(0.002)
    with pytest.warns(match=r"^output y\[:, 6:8\]: Floor \(step\) makes whole steps of small errors in s \("):
        validate(one, other, data)
