"""Run models in onnxruntime; no other module makes an InferenceSession."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, TensorProto, helper, numpy_helper

from ..errors import ModelError, OnnxCalibError, OutputError, first_line
from ..files.scratch import Scratch, room_in
from ..graph.cuts import count_weights
from ..graph.edit import copy_model
from ..graph.packed import multiplies_packed, with_float_activations
from ..graph.passes.draws import fix_draws
from ..graph.passes.unsigned_weights import unsign_weights
from ..graph.save import save_model
from ..graph.values import check_states, count_bytes, has_outside, list_states
from .cores import count_cores
from .segmented import Loaded, Segmented

# Larger models go through a file, whose weights onnxruntime maps. A model that is passed in memory is held three times:
# protobuf holds the message twice while it writes it, and onnxruntime copies it. A message has at most 2 GB, too.
MOST_BYTES = 2**28
# The profiler's suffix of a node's name.
KERNEL = "_kernel_time"
# Turns int8 weights into uint8, whose kernels are exact on x86 without VNNI, but slower.
UNSIGNED = "session.x64quantprecision"
# Weights outside of a model that a session holds at once, or else one node's; models with more run segment by segment.
# It does not depend on the memory that a run may take, and so neither do the last bits of what sessions compute.
SEGMENT_BYTES = 2**27
# The folder in which onnxruntime looks for the tensors of a model that is given in memory. It takes no absolute paths.
FOLDER, ROOT = "session.model_external_initializers_file_folder_path", "/"
# Keeps weights where they are mapped from. Packing them costs as much as five runs save, and holds them twice.
UNPACKED = "session.disable_prepacking"
ADVICE = "a model that onnxruntime computes is needed; check it, or export it again"
# Puts a Gemm and a Transpose behind it together also where what lies between is an output.
LOSING_OUTPUTS = ["GemmTransposeFusion"]
MOST_SHOWN = 500  # characters of what onnxruntime says
# What onnxruntime says of outputs of the types that it does not give to Python.
NO_TYPE, NO_ARRAYS = "No corresponding Numpy type", ("bfloat16", "int4", "float4")
T = TypeVar("T")


class Session:
    """One model in onnxruntime on the CPU; ``inputs`` and ``outputs`` are the names of its tensors."""

    def __init__(
        self,
        model: ModelProto,
        *,
        also: Sequence[str] = (),
        name: str = "the model",
        optimize: bool = True,
        deployed: bool = False,
        unsigned: bool = False,
        draws: bool = False,
        whole: bool = False,
        unpacked: bool = False,
        threads: int = 0,
        dump: Path | None = None,
        profile: Path | None = None,
    ):
        """Raises ModelError where onnxruntime refuses the model, and OutputError where a file cannot be written.

        also: tensors to return after the outputs; those that no node computes are left out. name: what errors call the
        model. deployed: as users run it, so that sums of integers saturate where this processor's kernels do;
        otherwise they are exact on every processor, and a MatMulNBits of the model leaves its activations in float.
        unsigned: int8 weights are made unsigned by onnxruntime's option. draws: operators that draw random values draw
        other ones in each run, as users' do; otherwise they compute values that are the same in every run and every
        model (see ``fix_draws``), but where a graph or times are asked for. whole: never segment by segment, and with
        packed weights, as users' sessions that are timed. unpacked: opened for its graph and not for runs, which would
        be slow. threads: 0 is one for each core. dump: the file for the optimized graph; its weights are written
        beside it. profile: how the name of the file begins that ``end_profile`` reads.
        """
        self.name = name
        if not (draws or dump or profile):
            model = fix_draws(model)
        if not (deployed or unsigned or dump or profile):
            model = with_float_activations(model)
        whole = whole or profile is not None
        self._states = list_states(model)
        more, as_users = _list_more(model, also), deployed or unsigned
        # Packing takes memory for a copy of the weights, so that large models go without where it changes no number.
        packed = whole or not has_outside(model) or (as_users and multiplies_packed(model))
        packed &= not unpacked

        def load(model: ModelProto, more: Sequence[str], dump: Path | None) -> Loaded:
            choose = partial(_choose_options, optimize, threads, dump, profile, packed=packed)
            if as_users or not saturates():
                return _load(model, more, choose(unsigned=unsigned), name)
            return _load_exact(model, more, choose, name)

        def open_all(dump: Path | None) -> tuple[ort.InferenceSession | Segmented, Scratch | None]:
            if not whole and has_outside(model) and count_weights(model) > SEGMENT_BYTES:
                names = [*(value.name for value in model.graph.output), *more]
                return Segmented(model, names, SEGMENT_BYTES, load, dump), None
            return load(model, more, dump)

        # Keep this order: Python releases attributes as they were set, and the session maps files of the folder.
        self._session, self._folder = open_all(None) if dump is None else _load_and_dump(open_all, dump)
        self.inputs = [i.name for i in self._session.get_inputs()]
        self.outputs = [o.name for o in self._session.get_outputs()]

    def run(
        self, feeds: Mapping[str, np.ndarray | list[Any]], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """The outputs by name; feeds that the model does not read are ignored.

        Raises ModelError, also where a user's file with weights has been written since it was checked.
        """
        names = list(self.outputs if outputs is None else outputs)
        if not names:  # onnxruntime would return all of them
            return {}
        try:
            values = self._session.run(names, {k: feeds[k] for k in self.inputs if k in feeds})
        except Exception as error:  # onnxruntime's exceptions share no base class but Exception
            check_states(self._states)
            if isinstance(error, OnnxCalibError):  # of a part that cannot be opened
                raise
            raise ModelError(f"onnxruntime cannot run {self.name}: {self._explain(error, names)}; {ADVICE}") from error
        check_states(self._states)
        return dict(zip(names, values, strict=True))

    def _explain(self, error: Exception, names: Sequence[str]) -> str:
        text = _spell(error)
        if NO_TYPE in text:  # onnxruntime does not say which output that is
            for each in self._session.get_outputs():
                if each.name in names and any(kind in each.type for kind in NO_ARRAYS):
                    return f"the output {each.name} is {each.type}; no array holds that; add a Cast to float behind it"
        return text

    def end_profile(self) -> dict[str, list[float]]:
        """Milliseconds of each node's kernel, each time that it runs, by the node's name in the optimized graph.

        If, Loop and Scan are left out, whose times are those of the nodes in them.

        Raises OutputError where onnxruntime could not write its profile, of which it says nothing itself.
        """
        assert isinstance(self._session, ort.InferenceSession), "a profile is of a whole model"
        times: dict[str, list[float]] = {}
        path = Path(self._session.end_profiling())
        with room_in(path.parent):
            try:
                events = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                raise OSError("onnxruntime's profile is not whole") from None
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith(KERNEL) and not _has_bodies(event):
                times.setdefault(event["name"].removesuffix(KERNEL), []).append(event["dur"] / 1000)
        return times


def _has_bodies(event: Mapping[str, Any]) -> bool:
    return event.get("args", {}).get("op_name") in ("If", "Loop", "Scan")


def _choose_options(
    optimize: bool, threads: int, dump: Path | None, profile: Path | None, *, packed: bool, unsigned: bool
) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = min(threads, count_cores())  # more only wait for each other
    # Spinning threads of onnxruntime take the cores from torch between two runs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if dump is not None:
        options.optimized_model_filepath = str(dump)
        # Otherwise a model above 2 GB could not be written.
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", f"{dump.name}.data")
    if not packed:
        options.add_session_config_entry(UNPACKED, "1")
        options.enable_cpu_mem_arena = False  # it takes blocks of twice the size of the one before
    if unsigned:
        options.add_session_config_entry(UNSIGNED, "1")
    return options


def _spell(error: Exception) -> str:
    """What onnxruntime says, in one line: it breaks lines within names, and tells in later ones what it expected."""
    text = first_line(OnnxCalibError(" ".join(str(error).split()))).rstrip(".")
    return text if len(text) <= MOST_SHOWN else text[:MOST_SHOWN] + "..."


def _list_more(model: ModelProto, tensors: Sequence[str]) -> list[str]:
    """Those of the tensors that nodes compute and that are no outputs."""
    given = {value.name for value in model.graph.output}
    made = {tensor for node in model.graph.node for tensor in node.output}
    return [name for name in dict.fromkeys(tensors) if name in made - given]


def _spell_more(tensors: Sequence[str]) -> bytes:
    """Bytes to append to the model's own, which add outputs without a copy: protobuf merges concatenated messages."""
    more = ModelProto()
    more.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in tensors)
    return more.SerializeToString() if tensors else b""


