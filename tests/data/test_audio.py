"""Audio files as windows: rates, channels and types, and what is refused."""

import re

import numpy as np
import pytest
from scipy.io import wavfile

from onnxcalib.config import DataConfig
from onnxcalib.data import open_calibration
from onnxcalib.errors import ConfigError, DataError
from onnxcalib.spec import InputSpec

FLOAT = np.dtype(np.float32)
SPEECH = [InputSpec("input", FLOAT, (None, None)), InputSpec("state", FLOAT, (2, None, 3), "stateN")]
RATE = InputSpec("sr", np.dtype(np.int64), ())
SETTINGS = DataConfig(state="stateN:state", window=6, hop=4)


@pytest.fixture
def write(tmp_path):
    def write(name, values, rate=16_000):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        wavfile.write(path, rate, values)
        return path

    return write


def test_windows_have_earlier_values_in_front_and_zeros_at_the_start(write):
    path = write("a.wav", np.arange(1, 11, dtype=np.int16) * 2**10)
    samples = open_calibration(path, [*SPEECH, RATE], SETTINGS)
    read = [samples.read([step]) for step in range(2)]
    values = np.arange(1, 11) / 32
    assert read[0]["input"].tolist() == [[0, 0, *values[:4]]] and read[1]["input"].tolist() == [values[2:8].tolist()]
    assert read[0]["sr"] == 16_000 and read[0]["state"].shape == (2, 1, 3) and len(samples) == 2
    assert samples.notes[0].endswith(
        "audio at 16,000 Hz: windows of 6 values, 4 new ones in each, the first behind 2 zeros"
    )


@pytest.mark.parametrize(
    "values",
    [
        np.array([[64, 192], [128, 255]], np.uint8),
        np.array([[-(2**14), 2**14], [0, 2**15 - 1]], np.int16),
        np.array([[-(2**30), 2**30], [0, 2**31 - 1]], np.int32),
        np.array([[-0.5, 0.5], [0, 1]], np.float32),
    ],
)
def test_values_of_all_types_lie_between_1_and_minus_1_and_channels_are_averaged(write, values):
    found = open_calibration(write("a.wav", values), SPEECH, DataConfig(state="stateN:state", window=2)).read([0])
    np.testing.assert_allclose(found["input"], [[0, 0.5]], atol=0.005)


def test_each_file_is_a_sequence_in_folders_of_speakers_too(write):
    for name, count in (("one/b.wav", 8), ("one/a10.wav", 4), ("two/c.wav", 12)):
        write(name, np.full(count, 2**14, np.int16))
    folder = write("two/d.wav", np.ones(9, np.int16)).parent.parent
    assert open_calibration(folder, SPEECH, SETTINGS).sequences.tolist() == [0, 1, 1, 2, 2, 2, 3, 3]


def test_without_states_each_window_is_a_sample(write):
    path = write("a.wav", np.arange(1, 11, dtype=np.int16) * 2**10)
    samples = open_calibration(path.parent, [InputSpec("x", FLOAT, (None, 1, 4))])
    assert len(samples) == 2 and samples.read([1])["x"].ravel().tolist() == [5 / 32, 6 / 32, 7 / 32, 8 / 32]
    assert samples.states == {}


def test_a_file_is_one_sequence_whatever_axis_counts_the_steps_of_arrays(write):
    path = write("a.wav", np.ones(12, np.int16))
    settings = DataConfig(state="stateN:state", window=4, sequence_axis=1)
    for source in (path, path.parent):
        assert open_calibration(source, SPEECH, settings).sequences.tolist() == [0, 0, 0]


def test_a_rate_with_an_axis_of_samples_has_one_for_each_window(write):
    inputs = [InputSpec("x", FLOAT, (None, 4)), InputSpec("sr", np.dtype(np.int64), (None,))]
    samples = open_calibration(write("a.wav", np.ones(12, np.int16)), inputs)
    assert samples.read([0, 2])["sr"].tolist() == [16_000, 16_000]


