"""Blocks of small graphs; ``conv(t)`` in a body is a 1x1 convolution of 4 channels that keeps the size."""

import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxcalib.graph.blocks import find_blocks, single_layers
from onnxcalib.graph.index import Index
from onnxcalib.graph.passes.normalise import name_nodes
from onnxcalib.graph.residuals import MOST_LAYERS
from onnxcalib.graph.scheme import make_scheme

WEIGHT = np.zeros((4, 4, 1, 1), np.float32)


@pytest.fixture
def model_of(build):
    def make(body, outputs="float[N, a, h, w] y", **constants):
        body = re.sub(r"conv ?\((\w+)\)", r"Conv (\1, weight)", body)
        model = build(f"g (float[N, 4, 8, 8] x) => ({outputs}) {{ {body} }}", weight=WEIGHT, **constants)
        for node in model.graph.node:
            node.name = node.output[0]
        return model

    return make


def list_blocks(model):
    """Blocks with layers, each as its node names."""
    return [block.nodes for block in find_blocks(model, make_scheme(model)) if block.layers]


def check_order(model, blocks, given):
    """Each block reads only what is given or earlier blocks give, and gives what others read."""
    index, known = Index(model.graph), set(given)
    for block in blocks:
        nodes = [n for n in model.graph.node if n.name in block.nodes]
        assert [n.name for n in nodes] == list(block.nodes)
        made = {t for n in nodes for t in n.output}
        read = {t for n in nodes for t in n.input} - made - set(index.initializers)
        assert read == set(block.inputs) and read <= known
        left = {t for t in made if t in index.outputs or any(n.name not in block.nodes for n in index.readers(t))}
        assert left == set(block.outputs)
        known |= left
    assert set(index.outputs) <= known


@st.composite
def graphs(draw):
    """A random graph of convolutions, activations and joins, all tensors of one shape."""
    nodes, tensors = [], ["x"]
    for i in range(draw(st.integers(1, 18))):
        op = draw(st.sampled_from(["Conv", "Conv", "Relu", "Sigmoid", "Add", "Mul", "Add"]))
        inputs = [draw(st.sampled_from(tensors[-6:])) for _ in range(2 if op in ("Add", "Mul") else 1)]
        if op == "Conv":
            inputs.append("weight")
        elif op == "Add" and draw(st.integers(0, 4)) == 0:
            inputs[1] = "offset"
        nodes.append(helper.make_node(op, inputs, [f"t{i}"]))
        tensors.append(f"t{i}")
    nodes.append(helper.make_node("Conv", [tensors[-1], "weight"], ["y"]))
    read = {t for n in nodes for t in n.input}
    outputs = ["y", *(t for t in tensors[1:] if t not in read or draw(st.integers(0, 9)) == 0)]
    infos = [helper.make_tensor_value_info(t, TensorProto.FLOAT, ["N", 4, 8, 8]) for t in ("x", *outputs)]
    constants = [numpy_helper.from_array(WEIGHT, "weight"), numpy_helper.from_array(np.ones(1, np.float32), "offset")]
    model = helper.make_model(helper.make_graph(nodes, "g", infos[:1], infos[1:], constants))
    name_nodes(model)
    return model


@settings(max_examples=300, deadline=None)
@given(model=graphs())
def test_blocks_cover_every_node_once_in_an_order_that_can_be_run(model):
    scheme = make_scheme(model)
    blocks = find_blocks(model, scheme)
    covered = [name for block in blocks for name in block.nodes]
    assert sorted(covered) == sorted(n.name for n in model.graph.node)
    assert sorted(name for block in blocks for name in block.layers) == sorted(layer.name for layer in scheme.layers)
    assert len({block.name for block in blocks}) == len(blocks)
    check_order(model, blocks, ["x"])
    assert not any(a.layers == b.layers == () for a, b in pairwise(blocks))


@settings(max_examples=200, deadline=None)
@given(model=graphs())
def test_a_block_taken_apart_has_one_layer_a_part_in_an_order_that_can_be_run(model):
    scheme = make_scheme(model)
    whole = Index(model.graph)
    for block in find_blocks(model, scheme):
        parts = single_layers(model, scheme, block)
        assert sorted(name for part in parts for name in part.nodes) == sorted(block.nodes)
        assert all(len(part.layers) <= 1 for part in parts)
        given_ = set(block.inputs)
        for part in parts:
            assert set(part.inputs) <= given_
            given_ |= set(part.outputs)
        assert set(block.outputs) <= given_ <= {*whole.producer, "x"}


def test_a_chain_is_taken_layer_by_layer_with_its_activations(model_of):
    model = model_of(
        "a = conv(x) b = Relu (a) c = conv(b) d = Tanh (c) e = MaxPool <kernel_shape = [1, 1]> (d) y = conv(e)"
    )
    assert list_blocks(model) == [("a", "b"), ("c", "d"), ("y",)]


