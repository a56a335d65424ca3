import numpy as np
import pytest

from onnxcalib import QuantizeConfig, pipeline
from onnxcalib.quantization import views
from onnxcalib.quantization.views import ENOUGH_TOKENS, TextViews, choose_views

MODEL = """g (int64[N, S] input_ids, int64[N, S] attention_mask) => (float[N, S, 6] y) {
    e = Gather (table, input_ids)  [first] h = MatMul (e, w)  t = Relu (h)  [last] y = MatMul (t, w)
}"""
# Every text starts with 1 and ends with 2.
IDS = np.array([[1, 5, 6, 2], [1, 7, 2, 0], [1, 5, 8, 2]])
FEEDS = {"input_ids": IDS, "attention_mask": (IDS > 0).astype(np.int64)}


@pytest.fixture
def prepare(build, weigh):
    def prepare(samples=FEEDS, **settings):
        model = build(MODEL, table=weigh(10, 6), w=weigh(6, 6))
        return pipeline.prepare(model, samples, QuantizeConfig(threads=1, placement="all", **settings))

    return prepare


def test_views_of_tokens_exchange_what_not_all_texts_have(prepare):
    found = choose_views(prepare(views=3))
    assert isinstance(found, TextViews) and found.count == 3
    assert found.known.tolist() == [5, 6, 7, 8] and sorted(found.others[2]) == [5, 5, 6, 7, 8]  # a small table


def test_tokens_of_a_large_table_are_exchanged_for_neighbours(prepare, monkeypatch):
    monkeypatch.setattr(views, "NEIGHBOURS", 3)
    found = choose_views(prepare(views=1))
    assert found.known.tolist() == [5, 6, 7, 8] and found.others.shape == (4, 3)
    assert not (found.others == found.known[:, None]).any()


def test_a_view_keeps_padding_the_mask_and_the_tokens_that_start_and_end_texts(prepare):
    made = choose_views(prepare(views=1))
    drawn = [made.draw(FEEDS, np.random.default_rng(seed)) for seed in range(20)]
    for each in drawn:
        assert np.array_equal(each["attention_mask"], FEEDS["attention_mask"])
        same = each["input_ids"] == IDS
        assert same[np.isin(IDS, (0, 1, 2))].all() and np.isin(each["input_ids"][~same], (5, 6, 7, 8)).all()
    assert any((each["input_ids"] != IDS).any() for each in drawn) and IDS[0, 1] == 5


def test_the_mask_of_a_decoder_has_its_past_in_front():
    mask = np.concatenate((np.zeros((3, 2), np.int64), FEEDS["attention_mask"]), axis=1)
    made = TextViews(1, np.arange(10), np.full((10, 1), 9))
    for seed in range(20):
        drawn = made.draw({"input_ids": IDS, "attention_mask": mask}, np.random.default_rng(seed))["input_ids"]
        assert drawn[1, 3] == 0
    assert (drawn == 9).any()


def test_texts_that_are_all_the_same_have_no_views(prepare):
    prepared = prepare({name: each[:1] for name, each in FEEDS.items()}, views=2)
    assert choose_views(prepared) is None
    assert [each.reason for each in prepared.run.left_out if each.what == "views"] == [
        "all texts have the same tokens, which stay as they are"
    ]


def test_arrays_of_tokens_have_views_only_when_asked(prepare):
    assert choose_views(prepare(weight_bits=4)) is None and choose_views(prepare(views=0)) is None


def test_texts_have_views_by_effort_while_they_are_few(prepare, tokenizer):
    def count(texts, **settings):
        found = choose_views(prepare(texts, data=tokenizer, **settings))
        return found and found.count

    four, few = {"weight_bits": 4, "first_last_bits": 4}, ["1 5 6 2", "1 7 2"]
    assert [count(few, **four, effort=effort) for effort in ("fast", "balanced", "best")] == [None, 1, 3]
    enough = -(-6 * ENOUGH_TOKENS // 4)
    assert count((enough // 2 + 1) * ["1 5 6 2", "1 7 8 2"], **four, effort="best") is None
    assert count((enough // 3) * ["1 5 6 2"] + few, **four, effort="best") == 2
    assert count(few) is None and count(few, **four, activation_bits=32) is None
    assert count(few, **four, views=0) is None and count(few, views=3) == 3
