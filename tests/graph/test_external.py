import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from onnxcalib.errors import ModelError
from onnxcalib.graph import external, values
from onnxcalib.graph.load import load_model, stored_files


@pytest.fixture
def stored(tmp_path, build, draw):
    """Writes a model whose weight is in m.data, with these entries in place of its own, and returns its path."""

    def write(*, dims=None, kind=None, **entries):
        model = build("g (float[N, 4] x) => (float[N, 3] y) { y = MatMul (x, w) }", w=draw(4, 3))
        onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
        model = onnx.load(tmp_path / "m.onnx", load_external_data=False)
        tensor = model.graph.initializer[0]
        found = {entry.key: entry.value for entry in tensor.external_data} | entries
        del tensor.external_data[:]
        for key, value in found.items():
            if value is not None:
                tensor.external_data.add(key=key, value=value)
        if dims is not None:
            del tensor.dims[:]
            tensor.dims.extend(dims)
        tensor.data_type = tensor.data_type if kind is None else kind
        (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
        return tmp_path / "m.onnx"

    return write


def weight_of(path):
    return numpy_helper.to_array(load_model(path).graph.initializer[0])


@pytest.mark.parametrize("entries", [{}, {"length": None}, {"length": "0"}, {"offset": None}, {"location": "./m.data"}])
def test_data_are_read_by_the_tensors_shape_where_the_file_gives_no_length(stored, tmp_path, entries):
    path = stored(**entries)
    wanted = np.fromfile(tmp_path / "m.data", np.float32).reshape(4, 3)
    np.testing.assert_array_equal(weight_of(path), wanted)


def test_a_folder_that_a_link_and_two_dots_lead_to_is_that_of_the_system(stored, tmp_path):
    (tmp_path / "other" / "deep").mkdir(parents=True)
    path, data = stored(), np.fromfile(tmp_path / "m.data", np.float32)
    for name in ("m.onnx", "m.data"):
        os.rename(tmp_path / name, tmp_path / "other" / name)
    (tmp_path / "link").symlink_to("other/deep")
    assert weight_of(tmp_path / "link" / ".." / path.name).ravel().tolist() == data.tolist()


@pytest.mark.parametrize("least", [1, 2**28])
@pytest.mark.parametrize("inside", [True, False])
def test_names_that_are_no_utf8_are_read(stored, tmp_path, monkeypatch, draw, least, inside):
    monkeypatch.setattr(values, "LEAST_LARGE_MODEL", least)
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    path, large = stored(), draw(200, 200)
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(large, "large"))
    (tmp_path / "own").mkdir()
    onnx.save(model, tmp_path / "own" / "m.onnx", save_as_external_data=not inside, location="m.data", size_threshold=0)
    (tmp_path / "own").rename(folder)
    np.testing.assert_array_equal(numpy_helper.to_array(load_model(folder / "m.onnx").graph.initializer[1]), large)


def test_only_the_bytes_of_a_tensor_are_read_of_a_huge_file(stored, tmp_path):
    path = stored(offset=str(2**40), length="48")
    with open(tmp_path / "m.data", "wb") as file:
        file.seek(2**40)
        file.write(np.arange(12, dtype=np.float32).tobytes())
        file.truncate(2**42)
    assert weight_of(path).ravel().tolist() == list(range(12))


def test_data_in_a_folder_below_are_read(stored, tmp_path):
    path = stored(location="sub/w.bin")
    (tmp_path / "sub").mkdir()
    os.rename(tmp_path / "m.data", tmp_path / "sub" / "w.bin")
    assert weight_of(path).shape == (4, 3)
    assert stored_files(path) == (path, tmp_path / "sub" / "w.bin")


def test_packed_4_bit_integers_take_half_a_byte_each(stored):
    assert weight_of(stored(dims=[12, 8], kind=TensorProto.INT4, length="48")).shape == (12, 8)
    with pytest.raises(ModelError, match=r"tensor w have length 48; its shape and type need 46 bytes"):
        load_model(stored(dims=[13, 7], kind=TensorProto.UINT4, length="48"))


