"""Pages of a report, of a bit plan and of a frontier: steps, histograms, the graph, and what was chosen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from onnxcalib.bitplan import BitPlan, Frontier, Point, SetRecord, Totals
from onnxcalib.layer_record import HistogramRecord, LayerRecord, LossRecord, PlaceRecord
from onnxcalib.pages.flow import COLUMNS, draw_flow
from onnxcalib.pages.page import draw_plan, draw_report
from onnxcalib.report import (
    BlockRecord,
    ExpectedRecord,
    FloatRecord,
    LeftOutRecord,
    MeasuredOn,
    OutputRecord,
    Report,
    SpeedRecord,
    StageRecord,
)

from .reading import Read

ODD = "<i>&'\""
OUTPUT = OutputRecord(
    "y", 31.25, 0.999, 0.5, 0.975, (30.0, 32.5), (0.95, 1.0), expected=ExpectedRecord(29, None, 0.9, None)
)
WEIGHT = HistogramRecord("w", -1.0, 2.0, (0, 1, 5000, 2), (-1.5, 1.25))
PLAN = BitPlan(
    model="0" * 64,
    budgets={"max_size": 200.0, "max_disagreement": 2.0},
    layers={"stem": "W8A8", ODD: "W4A8", "loop": "float"},
    in_float={"loop": "it would run slower"},
    totals=Totals(predicted_loss=0.5, measured_loss=0.625, bytes=100, bops=6400, agreement=98.5),
    eight_bit=Totals(predicted_loss=0.001, measured_loss=0.001, bytes=400, bops=9000),
    bound=0.25,
    rounds=2,
    sets=(
        SetRecord(layers=("stem",), macs=9, loss={"W8A8": 0.125}, bytes={"W8A8": 60}, bops={"W8A8": 100}),
        SetRecord(
            layers=(ODD,),
            macs=9,
            loss={"W8A8": 0.0625, "W4A8": 0.375, "W4A4": None},
            bytes={"W8A8": 80, "W4A8": 40, "W4A4": 40},
            bops={"W8A8": 100, "W4A8": 50, "W4A4": 25},
        ),
    ),
)
FRONTIER = Frontier(
    model="0" * 64,
    float_bytes=1000,
    points=(Point(bytes=100, bops=6400, loss=0.5, layers={}), Point(bytes=200, bops=9000, loss=0.25, layers={})),
    uniform={"W4A4": Point(bytes=90, bops=3200, loss=None, layers={})},
)
REPORT = Report(
    settings={"effort": "balanced"},
    blocks=(
        BlockRecord("stem", ("stem",), "reconstructed", None, 0.5, 0.125, 1.5, (LossRecord("stem", 0.01, -0.002),)),
        BlockRecord(ODD, (ODD,), "solved"),
    ),
    steps=(
        StageRecord("reconstruct", "done", (OUTPUT,)),
        StageRecord("biases", "rolled back", (OUTPUT,), "no nearer"),
    ),
    layers=(
        LayerRecord("stem", "Conv", 8, 8, 34.5, weight=WEIGHT, bytes=60, on_integers=True),
        LayerRecord(ODD, "Conv", 4, 8, 4.5),
    ),
    outputs=(OUTPUT,),
    float_bytes=1000,
    quantized_bytes=250,
    bits_per_weight=4.25,
    samples=300,
    measured_on=MeasuredOn("held out", 100),
    seconds={"prepare": 1.0, "reconstruct": 3.0},
    float_pass_seconds=0.02,
    speed=SpeedRecord(2.0, 1.0, 2.0, (1.9, 2.1)),
    warnings=("odd values",),
    plan=PLAN.model_dump(mode="json", by_alias=True),
    left_out=(LeftOutRecord("views of images", "no images"),),
    in_float=(FloatRecord("loop", "Loop", "it would run slower", 12),),
    places=(
        PlaceRecord("stem", (), ("stem",)),
        PlaceRecord("tail", ("stem",), ()),
        PlaceRecord(ODD, ("stem", "tail"), (ODD,)),
    ),
    environment={"onnxruntime": "1.32.0"},
)


@pytest.fixture(autouse=True)
def _without_library(monkeypatch):
    monkeypatch.setattr("onnxcalib.pages.page.load_script", lambda: "")


def test_all_that_a_report_has_is_on_its_page():
    page = Read(draw_report(REPORT.to_json()))
    assert page.open == [] and page.loads == [] and len(page.ids) == len(set(page.ids))
    assert page.headings[0] == (
        "97.5% of the answers are the float model's; the file is 0.25 of the float model's size;"
        " it runs 2.0 times as fast here"
    )
    few = Read(draw_report(replace(REPORT, measured_on=MeasuredOn("test", 40)).to_json()))
    assert few.headings[0].startswith("39 of 40 answers are the float model's; ")
    for text in (
        "measured on 100 samples held out; the file was made from 300 others",
        "4.0 s 200 float passes",
        "warning: odd values",
        "effort balanced",
        "onnxruntime 1.32.0",
        "bits a weight 4.25",
        "2.00 × float 2 → 1 ms a run",
    ):
        assert text in page.text
    rows = [row for table in page.tables for row in table]
    assert ["y", "expected", "90.00", "–", "29.00", "–", "–", "–"] in rows
    assert ["stem", "Conv", "W8A8", "34.5", "1%", "-0.2%", "60 B", "24.0%", "25.0%", "integers"] in rows
    assert [ODD, "Conv", "W4A8", "4.5", "–", "–", "–", "–", "75.0%", "–"] in rows
    assert ["biases", "rolled back", "y", "97.50", "31.25", "no nearer"] in rows
    assert ["stem", "reconstructed", "5.00e-01", "1.25e-01", "0.250", "1.5"] in rows
    assert ["loop", "Loop", "12 B", "it would run slower"] in rows
    assert ["views of images", "no images"] in rows
    assert ["reconstruct", "3.0", "75.0%"] in rows
    assert [ODD, "W4A8", "75.0%", "40 B", "6.25e-02", "3.75e-01", "–"] in rows
    assert {"layers", "path", "graph", "steps", "sets", "kernels", "time", "conditions"} <= set(page.ids)


def test_a_row_has_the_plots_of_its_layer_and_no_other():
    page = Read(draw_report(REPORT.to_json()))
    assert [found["data-plots"] for _, found in page.attributes if "data-plots" in found] == ["w0"]
    chart = page.data["charts"]["w0"]
    assert chart["rows"] == [{"low": -1.0, "high": 2.0, "counts": [0, 1, 1000, 1], "grid": [-1.5, 1.25]}]
    assert chart["text"] == "Weights w: -1 to 2; grid -1.5 to 1.25"
    assert set(page.data["specs"]) == {"path", "stages", "histogram", "sensitivity"}


def test_the_graph_has_every_block_and_every_edge():
    page = Read(draw_report(REPORT.to_json()))
    boxes = [found["class"] for tag, found in page.attributes if tag == "rect" and "rx" in found]
    assert boxes == ["level3", "none", "level0"]
    assert sum(tag == "path" for tag, _ in page.attributes) == 3
    assert f"{ODD}: {ODD} 4.5 dB" in page.text


def test_a_long_graph_goes_on_in_the_next_row():
    names = [f"b{i}" for i in range(COLUMNS + 2)]
    places = [{"name": name, "after": names[max(i - 1, 0) : i], "layers": [name]} for i, name in enumerate(names)]
    (drawing,) = draw_flow(places, {}).parts
    assert [box.x for box in drawing.boxes[COLUMNS:]] == [box.x for box in drawing.boxes[:2]]
    assert drawing.boxes[COLUMNS].y > drawing.boxes[0].y and drawing.height > 2 * drawing.size
    assert len(drawing.lines) == len(names)  # the one between the rows has two ends
    assert max(box.x for box in drawing.boxes) < drawing.width


def test_a_plan_has_its_budgets_losses_and_the_frontier():
    page = Read(draw_plan(PLAN.to_json(), FRONTIER.to_json()))
    assert page.headings[:2] == ["Loss 6.25e-01 at 100 B, 0.25 of the file at 8 bits", "Budgets"]
    assert "100 bytes, at most 200" in page.text and "1.5 % of the answers differ, at most 2" in page.text
    rows = [row for table in page.tables for row in table]
    assert ["stem", "W8A8", "25.0%", "60 B", "1.25e-01", "–", "–"] in rows
    assert ["planned", "200", "0.200", "9e+03", "2.50e-01"] in rows and [
        "W4A4",
        "90",
        "0.090",
        "3.2e+03",
        "infinite",
    ] in rows
    assert ["loop", "it would run slower"] in rows
    points = page.data["charts"]["frontier"]["rows"]
    assert [(each["kind"], each["size"], each["loss"]) for each in points] == [
        ("planned", 0.1, 0.5),
        ("planned", 0.2, 0.25),
        ("this plan", 0.1, 0.5),
    ]
    chosen = [(each["layer"], each["bits"]) for each in page.data["charts"]["sensitivity"]["rows"] if each["chosen"]]
    assert chosen == [("stem", "W8A8"), (ODD, "W4A8")]


def test_a_frontier_alone_and_a_plan_alone_have_pages():
    assert "2 sizes, and the least loss of each" in Read(draw_plan(None, FRONTIER.to_json())).text
    assert "frontier" not in Read(draw_plan(PLAN.to_json())).ids
