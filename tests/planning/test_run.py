"""Bits planned within budgets: what is measured, where, and what comes of it."""

import json
import os
import signal
import subprocess
import sys
from importlib.metadata import distributions

import numpy as np
import onnx
import pytest

import onnxcalib
from onnxcalib import ConfigError, Observer, QuantizeConfig, frontier, plan, quantize
from onnxcalib.quantization import placement
from onnxcalib.quantization.cost_placement import COSTS_MORE
from tests.test_pipeline import LIMITS, NET, SAMPLES, bits_of

PLAIN = NET.replace(", group = 8", "")


@pytest.fixture
def plain(build, weigh):
    weights = {"w1": weigh(8, 3, 3, 3), "w2": weigh(8, 8, 3, 3), "w3": weigh(8, 8, 3, 3), "w4": weigh(4, 8)}
    return build(PLAIN, **weights, b1=weigh(8), b2=weigh(8), b4=weigh(4), **LIMITS)


@pytest.mark.parametrize(
    ("limit", "fewest", "candidates"),
    [
        ("0.997@8-bit", "W4A8", "W8A8,W4A8"),
        ("0.985@8-bit", "W3A8", "W8A8,W3A8"),
        ("0.97@8-bit", "W2A8", "W8A8,W2A8"),
    ],
)
def test_a_model_is_planned_within_a_size_and_keeps_it(plain, limit, fewest, candidates, tmp_path):
    config = QuantizeConfig(effort="fast", max_size=limit, candidates=candidates)
    found = plan(plain, SAMPLES, config)
    result = quantize(plain, SAMPLES, config)
    assert bits_of(result.model) == found.layers
    assert result.report.quantized_bytes <= found.budgets["max_size"] and fewest in found.layers.values()
    result.save(tmp_path / "q.onnx")
    assert (tmp_path / "q.onnx").stat().st_size == result.report.quantized_bytes == found.totals.bytes
    assert found.layers["stem"] == found.layers["head"] == "W8A8"


def test_a_larger_budget_never_loses_more(plain):
    plans = [
        plan(plain, SAMPLES, QuantizeConfig(effort="fast", max_bops=limit))
        for limit in ("0.5@8-bit", "0.7@8-bit", "1@8-bit")
    ]
    losses = [each.totals.predicted_loss for each in plans]
    assert losses == sorted(losses, reverse=True) and set(plans[2].layers.values()) == {"W8A8"}
    assert all(each.totals.bops <= each.budgets["max_bops"] for each in plans)


def test_the_smallest_file_within_a_loss_is_planned(plain):
    config = QuantizeConfig(effort="fast", candidates="W8A8,W4A8")
    strict, loose = (plan(plain, SAMPLES, config.model_copy(update={"max_loss": loss})) for loss in (1e-7, 1.0))
    assert "W4A8" not in strict.layers.values() and loose.totals.bytes < strict.totals.bytes


def test_a_plan_file_is_obeyed_as_it_was_edited(plain, tmp_path):
    found = plan(plain, SAMPLES, QuantizeConfig(effort="fast", max_size="1@8-bit"))
    path = tmp_path / "plan.json"
    path.write_text(found.to_json().replace('"deep": "W8A8"', '"deep": "W4A4"'))
    result = quantize(plain, SAMPLES, QuantizeConfig(effort="fast"), plan=path)
    assert bits_of(result.model) == {**found.layers, "deep": "W4A4"}
    settings = {"weight_bits": 4, "activation_bits": 8, "layers": {"deep": {"weight_bits": 8, "activation_bits": 4}}}
    replaced = quantize(plain, SAMPLES, QuantizeConfig(effort="fast", **settings), plan=path)
    text = 'activation_bits, weight_bits, layers."deep": found beside a plan, which gives the bits of every layer'
    assert bits_of(replaced.model) == bits_of(result.model)
    assert [any(text in each for each in run.report.warnings) for run in (result, replaced)] == [False, True]


