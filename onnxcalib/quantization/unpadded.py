"""A block of torch whose outputs are zero at the padding of token sequences."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .padding_mask import PaddingMask


class Unpadded(nn.Module):
    """A block whose outputs are zero at padding; its last input is the mask of the tokens, bool (samples, tokens)."""

    def __init__(self, module: nn.Module, outputs: Sequence[str], padding: PaddingMask) -> None:
        super().__init__()
        self.module, self.outputs, self.padding = module, outputs, padding

    def forward(self, *inputs_and_mask: torch.Tensor) -> list[torch.Tensor]:
        *inputs, real = inputs_and_mask
        given = self.module(*inputs)
        return [self.padding.fill_padding(name, value, real) for name, value in zip(self.outputs, given, strict=True)]
