"""Print what ``inspect`` found in a file."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console

from onnxcalib.contents import Contents, GridRecord, OutlookRecord, QuantizedRecord
from onnxcalib.pages.content import spell_bytes, spell_grid, spell_seconds, spell_shape
from onnxcalib.report import name_some
from onnxcalib.validation.sheet import Sheet

from .console import print_lines
from .reasons import describe_in_float, describe_unfused
from .table import print_table

MOST_OPERATORS, MOST_ENTRIES, MOST_TEXT = 12, 6, 60  # rows, entries of metadata, and characters of one


def print_contents(contents: Contents, console: Console) -> None:
    """Print a file's contents, its layers by how they are stored, what runs in float and why, and the outlook."""
    print_lines(console, _describe_file(contents))
    print_table(console, _tabulate_operators(contents), before=True)
    print_table(console, _tabulate_types(contents), before=True)
    print_table(console, _tabulate_ports(contents), before=True, whole="the JSON that --json writes")
    if contents.quantized:
        print_table(console, _tabulate_layers(contents.quantized), before=True)
        print_lines(console, ["", *_describe_kernels(contents)])
    if metadata := _describe_metadata(contents):
        print_lines(console, ["", *metadata])
    if contents.outlook is not None:
        _print_outlook(console, contents.outlook)
    elif contents.no_outlook is not None:
        print_lines(console, ["", f"quantize would not take it: {contents.no_outlook}"])
    if contents.refused is not None:
        print_lines(console, ["", f"quantize and validate refuse it: {contents.refused}"])


def _describe_file(contents: Contents) -> list[str]:
    opsets = ", ".join(f"{domain or 'ONNX'} {version}" for domain, version in contents.opsets.items()) or "none"
    beside = f", {spell_bytes(contents.external_bytes)} of them beside it" if contents.external_bytes else ""
    by = f", made by {contents.producer}" if contents.producer else ""
    lines = [
        f"{contents.model}: {spell_bytes(contents.bytes)}{beside}{by}",
        f"opset {opsets}; IR version {contents.ir_version}",
        f"{contents.parameters:,} parameters, {contents.nodes:,} nodes",
    ]
    if contents.functions:
        lines.append(f"functions: {name_some(list(contents.functions))}")
    return lines


def _tabulate_operators(contents: Contents) -> Sheet:
    inside = any(each.inside for each in contents.operators)
    headers = ("operator", "domain", "nodes", *(["in bodies"] * inside))
    rows = []
    ordered = sorted(contents.operators, key=lambda each: -each.count)
    for each in ordered[:MOST_OPERATORS]:
        rows.append((each.op, each.domain or "ONNX", f"{each.count:,}", *([f"{each.inside:,}"] * inside)))
    rest = ordered[MOST_OPERATORS:]
    if rest:
        counts = sum(each.count for each in rest), sum(each.inside for each in rest)
        rows.append((f"{len(rest)} others", "", *(f"{count:,}" for count in counts[: 1 + inside])))
    return Sheet(headers, tuple(rows), keys=2)


def _tabulate_types(contents: Contents) -> Sheet:
    extra = {"in nodes": "in_nodes", "in bodies": "inside", "in other files": "external"}
    shown = {head: name for head, name in extra.items() if any(getattr(each, name) for each in contents.types)}
    rows = tuple(
        (
            *(each.type, f"{each.tensors:,}", f"{each.values:,}", spell_bytes(each.bytes)),
            *(spell_bytes(getattr(each, name)) for name in shown.values()),
        )
        for each in contents.types
    )
    return Sheet(("constants", "tensors", "values", "size", *shown), rows)


def _tabulate_ports(contents: Contents) -> Sheet:
    rows = [("input", each.name, each.type, spell_shape(each.shape)) for each in contents.inputs]
    rows += [("output", each.name, each.type, spell_shape(each.shape)) for each in contents.outputs]
    return Sheet(("name", "", "type", "shape"), tuple((name, kind, *rest) for kind, name, *rest in rows), keys=4)


