"""Which examples are trained on and held out, and what each step reads: properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bankdb.errors import DatasetError, ParameterError
from compute.finetuning.options import FinetuneOptions, parse_seconds
from compute.finetuning.schedule import LEAST_EXAMPLES, is_checked, plan_batches, split_examples

TEXT = st.text("ab", max_size=3)
EXAMPLES = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=40)
SEEDS = st.integers(0, 2**63 - 1)


@given(EXAMPLES, st.none() | st.integers(LEAST_EXAMPLES, 50), SEEDS)
def test_a_split_is_of_different_examples_and_a_fifth_is_held_out(
    examples: list[tuple[str, str]], most: int | None, seed: int
) -> None:
    different = set(examples)
    if len(different) < LEAST_EXAMPLES or not any(answer for _, answer in examples):
        with pytest.raises(DatasetError):
            split_examples(examples, most, seed, "x")
        return
    split = split_examples(examples, most, seed, "x")
    places = [*split.training, *split.held_out]
    assert len({examples[place] for place in places}) == len(places)
    assert len(places) == min(len(different), most or len(different))
    assert len(split.held_out) == len(places) // 5 >= 1
    assert split.repeated == len(examples) - len(different)
    # The first of equal ones, so that a place means the same whatever stands behind it.
    assert all(examples.index(examples[place]) == place for place in places)
    assert split == split_examples(examples, most, seed, "y")


@given(st.integers(LEAST_EXAMPLES, 60), st.integers(LEAST_EXAMPLES, 60), SEEDS)
def test_more_examples_contain_those_that_fewer_have(few: int, many: int, seed: int) -> None:
    few, many = sorted((few, many))
    examples = [(str(number), "a") for number in range(60)]
    small, large = (split_examples(examples, most, seed, "x") for most in (few, many))
    assert large.training[: len(small.training)] == small.training
    assert large.held_out[: len(small.held_out)] == small.held_out


def test_seeds_draw_other_examples() -> None:
    examples = [(str(number), "a") for number in range(60)]
    assert len({split_examples(examples, 20, seed, "x").training for seed in range(5)}) == 5


@pytest.mark.parametrize(
    ("examples", "most", "message"),
    [
        (
            [("a", "")] * 9,
            None,
            "expected answers to learn from, found none in 9 examples; .*--output-column",
        ),
        ([("a", "b")] * 9, None, "at least 5 different examples.* found 1; .*bank predict"),
        ([(str(i), "b") for i in range(9)], 4, "at least 5 examples to be used, found 4; raise --examples"),
    ],
)
def test_too_few_examples(examples: list[tuple[str, str]], most: int | None, message: str) -> None:
    with pytest.raises(DatasetError, match=f"mine: .*{message}|mine: {message}"):
        split_examples(examples, most, 0, "mine")


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 30), SEEDS)
def test_batches_pass_over_all_examples(examples: int, size: int, steps: int, seed: int) -> None:
    batches = plan_batches(examples, size, steps, seed)
    assert [len(batch) for batch in batches] == [min(size, examples)] * steps
    flat = [place for batch in batches for place in batch]
    for start in range(0, len(flat) - examples + 1, examples):
        assert sorted(flat[start : start + examples]) == list(range(examples))
    assert plan_batches(examples, size, steps + 7, seed)[:steps] == batches


@given(st.integers(1, 5000))
def test_what_is_looked_back_on_grows_slowly(steps: int) -> None:
    checked = [step for step in range(1, steps + 1) if is_checked(step, steps)]
    assert checked[-1] == steps
    assert checked[0] == 1
    assert len(checked) <= steps.bit_length() + 1
    # A power of two is looked back on however long the run is, so that the start of a longer run is the shorter one.
    assert all(is_checked(step, steps + 1) for step in checked if step & (step - 1) == 0)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("1.5 h", 5400), ("500ms", 0.5)]
)
def test_budgets(text: str, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "m", "-5m", "0", "ten", "nan", "inf", "5 parsecs", "1e999"])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(ParameterError, match="budget: expected a time such as"):
        parse_seconds(text)


@pytest.mark.parametrize(
    "changed",
    [
        {"steps": 0},
        {"steps": 10**9},
        {"examples": 4},
        {"batch_size": 0},
        {"seed": -1},
        {"threads": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"budget": float("inf")},
        {"train_dtype": "float16"},
    ],
)
def test_options_out_of_range(changed: dict[str, object]) -> None:
    (name,) = changed
    with pytest.raises(ParameterError, match=name):
        FinetuneOptions(**changed)  # type: ignore[arg-type]
