"""Second moments of what several readers of one weight read, each about its own mean, as each has its own bias."""

from __future__ import annotations

from dataclasses import replace

import torch

from .gram import Moments


class ReaderSums:
    """Sums of products ``x x^T`` over the columns of all readers, in one matrix however many there are.

    As in ``MomentSum``, the mean of a reader's first columns is subtracted before values are multiplied in float32.
    Shapes: G groups, K inputs, P columns, C output channels.
    """

    def __init__(self) -> None:
        self._gram: torch.Tensor | None = None
        self._shift: dict[str, torch.Tensor] = {}
        self._sum: dict[str, torch.Tensor] = {}
        self._count: dict[str, int] = {}

    def add(self, reader: str, inputs: torch.Tensor) -> None:
        """Add columns (G, K, P) of one reader; there may be none of them."""
        inputs = inputs.flatten(2).float()
        if not inputs.shape[2]:
            return
        shift = self._shift.setdefault(reader, inputs.mean(2, keepdim=True))
        inputs = inputs - shift
        gram, total = (inputs @ inputs.mT).double(), inputs.sum(2, dtype=torch.float64)
        self._gram = gram if self._gram is None else self._gram.add_(gram)
        self._sum[reader] = self._sum[reader] + total if reader in self._sum else total
        self._count[reader] = self._count.get(reader, 0) + inputs.shape[2]

    @property
    def columns(self) -> int:
        return sum(self._count.values())

    def total(self, *, centred: bool) -> torch.Tensor:
        """The sum (G, K, K) of ``x x^T`` over all columns, of x about its reader's mean, or about zero."""
        assert self._gram is not None, "there are columns"
        whole = self._gram.clone()
        for reader, count in self._count.items():
            mean = self._sum[reader] / count
            whole.addcmul_(mean.unsqueeze(2), mean.unsqueeze(1), value=-count)
            if not centred:
                mean = mean + self._shift[reader].squeeze(2).double()
                whole.addcmul_(mean.unsqueeze(2), mean.unsqueeze(1), value=count)
        return whole


def pool_readers(moments: Moments, others: ReaderSums, weight: torch.Tensor, *, centred: bool) -> Moments:
    """The moments of one reader with those of the others, which read and give the float model's values.

    weight: (G, C, K), or (1, C, G K) of groups whose rows are in common. Means stay the one reader's, whose bias
    follows from them. centred: whether readers have biases.
    """
    if not others.columns:
        return moments
    count, gram = moments.columns + others.columns, others.total(centred=centred)
    groups, _, inputs = gram.shape
    own = weight.double().reshape(-1, groups, inputs).transpose(0, 1) if len(weight) != groups else weight.double()
    cross = gram if moments.of_input else own @ gram
    return replace(
        moments,
        gram=(moments.columns * moments.gram + gram) / count,
        cross=(moments.columns * moments.cross + cross) / count,
        columns=count,
    )
