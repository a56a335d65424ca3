"""Layers of one graph that have one weight, and so the same bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import ModelProto

from ..graph.index import Index
from ..graph.weight_readers import WeightReaders
from ..spec import QuantScheme


def find_leaders(model: ModelProto, schemes: Sequence[QuantScheme], encoding: str) -> dict[str, str]:
    """Layer -> the first one of the same weight, where both have one set of integers in all of the schemes."""
    index = Index(model.graph)
    found = [WeightReaders.find(index, scheme, encoding).leaders for scheme in schemes]
    firsts = [{name: leader.name for name, leader in leaders.items()} for leaders in found]
    return {name: first for name, first in firsts[0].items() if all(each.get(name) == first for each in firsts)}


def join_sets(sets: Sequence[Sequence[str]], leaders: Mapping[str, str]) -> list[list[str]]:
    """The sets of layers, those of which have a layer and its leader as one."""
    found = [list(each) for each in sets]
    for name, leader in leaders.items():
        first, second = (next(each for each in found if member in each) for member in (leader, name))
        if first is not second:
            first += second
            found.remove(second)
    return found
