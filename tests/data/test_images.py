import os
import re
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from onnxcalib.config import DataConfig
from onnxcalib.data import InputSpec, images, open_calibration
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
    text = "a.png: found 224x14679840 pixels (height x width) after resizing; 67,108,864 in all"
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


def test_memory_does_not_grow_with_the_number_of_images_beyond_what_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "KEPT_BYTES", 4 * 64 * 64 * 3)
    for number in range(64):
        Image.fromarray(np.full((64, 64, 3), number, np.uint8)).save(tmp_path / f"{number:02}.png")
    tracemalloc.start()
    for batch in open_calibration(tmp_path, IMAGES).batches(4):
        assert batch["image"].shape == (4, 3, 64, 64)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * batch["image"][0].nbytes / 2


def test_images_are_decoded_once_as_far_as_there_is_room_for_their_pixels(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "KEPT_BYTES", 2 * 8 * 8 * 3)
    for number in range(3):
        Image.fromarray(np.full((8, 9, 3), 10 * number, np.uint8)).save(tmp_path / f"{number}.png")
    samples = open_calibration(tmp_path, ANY, DataConfig(crop="8"))
    decoded, decode = [], images._read_pixels
    monkeypatch.setattr(images, "_read_pixels", lambda path, *rest: (decoded.append(path.name), decode(path, *rest))[1])
    first, *others = (samples.read(range(3))["x"] for _ in range(3))
    assert len(decoded) <= 3 + 2 and decoded[-2:] == ["2.png", "2.png"]
    assert all(np.array_equal(first, other) for other in others)


def make_image(path, height, width):
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([y * 255 // max(height - 1, 1), x * 255 // max(width - 1, 1), (x + y) % 256], -1).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


ANY = [InputSpec("x", np.dtype(np.float32), (None, 3, None, None))]


def read(path, *, inputs=ANY, **settings):
    """The pixels (height, width, 3) as the model gets them, from 0 to 255."""
    batch = open_calibration(path, inputs, DataConfig(pixel_range="0..255", **settings)).read([0])["x"][0]
    return batch.transpose(1, 2, 0)


def test_two_sides_are_resized_each_by_its_own_ratio(tmp_path):
    make_image(tmp_path / "a.png", 20, 30)
    with Image.open(tmp_path / "a.png") as image:
        expected = np.asarray(image.resize((8, 12), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(read(tmp_path, resize="12x8"), expected)


def test_pixels_may_stay_on_their_own_scale(tmp_path):
    pixels = make_image(tmp_path / "a.png", 8, 8)
    np.testing.assert_array_equal(read(tmp_path), pixels)
    np.testing.assert_allclose(read(tmp_path, mean=(1, 2, 3), std=2), (pixels - np.float32([1, 2, 3])) / 2)
    config = DataConfig(pixel_range="0..255", mean=(1, 2, 3), std=2)
    text = "images are read as x = (pixel - (1, 2, 3)) / 2"
    assert any(text in note for note in open_calibration(tmp_path, ANY, config).notes)


@pytest.mark.parametrize(
    ("size", "box", "shape", "top", "left"),
    [((20, 40), "32x32", (16, 32), 8, 0), ((40, 20), 32, (32, 16), 0, 8), ((30, 41), "32x32", (23, 32), 4, 0)],
)
def test_a_letterbox_keeps_proportions_between_bars_of_one_value(tmp_path, size, box, shape, top, left):
    make_image(tmp_path / "a.png", *size)
    with Image.open(tmp_path / "a.png") as image:
        expected = np.asarray(image.resize(shape[::-1], Image.Resampling.BILINEAR))
    for fill in (114, 0):
        given = read(tmp_path, letterbox=box, fill=fill)
        assert given.shape == (32, 32, 3)
        inside = given[top : top + shape[0], left : left + shape[1]]
        np.testing.assert_array_equal(inside, expected)
        assert (given == fill).all(-1).sum() >= 32 * 32 - shape[0] * shape[1]


def test_a_letterbox_of_a_multiple_has_no_more_bars_than_it_needs(tmp_path):
    make_image(tmp_path / "a.png", 60, 128)
    assert read(tmp_path, letterbox=64, multiple_of=32).shape == (32, 64, 3)
    assert read(tmp_path, letterbox=64, multiple_of=10).shape == (30, 70, 3)


def test_sides_become_multiples_and_images_may_differ_in_size_then(tmp_path):
    make_image(tmp_path / "a.png", 60, 100)
    make_image(tmp_path / "b.png", 100, 60)
    make_image(tmp_path / "c.png", 10, 10)
    samples = open_calibration(tmp_path, ANY, DataConfig(multiple_of=32))
    shapes = [samples.read([number])["x"].shape for number in range(3)]
    assert shapes == [(1, 3, 64, 96), (1, 3, 96, 64), (1, 3, 32, 32)]
    assert sorted(len(feeds["x"]) for feeds in samples.batches(8)) == [1, 1, 1]


def test_a_uint8_input_gets_the_pixels_of_a_letterbox(tmp_path):
    make_image(tmp_path / "a.png", 4, 8)
    inputs = [InputSpec("x", np.dtype(np.uint8), (None, 8, 8, 3))]
    batch = open_calibration(tmp_path, inputs, DataConfig(letterbox=8)).read([0])["x"][0]
    assert batch.dtype == np.uint8 and (batch[:2] == 114).all() and (batch[6:] == 114).all()


def interpolate(pixels, size):
    """OpenCV's INTER_LINEAR: between the two nearest pixels of each axis, whose centres are at halves."""
    for axis, count in enumerate(size):
        at = np.clip((np.arange(count) + 0.5) * pixels.shape[axis] / count - 0.5, 0, pixels.shape[axis] - 1)
        low = np.floor(at).astype(int)
        share = (at - low).reshape([-1 if each == axis else 1 for each in range(3)])
        high = np.minimum(low + 1, pixels.shape[axis] - 1)
        pixels = pixels.take(low, axis) * (1 - share) + pixels.take(high, axis) * share
    return pixels


@pytest.mark.parametrize("size", [(7, 11), (40, 64), (8, 8)])
def test_opencv_does_not_average_where_it_shrinks(tmp_path, size):
    pixels = make_image(tmp_path / "a.png", 24, 33)
    given = read(tmp_path, resize=size, interpolation="opencv")
    np.testing.assert_allclose(given, interpolate(pixels.astype(float), size), atol=1)
    with Image.open(tmp_path / "a.png") as image:
        cubic = np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(read(tmp_path, resize=size, interpolation="bicubic"), cubic)


def test_bars_count_as_pixels_of_an_image(tmp_path):
    make_image(tmp_path / "a.png", 8, 8)
    text = r"a\.png: found 64x64 pixels \(height x width\) after resizing; 1,000 in all are read; make it smaller"
    with pytest.raises(DataError, match=text):
        open_calibration(tmp_path, ANY, DataConfig(letterbox=64, max_pixels=1000))
    make_image(tmp_path / "a.png", 1, 64)
    with pytest.raises(DataError, match=text.replace("after resizing", "with bars")):
        open_calibration(tmp_path, ANY, DataConfig(letterbox=64, max_pixels=1000))
