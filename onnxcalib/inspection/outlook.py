"""What ``quantize`` would do with a float model, as far as its structure and the shapes of its tensors tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

from onnx import ModelProto

from ..config import QuantizeConfig
from ..contents import OutlookRecord, PortRecord
from ..data.padding import TOKEN_IDS
from ..data.states import may_lack
from ..data.ways import list_ways
from ..errors import ModelError
from ..graph.blocks import find_blocks
from ..graph.bodies import list_bodies
from ..graph.edit import copy_model
from ..graph.index import Index
from ..graph.kernel_times import Shapes
from ..graph.load import inputs_of
from ..graph.states import offer_states
from ..quantization.cost_placement import choose_by_cost
from ..quantization.in_float import list_in_float
from ..quantization.last_layers import count_costs
from ..quantization.outline import Outline, make_settings_scheme
from ..quantization.output_parts import find_parts
from ..quantization.rewrite import Rewritten, rewrite
from ..quantization.structure_rules import apply_rules, keep_operators, list_named
from ..quantization.target_settings import settle
from ..quantization.tensor_shapes import tell_shapes
from ..report import LeftOutRecord
from ..runtime.session import Session
from ..targets import OWN_RUNTIME, Target, load_target
from .estimate import count_work, estimate_runs, time_sample
from .example import Example, make_example

# What rules of placement see in samples alone.
UNDECIDED = (
    "layers and products whose values 256 levels do not hold well stay in float, or read float",
    "inputs whose values lie on 256 even levels, as pixels do, get a grid without error",
    "what onnxruntime refuses or computes otherwise is found by running the file",
)


@dataclass(frozen=True, kw_only=True)
class Sketch(Outline):
    """An outline of a model without samples. noted: what would not be done."""

    made_for: Target
    noted: list[LeftOutRecord] = field(default_factory=list)

    @property
    def target(self) -> Target:
        return self.made_for

    def leave_out(self, what: str, reason: str) -> None:
        record = LeftOutRecord(what, reason)
        if record not in self.noted:
            self.noted.append(record)


def look_ahead(model: ModelProto, ports: Sequence[PortRecord], beside: Executor) -> OutlookRecord:
    """What a run with the default settings would do. Raises ModelError for a model that it refuses.

    ports: what the file says of the inputs. beside: one other thread, which opens a session behind what it has to do.
    """
    inputs = inputs_of(model)
    example = make_example(inputs, ports, pooled=_is_pooled(model))
    opening = beside.submit(Session, model)
    try:
        sketch, shapes = _sketch(model, example)
    except ModelError:
        opening.cancel()
        raise
    scheme = sketch.scheme
    costs = count_costs(sketch.model, Index(sketch.model.graph), shapes)
    layers = (*scheme.layers, *scheme.recurrent, *scheme.embeddings)
    seconds = time_sample(opening.result(), example.feeds)
    work = count_work(sketch.model, scheme, shapes, seconds)
    states = () if any(spec.name == TOKEN_IDS for spec in inputs) else offer_states(model, inputs)
    noted, in_float = list(sketch.noted), list_in_float(sketch, scheme, sketch.config)
    if bodies := [body for body in list_bodies(model) if body.op in ("If", "Loop", "Scan")]:
        own = {node.name for node in sketch.model.graph.node}
        in_float = tuple(record for record in in_float if record.name in own)
        where = ", ".join(body.path for body in bodies)
        noted.append(LeftOutRecord(f"layers in {where}", "a run quantizes bodies too, each as a model of its own"))
    if states:
        noted.append(LeftOutRecord("states", f"if these are states, give {states}: samples are then sequences"))
    return OutlookRecord(
        layers={each.name: each.op for each in layers},
        in_float=in_float,
        left_out=tuple(noted),
        undecided=UNDECIDED,
        blocks=sum(bool(block.layers) for block in find_blocks(sketch.model, scheme)),
        samples=list_ways(inputs),
        optional=tuple(spec.name for spec in inputs if may_lack(spec)),
        assumed=example.assumed,
        products=sum(products for products, _ in costs.values()) + _count_recurrent(sketch, shapes),
        sample_seconds=seconds,
        estimates=estimate_runs(work),
    )


def _count_recurrent(sketch: Sketch, shapes: Shapes) -> int:
    """Multiplications of recurrent layers in a run: of both matrices of a layer for each step of each sample."""
    index = Index(sketch.model.graph)
    found = 0
    for node in (index.nodes[layer.name] for layer in sketch.scheme.recurrent):
        *steps, _ = shapes[node.input[0]]
        found += math.prod(steps) * sum(math.prod(index.initializers[name].dims) for name in node.input[1:3])
    return found


def _is_pooled(model: ModelProto) -> bool:
    """Whether no output has an axis of tokens, as those of sentence encoders have none."""
    return all(len(value.type.tensor_type.shape.dim) < 3 for value in model.graph.output)


def _sketch(model: ModelProto, example: Example) -> tuple[Sketch, Shapes]:
    target = load_target(OWN_RUNTIME)
    config = settle(QuantizeConfig(), target)
    noted: list[LeftOutRecord] = []
    found: dict[str, tuple[int, ...]] = {}

    def place(rewritten: Rewritten) -> Sketch:
        prepared = rewritten.model
        found.clear()
        found.update(tell_shapes(prepared, example.feeds))
        sketch = Sketch(
            config=config,
            original=model,
            model=prepared,
            scheme=make_settings_scheme(prepared, config, model, target.requirements),
            parts=find_parts(prepared, example.feeds, shapes=found),
            made_for=target,
            noted=noted,
        )
        return apply_rules(sketch, found, _find_slow)

    return keep_operators(place, rewrite(copy_model(model), config, target=target)), found


def _find_slow(sketch: Sketch, shapes: Shapes) -> Mapping[str, str]:
    return choose_by_cost(sketch.model, sketch.widest_scheme, shapes, list_named(sketch))
