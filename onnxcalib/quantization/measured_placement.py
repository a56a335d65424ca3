"""Leave in float what runs slower on integers here: files of several placements are timed in turn on one thread."""

from __future__ import annotations

import numpy as np

from ..errors import ModelError
from ..graph.kernel_times import Shapes
from ..graph.stream import model_bytes
from ..runtime.turns import open_as_users
from .cost_placement import choose_by_cost, list_choices
from .prepared import Prepared
from .speed import read_median, time_briefly
from .trial import emit_placeholders

RAN_SLOWER = "the file runs faster here with it in float; --placement all quantizes it"
# Rounds of one run of each file: as many as fit into SECONDS. All files are held at once, so that larger models are not
# timed.
MOST_ROUNDS, SECONDS = 60, 2.0
MOST_BYTES = 2**28
# Of files whose times differ by less than this share, the one with the fewest nodes in float is taken.
LEAST_SHARE = 0.03


def choose_by_time(prepared: Prepared, shapes: Shapes, wanted: list[str]) -> dict[str, str]:
    """Maps nodes in float to the reason, by the fastest of the placements that the model of time proposes.

    One of them leaves nothing in float. Weights and grids are placeholders, which do not change the time. shapes,
    wanted: see ``choose_by_cost``, whose choice is taken for a large model.
    """
    scheme = prepared.widest_scheme
    if model_bytes(prepared.model) > MOST_BYTES:
        prepared.run.warn(
            f"placement: found a model of over {MOST_BYTES:,} bytes, of which several files would be held at once to"
            " measure them; what is slow on integers goes by the model of time, as with placement cost"
        )
        return choose_by_cost(prepared.model, scheme, shapes, wanted)
    choices, sessions = [], []
    for names in list_choices(prepared.model, scheme, shapes, wanted):
        found = prepared.leave(dict.fromkeys(names, RAN_SLOWER)).widest_scheme
        file = emit_placeholders(prepared.model, found, prepared.config.encoding)
        try:
            sessions.append(open_as_users(file))
        except ModelError:  # later rules find the node that onnxruntime refuses
            continue
        choices.append(names)
    if len(choices) < 2:
        return dict.fromkeys(choices[0] if choices else (), RAN_SLOWER)
    times = time_briefly(sessions, read_median(prepared.samples), seconds=SECONDS, most=MOST_ROUNDS)
    shares = np.median(times / times[:, :1], axis=0)
    best = int(np.flatnonzero(shares <= shares.min() * (1 + LEAST_SHARE))[0])
    told = ", ".join(f"{len(names)}: {share:.2f}" for names, share in zip(choices, shares, strict=True))
    prepared.run.observer.note(f"placement: nodes in float, and time here as a share of the first: {told}")
    return dict.fromkeys(choices[best], RAN_SLOWER)
