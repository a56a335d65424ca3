import numpy as np
import pytest
from PIL import Image

from onnxcalib.config import DataConfig
from onnxcalib.data import InputSpec, open_calibration
from onnxcalib.data.images import image_axes


@pytest.mark.parametrize(
    ("shape", "layout", "axes"),
    [
        ((1, 3, 8, 8), None, (2, 3)),
        ((1, 1, 8, 8), None, (2, 3)),
        ((4, 8, 8, 3), None, (1, 2)),
        ((4, 3, 8, 3), None, (2, 3)),
        ((4, 3, 8, 3), "nhwc", (1, 2)),
        ((1, 16, 8, 8), None, None),
        ((1, 3, 8), None, None),
    ],
)
def test_images_are_known_by_their_shape(shape, layout, axes):
    assert image_axes(shape, DataConfig(layout=layout)) == axes


def open_one_image(folder, config, dtype="float32"):
    Image.fromarray(np.full((4, 4, 3), 128, np.uint8)).save(folder / "a.png")
    return open_calibration(folder, [InputSpec("image", np.dtype(dtype), (None, 3, 4, 4))], config)


def test_images_read_with_the_default_normalization_warn_of_it(tmp_path):
    samples = open_one_image(tmp_path, DataConfig(channels="rgb"))
    assert samples.notes == () and samples.warnings == (
        f"{tmp_path}: images are read as x = (pixel / 255 - 0) / 1, the defaults; a model that was trained on"
        " normalised images needs its own --mean and --std; give these, or --mean 0 where the defaults are right",
    )


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (DataConfig(mean=0), "(pixel / 255 - 0) / 1"),
        (DataConfig(std=1), "(pixel / 255 - 0) / 1"),
        (DataConfig(mean="0.5,0.25,0", std=0.2), "(pixel / 255 - (0.5, 0.25, 0)) / 0.2"),
    ],
)
def test_a_normalization_that_was_given_is_noted_alone(tmp_path, config, said):
    samples = open_one_image(tmp_path, config)
    assert samples.warnings == () and samples.notes == (f"{tmp_path}: images are read as x = {said}",)


def test_images_of_raw_pixels_have_no_normalization_to_tell(tmp_path):
    samples = open_one_image(tmp_path, DataConfig(), "uint8")
    assert samples.warnings == () and samples.notes == ()
