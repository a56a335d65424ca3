"""Models of token sequences from end to end: padding changes nothing, labels and metrics keep their samples."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from onnxcalib import (
    ConfigError,
    DataConfig,
    DataError,
    QuantizeConfig,
    ValidateConfig,
    open_calibration,
    pipeline,
    plan,
    quantize,
    validate,
)
from onnxcalib.graph.load import inputs_of

WORDS, WIDTH = 20, 8
# Self-attention with a mask and a mean over what it counts, as sentence encoders have them.
ENCODER = """g (int64[N, S] input_ids, int64[N, S] attention_mask) => (float[N, C] y) <
    int64[1] one = {1}, int64[1] two = {2}, float tiny = {1e-9}, float far = {-10000.0}, float unit = {1.0}
> {
    [embed] e = Gather (table, input_ids)
    [q] q = MatMul (e, wq)  [k] k = MatMul (e, wk)  [v] v = MatMul (e, wv)
    [turn] kt = Transpose <perm = [0, 2, 1]> (k)  [score] s = MatMul (q, kt)
    [mask] m = Cast <to = 1> (attention_mask)  [not] o = Sub (unit, m)  [big] b = Mul (o, far)
    [open] u = Unsqueeze (b, one)  [hide] h = Add (s, u)  [soft] p = Softmax (h)
    [mix] a = MatMul (p, v)  [join] r = Add (a, e)  [act] t = Relu (r)  [out] d = MatMul (t, wo)
    [wide] w = Unsqueeze (m, two)  [keep] f = Mul (d, w)
    [sum] z = ReduceSum <keepdims = 0> (f, one)  [count] c = ReduceSum <keepdims = 1> (m, one)
    [mean] x = Div (z, c)  [head] y = Gemm (x, wh, bh)
}"""
LENGTHS = np.random.default_rng(3).integers(2, 9, 40)
IDS = np.random.default_rng(4).integers(1, WORDS, (40, 8)) * (np.arange(8) < LENGTHS[:, None])
MASK = (IDS > 0).astype(np.int64)


@pytest.fixture
def encoder(build, weigh):
    weights = {name: weigh(WIDTH, WIDTH) for name in ("wq", "wk", "wv", "wo")}
    return build(ENCODER, table=weigh(WORDS, WIDTH) * 3, **weights, wh=weigh(WIDTH, 5), bh=weigh(5))


def settings(**more):
    return QuantizeConfig(**{"threads": 1, "effort": "fast", **more})


@pytest.mark.parametrize("bits", [{}, {"weight_bits": 4, "effort": "best"}, {"pipeline": "advanced"}])
def test_padded_and_unpadded_samples_give_the_same_model_to_the_byte(encoder, tmp_path, bits):
    padded = quantize(encoder, {"input_ids": IDS, "attention_mask": MASK}, settings(**bits)).model
    for number, (row, length) in enumerate(zip(IDS, LENGTHS, strict=True)):
        np.savez(
            tmp_path / f"{number:02}.npz",
            input_ids=row[None, :length],
            attention_mask=MASK[number : number + 1, :length],
        )
    apart = quantize(encoder, tmp_path, settings(**bits)).model
    assert padded.SerializeToString() == apart.SerializeToString()


# Of as many features as tokens: an axis is not told by its length.
POOLED = ENCODER.replace("[N, S]", "[N, 8]")
BY_TOKEN = POOLED.replace("=> (float[N, C] y)", "=> (float[N, C] y, float[N, 8, 8] d)")
FLAT = """g (int64[N, 8] input_ids, int64[N, 8] attention_mask) => (float[N, 8, 8] y) <
    int64[2] rows = {-1, 8}, int64[3] tokens = {-1, 8, 8}
