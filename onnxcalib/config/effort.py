"""What the efforts stand for."""

from __future__ import annotations

from typing import NamedTuple


class Effort(NamedTuple):
    """What an effort stands for.

    The first four hold where weights have less than 8 bits. width: branches of the search for a layer's integers.
    views, text_views: copies of each image, and of each text, beside itself. probes: directions of the model's outputs
    for which integers are chosen. steps: AdaQuant steps of a block with a layer of several groups that reads less than
    8 bits. rescue: AdaQuant steps of a block with a layer that could not be solved. distills: whether models of images
    whose layers read less than 8 bits are distilled where the settings do not say.
    """

    width: int
    views: int
    text_views: int
    probes: int
    steps: int
    rescue: int
    distills: bool


# Points on the curve of accuracy against time that the README shows.
EFFORTS = {
    "fast": Effort(8, 0, 0, 0, 0, 0, False),
    "balanced": Effort(16, 1, 1, 1, 0, 100, False),
    "best": Effort(32, 2, 3, 4, 200, 200, True),
}
