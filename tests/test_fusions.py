"""What onnxruntime runs as one float kernel in the float file stays one in the quantized file."""

from collections import Counter

import numpy as np
import onnx
import pytest

import onnxcalib
from onnxcalib.runtime.session import Session

# Kernels that onnxruntime makes of several nodes, each with the name that it is counted under. In a quantized file a
# bias may belong to an integer MatMul, which leaves of a BiasGelu a Gelu. Products and their factors (FusedMatMul), and
# activation functions of a Conv or Gemm (FusedConv, FusedGemm), become integer kernels, and are not counted.
KERNELS = {
    "BiasGelu": "Gelu",
    # Of a LayerNormalization behind a Transpose onnxruntime finds only what this is called.
    "SimplifiedLayerNormalization": "LayerNormalization",
    **{
        name: name
        for name in (
            "Gelu", "QuickGelu", "LayerNormalization", "SkipLayerNormalization",
            "InstanceNormalization", "Softmax",
        )
    },
}  # fmt: skip
WIDTH, TOKENS = 16, 6
LAYER_NORM = """m{i} = ReduceMean <axes = [-1]> ({x})  d{i} = Sub ({x}, m{i})  p{i} = Pow (d{i}, two)
    v{i} = ReduceMean <axes = [-1]> (p{i})  e{i} = Add (v{i}, epsilon)  s{i} = Sqrt (e{i})  n{i} = Div (d{i}, s{i})
    k{i} = Mul (n{i}, gain)  {y} = Add (k{i}, row)"""
RMS_NORM = """p{i} = Pow ({x}, two)  v{i} = ReduceMean <axes = [-1]> (p{i})  e{i} = Add (v{i}, epsilon)
    s{i} = Sqrt (e{i})  n{i} = Div ({x}, s{i})  {y} = Mul (n{i}, gain)"""
GELU = (
    "a{i} = Div ({x}, root)  t{i} = Erf (a{i})  u{i} = Add (t{i}, one)  h{i} = Mul ({x}, u{i})  {y} = Mul (h{i}, half)"
)
QUICK_GELU = "a{i} = Mul ({x}, quick)  t{i} = Sigmoid (a{i})  {y} = Mul ({x}, t{i})"
DENSE = "z{i} = MatMul ({x}, {w})  {y} = Add (row, z{i})"
# Shapes as exporters with a dynamic batch compute them.
HEADS = """hs{i} = Shape ({x})  hb{i} = Gather (hs{i}, first)  hu{i} = Unsqueeze (hb{i}, front)
    hc{i} = Concat <axis = 0> (hu{i}, {sizes})  hr{i} = Reshape ({x}, hc{i})"""


def attend(x: str, y: str) -> str:
    parts = []
    for i, permutation in (("q", "0, 2, 1, 3"), ("k", "0, 2, 3, 1"), ("v", "0, 2, 1, 3")):
        parts.append(DENSE.format(i=i, x=x, w=f"w{i}", y=f"l{i}"))
        parts.append(HEADS.format(i=i, x=f"l{i}", sizes="tokens, two_heads, eight"))
        parts.append(f"ht{i} = Transpose <perm = [{permutation}]> (hr{i})")
    parts.append("qk = MatMul (htq, htk)  scores = Div (qk, four)  chances = Softmax <axis = -1> (scores)")
    parts.append("mixed = MatMul (chances, htv)  back = Transpose <perm = [0, 2, 1, 3]> (mixed)")
    parts.append(HEADS.format(i="o", x="back", sizes="tokens, sixteen") + DENSE.format(i="o", x="hro", w="wo", y=y))
    return "\n".join(parts)


def token_body(norm: str, activation: str, *, post: bool) -> str:
    """A block of a transformer, its norms in front or behind."""
    dense = DENSE.format(i="m", x="{a}", w="wm", y="up") + "\n" + activation.format(i="g", x="up", y="act")
    if post:
        first = norm.format(i="0", x="x", y="n_in") + attend("n_in", "att") + "  sum = Add (n_in, att)\n"
        middle = (
            norm.format(i="1", x="sum", y="n_mid")
            + dense.format(a="n_mid")
            + DENSE.format(i="p", x="act", w="wp", y="down")
        )
        return first + middle + "  last = Add (down, n_mid)\n" + norm.format(i="2", x="last", y="out")
    first = norm.format(i="0", x="x", y="n_in") + attend("n_in", "att") + "  sum = Add (x, att)\n"
    middle = (
        norm.format(i="1", x="sum", y="n_mid")
        + dense.format(a="n_mid")
        + DENSE.format(i="p", x="act", w="wp", y="down")
    )
    return first + middle + "  last = Add (down, sum)\n" + norm.format(i="2", x="last", y="out")


