"""What a target decides of the settings, and what it refuses."""

from __future__ import annotations

import re

import numpy as np
import pytest

from onnxcalib.config import LayerConfig, QuantizeConfig
from onnxcalib.errors import ConfigError, ModelError
from onnxcalib.quantization.target_settings import check_bits, check_opset, check_shapes, settle
from onnxcalib.spec import InputSpec
from onnxcalib.targets import load_target


def of_target(name: str, **settings: object) -> QuantizeConfig:
    return settle(QuantizeConfig(target=name, **settings), load_target(name))


def test_the_default_target_changes_nothing():
    assert of_target("onnxruntime") == QuantizeConfig()


def test_a_device_takes_all_integers_plain_types_and_all_that_it_can():
    found = of_target("qnn")
    assert (found.weight_range, found.encoding, found.placement, found.embedding_bits) == (
        "full",
        "standard",
        "all",
        32,
    )


def test_what_runs_on_x86_keeps_bounded_weights_and_their_encoding():
    found = of_target("openvino")
    assert (found.weight_range, found.encoding, found.placement) == ("bounded", "runtime", "all")


def test_bits_are_planned_among_those_that_a_target_takes():
    assert of_target("qnn").candidates == ("W8A8", "W4A8") and of_target("xint8").candidates == ("W8A8",)


def test_what_the_user_gives_wins():
    found = of_target("openvino", encoding="standard", weight_range="full", embedding_bits=8)
    assert (found.weight_range, found.encoding, found.embedding_bits) == ("full", "standard", 8)


@pytest.mark.parametrize(
    ("target", "settings", "complaint"),
    [
        ("xint8", {"weight_bits": 4}, "weight_bits: found 4; target 'xint8' takes 8; give bits that it takes, or"),
        ("tensorrt", {"weight_bits": 4}, "weight_bits: found 4; target 'tensorrt' takes 8; give bits that it takes"),
        ("xint8", {"first_last_bits": 4}, "first_last_bits: found 4; target 'xint8' takes 8"),
        ("tensorrt", {"activation_bits": 4}, "activation_bits: found 4; target 'tensorrt' takes 8"),
        (
            "tensorrt",
            {"layers": {"a": LayerConfig(activation_bits=4)}},
            "layers: 'a': activation_bits: found 4; target 'tensorrt' takes 8",
        ),
        (
            "tensorrt",
            {"activation_bits": 32},
            "activation_bits: found 32 beside weights of 8 bits; target 'tensorrt' takes it beside 4 or 3 alone",
        ),
        (
            "qnn",
            {"activation_bits": 32},
            "activation_bits: found 32 beside weights of 8 bits; target 'qnn' takes it beside no weights alone",
        ),
        (
            "qnn",
            {"max_latency": "0.5"},
            "max_latency: found '0.5' beside target 'qnn', whose times cannot be measured here; give those of",
        ),
        (
            "onnxruntime",
            {"activation_bits": 16},
            "activation_bits: found 16; target 'onnxruntime' computes activations of 16 bits in float, more slowly than"
            " the float model; give bits of integers, or a target that has these, such as qnn",
        ),
        ("onnxruntime", {"tensors": {"a": 16}}, "tensors: 'a': found 16; target 'onnxruntime' computes activations"),
        (
            "onnxruntime",
            {"candidates": ("W8A8", "W8A16"), "max_size": "1"},
            "candidates: found 16; target 'onnxruntime' computes activations of 16 bits in float",
        ),
        ("xint8", {"activation_bits": 16}, "activation_bits: found 16; target 'xint8' takes 8"),
        (
            "qnn",
            {"encoding": "runtime"},
            "encoding: found 'runtime', which reads 4 bits through a Cast; target 'qnn' takes",
        ),
        *(
            (
                target,
                {"encoding": "matmulnbits", "activation_bits": 32},
                "encoding: found 'matmulnbits', which writes MatMulNBits and GatherBlockQuantized of onnxruntime;"
                f" target '{target}' takes the operators of ONNX alone; leave it out",
            )
            for target in ("openvino", "qnn", "xint8")
        ),
        (
            "onnxruntime",
            {"encoding": "matmulnbits"},
            "encoding: found 'matmulnbits', and no layer to use it; MatMulNBits reads float activations; give",
        ),
        (
            "qnn",
            {"tensors": {"a": 8}, "activation_bits": 16},
            "tensors: 'a': found 8 beside activation_bits 16; a tensor may have more bits than the others; give all",
        ),
        ("tensorrt", {"block_size": 32}, "block_size: found 32; target 'tensorrt' takes 64 or 128; give that"),
        (
            "openvino",
            {"weight_bits": 2},
            "weight_bits: found 2; target 'openvino' takes 8 or 4 or 3; give bits that it takes, or another target",
        ),
        (
            "tensorrt",
            {"weight_bits": 2, "activation_bits": 32},
            "activation_bits: found 32 beside weights of 2 bits; target 'tensorrt' takes it beside 4 or 3 alone;",
        ),
        (
            "openvino",
            {"weight_bits": 4, "activation_bits": 32, "weight_symmetry": "asymmetric"},
            "weight_symmetry: found asymmetric; target 'openvino' takes weights without zero points; leave it out",
        ),
        (
            "openvino",
            {"layers": {"a": {"block_size": 32}}},
            "layers: 'a': block_size: found 32; target 'openvino' takes no blocks; leave it out",
        ),
        (
            "onnxruntime",
            {"activation_bits": 32, "max_size": "5bpw", "block_size": 64},
            "block_size: found 64 beside a budget, and no layer to use it; candidates have blocks of their own",
        ),
        ("openvino", {"block_size": 32}, "block_size: found 32; target 'openvino' takes no blocks; leave it out"),
        (
            "qnn",
            {"embedding_bits": 8},
            "embedding_bits: found 8; integers of a table are read through a Cast, which target 'qnn' does not take;",
        ),
        (
            "tensorrt",
            {"activations": "dynamic"},
            "activations: found 'dynamic'; target 'tensorrt' is not known to run layers on what each",
        ),
        ("openvino", {"activations": "dynamic"}, "activations: found 'dynamic'; target 'openvino' is not known to run"),
        (
            "onnxruntime",
            {"activations": "dynamic", "max_size": "0.2"},
            "activations: found 'dynamic' beside a budget; bits are planned for grids of the file; leave one of them",
        ),
        (
            "onnxruntime",
            {"activations": "dynamic", "activation_bits": 32},
            "activation_bits: found 32 beside activations 'dynamic'; the grid of a run has 8 bits; leave one of them",
        ),
        (
            "onnxruntime",
            {"activations": "dynamic", "layers": {"a": LayerConfig(activation_bits=4)}},
            "layers: 'a': activation_bits: found 4 beside activations 'dynamic'; the grid of a run has 8 bits;",
        ),
        ("qnn", {"placement": "cost"}, "placement: found 'cost' beside target 'qnn'; times are known of onnxruntime"),
    ],
)
def test_what_a_target_has_not_is_refused(target, settings, complaint):
    with pytest.raises(ConfigError, match="^" + re.escape(complaint)):
        of_target(target, **settings)


