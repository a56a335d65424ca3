"""Which nodes settings select, and in which words a selector that fits none is refused."""

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
        ("conv(", NAMES, "and it is no regular expression (unclosed group)"),
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


BRANCHES = """g (float[N, 4] x) => (float[N, 4] y) {
    [stem] s = MatMul (x, w)  [act] r = Relu (s)
    [left] a = MatMul (r, w)  [right] b = MatMul (r, w)  [gate] c = Sigmoid (b)  [join] d = Mul (a, c)
    [prob] p = Softmax (d)  [head] y = Gemm (p, w)
}"""


@pytest.fixture
def branches(build):
    return build(BRANCHES, w=np.eye(4, dtype=np.float32))


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("op:Softmax", {"prob"}),
        ("op: MatMul", {"stem", "left", "right"}),
        ("op:MatMul|Gemm", {"stem", "left", "right", "head"}),
        ("op:S.*", {"gate", "prob"}),
        ("between:s -> r", {"act"}),
        ("between:r->d", {"left", "right", "gate", "join"}),
        ("between:b -> d", {"gate", "join"}),
        ("between:x -> y", {"stem", "act", "left", "right", "gate", "join", "prob", "head"}),
        ("between:b, a -> d", {"gate", "join"}),
        ("between: r -> a, c", {"left", "right", "gate"}),
    ],
)
def test_nodes_are_selected_by_type_and_between_tensors(branches, selector, names):
    assert select(branches, exclude=selector).excluded == names
    assert select(branches, layers={selector: {"exclude": True}}).excluded == names


def test_bits_by_type_or_between_tensors_go_to_nodes_with_a_weight_and_the_last_entry_counts(branches):
    tables = {
        "op:MatMul": {"weight_bits": 4},
        "between:r -> d": {"activation_bits": 4},
        "right": {"weight_bits": 8},
    }
    found = select(branches, layers=tables)
    assert found.settings("stem") == LayerConfig(weight_bits=4) and found.settings("left").activation_bits == 4
    assert found.settings("right") == LayerConfig(weight_bits=8) and found.settings("head") == LayerConfig()
    assert {name for name, _ in found.layers} == {"stem", "left", "right"} and not found.excluded


def test_a_node_with_the_name_of_a_selector_is_selected_by_its_name(build):
    net = build(BRANCHES, w=np.eye(4, dtype=np.float32))
    net.graph.node[1].name, net.graph.node[4].name = "op:MatMul", "between:x -> y"
    assert select(net, exclude=["op:MatMul", "between:x -> y"]).excluded == {"op:MatMul", "between:x -> y"}


def test_a_tensor_may_have_a_comma_in_its_name(branches):
    for node in branches.graph.node:
        for field in (node.input, node.output):
            field[:] = ["r, 1" if name == "r" else name for name in field]
    assert select(branches, exclude="between:r, 1 -> a").excluded == {"left"}


def test_a_subgraph_holds_nodes_whose_bodies_read_its_tensors(build):
    net = build("""g (float[N, 4] x, bool c) => (float[N, 4] y) {
        [first] a = Relu (x)
        [branch] b = If (c) <then_branch = t () => (float[N, 4] u) { u = Neg (a) },
                             else_branch = e () => (float[N, 4] v) { v = Abs (a) }>
        [last] y = Relu (b)
    }""")
    assert select(net, exclude="between:a -> y").excluded == {"branch", "last"}


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"exclude": "op:Sofmax"}, "exclude: 'op:Sofmax': no node has this type, .*; did you mean 'op:Softmax'?"),
        ({"exclude": "op:MATMUL"}, "exclude: 'op:MATMUL': no node has this type, .*; did you mean 'op:MatMul'?"),
        ({"exclude": "op:("}, r"exclude: 'op:\(': no node has this type, and it is no regular expression"),
        (
            {"layers": {"op:Softmax": {"weight_bits": 4}}},
            "layers: 'op:Softmax': no node with a constant weight has this type, .* there are MatMul, Gemm...",
        ),
        ({"exclude": "between:r"}, "exclude: 'between:r': found no tensors around an arrow; write 'between:A -> B'"),
        ({"exclude": "between: -> d"}, "found no tensors around an arrow"),
        (
            {"exclude": "between:input -> d"},
            "exclude: 'between:input -> d': no tensor has the name 'input'; there are",
        ),
        ({"exclude": "between:w -> d"}, "no tensor has the name 'w'"),
        ({"exclude": "between:d -> r"}, "no path leads from d to r; data flow from the left to the right; choose"),
        ({"exclude": "between:a -> c"}, "no path leads from a to c;"),
        ({"exclude": "between:b, a -> c"}, "no path leads from a to c;"),
        ({"exclude": "between:b -> b"}, "no path leads from b to b;"),
        (
            {"layers": {"between:b -> d": {"weight_bits": 4}}},
            "layers: 'between:b -> d': no node with a constant weight is on the paths; they hold gate, join; choose",
        ),
    ],
)
def test_types_and_subgraphs_of_nothing_are_refused(branches, settings, text):
    with pytest.raises(ConfigError, match=text):
        select(branches, **settings)


def test_the_nearest_tensor_is_named(build):
    net = build("g (float[N] pixels) => (float[N] scores) { [a] scores = Relu (pixels) }")
    with pytest.raises(ConfigError, match=r"no tensor has the name 'pixel'; did you mean 'pixels'\?$"):
        select(net, exclude="between:pixel -> scores")


BEFORE = "g (float[N, 4] x) => (float[N, 4] y) { [norm] a = Identity (x)  [fc1] y = Relu (a) }"


@pytest.mark.parametrize("name", ["[up] ", ""])
def test_a_type_selects_nodes_that_preparation_wrote_as_another(build, name):
    text = "g (float[N, 1, 4, 4] x) => (float[N, 1, h, w] y) {{ {} y = {} (x, k) }}"
    weight = np.zeros((1, 1, 2, 2), np.float32)
    before, after = (build(text.format(name, op), k=weight) for op in ("ConvTranspose", "Conv"))
    after.graph.node[0].name = after.graph.node[0].name or "ConvTranspose_y"
    for op in ("ConvTranspose", "Conv"):
        found = resolve_names(after, QuantizeConfig(exclude=f"op:{op}"), before=before)
        assert found.excluded == {after.graph.node[0].name}


@pytest.mark.parametrize(
    ("selector", "text"),
    [
        ("norm", "node 'norm': found to be merged into another node before quantization; .* beside it"),
        ("op:Identity", "exclude: 'op:Identity': found no Identity behind preparation, .* beside it"),
        ("between:q -> y", "exclude: 'between:q -> y': tensor 'q': found to be folded by preparation; .* behind it"),
    ],
)
def test_what_preparation_folds_is_refused_as_such(net, build, selector, text):
    before = build(BEFORE.replace(" a = ", " q = ").replace("(a)", "(q)"))
    with pytest.raises(ConfigError, match=text):
        resolve_names(net, QuantizeConfig(exclude=selector), before=before)


def test_a_table_has_settings_by_its_own_name_and_by_no_expression(build):
    text = """g (int64[N] i) => (float[N, 4] y) { [look] x = Gather (t, i)  [fc] y = MatMul (x, w) }"""
    model = build(text, w=np.eye(4, dtype=np.float32), t=np.eye(4, dtype=np.float32))
    assert [name for name, _ in select(model, layers={"look": {"weight_bits": 4}}).layers] == ["look"]
    assert [name for name, _ in select(model, layers={".*": {"weight_bits": 4}}).layers] == ["fc"]