def test_another_rate_is_resampled_or_refused(write):
    tone = np.sin(np.arange(800) * 2 * np.pi * 100 / 8000).astype(np.float32)
    write("a.wav", tone, 8000)
    settings = DataConfig(state="stateN:state", window=1600, sample_rate=16_000)
    samples = open_calibration(write("b.wav", np.zeros(1600, np.float32)).parent, [*SPEECH, RATE], settings)
    found = samples.read([0])
    wanted = np.sin(np.arange(1600) * 2 * np.pi * 100 / 16_000)
    assert np.abs(found["input"][0] - wanted)[100:-100].max() < 0.01 and found["sr"] == 16_000
    assert "audio at 16,000 Hz, resampled from 8,000 Hz" in samples.notes[0]
    with pytest.raises(DataError, match=r"b.wav: found 16000 Hz, and 8000 before; give --sample-rate"):
        open_calibration(write("b.wav", tone).parent, SPEECH, SETTINGS)


@pytest.mark.parametrize("places", [(4, 40), (4,), (40,)])
def test_a_stream_whose_header_does_not_say_its_length_is_read_to_its_end(write, places):
    path = write("a.wav", np.arange(8, dtype=np.int16))
    data = bytearray(path.read_bytes())[:-4]
    for place in places:
        data[place : place + 4] = b"\xff" * 4
    path.write_bytes(data + b"\0\0")
    assert len(open_calibration(path, SPEECH, DataConfig(state="stateN:state", window=7))) == 1


def test_a_file_with_lengths_of_64_bits_that_is_cut_is_refused(write):
    path = write("a.wav", np.arange(8, dtype=np.int16))
    data = path.read_bytes()
    lengths = b"ds64" + (28).to_bytes(4, "little") + b"".join(n.to_bytes(8, "little") for n in (88, 16, 8)) + bytes(4)
    path.write_bytes(b"RF64" + b"\xff" * 4 + data[8:12] + lengths + data[12:40] + b"\xff" * 4 + data[44:])
    settings = DataConfig(state="stateN:state", window=8)
    assert len(open_calibration(path, SPEECH, settings)) == 1
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DataError, match="found 2 bytes less of audio"):
        open_calibration(path, SPEECH, settings)


def test_what_stands_behind_the_values_may_be_cut(write):
    path = write("a.wav", np.arange(8, dtype=np.int16))
    path.write_bytes(path.read_bytes() + b"LIST\x09\0\0\0abc")
    assert len(open_calibration(path, SPEECH, DataConfig(state="stateN:state", window=8))) == 1


def test_files_and_models_that_do_not_fit_are_refused(write, tmp_path):
    def refuse(text, path, inputs=SPEECH, **settings):
        with pytest.raises(DataError, match=re.escape(text)):
            open_calibration(path, inputs, DataConfig(state="stateN:state", **settings))

    path = write("a.wav", np.ones(10, np.int16))
    refuse("input 'input' takes any number of values, (any, any); give --window", path)
    refuse("a.wav: found 10 values; a step takes 11 new ones; give a longer file", path, window=11)
    fixed = [InputSpec("input", FLOAT, (1, 8)), SPEECH[1]]
    refuse("found a hop of 9, and windows of 8; lower --hop", path, fixed, hop=9)
    refuse("audio feeds one input of floats, whose last axis counts values", path, [*SPEECH, fixed[0]], window=4)
    refuse("audio feeds one input", path, [InputSpec("mel", FLOAT, (None, 80, None)), SPEECH[1]], window=4)
    (tmp_path / "cut.wav").write_bytes(path.read_bytes()[:30])
    refuse("cut.wav: not a complete .wav file", tmp_path / "cut.wav", window=4)
    (tmp_path / "short.wav").write_bytes(path.read_bytes()[:-4])
    refuse("short.wav: not a complete .wav file (found 4 bytes less of audio", tmp_path / "short.wav", window=4)
    slow = write("slow.wav", np.ones(10, np.int16), 9)
    refuse(
        "slow.wav: found 9 Hz, which is not resampled to 16,000; 16 to 1,000,000 Hz", slow, window=4, sample_rate=16_000
    )
    refuse("empty.wav: found no values in it", write("empty.wav", np.zeros(0, np.int16)), window=4)
    with pytest.raises(ConfigError, match=r"hop: found 8; is larger than the window of 4"):
        DataConfig(window=4, hop=8)
    samples = open_calibration(np.ones((2, 8), np.float32), [fixed[0]], DataConfig(window=4))
    assert "sample_rate, window and hop are for audio files" in samples.warnings[0]