def _load(model: ModelProto, more: Sequence[str], options: ort.SessionOptions, name: str) -> Loaded:
    """The session, and the folder with the weights that it maps, if it does."""
    folder = None
    make = partial(
        ort.InferenceSession, providers=["CPUExecutionProvider"], disabled_optimizers=LOSING_OUTPUTS if more else None
    )
    try:
        if has_outside(model):
            options.add_session_config_entry(FOLDER, ROOT)
            return make(_lead_from_root(model).SerializeToString() + _spell_more(more), options), None
        if sum(map(count_bytes, model.graph.initializer)) <= MOST_BYTES:
            data = model.SerializeToString()
            if len(data) <= MOST_BYTES:
                return make(data + _spell_more(more), options), None
        folder = Scratch()
        path = folder.path / "model.onnx"
        _write(model, more, path)
        return make(str(path), options), folder
    except OutputError:
        if folder is not None:
            folder.remove()
        raise
    except Exception as error:  # onnxruntime's exceptions share no base class but Exception
        if folder is not None:
            folder.remove()  # the error's traceback would keep it
        raise ModelError(f"onnxruntime cannot load {name}: {_spell(error)}; {ADVICE}") from error


def _lead_from_root(model: ModelProto) -> ModelProto:
    """A copy in which the paths of tensors that lie outside lead from ROOT; onnxruntime maps their files."""
    copy = copy_model(model)
    for tensor in copy.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = entry.value.removeprefix(ROOT)
    return copy


