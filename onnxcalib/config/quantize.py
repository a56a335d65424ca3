"""The settings of ``quantize`` and ``plan``, and what the efforts, pipelines and budgets among them stand for."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from ..spec import FLOAT_BITS
from ..values import (
    COUNT,
    LATENCY,
    SIZE,
    check_latency,
    check_limit,
    check_percentage,
    check_size,
    check_whole,
    read_limit,
    spell_most,
    split_candidates,
    split_names,
)
from .candidates import CandidateName
from .data import SIZES, DataConfig, Size
from .effort import EFFORTS
from .fields import BITS, EFFORT, EXPERT, PLAN, Axes, Count, File, Finite, Name, Option, Settings, Switch, Workers
from .layer import COLUMN, ActivationBits, Bits, BlockSize, LayerConfig, read_layers

EmbeddingBits = Annotated[Literal[32, 8, 4], BeforeValidator(check_whole)]
TensorBits = Annotated[Literal[16, 8], BeforeValidator(check_whole)]
# With so many bits all efforts find the same; they differ with fewer.
FULL_BITS = 8
WIDE_BITS = 16  # of activations; weights have at most FULL_BITS
# Beyond any use: each view is one more pass over the samples, each step one over some of them for every block.
MOST_VIEWS, MOST_STEPS = 100, 10**6
MOST_LOSS = 1e9
# Limits on the whole model within which bits are planned: on what it costs, and on what it loses.
COSTS = ("max_size", "max_bops", "max_latency")
BUDGETS = (*COSTS, "max_a16", "max_loss", "max_disagreement")
# The stages that follow calibration, in this order, and which of them each pipeline has.
STAGES = ("reconstruct", "distill", "statistics", "biases")
PIPELINES = {
    "light": ("statistics",),
    "parallel": ("reconstruct", "statistics"),
    "default": ("reconstruct",),
    "advanced": STAGES,
}
# How and where a run is executed, and what it keeps; none of these changes what it finds.
EXECUTION = ("jobs", "scheduler", "cache_dir", "memory", "work_dir", "resume")
_ANY_LIMIT = "a share of the float model's (0.15) or of the all-8-bit model's (0.6@8-bit)"

STAGE = Option(EXPERT, unset="as the pipeline has it", plan=False)


class QuantizeConfig(Settings):
    """All settings of ``quantize`` and ``plan``.

    The name of one of STAGES wins over ``pipeline``; ``steps`` and ``views`` win over ``effort``. With a budget, bits
    are planned in place of the same bits everywhere: the least loss within limits of the cost, or the smallest file
    within a limit of the loss.
    """

    weight_bits: Annotated[
        Bits, Field(description="Bits of the weights of all layers; 3 are stored in 4."), Option(BITS, plan=False)
    ] = 8
    activation_bits: Annotated[
        ActivationBits,
        Field(description="Bits of the activations that layers read; 32 leaves them in float."),
        Option(BITS),
    ] = 8
    activations: Annotated[
        Literal["static", "dynamic"],
        Field(
            description="Grids of what a MatMul, Gemm or LSTM reads: static has those of the samples in the file,"
            " dynamic takes the range of each row, such as a token, in each run. At static,"
            " an LSTM computes in float, with integers as weights."
        ),
        Option(BITS),
    ] = "static"
    first_last_bits: Annotated[
        Bits,
        Field(description="Bits of first and last layers' weights; least of what they and depthwise second ones read."),
        Option(BITS),
    ] = 8
    block_size: Annotated[
        BlockSize | None,
        Field(
            description="Inputs of a MatMul or Gemm that share a scale, where it reads float activations; column stands"
            " for all of them."
        ),
        Option(EXPERT, metavar="INPUTS", unset="column with 8-bit weights, 32 with others", plan=False),
    ] = None
    weight_symmetry: Annotated[
        Literal["symmetric", "asymmetric"],
        Field(
            description="Whether the weights of a MatMul or Gemm that reads float activations have zero points beside"
            " their scales."
        ),
        Option(EXPERT, metavar="KIND"),
    ] = "symmetric"
    embedding_bits: Annotated[
        EmbeddingBits | None,
        Field(description="Bits of tables that a Gather looks up by row."),
        Option(BITS, unset="those of the weights"),
    ] = None
    target: Annotated[
        Name,
        Field(description="What the file is made for: a name of onnxcalib targets, or a TOML file."),
        Option(BITS, metavar="NAME|FILE", form="a name, or the path of a TOML file"),
    ] = "onnxruntime"
    range: Annotated[
        Literal["min-max", "percentile", "squared-error", "entropy"],
        Field(description="How the range of an activation is chosen from its values."),
        Option(EXPERT, metavar="METHOD"),
    ] = "squared-error"
    percentile: Annotated[
        float,
        Field(
            strict=True,
            gt=50,
            le=100,
            allow_inf_nan=False,
            description="Share of the values in % that the range of method percentile holds.",
        ),
        Option(EXPERT),
    ] = 99.99
    encoding: Annotated[
        Literal["runtime", "standard", "matmulnbits"],
        Field(
            description="How weights are stored: fast in onnxruntime; as plain 4-bit types, which some targets need; or"
            " in onnxruntime's own operators, where layers read float."
        ),
        Option(EXPERT),
    ] = "runtime"
    weight_range: Annotated[
        Literal["bounded", "full"],
        Field(
            description="Integers that weights may have: bounded is exact on any CPU, full on ARM, x86 with VNNI, and"
            " other devices."
        ),
        Option(EXPERT),
    ] = "bounded"
    placement: Annotated[
        Literal["cost", "measured", "all"],
        Field(
            description="What runs on integers: what is faster so by a stated model of cost, or as measured here, which"
            " differs from machine to machine; or all that can be."
        ),
        Option(EXPERT),
    ] = "cost"
    smoothing: Annotated[
        Literal["auto", "off"],
        Field(description="Even the channels of what transformers' layers read (SmoothQuant), where outputs gain."),
        Option(EXPERT),
    ] = "auto"
    rotation: Annotated[
        Literal["auto", "folded", "off"],
        Field(description="Mix channels of transformers, where outputs gain (QuaRot); folded adds no operator for it."),
        Option(EXPERT),
    ] = "auto"
    pipeline: Annotated[
        Literal["light", "parallel", "default", "advanced"],
        Field(
            description="Stages after calibration: statistics (light), reconstruct (default), or all (advanced); in"
            " parallel, blocks are reconstructed apart from each other, on the workers of jobs or scheduler."
        ),
        Option(EFFORT, plan=False),
    ] = "default"
    reconstruct: Annotated[
        Switch | None, Field(description="Solve and learn the integers of layers; otherwise these are rounded."), STAGE
    ] = None
    distill: Annotated[
        Switch | None,
        Field(description="Train weights of few bits, or all of a model whose layers read few, end to end."),
        STAGE,
    ] = None
    statistics: Annotated[
        Switch | None,
        Field(description="Give the outputs of layers the means and deviations that they have in the float model."),
        STAGE,
    ] = None
    biases: Annotated[Switch | None, Field(description="Train the biases of all layers end to end."), STAGE] = None
    effort: Annotated[
        Literal["fast", "balanced", "best"],
        Field(description="Time spent on layers of less than 8 bits: width of the search, views, AdaQuant steps."),
        Option(EFFORT),
    ] = "balanced"
    steps: Annotated[
        Annotated[int, Field(strict=True, ge=0, le=MOST_STEPS)] | None,
        Field(description="AdaQuant steps of every block."),
        Option(EXPERT, unset="as the effort has it", plan=False),
    ] = None
    views: Annotated[
        Annotated[int, Field(strict=True, ge=0, le=MOST_VIEWS)] | None,
        Field(description="Copies of each sample beside itself: shifted images, or texts with tokens exchanged."),
        Option(EXPERT, unset="as the effort has it, for files", plan=False),
    ] = None
    samples: Annotated[
        Count | None, Field(description="Use only the first so many samples."), Option(EFFORT, unset="all")
    ] = None
    seed: Annotated[
        int,
        Field(strict=True, ge=0, lt=2**32, description="Seed of all random choices."),
        Option(EXPERT),
    ] = 0
    class_axis: Axes = ()
    threads: Annotated[
        Workers | None, Field(description="Threads to compute with."), Option(EFFORT, unset="one a core")
    ] = None
    memory: Annotated[
        Size | None,
        Field(description="Most memory that the run may take; less than the model needs is refused."),
        Option(EFFORT, metavar="SIZE", form="size", bounds=SIZES, unset="no limit"),
    ] = None
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        Field(description="Where layers are solved and learned: auto is CUDA where torch sees it."),
        Option(EFFORT),
    ] = "auto"
    candidates: Annotated[
        tuple[CandidateName, ...],
        BeforeValidator(split_candidates),
        Field(
            min_length=1,
            description="Bits that layers may get, those of weights (W) and of activations (A); behind A32, g and the"
            " inputs that share a scale.",
        ),
        Option(PLAN, metavar="W8A8,...", form="names"),
    ] = ("W8A8", "W4A8", "W4A4", "W8A4")
    max_size: Annotated[
        Annotated[str, BeforeValidator(check_size)] | None,
        Field(description=f"Largest file: {_ANY_LIMIT}, bytes (300KB), or bits a weight (4.25bpw)."),
        Option(PLAN, metavar="SIZE", form="share or size", bounds=spell_most(SIZE)),
    ] = None
    max_bops: Annotated[
        Annotated[str, BeforeValidator(check_limit)] | None,
        Field(description="Most bit operations of a sample (MACs times both bits): a share, or a number (2e9)."),
        Option(PLAN, metavar="BOPS", form="share or number", bounds=spell_most(COUNT)),
    ] = None
    max_latency: Annotated[
        Annotated[str, BeforeValidator(check_latency)] | None,
        Field(description="Longest time of a run: a share, or a time (12ms)."),
        Option(PLAN, metavar="TIME", form="share or time", bounds=spell_most(LATENCY)),
    ] = None
    max_a16: Annotated[
        Annotated[Finite, Field(gt=0, le=100), AfterValidator(check_percentage)] | None,
        Field(description="Most elements of activations in % that may have 16 bits, for targets that take these."),
        Option(PLAN, metavar="PERCENT"),
    ] = None
    max_loss: Annotated[
        Annotated[Finite, Field(gt=0, le=MOST_LOSS)] | None,
        Field(description="Largest divergence of the outputs; the smallest file within it is planned."),
        Option(PLAN, metavar="LOSS"),
    ] = None
    max_disagreement: Annotated[
        Annotated[Finite, Field(gt=0, lt=100)] | None,
        Field(description="Most samples in % whose top class may change; the smallest file within it is planned."),
        Option(PLAN, metavar="PERCENT"),
    ] = None
    latencies: Annotated[
        File | None,
        Field(description="CSV file of layer, configuration and milliseconds."),
        Option(PLAN, metavar="FILE", form="file", unset="measured here"),
    ] = None
    jobs: Annotated[
        Workers | None,
        Field(
            description="Worker processes that plan, and that reconstruct where samples or blocks can be shared out."
        ),
        Option(PLAN, unset="one a core, but one for samples"),
    ] = None
    scheduler: Annotated[
        Annotated[str, Field(pattern=r"^\w+://.+")] | None,
        Field(description="Dask cluster that does so in their place: tcp://HOST:PORT of its scheduler."),
        Option(PLAN, metavar="ADDRESS", form="address", unset="this machine"),
    ] = None
    cache_dir: Annotated[
        File | None,
        Field(description="Folder that keeps what calibration and planning measured, for the next run."),
        Option(EFFORT, metavar="DIR", form="folder", unset="the user's cache"),
    ] = None
    work_dir: Annotated[
        File | None,
        Field(description="Folder for the checkpoints of a run, from which the next one goes on where it is stopped."),
        Option(EFFORT, metavar="DIR", form="folder", unset="beside the output", plan=False),
    ] = None
    resume: Annotated[
        Switch | None,
        Field(description="Demand checkpoints to go on from, or start anew."),
        Option(EFFORT, off="fresh", unset="go on from those of the same command", plan=False),
    ] = None
    exclude: Annotated[
        tuple[Name, ...],
        BeforeValidator(split_names),
        Field(
            description="Nodes that stay in float: a name, a regular expression, op:TYPE, or 'between:A -> B' for all"
            " nodes on the paths from tensor A to tensor B."
        ),
        Option(BITS, metavar="NODES", form="one or a list of these", repeated=True),
    ] = ()
    layers: Annotated[
        dict[str, LayerConfig],
        BeforeValidator(read_layers),
        Field(
            description="Settings of single layers, which are named as in exclude; the last entry of a layer counts."
        ),
        Option(BITS, form='tables `[layers."NAME"]`', file_only=True),
    ] = Field(default_factory=dict)
    tensors: Annotated[
        dict[Name, TensorBits],
        Field(description="Bits of single activations, by the name of the tensor: 16 or 8."),
        Option(BITS, form="table `[tensors]`", unset="those of the others", file_only=True),
    ] = Field(default_factory=dict)
    data: DataConfig = DataConfig()

    @property
    def planned(self) -> bool:
        """Whether bits are chosen within a budget."""
        return any(getattr(self, name) is not None for name in BUDGETS)

    @property
    def table_bits(self) -> int:
        """Bits of tables that a Gather looks up: ``embedding_bits``, or those of the weights, of 4 bits at least."""
        return self.embedding_bits or max(self.weight_bits, 4)

    @property
    def in_blocks(self) -> bool:
        """Whether neighbouring inputs of a weight may share a scale by these settings."""
        given = (self.block_size, *(each.block_size for each in self.layers.values()))
        return any(size not in (None, COLUMN) for size in given) or (
            self.planned and any("g" in name for name in self.candidates)
        )

    @property
    def planned_alone(self) -> bool:
        """Whether bits of weights alone are planned."""
        return self.planned and self.activation_bits == FLOAT_BITS

    @property
    def memory_bytes(self) -> int | None:
        """``memory`` in bytes; None where it is left out."""
        return None if self.memory is None else int(read_limit(self.memory).number)

    def does(self, stage: str) -> bool:
        """Whether one of STAGES is part of the run."""
        chosen: bool | None = getattr(self, stage)
        return stage in PIPELINES[self.pipeline] if chosen is None else chosen

    @property
    def parallel(self) -> bool:
        """Whether blocks are reconstructed apart from each other."""
        return self.pipeline == "parallel"

    @property
    def least_bits(self) -> int:
        """The fewest bits that anything may get."""
        bits: list[int] = [self.weight_bits, self.activation_bits, self.first_last_bits, self.embedding_bits or 8]
        bits += [b for layer in self.layers.values() for b in (layer.weight_bits, layer.activation_bits) if b]
        bits += [int(number) for name in self.candidates if self.planned for number in re.findall(r"\d+", name)]
        return min(bits)

    @property
    def wide(self) -> bool:
        """Whether activations of 16 bits are asked for, or may be planned."""
        planned = self.planned and any(name.endswith(f"A{WIDE_BITS}") for name in self.candidates)
        given = (self.activation_bits, *(each.activation_bits for each in self.layers.values()), *self.tensors.values())
        return planned or WIDE_BITS in given

    @property
    def float_activations(self) -> bool:
        """Whether any layer may read float activations."""
        return FLOAT_BITS in (self.activation_bits, *(layer.activation_bits for layer in self.layers.values()))

    def block_steps(self, *, solved: bool, hard: bool) -> int:
        """AdaQuant steps of a block: ``steps``, or what ``effort`` stands for.

        solved: whether all of its layers were; hard: whether a layer of several groups reads less than 8 bits. The
        filters of that layer have few inputs that can make up for the error of one. Steps change nothing in other
        blocks whose layers are solved.
        """
        if self.steps is not None:
            return self.steps
        effort = EFFORTS[self.effort]
        return max(effort.steps if hard else 0, 0 if solved else effort.rescue)

    def search_width(self, weight_bits: int) -> int:
        """Branches of the search for a layer's integers; at 8 bits the first one is as good as any."""
        return EFFORTS[self.effort].width if weight_bits < FULL_BITS else 1

    def count_views(self, weight_bits: int, *, texts: bool = False) -> int:
        """Views of each sample beside itself, for a model whose weights have so many bits or more.

        ``views``, or what ``effort`` stands for; at 8 bits views bring no layer nearer to its optimum.
        """
        if self.views is not None:
            return self.views
        return (EFFORTS[self.effort].text_views if texts else EFFORTS[self.effort].views) * (weight_bits < FULL_BITS)