def test_a_residual_block_is_found_with_its_add_and_activation(model_of):
    body = "a = conv(x) r = Relu (a) b = conv(r) s = Relu (b) c = conv(s) t = Add (c, r) u = Relu (t) y = conv(u)"
    assert list_blocks(model_of(body)) == [("a", "r"), ("b", "s", "c", "t", "u"), ("y",)]


def test_a_residual_block_contains_the_layer_on_its_shortcut(model_of):
    body = "a = conv(x) b = conv(a) c = conv(b) d = conv(a) t = Add (c, d) y = conv(t)"
    assert list_blocks(model_of(body)) == [("a",), ("b", "c", "d", "t"), ("y",)]


def test_the_gate_of_a_residual_block_belongs_to_it(model_of):
    body = """a = conv(x) b = conv(a) g = GlobalAveragePool (b) h = conv(g) i = Sigmoid (h) j = Mul (b, i)
              t = Add (j, a) y = conv(t)"""
    assert list_blocks(model_of(body)) == [("a",), ("b", "g", "h", "i", "j", "t"), ("y",)]


def test_of_nested_residuals_the_inner_one_is_the_block(model_of):
    body = "a = conv(x) b = conv(a) c = conv(b) t = Add (c, b) d = conv(t) u = Add (d, a) y = conv(u)"
    model = model_of(body)
    assert list_blocks(model) == [("a",), ("b",), ("c", "t"), ("d",), ("y",)]
    check_order(model, find_blocks(model, make_scheme(model)), ["x"])


def test_a_long_skip_falls_to_single_layers(model_of):
    count = MOST_LAYERS + 1
    chain = " ".join(f"l{i} = conv({f'l{i - 1}' if i else 'a'})" for i in range(count))
    model = model_of(f"a = conv(x) {chain} t = Add (l{count - 1}, a) y = conv(t)")
    assert list_blocks(model) == [("a",), *((f"l{i}",) for i in range(count)), ("y",)]
    shorter = model_of(f"a = conv(x) {chain} t = Add (l{count - 1}, l0) y = conv(t)")
    assert len(list_blocks(shorter)) == 4


def test_the_skips_of_a_u_net_do_not_make_one_block_of_it(model_of):
    body = """a = conv(x) p = MaxPool <kernel_shape = [1, 1]> (a) b = conv(p) q = MaxPool <kernel_shape = [1, 1]> (b)
              c = conv(q) d = conv(c) e = conv(d) f = conv(e) s = Add (f, b) g = conv(s) h = conv(g) i = conv(h)
              t = Add (i, a) y = conv(t)"""
    model = model_of(body)
    assert ("c", "d", "e", "f", "q", "s") not in list_blocks(model)
    assert max(len(block.layers) for block in find_blocks(model, make_scheme(model))) <= MOST_LAYERS
    check_order(model, find_blocks(model, make_scheme(model)), ["x"])


def test_an_add_of_tensors_from_different_inputs_is_no_residual(build):
    model = build(
        """g (float[N, 4, 8, 8] x, float[N, 4, 8, 8] z) => (float[N, 4, 8, 8] y)
           { [a] a = Conv (x, weight) [b] b = Conv (z, weight) [t] t = Add (a, b) [y] y = Conv (t, weight) }""",
        weight=WEIGHT,
    )
    assert list_blocks(model) == [("a",), ("b",), ("y",)]


def test_an_add_of_a_constant_is_no_residual_but_part_of_its_layer(model_of):
    model = model_of("a = conv(x) b = Add (a, three) y = conv(b)", three=np.float32(3))
    assert list_blocks(model) == [("a", "b"), ("y",)]


@pytest.mark.parametrize(
    ("body", "nodes"),
    [
        ("a = conv(x) s = Sigmoid (a) b = Mul (a, s) y = conv(b)", ("a", "s", "b")),
        ("a = conv(x) h = Add (a, k) r = Clip (h, zero, six) m = Mul (a, r) b = Div (m, six) y = conv(b)", "ahrmb"),
        ("a = conv(x) b = Softplus (a) c = Tanh (b) d = Mul (a, c) y = conv(d)", "abcd"),
        ("a = conv(x) b = Mul (x, a) y = conv(b)", "a"),
    ],
)
def test_a_composed_activation_stays_with_its_layer(model_of, body, nodes):
    constants = {"k": np.float32(3), "zero": np.float32(0), "six": np.float32(6)}
    used = {k: v for k, v in constants.items() if re.search(rf"\b{k}\b", body)}
    assert list_blocks(model_of(body, **used))[0] == tuple(nodes)


def test_an_unused_optional_output_does_not_confuse_the_search(build):
    model = build(
        """g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) {
            [a] a = Conv (x, weight)  [m] m, n = MaxPool <kernel_shape = [1, 1]> (a)
            [b] b = Conv (m, weight)  [t] t = Add (b, m)  [y] y = Conv (t, weight) }""",
        weight=WEIGHT,
    )
    model.graph.node[1].output[1] = ""
    assert list_blocks(model) == [("a",), ("b", "t"), ("y",)]