def test_a_plan_is_refused_beside_ranges_of_each_run(plain):
    config = QuantizeConfig(effort="fast", max_size="1@8-bit")
    found = plan(plain, SAMPLES, config)
    with pytest.raises(ConfigError, match=r"^activations: found 'dynamic' beside a plan, .* leave one of them out$"):
        quantize(plain, SAMPLES, QuantizeConfig(activations="dynamic"), plan=found)


@pytest.mark.parametrize(
    ("layers", "deep"),
    [
        ({"deep": {"weight_bits": 4, "activation_bits": 8}}, "W4A8"),
        ({".*": {"activation_bits": 8}, "deep": {"weight_bits": 4, "activation_bits": 4}}, "W4A4"),
        ({"deep": {"weight_bits": 4}, ".*": {"activation_bits": 8}}, "W8A8"),
    ],
)
def test_settings_of_layers_stand_above_the_plan_and_the_last_one_holds(plain, layers, deep):
    config = QuantizeConfig(effort="fast", max_size="1MB", first_last_bits=4, layers=layers)
    found = plan(plain, SAMPLES, config)
    assert found.layers["deep"] == deep
    assert bits_of(quantize(plain, SAMPLES, config).model) == found.layers


def test_layers_left_in_float_are_so_by_the_plan_too(plain):
    found = plan(plain, SAMPLES, QuantizeConfig(effort="fast", max_size="1MB", exclude="deep"))
    assert found.layers["deep"] == "float" and not found.in_float
    result = quantize(plain, SAMPLES, QuantizeConfig(effort="fast"), plan=found)
    assert "deep" not in bits_of(result.model) and not result.report.in_float


def test_shares_are_of_all_at_8_bits_whatever_the_candidates(plain):
    both, light = (
        plan(plain, SAMPLES, QuantizeConfig(effort="fast", max_size="1@8-bit", candidates=names)).eight_bit
        for names in ("W8A8,W4A8", "W4A8")
    )
    assert both.bops == light.bops and both.bytes == pytest.approx(light.bytes, abs=16)


def test_a_budget_beside_a_plan_is_refused(plain):
    found = plan(plain, SAMPLES, QuantizeConfig(effort="fast", max_size="1@8-bit"))
    with pytest.raises(ConfigError, match=r"^plan: found a budget beside it; its bits are chosen already"):
        quantize(plain, SAMPLES, QuantizeConfig(max_size="1@8-bit"), plan=found)


def test_a_file_that_outgrows_its_budget_is_refused(plain, monkeypatch):
    found = plan(plain, SAMPLES, QuantizeConfig(effort="fast", max_size="1@8-bit"))
    small = found.model_copy(update={"budgets": {"max_size": 100.0}})
    monkeypatch.setattr(onnxcalib.planning.run, "make_bit_plan", lambda *_, **__: small)
    with pytest.raises(ConfigError, match=r"^max_size: found [\d,]+ bytes where [\d,]+ were planned; 100 are allowed"):
        quantize(plain, SAMPLES, QuantizeConfig(effort="fast", max_size="1@8-bit"))


def test_a_plan_for_another_model_is_refused(plain, deep):
    found = plan(plain, SAMPLES, QuantizeConfig(effort="fast", max_size="1@8-bit"))
    with pytest.raises(
        ConfigError, match=r"^plan: found one for the model \w{12}; this model is \w{12}; plan this one too"
    ):
        quantize(deep, SAMPLES, plan=found)


def test_planning_needs_a_budget_and_one_that_can_be_met(plain):
    with pytest.raises(ConfigError, match=r"^max_size: found no budget; give one of max_size, max_bops, "):
        plan(plain, SAMPLES, QuantizeConfig())
    with pytest.raises(ConfigError, match=r"^max_size: found 1,000 bytes; the smallest that can be reached is \d,\d+ "):
        plan(plain, SAMPLES, QuantizeConfig(effort="fast", max_size="1KB"))


