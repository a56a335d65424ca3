"""The settings of ``validate``: the gates, and how they are measured."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from ..values import check_metric, check_percentage
from .data import DataConfig
from .fields import EXPERT, GATES, Axes, Count, Finite, Name, NaturalNumber, Option, Settings, Switch, Workers

MOST_BATCH = 4096  # samples in a run that is timed: more do not fit into memory
# Limits of gates beyond which every model passes or none does. A metric of one's own may have any unit.
MOST_DROP, MOST_DECIBELS, MOST_RATIO, MOST_DISTANCE = 1e9, 1e4, 1e6, 2**16 - 1
MOST_SECONDS = 86_400.0  # a day


class ValidateConfig(Settings):
    """All settings of ``validate``; a gate that is None is not asked for."""

    table: ClassVar[str] = "validate"

    max_drop: Annotated[
        Annotated[Finite, Field(ge=-MOST_DROP, le=MOST_DROP)] | None,
        Field(description="Most that accuracy may drop: points of 100, or units of your metric."),
        Option(GATES, metavar="POINTS"),
    ] = None
    min_agreement: Annotated[
        Annotated[Finite, Field(ge=0, le=100), AfterValidator(check_percentage)] | None,
        Field(description="Least share of samples in % whose top class stays."),
        Option(GATES, metavar="PERCENT"),
    ] = None
    min_sqnr: Annotated[
        Annotated[Finite, Field(ge=-MOST_DECIBELS, le=MOST_DECIBELS)] | None,
        Field(description="Least signal to quantization noise ratio of every output, in dB."),
        Option(GATES, metavar="DB"),
    ] = None
    max_size_ratio: Annotated[
        Annotated[Finite, Field(gt=0, le=MOST_RATIO)] | None,
        Field(description="Largest file, as a share of the float model's file."),
        Option(GATES, metavar="RATIO"),
    ] = None
    min_speedup: Annotated[
        Annotated[Finite, Field(gt=0, le=MOST_RATIO)] | None,
        Field(description="Least speedup: float time / quantized time, on one thread."),
        Option(GATES, metavar="RATIO"),
    ] = None
    max_unfused: Annotated[
        NaturalNumber | None,
        Field(description="Most QuantizeLinear and DequantizeLinear that onnxruntime does not fuse."),
        Option(GATES, metavar="COUNT"),
    ] = None
    max_steps: Annotated[
        Annotated[int, Field(strict=True, ge=0, le=MOST_DISTANCE)],
        Field(description="Most quantization steps by which graph optimizations may change the output of a layer."),
        Option(GATES, metavar="COUNT"),
    ] = 1
    max_saturating: Annotated[
        NaturalNumber | None,
        Field(description="Most integer kernels that can saturate on x86 without VNNI."),
        Option(GATES, metavar="COUNT"),
    ] = None
    min_reference_sqnr: Annotated[
        Annotated[Finite, Field(ge=-MOST_DECIBELS, le=MOST_DECIBELS)] | None,
        Field(description="Least SQNR of every output against onnx's reference evaluator, in dB. Needs a reference."),
        Option(GATES, metavar="DB"),
    ] = None
    target: Annotated[
        Name | None,
        Field(
            description="Hold the file to the rules of this target, and run it in its runtime where that is installed:"
            " a name of onnxcalib targets, or a TOML file."
        ),
        Option(GATES, metavar="NAME|FILE", form="a name, or the path of a TOML file"),
    ] = None
    min_placed: Annotated[
        Annotated[Finite, Field(ge=0, le=100), AfterValidator(check_percentage)] | None,
        Field(description="Least share of nodes in % that the runtime of --target places on its device."),
        Option(GATES, metavar="PERCENT"),
    ] = None
    confident: Annotated[
        Switch,
        Field(description="Demand that the whole 95% interval of a measure clears its gate."),
        Option(GATES),
    ] = False
    metric: Annotated[
        Annotated[str | None, AfterValidator(check_metric)],
        Field(description="Your own metric: module:function of outputs and labels, of which more is better."),
        Option(GATES, metavar="NAME", form="module:function"),
    ] = None
    samples: Annotated[
        Count | None,
        Field(description="Use only the first so many samples."),
        Option(EXPERT, unset="all"),
    ] = None
    reference: Annotated[
        Count | None,
        Field(description="Compare both sessions with onnx's reference evaluator, on the first so many samples."),
        Option(EXPERT, unset="none"),
    ] = None
    device_timeout: Annotated[
        Annotated[Finite, Field(gt=0, le=MOST_SECONDS)],
        Field(description="Seconds in which the runtime of --target must have compiled the file, and made each run."),
        Option(EXPERT, metavar="SECONDS"),
    ] = 600.0
    batch: Annotated[
        Annotated[int, Field(strict=True, ge=1, le=MOST_BATCH)],
        Field(description="Samples in a run that is timed."),
        Option(EXPERT),
    ] = 1
    class_axis: Axes = ()
    threads: Annotated[
        Workers | None,
        Field(description="Threads to compute with."),
        Option(EXPERT, unset="one a core"),
    ] = None
    data: DataConfig = DataConfig()
