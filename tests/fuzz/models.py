"""Malformed models: bytes and fields of good ones changed, and models made by hand."""

from __future__ import annotations

from pathlib import Path

import onnx
from hypothesis import strategies as st

from tests.fuzz.case import Case, Edit, edit
from tests.fuzz.edits import change_bytes, change_fields, several
from tests.fuzz.made_models import EITHER, REFUSED

# By the command that reads it, the model that is changed.
FILES = {
    "mlp": "mlp.onnx",
    "images": "cnn.onnx",
    "encoder": "encoder.onnx",
    "external": "external.onnx",
    "validate": "mlp.q.onnx",
    "validate labels.csv": "cnn.q.onnx",
    "plan": "mlp.onnx",
    "calibrate": "mlp.onnx",
    "inspect": "mlp.q.onnx",
    "inspect float": "external.onnx",
}
JUDGED = ("validate", "inspect", "inspect float")  # tell what a model is, also where quantize would not take it


@edit
def make_model(path: Path, name: str) -> None:
    """Put a model of made_models in place of a good one."""
    model = onnx.load(path, load_external_data=False)
    written = (REFUSED | EITHER)[name](model)
    path.write_bytes(written if isinstance(written, bytes) else model.SerializeToString())


def _change(generator: str, base: str, changes: st.SearchStrategy[Edit]) -> st.SearchStrategy[Case]:
    return st.builds(Case, st.just(generator), st.just(base), several(changes, 3))


def _make(name: str, base: str) -> Case:
    return Case(
        "made models", base, (Edit("make_model", FILES[base], (name,)),), refused=name in REFUSED and base not in JUDGED
    )


BASES = st.sampled_from(sorted(FILES))
GENERATORS: dict[str, st.SearchStrategy[Case]] = {
    "model bytes": BASES.flatmap(lambda base: _change("model bytes", base, change_bytes(FILES[base]))),
    "model fields": BASES.flatmap(lambda base: _change("model fields", base, change_fields(FILES[base], "ModelProto"))),
    "made models": st.builds(
        _make,
        st.sampled_from(sorted(REFUSED | EITHER)),
        st.sampled_from(("mlp", "mlp", "calibrate", "plan", *JUDGED)),
    ),
}
