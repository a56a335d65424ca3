"""What onnxruntime refuses of the file with solved layers stays in float, and the file is made all the same."""

import numpy as np
import pytest
from onnx import numpy_helper

import onnxcalib
from onnxcalib import QuantizeConfig, pipeline
from onnxcalib.errors import ModelError
from onnxcalib.graph.index import Index
from onnxcalib.quantization import trial
from onnxcalib.quantization.trial import find_fault

CHAIN = """g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) {
    [one] a = Conv (x, w1)  [sigmoid] b = Sigmoid (a)  [two] c = Conv (b, w2)  [add] d = Add (c, b)
    [three] y = Conv (d, w3)
}"""


@pytest.fixture
def chain(build, weigh):
    return build(CHAIN, **{f"w{i}": weigh(4, 4, 1, 1) for i in (1, 2, 3)})


def is_fused(index, node):
    """Whether a node stands between Q and DQ alone, so that onnxruntime computes it on integers."""
    makers = [index.producer.get(t) for t in node.input]
    readers = index.readers(node.output[0])
    return all(n is not None and n.op_type == "DequantizeLinear" for n in makers) and all(
        n.op_type == "QuantizeLinear" for n in readers
    )


@pytest.fixture
def refuse(monkeypatch):
    """Lets onnxruntime refuse these nodes on integers, but only in files with real weights."""

    def start(*names):
        def find(model, feeds, threads=0, **options):
            index = Index(model.graph)
            weights = [numpy_helper.to_array(t) for t in model.graph.initializer if len(t.dims) == 4]
            held = [name for name in names if is_fused(index, index.nodes[name])]
            if held and any(np.any(w) for w in weights if w.dtype == np.int8):
                return f"[E] no kernel for {held[0]}"
            return find_fault(model, feeds, threads, **options)

        monkeypatch.setattr(trial, "find_fault", find)

    return start


@pytest.mark.parametrize(("names", "reconstruct"), [(["add"], False), (["two"], True), (["sigmoid", "three"], False)])
def test_a_node_that_is_refused_with_real_values_stays_in_float(chain, draw, refuse, names, reconstruct):
    refuse(*names)
    result = onnxcalib.quantize(
        chain, draw(16, 4, 8, 8), QuantizeConfig(reconstruct=reconstruct, placement="all", threads=1)
    )
    left = {record.name: record.reason for record in result.report.in_float}
    assert left.keys() == set(names)
    assert all(
        "with it on integers, onnxruntime cannot take the file: [E] no kernel for" in why for why in left.values()
    )
    assert trial.find_fault(result.model, {"x": draw(1, 4, 8, 8)}) is None
    assert {layer.name for layer in result.report.layers} == {"one", "two", "three"}.difference(names)
    assert result.report.outputs[0].sqnr_db > 25


def test_the_stages_on_their_own_leave_it_in_float_too(chain, draw, refuse):
    refuse("two")
    prepared = pipeline.prepare(
        chain, draw(16, 4, 8, 8), QuantizeConfig(reconstruct=False, statistics=True, placement="all", threads=1)
    )
    found = pipeline.reconstruct(prepared)
    assert not prepared.in_float and list(found.in_float) == ["two"] and "two" not in found.layers
    report = pipeline.verify(prepared, found, pipeline.emit(prepared, found))
    assert [record.name for record in report.in_float] == ["two"]


def test_a_layer_that_reads_fewer_bits_than_what_is_left_keeps_its_grid(chain, draw, refuse):
    """Without the node of 8 bits the tensor has 4, which its layer was solved on."""
    refuse("add")
    layers = {"two": {"weight_bits": 4, "activation_bits": 4}}
    result = onnxcalib.quantize(
        chain, draw(16, 4, 8, 8), QuantizeConfig(layers=layers, reconstruct=False, placement="all", threads=1)
    )
    assert [record.name for record in result.report.in_float] == ["add"]
    assert result.report.outputs[0].sqnr_db > 10


def test_a_model_of_which_no_layer_is_taken_is_refused_in_one_sentence(chain, draw, refuse):
    refuse("one", "two", "three")
    with pytest.raises(
        ModelError, match=r"^graph: onnxruntime takes no layer of it on integers: \[E\] no kernel for one"
    ):
        onnxcalib.quantize(chain, draw(16, 4, 8, 8), QuantizeConfig(reconstruct=False, placement="all", threads=1))


def test_a_file_that_is_taken_is_tried_once(chain, draw, monkeypatch):
    tried = []
    monkeypatch.setattr(trial, "find_fault", lambda model, *_, **options: tried.append(model))
    onnxcalib.quantize(chain, draw(16, 4, 8, 8), QuantizeConfig(reconstruct=False, placement="all", threads=1))
    assert len(tried) == 2  # with placeholders, and as it is
