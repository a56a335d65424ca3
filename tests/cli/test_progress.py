"""Progress: plain lines where stderr is no terminal, a bar where it is."""

from __future__ import annotations

import pytest

from onnxcalib.cli.progress import ProgressObserver, describe_block
from onnxcalib.report import BlockRecord


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (BlockRecord("a", (), "reconstructed", loss_before=0.123456, loss_after=0.001), "a: 0.123 -> 0.001"),
        (BlockRecord("a", (), "rolled back", loss_before=0.1, loss_after=0.2), "a: 0.1 -> 0.2 (rolled back)"),
        (BlockRecord("a", (), "rounded"), "a (rounded)"),
    ],
)
def test_a_block_is_described_by_its_losses_and_by_an_unusual_outcome(record, text):
    assert describe_block(record) == text


def test_a_terminal_gets_a_bar_with_the_block_its_losses_and_the_time_left(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with ProgressObserver() as observer:
        observer.blocks(2)
        observer.block(BlockRecord("[stem]", (), "reconstructed", loss_before=0.5, loss_after=0.25))
        observer._bar.refresh()
    shown = capsys.readouterr().err
    for text in ("[stem]: 0.5 -> 0.25", "1/2", "-:--:--"):
        assert text in shown


def test_a_terminal_gets_no_bar_when_quiet(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with ProgressObserver(quiet=True) as observer:
        observer.stage("calibrate")
        observer.blocks(1)
        observer.block(BlockRecord("a", (), "reconstructed"))
    assert capsys.readouterr().err == ""


def test_without_a_terminal_a_long_pass_has_a_line_now_and_then(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with ProgressObserver() as observer:
        observer.stage("calibrate")
        for done in range(1, 41):
            now[0] += 1
            observer.progress(done, 40)
        now[0] += 5
        observer.progress(1, 2)  # another pass, whose time is its own
        now[0] += 20
        observer.progress(2, 2)
    assert capsys.readouterr().err.splitlines() == [
        "calibrate ...",
        "  calibrate: 10/40 done, about 30 s left",
        "  calibrate: 20/40 done, about 20 s left",
        "  calibrate: 30/40 done, about 10 s left",
        "  calibrate: 40/40 done, about 0 s left",
        "  calibrate: 2/2 done, about 0 s left",
    ]


def test_blocks_are_told_in_place_of_what_each_does(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with ProgressObserver() as observer:
        observer.stage("reconstruct")
        observer.blocks(1)
        now[0] += 100
        observer.progress(1, 2)
        observer.block(BlockRecord("a", (), "rounded"))
    assert capsys.readouterr().err.splitlines() == ["reconstruct ...", "  block 1/1 a (rounded)"]


def test_a_terminal_gets_a_bar_for_every_stage(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with ProgressObserver() as observer:
        observer.stage("calibrate")
        observer.progress(3, 9)
        observer._bar.refresh()
    shown = capsys.readouterr().err
    assert "calibrate" in shown and "3/9" in shown
