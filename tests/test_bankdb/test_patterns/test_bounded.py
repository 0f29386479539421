"""A pattern gives what `re` gives, or what is wrong with it, in bounded time."""

from __future__ import annotations

import re
import time

import pytest

from bankdb.patterns.bounded import matches

NAMES = ("task001_a", "b", "a" * 40 + "!", "", "é\nx")


@pytest.mark.parametrize("pattern", [r"^([^_]+)_", r"(\d)?a", r"(?s)(.)x", r"(b)|a", "()"])
def test_the_first_group_is_that_of_re(pattern: str) -> None:
    found = [re.search(pattern, name) for name in NAMES]
    assert matches(pattern, "search", 1, NAMES) == [match and (match.group(1) or "") for match in found]


@pytest.mark.parametrize("pattern", [r"(?P<idx>\d+)", "a", r"(?P<idx>x)?a+!"])
def test_a_named_group(pattern: str) -> None:
    found = [re.match(pattern, name) for name in NAMES]
    assert matches(pattern, "match", "idx", NAMES) == [m and m.groupdict().get("idx", "") for m in found]


@pytest.mark.parametrize(
    ("pattern", "wrong"),
    [
        ("(a+)+$", "took more than"),
        ("((a|.)+)+y", "took more than"),
        ("(a){99999999999999999999}", "is no regular expression: OverflowError"),
        ("(" * 5000 + ")" * 5000, "is no regular expression"),
        ("(" * 70_000, "at most 65536 characters"),
        ("([", "is no regular expression"),
        ("a", "has no parentheses"),
    ],
)
def test_what_is_wrong_is_said_in_bounded_time(pattern: str, wrong: str) -> None:
    start = time.monotonic()
    found = matches(pattern, "search", 1, NAMES)
    assert isinstance(found, str)
    assert wrong in found
    assert "\n" not in found
    assert len(found) < 300
    assert time.monotonic() - start < 20
