"""Which dataset is an adapter's, which adapters are wanted, and whether a card names the bank's base model."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bankdb.errors import ParameterError
from bankdb.public.candidates import fit, folder_names
from bankdb.public.matching import Datasets, Match, match, task_numbers
from bankdb.public.selection import Selection, by_number

POOL = Datasets.of(
    "the datasets of o",
    [
        ("task1391_winogrande_easy_answer_generation", "o/task1391_winogrande_easy_answer_generation"),
        ("task020_mctaco", "o/task020_mctaco"),
        ("task7_one", "o/task7_one"),
        ("task007_two", "o/task007_two"),
        ("SameName", "o/SameName"),
    ],
)


@pytest.mark.parametrize(
    ("name", "stated", "expected"),
    [
        (
            "Mistral-7B-Instruct-v0.2-4b-r16-task1391",
            (),
            ("o/task1391_winogrande_easy_answer_generation", "number"),
        ),
        ("r16-task20", (), ("o/task020_mctaco", "number")),
        ("r16-TASK_020-v2", (), ("o/task020_mctaco", "number")),
        ("samename", (), ("o/SameName", "name")),
        ("r16-task20", ("x/other",), ("x/other", "card")),
        ("r16-task20", ("x/other", "o/task020_mctaco"), ("o/task020_mctaco", "number")),
    ],
)
def test_the_card_comes_first_then_the_number_then_the_name(name, stated, expected):
    assert match(name, stated, POOL) == Match(*expected)


@pytest.mark.parametrize(
    ("name", "stated", "reason"),
    [
        ("r16-task7", (), "2 datasets carry its task number 7: o/task7_one, o/task007_two; name the dataset"),
        ("r16-task139", (), "none of the datasets of o has its task number 139 or its name"),
        ("multitask12", (), "its name, which has no task number"),
        ("r16-task20-task7", (), "its name carries 2 task numbers, 7, 20"),
        ("plain", ("x/a", "x/b"), "its model card names 2 datasets, x/a, x/b"),
        ("r16-task20", ("x/a", "x/b"), "its model card names 2 datasets"),
    ],
)
def test_what_is_not_certain_is_no_match_and_says_why(name, stated, reason):
    found = match(name, stated, POOL)
    assert isinstance(found, str)
    assert reason in found
    assert "name the dataset: ADAPTER=DATASET" in found


@settings(max_examples=30)
@given(st.integers(0, 10**9 - 1), st.integers(0, 9), st.sampled_from(["-", "_", " ", ""]))
def test_a_task_number_is_the_same_with_zeros_before_it(number, zeros, between):
    digits = f"{'0' * zeros}{number}"
    found = task_numbers(f"base-r16-task{between}{digits}_words")
    assert found == ((number,) if len(digits) <= 9 else ())


@settings(max_examples=30)
@given(st.lists(st.integers(0, 10**6), unique=True, min_size=1, max_size=30))
def test_task20_comes_before_task100(numbers):
    names = [f"task{number}_x" for number in numbers]
    assert sorted(names, key=by_number) == [f"task{number}_x" for number in sorted(numbers)]


@pytest.mark.parametrize(
    ("selection", "adapter", "dataset", "wanted"),
    [
        (Selection(), "base-r8-task1", "task1_a", False),  # the usual pattern holds
        (Selection(), "base-r16-task1", "task1_a", True),
        (Selection(include=("task1_*",)), "base-r16-task1", "task1_a", True),
        (Selection(include=("task1_*",)), "base-r8-task1", "task1_a", False),
        (Selection(include=("*-r8-*",)), "base-r8-task1", "task1_a", True),  # named itself, it is wanted
        (Selection(include=("*-r8-*",)), "base-r16-task1", "task1_a", False),
        (Selection(exclude=("*_a",)), "base-r16-task1", "task1_a", False),
        (Selection(include=("*",), exclude=("*task1",)), "base-r16-task1", "", False),
        (Selection(include=("TASK1*",)), "base-r16-task1", "task1_a", False),
    ],
)
def test_what_is_wanted_of_a_known_bank(selection, adapter, dataset, wanted):
    assert selection.wants(adapter, dataset, "*-r16-*") is wanted


def test_a_pattern_that_takes_long_elsewhere_does_not_here():
    assert not Selection(include=("*a" * 99 + "b",)).wants("a" * 96, "")


@pytest.mark.parametrize("wrong", [{"include": ("",)}, {"exclude": ("x" * 201,)}, {"limit": 0}])
def test_a_selection_out_of_range_is_refused(wrong):
    with pytest.raises(ParameterError, match=next(iter(wrong))):
        Selection(**wrong)


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        (("Owner/base",), "fits"),
        (("x/quantised", "owner/Base"), "fits"),
        (("/models/base",), "fits"),
        (("x/quantised",), "other"),
        (("/home/somebody/base",), "unstated"),
        ((), "unstated"),
    ],
)
def test_a_base_model_fits_by_its_names(stated, expected):
    assert fit(stated, ("owner/base", "/models/base")) == expected


@given(
    st.lists(st.text("ab/", min_size=1).filter(lambda text: all(text.split("/"))), min_size=2, unique=True)
)
def test_adapters_of_a_library_have_names_of_their_own(folders):
    # One folder may lie in another; "a/b" and "a-b" would be told apart by the check of names.
    names = folder_names(folders)
    assert all(names.values())
    assert "/" not in "".join(names.values())


def test_a_library_calls_its_adapters_by_what_differs():
    assert folder_names(["experts/boolq/adapter", "experts/rte/adapter"]) == {
        "experts/boolq/adapter": "boolq",
        "experts/rte/adapter": "rte",
    }
