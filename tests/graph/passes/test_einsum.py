"""Einsums that are products of matrices become MatMuls, which compute the same; others stay."""

import numpy as np
import pytest

from onnxcalib.graph.edit import drop_dead
from onnxcalib.graph.index import Index
from onnxcalib.graph.layers import find_layers
from onnxcalib.graph.passes.einsum import einsum_as_matmul
from onnxcalib.graph.passes.normalise import name_nodes
from onnxcalib.graph.passes.products import products_as_layers

SIZES = dict(zip("bnthidejkqo", (2, 3, 4, 2, 6, 3, 5, 4, 3, 5, 2), strict=True))


def make(build, draw, equation, constant):
    """A model of one Einsum whose operand number ``constant``, if it is not None, is a constant, and its inputs."""
    operands = equation.replace(" ", "").partition("->")[0].split(",")
    values = [draw(*(SIZES[letter.lower()] for letter in operand)) for operand in operands]
    names = [f"o{number}" for number in range(len(operands))]
    inputs = [number for number in range(len(operands)) if number != constant]
    spelled = ", ".join(f"float[{','.join(letter.upper() for letter in operands[i])}] o{i}" for i in inputs)
    fixed = {} if constant is None else {f"o{constant}": values[constant]}
    body = f'{{ [own] y = Einsum <equation = "{equation}"> ({", ".join(names)}) }}'
    return build(f"g ({spelled}) => (float y) {body}", **fixed), [values[i] for i in inputs]


def rewrite(model):
    name_nodes(model)
    count = einsum_as_matmul(model)
    drop_dead(model)
    return count, " ".join(node.op_type for node in model.graph.node)


@pytest.mark.parametrize(
    ("equation", "constant", "ops"),
    [
        ("bij,jk->bik", 1, "MatMul"),
        ("jk,bij->bik", 0, "MatMul"),
        ("nti,ihd->nthd", 1, "MatMul Reshape"),
        ("nthd,hdi->nti", 1, "Reshape MatMul"),
        ("nthd,dhi->nti", 1, "Reshape MatMul"),
        ("nhtd,hdi->nti", 1, "Transpose Reshape MatMul"),
        ("nti,ihd->nhtd", 1, "MatMul Reshape Transpose"),
        ("bi, oi", 1, "MatMul"),
        ("bti,i->bt", 1, "MatMul Squeeze"),
        ("nec,ecd->ned".replace("c", "k"), 1, "Unsqueeze MatMul Squeeze"),
        ("netk,ekd->netd", 1, "MatMul"),
        ("ntek,ekd->nted", 1, "Transpose MatMul Transpose"),
        ("bhqd,bhkd->bhqk", None, "Transpose MatMul"),
        ("bqhd,bkhd->bhqk", None, "Transpose Transpose MatMul"),
        ("bhqk,bkhd->bqhd", None, "Transpose MatMul Transpose"),
        ("ij,jk->ik", None, "MatMul"),
    ],
)
def test_a_product_of_matrices_is_a_matmul_of_its_name_and_gives_the_same(build, run, draw, equation, constant, ops):
    model, inputs = make(build, draw, equation, constant)
    (before,) = run(model, *inputs)
    assert rewrite(model) == (1, ops)
    (after,) = run(model, *inputs)
    assert after.shape == before.shape
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)
    assert next(node for node in model.graph.node if node.op_type == "MatMul").name == "own"
    if constant is not None and sum(letter in equation for letter in "e") == 0:
        assert [layer.name for layer in find_layers(model, Index(model.graph), 8, 8)] == ["own"]


def test_a_stack_of_matrices_becomes_a_layer(build, run, draw):
    model, inputs = make(build, draw, "nek,ekd->ned", 1)
    for value, size in zip(model.graph.input[0].type.tensor_type.shape.dim, inputs[0].shape, strict=True):
        value.dim_value = size
    (before,) = run(model, *inputs)
    rewrite(model)
    assert products_as_layers(model) == ["own"]
    np.testing.assert_allclose(run(model, *inputs)[0], before, rtol=1e-5, atol=1e-6)
    assert [layer.op for layer in find_layers(model, Index(model.graph), 8, 8)] == ["Conv"]


@pytest.mark.parametrize(
    ("equation", "constant"),
    [
        ("bi,oi->bio", 1),  # no sum
        ("bij,jk->ik", 1),  # a sum over an axis of one operand
        ("bii,ik->bk", 1),  # a diagonal
        ("bij,jk,ko->bio", 1),  # three operands
        ("bhi,bhi->bh", None),
        ("nhedk,hedk->nhe", 1),  # two batch axes and more
    ],
)
def test_other_einsums_stay(build, draw, equation, constant):
    model, _ = make(build, draw, equation, constant)
    assert rewrite(model) == (0, "Einsum")


@pytest.mark.parametrize(
    ("equation", "one", "other", "constant", "ops"),
    [
        ("...j,jk->...k", "2, 5, 4", (4, 3), True, "MatMul"),
        ("...j,jk", "2, 5, 4", (4, 3), True, "MatMul"),
        ("...ij,kj->...ik", "4, 4", (3, 4), True, "MatMul"),
        ("j...,jk->...k", "4, 2, 5", (4, 3), True, "Transpose MatMul"),
        ("...ij,...jk->...ik", "2, 3, 5, 4", (2, 3, 4, 6), False, "MatMul"),
        ("...ij,...jk->...ik", "2, 3, 5, 4", (1, 3, 4, 6), False, "MatMul"),
    ],
)
def test_an_ellipsis_stands_for_the_axes_that_are_left(build, run, draw, equation, one, other, constant, ops):
    second = f", float[{', '.join(map(str, other))}] w" if not constant else ""
    weights = {"w": draw(*other)} if constant else {}
    model = build(
        f'g (float[{one}] x{second}) => (float y) {{ [own] y = Einsum <equation = "{equation}"> (x, w) }}', **weights
    )
    inputs = [draw(*map(int, one.split(","))), *([] if constant else [draw(*other)])]
    (before,) = run(model, *inputs)
    assert rewrite(model) == (1, ops)
    np.testing.assert_allclose(run(model, *inputs)[0], before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("equation", "shape", "other"),
    [
        ("...ij,...jk->...ik", "[2, 3, 5, 4]", "[3, 4, 6]"),  # broadcast along an axis that one operand lacks
        ("...j,jk->...k", "", "[4, 3]"),  # of unknown rank
    ],
)
def test_an_ellipsis_of_other_axes_stays(build, equation, shape, other):
    text = f'g (float{shape} x, float{other} w) => (float y) {{ y = Einsum <equation = "{equation}"> (x, w) }}'
    assert rewrite(build(text)) == (0, "Einsum")
