"""What samples are is told by their files and values, and not by where they lie."""

import numpy as np
from PIL import Image

from onnxcalib.config import DataConfig
from onnxcalib.data import InputSpec, open_calibration
from onnxcalib.data.digest import digest_samples

VALUES = np.arange(12, dtype=np.float32).reshape(6, 2)
SPEC = [InputSpec("x", np.dtype(np.float32), (None, 2))]
IMAGE = [InputSpec("x", np.dtype(np.float32), (None, 3, 2, 2))]


def test_the_same_values_have_one_digest_wherever_they_are(tmp_path):
    np.save(tmp_path / "x.npy", VALUES)
    found = {digest_samples(open_calibration(source, SPEC)) for source in (VALUES, tmp_path / "x.npy", iter(VALUES))}
    assert len(found) == 1


def test_other_values_another_order_and_other_choices_have_another_digest():
    changed = VALUES.copy()
    changed[5, 1] += 1
    whole = open_calibration(VALUES, SPEC)
    sets = [whole, open_calibration(changed, SPEC), open_calibration(VALUES[::-1], SPEC), whole.take([0, 1])]
    sets += [whole.take([1, 2]), open_calibration(VALUES, [InputSpec("x", np.dtype(np.float32), (2, 2))])]
    for sequences in (np.zeros(6), np.arange(6)):  # of which a plan draws, and whose steps count by their signal
        steps = open_calibration(VALUES, SPEC)
        steps.sequences, steps.steps = sequences, True
        sets.append(steps)
    assert len({digest_samples(each) for each in sets}) == len(sets)


def test_image_files_are_told_by_their_bytes_and_how_they_are_read(tmp_path):
    def digest(**settings):
        return digest_samples(open_calibration(tmp_path, IMAGE, DataConfig(**settings)))

    for name, level in (("a.png", 10), ("b.png", 20)):
        Image.new("RGB", (2, 2), (level,) * 3).save(tmp_path / name)
    first, normalized = digest(), digest(mean=(0.5,))
    (tmp_path / "b.png").rename(tmp_path / "c.png")
    assert digest() == first != normalized
    Image.new("RGB", (2, 2), (21,) * 3).save(tmp_path / "c.png")
    assert digest() != first
