"""Choose where torch computes, on the CPU or an NVIDIA GPU, and how."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from ..errors import ConfigError, DeviceMemoryError, first_line

# Sentences of torch's error that say how much memory was asked for, and how much there is.
SENTENCES = 3
# What torch's RuntimeError names where the machine's memory has ended.
CPU_ALLOCATOR = "DefaultCPUAllocator"


def choose_device(setting: str) -> torch.device:
    """The device that ``auto``, ``cpu`` or ``cuda`` stands for on this machine. Raises ConfigError."""
    seen = torch.cuda.is_available()
    if setting == "cuda" and not seen:
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
        raise ConfigError(
            f"device: found 'cuda', but torch sees no CUDA device ({torch.__version__}, which {built}); here allowed:"
            " 'auto' or 'cpu'; leave the setting out, or install torch and a driver for the GPU"
        )
    return torch.device("cuda" if seen and setting != "cpu" else "cpu")


def full_precision() -> AbstractContextManager[None]:
    """Compute float32 convolutions in float32 and the same way every time; cuDNN would use the 10 bits of TF32."""
    return torch.backends.cudnn.flags(
        enabled=torch.backends.cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False
    )


@contextmanager
def computing() -> Iterator[None]:
    """Let torch compute in full precision, each operation on one thread.

    Sums of torch and of its libraries depend on how many threads share them: results must not.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with full_precision():
            yield
    finally:
        torch.set_num_threads(before)


def lacks_memory(error: Exception) -> bool:
    """Whether an exception says that memory has ended: torch has a type for that of a GPU, and none for the CPU's."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or CPU_ALLOCATOR in str(error)


@contextmanager
def explain_lack_of_memory(device: torch.device, stage: Callable[[], str | None]) -> Iterator[None]:
    """Raise what torch says of too little memory as DeviceMemoryError, with the device, the stage and what to do.

    stage: gives the name of the present stage, or None between stages.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not lacks_memory(error):
            raise
        name = stage()
        where = f"{device} in the stage {name}" if name else f"{device}"
        found = ". ".join(first_line(error).rstrip(".").split(". ")[:SENTENCES])
        raise DeviceMemoryError(
            f"device: found too little memory on {where} ({found}); a part of the model and its samples have to fit;"
            " take --device cpu, fewer --samples, or --effort fast"
        ) from error
