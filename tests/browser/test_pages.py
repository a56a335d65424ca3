"""Pages in Chromium, by hand of Playwright: make browser. Nothing of these runs in the default suite.

What is looked at: no error, no request, the verdict in sight, tables that sort and filter, plots, text to copy that the
tool takes, faults of accessibility by axe-core, and the time and size of a page of 500 layers.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from onnxcalib.cli.main import main
from onnxcalib.pages.page import draw_report
from tests.sample_files import write_all

playwright = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.browser

CHROMIUM = shutil.which(os.environ.get("CHROMIUM", "chromium")) or shutil.which("google-chrome")
ROOT = Path(__file__).resolve().parents[2]
AXE = Path(os.environ.get("AXE", ROOT / ".venv/axe/node_modules/axe-core/axe.min.js"))
# Without what Chromium would ask of a network by itself.
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
SIZES = {"wide": (1280, 800), "narrow": (400, 800)}
MOST_BYTES, MOST_SECONDS, MANY = 5_000_000, 2.0, 500
NAMES = ("quantize", "plan", "validate", "inspect")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A folder of models and samples, and the page that each command made of them."""
    folder = tmp_path_factory.mktemp("pages")
    write_all(folder)
    before = Path.cwd()
    os.chdir(folder)
    try:
        calib = ("model.onnx", "--calib", "images", "--quiet")
        made = ("-o", "q.onnx", "--weight-bits", "4", "--activation-bits", "4", "--report", "quantize.json")
        assert main(["quantize", *calib, *made, "--html", "quantize.html"]) == 0
        assert main(["plan", *calib, "--max-size", "0.3", "--frontier", "-o", "p.json", "--html", "plan.html"]) == 0
        assert main(["inspect", "q.onnx", "--html", "inspect.html"]) == 0
        gates = ("--min-sqnr", "60", "--max-size-ratio", "0.5", "--max-steps", "9")
        against = ("model.onnx", "q.onnx", "--data", "test", "--explain", "--quiet")
        assert main(["validate", *against, *gates, "--html", "validate.html"]) == 3
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium here; $CHROMIUM names one")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield found
        found.close()


