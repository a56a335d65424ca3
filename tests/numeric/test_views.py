import numpy as np

from onnxcalib.numeric import views
from onnxcalib.numeric.views import SHIFT, draw_mixtures, draw_token_views, draw_views, nearest_rows


def draw(images, axes=(2, 3), seed=0):
    return draw_views(images, axes, np.random.default_rng(seed))


def find_shift(view, image):
    """Rows, columns and mirroring that make ``image`` (H, W) the view, or None."""
    size = image.shape[0]
    padded = np.pad(image, size // SHIFT, mode="reflect")
    for mirrored in (False, True):
        turned = view[:, ::-1] if mirrored else view
        for row, column in np.ndindex(2 * (size // SHIFT) + 1, 2 * (size // SHIFT) + 1):
            if np.array_equal(turned, padded[row : row + size, column : column + size]):
                return row, column, mirrored
    return None


def test_each_view_is_a_shift_of_its_image_reflected_at_the_end_and_maybe_mirrored():
    images = np.random.default_rng(1).normal(size=(40, 2, 16, 16)).astype(np.float32)
    views = draw(images)
    assert views.shape == images.shape and views.dtype == images.dtype
    found = [find_shift(view[0], image[0]) for view, image in zip(views, images, strict=True)]
    assert None not in found
    assert found == [find_shift(view[1], image[1]) for view, image in zip(views, images, strict=True)]
    rows, columns, mirrored = map(set, zip(*found, strict=True))
    assert rows == columns == set(range(5)) and mirrored == {False, True}


def test_axes_say_where_rows_and_columns_are():
    images = np.random.default_rng(1).normal(size=(10, 3, 16, 24)).astype(np.float32)
    last = draw(images.transpose(0, 2, 3, 1), (1, 2))
    assert np.array_equal(last.transpose(0, 3, 1, 2), draw(images))


def test_small_images_are_mirrored_only():
    images = np.random.default_rng(1).normal(size=(40, 3, 1, 7)).astype(np.float32)
    same = [np.array_equal(view, image) for view, image in zip(draw(images), images, strict=True)]
    turned = [np.array_equal(view, image[..., ::-1]) for view, image in zip(draw(images), images, strict=True)]
    assert np.logical_xor(same, turned).all() and 5 < sum(same) < 35


def test_no_images_have_no_views():
    assert draw(np.zeros((0, 3, 16, 16), np.float32)).shape == (0, 3, 16, 16)


def test_views_repeat_with_the_seed_and_leave_the_images_as_they_are():
    images = np.random.default_rng(1).normal(size=(8, 3, 16, 16)).astype(np.float32)
    before = images.copy()
    assert np.array_equal(draw(images), draw(images))
    assert not np.array_equal(draw(images), draw(images, seed=1))
    assert np.array_equal(images, before)


def test_a_view_of_a_text_exchanges_a_share_of_its_tokens_for_those_that_may_stand_for_them():
    generator, known = np.random.default_rng(0), np.array([1, 3])
    tokens, exchanged = np.tile([1, 2, 3, 4, 1], (400, 10)), np.arange(50) > 9
    others = np.array([[5, 5, 5, 6], [7, 7, 7, 7]])
    found = draw_token_views(tokens, np.broadcast_to(exchanged, tokens.shape), known, others, generator)
    assert found.dtype == tokens.dtype and (found[:, :10] == tokens[:, :10]).all()
    assert set(found[tokens == 1]) == {1, 5, 6} and set(found[tokens == 3]) == {3, 7}
    assert (found[(tokens == 2) | (tokens == 4)] == tokens[(tokens == 2) | (tokens == 4)]).all()
    shares = (found != tokens)[:, 10:].sum(1) / 24
    assert shares.min() < 0.05 and shares.max() > 0.95 and abs(shares.mean() - 0.5) < 0.05
    assert abs((found == 5).sum() / (found == 6).sum() - 3) < 0.3


def test_a_view_of_a_text_has_tokens_of_the_type_that_the_model_reads():
    tokens, known, others = np.array([[1, 3]], np.int32), np.array([1, 3]), np.array([[5], [7]])
    assert draw_token_views(tokens, tokens > 0, known, others, np.random.default_rng(0)).dtype == np.int32


def test_without_other_tokens_a_text_is_its_own_view():
    tokens, none = np.arange(6).reshape(2, 3), np.array([], int)
    found = draw_token_views(tokens, np.ones((2, 3), bool), none, none.reshape(0, 0), np.random.default_rng(0))
    assert np.array_equal(found, tokens) and found is not tokens


def test_nearest_rows_point_the_same_way_from_the_mean(monkeypatch):
    table = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32) + 9
    table[[7, 21]] = table.mean(0) + np.array([[2.0], [0.5]]) * (table[3] - table.mean(0))
    found = nearest_rows(table, np.array([3, 7]), 2)
    assert [set(each) for each in found.tolist()] == [{7, 21}, {3, 21}]
    monkeypatch.setattr(views, "ROWS_AT_ONCE", 1)
    assert np.array_equal(nearest_rows(table, np.array([3, 7]), 2), found)


def test_a_mixture_is_a_mean_of_two_images_or_has_a_rectangle_of_another():
    images = np.stack([np.full((1, 8, 10), value, np.float32) for value in (0, 1)] * 8)
    mixtures = draw_mixtures(images, (2, 3), np.random.default_rng(0))
    assert mixtures.shape == images.shape and mixtures.dtype == np.float32 and set(np.unique(images)) == {0, 1}
    means = [each for each in mixtures if len(np.unique(each)) == 1 and 0 < each.flat[0] < 1]
    pasted = [each[0] for each in mixtures if set(np.unique(each)) == {0, 1}]
    assert means and pasted and len(means) + len(pasted) < 16  # some are mixed with an image that is alike
    for each in pasted:
        counts = {value: int((each == value).sum()) for value in (0, 1)}
        inner = each == min(counts, key=counts.get)
        rows, columns = inner.any(1), inner.any(0)
        assert (
            inner.sum() == rows.sum() * columns.sum() or (~inner).sum() == (~inner).any(1).sum() * (~inner).any(0).sum()
        )
