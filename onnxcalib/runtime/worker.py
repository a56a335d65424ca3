"""What a worker does: answer tasks one after the other, in a process of ours until the one that started it ends.

A scheduler of a cluster imports this file, and with it neither torch nor onnxruntime.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
import time
import traceback
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from typing import Any

from .memory import keep_freed

# The number of Linux' prctl(2) for the signal that a process gets when the thread that started it ends.
PR_SET_PDEATHSIG = 1
# Seconds between two looks for the parent.
LOOK = 0.5


def serve(pipe: Connection, parent: int) -> None:
    """Answer the tasks that come through the pipe from the process ``parent``, and end with it."""
    _end_with(parent)
    try:
        while True:
            pipe.send_bytes(_answer(pipe.recv_bytes()))
    except (EOFError, OSError):  # the parent has closed its end of the pipe
        return


def _end_with(parent: int) -> None:
    """Let the system end this process with its parent, and where it cannot, a thread that looks for the parent.

    Both on Linux: the system may be forbidden to, and a library may keep Python's threads from running.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK)
    os._exit(1)


def _answer(data: bytes) -> bytes:
    """(True, result) or (False, exception) of a pickled task: a function, the file of its first argument, the other."""
    try:
        function, path, task = pickle.loads(data)
        return pickle.dumps((True, function(_read(path), task)), pickle.HIGHEST_PROTOCOL)
    except BaseException as error:  # whatever it is, the parent raises it
        return pickle.dumps((False, make_portable(error)), pickle.HIGHEST_PROTOCOL)


class Shipped:
    """What all tasks have in common, on a worker of a cluster."""

    def __init__(self, common: Any) -> None:
        self.common = common


def run_pickled(data: bytes, shipped: Shipped) -> Any:
    """The result of a pickled task on a worker of a cluster: a function, and its second argument.

    Pickled, as a scheduler would read it too, and import the function's module: torch took it two seconds.
    """
    keep_freed(shipped)
    function, task = pickle.loads(data)
    return function(shipped.common, task)


@lru_cache(maxsize=1)
def _read(path: Path) -> Any:
    with open(path, "rb") as file:
        return pickle.load(file)


def make_portable(error: BaseException) -> BaseException:
    """An exception that can be pickled: itself, or one of the nearest of its base classes with the same text.

    The traceback is in its notes.
    """
    note = "".join(traceback.format_exception(error))
    for portable in (error, *(_make(kind, str(error)) for kind in type(error).__mro__)):
        if portable is not None:
            portable.add_note(note)
            try:
                if isinstance(pickle.loads(pickle.dumps(portable)), type(portable)):
                    return portable
            except Exception:  # constructors and members may raise anything
                continue
    return RuntimeError(note)


def _make(kind: type, text: str) -> BaseException | None:
    try:
        made = kind(text)
    except Exception:  # a constructor that takes other arguments
        return None
    return made if isinstance(made, BaseException) and str(made) == text else None
