"""Sliding windows of convolutions and pools: their padding, and how far the last one reaches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from .registry import OnnxNode


@dataclass(frozen=True)
class Window:
    """A window over the spatial axes.

    pads: all the begins, then all the ends, as in ONNX; ceil: output sizes are rounded up.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    auto_pad: str
    ceil: bool

    @property
    def rank(self) -> int:
        return len(self.kernel)

    @property
    def is_fixed(self) -> bool:
        """Whether the padding is the same for inputs of all sizes."""
        return self.auto_pad in ("NOTSET", "VALID")

    @property
    def is_symmetric(self) -> bool:
        """Whether the padding is fixed and equal at both ends of each axis, as torch's layers have it."""
        return self.is_fixed and self.pads[: self.rank] == self.pads[self.rank :]

    def margins(self, sizes: Sequence[int]) -> list[tuple[int, int]]:
        """Padding before and after each spatial axis, for an input of these spatial sizes."""
        if self.is_fixed:
            return list(zip(self.pads[: self.rank], self.pads[self.rank :], strict=True))
        margins = []
        for size, kernel, stride, dilation in zip(sizes, self.kernel, self.strides, self.dilations, strict=True):
            windows = -(-size // stride)
            total = max((windows - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
            small, large = total // 2, total - total // 2
            margins.append((small, large) if self.auto_pad == "SAME_UPPER" else (large, small))
        return margins

    def overhangs(self, sizes: Sequence[int], margins: Sequence[tuple[int, int]]) -> list[int]:
        """By how many elements the last window of each axis reaches beyond the padded axis; 0 unless ``ceil``."""
        if not self.ceil:
            return [0] * self.rank
        overhangs = []
        for size, (before, after), kernel, stride, dilation in zip(
            sizes, margins, self.kernel, self.strides, self.dilations, strict=True
        ):
            reach = (kernel - 1) * dilation + 1
            windows = -(-(size + before + after - reach) // stride) + 1
            # A window that would start in the padding at the end is left out.
            if (windows - 1) * stride >= size + before:
                windows -= 1
            overhangs.append(max((windows - 1) * stride + reach - size - before - after, 0))
        return overhangs


def read_window(node: OnnxNode, kernel: Sequence[int]) -> Window:
    """The window of a node's attributes, with ONNX's defaults; an unknown auto_pad raises NotImplementedError."""
    attributes, rank = node.attributes, len(kernel)
    auto_pad = attributes.get("auto_pad", "NOTSET") or "NOTSET"
    if auto_pad not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise NotImplementedError(f"{node.operation_type}: auto_pad {auto_pad}")
    pads = attributes.get("pads", [0] * 2 * rank) if auto_pad == "NOTSET" else [0] * 2 * rank
    return Window(
        kernel=tuple(kernel),
        strides=tuple(attributes.get("strides", [1] * rank)),
        dilations=tuple(attributes.get("dilations", [1] * rank)),
        pads=tuple(pads),
        auto_pad=auto_pad,
        ceil=bool(attributes.get("ceil_mode", 0)),
    )


def pad_spatial(x: Tensor, margins: Sequence[tuple[int, int]], value: float) -> Tensor:
    """``x`` (N, C, *spatial) with its spatial axes padded with ``value``; a negative margin crops."""
    flat = [margin for pair in reversed(margins) for margin in pair]
    return F.pad(x, flat, value=value) if any(flat) else x


class WindowPad(nn.Module):
    """Zero padding in front of a convolution."""

    def __init__(self, window: Window) -> None:
        super().__init__()
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        return pad_spatial(x, self.window.margins(x.shape[2:]), 0.0)
