"""Tasks that wait, and which of them a worker begins next."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

# Replayed with the times of MobileNetV2's blocks, two workers end 1% to 4% after half of the time for 1/3 to 2/3, and
# 7% for 1, as in order.
EARLY = 0.5


class TaskQueue:
    """Waiting tasks. A worker takes them in their order, as it goes on from one to the next.

    A large task that was begun last would leave the other workers idle. So the largest one is taken as soon as it costs
    EARLY of a worker's share of all that wait, if there is another worker that has not passed those that it leaves out.
    One that has passed all leaves to each other worker a task, as it would begin anew.
    """

    def __init__(self, tasks: Mapping[Hashable, Any], costs: Mapping[Hashable, float] | None = None) -> None:
        """costs: of each task, in any unit; by default all cost the same."""
        self._left = dict(tasks)
        self._costs = {key: 1.0 if costs is None else costs[key] for key in tasks}
        self._places = {key: place for place, key in enumerate(tasks)}
        self._reached: dict[Hashable, int] = {}

    def __len__(self) -> int:
        return len(self._left)

    def take(self, worker: Hashable, workers: int, *, alone: bool = False) -> tuple[Hashable, Any] | None:
        """The key and the task that the worker begins, one of so many workers; None: others do what is left.

        alone: no other one works on a task.
        """
        ahead = [key for key in self._left if self._places[key] > self._reached.get(worker, -1)]
        if not self._left or not (ahead or alone or len(self._left) >= workers):
            return None
        ahead = ahead or list(self._left)
        key = max(ahead, key=self._costs.__getitem__)  # the first of those that cost the same
        share = sum(self._costs[each] for each in self._left) / workers
        if self._costs[key] < EARLY * share or not self._leaves(ahead[0], worker, workers):
            key = ahead[0]
        self._reached[worker] = self._places[key]
        return key, self._left.pop(key)

    def _leaves(self, key: Hashable, worker: Hashable, workers: int) -> bool:
        """Whether the task can be left to a worker beside this one that has not passed it."""
        others = [place for other, place in self._reached.items() if other != worker]
        return len(others) + 1 < workers or min(others, default=self._places[key]) < self._places[key]