def test_single_layers_of_a_residual_block(model_of):
    body = "a = conv(x) b = conv(a) r = Relu (b) c = conv(r) t = Add (c, a) u = Relu (t) y = conv(u)"
    model = model_of(body)
    scheme = make_scheme(model)
    block = next(b for b in find_blocks(model, scheme) if len(b.layers) == 2)
    parts = single_layers(model, scheme, block)
    assert [(p.nodes, p.inputs, p.outputs, p.layers) for p in parts] == [
        (("b", "r"), ("a",), ("r",), ("b",)),
        (("c",), ("r",), ("c",), ("c",)),
        (("t", "u"), ("c", "a"), ("u",), ()),
    ]


ATTENTION = """
    h = Relu (x)
    k = conv(h) q = conv(h) s = Mul (k, q) m = Add (s, mask) p = Softmax (m) o = conv(p)
    r = Add (o, h) n = Clip (r) f = conv(n) g = Relu (f) e = conv(g) t = Add (n, e) y = Sigmoid (t)
"""


def test_a_region_into_which_a_mask_comes_is_found_from_the_operands_of_its_add(build):
    body = re.sub(r"conv ?\((\w+)\)", r"Conv (\1, weight)", ATTENTION)
    text = f"g (float[N, 4, 8, 8] x, float[N, 4, 8, 8] mask) => (float[N, 4, 8, 8] y) {{ {body} }}"
    model = build(text, weight=WEIGHT)
    for node in model.graph.node:
        node.name = node.output[0]
    blocks = find_blocks(model, make_scheme(model))
    check_order(model, blocks, ["x", "mask"])
    assert [b.nodes for b in blocks if b.layers] == [
        ("k", "q", "s", "m", "p", "o", "r", "n"),
        ("f", "g", "e", "t", "y"),
    ]
    assert set(blocks[1].inputs) == {"h", "mask"}


def test_a_norm_behind_an_add_belongs_to_its_block(model_of):
    body = "a = conv(x) b = conv(a) c = Add (b, a) n = LayerNormalization <axis = 1> (c, gain) y = conv(n)"
    assert list_blocks(model_of(body, gain=np.ones((4, 8, 8), np.float32))) == [("a",), ("b", "c", "n"), ("y",)]


def test_regions_that_would_wait_for_each_other_are_not_both_taken(build):
    # Each Add reads, beside its own way, what stands in the middle of the other's.
    body = """
        e = Relu (x) f = Tanh (z)
        a = conv(e) b = conv(f)
        c = Mul (a, d) d = Mul (b, u) i = conv(c) y = Add (i, e)
        j = Mul (d, a) k = conv(j) w = Add (k, f)
    """
    text = """g (float[N, 4, 8, 8] x, float[N, 4, 8, 8] z, float[N, 4, 8, 8] u)
        => (float[N, 4, 8, 8] y, float[N, 4, 8, 8] w) { %s }"""
    body = body.replace("c = Mul (a, d) d = Mul (b, u)", "d = Mul (b, u) c = Mul (a, d)")
    model = build(text % re.sub(r"conv ?\((\w+)\)", r"Conv (\1, weight)", body), weight=WEIGHT)
    for node in model.graph.node:
        node.name = node.output[0]
    blocks = find_blocks(model, make_scheme(model))
    check_order(model, blocks, ["x", "z", "u"])
    assert sorted(len(b.layers) for b in blocks if b.layers) == [1, 1, 2]


def test_the_work_grows_with_the_graph_and_not_with_its_square(model_of, count_lines):
    def work(count):
        blocks = " ".join(
            f"b{i} = conv(a{i}) c{i} = Relu (b{i}) d{i} = conv(c{i}) e{i} = Add (d{i}, a{i}) a{i + 1} = Relu (e{i})"
            for i in range(count)
        )
        model = model_of(f"a0 = conv(x) {blocks} y = conv(a{count})")
        scheme, index = make_scheme(model), Index(model.graph)
        found = find_blocks(model, scheme, index=index)
        assert sum(len(block.layers) == 2 for block in found) == count
        return (
            count_lines(lambda: find_blocks(model, scheme, index=index)),
            count_lines(lambda: [single_layers(model, scheme, block, index=index) for block in found]),
        )

    for once, twice in zip(work(20), work(40), strict=True):
        assert twice < 2.2 * once


@pytest.mark.parametrize("skip", ["a0", "a{i}", "a{before}"], ids=["all skips from one", "residual", "of two before"])
def test_adds_without_layers_are_passed_over_in_linear_work(model_of, count_lines, skip):
    def work(count):
        adds = [f"a{i + 1} = Add (a{i}, {skip.format(i=i, before=max(0, i - 1))})" for i in range(count)]
        model = model_of(f"a0 = MaxPool <kernel_shape = [1, 1]> (x) {' '.join(adds)} y = conv(a{count})")
        scheme = make_scheme(model)
        return count_lines(lambda: find_blocks(model, scheme))

    assert work(80) < 2.2 * work(40)
