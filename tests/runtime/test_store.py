import errno

import numpy as np
import pytest

from onnxcalib.errors import OutputError
from onnxcalib.runtime.store import KeptTensor, Store

BATCHES = [np.arange(24, dtype=np.float32).reshape(4, 2, 3), np.arange(100, 112, dtype=np.float32).reshape(2, 2, 3)]


@pytest.fixture
def store():
    with Store() as store:
        for batch in BATCHES:
            store.append("t", batch)
        yield store


def test_batches_come_back_as_they_were_given(store):
    for number, batch in enumerate(BATCHES):
        np.testing.assert_array_equal(store.batch("t", number), batch)


def test_rows_are_samples_counted_over_all_batches(store):
    whole = np.concatenate(BATCHES)
    np.testing.assert_array_equal(store.rows("t", [5, 0, 3, 3]), whole[[5, 0, 3, 3]])
    assert store.rows("t", []).shape == (0, 2, 3)


@pytest.mark.parametrize(
    "value",
    [
        np.int64(7),
        np.array([True, False]),
        np.zeros((0, 3), np.float16),
        np.arange(6).reshape(2, 3).T,
        np.array(["a"])[:0],
    ],
)
def test_any_shape_and_type_is_kept(value):
    with Store() as store:
        store.append("t", np.asarray(value))
        back = store.batch("t", 0)
    np.testing.assert_array_equal(back, value)
    assert back.dtype == value.dtype and back.shape == value.shape


def test_strings_and_sequences_come_back_and_have_no_rows():
    words, parts = np.array(["a", "bc"], object), [np.float32([1, 2]), np.zeros((2, 0), np.int64)]
    with Store() as store:
        for name, value in (("words", words), ("parts", parts), ("words", words[:1]), ("parts", [])):
            store.append(name, value)
        np.testing.assert_array_equal(store.batch("words", 0), words)
        np.testing.assert_array_equal(store.batch("words", 1), ["a"])
        for given, wanted in zip(store.batch("parts", 0), parts, strict=True):
            np.testing.assert_array_equal(given, wanted)
        assert store.batch("parts", 1) == []
        sizes = [shape[0] for _, shape, _ in store._batches["words"]]
        assert not store.sample_major("words", [2, 1]) and not store.sample_major("words", sizes)


def test_rows_of_scalars_are_single_values():
    with Store() as store:
        store.append("t", np.arange(5))
        assert store.rows("t", [4, 1]).tolist() == [4, 1]


def test_a_dropped_tensor_is_forgotten_and_its_space_free(store):
    store.append("u", BATCHES[0])
    assert store.names() == ["t", "u"] and len(list(store.folder.iterdir())) == 2
    store.drop("t")
    assert store.names() == ["u"] and "t" not in store and "u" in store
    assert len(list(store.folder.iterdir())) == 1
    store.append("t", BATCHES[1])
    np.testing.assert_array_equal(store.batch("t", 0), BATCHES[1])
    np.testing.assert_array_equal(store.batch("u", 0), BATCHES[0])


def test_the_folder_goes_with_the_block_and_with_an_exception():
    with Store() as store:
        store.append("t", BATCHES[0])
        folder = store.folder
        assert folder.is_dir()
    assert not folder.exists()
    with pytest.raises(KeyboardInterrupt), Store() as store:
        folder = store.folder
        raise KeyboardInterrupt
    assert not folder.exists()


def test_samples_are_the_first_axis_where_every_batch_has_a_row_for_each(store):
    assert store.sample_major("t", [4, 2])
    assert not store.sample_major("t", [4, 3])
    store.append("scalar", np.float32(1))
    assert not store.sample_major("scalar", [1])
    for width in (3, 5):
        store.append("ragged", np.zeros((2, width)))
    assert not store.sample_major("ragged", [2, 2])


def test_maps_and_values_that_are_none_come_back():
    with Store() as store:
        for value in (None, [{1: 0.5}], np.float32([1])):
            store.append("odd", value)
        assert [store.batch("odd", 0), store.batch("odd", 1)] == [None, [{1: 0.5}]]
        assert store.batch("odd", 2) == np.float32([1]) and not store.sample_major("odd", [1, 1, 1])