DEEP = """g (float[N, 4, 6, 6] x) => (float[N, 16, 6, 6] y) {
    [c0] a0 = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)  [r0] r0 = Relu (a0)
    [c1] a1 = Conv <pads = [1, 1, 1, 1]> (r0, w1, b1)  [r1] r1 = Relu (a1)
    [c2] a2 = Conv <pads = [1, 1, 1, 1]> (r1, w2, b2)  [r2] r2 = Relu (a2)
    [c3] a3 = Conv <pads = [1, 1, 1, 1]> (r2, w3, b3)  [r3] r3 = Relu (a3)
    [c4] a4 = Conv <pads = [1, 1, 1, 1]> (r3, w4, b4)  [s] s = Add (a4, r0)
    [c5] y = Conv <pads = [1, 1, 1, 1]> (s, w5, b5)
}"""


@pytest.fixture
def deep(build, weigh):
    weights = {f"w{i}": weigh(16, 16 if i else 4, 3, 3) for i in range(6)}
    return build(DEEP, **weights, **{f"b{i}": weigh(16) for i in range(6)})


@pytest.fixture
def images(draw):
    return draw(16, 4, 6, 6)


def test_a_second_budget_measures_no_set_again(plain, tmp_path, monkeypatch):
    config = QuantizeConfig(effort="fast", max_size="1@8-bit", cache_dir=tmp_path)
    large = plan(plain, SAMPLES, config)
    monkeypatch.setattr(onnxcalib.planning.sensitivity, "_Sweep", None)
    small = plan(plain, SAMPLES, config.model_copy(update={"max_size": "0.985@8-bit"}))
    assert small.sets == large.sets and small.layers != large.layers
    with pytest.raises(TypeError):  # another seed is another measurement
        plan(plain, SAMPLES, config.model_copy(update={"seed": 1}))
    with pytest.raises(TypeError):  # and so are other samples
        plan(plain, SAMPLES[:-1], config)


def test_a_plan_from_the_cache_is_the_same_to_the_byte(plain, tmp_path):
    config = QuantizeConfig(effort="fast", max_size="0.985@8-bit", candidates="W8A8,W4A8,W4A4")
    cold, warm, other = (plan(plain, SAMPLES, config.model_copy(update={"cache_dir": tmp_path / f})) for f in "aab")
    assert cold.to_json() == warm.to_json() == other.to_json()
    entries = [{path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()} for folder in "ab"]
    assert entries[0].keys() == entries[1].keys() and all(name.endswith(".onnxcalib") for name in entries[0])


def test_where_nothing_can_be_kept_one_is_told(plain, tmp_path):
    (tmp_path / "file").write_text("")

    class Listener(Observer):
        said = ()

        def warn(self, text):
            self.said += (text,)

    listener = Listener()
    config = QuantizeConfig(effort="fast", max_size="1@8-bit", cache_dir=tmp_path / "file")
    plan(plain, SAMPLES, config, observer=listener)
    assert listener.said[-1].startswith(f"cache_dir: measurements are not kept: {tmp_path / 'file'}: ")


def test_a_plan_is_the_same_from_any_number_of_workers(deep, images, tmp_path):
    found = [
        plan(
            deep,
            images,
            QuantizeConfig(effort="fast", max_size="0.9@8-bit", jobs=jobs, cache_dir=tmp_path / str(jobs)),
        )
        for jobs in (1, 2)
    ]
    assert found[0].to_json() == found[1].to_json() and "W4A8" in found[0].layers.values()


TRAP = "open({marker!r}, 'a').write(__name__ + chr(10))"
COMMAND = "import sys; from onnxcalib.cli.main import main; sys.exit(main())"


