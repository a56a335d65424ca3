"""Draw cases, run them, count how they end, and make those that end badly smaller: ``make fuzz``."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import secrets
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from tests.fuzz import data, models, surroundings
from tests.fuzz import settings as made_settings
from tests.fuzz.case import Case, Outcome
from tests.fuzz.judge import BAD, ENDS, judge

ROOT = Path(__file__).resolve().parents[2]
SAVED = Path(__file__).parent / "cases"
GENERATORS = models.GENERATORS | data.GENERATORS | made_settings.GENERATORS | surroundings.GENERATORS
SPREAD = 4  # hypothesis draws examples that resemble the last ones; one of so many is taken
FRESH_SHARE = 50  # of so many cases, one runs in a new interpreter, which takes seconds to start
_NAMES = re.compile(r"'[^']*'|[\w./-]*[\d/.][\w./-]*")  # what differs between faults of one kind
Result = tuple[Case, Outcome, dict[str, str]]  # with what is wrong


class Runner:
    """A process of harness.py that runs cases one after the other."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "tests.fuzz.harness", str(folder)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(command, cwd=ROOT, text=True, encoding="utf-8", **pipes)

    def run(self, case: Case) -> Outcome:
        self._process.stdin.write(case.to_json() + "\n")
        self._process.stdin.flush()
        found = json.loads(self._process.stdout.readline())
        lists = {name: tuple(found[name]) for name in ("changed", "appeared", "left")}
        return Outcome(**{**found, **lists})

    def close(self) -> None:
        self._process.communicate(timeout=90)


@contextmanager
def open_runner() -> Iterator[Runner]:
    """A Runner in a temporary folder that ends with it."""
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(Path(folder))
        try:
            yield runner
        finally:
            runner.close()


def draw(strategy: st.SearchStrategy[Case], count: int, seed: int) -> list[Case]:
    """So many cases of a strategy at most, the same for the same seed."""
    cases: list[Case] = []

    @hypothesis.seed(seed)
    @settings(
        max_examples=SPREAD * count,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(strategy)
    def collect(case: Case) -> None:
        cases.append(case)

    collect()
    return random.Random(seed).sample(cases, min(count, len(cases)))


def draw_all(count: int, seed: int, *, fresh: bool) -> list[Case]:
    """Cases of all generators, about as many of each."""
    share = -(-count // len(GENERATORS))
    cases = [case for strategy in GENERATORS.values() for case in draw(strategy, share, seed)]
    if fresh:
        cases += draw(surroundings.FRESH["fresh"], max(count // FRESH_SHARE, 1), seed)
    return cases


def shrink(case: Case, runner: Runner, heading: str) -> Case:
    """The case without the changes that it does not need to end as badly."""
    for smaller in case.simpler():
        if heading in judge(smaller, runner.run(smaller)):
            return shrink(smaller, runner, heading)
    return case


def save(case: Case, folder: Path) -> Path:
    text = case.to_json()
    folder.mkdir(exist_ok=True)
    path = folder / f"{case.generator.replace(' ', '-')}-{hashlib.sha256(text.encode()).hexdigest()[:10]}.json"
    path.write_text(text + "\n")
    return path


def _run_once(case: Case, runner: Runner) -> Result:
    """A case, its outcome and its faults; once more where it seemed to hang, as the machine may have."""
    outcome = runner.run(case)
    if "hang" in judge(case, outcome):
        outcome = runner.run(case)
    return case, outcome, judge(case, outcome)


def run_all(cases: Sequence[Case], jobs: int) -> list[Result]:
    """Each case with how it ended and what is wrong with it; ``jobs`` processes."""

    def work(start: int) -> list[Result]:
        with open_runner() as runner:
            return [_run_once(case, runner) for case in cases[start::jobs]]

    with ThreadPoolExecutor(jobs) as threads:
        return [result for results in threads.map(work, range(jobs)) for result in results]


def spell_table(results: Sequence[Result]) -> str:
    """Generators by how their cases ended; a case that ended badly counts under each of its faults too."""
    counts: Counter[tuple[str, str]] = Counter()
    for case, outcome, faults in results:
        ends = [ENDS[outcome.status]] if outcome.status in ENDS else []
        counts.update((case.generator, heading) for heading in ("cases", *ends, *faults))
    headings = ("cases", *ENDS.values(), *BAD)
    names = sorted({case.generator for case, _, _ in results})
    rows = [["", *headings], *([name, *(str(counts[name, each] or ".") for each in headings)] for name in names)]
    rows.append(["all", *(str(sum(counts[name, each] for name in names) or ".") for each in headings)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def show(paths: Sequence[Path]) -> int:
    """Print how saved cases end, and what is wrong with it."""
    bad = False
    with open_runner() as runner:
        for path in paths:
            case = Case.from_json(path.read_text(encoding="utf-8"))
            outcome = runner.run(case)
            faults = judge(case, outcome)
            bad |= bool(faults)
            print(f"{case}\n{outcome}\n{outcome.stdout}{outcome.stderr}{faults or 'as it must'}")
    return int(bad)


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the command line on malformed inputs.")
    parser.add_argument("--count", type=int, default=1500, help="cases")
    parser.add_argument("--seed", type=int, default=None, help="by default another one each time")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--only", action="append", help="a generator; may be given again")
    parser.add_argument("--save", type=Path, default=SAVED, help="folder for cases that end badly")
    parser.add_argument("--case", type=Path, action="append", help="run a saved case alone, and show how it ends")
    given = parser.parse_args()
    if given.case:
        return show(given.case)
    seed = secrets.randbelow(2**32) if given.seed is None else given.seed
    print(f"seed {seed}", flush=True)
    cases = draw_all(given.count, seed, fresh=True)
    results = run_all([case for case in cases if given.only is None or case.generator in given.only], given.jobs)
    print(spell_table(results))
    bad = [(case, heading, text) for case, _, faults in results for heading, text in faults.items()]
    kinds = {(heading, _NAMES.sub("*", text)): (case, heading, text) for case, heading, text in reversed(bad)}
    with open_runner() as runner:
        for case, heading, text in kinds.values():
            path = save(shrink(case, runner, heading) if heading != "hang" else case, given.save)
            print(f"{heading}: {text}\n  {os.path.relpath(path)}", flush=True)
    slowest = max(results, key=lambda each: each[1].seconds)
    largest = max(outcome.memory for _, outcome, _ in results)
    print(f"{len(results)} cases, {len(kinds)} kinds of faults")
    print(f"slowest {slowest[1].seconds:.1f} s ({slowest[0].generator}), most memory {largest / 1e6:.0f} MB")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
