"""Which nodes settings name, and in which words a name that fits none is refused."""

import numpy as np
import pytest

from onnxcalib.config import LayerConfig, QuantizeConfig
from onnxcalib.errors import ConfigError
from onnxcalib.graph.names import Selection, match_names, resolve_names

NAMES = ["conv1", "conv2", "block.conv", "relu+"]
NET = """g (float[N, 4] x, float[4, 4] k) => (float[N, 4] y) {
    [fc1] a = MatMul (x, w)  [relu] r = Relu (a)  [fc2] b = Gemm (r, w)  [pair] y = MatMul (b, k)
}"""


@pytest.fixture
def net(build):
    return build(NET, w=np.eye(4, dtype=np.float32))


def select(net, **settings):
    return resolve_names(net, QuantizeConfig(**settings))


def test_settings_that_name_nothing_select_nothing(net):
    assert select(net) == Selection(frozenset(), ())


def test_a_name_is_taken_as_it_is_before_it_is_an_expression():
    assert match_names("block.conv", [*NAMES, "block_conv"], "none") == ["block.conv"]
    assert match_names("relu+", [*NAMES, "reluu"], "none") == ["relu+"]


def test_an_expression_matches_whole_names_in_their_order():
    assert match_names("conv.", NAMES, "none") == ["conv1", "conv2"]
    assert match_names("relu.|block.*", NAMES, "none") == ["block.conv", "relu+"]


@pytest.mark.parametrize(
    ("pattern", "names", "text"),
    [
        ("conv", NAMES, "and as a regular expression it matches none; did you mean 'conv"),
        ("xyz", NAMES, "and as a regular expression it matches none; there are conv1, conv2, block.conv..."),
        ("xyz", [], "and as a regular expression it matches none; the graph has none"),
        ("conv(", NAMES, "and it is no regular expression (missing ), unterminated subpattern at position 4)"),
    ],
)
def test_what_matches_nothing_is_refused_with_what_there_is(pattern, names, text):
    with pytest.raises(ConfigError) as refusal:
        match_names(pattern, names, "exclude: no node")
    assert str(refusal.value).startswith(f"exclude: no node has this name, {text}")


def test_excluded_nodes_are_of_any_kind(net):
    assert select(net, exclude=["relu", "fc."]).excluded == {"relu", "fc1", "fc2"}
    assert select(net, exclude="pair").excluded == {"pair"}


def test_a_layer_can_be_excluded_in_its_own_table(net):
    found = select(net, exclude=["fc1"], layers={"relu": {"exclude": True}})
    assert found.excluded == {"fc1", "relu"} and found.settings("relu").exclude
    assert select(net, layers={"fc1": {"exclude": False}}).excluded == set()


def test_bits_go_to_the_layers_that_an_expression_matches_and_that_have_a_weight(net):
    found = select(net, layers={".*": {"weight_bits": 4}})
    assert [name for name, _ in found.layers] == ["fc1", "fc2"]
    assert found.settings("fc2") == LayerConfig(weight_bits=4) and found.settings("pair") == LayerConfig()


def test_the_last_entry_that_names_a_layer_counts(net):
    tables = {"fc.": {"weight_bits": 4}, "fc1": {"activation_bits": 4}}
    found = select(net, layers=tables)
    assert (found.settings("fc1"), found.settings("fc2")) == (
        LayerConfig(activation_bits=4),
        LayerConfig(weight_bits=4),
    )
    assert select(net, layers=dict(reversed(tables.items()))).settings("fc1") == LayerConfig(weight_bits=4)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"exclude": ["relv"]}, "exclude: 'relv': no node has this name, .* did you mean 'relu'?"),
        ({"layers": {"relv": {"exclude": True}}}, "layers: 'relv': no node has this name, .* did you mean 'relu'?"),
        (
            {"layers": {"fc3": {"weight_bits": 4}}},
            "layers: 'fc3': no node with a constant weight has this name, .* did you mean 'fc",
        ),
        ({"layers": {"relu": {"weight_bits": 4}}}, "layers: 'relu': no node with a constant weight has this name"),
        ({"layers": {"pair": {"weight_bits": 4}}}, "layers: 'pair': no node with a constant weight has this name"),
    ],
)
def test_names_of_nothing_are_refused_with_the_setting_and_the_nearest_name(net, settings, text):
    with pytest.raises(ConfigError, match=text):
        select(net, **settings)


def test_a_node_that_preparation_folds_is_refused_as_such(net):
    with pytest.raises(ConfigError, match=r"node 'norm': found to be folded into others by preparation; .* beside it"):
        resolve_names(net, QuantizeConfig(exclude="norm"), before=["norm", "a"])
