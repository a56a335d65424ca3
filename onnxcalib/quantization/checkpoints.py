"""Checkpoints: what a run has found so far, kept on disk until its file is written, so that it can be stopped.

They stand under a key. A run goes on from those of its own key alone, and then writes the file that it would have
written if it had not been stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from onnx import ModelProto

from ..config import EXECUTION, QuantizeConfig
from ..data import CalibrationSet
from ..errors import ConfigError, OutputError
from ..files.reading import read_file
from ..graph.layer_params import LayerParams
from ..graph.save import fingerprint
from ..layer_record import HistogramRecord
from ..report import BlockRecord, LeftOutRecord, OutputRecord, StageRecord
from ..runtime.cache import versions
from ..runtime.cores import count_cores, describe_processor
from ..runtime.record_file import read_record
from ..runtime.store import KeptTensor, Store
from ..runtime.work_folder import RECORD, TENSOR, WorkFolder
from ..spec import VERSION, QParams
from .float_outputs import KeptOutputs

if TYPE_CHECKING:
    from .run import Run

FOLDER = ".checkpoints"  # behind the name of the output
FOLDER_DIGITS = 8  # of the output's folder, as hexadecimal digits
KEY, RANGES, WALK, TUNED = "key", "ranges", "walk", "tuned"
UNKNOWN = "an unknown run, as the record of what they belong to is missing or damaged,"
PARALLEL = "parallel"  # how names begin of blocks that were reconstructed apart from each other
T = TypeVar("T")


@dataclass(frozen=True)
class Key:
    """What the file of a run depends on. settings: name -> value as JSON. processor: decides on last bits alone."""

    model: str
    samples: str
    settings: dict[str, str]
    version: str
    processor: str

    def digest(self) -> str:
        """The subject of the records of a run."""
        facts = {name: getattr(self, name) for name in ("model", "samples", "settings", "version")}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def list_others(self, other: Key) -> list[str]:
        """What is not the same in another key: the model, the samples, settings by name, the version."""
        parts = {"model": "another model", "samples": "other samples", "version": "another version"}
        found = [text for name, text in parts.items() if getattr(self, name) != getattr(other, name)]
        names = sorted(self.settings.keys() | other.settings.keys())
        changed = [name for name in names if self.settings.get(name) != other.settings.get(name)]
        return [*found, f"other settings ({', '.join(changed)})"] if changed else found


@dataclass(frozen=True)
class Calibrated:
    """Ranges as the text of their file, the float model's outputs on the samples, and histograms for the report."""

    ranges: str
    outputs: KeptOutputs
    histograms: dict[str, HistogramRecord] = field(default_factory=dict)


@dataclass(frozen=True)
class BlockDone:
    """What one block, or what was before the first, has changed: layers and grids; and its records for the report."""

    layers: dict[str, LayerParams]
    activations: dict[str, QParams]
    requantized: dict[str, QParams]
    records: tuple[BlockRecord, ...]


def find_changed(before: Mapping[str, QParams], now: Mapping[str, QParams]) -> dict[str, QParams]:
    """The grids that are not the ones before, for ``BlockDone``."""
    return {tensor: grid for tensor, grid in now.items() if before.get(tensor) is not grid}


@dataclass(frozen=True)
class WalkDone:
    """Where the walk over the blocks is.

    decisions: a digest of what the walk follows from. done: the number of blocks behind it; solved, total: the number
    of those with layers, of how many. saved: the number of BlockDone. store: the tensors for the next block. sizes,
    masks, passes, types: see ``StoredActivations``; of types those that values have told, as numbers of ONNX. frozen:
    see ``ReconstructionState``. warnings, left_out, seconds: what the report has of the stage so far.
    """

    decisions: str
    done: int
    solved: int
    total: int
    saved: int
    store: dict[str, KeptTensor]
    sizes: tuple[int, ...]
    masks: tuple[np.ndarray | None, ...]
    passes: int
    types: dict[str, int]
    frozen: tuple[str, ...]
    warnings: tuple[str, ...]
    left_out: tuple[LeftOutRecord, ...]
    seconds: float


@dataclass(frozen=True)
class Tuned:
    """What the tuning stages have found so far: layers and grids that are new, and the outputs."""

    decisions: str
    layers: dict[str, LayerParams]
    activations: dict[str, QParams]
    requantized: dict[str, QParams]
    outputs: tuple[OutputRecord, ...]
    losses: dict[str, float]
    records: tuple[StageRecord, ...]


