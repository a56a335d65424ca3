"""Products of columns, from which moments are made: in float, or exactly where the inputs are integers.

Shapes: G groups, K inputs and C output channels a group, P columns.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

# Rows of the Gram matrix that are one matrix product, from the diagonal on. The lower half is copied, not computed.
TILE = 128
# Columns of int8 whose products are summed in int32, which 2^17 would overflow.
LONGEST = 2**16
# Columns of int8 that are made float at once, which stay in the processor's cache.
SLICE = 2**10
# Between the integers of uint8 and those of int8.
UINT8_SHIFT = 128


def shift_to_int8(x: torch.Tensor) -> torch.Tensor:
    """uint8 less UINT8_SHIFT, as int8; int8 as it is."""
    return x.bitwise_xor(UINT8_SHIFT).view(torch.int8) if x.dtype == torch.uint8 else x


@cache
def multiplies_integers() -> bool:
    """Whether torch multiplies matrices of int8 fast on this CPU, and exactly.

    Without VNNI torch is slow, or adds pairs of products in 16 bits, where they may overflow.
    """
    known = (getattr(torch.cpu, name, None) for name in ("_is_vnni_supported", "_is_avx512_vnni_supported"))
    if not any(has() for has in known if has is not None):
        return False
    # Neighbours of one sign, whose products overflow 16 bits.
    extremes = torch.tensor([[127, 127, -128, -128]], dtype=torch.int8).repeat(TILE, TILE)
    extremes[1::2] = 127
    return torch.equal(torch._int_mm(extremes, extremes.T), (extremes.double() @ extremes.double().T).int())


def stays_integer(x: torch.Tensor) -> bool:
    """Whether such inputs are multiplied as integers; groups have products of their own, which are small.

    Nor is a single input: where both strides of a row are 1, torch takes it for a column.
    """
    return x.dtype == torch.int8 and len(x) == 1 and x.shape[1] > 1 and not x.is_cuda and multiplies_integers()


def list_tiles(size: int) -> list[slice]:
    """The rows of a Gram matrix, in runs of TILE."""
    return [slice(start, min(start + TILE, size)) for start in range(0, size, TILE)]


def multiply_upper(x: torch.Tensor) -> torch.Tensor:
    """``x x^T`` (G, K, K) in the tiles on the diagonal and to their right, zero in the others; of int8 as float64."""
    size = x.shape[1]
    if x.is_floating_point():
        product = x.new_zeros(len(x), size, size)
        for own in list_tiles(size):
            product[:, own, own.start :] = x[:, own] @ x[:, own.start :].mT
        return product
    product = torch.from_numpy(np.zeros((1, size, size)))  # the system gives no memory for what is not written
    for part in x[0].split(LONGEST, 1):
        for own in list_tiles(size):
            product[0, own, own.start :] += torch._int_mm(part[own], part[own.start :].T)
    return product


def multiply(inputs: torch.Tensor, targets: torch.Tensor) -> list[torch.Tensor]:
    """``x x^T`` as ``multiply_upper`` has it, ``y x^T`` (G, C, K), and the sums of inputs x and of targets y.

    Of int8 inputs (1, K, P) what has no part in the targets is exact, in float64.
    """
    if inputs.is_floating_point():
        return [multiply_upper(inputs), targets @ inputs.mT, inputs.sum(2), targets.sum(2)]
    # Less their means, which are made whole numbers, inputs lose nothing as float32, and products with them less.
    shift = inputs[..., :SLICE].float().mean(2, keepdim=True).round_()
    size, most = inputs.shape[1], min(SLICE, inputs.shape[2])  # one room for all, as new memory takes as long again
    room = torch.empty(1, most, size).mT if inputs.stride(1) == 1 else torch.empty(1, size, most)
    cross, sums = targets.new_zeros(1, targets.shape[1], size), torch.zeros(1, size, dtype=torch.float64)
    for part, own in zip(inputs.split(SLICE, 2), targets.split(SLICE, 2), strict=True):
        values = room[:, :, : part.shape[2]].copy_(part).sub_(shift)
        cross += own @ values.mT
        sums += values.sum(2)  # of so few whole numbers float32 has the sum itself
    total, shift = targets.sum(2).double(), shift.squeeze(2).double()
    moved = cross + total.unsqueeze(2) * shift.unsqueeze(1)
    return [multiply_upper(inputs), moved, sums + inputs.shape[2] * shift, total]
