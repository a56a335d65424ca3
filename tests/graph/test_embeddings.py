"""Which Gathers are embeddings."""

import numpy as np
import pytest

from onnxcalib.graph.embeddings import FOUR_BIT_BLOCK, LEAST_BYTES, find_embeddings
from onnxcalib.graph.names import Selection
from onnxcalib.graph.scheme import make_scheme

TEXT = "g (int64[N, S] ids, float[N, S, 32] x) => (float y, float z) { %s }"
LOOK = "[look] y = Gather (table, ids)"


def find(build, body, bits=8, excluded=frozenset(), rows=LEAST_BYTES // 128, dtype=np.float32):
    model = build(TEXT % body, table=np.zeros((rows, 32), dtype))
    return find_embeddings(model, bits, Selection(excluded))


def test_an_embedding_has_a_scale_a_row_at_8_bits_and_blocks_of_a_row_at_4(build):
    (eight,), (four,) = (find(build, LOOK + " [e] z = Exp (x)", bits) for bits in (8, 4))
    assert (eight.name, eight.op, eight.input, eight.weight, eight.output) == ("look", "Gather", "ids", "table", "y")
    assert (eight.weight_spec.bits, eight.weight_spec.axis, eight.weight_spec.block) == (8, 0, None)
    assert (four.weight_spec.bits, four.weight_spec.block) == (4, FOUR_BIT_BLOCK)
    assert str(four.bits) == "W4A32g32"


@pytest.mark.parametrize(
    ("body", "more"),
    [
        (LOOK, {"bits": 32}),
        (LOOK, {"excluded": frozenset({"look"})}),
        (LOOK, {"rows": LEAST_BYTES // 128 - 1}),
        (LOOK, {"dtype": np.float64}),
        ("[look] y = Gather <axis = 1> (table, ids)", {}),
        (LOOK + " [also] z = MatMul (x, table)", {}),
        (LOOK + " [also] z = Gather <axis = 1> (table, ids)", {}),
        (LOOK + " [also] z = Gather (table, ids)", {"excluded": frozenset({"also"})}),
        ("[look] y = Gather (x, ids)", {}),
    ],
)
def test_what_is_no_embedding_stays_as_it_is(build, body, more):
    assert find(build, body if "z =" in body else f"{body} [e] z = Exp (x)", **more) == ()


def test_gathers_that_share_a_table_are_embeddings_of_it(build):
    assert [e.name for e in find(build, LOOK + " [also] z = Gather (table, ids)")] == ["look", "also"]


def test_rows_that_blocks_do_not_divide_have_one_scale_each(build):
    model = build(
        "g (int64[N] ids) => (float y) { [look] y = Gather (table, ids) }", table=np.zeros((900, 40), np.float32)
    )
    (found,) = find_embeddings(model, 4)
    assert (found.weight_spec.bits, found.weight_spec.block) == (4, None)


def test_a_table_that_a_layer_reads_too_is_an_embedding_where_that_layer_has_integers_of_its_own(build, draw):
    text = """g (int64[N] ids) => (float[N, 600] y) {
        [look] e = Gather (table, ids)  [head] y = Gemm <transB = 1> (e, table)
    }"""
    model = build(text, table=draw(600, 64))
    assert find_embeddings(model, 8) == ()
    layers = make_scheme(model).layers
    assert [layer.name for layer in find_embeddings(model, 8, layers=layers)] == ["look"]
    assert [layer.name for layer in make_scheme(model, embedding_bits=8).embeddings] == ["look"]
