"""The loss of a part of the model that is put into its place: how far the outputs of the whole model are from float."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from onnx import ModelProto

from ..graph.bodies import Body, drop_unread, put_back
from ..graph.edit import copy_model
from ..graph.index import Index
from ..quantization.batches import Batches
from ..quantization.compared import Compared, find_comparable_outputs
from ..quantization.output_parts import Parts
from ..quantization.padding_mask import PaddingMask, find_real
from ..runtime.session import Session
from .loss import Extent, ReferenceBatch, divergence_of

BRANCHES = {True: "then_branch", False: "else_branch"}


@dataclass(frozen=True)
class Whole:
    """The float model, and the place of a graph in it.

    model: the model's own graph. places: the float model of each graph around, with the body in it, from the innermost
    on; none of the model's own graph. batches: the samples by which losses are measured; padding, parts: of the model.
    extent: how many samples are run. compared: the outputs by which losses are measured, where these are not all.
    """

    model: ModelProto
    places: tuple[tuple[ModelProto, Body], ...]
    batches: Batches
    padding: PaddingMask
    parts: Parts | None
    threads: int
    extent: Extent
    compared: Compared | None = None

    def inside(self, model: ModelProto, body: Body) -> Whole:
        """The same for a body of the graph, of which ``model`` is the float model."""
        places = ((model, body), *self.places)
        return replace(self, places=places)

    def place(self, part: ModelProto) -> ModelProto:
        """The model with this part in its place, in float around it."""
        for around, body in self.places:
            model = copy_model(around)
            put_back(model, body, part, {})
            drop_unread(model)
            part = model
        return part

    def measure(self, part: ModelProto) -> float:
        """Divergence of the model's outputs with this part in its place.

        Samples that take the other branch of the outermost If are not run again.
        """
        session = Session(self.place(part), threads=self.threads)
        axes = None if self.compared is None else self.compared.axes
        return divergence_of(session, self._references, self._names, axes, extent=self.extent)

    @cached_property
    def _references(self) -> Sequence[ReferenceBatch]:
        condition = self._find_condition()
        session, found = Session(self.model, also=[condition] if condition else (), threads=self.threads), []
        for feeds in self.batches:
            blank, values = partial(self.padding.fill_padding, real=find_real(feeds)), session.run(feeds)
            outputs: dict[str, Any] = {
                each.name: blank(each.name, values[each.name]) for each in self.model.graph.output
            }
            taken = {**feeds, **values}.get(condition)
            other = taken is not None and BRANCHES[bool(taken)] != self.places[-1][1].attribute
            found.append(ReferenceBatch(feeds, outputs, blank, self.parts, same=other))
        return found

    def _find_condition(self) -> str:
        """What decides whether a run comes to the outermost body; an empty text where that is none of an If."""
        if not self.places or self.places[-1][1].op != "If":
            return ""
        owner = Index(self.model.graph).nodes[self.places[-1][1].owner]
        return str(owner.input[0])

    @cached_property
    def _names(self) -> list[str]:
        if self.compared is not None:
            return list(self.compared.names)
        return find_comparable_outputs([batch.outputs for batch in self._references])

    def __getstate__(self) -> dict[str, Any]:
        kept = {"_references", "_names"}
        return {name: value for name, value in self.__dict__.items() if name not in kept}
