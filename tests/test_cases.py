"""The verdict on made cases: right and wrong quantizations of one small classifier, all judged by the same gates."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser
from onnx.external_data_helper import convert_model_to_external_data

from onnxcalib import QuantizeConfig, quantize
from onnxcalib.cli.exitstatus import ExitStatus
from onnxcalib.cli.main import main
from onnxcalib.runtime.session import Session

CLASSES, WIDTH, SIDE = 10, 16, 10
GATES = ("--max-drop", "3", "--min-agreement", "97", "--min-sqnr", "25")
NET = f"""g (float[N, 3, {SIDE}, {SIDE}] image) => (float[N, {CLASSES}] scores, float[N, {CLASSES}] others) {{
    [stem] c = Conv <pads = [1, 1, 1, 1]> (image, w1, b1)  [relu1] r = Relu (c)
    [inner] d = Conv <pads = [1, 1, 1, 1]> (r, w2, b2)  [add] s = Add (d, r)  [relu2] t = Relu (s)
    [deep] e = Conv <strides = [2, 2]> (t, w3, b3)  [relu3] u = Relu (e)
    [mean] p = GlobalAveragePool (u)  [flat] f = Flatten (p)
    [head] scores = Gemm <transB = 1> (f, w4, b4)  [side] others = Gemm <transB = 1> (f, w5, b5) }}"""


def draw_images(prototypes, count, seed):
    """Noisy copies of the prototypes of the classes, and the classes."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    return (prototypes[labels] + 0.3 * rng.normal(size=(count, 3, SIDE, SIDE))).astype(np.float32), labels


