"""Regular expressions of users: what they match, what is none, and that none takes for ever."""

from __future__ import annotations

import time

import pytest

from onnxcalib.config import match_whole

NAMES = ["/layer/0/conv", "/layer/1/conv", "head", "a\nb", ""]


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        (r"/layer/\d/conv", NAMES[:2]), ("/layer.*", NAMES[:2]), ("layer", []), ("he|ad", []), ("(?i)HEAD", ["head"]),
        ("head|tail", ["head"]), (r"\/layer\/[01]\/.*", NAMES[:2]), ("a.b", []), (r"a\sb", ["a\nb"]), ("", [""]),
        ("x)|(?:.*", None), ("a)|(b", None),
    ],
)  # fmt: skip
def test_an_expression_matches_from_end_to_end(expression, found):
    if found is None:
        with pytest.raises(ValueError, match="group"):
            match_whole(expression, NAMES)
    else:
        assert match_whole(expression, NAMES) == found


@pytest.mark.parametrize("expression", ["(a+)+$", "(a|a)*$", "(a|aa)+$", ".*" * 50 + "b", "(.*)*b"])
def test_time_grows_with_the_name_alone(expression):
    start = time.perf_counter()
    assert match_whole(expression, ["a" * 2000 + "!"]) == []
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("conv(", "unclosed group"), ("[", "unclosed character class"), ("*", "repetition operator missing expression"),
        ("a{99999999999}", "decimal literal invalid"), ("(a{1000}){1000}", "Compiled regex exceeds size limit"),
        ("(" * 3000 + ")" * 3000, "exceed the maximum number of nested"), ("(?!a).*", "look-around, .* not supported"),
        (r"(a)\1", "backreferences are not supported"),
    ],
)  # fmt: skip
def test_what_is_no_expression_or_cannot_be_matched_in_linear_time_is_refused_in_one_line(expression, text):
    with pytest.raises(ValueError, match=text) as refusal:
        match_whole(expression, NAMES)
    assert "\n" not in str(refusal.value)
