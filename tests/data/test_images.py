import os
import re
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from onnxcalib.config import DataConfig
from onnxcalib.data import InputSpec, open_calibration
from onnxcalib.data.images import image_axes
from onnxcalib.errors import DataError


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


# Files that are not what they claim


IMAGES = [InputSpec("image", np.dtype(np.float32), (None, 3, None, None))]
PIXELS = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)


def refuse(text, source, config=None):
    with pytest.raises(DataError, match=re.escape(text)) as refusal:
        open_calibration(source, IMAGES, config)
    assert "\n" not in str(refusal.value)


def claim_png(path, height, width):
    """A PNG whose header claims a size that its pixels do not have."""
    Image.fromarray(PIXELS).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)


def test_pixels_beyond_the_limit_are_refused_by_the_header_alone(tmp_path):
    claim_png(tmp_path / "a.png", 13_000, 13_000)
    text = "a.png: found 13000x13000 pixels (height x width); 67,108,864 in all are read; make it smaller, or raise"
    refuse(text, tmp_path)
    claim_png(tmp_path / "a.png", 60_000, 60_000)
    refuse("a.png: not a readable image (Image size (3600000000 pixels) exceeds limit", tmp_path)
    claim_png(tmp_path / "a.png", 12, 12)
    refuse("a.png: found 12x12 pixels (height x width); 100 in all", tmp_path, DataConfig(max_pixels=100))


def test_pixels_after_resizing_are_limited_too(tmp_path):
    claim_png(tmp_path / "a.png", 1, 65_535)
    text = "a.png: found 224x14679840 pixels (height x width) after --resize; 67,108,864 in all"
    refuse(text, tmp_path, DataConfig(resize=224, crop=224))


@pytest.mark.parametrize("suffix", ["gif", "tiff", "ppm", "ico"])
def test_a_format_that_no_name_promises_is_not_decoded(tmp_path, suffix):
    Image.fromarray(PIXELS).save(tmp_path / "a.png", suffix)
    refuse("a.png: not a readable image (its content is no PNG, JPEG, BMP or WebP); replace it", tmp_path)


def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    refuse(f"{tmp_path / 'a.png'}: is a pipe; take it out of the folder", tmp_path)
    (tmp_path / "a.png").unlink()
    (tmp_path / "a.png").symlink_to("a.png")
    refuse("a.png: cannot be read (Too many levels of symbolic links)", tmp_path)


def save_frames(path):
    frames = [Image.fromarray(PIXELS), Image.fromarray(PIXELS + 1)]
    frames[0].save(path, path.suffix[1:], save_all=True, append_images=frames[1:], lossless=True)


def save_palette(path):
    palette = Image.fromarray(PIXELS).quantize(8)
    palette.save(path, transparency=bytes(range(8)))


def test_files_of_every_kind_are_read_as_before_and_warn_of_nothing(tmp_path):
    save_frames(tmp_path / "a.png")
    save_frames(tmp_path / "b.webp")
    Image.fromarray(PIXELS).convert("CMYK").save(tmp_path / "c.jpg")
    save_palette(tmp_path / "d.png")
    Image.fromarray(np.full((4, 4), 0x7F00, np.uint16)).save(tmp_path / "e.png")
    Image.fromarray(PIXELS).save(tmp_path / "f.bmp")
    frames, webp, cmyk, palette, deep, bmp = open_calibration(tmp_path, IMAGES).read(range(6))["image"] * 255
    for values in (frames, webp, bmp):
        np.testing.assert_allclose(values.transpose(1, 2, 0), PIXELS, atol=1e-4)
    assert cmyk.shape == palette.shape == (3, 4, 4)
    np.testing.assert_allclose(deep, 0x7F, atol=1e-4)


@pytest.mark.parametrize(("mean", "std"), [((-1, -1, 1), 0.0001), (0.5, 10)])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_no_settings_make_values_that_are_not_finite(tmp_path, mean, std, dtype):
    samples = open_one_image(tmp_path, DataConfig(mean=mean, std=std), dtype)
    assert np.isfinite(samples.read([0])["image"]).all()


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    for number in range(64):
        Image.fromarray(np.full((64, 64, 3), number, np.uint8)).save(tmp_path / f"{number:02}.png")
    tracemalloc.start()
    for batch in open_calibration(tmp_path, IMAGES).batches(4):
        assert batch["image"].shape == (4, 3, 64, 64)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * batch["image"][0].nbytes / 2
