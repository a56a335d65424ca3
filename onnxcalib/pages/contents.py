"""The page of a file's contents: what it is, how its layers are stored and run, or what quantizing it would do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from .content import (
    ABSENT,
    Cell,
    Column,
    Data,
    Figure,
    Lines,
    Page,
    Part,
    Section,
    Table,
    make_table,
    spell_bytes,
    spell_grid,
    spell_seconds,
    spell_shape,
)

RUNS = {"integers": "integers", "float": "float", None: ABSENT}


def make_contents(data: Data) -> Page:
    """The page of what ``Contents.to_json`` gives."""
    sections = (
        _make_quantized(data),
        _make_outlook(data["outlook"]),
        _make_file(data),
        _make_metadata(data),
    )
    return Page(
        title="Contents",
        subject=data["model"],
        outcome=_conclude(data),
        figures=tuple(_list_figures(data)),
        sections=tuple(each for each in sections if each is not None and each.parts),
    )


def _conclude(data: Data) -> str:
    if data["refused"] is not None:
        return f"quantize and validate refuse it: {data['refused']}"
    if not data["quantized"]:
        found = f"quantize: {data['no_outlook']}"
        if data["outlook"]:
            taken = len(data["outlook"]["layers"])
            found = f"quantize would take {taken:,} layer{'s' * (taken != 1)}"
        return f"A float model; {found}"
    runs = Counter(each["runs"] for each in data["quantized"])
    told = f"{runs['integers']:,} of {len(data['quantized']):,} quantized layers run on integers here"
    return told if data["not_opened"] is None else "A quantized model that onnxruntime does not load here"


def _list_figures(data: Data) -> Iterable[Figure]:
    beside = f"{spell_bytes(data['external_bytes'])} beside it" if data["external_bytes"] else ""
    value, _, unit = spell_bytes(data["bytes"]).partition(" ")
    yield Figure("size", value, unit, beside)
    yield Figure("parameters", f"{data['parameters']:,}")
    yield Figure("nodes", f"{data['nodes']:,}", "", f"{len(data['operators']):,} operators")
    opset = data["opsets"].get("")
    yield Figure("opset", ABSENT if opset is None else str(opset), "", f"IR version {data['ir_version']}")
    if data["quantized"]:
        kernels = sum(data["kernels"].values())
        yield Figure("kernels of integers", f"{kernels:,}", "", f"{len(data['unfused']):,} Q/DQ left unfused")


def _make_quantized(data: Data) -> Section | None:
    layers = data["quantized"]
    if not layers:
        return None
    columns = (
        Column("layer"),
        Column("operator", choices=True),
        Column("stored as", choices=True),
        Column("weight", choices=True),
        Column("input", choices=True),
        Column("values", number=True),
        Column("runs on", choices=True),
        Column("why"),
    )
    rows = tuple(
        (
            *(Cell(each["name"]), Cell(each["op"]), Cell(each["form"])),
            *(Cell(spell_grid(each["weight"])), Cell(spell_grid(each["input"]))),
            Cell(f"{each['values']:,}" if each["values"] else ABSENT, each["values"]),
            Cell(RUNS[each["runs"]]),
            Cell(each["reason"]),
        )
        for each in layers
    )
    parts: list[Part] = [Table("The quantized layers, in the order of the graph", columns, rows, searched=True)]
    if data["not_opened"] is not None:
        parts.append(Lines((data["not_opened"],)))
    if data["kernels"]:
        counts = ((op, f"{count:,}") for op, count in data["kernels"].items())
        caption = "Kernels that read integers, in onnxruntime here"
        parts.append(make_table(caption, ("kernel", "nodes"), counts, numbers=1))
    if data["unfused"]:
        unfused = ((each["op"], each["tensor"], each["reason"]) for each in data["unfused"])
        parts.append(make_table("Q/DQ that are left", ("operator", "tensor", "why"), unfused))
    return Section("layers", "Layers", tuple(parts))


def _make_outlook(found: Data | None) -> Section | None:
    if found is None:
        return None
    names = ("bits", "samples", "time", "float passes", "memory")
    estimates = (
        (each["bits"], f"{each['samples']:,}", spell_seconds(each["seconds"]), f"{each['passes']:.0f}",
         spell_bytes(each["memory_bytes"]))
        for each in found["estimates"]
    )  # fmt: skip
    assumed = ", ".join(f"{name} = {size}" for name, size in found["assumed"].items())
    lead = f"{len(found['layers']):,} layers in {found['blocks']:,} blocks, by the default settings."
    run = f"One sample takes {1e3 * found['sample_seconds']:.3g} ms here{f', where {assumed}' if assumed else ''}."
    parts: list[Part] = [make_table("How long it would take here, within a factor of 2", names, estimates, numbers=4)]
    in_float = (
        (each["name"], each["op"], each["reason"], spell_bytes(each["bytes"]) if each["bytes"] else ABSENT)
        for each in found["in_float"]
    )
    if found["in_float"]:
        parts.append(make_table("Left in float", ("node", "operator", "why", "weights"), in_float, numbers=1))
    lines = [f"{each['what']}: {each['reason']}" for each in found["left_out"]]
    lines += [f"samples can be {way}" for way in found["samples"]]
    lines += [f"only samples tell: {text}" for text in found["undecided"]]
    parts.append(Lines(tuple(lines)))
    taken = tuple((Cell(name), Cell(op)) for name, op in found["layers"].items())
    columns = Column("layer"), Column("operator", choices=True)
    parts.append(Table("The layers that it would take", columns, taken, searched=len(taken) > 1))
    return Section("outlook", "What quantize would do", tuple(parts), f"{lead} {run}")


def _make_file(data: Data) -> Section:
    operators = (
        (each["op"], each["domain"] or "ONNX", f"{each['count']:,}", f"{each['inside']:,}")
        for each in data["operators"]
    )
    types = (
        (
            *(each["type"], f"{each['tensors']:,}", f"{each['values']:,}"),
            *(spell_bytes(each[key]) for key in ("bytes", "in_nodes", "inside", "external")),
        )
        for each in data["types"]
    )
    ports = (
        (each["name"], kind, each["type"], spell_shape(each["shape"]))
        for kind, records in (("input", data["inputs"]), ("output", data["outputs"]))
        for each in records
    )
    heads = ("constants", "tensors", "values", "size", "in nodes", "in bodies", "in other files")
    parts = (
        make_table("Operators", ("operator", "domain", "nodes", "in bodies"), operators, numbers=2),
        make_table("Constants by type", heads, types, numbers=6),
        make_table("Inputs and outputs", ("name", "kind", "type", "shape"), ports),
    )
    return Section("file", "The file", parts)


def _make_metadata(data: Data) -> Section:
    lines = [f"written by {data['producer']}"] if data["producer"] else []
    lines += [f"opset {version} of {domain or 'ONNX'}" for domain, version in data["opsets"].items()]
    lines += [f"function {name}: {nodes:,} nodes" for name, nodes in data["functions"].items()]
    lines += [f"{key}: {value}" for key, value in data["metadata"].items()]
    return Section("metadata", "Metadata", (Lines(tuple(lines)),) if lines else ())
