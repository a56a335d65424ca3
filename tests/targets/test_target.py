"""Targets by name and from files, and what is said of a file that is none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

import onnxcalib.targets
from onnxcalib.errors import ConfigError
from onnxcalib.spec import QuantSpec
from onnxcalib.targets import Rewrites, is_name, list_targets, load_target
from onnxcalib.targets.rules import Rules

NAMES = ["onnxruntime", "openvino", "qnn", "symmetric", "tensorrt", "xint8"]
HEAD = 'name = "chip"\n'
TYPES = '[rules.activation_types]\ntypes = ["int8"]\nsource = "page 7"\n'


@pytest.fixture
def write(tmp_path):
    """Writes a file of a target, and gives its path."""

    def make(text: str) -> Path:
        (tmp_path / "chip.toml").write_text(text)
        return tmp_path / "chip.toml"

    return make


def test_the_targets_are_listed_by_name():
    assert [target.name for target in list_targets()] == NAMES


@pytest.mark.parametrize("target", list_targets(), ids=NAMES)
def test_every_rule_of_a_target_has_a_source(target):
    assert load_target(target.name) == target and target.description
    assert all(len(rule.source) > 10 for rule in target.list_rules().values())


def test_a_target_is_read_from_a_file(write):
    target = load_target(write(HEAD + TYPES))
    assert (target.name, list(target.list_rules())) == ("chip", ["activation_types"])
    assert load_target(str(write(HEAD + TYPES))) == load_target(target) == target


def test_a_target_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        list_targets()[0].name = "other"


def test_what_a_target_takes_is_said_in_a_few_words():
    found = {target.name: (target.activations, target.weights) for target in list_targets()}
    assert found["xint8"] == (
        "int8, uint8; zero point 0, 128 of uint8; powers of two",
        "int8; a scale a tensor; powers of two",
    )
    assert found["openvino"] == ("uint8, int8, uint4", "int8, int4; a scale a channel")


def test_a_target_without_rules_of_types_takes_any(write):
    target = load_target(write(HEAD + '[rules.static_shapes]\nsource = "page 7"\n'))
    assert (target.activations, target.weights, target.proof) == ("any", "any", "lint only")


def test_the_runtime_of_a_target_is_looked_for(write):
    assert load_target("onnxruntime").proof == "lint; onnxruntime is installed"
    target = load_target(write('name = "chip"\nruntime = "no_such_runtime"\n' + TYPES))
    assert target.proof == "lint; no_such_runtime is missing"


def test_the_page_has_every_target_and_every_rule_and_its_own_target_is_one(write):
    page = (Path(__file__).resolve().parents[2] / "docs/targets.md").read_text(encoding="utf-8")
    assert not [name for name in (*NAMES, *Rules.model_fields, *Rewrites.model_fields) if f"`{name}`" not in page]
    target = load_target(write(re.search(r"```toml\n(.*?)```", page, flags=re.DOTALL)[1]))
    assert target.name == "chip" and len(target.list_rules()) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TYPES, "name: is missing; every target has it"),
        (HEAD, "rules: is missing; every target has it"),
        (HEAD + 'rules = "none"\n', "rules: found 'none'; it is a table; write [rules] above its keys"),
        (HEAD + 'runtim = "x"\n' + TYPES, "runtim: unknown key; did you mean 'runtime'?"),
        (HEAD + "[rules.activation_type]\n", "rules.activation_type: unknown key; did you mean 'activation_types'?"),
        (
            HEAD + TYPES + "bits = 8\n",
            "rules.activation_types.bits: unknown key; allowed: source, level, levels, types",
        ),
        (
            HEAD + TYPES.replace("int8", "int7"),
            "rules.activation_types.types.0: found 'int7'; allowed: 'int2', 'uint2'",
        ),
        (
            HEAD + '[rules.activation_types]\ntypes = []\nsource = "a"\n',
            "rules.activation_types.types: is empty; it names one or more; name them, or leave the rule out",
        ),
        (
            HEAD + '[rules.activation_types]\ntypes = "int8"\nsource = "a"\n',
            "rules.activation_types.types: found 'int8'; it is an array; write its values in brackets",
        ),
        (HEAD + '[rules.biases]\nkinds = {}\nsource = "a"\n', "rules.biases.kinds: is empty; it names one or more"),
        (HEAD + "[rules]\n", "rules: found {}; a target without rules passes every file; write one rule or more"),
        (HEAD + '[rules.opset]\nsource = "a"\n', "rules.opset: found {'source': 'a'}; least, most or types is needed"),
        (
            HEAD + '[rules.opset]\nleast = 18\nmost = 13\nsource = "a"\n',
            "rules.opset: found {'least': 18, 'most': 13, 'source': 'a'}; least must not be above most",
        ),
        (HEAD + '[rules.pairs]\nbetween = ["Clip"]\n', "rules.pairs.source: is missing; every rule of its kind has it"),
        (
            HEAD + '[rules.opset]\nleast = "13"\nsource = "a"\n',
            "rules.opset.least: found '13'; input should be a valid",
        ),
        (HEAD + '[rules.opset]\nleast = true\nsource = "a"\n', "rules.opset.least: found True"),
        (
            HEAD + '[rules.least_range]\nleast = -1.0\nsource = "a"\n',
            "rules.least_range.least: found -1.0; input should",
        ),
        (
            HEAD + '[rules.shift_cut]\noperators = ["Conv"]\nends = [5, 1]\nsource = "a"\n',
            "rules.shift_cut.ends: found (5, 1); must be the least and the most, in this order",
        ),
        (
            HEAD + '[rules.fixed_grids]\nsource = "a"\ngrids = { Sigmoid = { uint17 = [0.5, 0] } }\n',
            "rules.fixed_grids.grids.Sigmoid.uint17: found 'uint17'; allowed: 'int2'",
        ),
        (
            HEAD + TYPES + "[rewrites]\nmasks = -1.0\n",
            "rewrites.masks: found -1.0; input should be less than or equal to",
        ),
        (HEAD + TYPES + "[rewrites]\nopset = '21'\n", "rewrites.opset: found '21'; input should be a valid integer"),
        (HEAD + TYPES + "[rewrites]\nmask = -1e3\n", "rewrites.mask: unknown key; did you mean 'masks'?"),
        (HEAD + TYPES + 'level = "warn"\n', "rules.activation_types.level: found 'warn'; allowed: 'refused', 'slower'"),
        ('runtime = "a.b"\n' + HEAD + TYPES, "runtime: found 'a.b'; string should match pattern"),
        ("name = ", "not TOML: Invalid value (at end of document); see https://toml.io"),
        ("a" + ".a" * 60 + " = 1", "found a key of more than 50 parts; none needs so many; shorten it"),
    ],
)
def test_a_file_that_is_no_target_is_refused_in_one_line(write, text, message):
    path = write(text)
    with pytest.raises(ConfigError, match=f"^{re.escape(f'{path}: {message}')}") as fault:
        load_target(path)
    assert "\n" not in str(fault.value)


def test_what_has_a_suffix_or_a_folder_is_a_path():
    assert is_name("qnn") and not any(map(is_name, ("chip.toml", "./qnn", "targets/chip")))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("qmn", "xint8, or a TOML file, is needed; did you mean 'qnn'"),
        ("zzzz", "is needed; a file has the suffix .toml"),
        ("./absent", "absent: no such file; the name of a target, or the path of a TOML file of one, is needed"),
    ],
)
def test_a_target_that_is_unknown_is_refused(name, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_target(name)


def test_the_rules_of_a_target_say_how_to_write_for_it():
    needs = {name: load_target(name).requirements for name in NAMES}
    assert needs["onnxruntime"].activation == QuantSpec(8)
    assert needs["qnn"].activation == QuantSpec(8, least_range=1e-4)
    assert needs["tensorrt"].activation == QuantSpec(8, signed=True, symmetric=True)
    assert needs["xint8"].activation == QuantSpec(8, signed=True, symmetric=True, power_of_two=True)
    assert {name for name, each in needs.items() if each.one_weight_scale} == {"xint8"}
    assert {name for name, each in needs.items() if "Conv" in each.float_biases} == {"tensorrt"}
    assert {name: each.placing for name, each in needs.items() if each.placing != "fused"} == {
        "qnn": "groups",
        "tensorrt": "inputs",
        "xint8": "groups",
    }
    assert needs["qnn"].activation_bits == (16, 8) and needs["symmetric"].opset == (13, 20)
    assert needs["tensorrt"].weights_alone == (4, 3) and needs["onnxruntime"].weights_alone == (8, 4, 3, 2)


def test_the_first_of_several_types_is_written(write):
    types = '[rules.activation_types]\ntypes = ["uint16", "int8", "uint8"]\nsource = "page 7"\n'
    needs = load_target(write(HEAD + types)).requirements
    assert needs.activation == QuantSpec(8) and needs.activation_bits == (16, 8)


def test_types_are_listed_that_can_be_written(write):
    types = '[rules.activation_types]\ntypes = {}\nin_float = ["uint16"]\nsource = "page 7"\n'
    assert load_target(write(HEAD + types.format('["int8", "int4"]'))).requirements.activation_bits == (8,)
    assert load_target(write(HEAD + types.format('["uint16"]'))).requirements.activation_bits == ()


def test_biases_are_in_float_where_that_comes_first_or_int32_is_not_taken(write):
    kinds = '{ Conv = ["int8", "float"], Gemm = ["float", "int32"], ConvTranspose = ["int32", "float"] }'
    needs = load_target(write(HEAD + f'[rules.biases]\nkinds = {kinds}\nsource = "page 7"\n')).requirements
    assert needs.float_biases == {"Conv", "Gemm"}


def test_blocks_are_for_targets_whose_weights_may_have_them():
    found = {name for name in NAMES if load_target(name).requirements.in_blocks}
    assert found == {"onnxruntime", "tensorrt"}


def test_a_file_of_ones_own_has_another_name_than_the_targets_of_the_package(write):
    path = write(HEAD.replace("chip", "qnn") + TYPES)
    text = "name: found 'qnn', which is a target of this package; any other name is allowed; rename yours, or give"
    with pytest.raises(ConfigError, match=f"^{re.escape(f'{path}: {text} --target qnn')}$"):
        load_target(path)
    own = Path(onnxcalib.targets.__file__).with_name("qnn.toml")
    assert load_target(own) == load_target("qnn")
