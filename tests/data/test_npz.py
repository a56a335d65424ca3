"""The .npz format: no more is unpacked than fits, is used and is allowed."""

from __future__ import annotations

import io
import re
import struct
import zipfile

import numpy as np
import pytest

from onnxcalib.config import DataConfig
from onnxcalib.data import open_calibration
from onnxcalib.errors import DataError, OutputError
from onnxcalib.spec import InputSpec

VECTOR = [InputSpec("x", np.dtype(np.float32), (None, 4))]
PAIR = [InputSpec("left", np.dtype(np.float32), (None, 4)), InputSpec("right", np.dtype(np.float32), (None, 2))]
VALUES = np.arange(12, dtype=np.float32).reshape(3, 4)


def spell(values):
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def write(path, members, method=zipfile.ZIP_DEFLATED):
    """An archive of (name, content)."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def refuse(text, path, inputs=VECTOR, config=None, error=DataError, **options):
    with pytest.raises(error, match=re.escape(text)) as refusal:
        open_calibration(path, inputs, config, **options)
    assert "\n" not in str(refusal.value)


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """The folder of temporary files, and what was written into it."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def measure(folder):
    return sum(path.stat().st_size for path in folder.rglob("*.raw"))


def test_only_the_samples_that_are_used_are_unpacked(tmp_path, scratch):
    np.savez_compressed(tmp_path / "a.npz", x=np.ones((5000, 4), np.float32), y=np.arange(5000))
    samples = open_calibration(tmp_path / "a.npz", VECTOR, limit=10)
    assert measure(scratch) == 10 * 16 and samples.labels.tolist() == list(range(10))
    assert (len(samples), samples.available, samples.names) == (10, None, None)


def test_a_sum_of_a_whole_array_that_does_not_fit_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=VALUES)
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[content.index(VALUES.tobytes()) + 5] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    refuse("array of numbers (Bad CRC-32", tmp_path / "a.npz")


def test_shapes_and_types_are_refused_before_anything_is_unpacked(tmp_path, scratch):
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((1000, 5), np.float32))
    refuse("a.npz: input 'x': found shape (1000, 5); the model takes (any, 4)", tmp_path / "a.npz", limit=1)
    np.savez_compressed(tmp_path / "a.npz", left=np.zeros((9, 4), np.float32), right=np.zeros((8, 2), np.float32))
    refuse("a.npz: found 9 samples of 'left', 8 of 'right'", tmp_path / "a.npz", PAIR, limit=1)
    assert list(scratch.iterdir()) == []


def test_more_than_the_settings_allow_is_refused_with_the_remedies(tmp_path, scratch):
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((1000, 4), np.float32))
    config = DataConfig(max_unpacked="10KB")
    text = (
        "array 'x': takes 16,000 bytes unpacked; 10,000 are left of the 10,000 that all samples may take; give fewer"
        " with --samples, or raise --max-unpacked"
    )
    refuse(text, tmp_path / "a.npz", config=config)
    assert len(open_calibration(tmp_path / "a.npz", VECTOR, config, limit=600)) == 600
    assert list(scratch.iterdir()) == []


def test_the_limit_is_one_for_all_files_of_a_folder(tmp_path):
    for index in range(3):
        np.savez(tmp_path / f"{index}.npz", x=np.zeros((100, 4), np.float32))
    refuse(
        "2.npz: array 'x': takes 1,600 bytes unpacked; 800 are left of the 4,000",
        tmp_path,
        config=DataConfig(max_unpacked="4KB"),
    )


def test_a_disk_without_room_is_told_before_anything_is_unpacked(tmp_path, scratch, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((1000, 4), np.float32))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 99}))
    text = "array 'x' takes 16,000 bytes unpacked, and 99 are free here; free space, set TMPDIR to another disk"
    refuse(text, tmp_path / "a.npz", error=OutputError)
    assert list(scratch.iterdir()) == []


def test_a_disk_that_fills_up_is_no_broken_file(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", x=VALUES)
    monkeypatch.setattr("onnxcalib.data.room.FileIO", lambda *_: open("/dev/full", "wb", buffering=0))
    refuse("temporary files cannot be kept here (No space left on device)", tmp_path / "a.npz", error=OutputError)


def test_a_member_that_is_shorter_or_longer_than_its_header_is_refused(tmp_path):
    content = spell(VALUES)
    for changed, count in ((content[:-4], 44), (content + bytes(4), 52)):
        text = f"its header claims float32 of shape (3, 4), so 48 bytes; it has {count})"
        refuse(
            f"array 'x': not a complete .npy array of numbers ({text}", write(tmp_path / "a.npz", [("x.npy", changed)])
        )


def test_a_member_whose_size_is_a_lie_is_refused(tmp_path):
    """The list of members and the header agree on an array that the packed bytes do not hold."""
    claimed = spell(np.zeros((100, 4), np.float32))
    path = write(tmp_path / "a.npz", [("x.npy", claimed[:-160])], zipfile.ZIP_STORED)
    content = path.read_bytes()
    size, lie = (struct.pack("<I", len(claimed) - cut) for cut in (160, 0))
    path.write_bytes(content.replace(size, lie))
    refuse("a.npz: not a complete .npz file (", path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_than_numpys_are_refused(tmp_path, method):
    path = write(tmp_path / "a.npz", [("x.npy", spell(VALUES))], method)
    refuse("array 'x' is compressed in another way than by numpy.savez_compressed", path)


def test_an_array_that_is_there_twice_is_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"):
        path = write(tmp_path / "a.npz", [("x.npy", spell(VALUES)), ("x.npy", spell(VALUES + 1))])
    refuse("a.npz: not a complete .npz file (array 'x' is there twice)", path)


def test_names_with_odd_characters_are_refused_in_one_line(tmp_path):
    for name, spelled in (("a\nb", r"'a\nb'"), ("../x", "'../x'"), ("\x1b[31m", r"'\x1b[31m'"), ("n" * 9_000, "'nnn")):
        refuse(f"a.npz: {spelled}", write(tmp_path / "a.npz", [(f"{name}.npy", spell(VALUES))]))


def test_an_encrypted_member_is_refused(tmp_path):
    path = write(tmp_path / "a.npz", [("x.npy", spell(VALUES))])
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    refuse("is encrypted, password required", path)


def test_a_list_of_members_without_end_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("onnxcalib.data.npz.MOST_DIRECTORY", 10_000)
    path = write(tmp_path / "a.npz", [(f"{number}.npy", b"") for number in range(500)])
    refuse("its list of members has more than 10,000 bytes", path)


@pytest.mark.parametrize("name", ["label", "labels", "y"])
def test_labels_that_claim_more_than_there_are_samples_are_not_unpacked(tmp_path, name):
    members = [("x.npy", spell(VALUES)), (f"{name}.npy", spell(np.zeros(2**20, np.int8)))]
    samples = open_calibration(write(tmp_path / "a.npz", members), VECTOR)
    with pytest.raises(DataError, match=r"found labels of shape \(1048576\); there are 3 samples"):
        _ = samples.labels


def test_a_member_that_claims_more_than_the_file_holds_is_refused(tmp_path):
    path = write(tmp_path / "a.npz", [("x.npy", spell(VALUES))])
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"PK\1\2") + 20, 2**31)  # the packed size in the list of members
    path.write_bytes(data)
    refuse("array 'x' claims 2,147,483,648 bytes, more than the file holds", path)