@dataclass(frozen=True)
class CheckpointSettings:
    """Where a run keeps checkpoints. path: the folder; None: nowhere. given: further settings that the file depends on.

    chosen: whether the user chose the place. resume: True demands that there is something to go on from, False starts
    anew, None goes on where it can.
    """

    path: Path | None = None
    given: Mapping[str, str] | None = None
    resume: bool | None = None
    chosen: bool = False

    @classmethod
    def of(cls, config: QuantizeConfig, output: str | Path | None, given: Mapping[str, str]) -> CheckpointSettings:
        """That of the settings: a folder beside the output or in ``work_dir``. Raises ConfigError without either.

        In ``work_dir`` outputs of one name that stand in different folders have different checkpoints.
        """
        folder = config.work_dir or (None if output is None else Path(output).parent)
        if folder is None:
            if config.resume is not None:
                raise ConfigError(
                    "resume: found no place of checkpoints; they are kept beside an output or in work_dir; give one"
                )
            return cls()
        name = "quantize" if output is None else Path(output).name
        if output is not None and config.work_dir is not None:
            beside = os.fsencode(os.path.realpath(Path(output).parent))
            name += f"-{hashlib.sha256(beside).hexdigest()[:FOLDER_DIGITS]}"
        return cls(Path(folder) / f"{name}{FOLDER}", given, config.resume, chosen=config.work_dir is not None)


class Checkpoints:
    """The records of a run in its folder; without one nothing is kept, and all is computed.

    anew: the key of a run that starts anew. What is there stays until the first record of this run, as its settings may
    turn out not to fit the model.
    """

    def __init__(
        self,
        folder: WorkFolder | None = None,
        warn: Callable[[str], None] = lambda text: None,
        anew: Key | None = None,
    ) -> None:
        self.folder, self._warn, self._told, self._anew = folder, warn, False, anew

    def find(self, name: str, kind: type[T]) -> T | None:
        """The record of a name; None where there is none that is whole."""
        return None if self.folder is None or self._anew is not None else self.folder.read(name, kind)

    def keep(self, *records: tuple[str, Any, type[Any]]) -> bool:
        """Write records, each a name, a value and its type; a warning tells once where that cannot be done.

        Returns whether they are kept.
        """
        if self.folder is None:
            return False
        try:
            self._begin(self.folder)
            self.folder.write(*records)
        except (OSError, OutputError) as error:
            self.tell(error)
            return False
        return True

    def _begin(self, folder: WorkFolder) -> None:
        """Remove what is there where the run starts anew, and write its key. Raises OutputError or OSError."""
        if self._anew is not None:
            key, self._anew, folder.subject = self._anew, None, ""
            folder.clear()
            try:
                folder.write((KEY, key, Key))
            finally:
                folder.subject = key.digest()

    def tell(self, error: OSError | OutputError) -> None:
        """Warn once that checkpoints cannot be written."""
        if not self._told and self.folder is not None:
            reason = error.__cause__ or error
            self._warn(
                f"{self.folder.path}: no checkpoint can be written ({getattr(reason, 'strerror', None) or reason}); the"
                " run goes on; if it is stopped, it starts from the last checkpoint, or anew; free space, or choose"
                " another place with --work-dir"
            )
        self._told = True

    def spell_progress(self) -> str:
        """From where a run goes on."""
        if (tuned := self.find(TUNED, Tuned)) is not None:
            return f"after {tuned.records[-1].name}"
        if (walk := self.find(WALK, WalkDone)) is not None:
            return f"after {walk.solved} of {walk.total} blocks"
        if self.folder is not None and (done := sum(name.startswith(PARALLEL) for name in self.folder.names())):
            return f"with {done} of the blocks done"
        return "after calibrating" if self.find(RANGES, Calibrated) else "from the start"

    def recall(self, name: str, compute: Callable[[], T], kind: type[T]) -> T:
        """The record of a name, or else what ``compute`` returns, which is then kept."""
        found = self.find(name, kind)
        if found is None:
            found = compute()
            self.keep((name, found, kind))
        return found

    def open_store(self) -> Store:
        """A store in the folder, or in a temporary one without checkpoints."""
        if self.folder is None:
            return Store()
        try:
            self._begin(self.folder)
        except (OSError, OutputError) as error:
            self.tell(error)
        return Store(self.folder.path)

    def remove(self) -> None:
        """Remove the folder, as the file is written, unless a run of another key has left it since ``close``."""
        if self.folder is None:
            return
        key = read_record(self.folder.locate(KEY), "", KEY, Key)
        if key is None or key.digest() == self.folder.subject:
            self.folder.remove()
        else:
            self.folder.close()

    def close(self) -> None:
        """Let the next run have the folder, which stays until ``remove``."""
        if self.folder is not None:
            self.folder.close()

    def leave(self, note: Callable[[str], None]) -> None:
        """Leave the folder to the next run, or remove it where no block is done."""
        if self.folder is None or self._anew is not None:
            self.remove()
            return
        walk = self.find(WALK, WalkDone)
        apart = any(name.startswith(PARALLEL) for name in self.folder.names())
        if not (apart or self.folder.has(TUNED) or (walk is not None and walk.solved)):
            self.folder.remove()
            return
        note(f"{self.folder.path}: keeps what was done; the same command goes on from there")
        self.folder.close()


