import pytest

from onnxcalib.config import DataConfig
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