def test_a_full_disk_is_one_line_with_what_to_do(store, monkeypatch):
    def refuse(*_arguments, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(OutputError, match=r"tensor u cannot be stored \(No space left on device\); room .*TMPDIR"):
        store.append("u", BATCHES[0])


def test_a_mapped_tensor_is_all_batches_in_order_and_cannot_be_written(store):
    store.append("u", BATCHES[1])
    mapped = store.mapped("t")
    np.testing.assert_array_equal(mapped, np.concatenate(BATCHES))
    assert mapped.dtype == np.float32 and isinstance(mapped, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        mapped[0] = 0
    store.append("t", BATCHES[1])
    assert store.mapped("t").shape == (8, 2, 3) and len(mapped) == 6


@pytest.mark.parametrize("dtype", [np.int64, np.bool_, np.float16, np.uint8])
def test_one_value_a_sample_is_mapped_as_a_vector(dtype):
    with Store() as store:
        for part in ([0, 1, 1], [1], [0, 1]):
            store.append("t", np.array(part, dtype))
        assert store.mapped("t").tolist() == [0, 1, 1, 1, 0, 1] and store.mapped("t").dtype == dtype


def test_values_are_counted_by_batch(store):
    store.append("t", np.float32(1))
    assert store.counts("t") == [24, 12, 1]


@pytest.fixture
def kept(tmp_path):
    """A store in a folder that outlives it, with two tensors of which one is dropped, and what was kept before that."""
    store = Store(tmp_path)
    for batch in BATCHES:
        store.append("t", batch)
    store.append("words", np.array(["a"], object))
    found = store.list_kept()
    store.drop("t")
    return store, found


def test_what_was_kept_can_be_had_again_until_it_is_released(kept, tmp_path):
    store, found = kept
    again = Store(tmp_path)
    again.restore(found)
    np.testing.assert_array_equal(again.rows("t", range(6)), np.concatenate(BATCHES))
    assert again.batch("words", 0).tolist() == ["a"] and again.names() == ["t", "words"]
    again.append("u", BATCHES[0])
    assert again.list_kept()["u"].file == "2.tensor"
    store.release()
    with pytest.raises(FileNotFoundError):
        Store(tmp_path).restore(found)


def test_what_was_added_later_is_cut_off(kept, tmp_path):
    _, found = kept
    with open(tmp_path / found["t"].file, "ab") as file:
        file.write(b"more")
    again = Store(tmp_path)
    again.restore(found)
    again.append("t", BATCHES[0])
    np.testing.assert_array_equal(again.mapped("t"), np.concatenate([*BATCHES, BATCHES[0]]))


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda path: path.write_bytes(b"\1" + path.read_bytes()[1:]), "is damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is cut"),
    ],
)
def test_a_damaged_file_is_not_taken(kept, tmp_path, spoil, fault):
    _, found = kept
    spoil(tmp_path / found["t"].file)
    with pytest.raises(ValueError, match=fault):
        Store(tmp_path).restore(found)


@pytest.mark.parametrize(
    ("batches", "fault"), [("|O 1", "is no type"), ("none 1", "is no type"), ("<f4 -1", "describes no batch")]
)
def test_a_batch_that_is_no_array_of_numbers_is_not_taken(kept, tmp_path, batches, fault):
    with pytest.raises(ValueError, match=fault):
        Store(tmp_path).restore({"t": KeptTensor("0.tensor", 0, batches)})


def test_on_a_full_disk_the_state_to_go_back_to_makes_room(kept, tmp_path, monkeypatch):
    store, found = kept
    write, calls = Store._write, []

    def refuse_first(self, name, data):
        calls.append(name)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, name, data)

    monkeypatch.setattr(Store, "_write", refuse_first)
    store.append("u", BATCHES[0])
    np.testing.assert_array_equal(store.batch("u", 0), BATCHES[0])
    assert calls == ["u", "u"] and not (tmp_path / found["t"].file).exists()


@pytest.mark.parametrize("lasting", [False, True])
def test_the_tensors_of_another_store_are_taken(tmp_path, lasting):
    values = [np.arange(6.0).reshape(2, 3), np.arange(3.0).reshape(1, 3)]
    with Store() as other, Store(tmp_path if lasting else None) as own:
        own.append("x", np.zeros(4))
        for value in values:
            other.append("y", value)
        own.take(other)
        own.append("y", values[0])
        assert own.names() == ["x", "y"] and own.counts("y") == [6, 3, 6]
        for number, value in enumerate([*values, values[0]]):
            np.testing.assert_array_equal(own.batch("y", number), value)
        if lasting:
            again = Store(tmp_path)
            again.restore(own.list_kept())
            np.testing.assert_array_equal(again.batch("y", 1), values[1])
