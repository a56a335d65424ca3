"""``onnxcalib targets``: prints what each target is, and what can be proved about files for it on this machine."""

from __future__ import annotations

from .console import open_console, print_lines
from .exitstatus import report_faults
from .options import Verbose


def targets(*, verbose: Verbose = False) -> None:
    """List the devices and runtimes to whose rules validate --target can hold a file.

    Example: onnxcalib targets
    """
    with report_faults(verbose=verbose):
        from onnxcalib.targets import list_targets
        from onnxcalib.validation.sheet import Sheet

        from .table import print_table

        rows = tuple(
            (each.name, each.description, each.activations, each.weights, str(len(each.list_rules())), each.proof)
            for each in list_targets()
        )
        console = open_console()
        headers = ("target", "for", "activations", "weights", "rules", "on this machine")
        print_table(console, Sheet(headers, rows, prose=(1, 2, 3, 5)))
        text = "validate --target reads rules off a file, and with --data runs it in openvino and onnxruntime_qnn"
        print_lines(console, [text])