@pytest.fixture
def visit(browser):
    """Opens a file as a page that must not complain nor ask for anything; call it with a file and a size."""
    opened = []

    def go(path: Path, size: str = "wide", **options):
        width, height = SIZES[size]
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        page = context.new_page()
        said, asked = [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        opened.append((context, said, asked, path))
        return page

    yield go
    for context, said, asked, path in opened:
        context.close()
        assert said == [] and asked == [path.as_uri()]


def draw_all(page) -> None:
    """Wait until all plots are drawn, those that nobody has scrolled to as well."""
    for chart in page.locator(".chart").all():
        chart.locator("svg").wait_for(timeout=5000, state="attached")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", NAMES)
def test_a_page_opens_without_an_error_and_its_verdict_is_in_sight(visit, pages, name, scheme, size):
    page = visit(pages / f"{name}.html", size, color_scheme=scheme)
    draw_all(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
    page.evaluate("scrollTo(0, 0)")
    for selector in ("h1", ".figures", *([".gates li"] if name in ("plan", "validate") else [])):
        box = page.locator(selector).first.bounding_box()
        assert box["y"] + min(box["height"], 30) <= SIZES[size][1], selector
    if name == "validate":
        assert page.locator(".verdict").text_content() == "FAILED"
        assert page.locator(".gates .badge").all_text_contents().count("FAIL") == 1
    charts = page.locator(".chart").count()
    assert page.locator(".chart svg").count() == charts and (charts > 0 or name == "inspect")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", NAMES)
def test_axe_finds_no_serious_fault(visit, pages, name, scheme):
    if not AXE.is_file():
        pytest.skip(f"no {AXE}; make browser installs it")
    page = visit(pages / f"{name}.html", color_scheme=scheme, bypass_csp=True)
    draw_all(page)
    if name == "quantize":
        page.locator("button.open").first.click()
        page.locator(".plots svg").first.wait_for()
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run()")["violations"]
    serious = [each for each in found if each["impact"] in ("serious", "critical")]
    assert [(each["id"], each["nodes"][0]["html"]) for each in serious] == []


def read_column(page, table: str, place: int) -> list[str]:
    return page.locator(f"#{table} tbody tr:not([hidden]) > :nth-child({place + 1})").all_text_contents()


def test_tables_sort_filter_and_open(visit, pages):
    page = visit(pages / "quantize.html")
    table = "layers-1"
    head = page.locator(f"#{table} thead th", has_text="SQNR")
    place = page.locator(f"#{table} thead th").all_text_contents().index("SQNR, dB")
    head.locator("button").click()
    values = [float(each) for each in read_column(page, table, place)]
    assert len(values) == 4 and values == sorted(values) and head.get_attribute("aria-sort") == "ascending"
    head.locator("button").click()
    assert [float(each) for each in read_column(page, table, place)] == values[::-1]
    assert head.get_attribute("aria-sort") == "descending"
    page.locator(f"#{table}-filters select").first.select_option("Gemm")
    assert read_column(page, table, 1) == ["Gemm"]
    assert page.locator(f"#{table}-filters output").text_content() == "1 of 4"
    page.locator(f"#{table}-filters select").first.select_option("")
    page.locator(f"#{table}-filters input").fill("head")
    assert read_column(page, table, 0) == ["/head/Conv"]
    page.locator(f"#{table} button.open:visible").focus()
    page.keyboard.press("Enter")
    page.locator(".plots svg").nth(1).wait_for()
    assert page.locator(".plots figcaption").count() == 2
    page.keyboard.press("Enter")
    assert page.locator(".plots").count() == 0


def test_text_to_copy_is_taken_by_quantize(visit, pages, monkeypatch):
    page = visit(pages / "validate.html")
    page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    page.locator("button[data-copy]").click()
    page.locator("button[data-copy]", has_text="Copied").wait_for()
    text = page.evaluate("window.copied")
    assert text.startswith("[layers.")
    monkeypatch.chdir(pages)
    Path("copied.toml").write_text(text)
    calib = ["model.onnx", "--calib", "images", "--effort", "fast", "--quiet", "--config", "copied.toml"]
    assert main(["quantize", *calib, "-o", "again.onnx"]) == 0


def test_a_page_of_500_layers_is_small_and_opens_at_once(visit, pages, tmp_path):
    data = json.loads((pages / "quantize.json").read_text())
    model = data["layers"]
    data["layers"] = [{**model[i % len(model)], "name": f"/stage{i // 50}/block{i}/Conv"} for i in range(MANY)]
    names = [each["name"] for each in data["layers"]]
    data["places"] = [
        {"name": name, "layers": [name], "after": [names[j] for j in (i - 1, i - 3 if i % 4 == 0 else -1) if j >= 0]}
        for i, name in enumerate(names)
    ]
    block = {**data["blocks"][0], "loss_before": 0.01, "loss_after": 0.004}
    data["blocks"] = [{**block, "name": name} for name in names]
    path = tmp_path / "many.html"
    path.write_text(draw_report(json.dumps(data)))
    assert path.stat().st_size < MOST_BYTES
    page = visit(path)
    page.wait_for_load_state("load")
    seconds = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd") / 1000
    assert 0 < seconds < MOST_SECONDS
    draw_all(page)
    assert page.locator(".flow rect").count() == MANY
    page.locator("#layers-1 thead button", has_text="SQNR").click()
    page.locator("#layers-1-filters input").fill("block499/")
    assert read_column(page, "layers-1", 0) == ["/stage9/block499/Conv"]


def test_a_printed_page_is_light_and_has_no_controls(visit, pages):
    page = visit(pages / "validate.html", color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("button[data-copy]").is_visible() and not page.locator(".filters").first.is_visible()
