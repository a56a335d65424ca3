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