def build_net(weights):
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{NET}')
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    return model


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Float model, quantized model and samples, in a folder."""
    rng = np.random.default_rng(5)
    prototypes = rng.normal(size=(CLASSES, 3, 1, 1)) + 0.7 * rng.normal(size=(CLASSES, 3, SIDE, SIDE))
    images, labels = draw_images(prototypes, 200, 1)
    weights = {
        "w1": rng.normal(size=(WIDTH, 3, 3, 3)) / np.sqrt(27),
        "w2": rng.normal(size=(WIDTH, WIDTH, 3, 3)) / np.sqrt(9 * WIDTH),
        "w3": rng.normal(size=(WIDTH, WIDTH, 3, 3)) / np.sqrt(4 * WIDTH),
        "w4": np.eye(CLASSES, WIDTH),
        "w5": np.eye(CLASSES, WIDTH),
    }
    weights |= {f"b{i}": 0.2 * rng.normal(size=WIDTH) for i in (1, 2, 3)} | {f"b{i}": np.zeros(CLASSES) for i in (4, 5)}
    wide = {name: value.astype(np.float32) for name, value in weights.items()}
    session = Session(build_net(wide), also=["f"])
    features = np.hstack([session.run({"image": images})["f"], np.ones((len(images), 1))])
    for weight, bias, shift in (("w4", "b4", 0), ("w5", "b5", 3)):
        solution = np.linalg.lstsq(features, 10 * np.eye(CLASSES)[(labels + shift) % CLASSES], rcond=3e-2)[0].T
        wide[weight], wide[bias] = solution[:, :-1].astype(np.float32), solution[:, -1].astype(np.float32)
    folder = tmp_path_factory.mktemp("cases")
    model = build_net(wide)
    onnx.save(model, folder / "float.onnx")
    samples, classes = draw_images(prototypes, 160, 2)
    np.save(folder / "samples.npy", samples)
    np.save(folder / "labels.npy", classes)
    config = QuantizeConfig(reconstruct=False)
    return folder, model, quantize(model, images, config).model, images


@pytest.fixture
def judge(work, tmp_path):
    """Exit status of ``onnxcalib validate`` on a model or a file, and the gates that did not hold."""
    folder = work[0]

    def call(quantized):
        path = tmp_path / "quantized.onnx"
        if isinstance(quantized, ModelProto):
            onnx.save(quantized, path)
        report = tmp_path / "report.json"
        arguments = ["--data", folder / "samples.npy", "--labels", folder / "labels.npy", "--json", report, "--quiet"]
        status = main(["validate", *map(str, [folder / "float.onnx", path, *arguments]), *GATES])
        if not report.exists():
            return status, set()
        found = json.loads(report.read_text())
        return status, {gate["name"] for gate in found["gates"] if not gate["passed"]}

    return call


def copy_of(model):
    return ModelProto.FromString(model.SerializeToString())


def change(model, changes):
    """A copy with initializers made anew: name -> function of its value."""
    changed = copy_of(model)
    for name, make in changes.items():
        tensor = next(t for t in changed.graph.initializer if t.name == name)
        value = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(make(value), value.dtype), name))
    return changed


def find_node(model, output):
    return next(node for node in model.graph.node if output in node.output)


def multiply(factor):
    return lambda value: value * np.asarray(factor, value.dtype)


# Right ones


def reorder_nodes(model):
    """Constants are dequantized last or first, and nodes come as late as they may."""
    changed = copy_of(model)
    nodes, last = list(model.graph.node), []
    while nodes:
        needed = {name for node in nodes for name in node.input}
        late = next(node for node in nodes if not needed & set(node.output))
        last.append(late)
        nodes.remove(late)
    del changed.graph.node[:]
    changed.graph.node.extend(last[::-1])
    return changed


def raise_opset(model):
    changed = copy_of(model)
    changed.opset_import[0].version, changed.ir_version = 21, 10
    return changed


def rename_all(model, *, keep=("image", "scores", "others")):
    changed = copy_of(model)
    names: dict[str, str] = {}

    def new(name):
        return name if name in keep or not name else names.setdefault(name, f"n{len(names)}")

    for node in changed.graph.node:
        node.name = new(node.name)
        node.input[:], node.output[:] = map(new, node.input), map(new, node.output)
    for value in (*changed.graph.initializer, *changed.graph.value_info):
        value.name = new(value.name)
    return changed


def drop_relu(model):
    """The grid behind it begins at zero, and so does what the Relu did."""
    changed = copy_of(model)
    relu = find_node(changed, "t")
    find_node(changed, "t_quantized").input[0] = relu.input[0]
    changed.graph.node.remove(relu)
    return changed


def fix_batch(model, batch=8):
    changed = copy_of(model)
    for value in (*changed.graph.input, *changed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    return changed


RIGHT = {
    "as it is": lambda model: model,
    "nodes in another order": reorder_nodes,
    "opset raised": raise_opset,
    "inner tensors and nodes renamed": rename_all,
    "a Relu left out that the grid does": drop_relu,
    "a fixed batch": fix_batch,
}


@pytest.mark.parametrize("case", RIGHT)
def test_a_right_model_passes(work, judge, case):
    _, _, quantized, _ = work
    changed = RIGHT[case](quantized)
    assert case == "as it is" or changed.SerializeToString() != quantized.SerializeToString()
    assert judge(changed) == (ExitStatus.OK, set())


def test_a_copy_of_the_float_model_passes(work, judge, capsys):
    assert judge(work[1]) == (ExitStatus.OK, set())
    assert "two float models are compared" in capsys.readouterr().err


def test_a_model_with_external_data_passes(work, judge, tmp_path):
    outside = copy_of(work[2])
    convert_model_to_external_data(outside, location="weights.bin", size_threshold=0)
    onnx.save(outside, tmp_path / "quantized.onnx")
    assert (tmp_path / "weights.bin").stat().st_size > 1000
    assert judge(tmp_path / "quantized.onnx") == (ExitStatus.OK, set())


# Wrong ones


def retouch(model, tensor, make, place):
    """The DequantizeLinear of a tensor alone reads another scale (1) or zero point (2)."""
    changed = copy_of(model)
    node = find_node(changed, tensor)
    given = next(t for t in changed.graph.initializer if t.name == node.input[place])
    value = numpy_helper.to_array(given)
    changed.graph.initializer.append(numpy_helper.from_array(np.asarray(make(value), value.dtype), "retouched"))
    node.input[place] = "retouched"
    return changed


def flip_channel(value):
    value = value.copy()
    value[3] = -value[3]
    return value


def swap_outputs(model):
    changed = copy_of(model)
    one, other = find_node(changed, "scores"), find_node(changed, "others")
    one.output[0], other.output[0] = "others", "scores"
    return changed


def reverse_outputs(model):
    changed = copy_of(model)
    values = list(changed.graph.output)[::-1]
    del changed.graph.output[:]
    changed.graph.output.extend(values)
    return changed


def drop_relu_for_good(model):
    """Its grid made to hold what is below zero, as of a converter that lost the Relu before it calibrated."""
    return change(drop_relu(model), {"t_scale": multiply(2), "t_zero_point": lambda value: value + 128})


def permute_classes(model):
    names = ("w4_quantized", "w4_scale", "b4_quantized", "b4_scale")
    return change(model, dict.fromkeys(names, lambda value: np.roll(value, 1, axis=0)))


def append(model, nodes, **initializers):
    """The scores go through more nodes, from ``before`` to ``scores``."""
    changed = copy_of(model)
    find_node(changed, "scores").output[0] = "before"
    changed.graph.node.extend(nodes)
    changed.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in initializers.items())
    return changed


def mix_batch(model):
    """A fixed batch in which each sample is given the scores of another."""
    reverse = helper.make_node("Gather", ["before", "order"], ["scores"])
    return append(fix_batch(model), [reverse], order=np.arange(8)[::-1])


def bake_batch(model):
    """One sample a run, whatever the inputs say."""
    return append(model, [helper.make_node("Reshape", ["before", "shape"], ["scores"])], shape=np.array([1, CLASSES]))


def to_type(model, kind):
    changed = append(model, [helper.make_node("Cast", ["before"], ["scores"], to=kind)])
    changed.graph.output[0].type.tensor_type.elem_type = kind
    return changed


def move(by):
    return lambda value: value.astype(np.int64) + by


def rename_output(model, name):
    changed = copy_of(model)
    find_node(changed, "scores").output[0] = changed.graph.output[0].name = name
    return changed


def values(**changes):
    return lambda model: change(model, changes)


ACCURACY = {"max_drop", "min_agreement", "min_sqnr"}
# case: what is done to the model, and gates that cannot hold then
WRONG = {
    "dequantized one step off": (
        partial(retouch, tensor="r_dequantized", make=lambda value: value + 1, place=2), {"max_steps"}
    ),
    "dequantized on a scale of 1.01": (
        partial(retouch, tensor="t_dequantized", make=multiply(1.01), place=1), {"max_steps"}
    ),
    "a layer's scale times 2": (values(w2_scale=multiply(2)), {"min_sqnr"}),
    "a layer's scale times 1.2": (values(w2_scale=multiply(1.2)), {"min_sqnr"}),
    "the last layer's scale times 1.2": (values(w4_scale=multiply(1.2)), {"min_sqnr"}),
    "a layer's sign": (values(w2_quantized=np.negative), {"min_sqnr"}),
    "a channel's sign": (values(w2_quantized=flip_channel), {"min_sqnr"}),
    "a channel's sign in the first layer": (values(w1_quantized=flip_channel), {"min_sqnr"}),
    "two outputs swapped": (swap_outputs, ACCURACY),
    "a layer transposed": (values(w2_quantized=lambda value: value.swapaxes(0, 1)), {"min_sqnr"}),
    "an input saturated": (values(image_scale=multiply(1 / 8)), {"min_sqnr"}),
    "an activation saturated": (values(t_scale=multiply(1 / 8)), {"min_sqnr"}),
    "the input's zero point moved by 40 on both sides": (values(image_zero_point=move(40)), {"min_sqnr"}),
    "a zero point moved by 40 on both sides": (
        values(p_zero_point=move(40), f_zero_point=move(40)), {"min_sqnr"}
    ),
    "a bias forgotten": (values(b3_quantized=multiply(0)), {"min_sqnr"}),
    "a bias of the wrong scale": (values(b3_scale=multiply(4)), set()),
    "a Relu lost": (drop_relu_for_good, {"min_sqnr"}),
    "an activation 10 times too coarse": (values(r_scale=multiply(10)), {"min_sqnr"}),
    "classes permuted": (permute_classes, ACCURACY),
    "a constant output": (values(w4_quantized=multiply(0)), ACCURACY),
    "a scale that is NaN": (values(w4_scale=multiply(np.nan)), ACCURACY),
    "a scale that is NaN inside": (values(w2_scale=multiply(np.nan)), {"min_sqnr"}),
    "samples mixed in a fixed batch": (mix_batch, ACCURACY),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_model_fails(work, judge, case):
    make, gates = WRONG[case]
    status, failed = judge(make(work[2]))
    assert (status, failed & gates) == (ExitStatus.GATE, gates)


REFUSED = {
    "outputs in another order": (
        reverse_outputs,
        "outputs: the float model has scores, others, the quantized one others",
    ),
    "a batch of one baked in": (bake_batch, "error: onnxruntime cannot run"),
    "another type": (
        partial(to_type, kind=TensorProto.DOUBLE),
        "output scores: the float model has float, the quantized",
    ),
    "another name of an output": (
        partial(rename_output, name="scores2"),
        "outputs: the float model has scores, others",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_models_that_cannot_be_compared_are_refused(work, judge, capsys, case):
    make, text = REFUSED[case]
    assert judge(make(work[2])) == (ExitStatus.ERROR, set())
    assert text in capsys.readouterr().err


def test_there_are_enough_cases_of_either_kind():
    assert len(RIGHT) >= 6 and len(RIGHT) + len(WRONG) + len(REFUSED) >= 20