def _write(model: ModelProto, more: Sequence[str], path: Path) -> None:
    """Write a model into a temporary folder. Raises OutputError."""
    with room_in(path.parent):
        try:
            save_model(model, path, most_bytes=MOST_BYTES, lasting=False)
        except OutputError as error:  # says what to do about a user's own file
            raise error.__cause__ or error from None
        with open(path, "ab") as file:
            file.write(_spell_more(more))


def _load_and_dump(load: Callable[[Path | None], T], dump: Path) -> T:
    """A session that writes its graph. Where it loads without writing, the fault is the disk's: raises OutputError."""
    try:
        return load(dump)
    except ModelError as error:
        load(None)
        with room_in(dump.parent):
            raise OSError(f"onnxruntime cannot write its graph: {first_line(error)}") from None


def _load_exact(model: ModelProto, more: Sequence[str], choose: Callable[..., ort.SessionOptions], name: str) -> Loaded:
    """The session with exact sums on a processor whose kernels saturate."""
    exact = unsign_weights(model)
    # A float weight that the session itself quantizes to int8 is made unsigned by onnxruntime's option. The option
    # refuses models that multiply signed by signed integers, whose sums are exact without it.
    for unsigned in (True, False):
        with suppress(ModelError):
            return _load(exact, more, choose(unsigned=unsigned), name)
    return _load(model, more, choose(unsigned=False), name)  # its error has the user's own names


@cache
def saturates() -> bool:
    """Whether onnxruntime's integer kernels saturate on this processor, as they do on x86 without VNNI.

    Measured with a product that fits into int16 while twice the product does not.
    """
    highest, most = 255, 127
    names = ("a", "a_scale", "a_zero", "b", "b_scale", "b_zero", "y_scale", "y_zero")
    one, zero = np.float32(1), np.uint8(0)
    values = (None, one, zero, np.full((2, 1), most, np.int8), one, np.int8(0), np.float32(highest), zero)
    graph = helper.make_graph(
        [helper.make_node("QLinearMatMul", names, ["y"])],
        "probe",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, [1, 1])],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in zip(names, values, strict=True) if v is not None],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    given = Session(model, deployed=True, threads=1).run({"a": np.full((1, 2), highest, np.uint8)})["y"]
    return int(given[0, 0]) != 2 * most


def is_float(value: Any) -> bool:
    """Whether a model's output is an array of floating point."""
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"
