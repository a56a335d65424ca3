"""Small models with odd bodies of If, Loop and Scan, each with what becomes of their layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto, numpy_helper, parser

from onnxcalib.graph.index import all_graphs

SAMPLES, SIZE = 6, 8
# The sign of the first value chooses a branch: it alternates from sample to sample.
SIGN = "first = Slice (x, zero, one, axes) sum = ReduceSum <keepdims = 0> (first) c = Greater (sum, nought)"
ROW = f"float[1, {SIZE}]"


@dataclass(frozen=True)
class Odd:
    """A model, and what must come out.

    weights: shapes of initializers drawn at random, by name; those named ``graph/name`` are of the body of that name.
    values: other initializers, named in the same way. shape: of the input x of a sample; more: other inputs.
    quantized: the names of the layers that become integers; those of bodies are unnamed in the text where they differ.
    left: a part of the reason for each layer that stays in float, by a part of its name. refused: a part of the error.
    """

    text: str
    quantized: tuple[str, ...] = ()
    weights: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    values: Mapping[str, np.ndarray] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)
    refused: str = ""
    shape: tuple[int, ...] = (SIZE,)
    more: Mapping[str, np.ndarray] = field(default_factory=dict)
    opset: int = 17
    kind: type = np.float32
    header: str = ""

    def build(self) -> ModelProto:
        domains = ', "local" : 1' if self.header or "local." in self.text else ""
        model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {self.opset}{domains}]>\n{self.text}')
        graphs = {graph.name: graph for graph in all_graphs(model.graph)}
        for name, value in {**_COMMON, **self.values, **self._draw()}.items():
            inside, _, own = name.rpartition("/")
            if inside or name in self.text:
                graph = graphs[inside] if inside else model.graph
                graph.initializer.append(numpy_helper.from_array(np.asarray(value), own))
        return model

    def _draw(self) -> Iterator[tuple[str, np.ndarray]]:
        rng = np.random.default_rng(0)
        return {
            name: (rng.normal(size=shape) / np.sqrt(max(shape[0], 1))).astype(self.kind)
            for name, shape in self.weights.items()
        }

    def samples(self) -> dict[str, np.ndarray]:
        """All samples: of x in the first axis, the first value positive and negative in turn; others as they are."""
        values = np.random.default_rng(1).normal(size=(SAMPLES, *self.shape)).astype(self.kind)
        values[::2, ..., 0] = np.abs(values[::2, ..., 0])
        values[1::2, ..., 0] = -np.abs(values[1::2, ..., 0])
        return {"x": values, **self.more}


_COMMON = {
    "zero": np.array([0], np.int64),
    "one": np.array([1], np.int64),
    "axes": np.array([1], np.int64),
    "nought": np.array(0, np.float32),
    "yes": np.array(True),
    "no": np.array(False),
    "three": np.array(3, np.int64),
    "none": np.array(0, np.int64),
}

ODD = {
    "both branches": Odd(
        f"""m ({ROW} x) => ({ROW} y) {{ {SIGN}
            y = If (c) <then_branch = a () => ({ROW} p) {{ [one] h = MatMul (x, v) p = Relu (h) }},
                else_branch = b () => ({ROW} q) {{ [two] q = MatMul (x, w) }}> }}""",
        ("one", "two"),
        {"v": (8, 8), "w": (8, 8)},
    ),
    "a branch that no sample takes": Odd(
        f"""m ({ROW} x) => ({ROW} y) {{ top = ReduceMax <keepdims = 0> (x) c = Greater (top, high)
            y = If (c) <then_branch = a () => ({ROW} p) {{ [one] p = MatMul (x, v) }},
                else_branch = b () => ({ROW} q) {{ [two] q = MatMul (x, w) }}> }}""",
        ("two",),
        {"v": (8, 8), "w": (8, 8)},
        {"high": np.float32(1000)},
        left={"one": "no sample"},
    ),
    "a constant condition": Odd(
        f"""m ({ROW} x) => ({ROW} y) {{ [first] s = MatMul (x, u)
            go = Constant <value = bool {{1}}> ()
            y = If (go) <then_branch = a () => ({ROW} p) {{ [one] p = MatMul (s, v) }},
                else_branch = b () => ({ROW} q) {{ [two] q = MatMul (s, w) }}> }}""",
        ("first", "one"),
        {"u": (8, 8), "v": (8, 8), "w": (8, 8)},
    ),
    "a weight of both branches": Odd(
        f"""m ({ROW} x) => ({ROW} y) {{ {SIGN}
            y = If (c) <then_branch = a () => ({ROW} p) {{ [one] h = MatMul (x, w) p = Relu (h) }},
                else_branch = b () => ({ROW} q) {{ n = Neg (x) [two] q = MatMul (n, w) }}> }}""",
        ("one", "two"),
        {"w": (8, 8)},
    ),
    "a large weight of both branches": Odd(
        """m (float[1, 40] x) => (float[1, 40] y) { top = ReduceMax <keepdims = 0> (x) c = Greater (top, high)
            y = If (c) <then_branch = a () => (float[1, 40] p) { [one] h = MatMul (x, w) p = Relu (h) },
                else_branch = b () => (float[1, 40] q) { n = Neg (x) [two] h = MatMul (n, w)
                    [three] q = Gemm (h, v, k) }> }""",
        ("one", "two", "three"),
        {"w": (40, 40), "v": (40, 40), "k": (40,)},
        {"high": np.float32(2.1)},
        shape=(40,),
    ),
    "a weight of a layer outside and of one inside": Odd(
        f"""m ({ROW} x) => ({ROW} y) {{ {SIGN} [outside] s = MatMul (x, w) r = Tanh (s)
            y = If (c) <then_branch = a () => ({ROW} p) {{ [one] p = MatMul (r, w) }},
                else_branch = b () => ({ROW} q) {{ q = Neg (r) }}> }}""",
        ("outside", "one"),
        {"w": (8, 8)},
    ),
    "weights in Constant nodes": Odd(
        """m (float[1, 2] x) => (float[1, 2] y) { [top] t = ReduceMax <keepdims = 0> (x) c = Greater (t, nought)
            y = If (c) <then_branch = a () => (float[1, 2] p) {
                    w = Constant <value = float[2, 2] {0.5, -0.25, 0.125, 0.75}> () [one] p = MatMul (x, w) },
                else_branch = b () => (float[1, 2] q) {
                    w = Constant <value = float[2, 2] {0.75, 0.25, -0.125, 0.5}> () [two] q = MatMul (x, w) }> }""",
        ("one", "two"),
        shape=(2,),
    ),
    "initializers inside, of the same names in both branches": Odd(
        f"""m ({ROW} x) => ({ROW} y) {{ {SIGN}
            y = If (c) <then_branch = a () => ({ROW} p) {{ [one] h = Gemm (x, w, k) p = Relu (h) }},
                else_branch = b () => ({ROW} q) {{ [two] h = Gemm (x, w, k) q = Tanh (h) }}> }}""",
        ("one", "two"),
        {"a/w": (8, 8), "b/w": (8, 8), "a/k": (8,), "b/k": (8,)},
    ),
    "a tensor of an outer name": Odd(
        f"""m ({ROW} x) => ({ROW} y) {{ {SIGN} h = Neg (x)
            y = If (c) <then_branch = a () => ({ROW} p) {{ h = Tanh (x) [one] p = MatMul (h, w) }},
                else_branch = b () => ({ROW} q) {{ [two] q = MatMul (h, w) }}> }}""",
        weights={"w": (8, 8)},
        refused="h",
    ),
    "node names of outside and of the other branch": Odd(
        f"""m ({ROW} x) => ({ROW} y) {{ {SIGN} [fc] s = MatMul (x, u)
            y = If (c) <then_branch = a () => ({ROW} p) {{ [fc] h = MatMul (s, v) [act] p = Relu (h) }},
                else_branch = b () => ({ROW} q) {{ [fc] h = MatMul (s, w) [act] q = Tanh (h) }}> }}""",
        ("fc", "*", "*"),
        {"u": (8, 8), "v": (8, 8), "w": (8, 8)},
    ),
    "names with numbers in both branches": Odd(
        f"""m ({ROW} x) => ({ROW} y) {{ {SIGN}
            y = If (c) <then_branch = a () => ({ROW} p) {{
                    [one] h = MatMul (x, v) h_1 = Relu (h) [two] h_2 = MatMul (h_1, w) p = Tanh (h_2) }},
                else_branch = b () => ({ROW} q) {{ [three] h = MatMul (x, w) h_1 = Tanh (h) q = Neg (h_1) }}> }}""",
        ("one", "two", "three"),
        {"v": (8, 8), "w": (8, 8)},
    ),
    "nodes without names": Odd(
        f"""m ({ROW} x) => ({ROW} y) {{ {SIGN}
            y = If (c) <then_branch = a () => ({ROW} p) {{ h = MatMul (x, v) p = Relu (h) }},
                else_branch = b () => ({ROW} q) {{ h = MatMul (x, w) q = Tanh (h) }}> }}""",
        ("*", "*"),
        {"v": (8, 8), "w": (8, 8)},
    ),
    "a branch that returns an outer tensor": Odd(
        f"""m ({ROW} x) => ({ROW} y) {{ {SIGN} [outside] s = MatMul (x, u)
            y = If (c) <then_branch = a () => ({ROW} p) {{ p = Identity (s) }},
                else_branch = b () => ({ROW} q) {{ [two] q = MatMul (s, w) }}> }}""",
        ("outside", "two"),
        {"u": (8, 8), "w": (8, 8)},
    ),
    "a branch without nodes that returns an initializer": Odd(
        f"""m ({ROW} x) => ({ROW} y) {{ {SIGN}
            y = If (c) <then_branch = a () => ({ROW} k) {{ }},
                else_branch = b () => ({ROW} q) {{ [two] q = MatMul (x, w) }}> }}""",
        ("two",),
        {"w": (8, 8), "a/k": (1, 8)},
    ),
    "a branch that returns its weight": Odd(
        f"""m ({ROW} x) => ({ROW} y, float[8, 8] z) {{ {SIGN}
            y, z = If (c) <then_branch = a () => ({ROW} p, float[8, 8] k) {{ [one] p = MatMul (x, k) }},
                else_branch = b () => ({ROW} q, float[8, 8] l) {{ [two] q = MatMul (x, w) l = Identity (w) }}> }}""",
        ("one", "two"),
        {"w": (8, 8), "a/k": (8, 8)},
    ),
    "an outer tensor of layers outside and inside": Odd(
        f"""m ({ROW} x) => ({ROW} y, {ROW} z) {{ {SIGN} [first] s = MatMul (x, u) r = Relu (s)
            [second] z = MatMul (r, v)
            y = If (c) <then_branch = a () => ({ROW} p) {{ [one] p = MatMul (r, w) }},
                else_branch = b () => ({ROW} q) {{ q = Neg (r) }}> }}""",
        ("first", "second", "one"),
        {"u": (8, 8), "v": (8, 8), "w": (8, 8)},
    ),
    "a weight that is computed of constants outside": Odd(
        f"""m ({ROW} x) => ({ROW} y) {{ {SIGN} t = Transpose <perm = [1, 0]> (w)
            y = If (c) <then_branch = a () => ({ROW} p) {{ [one] p = MatMul (x, t) }},
                else_branch = b () => ({ROW} q) {{ s = Mul (t, t) [two] q = MatMul (x, s) }}> }}""",
        ("one", "two"),
        {"w": (8, 8)},
    ),
    "a weight that is computed of an input outside": Odd(
        f"""m ({ROW} x) => ({ROW} y) {{ {SIGN} t = Mul (w, x)
            y = If (c) <then_branch = a () => ({ROW} p) {{ [one] p = MatMul (x, w) }},
                else_branch = b () => ({ROW} q) {{ [two] q = Gemm (x, t) }}> }}""",
        ("one",),
        {"w": (8, 8)},
    ),
    "branches of other sizes": Odd(
        f"""m ({ROW} x) => (float[1, N] y) {{ {SIGN}
            y = If (c) <then_branch = a () => (float[1, 12] p) {{ [one] p = MatMul (x, v) }},
                else_branch = b () => (float[1, 4] q) {{ [two] q = MatMul (x, w) }}> }}""",
        ("one", "two"),
        {"v": (8, 12), "w": (8, 4)},
    ),
    "convolutions with a norm and a shortcut inside": Odd(
        """m (float[1, 4, 6, 6] x) => (float[1, 4, 6, 6] y) {
            top = ReduceMean <keepdims = 0> (x) c = Greater (top, nought)
            y = If (c) <then_branch = a () => (float[1, 4, 6, 6] p) {
                    [one] d = Conv <pads = [1, 1, 1, 1]> (x, v) n = BatchNormalization (d, scale, bias, mean, var)
                    r = Relu (n) [two] e = Conv <pads = [1, 1, 1, 1]> (r, w) s = Add (e, x) p = Relu (s) },
                else_branch = b () => (float[1, 4, 6, 6] q) {
                    [three] d = Conv <pads = [1, 1, 1, 1]> (x, w) q = Relu (d) }> }""",
        ("one", "two", "three"),
        {"v": (4, 4, 3, 3), "w": (4, 4, 3, 3), "scale": (4,), "bias": (4,), "mean": (4,)},
        {"var": np.full(4, 1.5, np.float32)},
        shape=(4, 6, 6),
    ),
    "a product of activations inside": Odd(
        """m (float[1, 5, 8] x) => (float[1, 5, 8] y) { top = ReduceMean <keepdims = 0> (x) c = Greater (top, nought)
            y = If (c) <then_branch = a () => (float[1, 5, 8] p) { [one] d = MatMul (x, v) [two] e = MatMul (x, w)
                    t = Transpose <perm = [0, 2, 1]> (e) s = MatMul (d, t) n = Softmax (s) p = MatMul (n, x) },
                else_branch = b () => (float[1, 5, 8] q) { q = Neg (x) }> }""",
        ("one", "two"),
        {"v": (8, 8), "w": (8, 8)},
        shape=(5, 8),
    ),
    "an If in a Loop in an If": Odd(
        f"""m ({ROW} x) => ({ROW} y) {{ {SIGN}
            y = If (c) <then_branch = a () => ({ROW} p) {{
                    p = Loop (three, yes, x) <body = turn (int64 i, bool go, {ROW} s) => (bool on, {ROW} t) {{
                        on = Identity (go) even = Mod (i, two) odd = Cast <to = 9> (even)
                        t = If (odd) <then_branch = d () => ({ROW} f) {{ [deep] g = MatMul (s, v) f = Tanh (g) }},
                            else_branch = e () => ({ROW} h) {{ [other] k = MatMul (s, w) h = Tanh (k) }}> }}> }},
                else_branch = b () => ({ROW} q) {{ q = Neg (x) }}> }}""",
        ("deep", "other"),
        {"v": (8, 8), "w": (8, 8)},
        {"two": np.array(2, np.int64)},
    ),
    "a Loop with a state through its layer": Odd(
        f"""m ({ROW} x) => ({ROW} y) {{
            y = Loop (three, yes, x) <body = turn (int64 i, bool go, {ROW} s) => (bool on, {ROW} t) {{
                on = Identity (go) [step] h = Gemm (s, w, k) t = Tanh (h) }}> }}""",
        ("step",),
        {"w": (8, 8), "k": (8,)},
    ),
    "a Loop with what each turn gives": Odd(
        f"""m ({ROW} x) => ({ROW} y, float[N, 1, 8] z) {{
            y, z = Loop (three, yes, x) <body = turn (int64 i, bool go, {ROW} s) => (bool on, {ROW} t, {ROW} u) {{
                on = Identity (go) [step] h = MatMul (s, w) t = Tanh (h) [gives] u = MatMul (t, v) }}> }}""",
        ("step", "gives"),
        {"w": (8, 8), "v": (8, 8)},
    ),
    "a Loop that returns a state as it came": Odd(
        f"""m ({ROW} x) => ({ROW} y, {ROW} z) {{
            y, z = Loop (three, yes, x, x) <body = turn (int64 i, bool go, {ROW} s, {ROW} r) =>
                (bool on, {ROW} t, {ROW} r2) {{
                on = Identity (go) r2 = Identity (r) [step] h = MatMul (s, w) g = Add (h, r) t = Tanh (g) }}> }}""",
        ("step",),
        {"w": (8, 8)},
    ),
    "a Loop without nodes for its condition and a state": Odd(
        f"""m ({ROW} x) => ({ROW} y, {ROW} z) {{
            y, z = Loop (three, yes, x, x) <body = turn (int64 i, bool go, {ROW} s, {ROW} r) =>
                (bool go, {ROW} t, {ROW} r) {{ [step] h = MatMul (s, w) g = Add (h, r) t = Tanh (g) }}> }}""",
        ("step",),
        {"w": (8, 8)},
    ),
    "a Loop of no turns": Odd(
        f"""m ({ROW} x) => ({ROW} y) {{ [outside] d = MatMul (x, w)
            y = Loop (none, yes, d) <body = turn (int64 i, bool go, {ROW} s) => (bool on, {ROW} t) {{
                on = Identity (go) [step] h = MatMul (s, w) t = Tanh (h) }}> }}""",
        ("outside",),
        {"w": (8, 8)},
        left={"step": ""},
    ),
    "a Loop without a count until its condition ends": Odd(
        f"""m ({ROW} x) => ({ROW} y) {{
            y = Loop (, yes, x) <body = turn (int64 i, bool go, {ROW} s) => (bool on, {ROW} t) {{
                [step] h = MatMul (s, w) t = Tanh (h) a = Abs (t) m = ReduceMax <keepdims = 0> (a)
                large = Greater (m, end) few = Less (i, most) on = And (large, few) }}> }}""",
        ("step",),
        {"w": (8, 8)},
        {"end": np.float32(0.9), "most": np.array(4, np.int64)},
    ),
    "a Loop with a count that is an input": Odd(
        f"""m ({ROW} x, int64[1, 1] n) => ({ROW} y) {{ turns = Squeeze (n)
            y = Loop (turns, , x) <body = turn (int64 i, bool go, {ROW} s) => (bool on, {ROW} t) {{
                on = Identity (go) [step] h = MatMul (s, w) t = Tanh (h) }}> }}""",
        ("step",),
        {"w": (8, 8)},
        more={"n": np.arange(SAMPLES, dtype=np.int64)[:, None]},
    ),
    "a Loop that counts its turns along an axis": Odd(
        f"""m ({ROW} x) => ({ROW} y) {{
            y = Loop (three, yes, x) <body = turn (int64[1] i, bool go, {ROW} s) => (bool on, {ROW} t) {{
                on = Identity (go) n = Add (i, one) r = Slice (x, i, n, axes) sides = Shape (i) count = Size (sides)
                single = Equal (count, single_axis) [step] h = MatMul (s, w) e = Add (h, r)
                t = If (single) <then_branch = a () => ({ROW} p) {{ p = Tanh (e) }},
                    else_branch = b () => ({ROW} q) {{ q = Neg (e) }}> }}> }}""",
        ("step",),
        {"w": (8, 8)},
        {"single_axis": np.array(1, np.int64)},
    ),
    "a Loop over a state that grows": Odd(
        """m (float[1, 8] x) => (float[N, 8] y) {
            y = Loop (three, yes, x) <body = turn (int64 i, bool go, float[M, 8] s) => (bool on, float[K, 8] t) {
                on = Identity (go) [step] h = MatMul (s, w) g = Tanh (h) t = Concat <axis = 0> (g, x) }> }""",
        ("step",),
        {"w": (8, 8)},
    ),
    "a Loop with a sequence": Odd(
        f"""m ({ROW} x) => (float[3, 8] y) {{ empty = SequenceEmpty ()
            last, all = Loop (three, yes, x, empty) <body = turn (int64 i, bool go, {ROW} s, seq(float[1, 8]) q) =>
                (bool on, {ROW} t, seq(float[1, 8]) r) {{
                on = Identity (go) [step] h = MatMul (s, w) t = Tanh (h) r = SequenceInsert (q, t) }}>
            y = ConcatFromSequence <axis = 0> (all) }}""",
        weights={"w": (8, 8)},
        refused="its input q is a sequence",
    ),
    "an optional value": Odd(
        f"""m ({ROW} x) => ({ROW} y) {{ {SIGN} [outside] s = MatMul (x, v)
            o = If (c) <then_branch = a () => (optional(float[1, 8]) p) {{ [one] h = MatMul (s, w) p = Optional (h) }},
                else_branch = b () => (optional(float[1, 8]) q) {{ q = Optional (s) }}>
            y = OptionalGetElement (o) }}""",
        ("outside", "one"),
        {"v": (8, 8), "w": (8, 8)},
    ),
    "a Scan with a state": Odd(
        """m (float[1, 4, 8] x) => (float[1, 8] y, float[4, 1, 8] z) { t = Transpose <perm = [1, 0, 2]> (x)
            y, z = Scan <num_scan_inputs = 1, body = turn (float[1, 8] s, float[1, 8] f) =>
                (float[1, 8] r, float[1, 8] u) {
                [in] g = MatMul (f, v) [step] h = MatMul (s, w) k = Add (g, h) r = Tanh (k) u = Identity (r) }>
                (start, t) }""",
        ("in", "step"),
        {"v": (8, 8), "w": (8, 8)},
        {"start": np.zeros((1, 8), np.float32)},
        shape=(4, 8),
    ),
    "a Scan backwards along another axis with two states": Odd(
        """m (float[1, 4, 8] x) => (float[1, 8] y, float[1, 8] z, float[1, 4, 8] o) {
            y, z, o = Scan <num_scan_inputs = 2, scan_input_axes = [1, 1], scan_input_directions = [1, 0],
                scan_output_axes = [1], scan_output_directions = [1],
                body = turn (float[1, 8] s, float[1, 8] d, float[1, 8] f, float[1, 8] e) =>
                (float[1, 8] r, float[1, 8] q, float[1, 8] u) {
                [in] g = MatMul (f, v) [step] h = MatMul (s, w) k = Add (g, h) r = Tanh (k)
                j = Mul (d, half) q = Add (j, e) u = Sub (r, q) }> (start, start, x, x) }""",
        ("in", "step"),
        {"v": (8, 8), "w": (8, 8)},
        {"start": np.zeros((1, 8), np.float32), "half": np.float32(0.5)},
        shape=(4, 8),
    ),
    "a Scan without a state": Odd(
        """m (float[1, 4, 8] x) => (float[4, 8] z) { t = Squeeze (x, zero)
            z = Scan <num_scan_inputs = 1, body = turn (float[8] f) => (float[8] u) {
                e = Unsqueeze (f, zero) [step] h = MatMul (e, w) k = Tanh (h) u = Squeeze (k, zero) }> (t) }""",
        ("step",),
        {"w": (8, 8)},
        shape=(4, 8),
    ),
    "a Scan that reads an outer tensor and an input": Odd(
        """m (float[1, 4, 8] x) => (float[4, 8] z) { t = Squeeze (x, zero) [outside] o = MatMul (t, v)
            z = Scan <num_scan_inputs = 1, body = turn (float[8] f) => (float[8] u) {
                e = Unsqueeze (f, zero) [step] h = MatMul (e, w) m = Mul (h, o) r = ReduceSum <keepdims = 0> (m, zero)
                b = Squeeze (x, zero) n = ReduceMean <axes = [0], keepdims = 0> (b) u = Sub (r, n) }> (t) }""",
        ("outside", "step"),
        {"v": (8, 8), "w": (8, 8)},
        shape=(4, 8),
    ),
    "an LSTM inside": Odd(
        """m (float[1, 3, 8] x) => (float[3, 1, 1, 4] y) { top = ReduceMean <keepdims = 0> (x) c = Greater (top, nought)
            t = Transpose <perm = [1, 0, 2]> (x)
            y = If (c) <then_branch = a () => (float[3, 1, 1, 4] p) { [one] h = MatMul (t, k)
                    p, g, i = LSTM <hidden_size = 4> (h, v, w) },
                else_branch = b () => (float[3, 1, 1, 4] q) { q, e, f = LSTM <hidden_size = 4> (t, v, w) }> }""",
        ("one", "*", "*"),
        {"k": (8, 8), "v": (1, 16, 8), "w": (1, 16, 4)},
        shape=(3, 8),
    ),
    "random values inside": Odd(
        f"""m ({ROW} x) => ({ROW} y) {{ {SIGN}
            y = If (c) <then_branch = a () => ({ROW} p) {{ [one] h = MatMul (x, v)
                    [draw] r = RandomNormalLike <scale = 0.01, seed = 1.0> (h) p = Add (h, r) }},
                else_branch = b () => ({ROW} q) {{ [two] q = MatMul (x, w) }}> }}""",
        ("one", "two"),
        {"v": (8, 8), "w": (8, 8)},
    ),
    "layers that are quantized already": Odd(
        f"""m ({ROW} x) => ({ROW} y) {{ {SIGN} [outside] s = MatMul (x, w)
            y = If (c) <then_branch = a () => ({ROW} p) {{ d = DequantizeLinear (k, step) [one] p = MatMul (s, d) }},
                else_branch = b () => ({ROW} q) {{ q = Neg (s) }}> }}""",
        weights={"w": (8, 8)},
        values={"a/k": np.ones((8, 8), np.int8), "a/step": np.float32(0.1)},
        refused="quantized already",
    ),
    "a body of whole numbers": Odd(
        f"""m ({ROW} x) => ({ROW} y, int64 n) {{ [outside] y = MatMul (x, w)
            n = Loop (three, yes, none) <body = turn (int64 i, bool go, int64 s) => (bool on, int64 t) {{
                on = Identity (go) t = Add (s, i) }}> }}""",
        ("outside",),
        {"w": (8, 8)},
    ),
    "a function called in a body": Odd(
        f"""m ({ROW} x) => ({ROW} y) {{ {SIGN}
            y = If (c) <then_branch = a () => ({ROW} p) {{ p = local.twice (x, v) }},
                else_branch = b () => ({ROW} q) {{ q = local.twice (x, w) }}> }}
        <domain: "local", opset_import: ["" : 17]>
        twice (f, g) => (h) {{ [layer] k = MatMul (f, g) h = Relu (k) }}""",
        ("*", "*"),
        {"v": (8, 8), "w": (8, 8)},
        header="local",
    ),
    "an If in a function": Odd(
        f"""m ({ROW} x) => ({ROW} y) {{ {SIGN} y = local.choose (c, x, v) }}
        <domain: "local", opset_import: ["" : 17]>
        choose (b, f, g) => (h) {{ h = If (b) <then_branch = a () => ({ROW} p) {{ [one] p = MatMul (f, g) }},
            else_branch = d () => ({ROW} q) {{ q = Neg (f) }}> }}""",
        ("*",),
        {"v": (8, 8)},
        header="local",
    ),
    "opset 11": Odd(
        f"""m ({ROW} x) => ({ROW} y) {{ top = ReduceMax <axes = [0, 1], keepdims = 0> (x) c = Greater (top, high)
            y = If (c) <then_branch = a () => ({ROW} p) {{ [one] h = MatMul (x, v) i = Unsqueeze <axes = [0]> (h)
                    j = Squeeze <axes = [0]> (i) p = Softmax <axis = 1> (j) }},
                else_branch = b () => ({ROW} q) {{ [two] q = MatMul (x, w) }}> }}""",
        ("one", "two"),
        {"v": (8, 8), "w": (8, 8)},
        {"high": np.float32(1.3)},
        opset=11,
    ),
    "float16": Odd(
        """m (float16[1, 8] x) => (float16[1, 8] y) { top = ReduceMax <keepdims = 0> (x) c = Greater (top, high)
            y = If (c) <then_branch = a () => (float16[1, 8] p) { [one] h = MatMul (x, v) p = Relu (h) },
                else_branch = b () => (float16[1, 8] q) { [two] q = MatMul (x, w) }> }""",
        ("one", "two"),
        {"v": (8, 8), "w": (8, 8)},
        {"high": np.float16(1.3)},
        kind=np.float16,
    ),
    "double": Odd(
        f"""m ({ROW} x) => ({ROW} y) {{ {SIGN} [outside] s = MatMul (x, u)
            y = If (c) <then_branch = a () => ({ROW} p) {{ d = Cast <to = 11> (s) [one] e = MatMul (d, w)
                    p = Cast <to = 1> (e) }},
                else_branch = b () => ({ROW} q) {{ [two] q = MatMul (s, v) }}> }}""",
        ("outside", "two"),
        {"u": (8, 8), "v": (8, 8)},
        {"w": np.eye(8) + 0.25},
        left={"one": "double"},
    ),
    "an output that nothing reads": Odd(
        f"""m ({ROW} x) => ({ROW} y) {{ {SIGN}
            y, dead = If (c) <then_branch = a () => ({ROW} p, {ROW} e) {{ [one] p = MatMul (x, v) e = Neg (x) }},
                else_branch = b () => ({ROW} q, {ROW} f) {{ [two] q = MatMul (x, w) f = Neg (x) }}> }}""",
        ("one", "two"),
        {"v": (8, 8), "w": (8, 8)},
    ),
    "a layer behind an If that reads what it chose": Odd(
        f"""m ({ROW} x) => ({ROW} y) {{ {SIGN} [first] r = MatMul (x, u)
            s = If (c) <then_branch = a () => ({ROW} p) {{ [one] p = MatMul (r, v) }},
                else_branch = b () => ({ROW} q) {{ q = Relu (r) }}>
            [last] y = MatMul (s, w) }}""",
        ("first", "one", "last"),
        {"u": (8, 8), "v": (8, 8), "w": (8, 8)},
    ),
    "two of them one behind the other": Odd(
        f"""m ({ROW} x) => ({ROW} y) {{ {SIGN}
            s = If (c) <then_branch = a () => ({ROW} p) {{ [one] h = MatMul (x, v) p = Tanh (h) }},
                else_branch = b () => ({ROW} q) {{ q = Relu (x) }}>
            y = Loop (three, yes, s) <body = turn (int64 i, bool go, {ROW} d) => (bool on, {ROW} t) {{
                on = Identity (go) [step] e = MatMul (d, w) f = Add (e, s) t = Tanh (f) }}> }}""",
        ("one", "step"),
        {"v": (8, 8), "w": (8, 8)},
    ),
    "a layer behind a Loop alone": Odd(
        f"""m ({ROW} x) => ({ROW} y) {{
            s = Loop (three, yes, x) <body = turn (int64 i, bool go, {ROW} d) => (bool on, {ROW} t) {{
                on = Identity (go) t = Mul (d, half) }}>
            [last] y = MatMul (s, w) }}""",
        ("last",),
        {"w": (8, 8)},
        {"half": np.float32(0.5)},
    ),
    "all layers in a body that no sample enters": Odd(
        f"""m ({ROW} x) => ({ROW} y) {{ top = ReduceMax <keepdims = 0> (x) c = Greater (top, high)
            y = If (c) <then_branch = a () => ({ROW} p) {{ [one] p = MatMul (x, w) }},
                else_branch = b () => ({ROW} q) {{ q = Neg (x) }}> }}""",
        weights={"w": (8, 8)},
        values={"high": np.float32(1000)},
        refused="no sample",
    ),
}
