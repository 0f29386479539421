"""The table of public banks, and a bank that is made like one of them."""

from __future__ import annotations

import fnmatch
import re

import pytest

from bankdb.bank import AdapterBank
from bankdb.errors import ParameterError
from bankdb.public.known import KnownBank, bank_of_owner, known_bank, known_banks, made_like
from bankdb.sources.hub import is_repository
from bankdb.sources.pairs import groups_in_names


@pytest.mark.parametrize("name", known_banks())
def test_each_entry_can_be_used(name):
    one = known_bank(name.upper())
    assert one is known_banks()[name]
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
    assert is_repository(one.base_model)
    assert is_repository(one.tokenizer)
    assert one.source.startswith("https://")
    assert len(one.about) < 120
    assert bank_of_owner(one.owner.lower()) is one
    assert groups_in_names(["none"], one.group_pattern) in ({}, {"none": "none"})  # it is one with a group
    assert fnmatch.translate(one.adapters)


def test_the_papers_bank_has_groups_by_the_source_of_the_data():
    known = known_bank("lots-of-loras")
    names = [
        "task1391_winogrande_easy_answer_generation",
        "task033_winogrande_answer_generation",
        "task020_mctaco_x",
    ]
    assert list(groups_in_names(names, known.group_pattern).values()) == [
        "winogrande",
        "winogrande",
        "mctaco",
    ]
    assert fnmatch.fnmatchcase("Mistral-7B-Instruct-v0.2-4b-r16-task1391", known.adapters)
    assert not fnmatch.fnmatchcase("Mistral-7B-Instruct-v0.2-4b-r8-task1391", known.adapters)


def test_an_entry_of_another_form_is_refused():
    entries = {
        name: getattr(known_bank("lots-of-loras"), name) for name in KnownBank.__slots__ if name != "name"
    }
    good = entries | {"aliases": ["a"]}
    assert KnownBank.of("x", good).aliases == ("a",)
    for wrong in (
        good | {"more": "x"},
        good | {"aliases": "a"},
        good | {"names": "other"},
        good | {"owner": ""},
    ):
        with pytest.raises(ValueError, match="x: "):
            KnownBank.of("x", wrong)


def test_what_is_given_comes_before_what_is_known():
    known = known_bank("lots-of-loras")
    assert made_like("lots-of-loras", None, None, ()) == (known.base_model, known.tokenizer, ())
    assert made_like("lots-of-loras", "/models/m", "/t", ("x",)) == (
        "/models/m",
        "/t",
        (known.base_model, "x"),
    )
    with pytest.raises(ParameterError, match="one of lots-of-loras; found 'nobody'"):
        made_like("nobody", None, None, ())


@pytest.mark.parametrize("given", [{"base_model": "x"}, {"tokenizer": "x"}, {}])
def test_a_bank_needs_both(tmp_path, given):
    with pytest.raises(ParameterError, match=r"expected base model and tokenizer .*--like"):
        AdapterBank.create(tmp_path / "bank", **given)
    assert not (tmp_path / "bank").exists()