def image_body(activation: str) -> str:
    """Convolutions with an activation function, a moved tensor with a norm, and a written-out InstanceNormalization."""
    return f"""c1 = Conv <pads = [1, 1, 1, 1]> (x, f1)  {activation.format(i="1", x="c1", y="r1")}
    c2 = Conv <pads = [1, 1, 1, 1]> (r1, f2)  mi = ReduceMean <axes = [2, 3]> (c2)  di = Sub (c2, mi)
    pi = Pow (di, two)  vi = ReduceMean <axes = [2, 3]> (pi)  ei = Add (vi, epsilon)  si = Sqrt (ei)  ni = Div (di, si)
    ki = Mul (ni, gains)  oi = Add (ki, rows)  r2 = Relu (oi)  c3 = Conv <pads = [1, 1, 1, 1]> (r2, f2)
    moved = Transpose <perm = [0, 2, 3, 1]> (c3)  {LAYER_NORM.format(i="l", x="moved", y="normed")}
    {DENSE.format(i="m", x="normed", w="wm", y="out")}"""


BODIES = {
    "ViT": token_body(LAYER_NORM, GELU, post=False),
    "BERT": token_body(LAYER_NORM, GELU, post=True),
    "CLIP": token_body(LAYER_NORM, QUICK_GELU, post=False),
    "RMS": token_body(RMS_NORM, GELU, post=False),
    "Conv, Gelu": image_body(GELU),
    "Conv, quick Gelu": image_body(QUICK_GELU),
}


def make(build, draw, body: str, opset: int):
    shape = "N, 3, 8, 8" if "Conv" in body else f"N, {TOKENS}, {WIDTH}"
    output = f"N, 8, 8, {WIDTH}" if "Conv" in body else f"N, {TOKENS}, {WIDTH}"
    scalars = {
        "two": 2, "epsilon": 1e-5, "root": 2**0.5, "one": 1, "half": 0.5, "quick": 1.702, "four": 4
    }  # fmt: skip
    sizes = {"tokens": TOKENS, "two_heads": 2, "eight": 8, "sixteen": WIDTH}
    constants = {name: np.float32(value) for name, value in scalars.items()}
    constants |= {name: np.array([value], np.int64) for name, value in sizes.items()}
    constants |= {"first": np.array(0, np.int64), "front": np.array([0], np.int64)}
    constants |= {f"w{i}": draw(WIDTH, WIDTH) / np.float32(4) for i in "qkvomp"}
    constants |= {
        "gain": 1 + draw(WIDTH) / np.float32(4),
        "row": draw(WIDTH),
        "f1": draw(WIDTH, 3, 3, 3) / np.float32(5),
    }
    constants |= {"f2": draw(WIDTH, WIDTH, 3, 3) / np.float32(12)}
    constants |= {"gains": 1 + draw(WIDTH, 1, 1) / np.float32(4), "rows": draw(WIDTH, 1, 1)}
    return build(f"g (float[{shape}] x) => (float[{output}] out) {{ {body} }}", opset=opset, **constants)


def count_kernels(model, path) -> Counter:
    Session(model, threads=1, dump=path)
    nodes = onnx.load(path, load_external_data=False).graph.node
    return Counter(KERNELS[node.op_type] for node in nodes if node.op_type in KERNELS)


@pytest.mark.parametrize(("name", "opset"), [*((name, 13) for name in BODIES), ("ViT", 17), ("BERT", 17)])
def test_no_fused_kernel_is_lost(name, opset, build, draw, tmp_path):
    model = make(build, draw, BODIES[name], opset)
    samples = draw(16, *(3, 8, 8) if "Conv" in name else (TOKENS, WIDTH))
    quantized = onnxcalib.quantize(model, samples, onnxcalib.QuantizeConfig(pipeline="light", placement="all")).model
    wanted, given = (count_kernels(each, tmp_path / f"{i}.onnx") for i, each in enumerate((model, quantized)))
    assert wanted and wanted - given == Counter()


@pytest.mark.parametrize("behind", ["", "[relu] m = Relu (c)"])
def test_a_convolution_that_is_excluded_keeps_its_float_weight_between_grids(behind, build, draw, tmp_path):
    body = f"[one] a = Conv (x, w1)  [two] {'c' if behind else 'm'} = Conv (a, w2)  {behind}  [three] y = Conv (m, w3)"
    text = f"g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) {{ {body} }}"
    model = build(text, **{f"w{i}": draw(4, 4, 1, 1) for i in (1, 2, 3)})
    config = onnxcalib.QuantizeConfig(placement="all", exclude=("two",), pipeline="light")
    quantized = onnxcalib.quantize(model, draw(16, 4, 8, 8), config).model
    Session(quantized, deployed=True, dump=tmp_path / "optimized.onnx")
    ops = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert (ops["QLinearConv"], ops["Conv"] + ops["FusedConv"]) == (2, 1)
