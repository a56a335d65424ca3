"""Pre-norm transformers of two blocks whose residual stream has channels that reach far beyond the others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

HEADS, WIDTH, TOKENS, HIDDEN = 2, 48, 6, 64
SHAPES = {"split": [0, 0, HEADS, WIDTH // HEADS], "joined": [0, 0, WIDTH]}
START = "[into] e0 = MatMul (x, we)  [place] s0 = Add (pos, e0)"
END = "[last] n = LayerNormalization (s2, gain_n, shift_n)  [head] y = MatMul (n, wy)"
HEADER = f"g (float[N, {TOKENS}, 8] x) => (float[N, {TOKENS}, 5] y)"
SCALED = (
    "[bias_o{i}] o{i} = Add (p{i}, bo{i})  [scale{i}] c{i} = Mul (o{i}, scale{i})\n  [add{i}] a{i} = Add (c{i}, s{i})"
)
BLOCK = f"""
    [norm{{i}}] h{{i}} = LayerNormalization (s{{i}}, gain{{i}}, shift{{i}})
    [query{{i}}] q{{i}} = MatMul (h{{i}}, wq{{i}})  [bias_q{{i}}] qb{{i}} = Add (q{{i}}, bq{{i}})
    [key{{i}}] k{{i}} = MatMul (h{{i}}, wk{{i}})  [bias_k{{i}}] kb{{i}} = Add (k{{i}}, bk{{i}})
    [value{{i}}] v{{i}} = MatMul (h{{i}}, wv{{i}})  [bias_v{{i}}] vb{{i}} = Add (bv{{i}}, v{{i}})
    [qs{{i}}] qh{{i}} = Reshape (qb{{i}}, split)  [qt{{i}}] qr{{i}} = Transpose <perm = [0, 2, 1, 3]> (qh{{i}})
    [ks{{i}}] kh{{i}} = Reshape (kb{{i}}, split)  [kt{{i}}] kr{{i}} = Transpose <perm = [0, 2, 3, 1]> (kh{{i}})
    [vs{{i}}] vh{{i}} = Reshape (vb{{i}}, split)  [vt{{i}}] vr{{i}} = Transpose <perm = [0, 2, 1, 3]> (vh{{i}})
    [scores{{i}}] z{{i}} = MatMul (qr{{i}}, kr{{i}})  [soft{{i}}] w{{i}} = Softmax (z{{i}})
    [mix{{i}}] m{{i}} = MatMul (w{{i}}, vr{{i}})
    [mt{{i}}] mr{{i}} = Transpose <perm = [0, 2, 1, 3]> (m{{i}})  [mj{{i}}] mb{{i}} = Reshape (mr{{i}}, joined)
    [dense{{i}}] p{{i}} = MatMul (mb{{i}}, wo{{i}})  {SCALED}
    [norm_f{{i}}] g{{i}} = LayerNormalization (a{{i}}, gain_f{{i}}, shift_f{{i}})
    [up{{i}}] u{{i}} = MatMul (g{{i}}, wu{{i}})  [bias_u{{i}}] ub{{i}} = Add (u{{i}}, bu{{i}})
    [act{{i}}] t{{i}} = Relu (ub{{i}})
    [down{{i}}] d{{i}} = MatMul (t{{i}}, wd{{i}})  [bias_d{{i}}] db{{i}} = Add (d{{i}}, bd{{i}})
    [out{{i}}] s{{j}} = Add (a{{i}}, db{{i}})"""
BLOCKS = "".join(BLOCK.format(i=i, j=i + 1) for i in range(2))
PRENORM = f"{HEADER} {{ {START} {BLOCKS} {END} }}"


def draw_constants(seed: int = 0) -> dict[str, np.ndarray]:
    """All constants of PRENORM by name; two channels of the stream reach 20 times as far as others."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    loud = np.ones(WIDTH, np.float32)
    loud[[3, 11]] = 20
    found = {"we": draw(8, WIDTH) * loud, "pos": draw(TOKENS, WIDTH) * loud}
    found |= {"gain_n": 1 + draw(WIDTH) / 8, "shift_n": draw(WIDTH) / 8, "wy": draw(WIDTH, 5) / 7 / loud[:, None]}
    for i in range(2):
        for name in ("wq", "wk", "wv"):
            found[f"{name}{i}"] = draw(WIDTH, WIDTH) / 7 / loud[:, None]
        found[f"wo{i}"] = draw(WIDTH, WIDTH) / 7
        found |= {f"{name}{i}": draw(WIDTH) / 8 for name in ("bq", "bk", "bv", "bo", "bd", "shift", "shift_f")}
        found |= {f"{name}{i}": 1 + draw(WIDTH) / 8 for name in ("gain", "gain_f", "scale")}
        found |= {f"wu{i}": draw(WIDTH, HIDDEN) / 7 / loud[:, None], f"bu{i}": draw(HIDDEN) / 5}
        found[f"wd{i}"] = draw(HIDDEN, WIDTH) / 8
    return {**found, **{name: np.array(value, np.int64) for name, value in SHAPES.items()}}


def build_prenorm(build: Callable[..., object], text: str = PRENORM, **others: np.ndarray) -> object:
    """The model of a text, by the fixture ``build``, with the constants that it reads."""
    known = {**draw_constants(), **others}
    return build(text, **{name: value for name, value in known.items() if f"{name})" in text or f"{name}," in text})
