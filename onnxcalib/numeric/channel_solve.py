"""Solve a layer whose output channels have moments of their own, a few of them at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from ..spec import QuantSpec
from .active_sums import ChannelSum
from .gram import Moments
from .prior import Prior, choose_prior
from .solve import Solution, solve_layer

# The Gram matrices of the channels that are solved at once have about so many values, of which there are some copies.
VALUES_AT_ONCE = 2**21


def solve_channels(
    sums: Sequence[ChannelSum],
    rows: torch.Tensor,
    specs: Sequence[QuantSpec],
    *,
    widths: Sequence[int],
    summing: torch.Tensor | None = None,
    with_added: bool = False,
) -> list[Solution] | None:
    """The solution for each spec, which has a scale for each channel.

    None without columns, or where products of inputs overflow.

    sums: of the columns that are fitted, and of those that choose the prior, if there are any. rows: the float weight
    (G, C, K). widths: branches of the search, for each spec. summing, with_added: as ``solve_layer`` has them.
    """
    if not sums:
        return None
    groups, channels, inputs = rows.shape
    parts: list[list[Solution]] = []
    for own, moments, prior in _take_parts(sums, rows.reshape(groups * channels, 1, inputs)):
        if moments is None:
            return None
        found = [
            solve_layer(moments, own, spec, prior=prior, width=width, summing=summing, with_added=with_added)
            for spec, width in zip(specs, widths, strict=True)
        ]
        # As channels of one group, in their order.
        parts.append([each.regroup(1, len(own)) for each in found])
    return [Solution.join(each).regroup(groups, channels) for each in zip(*parts, strict=True)]


def _take_parts(sums: Sequence[ChannelSum], rows: torch.Tensor) -> Iterator[tuple[torch.Tensor, Moments | None, Prior]]:
    """Some rows (R, 1, K) of the weight with the moments of all their columns, and the prior that others choose."""
    at_once = max(1, VALUES_AT_ONCE // rows.shape[2] ** 2)
    for start in range(0, len(rows), at_once):
        own = rows[start : start + at_once]
        moments, *others = (each.centre(slice(start, start + at_once)) for each in sums)
        prior = Prior()
        for each in others:
            if each.finite and moments.finite:
                prior = choose_prior(moments, each, own)
            moments = moments.pooled(each)
        yield own, moments if moments.finite else None, prior
