"""Spread independent tasks over the workers that the settings name."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import torch
from onnx import ModelProto

from ..config import QuantizeConfig
from ..graph.save import MOST_BYTES
from ..graph.values import is_outside
from ..graph.weightless import held_bytes
from ..runtime.workers import Costs, count_jobs, run_tasks


def spread_tasks(
    function: Callable[[Any, Any], Any],
    common: Any,
    tasks: Mapping[Hashable, Any],
    config: QuantizeConfig,
    *,
    model: ModelProto,
    device: torch.device,
    costs: Costs = None,
    warn: Callable[[str], None],
) -> Iterator[tuple[Hashable, Any]]:
    """``run_tasks`` on the workers of the settings, or on as many as there are cores; in the order of their end.

    model: the one in ``common``. Above 2 GB without the weights outside it is not sent to workers. device: where the
    tasks compute; a GPU has one worker unless the settings say more.
    """
    large = is_large(model)
    if large and (config.jobs or config.scheduler):
        warn("jobs: a model above 2 GB is worked on in this process alone")
    if not tasks:
        return
    jobs = 1 if large else config.jobs or (1 if device.type == "cuda" else count_jobs(config.threads or 1))
    scheduler = None if large else config.scheduler
    yield from run_tasks(
        function, common, tasks, jobs=min(jobs, len(tasks)), scheduler=scheduler, costs=costs, warn=warn
    )


def is_large(model: ModelProto) -> bool:
    """Whether the model without the weights outside it cannot be sent to workers."""
    return sum(held_bytes(tensor) for tensor in model.graph.initializer if not is_outside(tensor)) > MOST_BYTES


def use_one_thread(config: QuantizeConfig) -> QuantizeConfig:
    """The settings of a task, with one thread unless they say more: results must not depend on the machine."""
    return config.model_copy(update={"threads": config.threads or 1})