def test_nothing_that_lies_around_is_run_and_nothing_is_left(plain, tmp_path):
    here, marker = tmp_path / "here", tmp_path / "marker"
    homes = {name: tmp_path / name for name in ("HOME", "XDG_CACHE_HOME", "TMPDIR")}
    for folder in (here, *homes.values()):
        folder.mkdir()
    names = {name.split("/")[0].removesuffix(".py") for each in distributions() for name in map(str, each.files or ())}
    for name in [*sys.stdlib_module_names, *filter(str.isidentifier, names), "sitecustomize", "usercustomize"]:
        (here / f"{name}.py").write_text(TRAP.format(marker=str(marker)))
    onnx.save(plain, tmp_path / "model.onnx")
    np.save(tmp_path / "images.npy", SAMPLES)
    options = [
        "--calib",
        "../images.npy",
        "--max-size",
        "0.99@8-bit",
        "--effort",
        "fast",
        "--jobs",
        "2",
        "--candidates",
        "W8A8,W4A8",
    ]
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "ORT_DISABLE_TELEMETRY")}
    found = subprocess.run(
        [sys.executable, "-P", "-c", COMMAND, "plan", "../model.onnx", *options, "-o", "../plan.json"],
        cwd=here,
        env={**env, **{name: str(folder) for name, folder in homes.items()}},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    assert not marker.exists(), marker.read_text()
    left = {str(path.relative_to(tmp_path)) for folder in homes.values() for path in folder.rglob("*")}
    entries = {name for name in left if name.endswith(".onnxcalib")}
    assert left - entries == {"XDG_CACHE_HOME/onnxcalib"} and len(entries) > 2


def test_a_plan_is_the_same_from_a_cluster_that_loses_a_worker(deep, images, tmp_path, monkeypatch):
    monkeypatch.setattr("onnxcalib.planning.sensitivity.SETS_A_TASK", 1)  # so that it is lost with a task
    distributed = pytest.importorskip("distributed")
    config = QuantizeConfig(effort="fast", max_size="0.9@8-bit", jobs=1, cache_dir=tmp_path / "here")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        with distributed.Client(cluster, set_as_default=False) as client:
            pids = list(client.run(os.getpid).values())

            class Killer(Observer):
                def planned(self, layer):
                    if pids:
                        os.kill(pids.pop(), signal.SIGKILL)
                        pids.clear()

            there = config.model_copy(
                update={"scheduler": cluster.scheduler_address, "cache_dir": str(tmp_path / "there")}
            )
            found = plan(deep, images, there, observer=Killer())
    assert not pids and found.to_json() == plan(deep, images, config).to_json()


def test_the_settings_in_the_file_do_not_depend_on_where_it_was_planned(plain, tmp_path):
    config = QuantizeConfig(effort="fast", max_size="0.985@8-bit")
    here, there = (
        quantize(plain, SAMPLES, config.model_copy(update=places)).model.SerializeToString()
        for places in ({}, {"jobs": 1, "cache_dir": str(tmp_path)})
    )
    assert here == there


def test_at_the_size_of_one_candidate_everywhere_that_is_the_plan(deep, images):
    uniform = quantize(deep, images, QuantizeConfig(effort="fast", weight_bits=4))
    config = QuantizeConfig(effort="fast", max_size=str(uniform.report.quantized_bytes), candidates="W8A8,W4A8")
    planned = quantize(deep, images, config)
    assert bits_of(planned.model) == bits_of(uniform.model)
    assert planned.report.quantized_bytes == uniform.report.quantized_bytes


def test_the_plan_goes_into_the_report(plain):
    result = quantize(plain, SAMPLES, QuantizeConfig(effort="fast", max_size="0.985@8-bit"))
    found = json.loads(result.report.to_json())["plan"]
    assert found["layers"] == bits_of(result.model) and found["sets"][1]["loss"]["W4A8"] > 0
    assert quantize(plain, SAMPLES, QuantizeConfig(effort="fast")).report.plan is None


def test_a_frontier_falls_from_the_smallest_file_to_the_widest(deep, images, tmp_path, monkeypatch):
    config = QuantizeConfig(effort="fast", cache_dir=tmp_path, candidates="W8A8,W4A8,W4A4")
    plan(deep, images, config.model_copy(update={"max_size": "1@8-bit"}))
    monkeypatch.setattr(onnxcalib.planning.sensitivity, "_Sweep", None)
    monkeypatch.setattr(onnxcalib.planning.assemble, "divergence_of", None)
    found = frontier(deep, images, config)
    sizes, losses = [p.bytes for p in found.points], [p.loss for p in found.points]
    assert sizes == sorted(set(sizes)) and losses == sorted(set(losses), reverse=True) and len(sizes) > 4
    assert set(found.points[-1].layers.values()) == {"W8A8"} and found.points[-1] == found.uniform["W8A8"]
    for uniform in found.uniform.values():
        assert min(p.loss for p in found.points if p.bytes <= uniform.bytes) <= uniform.loss
    assert found.uniform["W4A4"].layers == {f"c{i}": "W4A4" if 0 < i < 5 else "W8A8" for i in range(6)}


def test_the_smallest_file_within_a_drop_of_agreement_is_found(plain):
    config = QuantizeConfig(effort="fast")
    strict, loose = (plan(plain, SAMPLES, config.model_copy(update={"max_disagreement": drop})) for drop in (5.0, 99.0))
    assert strict.totals.agreement >= 95 and strict.budgets == {"max_disagreement": 5.0}
    assert loose.totals.bytes <= strict.totals.bytes <= strict.eight_bit.bytes


def test_a_drop_that_no_plan_keeps_is_refused(plain, monkeypatch):
    monkeypatch.setattr(onnxcalib.planning.assemble.Assembler, "agreement", lambda self, bits: 90.0)
    with pytest.raises(
        ConfigError, match=r"^max_disagreement: found 1; within the other budgets .* reached is 10; raise it"
    ):
        plan(plain, SAMPLES, QuantizeConfig(effort="fast", max_disagreement=1.0))


def test_agreement_needs_class_scores(build, weigh, draw):
    model = build("g (float[N, 3, 5, 5] x) => (float[N, 5, 5, 5] y) { [c] y = Conv (x, w) }", w=weigh(5, 3, 1, 1))
    with pytest.raises(
        ConfigError,
        match=r"^max_disagreement: found no class scores in the outputs; .*; give max_loss, or class_axis where ",
    ):
        plan(model, draw(8, 3, 5, 5), QuantizeConfig(effort="fast", max_disagreement=1.0))


def write_times(path, sets, configurations):
    rows = [f"{name},{bits},{ms}" for each in sets for name in each.layers for bits, ms in configurations.items()]
    path.write_text("\n".join(["layer,configuration,milliseconds", *rows]))
    return path


def test_a_budget_of_time_is_kept_by_the_times_of_a_file(plain, tmp_path):
    config = QuantizeConfig(effort="fast", candidates="W8A8,W4A4")
    sets = plan(plain, SAMPLES, config.model_copy(update={"max_size": "1@8-bit"})).sets
    table = write_times(tmp_path / "t.csv", sets, {"W8A8": 2, "W4A4": 1, "float": 4})
    inner = len([layer for each in sets for layer in each.layers]) - 2
    for text in (
        "0.4375" if inner == 2 else "0.45",
        f"{2 * inner + 3}ms",
        f"{(2 * inner + 3) / (2 * inner + 4)}@8-bit",
    ):
        found = plan(plain, SAMPLES, config.model_copy(update={"max_latency": text, "latencies": str(table)}))
        assert sorted(found.layers.values()).count("W4A4") == 1, text
        assert found.totals.milliseconds == 2 * inner + 3 <= found.budgets["max_latency"]
        assert found.sets[1].milliseconds == {
            "W8A8": 2.0 * len(found.sets[1].layers),
            "W4A4": len(found.sets[1].layers),
        }


def test_times_that_no_limit_needs_are_read_and_told(plain, tmp_path):
    times = str(tmp_path / "t.csv")
    config = QuantizeConfig(effort="fast", candidates="W8A8,W4A4", max_size="1@8-bit", latencies=times)
    with pytest.raises(ConfigError, match=r"t\.csv: no such file"):
        plan(plain, SAMPLES, config)
    said = []
    observer = Observer()
    observer.warn = said.append
    write_times(tmp_path / "t.csv", [], {})
    with open(times, "a") as file:
        file.write("\none,W8A8,1\n")
    plan(plain, SAMPLES, config, observer=observer)
    assert [text for text in said if text.startswith("latencies: found without max_latency")]


def test_a_file_without_all_times_is_refused(plain, tmp_path):
    config = QuantizeConfig(effort="fast", candidates="W8A8,W4A4", max_latency="0.5")
    sets = plan(plain, SAMPLES, config.model_copy(update={"max_size": "1@8-bit", "max_latency": None})).sets
    some = config.model_copy(update={"latencies": str(write_times(tmp_path / "t.csv", sets, {"W8A8": 2}))})
    with pytest.raises(ConfigError, match=r"t.csv: found no time of \w+ at W4A4, nor \d+ more; every layer at each of"):
        plan(plain, SAMPLES, some)
    both = config.model_copy(update={"latencies": str(write_times(tmp_path / "u.csv", sets, {"W8A8": 2, "W4A4": 1}))})
    with pytest.raises(
        ConfigError, match=r"^max_latency: found '0.5', a share of the float model; .*u.csv lacks times"
    ):
        plan(plain, SAMPLES, both)


def test_times_are_measured_where_no_file_gives_them(plain, tmp_path):
    config = QuantizeConfig(effort="fast", max_latency="1@8-bit", cache_dir=tmp_path)
    found = plan(plain, SAMPLES, config)
    assert all(ms > 0 for each in found.sets for ms in each.milliseconds.values())
    assert 0 < found.totals.milliseconds <= found.eight_bit.milliseconds == pytest.approx(found.budgets["max_latency"])
    again = plan(plain, SAMPLES, config)
    assert again == found  # what was timed once stands
    with pytest.raises(
        ConfigError, match=r"^max_latency: found [\de.-]+ ms; the smallest that can be reached is [\d.]+ ms"
    ):
        plan(plain, SAMPLES, config.model_copy(update={"max_latency": "0.0001us"}))


def test_one_limit_on_what_is_lost_is_enough(plain):
    with pytest.raises(ConfigError, match=r"^max_disagreement: found max_loss beside it; .*; give one of them$"):
        plan(plain, SAMPLES, QuantizeConfig(max_disagreement=1.0, max_loss=0.1))


def test_a_model_that_drops_more_than_its_plan_says_so(plain, monkeypatch):
    found = plan(plain, SAMPLES, QuantizeConfig(effort="fast", max_disagreement=99.0))
    strict = found.model_copy(update={"budgets": {"max_disagreement": -1.0}})
    result = quantize(plain, SAMPLES, QuantizeConfig(effort="fast", pipeline="light"), plan=strict)
    assert any(warning.startswith("max_disagreement: found ") for warning in result.report.warnings)


def test_a_budget_that_layers_in_float_exceed_names_the_setting_that_quantizes_them(plain, monkeypatch):
    config = QuantizeConfig(effort="fast", max_size="0.01@8-bit", candidates="W8A8")
    with pytest.raises(ConfigError, match=r"^max_size: .* can be reached is [^;]*; ?[^;]*$"):
        plan(plain, SAMPLES, config)
    monkeypatch.setattr(placement, "choose_by_cost", lambda *_: {"deep": COSTS_MORE})
    with pytest.raises(ConfigError, match=r"; or give placement all, which quantizes 1 nodes that are left"):
        plan(plain, SAMPLES, config)


def test_a_plan_names_layers_that_stay_in_float_and_is_obeyed(plain, monkeypatch):
    monkeypatch.setattr(placement, "choose_by_cost", lambda *_: {"deep": COSTS_MORE})
    budget = QuantizeConfig(effort="fast", max_size="1@8-bit")
    found = plan(plain, SAMPLES, budget)
    assert found.layers["deep"] == "float" and found.in_float == {"deep": COSTS_MORE}
    at_once = quantize(plain, SAMPLES, budget)
    monkeypatch.undo()
    result = quantize(plain, SAMPLES, QuantizeConfig(effort="fast"), plan=found)
    for report in (at_once.report, result.report):
        assert [(each.name, each.reason) for each in report.in_float] == [("deep", COSTS_MORE)]
    assert {name: bits for name, bits in found.layers.items() if bits != "float"} == bits_of(result.model)