def open_of_run(run: Run, original: ModelProto, samples: CalibrationSet) -> Checkpoints:
    """The checkpoints of a run on these samples. Raises as ``open_checkpoints``."""
    if run.checkpointing.path is None:
        return Checkpoints()
    return open_checkpoints(run.checkpointing, make_key(run, original, samples), run.observer.note, run.warn)


def open_checkpoints(
    settings: CheckpointSettings, key: Key, note: Callable[[str], None], warn: Callable[[str], None]
) -> Checkpoints:
    """The checkpoints of a run of this key; those of another are removed, of which a warning tells.

    Raises OutputError for a folder that cannot be used, and ConfigError where there is nothing to go on from and that
    was demanded.
    """
    path = settings.path
    if path is None:
        return Checkpoints()
    existed = path.is_dir()
    try:
        if settings.chosen:
            path.parent.mkdir(parents=True, exist_ok=True)
        folder = WorkFolder(path)
    except OutputError as error:
        if settings.chosen or settings.resume or not isinstance(error.__cause__, OSError):
            raise
        warn(f"{error}; until then a run that is stopped starts anew")
        return Checkpoints()
    except OSError as error:
        raise OutputError(
            f"work_dir: {path.parent} cannot be made ({error.strerror or error}); choose another folder"
        ) from None
    found = folder.read(KEY, Key)
    others = [] if found is None else key.list_others(found)
    if found is None and any(name.endswith((RECORD, TENSOR)) for name in folder.names()):
        others = [UNKNOWN]
    if settings.resume and (found is None or others):
        (folder.close if existed else folder.remove)()
        what = f"those of {' and '.join(others)}" if others else "none"
        raise ConfigError(
            f"resume: found {what} in {path}; checkpoints of the same run are needed, which it leaves where it is"
            " stopped; give that run's command, or leave --resume out"
        )
    checkpoints = Checkpoints(folder, warn)
    folder.subject = key.digest()
    if found is not None and not others and settings.resume is not False:
        note(f"{path}: found the checkpoints of a run that was stopped; it goes on {checkpoints.spell_progress()}")
        if found.processor != key.processor:
            warn(
                f"{path}: the run was begun on another processor ({found.processor}; this one is {key.processor}),"
                " whose sums may differ in their last bits; so may the file; --fresh makes it here alone"
            )
        return checkpoints
    if others:
        done = "are removed, as --fresh asks" if settings.resume is False else "are removed; this run starts anew"
        warn(f"{path}: the checkpoints of {' and '.join(others)} {done}")
    return Checkpoints(folder, warn, anew=key)


@contextmanager
def keeping(run: Run) -> Iterator[None]:
    """Leave the checkpoints of a run that fails or is stopped to the next one, but those of settings at fault."""
    try:
        yield
    except ConfigError as error:
        if str(error).partition(":")[0] in EXECUTION:  # such as workers that were lost
            run.checkpoints.leave(run.observer.note)
        else:  # other settings need other checkpoints
            run.checkpoints.remove()
        raise
    except BaseException:
        run.checkpoints.leave(run.observer.note)
        raise


def make_key(run: Run, original: ModelProto, samples: CalibrationSet) -> Key:
    """What the file of a run on these samples depends on, beside what the model's own file tells."""
    config, target = run.config, run.target
    values = config.model_dump(mode="json", exclude={*EXECUTION, "data", "target", "latencies", "threads"})
    data = config.data.model_dump(mode="json", exclude={"tokenizer"})  # samples are known by what they are
    settings = {name: json.dumps(value) for name, value in {**values, **data}.items()}
    settings["target"] = target.model_dump_json(exclude={"description"})
    if config.latencies is not None:
        settings["latencies"] = read_file(Path(config.latencies), ConfigError, give="give a CSV file").hex()
    given = run.checkpointing.given or {}
    settings |= {name: hashlib.sha256(text.encode()).hexdigest() for name, text in given.items()}
    device = torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else "no GPU"
    processor = f"{describe_processor()}, {run.threads or count_cores()} threads, {device}"
    return Key(fingerprint(original), run.digest(samples), settings, f"{VERSION} {versions()}", processor)