def _tabulate_layers(quantized: Sequence[QuantizedRecord]) -> Sheet:
    """The layers by how they are stored and run, the most frequent first."""
    counts = Counter(
        (each.op, each.runs or "?", each.form, _spell_grid(each.weight), _spell_grid(each.input)) for each in quantized
    )
    rows = tuple((op, f"{count:,}", *facts) for (op, *facts), count in counts.most_common())
    return Sheet(("quantized", "layers", "runs on", "stored as", "weight", "input"), rows, prose=(2, 3, 4, 5))


def _spell_grid(grid: GridRecord | None) -> str:
    return spell_grid(None if grid is None else asdict(grid))


def _describe_kernels(contents: Contents) -> list[str]:
    if contents.not_opened is not None:
        return [f"what runs on integers is not known: {contents.not_opened}"]
    counts = Counter(each.runs for each in contents.quantized)
    told = [f"{counts[kind]:,} on {kind}" if kind == "integers" else f"{counts[kind]:,} in {kind}"
            for kind in ("integers", "float") if counts[kind]]  # fmt: skip
    told += [f"{counts[None]:,} cannot be told"] if counts[None] else []
    kernels = ", ".join(f"{count:,} {op}" for op, count in contents.kernels.items())
    lines = [f"in onnxruntime here: {', '.join(told)}"]
    reasons: dict[tuple[str, str], list[str]] = defaultdict(list)
    for each in contents.quantized:
        if each.reason:
            reasons["in float" if each.runs else "not told", each.reason].append(each.name)
    lines += [f"  {where}: {reason}: {name_some(names)}" for (where, reason), names in reasons.items()]
    lines += [f"kernels that read integers: {kernels}"] if kernels else []
    return lines + describe_unfused(contents.unfused)


def _describe_metadata(contents: Contents) -> list[str]:
    """Of a file that onnxcalib made, its version and the bits of its layers; the entries of others."""
    lines = []
    if contents.version is not None:
        counts = Counter(contents.bits.values()).most_common()
        told = ", ".join(f"{spell_count(count, 'layer')} {bits}" for bits, count in counts)
        lines.append(f"made by onnxcalib {contents.version}{f': {told}' if told else ''}")
    others = {key: value for key, value in contents.metadata.items() if not key.startswith("onnxcalib.")}
    lines += [f"metadata {key}: {_shorten(value)}" for key, value in list(others.items())[:MOST_ENTRIES]]
    more = len(others) - MOST_ENTRIES
    return [*lines, f"and {more} more entries of metadata"] if more > 0 else lines


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MOST_TEXT else text[: MOST_TEXT - 3] + "..."


def _print_outlook(console: Console, outlook: OutlookRecord) -> None:
    kinds = ", ".join(f"{count:,} {op}" for op, count in Counter(outlook.layers.values()).most_common())
    assumed = ", ".join(f"{name} = {size}" for name, size in outlook.assumed.items())
    taken = f"{spell_count(len(outlook.layers), 'layer')} ({kinds or 'none'})"
    lines = ["", f"quantize would take {taken} in {spell_count(outlook.blocks, 'block')}"]
    lines += describe_in_float(outlook.in_float, file="record that --json writes")
    lines += [f"{each.what}: {each.reason}" for each in outlook.left_out]
    lines += ["only samples tell:", *(f"  {text}" for text in outlook.undecided)]
    lines += ["samples can be given as:", *(f"  {text}" for text in outlook.samples)]
    lines += [f"samples may leave out: {name_some(outlook.optional)}"] if outlook.optional else []
    run = f"one sample takes {1e3 * outlook.sample_seconds:.3g} ms here, with {outlook.products / 1e6:,.0f} M products"
    lines.append(f"{run}{f', where {assumed}' if assumed else ''}")
    print_lines(console, lines)
    rows = tuple(
        (
            each.bits,
            f"{each.samples:,}",
            spell_seconds(each.seconds),
            f"{each.passes:.0f}",
            spell_bytes(each.memory_bytes),
        )
        for each in outlook.estimates
    )
    heads = ("quantize here, about", "samples", "time", "float passes", "memory")
    print_table(console, Sheet(heads, rows, keys=2), before=True)


def spell_count(count: int, what: str) -> str:
    """``1 layer``, ``2 layers``."""
    return f"{count:,} {what}{'s' * (count != 1)}"
