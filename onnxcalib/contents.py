"""What is in a model's file, and what ``quantize`` would do with it, as plain records that serialise to JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from .report import FloatRecord, LeftOutRecord, UnfusedRecord, to_json

Dimension = int | str | None  # of a fixed size, with a name, or unknown


@dataclass(frozen=True)
class OperatorRecord:
    """How often an operator stands in a file; inside: so many of them in bodies of If, Loop and Scan, or functions.

    domain: empty for the operators of ONNX.
    """

    op: str
    domain: str
    count: int
    inside: int = 0


@dataclass(frozen=True)
class TypeRecord:
    """The constants of one element type: initializers, those in nodes, and the bytes of their values.

    bytes: as they are packed, two values of 4 bits in one. in_nodes: bytes of Constant nodes and other attributes.
    inside: bytes in bodies and functions, those in nodes there included. external: bytes in other files.
    """

    type: str
    tensors: int
    values: int
    bytes: int
    in_nodes: int = 0
    inside: int = 0
    external: int = 0


@dataclass(frozen=True)
class PortRecord:
    """An input or an output of the model; dimensions that are not fixed have a name, or None. None: unknown rank."""

    name: str
    type: str
    shape: tuple[Dimension, ...] | None


@dataclass(frozen=True)
class GridRecord:
    """On what integers a weight or an activation stands.

    type: as stored, such as ``int8``; the operator where one of another tool's domain makes it. bits: None where the
    file does not say. symmetric: whether 0 is the middle of the type; None where that is not in the file. scales: what
    has a scale of its own, ``tensor``, ``channel``, ``block of 32``, ``row``, or ``run`` where each run finds it.
    """

    type: str
    bits: int | None
    symmetric: bool | None
    scales: str


@dataclass(frozen=True)
class QuantizedRecord:
    """A layer, a product or a table that is quantized.

    form: ``QDQ``, ``QOperator``, ``integers times scales``, or the operator's name. weight, input: None in float, and
    for products without a constant. values: of the weight. runs: ``integers``, ``float``, or None where onnxruntime was
    not asked or does not tell. reason: why it runs in float.
    """

    name: str
    op: str
    form: str
    weight: GridRecord | None
    input: GridRecord | None
    values: int
    runs: str | None = None
    reason: str = ""


@dataclass(frozen=True)
class EstimateRecord:
    """How long a run of ``quantize`` with ``effort`` balanced takes here, and its memory, within a factor of 2.

    seconds: Python's start included. passes: of the float model over all samples. memory_bytes: of the process.
    """

    bits: str
    samples: int
    seconds: float
    passes: float
    memory_bytes: int


@dataclass(frozen=True)
class OutlookRecord:
    """What ``quantize`` would do with a float model, by its default settings.

    layers: node -> operator, of those that get integers. in_float: what stays in float by the structure of the
    model. left_out: what would not be done. undecided: what only samples tell. blocks: parts that are reconstructed
    together. samples: the ways in which they can be given; optional: inputs that they may leave out. assumed:
    dimensions that the file leaves open -> the sizes with which it was judged. products: multiplications of layers in
    one sample. sample_seconds: a run of one sample here, on all cores.
    """

    layers: dict[str, str]
    in_float: tuple[FloatRecord, ...]
    left_out: tuple[LeftOutRecord, ...]
    undecided: tuple[str, ...]
    blocks: int
    samples: tuple[str, ...]
    optional: tuple[str, ...]
    assumed: dict[str, int]
    products: int
    sample_seconds: float
    estimates: tuple[EstimateRecord, ...]


@dataclass(frozen=True)
class Contents:
    """What ``inspect`` found in a file.

    bytes: of all its files, of which ``external_bytes`` are beside it. parameters: values of weights and biases,
    quantized or not, without scales and zero points. functions: name -> nodes. refused: why ``quantize`` and
    ``validate`` do not take the file; None where they do not refuse it. quantized: empty for a float model. kernels:
    operator -> how many integer kernels onnxruntime makes. unfused: Q/DQ that it leaves. not_opened: what onnxruntime
    says of a file that it does not load. version: of the onnxcalib that made the file, None for others; bits: of its
    layers. metadata: all entries.
    outlook: None where ``quantize`` would not take the file; no_outlook: why.
    """

    model: str
    bytes: int
    external_bytes: int
    ir_version: int
    producer: str
    opsets: dict[str, int]
    functions: dict[str, int]
    nodes: int
    operators: tuple[OperatorRecord, ...]
    parameters: int
    types: tuple[TypeRecord, ...]
    inputs: tuple[PortRecord, ...]
    outputs: tuple[PortRecord, ...]
    version: str | None = None
    bits: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    refused: str | None = None
    quantized: tuple[QuantizedRecord, ...] = ()
    kernels: dict[str, int] = field(default_factory=dict)
    unfused: tuple[UnfusedRecord, ...] = ()
    not_opened: str | None = None
    outlook: OutlookRecord | None = None
    no_outlook: str | None = None

    @property
    def is_quantized(self) -> bool:
        """Whether a layer, product or table is."""
        return bool(self.quantized)

    def to_json(self) -> str:
        """All of it as JSON text."""
        return to_json(asdict(self))
