import numpy as np
import pytest

from onnxcalib.graph.index import Index, constant
from onnxcalib.graph.passes.normalise import name_nodes
from onnxcalib.graph.passes.target_shapes import fix_target_shapes

SIZES = {"zero": np.array(0), "one": np.array(1), "front": np.array([0]), "four": np.array([4]), "two": np.array([2])}
SIZES |= {"six": np.array([6]), "rest": np.array([-1]), "shape": np.array([0, 3, 8])}
SIZE = "{i}s = Shape ({of}) {i}g = Gather ({i}s, {axis}) {i}u = Unsqueeze ({i}g, front)"


def size(of, axis="zero", i="a"):
    return SIZE.format(of=of, axis=axis, i=i)


@pytest.fixture
def fix(build, run, draw):
    """Fixes the shapes of a graph, checks its outputs, and gives the target of each Reshape."""

    def fix(nodes, shape="N, 4, 6", batches=(1, 3)):
        model = build(f"g (float[{shape}] x) => (y) {{ {nodes} }}", **SIZES)
        name_nodes(model)
        inputs = [draw(batch, 4, 6) for batch in batches]
        before = [run(model, x)[0] for x in inputs]
        count = fix_target_shapes(model)
        for x, wanted in zip(inputs, before, strict=True):
            assert np.array_equal(run(model, x)[0], wanted)
        index = Index(model.graph)
        targets = [constant(index, node.input[1]) for node in model.graph.node if node.op_type == "Reshape"]
        assert count == sum(target is not None for target in targets)
        return [None if target is None else target.tolist() for target in targets]

    return fix


def test_a_batch_that_is_kept_becomes_0(fix):
    assert fix(f"{size('x')} c = Concat <axis = 0> (au, two, two, six) y = Reshape (x, c)") == [[0, 2, 2, 6]]


def test_a_size_that_is_not_the_inputs_becomes_minus_1(fix):
    nodes = f"t = Transpose <perm = [1, 0, 2]> (x) {size('x')} c = Concat <axis = 0> (four, au, six) y = Reshape (x, c)"
    assert fix(nodes) == [[4, -1, 6]]


def test_two_sizes_that_are_kept_stay_beside_one_that_is_left(fix):
    nodes = f"{size('x')} {size('x', 'one', 'b')} c = Concat <axis = 0> (au, bu, two, rest) y = Reshape (x, c)"
    assert fix(nodes, "N, M, 6") == [[0, 0, 2, -1]]


def test_the_shape_of_one_may_fix_the_next(fix):
    nodes = f"""{size("x")} c = Concat <axis = 0> (au, two, two, six) z = Reshape (x, c)
        {size("z", "one", "b")} {size("z", "zero", "d")} e = Concat <axis = 0> (du, bu, rest) y = Reshape (z, e)"""
    assert fix(nodes) == [[0, 2, 2, 6], [0, 2, -1]]


@pytest.mark.parametrize(
    "nodes",
    [
        f"{size('x')} {size('x', 'one', 'b')} c = Concat <axis = 0> (bu, au, six) y = Reshape (x, c)",
        f"{size('x')} c = Concat <axis = 0> (rest, au) y = Reshape (x, c)",
        "s = Shape (x) c = Concat <axis = 0> (s) y = Reshape (x, c)",
        f"{size('x')} c = Concat <axis = 0> (au, four, six) y = Reshape <allowzero = 1> (x, c)",
    ],
)
def test_a_shape_of_several_unknown_sizes_stays(fix, nodes):
    assert fix(nodes, "N, M, 6") == [None]
