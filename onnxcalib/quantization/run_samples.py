"""The samples of a run: those that a model is made from, and those on which it is measured."""

from __future__ import annotations

from onnx import ModelProto

from ..data import CalibrationSet, SampleSource, open_calibration
from ..data.holdout import hold_out
from ..data.past import says_past
from ..graph.load import inputs_of
from ..graph.states import mark_states
from ..report import MeasuredOn
from ..runtime.session import Session
from .closed_loop import fill_states, offer, spread_steps
from .odd_samples import leave_out_odd
from .past import fill_past
from .run import Run
from .smoke_test import run_longest_texts

# With fewer samples than these, a few unusual ones decide the ranges.
FEW_SAMPLES = 16


def open_of_settings(
    run: Run, original: ModelProto, calibration: SampleSource, test: SampleSource | None
) -> tuple[CalibrationSet, CalibrationSet, MeasuredOn]:
    """The samples to work with and those to measure on."""
    config = run.config
    inputs = mark_states(original, inputs_of(original), config.data.state)
    if not run.place:
        offer(original, inputs, config.data, run.warn)
    samples = open_calibration(calibration, inputs, config.data, limit=config.samples)
    samples.tell(run.observer.note, run.warn)
    if len(samples) < FEW_SAMPLES:
        run.warn(
            f"samples: found {len(samples)}; ranges and layers follow these alone; thirty or more give a better model"
        )
    warn_of_no_past(samples, run)
    samples = _run_first(original, samples, run)
    if run.place:  # no run of a body is odd: it is what the model around it makes of samples that are not
        return samples, samples, MeasuredOn("calibration", len(samples))
    if test is not None:
        others = open_calibration(test, inputs, config.data)
        others.tell(run.observer.note, run.warn)
        others = _run_first(original, others, run)
        return leave_out_odd(_spread(samples, run), run.warn), others, MeasuredOn("test", len(others))
    used, held = hold_out(samples)
    used = leave_out_odd(_spread(used, run), run.warn)
    if held is None:
        judges = samples if samples.states and len(used) < len(samples) else used  # all steps, in a row
        return used, judges, MeasuredOn("calibration", len(judges))
    what = "steps" if samples.states else "samples"
    run.observer.note(f"{len(held)} of {len(samples)} {what} are held out: the result is measured on these alone")
    return used, held, MeasuredOn("held out", len(held), tuple(map(int, held.indices)))


def warn_of_no_past(samples: CalibrationSet, run: Run) -> None:
    names = [spec.name for spec in samples.inputs if says_past(spec)]
    if names and samples.texts is not None and run.config.data.past != "filled":
        run.warn(
            f"past: no text has one, so that {names[0]!r} is false in all samples, and what reads a past is not"
            " quantized; give --past filled"
        )


def _spread(samples: CalibrationSet, run: Run) -> CalibrationSet:
    """The samples; of steps of sequences as many as layers are solved on."""
    if not samples.states:
        return samples
    spread = spread_steps(samples)
    if len(spread) < len(samples):
        run.observer.note(
            f"ranges and weights follow {len(spread):,} of {len(samples):,} steps, spread over all sequences"
        )
    return spread


def _run_first(original: ModelProto, samples: CalibrationSet, run: Run) -> CalibrationSet:
    """The samples, once the longest texts have run, and with a past or states where these are to be filled."""
    filled = run.config.data.past == "filled"
    if samples.texts is None and not filled and not samples.states:
        return samples
    session = Session(original, threads=run.threads)
    run_longest_texts(session, samples)
    if samples.states:
        return fill_states(session, samples)
    return fill_past(session, samples) if filled else samples
