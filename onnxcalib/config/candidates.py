"""The names of the bits that a plan may give a layer."""

from __future__ import annotations

from typing import Literal, get_args

# g: inputs that share a scale; without it one scale for each output channel.
CandidateName = Literal[
    "W8A8", "W4A8", "W3A8", "W2A8", "W8A4", "W4A4", "W3A4", "W2A4", "W8A16", "W4A16", "W3A16", "W2A16",
    "W8A32", "W8A32g16", "W8A32g32", "W8A32g64", "W8A32g128", "W8A32g256",
    "W4A32", "W4A32g16", "W4A32g32", "W4A32g64", "W4A32g128", "W4A32g256",
    "W3A32", "W3A32g16", "W3A32g32", "W3A32g64", "W3A32g128", "W3A32g256",
    "W2A32", "W2A32g32", "W2A32g64", "W2A32g128",
]  # fmt: skip
CANDIDATES: tuple[CandidateName, ...] = get_args(CandidateName)
# Of weights alone, where the settings name none.
ALONE: tuple[CandidateName, ...] = ("W8A32", "W4A32g32", "W4A32g64", "W4A32g128", "W4A32")
