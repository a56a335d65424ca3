"""Sliding windows: the paddings of convolutions and pools, and how many steps a window makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from .registry import OnnxNode


@dataclass(frozen=True)
class Window:
    """A window over the spatial axes; ``pads`` are all the begins, then all the ends."""

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
        """True where the padding does not depend on the size of the input."""
        return self.auto_pad in ("NOTSET", "VALID")

    @property
    def is_symmetric(self) -> bool:
        return self.is_fixed and self.pads[: self.rank] == self.pads[self.rank :]

    def margins(self, sizes: Sequence[int]) -> list[tuple[int, int]]:
        """Padding before and after each spatial axis of an input of these sizes."""
        if self.is_fixed:
            return list(zip(self.pads[: self.rank], self.pads[self.rank :], strict=True))
        margins = []
        for size, kernel, stride, dilation in zip(sizes, self.kernel, self.strides, self.dilations, strict=True):
            steps = -(-size // stride)
            total = max((steps - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
            small, large = total // 2, total - total // 2
            margins.append((small, large) if self.auto_pad == "SAME_UPPER" else (large, small))
        return margins

    def overhangs(self, sizes: Sequence[int], margins: Sequence[tuple[int, int]]) -> list[int]:
        """How far the last window reaches beyond each padded axis (rounding up; else 0)."""
        if not self.ceil:
            return [0] * self.rank
        overhangs = []
        for size, (before, after), kernel, stride, dilation in zip(
            sizes, margins, self.kernel, self.strides, self.dilations, strict=True
        ):
            reach = (kernel - 1) * dilation + 1
            steps = -(-(size + before + after - reach) // stride) + 1
            # A window that starts in the padding on the right is ignored.
            if (steps - 1) * stride >= size + before:
                steps -= 1
            overhangs.append(max((steps - 1) * stride + reach - size - before - after, 0))
        return overhangs


def read_window(node: OnnxNode, kernel: Sequence[int]) -> Window:
    """The window that a node's attributes describe; absent ones have ONNX's defaults."""
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
    """``x`` (N, C, spatial...) with its spatial axes padded by ``value``; a negative margin crops."""
    flat = [margin for pair in reversed(margins) for margin in pair]
    return F.pad(x, flat, value=value) if any(flat) else x


class WindowPad(nn.Module):
    """Zero padding in front of a convolution."""

    def __init__(self, window: Window) -> None:
        super().__init__()
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        return pad_spatial(x, self.window.margins(x.shape[2:]), 0.0)
