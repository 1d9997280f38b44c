"""Values against annotations: what fits stays as it is, what does not is one line."""

from typing import Literal

import pytest

from ovss_bench.config.validation import Count, Fraction, Images, Number, Pixels, Whole, in_words, validate, validate_all
from ovss_bench.errors import OvssError

FIT = [
    (1, Count), (0, Whole), (0, Number), (2.5, Number), (0.5, Fraction), (32767, Pixels), ("a", str), (None, str | None),
    ("whole", Pixels | Literal["whole"]), (True, bool), (1, float), ("x", Literal["x", "y"]),
    ({"a": 1}, dict), (118287, Images), (None, Count | None),
]  # fmt: skip
WRONG = [
    (0, Count, "a positive whole number up to 32767"),
    (True, Count, "a positive whole number up to 32767"),
    ("1", Count, "a positive whole number up to 32767"),
    (32768, Pixels, "a positive number of pixels up to 32767"),
    (-1, Whole, "a whole number from 0 to 32767"),
    (1.0, Whole, "a whole number from 0 to 32767"),
    (float("nan"), Number, "a number, 0 or more"),
    (float("inf"), Number, "a number, 0 or more"),
    (True, Number, "a number, 0 or more"),
    (1, Fraction, "a positive number below 1"),
    (1, bool, "true or false"),
    (1, str | None, "a text, or null"),
    (0, Pixels | Literal["whole"], "a positive number of pixels up to 32767 or whole"),
    ([0], tuple[Pixels, ...], "a list, each a positive number of pixels up to 32767"),
    (3, Literal["x", "y"], "x or y"),
]


@pytest.mark.parametrize(("value", "hint"), FIT)
def test_what_fits_stays(value, hint):
    found = validate("name", value, hint)
    assert found == value
    assert type(found) in (type(value), float)


def test_a_list_becomes_a_tuple():
    assert validate("name", [1, 2], tuple[Pixels, ...]) == (1, 2)
    assert validate("name", [1, 2], list[int]) == [1, 2]


@pytest.mark.parametrize(("value", "hint", "words"), WRONG)
def test_what_does_not_fit_says_what_was_expected(value, hint, words):
    with pytest.raises(OvssError) as error:
        validate("name", value, hint, "command line")
    assert str(error.value) == f"name={value!r} (from command line): expected {words}."
    assert in_words(hint) == words


def test_names_have_close_matches():
    with pytest.raises(OvssError, match=r"unknown value of pad 'centre'\. Known: center, corner, none"):
        validate("pad", "centre", Literal["none", "center", "corner"])
    with pytest.raises(OvssError, match=r"unknown option 'limt'\. Known: limit"):
        validate_all({"limt": 1}, {"limit": Count | None}, "option")
    with pytest.raises(OvssError, match=r"unknown recipe value \(from a\.yaml\) 'windw'\. Known: window"):
        validate_all({"windw": 1}, {"window": Pixels}, "recipe value", lambda name: "a.yaml")
