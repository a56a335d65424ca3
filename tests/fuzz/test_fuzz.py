"""Malformed inputs end in one line, nothing is written and nothing changed: drawn cases and saved ones."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.fuzz import surroundings
from tests.fuzz.bases import BASES
from tests.fuzz.case import Case, Outcome
from tests.fuzz.judge import judge
from tests.fuzz.run import GENERATORS, SAVED, Runner, draw, open_runner, spell_table

CASES, SEED = 6, 20  # of each generator; the seed has no meaning
GOOD = Outcome(0, None, False, 0.1, 0, "wrote out.onnx", "", (), ("out.onnx",), ())
REFUSED = replace(GOOD, status=1, stdout="", stderr="error: mlp.npy: no", appeared=())


@pytest.fixture(scope="module")
def runner():
    with open_runner() as one:
        yield one


@pytest.mark.parametrize("generator", GENERATORS)
def test_drawn_cases_end_as_they_must(runner: Runner, generator):
    cases = draw(GENERATORS[generator], CASES, SEED)
    faults = [(case.to_json(), judge(case, runner.run(case))) for case in cases]
    assert not [each for each in faults if each[1]]


@pytest.mark.parametrize("path", sorted(SAVED.glob("*.json")), ids=lambda path: path.stem)
def test_saved_cases_end_as_they_must(runner: Runner, path):
    case = Case.from_json(path.read_text(encoding="utf-8"))
    assert not judge(case, runner.run(case))


@pytest.mark.parametrize("base", BASES)
def test_good_files_are_accepted(runner: Runner, base):
    case = Case("bases", base)
    outcome = runner.run(case)
    assert outcome.status == 0, outcome.stderr
    assert not judge(case, outcome)


def test_a_fork_ends_as_a_new_interpreter_does(runner: Runner):
    case = Case("bases", "mlp", options=("--samples=0",), around=(("stdout", "full"),))
    fork, new = (runner.run(replace(case, fresh=fresh)) for fresh in (False, True))
    assert (fork.status, fork.stderr, fork.appeared) == (new.status, new.stderr, new.appeared)


@pytest.mark.parametrize(
    ("heading", "outcome"),
    [
        ("signal", replace(REFUSED, status=None, signal=11)),
        ("hang", replace(REFUSED, status=None, hung=True)),
        ("memory", replace(REFUSED, memory=2 * 10**9)),
        ("status", replace(REFUSED, status=134)),
        ("changed inputs", replace(REFUSED, changed=("mlp.npy",))),
        ("changed inputs", replace(GOOD, changed=("mlp.npy",))),
        ("left files", replace(REFUSED, appeared=("out.onnx",))),
        ("left files", replace(GOOD, left=("onnxcalib-x/0.npy",))),
        ("left files", replace(GOOD, appeared=("out.onnx", ".onnxcalib-0.tmp"))),
        ("traceback", replace(REFUSED, stderr="Traceback (most recent call last):\n  x\nerror: x")),
        ("unexpected", replace(REFUSED, stderr="error: unexpected KeyError: 99; please report this")),
        ("lines", replace(REFUSED, stderr="")),
        ("lines", replace(REFUSED, stderr="error: a\nerror: b")),
        ("lines", replace(REFUSED, stderr="error: \x1b[31mred")),
        ("no meaning", replace(GOOD, appeared=())),
        ("no meaning", replace(GOOD, stdout="y  nan")),
    ],
)
def test_each_fault_is_found(heading, outcome):
    assert list(judge(Case("x", "mlp"), outcome)) == [heading]


def test_a_case_that_must_be_refused_is_found_where_it_is_accepted():
    assert not judge(Case("x", "mlp"), GOOD)
    assert not judge(Case("x", "mlp", refused=True), REFUSED)
    assert list(judge(Case("x", "mlp", refused=True), GOOD)) == ["no meaning"]


def test_a_case_is_read_as_it_was_saved():
    for strategy in (*GENERATORS.values(), surroundings.FRESH["fresh"]):
        for case in draw(strategy, 5, SEED):
            assert Case.from_json(case.to_json()).to_json() == case.to_json()


def test_the_same_seed_draws_the_same_cases():
    one, other = (draw(GENERATORS["model bytes"], 5, SEED) for _ in range(2))
    assert one == other != draw(GENERATORS["model bytes"], 5, SEED + 1)


def test_the_table_counts_each_fault_of_a_case():
    results = [(Case("a", "mlp"), REFUSED, {}), (Case("a", "mlp"), REFUSED, {"memory": "much", "lines": "0"})]
    head, row, total = (line.split() for line in spell_table(results).splitlines())
    assert dict(zip(head, row[1:], strict=False))["cases"] == "2"
    assert row[1:] == total[1:]
    assert row.count("1") == 2
