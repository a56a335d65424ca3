"""The ``onnxcalib`` command as a process: its signals, and standard streams that are closed, full or left.

It imports little, so that a signal in the first moments is no traceback; the commands are imported once it is ready.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings

TYPE_CHECKING = False  # as of typing, which takes milliseconds to import
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType
    from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED = "interrupted: nothing half-written is left"
STATUS = 130  # what shells give after Ctrl-C
PATIENCE = 10  # seconds within which files are renamed
SHOW_CURSOR = "\r\x1b[K\x1b[?25h"  # a progress bar hides it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit status.

    Without ``arguments`` this is the process of the command, whose signals and standard streams are looked after.
    Otherwise it runs inside another program, and SIGTERM ends it as Ctrl-C does.
    """
    if arguments is not None:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            from .app import run_app

            return run_app(arguments)
        finally:
            signal.signal(signal.SIGTERM, before)
    open_closed_streams()
    watch_signals()
    import onnxcalib.files.scratch  # noqa: F401  # what a signal needs

    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # Python's, which are for developers: -W or PYTHONWARNINGS shows them
    out, err = sys.stdout, sys.stderr = Stream(sys.stdout), Stream(sys.stderr)

    from .app import run_app
    from .exitstatus import ExitStatus, has_worked

    status = run_app(sys.argv[1:])
    out.flush()
    if out.fault is not None and not isinstance(out.fault, BrokenPipeError):
        print(f"error: standard output: cannot be written ({out.fault.strerror}); files are not concerned", file=err)
        status = status if has_worked() and not out.owed else ExitStatus.ERROR
    err.flush()
    for stream in (out, err):
        stream.discard()
    return status


class Stream:
    """A standard stream whose faults do not end a run: where nobody can read, the work and its exit status count.

    fault: why text could not be written; None where all was. owed: a record was, which is what the run is for.
    Characters that the stream's encoding lacks are escaped.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.fault: OSError | None = None
        self.owed = False
        stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError as error:
            self.fault = self.fault or error
        return len(text)

    def write_record(self, text: str) -> None:
        """Write text for another program, in the encoding that files have."""
        self.owed = True
        self._stream.reconfigure(encoding="utf-8", errors="replace")
        self.write(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self.fault = self.fault or error

    def discard(self) -> None:
        """Forget text that could not be written; Python would try once more at the end, and change the exit status."""
        if self.fault is not None:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def open_closed_streams() -> None:
    """Lead streams that the caller closed to nowhere; otherwise the next file that is opened would take their place."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))


def watch_signals() -> None:
    """End the process at SIGINT, SIGTERM and SIGHUP, as soon as they come: a thread hears them.

    Python's own handlers wait for the main thread, which may compute in a library for minutes, and their
    KeyboardInterrupt is lost where it is raised in a callback. A signal that the caller ignores stays ignored.
    """
    heard, tell = os.pipe()
    os.set_blocking(tell, False)
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    owner = os.getpid()

    def listen() -> None:
        while os.read(heard, 1)[0] not in SIGNALS:
            pass
        if os.getpid() == owner:
            end()

    threading.Thread(target=listen, daemon=True, name="signals").start()


def end() -> None:
    """End the process now: what it wrote aside and its temporary folders go with it, as do its workers.

    It imports nothing: the main thread may have been stopped in the middle of an import.
    """
    scratch: Any = sys.modules.get("onnxcalib.files.scratch")
    try:
        if renaming := getattr(scratch, "renaming", None):
            renaming.acquire(timeout=PATIENCE)  # and not released: no file gets its name any more
            scratch.remove_held()
        os.write(2, ((SHOW_CURSOR if os.isatty(2) else "") + INTERRUPTED + "\n").encode())
    finally:  # no other thread hears signals
        os._exit(STATUS)


def _stop(number: int, frame: FrameType | None) -> None:
    """Stop the main thread where it is, so that it meets none of what is removed, unless it gives files their names."""
    scratch = sys.modules.get("onnxcalib.files.scratch")
    if getattr(scratch, "renaming_thread", None) != threading.get_ident():
        time.sleep(2 * PATIENCE)
