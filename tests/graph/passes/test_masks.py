import numpy as np
import pytest

from onnxcalib.graph.passes.fold import fold_constants
from onnxcalib.graph.passes.masks import write_masks
from onnxcalib.graph.passes.normalise import normalise
from onnxcalib.graph.values import Place, refer

TOKENS = 6
HEAD = "g (float[2, 3, 6, 6] s, {type}[2, 6] mask) => (float[2, 3, 6, 6] y) <"
FLOATS = "float one = {1.0}, float zero = {0.0}, float least = {-3.4028234663852886e38}, float far = {-10000.0},"
SHAPES = "int64[4] row = {2, 1, 1, 6}, int64[4] full = {2, 1, 6, 6}, int64[1] at = {1}, int64[2] axes = {1, 2}"
NOT = "f = Cast <to = 1> (mask) u = Unsqueeze (f, axes) n = Sub (one, u)"
# What transformers wrote over the years, and what a hand would write.
SPELLINGS = {
    "one minus": f"{NOT} m = Mul (n, far) a = Add (s, m)",
    "least": f"{NOT} m = Mul (n, least) a = Add (m, s)",
    "expanded": """b = Cast <to = 9> (mask) u = Reshape (b, row) e = Expand (u, full) c = And (e, always)
        m = Where (c, zero, least) a = Add (s, m)""",
    "filled": """f = Cast <to = 1> (mask) u = Reshape (f, row) e = Expand (u, full) n = Sub (one, e)
        b = Cast <to = 9> (n) m = Where (b, least, n) a = Add (s, m)""",
    "masked fill": "b = Cast <to = 9> (mask) u = Reshape (b, row) n = Not (u) a = Where (n, least, s)",
    "kept": "b = Cast <to = 9> (mask) u = Reshape (b, row) a = Where (u, s, least)",
}


def build_masked(build, text, kind="int64", **weights):
    head = HEAD.replace("{type}", kind) + FLOATS + SHAPES + "> {"
    weights = {"always": np.ones((1, 1, TOKENS, 1), bool), **weights}
    model = build(f"{head} {text} y = Softmax <axis = -1> (a) }}", **weights)
    normalise(model)
    fold_constants(model)
    return model


def draw_feeds(draw, dtype=np.int64):
    mask = np.array([[1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 1, 0]])
    return draw(2, 3, TOKENS, TOKENS) * 4, mask.astype(dtype)


@pytest.mark.parametrize("kind", ["int64", "int32", "bool", "float"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_mask_becomes_four_nodes_however_it_is_spelled(build, run, draw, spelling, kind):
    model = build_masked(build, SPELLINGS[spelling], kind)
    feeds = draw_feeds(draw, {"float": np.float32}.get(kind, kind))
    (before,) = run(model, *feeds)
    assert write_masks(model, -1000.0) == 1
    ops = [node.op_type for node in model.graph.node]
    assert ops == [*(["Cast"] if kind != "float" else []), "Sub", "Mul", "Reshape", "Add", "Softmax"]
    np.testing.assert_allclose(run(model, *feeds)[0], before, rtol=0, atol=1e-6)


def test_a_mask_of_constants_that_lie_in_a_file_is_found(build, tmp_path):
    model = build_masked(build, SPELLINGS["expanded"])
    (always,) = (tensor for tensor in model.graph.initializer if tensor.name == "always")
    (tmp_path / "w").write_bytes(always.raw_data)
    refer(always, Place(tmp_path / "w", 0, TOKENS))
    assert write_masks(model, -1000.0) == 1


def test_layers_share_one_mask(build, run, draw):
    text = SPELLINGS["expanded"] + " p = Softmax <axis = -1> (a) t = Add (p, m) q = Softmax (t) a2 = Add (q, m)"
    model = build_masked(build, text.replace("a = Add", "a1 = Add").replace("(a)", "(a1)").replace("a2 =", "a ="))
    feeds = draw_feeds(draw)
    (before,) = run(model, *feeds)
    assert write_masks(model, -1000.0) == 1
    assert [node.op_type for node in model.graph.node].count("Mul") == 1
    np.testing.assert_allclose(run(model, *feeds)[0], before, rtol=0, atol=1e-6)


def test_what_is_hidden_always_and_what_is_added_are_constants(build, run, draw):
    later = np.triu(np.full((1, 1, TOKENS, TOKENS), -np.inf, np.float32), 1)
    text = f"{NOT} l = Mul (n, far) k = Add (l, later) a = Add (s, k)"
    for extra in ({"later": later}, {"later": draw(1, 3, TOKENS, TOKENS)}):
        model = build_masked(build, text, **extra)
        feeds = draw_feeds(draw)
        (before,) = run(model, *feeds)
        assert write_masks(model, -1000.0) == 1
        assert np.isfinite(
            [np.frombuffer(t.raw_data, np.float32) for t in model.graph.initializer if t.name == "far"]
        ).all()
        np.testing.assert_allclose(run(model, *feeds)[0], before, rtol=0, atol=1e-5)


def test_a_guard_against_rows_of_which_all_is_hidden_goes(build, run, draw):
    text = SPELLINGS["kept"] + " p = Softmax <axis = -1> (a) n = IsNaN (p) g = Where (n, zero, p) a = Add (g, s)"
    model = build_masked(
        build, text.replace("a = Where", "a1 = Where").replace("Softmax <axis = -1> (a)", "Softmax <axis = -1> (a1)")
    )
    feeds = draw_feeds(draw)
    (before,) = run(model, *feeds)
    assert write_masks(model, -1000.0) == 1
    assert not {"IsNaN", "Where"} & {node.op_type for node in model.graph.node}
    np.testing.assert_allclose(run(model, *feeds)[0], before, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        "f = Cast <to = 1> (mask) u = Unsqueeze (f, axes) m = Mul (u, far) a = Add (s, m)",  # hides what counts
        f"{NOT} a = Add (s, n)",  # hides nothing
        f"{NOT} k = Mul (n, s) m = Mul (k, far) a = Add (s, m)",
        """f = Cast <to = 1> (mask) c = CumSum (f, one_) u = Unsqueeze (c, axes) n = Sub (one, u) m = Mul (n, far)
        a = Add (s, m)""",
        f"{NOT} m = Mul (n, far) b = Add (s, m) a = Relu (s)",
    ],
)
def test_what_is_no_mask_of_tokens_stays(build, text):
    model = build_masked(build, text, one_=np.int64(1))
    before = model.SerializeToString()
    assert write_masks(model, -1000.0) == 0 and model.SerializeToString() == before


def test_a_mask_of_free_dimensions_stays(build):
    model = build_masked(build, SPELLINGS["one minus"])
    model.graph.input[1].type.tensor_type.shape.dim[1].dim_param = "S"
    assert write_masks(model, -1000.0) == 0
