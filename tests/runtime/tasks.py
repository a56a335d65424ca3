"""What the workers of tests run: functions that another process can import."""

import ctypes
import os
import signal
import sys
import tempfile
import time
from functools import partial

from onnxcalib.errors import ConfigError, DataError, OutputError
from onnxcalib.files.scratch import Scratch
from onnxcalib.graph.load import is_quantized, load_model
from onnxcalib.runtime.placement import Off, Placement
from onnxcalib.runtime.session import Session


def multiply(common, task):
    return common * task, os.getpid()


def name_process(common, task):
    return os.getpid()


def die_once(common, task):
    marker = common / str(task)
    if task == 3 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def die(common, task):
    os._exit(1)


def store_and_die(common, task):
    open(os.path.join(tempfile.mkdtemp(), "activations"), "w").close()
    os._exit(1)


class Worded(ConfigError):
    """A fault whose constructor takes other arguments than its text."""

    def __init__(self, where, found):
        super().__init__(f"{where}: found {found}")


FAULTS = {
    "of the user": partial(DataError, "task: found nothing"),
    "of the disk": partial(OutputError, "/tmp: full"),
    "with own constructor": partial(Worded, "jobs", 3),
    "not picklable": partial(ValueError, "a function", lambda: None),
    "memory": partial(MemoryError, "too much"),
    "interrupt": KeyboardInterrupt,
    "exit": partial(SystemExit, 5),
    "of a file": partial(FileNotFoundError, 2, "No such file", "x"),
    "assertion": partial(AssertionError, "a: b"),
}


def fail(common, task):
    raise FAULTS[task]()


def give_what_cannot_be_sent(common, task):
    return lambda: None


def give_much(common, task):
    return bytes(common)


def tell_path(common, task):
    return sys.path, os.getcwd()


def write_and_print(common, task):
    print("on standard output")
    return task


def wait_long(common, task):
    """Write one's number and a temporary file, then wait, write a large result, or hold the interpreter."""
    scratch = Scratch()
    (scratch.path / "activations").write_bytes(bytes(1000))
    (common / f"{os.getpid()}.pid").touch()
    if task == "hold":
        ctypes.PyDLL(None).sleep(60)
    elif task == "wait":
        time.sleep(60)
    elif task == "write":
        return bytes(2**29)
    return bytes(scratch.path)


def end_at_once(common, task):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)


def tell_threads(common, task):
    return os.environ["OMP_NUM_THREADS"]


class Chip:
    """A runtime that computes as onnxruntime does, and leaves one node of two off its device."""

    def __init__(self, file):
        os.write(2, b"what a runtime says\n")
        self.session = Session(load_model(file.path))

    def place(self):
        return Placement("nodes on the chip", 2, (Off("head", "Gemm", "too wide"),))

    def run(self, feeds):
        return list(self.session.run(feeds).values())


class SlowingChip(Chip):
    """One that takes 4 times as long for a quantized model."""

    def __init__(self, file):
        super().__init__(file)
        self.seconds = 0.016 if is_quantized(load_model(file.path)) else 0.004

    def run(self, feeds):
        time.sleep(self.seconds)
        return super().run(feeds)


class IntegerChip(Chip):
    """One that runs no float model."""

    def __init__(self, file):
        super().__init__(file)
        if not is_quantized(load_model(file.path)):
            raise RuntimeError("no integers")


class DyingChip(Chip):
    def run(self, feeds):
        os.kill(os.getpid(), signal.SIGSEGV)


class OverflowingChip(Chip):
    def run(self, feeds):
        return [value / 0 for value in super().run(feeds)]


class CuttingChip(Chip):
    def run(self, feeds):
        return [value[:, :1] for value in super().run(feeds)]


class RefusingChip(Chip):
    def run(self, feeds):
        raise RuntimeError("Exception from src/infer.cpp:104:\nCheck failed\n  at port 0")


def open_and_die(file):
    os._exit(9)


class HangingChip(Chip):
    def place(self):
        return Placement(str(os.getpid()), 0, ())

    def run(self, feeds):
        time.sleep(60)


def open_and_wait(file):
    time.sleep(60)
