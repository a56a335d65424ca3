"""What goes to workers by value: tensors of a store, and the problem that they work on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from onnx import ModelProto

from ..config import QuantizeConfig
from ..runtime.store import Store
from ..spec import Block, Grids, QuantScheme
from .padding_mask import PaddingMask
from .spread import use_one_thread
from .state import FLOAT, Problem, ReconstructionState, StoredActivations


class Carried:
    """Tensors of a store. A pickle holds their values, which go into a store of its own where it is read."""

    def __init__(self, store: Store, names: Sequence[str]) -> None:
        self.store, self.names = store, tuple(names)

    def copy_to(self, store: Store) -> None:
        for name in self.names:
            for value in self._read_all(name):
                store.append(name, value)

    def read(self, name: str, number: int) -> Any:
        """The batch of a tensor that was stored as this number."""
        return self.store.batch(name, number)

    def _read_all(self, name: str) -> Iterator[Any]:
        for number in range(len(self.store.counts(name))):
            yield self.read(name, number)

    def __getstate__(self) -> dict[str, list[Any]]:
        return {name: list(self._read_all(name)) for name in self.names}

    def __setstate__(self, values: Mapping[str, list[Any]]) -> None:
        self.store, self.names = Store(), tuple(values)
        for name in self.names:
            for value in values[name]:
                self.store.append(name, value)


@dataclass
class CarriedProblem:
    """What every worker gets of a reconstruction.

    frozen: tensors whose grids do not change. samples: the model's inputs, of ``passes`` passes over the calibration
    set; sizes: the number of samples in each stored batch.
    """

    model: ModelProto
    scheme: QuantScheme
    config: QuantizeConfig
    padding: PaddingMask
    device: torch.device
    grids: Grids
    frozen: frozenset[str]
    blocks: tuple[Block, ...]
    samples: Carried
    sizes: tuple[int, ...]
    passes: int

    @classmethod
    def of(cls, state: ReconstructionState, given: StoredActivations, blocks: Sequence[Block], **more: Any) -> Self:
        """That of ``state`` before its first block. given: stores the samples; more: fields of a subclass."""
        problem, store = state.problem, given.store
        return cls(
            problem.model,
            problem.scheme,
            problem.config,
            problem.padding,
            problem.device,
            state.grids,
            frozenset(state.frozen),
            tuple(blocks),
            Carried(store, [name for name in store.names() if name.startswith(FLOAT)]),
            tuple(given.sizes),
            given.passes,
            **more,
        )

    def open(self) -> Problem:
        """The problem as a worker has it."""
        return Problem.of(self.model, self.scheme, use_one_thread(self.config), self.padding, self.device)

    def read_samples(self, number: int) -> dict[str, Any]:
        """The model's inputs in the stored batch of this number."""
        return {name.removeprefix(FLOAT): self.samples.read(name, number) for name in self.samples.names}
