"""Progress: a plain line now and then where stderr is no terminal, a bar where it is."""

from __future__ import annotations

import pytest

from onnxcalib.cli import remaining
from onnxcalib.cli.console import PlainConsole
from onnxcalib.cli.progress import ProgressObserver, describe_block
from onnxcalib.cli.remaining import time_stages
from onnxcalib.config import QuantizeConfig
from onnxcalib.pages.content import spell_seconds
from onnxcalib.report import BlockRecord

BLOCK = BlockRecord("[stem]", (), "reconstructed", loss_before=0.5, loss_after=0.25)


@pytest.fixture
def clock(monkeypatch):
    """The time, which stands still but where a test changes its one number."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(PlainConsole, "is_screen", property(lambda console: console.is_interactive))
    return monkeypatch


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (BlockRecord("a", (), "reconstructed", loss_before=0.123456, loss_after=0.001), "a: loss 0.123 -> 0.001"),
        (BlockRecord("a", (), "rolled back", loss_before=0.1, loss_after=0.2), "a: loss 0.1 -> 0.2 (rolled back)"),
        (BlockRecord("a", (), "rounded"), "a (rounded)"),
    ],
)
def test_a_block_is_described_by_its_losses_and_by_an_unusual_outcome(record, text):
    assert describe_block(record) == text


def test_a_terminal_gets_a_bar_with_the_stage_the_block_its_losses_and_the_time_left(terminal, capsys, clock):
    with ProgressObserver() as observer:
        observer.stage("reconstruct")
        observer.blocks(2)
        clock[0] = 30.0
        observer.block(BLOCK)
        observer._bar.refresh()
        observer.stage("verify")
        observer.progress(3, 9)
        observer._bar.refresh()
        terminal.setenv("COLUMNS", "60")
        with ProgressObserver() as narrow:
            narrow.stage("reconstruct")
            narrow.blocks(2)
            narrow.block(BlockRecord("/encoder/layer.0/attention/output/dense/MatMul", (), "solved"))
            narrow._bar.refresh()
    shown = capsys.readouterr().err
    for text in (
        "reconstruct: [stem]: loss 0.5 -> 0.25",
        "1/2",
        "reconstruct: …tput/dense/MatMul (solved)",
        "about 30 s of this stage left",
        "verify",
        "3/9",
    ):
        assert text in shown


@pytest.mark.parametrize(("name", "value"), [("TERM", "dumb"), ("TTY_INTERACTIVE", "0")])
def test_a_terminal_that_takes_no_control_characters_gets_none(terminal, capsys, name, value):
    terminal.setenv(name, value)
    terminal.setenv("NO_COLOR", "1")
    with ProgressObserver() as observer:
        observer.stage("calibrate")
        observer.note("folded 3")
        observer.progress(3, 9)
    assert capsys.readouterr().err == "calibrate ...\n  folded 3\n"


def test_colours_that_are_asked_for_make_no_bar_in_a_file(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with ProgressObserver() as observer:
        observer.stage("calibrate")
        observer.progress(3, 9)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_no_bar_when_quiet(terminal, capsys):
    with ProgressObserver(quiet=True) as observer:
        observer.stage("calibrate")
        observer.note("folded 3")
        observer.blocks(1)
        observer.block(BLOCK)
    assert capsys.readouterr().err == ""


def test_without_a_terminal_a_long_run_has_a_line_every_ten_seconds_and_a_short_one_none(capsys, clock):
    observer = ProgressObserver()
    observer.stage("calibrate")
    for done in range(1, 41):
        clock[0] += 1
        observer.progress(done, 40)
        observer.tell()
    clock[0] += 5
    observer.progress(1, 2)  # another pass, whose time is its own
    clock[0] += 30
    observer.tell()
    assert capsys.readouterr().err.splitlines() == [
        "calibrate: 10 of 40, about 30 s of this stage left",
        "calibrate: 20 of 40, about 20 s of this stage left",
        "calibrate: 30 of 40, about 10 s of this stage left",
        "calibrate: 40 of 40, about 1 s of this stage left",
        "calibrate: 1 of 2, 75 s so far",
    ]
    clock[0] += 10
    observer.tell()
    assert capsys.readouterr().err == ""  # later, lines are farther apart


def test_blocks_are_told_in_place_of_what_each_does(capsys, clock):
    observer = ProgressObserver()
    observer.stage("reconstruct")
    observer.blocks(4)
    observer.progress(1, 2)
    clock[0] += 12
    observer.block(BLOCK)
    observer.tell()
    observer.planned("deep")
    clock[0] += 12
    observer.tell()
    assert capsys.readouterr().err.splitlines() == [
        "reconstruct: block 1 of 4 [stem]: loss 0.5 -> 0.25, about 36 s of this stage left",
        "reconstruct: layer 2 of 4 deep, about 8 s of this stage left",
    ]


def test_stages_that_are_known_give_the_time_of_the_run(clock, monkeypatch):
    monkeypatch.setattr(remaining, "SOLVED", 5.0)
    observer = ProgressObserver(config=QuantizeConfig())
    observer.stage("prepare")
    assert observer.spell_left() == ""
    observer.stage("calibrate")
    observer.expect(["reconstruct", "verify"])
    for done in range(1, 11):
        clock[0] += 1
        observer.progress(done, 10)
    assert observer.spell_left() == "about 61 s left"
    observer.stage("reconstruct")
    observer.blocks(10)
    clock[0] += 20
    for _ in range(5):  # as fast as expected, then four times as slow
        observer.block(BLOCK)
    assert observer.spell_left() == "about 35 s left"  # between 20 s by what was done, and 30 s by calibration
    clock[0] += 80
    for _ in range(4):
        observer.block(BLOCK)
    assert observer.spell_left() == "about 20 s left"
    observer.stage("verify")
    assert observer.spell_left() == "about 10 s left"


def test_what_is_left_of_the_last_stage_is_left_of_the_run(clock):
    observer = ProgressObserver(last="plan")
    observer.stage("plan")
    observer.progress(1, 4)
    clock[0] += 4
    observer.progress(2, 4)
    assert observer.spell_left() == "about 8 s of this stage left"  # of one of its passes
    observer.blocks(4)
    clock[0] += 12
    observer.planned("deep")
    assert observer.spell_left() == "about 36 s left"
    observer = ProgressObserver(last="explain")
    for stage, text in (("compare", "about 6 s of this stage left"), ("explain", "about 6 s left")):
        observer.stage(stage)
        clock[0] += 5  # until the first layer
        observer.progress(1, 5)
        clock[0] += 2
        observer.progress(2, 5)
        assert observer.spell_left() == text


def test_what_an_earlier_run_did_is_not_taken_for_speed(clock):
    observer = ProgressObserver(config=QuantizeConfig())
    observer.stage("calibrate")  # from a checkpoint: no pass is told
    observer.expect(["reconstruct", "verify"])
    observer.stage("reconstruct")
    observer.blocks(10)
    for _ in range(8):
        observer.block(BLOCK)
    assert observer.spell_left() == ""
    clock[0] += 10
    observer.block(BLOCK)
    assert observer.spell_left() == "about 10 s of this stage left"
    observer.stage("calibrate")  # of the body of a node: how many are to come is not known
    clock[0] += 9  # to open a session
    observer.progress(1, 4)
    clock[0] += 1
    observer.progress(2, 4)
    assert observer.spell_left() == "about 2 s of this stage left"


def test_few_bits_and_tuning_take_longer():
    stages = ["reconstruct", "evaluate", "distill", "statistics", "biases", "verify"]
    plain, few = (time_stages(stages, QuantizeConfig(weight_bits=b, activation_bits=b)) for b in (8, 4))
    assert few["reconstruct"] > plain["reconstruct"] and list(plain) == ["calibrate", *stages]
    assert few["distill"] > 10 * plain["distill"] > few["statistics"] == plain["statistics"]
    assert list(time_stages(["reconstruct", "verify"], QuantizeConfig())) == ["calibrate", "reconstruct", "verify"]


def test_times_are_as_exact_as_estimates_are():
    assert [spell_seconds(each) for each in (0.2, 89, 91, 5399, 9000)] == ["1 s", "89 s", "2 min", "90 min", "2.5 h"]