@pytest.mark.parametrize(("key", "value"), [("offset", "-1"), ("offset", "one"), ("length", "-48"), ("length", "4e1"),
                                            ("offset", "9" * 30), ("length", "٤"), ("offset", "")])  # fmt: skip
def test_an_offset_or_length_that_is_no_number_of_bytes_is_refused(stored, key, value):
    with pytest.raises(ModelError, match=f"external data of tensor w have {key} .*; a number of bytes is needed"):
        load_model(stored(**{key: value}))


@pytest.mark.parametrize(("offset", "places"), [("4", "4 to 52 of 48"), (str(2**60), f"{2**60} to {2**60 + 48} of 48")])
def test_data_that_lie_behind_the_end_of_the_file_are_refused(stored, offset, places):
    with pytest.raises(ModelError, match=rf"tensor w cannot be read from .*m\.data \(bytes {places}\)"):
        load_model(stored(offset=offset))


def test_another_length_than_that_of_the_shape_is_refused(stored):
    with pytest.raises(ModelError, match="data of tensor w have length 40; its shape and type need 48 bytes"):
        load_model(stored(length="40"))


def test_text_in_external_data_is_refused(stored):
    with pytest.raises(ModelError, match="external data of tensor w are text; numbers are needed"):
        load_model(stored(kind=TensorProto.STRING))


@pytest.mark.parametrize("location", ["/etc/passwd", "../m.data", "sub/../../m.data", "", "..", "."])
@pytest.mark.parametrize("read", [load_model, stored_files])
def test_a_location_that_leads_outside_is_refused(stored, location, read):
    with pytest.raises(ModelError, match=r"data of tensor w are in .*, which is no path inside of the model's folder"):
        read(stored(location=location))


@pytest.mark.parametrize("location", ["x" * 5000, "nul\0l"])
@pytest.mark.parametrize("read", [load_model, stored_files])
def test_a_location_that_is_no_name_of_a_file_is_refused(stored, location, read):
    with pytest.raises(ModelError, match=r"data of tensor w are in .*, which cannot be read"):
        read(stored(location=location))


@pytest.mark.parametrize("kind", ["link", "folder link", "hard link", "dangling"])
def test_links_are_refused(stored, tmp_path, kind):
    path = stored(location="sub/w.bin" if kind == "folder link" else "w.bin")
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "w.bin").write_bytes(bytes(48))
    if kind == "folder link":
        (tmp_path / "sub").symlink_to("real")
    elif kind == "hard link":
        os.link(tmp_path / "real" / "w.bin", tmp_path / "w.bin")
    else:
        (tmp_path / "w.bin").symlink_to("real/w.bin" if kind == "link" else "nowhere")
    with pytest.raises(ModelError, match=r"data of tensor w are in .*, which is (a link|missing)"):
        load_model(path)


@pytest.mark.parametrize("read", [load_model, stored_files])
def test_what_is_no_regular_file_is_refused(stored, tmp_path, read):
    path = stored(location="pipe")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelError, match="pipe: is a pipe; external data lie in whole files"):
        read(path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ModelError, match="folder: is a directory; external data lie in whole files"):
        read(stored(location="folder"))


def test_tensors_that_name_the_same_bytes_again_and_again_are_refused(stored, monkeypatch):
    path = stored()
    model = onnx.load(path, load_external_data=False)
    for number in range(5):
        model.graph.initializer.add().CopyFrom(model.graph.initializer[0])
        model.graph.initializer[-1].name = f"w{number}"
    path.write_bytes(model.SerializeToString())
    assert len(load_model(path).graph.initializer) == 6
    monkeypatch.setattr(external, "FREE_BYTES", 0)
    with pytest.raises(ModelError, match="its tensors name 288 bytes of external data, but their files hold 48;"):
        load_model(path)


def test_tensors_that_are_larger_than_a_message_are_refused(stored):
    with pytest.raises(ModelError, match=r"tensor w: 4,294,967,296 bytes found; [0-9,]+ are allowed in one tensor"):
        load_model(stored(dims=[2**15, 2**15], length=str(2**32)))