def test_bits_of_a_plan_that_a_run_has_not_are_refused_as_those_of_the_plan():
    given = QuantizeConfig(layers={"a": LayerConfig(activation_bits=4)})
    with pytest.raises(ConfigError, match=r"^plan: layers: 'a': activation_bits: found 4; target 'qnn' takes 16 or 8"):
        check_bits(given, load_target("qnn"), where="plan: ")
    given = QuantizeConfig(tensors={"t": 16})
    with pytest.raises(ConfigError, match=r"^plan: tensors: 't': found 16; target 'openvino' takes 8 or 4"):
        check_bits(given, load_target("openvino"), where="plan: ")


@pytest.fixture
def write(tmp_path):
    """Writes a target of these types of weights, and gives its path."""

    def make(types: str) -> str:
        text = f'name = "chip"\n[rules.weight_types]\ntypes = ["{types}"]\nsource = "page 7"\n'
        (tmp_path / "chip.toml").write_text(text)
        return str(tmp_path / "chip.toml")

    return make


def test_bits_are_not_planned_for_a_target_without_8_bits(write):
    settings = {"weight_bits": 4, "first_last_bits": 4, "max_bops": "0.1"}
    with pytest.raises(ConfigError, match=r"^target: found 'chip' beside a budget; bits are planned against W8A8, "):
        of_target(write("int4"), **settings)


def test_a_target_of_types_that_are_never_written_is_refused(write):
    with pytest.raises(ConfigError, match=r"^weight_bits: found 8; target 'chip' takes no types that can be written;"):
        of_target(write("uint8"))


def test_weights_alone_are_taken_where_the_target_does():
    assert of_target("tensorrt", activation_bits=32, weight_bits=4).activation_bits == 32


@pytest.mark.parametrize(
    ("shapes", "complaint"),
    [
        (
            {"ids": (None, None), "mask": (None, None)},
            "shape: found free dimensions of input 'ids' (any, any), 'mask' (any, any); target 'qnn' compiles a file"
            " for one size; give it, as in --shape ids=1,128 --shape mask=1,128",
        ),
        (
            {"x": (None, 3, None, None)},
            "'x' (any, 3, any, any); target 'qnn' compiles a file for one size; give it, as in --shape x=1,3,224,224",
        ),
        ({"x": None}, "'x' of any rank; target 'qnn' compiles a file for one size; give it, as in --shape x=1,128"),
    ],
)
def test_a_target_of_one_size_refuses_free_dimensions_with_an_example(shapes, complaint):
    inputs = [InputSpec(name, np.dtype(np.float32), shape) for name, shape in shapes.items()]
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        check_shapes(inputs, load_target("qnn"))
    check_shapes(inputs, load_target("onnxruntime"))
    check_shapes([InputSpec("x", np.dtype(np.float32), (1, 3))], load_target("qnn"))


NET = "g (float[1, 4] x) => (float[1, 4] y) { y = MatMul (x, x) }"


def test_a_model_of_an_opset_above_what_the_target_takes_is_refused(build):
    complaint = "graph g: found opset 21; target 'symmetric' takes 20 at most; export the model at that opset"
    with pytest.raises(ModelError, match="^" + re.escape(complaint)):
        check_opset(build(NET, opset=21), QuantizeConfig(), load_target("symmetric"))
    check_opset(build(NET, opset=20), QuantizeConfig(), load_target("symmetric"))
    check_opset(build(NET, opset=21), QuantizeConfig(), load_target("tensorrt"))


def test_settings_that_need_a_newer_opset_than_the_target_takes_are_refused(build):
    complaint = "weight_bits: found settings of 4 bits, which need opset 21; target 'symmetric' takes 20 at most"
    with pytest.raises(ConfigError, match="^" + re.escape(complaint)):
        check_opset(build(NET), QuantizeConfig(weight_bits=4), load_target("symmetric"))
    given = QuantizeConfig(activations="dynamic", layers={"a": LayerConfig(activation_bits=4)})
    with pytest.raises(ConfigError, match=r"^plan: layers: 'a': activation_bits: found 4 beside activations 'dynamic'"):
        check_bits(given, load_target("onnxruntime"), where="plan: ")
