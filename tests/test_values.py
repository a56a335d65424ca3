"""Budgets as users write them."""

import pytest

from onnxcalib.values import LATENCY, SIZE, Limit, read_axis, read_limit, split_axes, split_numbers, split_size


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("0.15", Limit(0.15, "float")),
        (0.6, Limit(0.6, "float")),
        (1, Limit(1, "float")),
        ("0.6@8-bit", Limit(0.6, "8-bit")),
        ("1.1@8-BIT", Limit(1.1, "8-bit")),
        ("300KB", Limit(300e3, None)),
        ("1.5 mb", Limit(1.5e6, None)),
        ("0.5MB", Limit(0.5e6, None)),
        ("2e6", Limit(2e6, None)),
        ("3g", Limit(3e9, None)),
    ],
)
def test_shares_and_numbers_are_told_apart(text, limit):
    found = read_limit(text)
    assert found.number == pytest.approx(limit.number) and found.of == limit.of


@pytest.mark.parametrize("text", ["", "x", "0", "-1", "0.5@8", "0.5KB@8-bit", "1,5", "10%", "\u0663KB"])
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError, match=r"^must be a share of the float model such as 0.15"):
        read_limit(text)


def test_a_share_is_of_what_it_says():
    shares = [Limit(0.5, of).resolve(of_float=100, of_eight=30) for of in ("float", "8-bit", None)]
    assert shares == [50, 15, 0.5]


@pytest.mark.parametrize(
    ("text", "limit"),
    [("12ms", (12, None)), ("1.5 s", (1500, None)), ("0.5", (0.5, "float")), ("2@8-bit", (2, "8-bit"))],
)
def test_times_have_units(text, limit):
    assert read_limit(text, LATENCY) == limit


@pytest.mark.parametrize("text", ["12", "12KB", "0ms"])
def test_a_time_without_a_unit_is_refused(text):
    with pytest.raises(ValueError, match=r"or 12ms$"):
        read_limit(text, LATENCY)


@pytest.mark.parametrize("text", ["1e400", "99999999999GB", "2e18", "1e7@8-bit"])
def test_a_budget_that_nothing_reaches_is_refused(text):
    with pytest.raises(ValueError, match=r"^must be a share of at most 1e\+06, or at most 1e18$"):
        read_limit(text)


@pytest.mark.parametrize("text", ["1e400ms", "2e6s", 1e10])
def test_a_time_beyond_days_is_refused(text):
    with pytest.raises(ValueError, match=r"^must be a share"):
        read_limit(text, LATENCY)


@pytest.mark.parametrize(
    "value",
    [True, None, [1], {}, 10**5000, float("nan"), float("inf"), "1" * 10**6 + "x", b"1"],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_text_and_no_number_of_a_sane_length_is_no_budget(value):
    with pytest.raises(ValueError, match=r"^must be a share of the float model such as 0.15"):
        read_limit(value)


@pytest.mark.parametrize("text", ["\u0660.\u0665", "0_1", "0.5,,0.5", ""])
def test_numbers_have_the_digits_0_to_9(text):
    with pytest.raises(ValueError, match=r"^must be one number, or three as 'r,g,b'$"):
        split_numbers(text)
    with pytest.raises(ValueError, match=r"^must be a size such as 224, or 'HxW'$"):
        split_size(text.replace(".", "x"))


def test_numbers_and_sizes_are_read_with_spaces_around_them():
    assert split_numbers("0.5, 1e-1 ,.25") == (0.5, 0.1, 0.25)
    assert split_size("8 x 16") == (8, 16)


@pytest.mark.parametrize(
    ("value", "texts", "read"),
    [
        (1, ("1",), ("", 1)),
        ("-1", ("-1",), ("", -1)),
        (["a=b=-2"], ("a=b=-2",), ("a=b", -2)),
        ("y = 1", ("y = 1",), ("y", 1)),
    ],
)
def test_an_axis_may_have_the_name_of_its_output(value, texts, read):
    assert split_axes(value) == texts and read_axis(texts[0]) == read


def test_a_size_may_be_in_bits_a_weight_and_a_number_of_operations_may_not():
    assert read_limit("4.25bpw", SIZE) == read_limit("4.25 BPW", SIZE) == Limit(4.25, "weight")
    assert read_limit("300KB", SIZE) == read_limit("300KB")
    with pytest.raises(ValueError, match=r", or 300KB$"):
        read_limit("4.25bpw")
