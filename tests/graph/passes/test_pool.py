import numpy as np
import pytest

from onnxcalib.graph.passes.normalise import name_nodes
from onnxcalib.graph.passes.pool import globalise_pools


def model_of(build, node, shape="N, 3, 6, 5", out="a, b, c, d", opset=17, **weights):
    model = build(f"g (float[{shape}] x) => (float[{out}] y) {{ {node} z = Relu (y) }}", opset=opset, **weights)
    name_nodes(model)
    return model


@pytest.mark.parametrize(
    ("node", "opset", "weights"),
    [
        ("y = AveragePool <kernel_shape = [6, 5]> (x)", 17, {}),
        ("y = AveragePool <kernel_shape = [6, 5], strides = [6, 5]> (x)", 21, {}),
        ('y = AveragePool <kernel_shape = [6, 5], auto_pad = "VALID", dilations = [1, 1]> (x)', 21, {}),
        ("y = ReduceMean <axes = [2, 3]> (x)", 17, {}),
        ("y = ReduceMean <axes = [-1, -2], keepdims = 1> (x)", 13, {}),
        ("y = ReduceMean (x, axes)", 18, {"axes": np.int64([2, 3])}),
    ],
)
def test_a_mean_over_all_of_space_becomes_a_global_pool(build, run, draw, node, opset, weights):
    model = model_of(build, node, opset=opset, **weights)
    x = draw(2, 3, 6, 5)
    (before,) = run(model, x)
    assert globalise_pools(model) == 1
    assert model.graph.node[0].op_type == "GlobalAveragePool" and model.graph.node[0].input == ["x"]
    np.testing.assert_allclose(run(model, x)[0], before, rtol=1e-5, atol=1e-6)
    assert globalise_pools(model) == 0


@pytest.mark.parametrize("shape", ["N, 3, 6, 5", "N, 3, h, w", "N, 3, 7", "N, 3, 4, 5, 6"])
def test_a_mean_that_drops_its_axes_is_flattened_behind(build, run, draw, shape):
    rank = shape.count(",") + 1
    model = model_of(build, f"y = ReduceMean <axes = {list(range(2, rank))}, keepdims = 0> (x)", shape, "a, b")
    name = model.graph.node[0].name
    x = (
        draw(*[4, 3, 6, 5, 7][:rank])
        if "h" in shape
        else draw(*(int(d) if d.isdigit() else 4 for d in shape.split(", ")))
    )
    (before,) = run(model, x)
    assert globalise_pools(model) == 1
    assert [(n.op_type, n.name) for n in model.graph.node[:2]] == [
        ("GlobalAveragePool", name),
        ("Flatten", f"{name}_Flatten"),
    ]
    (after,) = run(model, x)
    assert after.shape == before.shape
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("node", "shape"),
    [
        ("y = AveragePool <kernel_shape = [3, 5]> (x)", "N, 3, 6, 5"),
        ("y = AveragePool <kernel_shape = [6, 5], pads = [1, 1, 1, 1]> (x)", "N, 3, 6, 5"),
        ('y = AveragePool <kernel_shape = [6, 5], auto_pad = "SAME_UPPER"> (x)', "N, 3, 6, 5"),
        ("y = AveragePool <kernel_shape = [6, 5]> (x)", "N, 3, h, 5"),
        ("y = ReduceMean <axes = [1, 2]> (x)", "N, 3, 6, 5"),
        ("y = ReduceMean <axes = [3]> (x)", "N, 3, 6, 5"),
        ("y = ReduceMean (x)", "N, 3, 6, 5"),
        ("y = ReduceMean <axes = [1]> (x)", "N, 3"),
        ("y = ReduceMax <axes = [2, 3]> (x)", "N, 3, 6, 5"),
        ("y = com.example.ReduceMean <axes = [2, 3]> (x)", "N, 3, 6, 5"),
    ],
)
def test_other_means_stay(build, node, shape):
    model = model_of(build, node, shape)
    before = model.SerializeToString(deterministic=True)
    assert globalise_pools(model) == 0
    assert model.SerializeToString(deterministic=True) == before


def test_a_mean_of_integers_stays(build):
    model = build("g (int32[N, 3, 6, 5] x) => (int32[a, b, c, d] y) { y = ReduceMean <axes = [2, 3]> (x) }")
    assert globalise_pools(model) == 0
