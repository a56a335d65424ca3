"""``onnxcalib targets``: prints what each target is, and what can be proved about files for it on this machine."""

from __future__ import annotations

from rich.table import Table

from .console import open_console
from .exitstatus import report_faults
from .options import Verbose


def targets(*, verbose: Verbose = False) -> None:
    """List the devices and runtimes to whose rules validate --target can hold a file.

    Example: onnxcalib targets
    """
    with report_faults(verbose=verbose):
        from onnxcalib.targets import list_targets

        table = Table(box=None, pad_edge=False)
        for name in ("target", "for", "activations", "weights", "rules", "on this machine"):
            table.add_column(name, overflow="fold")
        for each in list_targets():
            facts = each.activations, each.weights, str(len(each.list_rules())), each.proof
            table.add_row(each.name, each.description, *facts)
        console = open_console()
        console.print(table)
        console.print(
            "validate --target reads rules off a file, and with --data runs it in openvino and onnxruntime_qnn",
            soft_wrap=True,
        )
