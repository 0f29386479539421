"""Which licences forbid, and which of several is the strictest: the table of docs/sharing.md."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bankdb.sharing.licences import class_of, forbids, is_stated, strictest


@pytest.mark.parametrize(
    ("licence", "number"),
    [
        ("cc0-1.0", 0), ("mit", 1), ("Apache License 2.0", 1), ("MIT License", 1), ("cc-by-4.0", 2), ("CC BY 4.0", 2),
        ("cc-by-sa-4.0", 3), ("gpl-3.0", 3), ("llama3.1", 4), ("openrail", 4), ("cc-by-nc-4.0", 5),
        ("CC BY-NC 4.0", 5), ("cc-by-nc-sa-4.0", 6), ("cc-by-nd-4.0", 7), ("cc-by-nc-nd-4.0", 7), ("Proprietary", 7),
        ("All rights reserved", 7), (None, None), ("", None), ("other", None), ("unknown", None), ("my own", None),
        ("mit, cc-by-4.0", 2), ("mit, my own", None), ("my own, cc-by-nd-4.0", 7),
    ],
)  # fmt: skip
def test_classes(licence: str | None, number: int | None) -> None:
    assert class_of(licence) == number
    assert forbids(licence) == (number == 7)


def test_a_name_that_is_not_known_is_stated() -> None:
    assert is_stated("my own")
    assert not any(map(is_stated, (None, "", "other", "Unknown", " , ")))


@pytest.mark.parametrize(
    ("licences", "identifier"),
    [
        (["mit"], "mit"),
        (["mit", "cc0-1.0", "cc-by-4.0"], "cc-by-4.0"),
        (["mit", "gpl-3.0"], "gpl-3.0"),
        (["cc-by-4.0", "cc-by-nc-4.0"], "cc-by-nc-4.0"),
        (["cc-by-nc-4.0", "cc-by-nc-sa-4.0"], "cc-by-nc-sa-4.0"),
        (["cc-by-sa-4.0", "gpl-3.0"], "other"),
        (["cc-by-sa-4.0", "cc-by-nc-4.0"], "other"),
        (["mit", None], "other"),
        (["mit", "my own"], "other"),
        ([], "other"),
    ],
)
def test_the_strictest(licences: list[str | None], identifier: str) -> None:
    assert strictest(licences).identifier == identifier


NAMES = [
    "mit",
    "cc0-1.0",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "gpl-3.0",
    "llama3",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
    "x",
]


@given(st.lists(st.sampled_from(NAMES), min_size=1, max_size=6))
def test_order_and_repetition_change_nothing_and_none_is_stricter(licences: list[str]) -> None:
    found = strictest(licences)
    assert found == strictest(sorted(licences)) or len(set(licences)) < len(licences)
    assert found.identifier == strictest(dict.fromkeys(reversed(licences))).identifier
    if found.identifier != "other":
        classes = [class_of(one) for one in licences]
        assert None not in classes
        assert class_of(found.identifier) == max(one for one in classes if one is not None)
