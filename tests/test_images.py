import numpy as np
import pytest

from onnxcalib.config import DataConfig
from onnxcalib.images import image_axes
from onnxcalib.spec import InputSpec


def make_spec(*shape, dtype=np.float32):
    return InputSpec("x", np.dtype(dtype), shape)


@pytest.mark.parametrize(
    ("shape", "layout", "axes"),
    [
        ((None, 3, 8, 8), None, (2, 3)),
        ((None, 1, None, None), None, (2, 3)),
        ((4, 8, 8, 3), None, (1, 2)),
        ((4, 3, 8, 3), None, (2, 3)),
        ((4, 3, 8, 3), "nhwc", (1, 2)),
        ((None, 16, 8, 8), None, None),
        ((None, None, 8, 8), None, None),
        ((None, 3, 8), None, None),
    ],
)
def test_images_are_known_by_their_shape(shape, layout, axes):
    assert image_axes([make_spec(*shape)], DataConfig(layout=layout)) == axes


def test_an_input_of_unknown_shape_or_one_of_several_is_no_image():
    assert image_axes([InputSpec("x", np.dtype(np.float32), None)], DataConfig()) is None
    assert image_axes([make_spec(None, 3, 8, 8), make_spec(None, 4)], DataConfig()) is None