> {
    [embed] e = Gather (table, input_ids)  [flatten] f = Reshape (e, rows)  [first] g = Gemm (f, wq, bh)
    [act] r = Relu (g)  [second] h = MatMul (r, wk)  [open] y = Reshape (h, tokens)
}"""


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_bits": 4, "effort": "balanced"},
        {"weight_bits": 4, "effort": "best"},
        {"weight_bits": 4, "activation_bits": 4, "steps": 12},
        {"steps": 12, "pipeline": "advanced"},
        {"weight_bits": 4, "pipeline": "light"},
        {"max_bops": "0.9@8-bit", "first_last_bits": 4, "jobs": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("text", [POOLED, BY_TOKEN, FLAT], ids=["pooled", "by token", "flat"])
def test_garbage_behind_the_mask_of_a_model_of_fixed_length_changes_nothing(build, weigh, text, options):
    weights = {name: weigh(WIDTH, WIDTH) for name in ("wq", "wk", "wv", "wo", "wh")}
    model = build(text, table=weigh(WORDS, WIDTH) * 3, **weights, bh=weigh(WIDTH))
    mask, found = np.tile(MASK, (4, 1)), []
    for garbage in (0, 17):
        ids = np.where(mask, np.tile(IDS, (4, 1)), garbage)
        found.append(quantize(model, {"input_ids": ids, "attention_mask": mask}, settings(**options)))
    assert found[0].model.SerializeToString() == found[1].model.SerializeToString()
    assert [o.sqnr_db for o in found[0].report.outputs] == [o.sqnr_db for o in found[1].report.outputs]
    assert found[0].report.steps == found[1].report.steps


def test_padding_is_not_compared_when_a_model_of_fixed_length_is_validated(build, weigh):
    weights = {name: weigh(WIDTH, WIDTH) for name in ("wq", "wk", "wv", "wo", "wh")}
    text = BY_TOKEN.replace(" d)", " d, int64[N, 8] best)").replace(
        "[sum]", "[top] best = ArgMax <axis = 2, keepdims = 0> (d) [sum]"
    )
    model = build(text, table=weigh(WORDS, WIDTH) * 3, **weights, bh=weigh(WIDTH))
    data = [{"input_ids": np.where(MASK, IDS, garbage), "attention_mask": MASK} for garbage in (0, 17)]
    quantized = quantize(model, data[0], settings(weight_bits=4)).model
    found = [validate(model, quantized, each, ValidateConfig(threads=1)).outputs for each in data]
    assert found[0] == found[1] and {record.name for record in found[0]} == {"y", "d", "best"}


@pytest.mark.parametrize("activation_bits", [8, 4])
@pytest.mark.parametrize("kind", ["min-max", "percentile", "squared-error"])
def test_padding_that_is_run_gives_the_ranges_of_a_model_that_needs_none(build, weigh, kind, activation_bits):
    weights = {name: weigh(WIDTH, WIDTH) for name in ("wq", "wk", "wv", "wo", "wh")}
    weights |= {"table": weigh(WORDS, WIDTH) * 3, "bh": weigh(WIDTH)}
    bits, found = {"activation_bits": activation_bits, "first_last_bits": activation_bits, "range": kind}, []
    for text in (ENCODER, POOLED):
        result = quantize(build(text, **weights), {"input_ids": IDS, "attention_mask": MASK}, settings(**bits))
        grids = {i.name: onnx.numpy_helper.to_array(i) for i in result.model.graph.initializer}
        found.append({name: grid for name, grid in grids.items() if name.endswith("_scale") and grid.size == 1})
    assert found[0].keys() == found[1].keys() and len(found[0]) > 8
    for name, grid in found[0].items():
        np.testing.assert_allclose(found[1][name], grid, rtol=1e-6, err_msg=name)


def write_tokenizer(folder):
    """The texts whose tokens are IDS, and the tokenizer that says so."""
    names = [f"w{number}" for number in range(WORDS)]
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    texts = [" ".join(names[i] for i in row[:length]) for row, length in zip(IDS, LENGTHS, strict=True)]
    return texts, folder / "tokenizer.json"


def test_texts_give_the_model_that_their_tokens_give(encoder, tmp_path):
    texts, tokenizer = write_tokenizer(tmp_path)
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    config = settings(data=DataConfig(tokenizer=tokenizer))
    by_text = [quantize(encoder, source, config).model for source in (texts, tmp_path / "texts.txt")]
    by_token = quantize(encoder, {"input_ids": IDS, "attention_mask": MASK}, settings()).model
    assert by_text[0].graph == by_text[1].graph == by_token.graph
    assert not any(str(tmp_path) in entry.value for entry in by_text[1].metadata_props)


@pytest.mark.parametrize("shape", ["1,12", ["input_ids=1,12"], ["attention_mask=1,12", "input_ids=1,12"]])
def test_a_fixed_shape_pads_texts_to_it_and_is_that_of_the_file(encoder, tmp_path, shape):
    texts, tokenizer = write_tokenizer(tmp_path)
    data = DataConfig(tokenizer=tokenizer, shape=shape)
    fixed = quantize(encoder, texts, settings(data=data, reconstruct=False)).model
    assert [spec.shape for spec in inputs_of(fixed)] == [(1, 12), (1, 12)]
    assert [dim.dim_value for dim in fixed.graph.output[0].type.tensor_type.shape.dim] == [1, 5]
    assert not [node for node in fixed.graph.node if node.op_type == "Shape"]


def test_a_file_of_a_fixed_shape_is_compared_with_the_float_model_of_any_and_the_reverse(encoder, tmp_path):
    texts, tokenizer = write_tokenizer(tmp_path)
    free, fixed = (DataConfig(tokenizer=tokenizer, **shape) for shape in ({}, {"shape": "1,12"}))
    for made, judged in ((fixed, free), (free, fixed)):
        file = quantize(encoder, texts, settings(data=made, reconstruct=False)).model
        verdict = validate(encoder, file, texts, ValidateConfig(threads=1, data=judged))
        assert verdict.samples == len(texts) and verdict.outputs[0].sqnr_db > 25


def test_an_encoder_for_a_device_of_whole_groups_runs_on_integers_alone(encoder, tmp_path):
    texts, tokenizer = write_tokenizer(tmp_path)
    data = DataConfig(tokenizer=tokenizer, shape="1,12")
    result = quantize(encoder, texts, settings(data=data, target="qnn"))
    assert result.report.in_float == () and result.report.outputs[0].sqnr_db > 25
    assert result.report.lint is not None and result.report.lint.passed
    # Hidden tokens leave no trace: a file of 8 tokens, the longest that there are, gives the same to its own error.
    short = quantize(encoder, texts, settings(data=DataConfig(tokenizer=tokenizer, shape="1,8"), target="qnn"))
    assert abs(short.report.outputs[0].sqnr_db - result.report.outputs[0].sqnr_db) < 2


def test_a_fixed_shape_cuts_texts_to_it(encoder, tmp_path):
    texts, tokenizer = write_tokenizer(tmp_path)
    samples = open_calibration(texts, encoder, DataConfig(tokenizer=tokenizer, shape="1,3"))
    assert samples.fixed_batch == 1 and samples.read([0])["input_ids"].shape == (1, 3)
    assert open_calibration(texts, inputs_of(encoder), DataConfig(tokenizer=tokenizer, shape="1,3")).fixed_batch == 1


def test_a_plan_and_ranges_fit_the_same_shape_alone(encoder, tmp_path):
    texts, tokenizer = write_tokenizer(tmp_path)
    data = DataConfig(tokenizer=tokenizer, shape="1,8")
    found = plan(encoder, texts, settings(max_size="1@8-bit", cache_dir=tmp_path, jobs=1, data=data))
    rounded = settings(data=data, reconstruct=False)
    ranges = pipeline.calibrate(pipeline.prepare(encoder, texts, rounded, plan=found))
    assert quantize(encoder, texts, rounded, plan=found, ranges=ranges).report.samples == len(texts)
    free = settings(data=DataConfig(tokenizer=tokenizer))
    for given in ({"plan": found}, {"ranges": ranges}):
        with pytest.raises(ConfigError, match=r"th.* model.*, with the same shape$"):
            quantize(encoder, texts, free, **given)


def test_samples_that_do_not_fit_a_fixed_shape_are_refused(encoder, tmp_path):
    texts, tokenizer = write_tokenizer(tmp_path)
    config = settings(data=DataConfig(tokenizer=tokenizer, shape="1,12"))
    with pytest.raises(DataError, match=r"found shape \(40, 8\); the model takes \(1, 12\)"):
        quantize(encoder, {"input_ids": IDS, "attention_mask": MASK}, config)
    samples = open_calibration(texts, encoder, DataConfig(tokenizer=tokenizer))
    with pytest.raises(
        DataError, match=r"opened for the inputs 'input_ids' \(any, any\).*; the model's are 'input_ids' \(1, 12\)"
    ):
        quantize(encoder, samples, config)


def test_all_samples_are_seen_and_all_layers_solved(encoder):
    result = quantize(encoder, {"input_ids": IDS, "attention_mask": MASK}, settings())
    assert result.report.samples == 40 and len(result.report.layers) >= 5
    assert {block.outcome for block in result.report.blocks} <= {"solved", "reconstructed"}
    assert all(layer.sqnr_db > 20 for layer in result.report.layers)


def test_bits_of_a_model_of_sequences_are_planned(encoder, tmp_path):
    config = settings(max_bops="0.9@8-bit", cache_dir=tmp_path, jobs=2)
    found = plan(encoder, {"input_ids": IDS, "attention_mask": MASK}, config)
    assert {each.weight_bits for each in found.settings().values()} == {4, 8}


def test_labels_and_a_metric_keep_their_samples(encoder, run, tmp_path, monkeypatch):
    scores = np.concatenate([run(encoder, IDS[i : i + 1, :n], MASK[i : i + 1, :n])[0] for i, n in enumerate(LENGTHS)])
    data = {"input_ids": IDS, "attention_mask": MASK, "labels": scores.argmax(1)}
    (tmp_path / "own.py").write_text(
        "import numpy as np\ndef right(outputs, labels):\n    return (outputs['y'].argmax(1) == labels).astype(float)\n"
    )
    monkeypatch.chdir(tmp_path)
    quantized = quantize(encoder, data, settings()).model
    verdict = validate(encoder, quantized, data, ValidateConfig(threads=1, metric="own:right", batch=4), explain=True)
    own, top, *_ = verdict.scores
    assert (own.name, own.float_score, top.name, top.float_score) == ("own:right", 1.0, "top-1", 100.0)
    assert verdict.latency.batch == 4 and verdict.samples == 40 and verdict.outputs[0].agreement > 0.9
