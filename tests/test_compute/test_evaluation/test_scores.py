"""Rouge-L and exact match, against rouge_score itself and the definition."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bankdb.errors import ParameterError
from compute.evaluation import scores
from compute.evaluation.scores import exact_match, rouge_l

WORDS = ["run", "running", "runs", "Cat", "cats", "no", "yes", "(A)", "3.5", "naïve", "\n", ""]
texts = st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join)


def longest_common_subsequence(first: list[str], second: list[str]) -> int:
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@pytest.mark.torch
@settings(max_examples=60, deadline=None)
@given(answer=texts, references=st.lists(texts, min_size=1, max_size=3))
def test_rouge_l_is_the_best_of_rouge_score(answer: str, references: list[str]) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    expected = max(scorer.score(reference, answer)["rougeL"].fmeasure for reference in references)
    assert rouge_l(answer, references) == expected


@pytest.mark.torch
@settings(max_examples=60, deadline=None)
@given(
    answer=st.lists(st.sampled_from("abcd"), min_size=1, max_size=8),
    reference=st.lists(st.sampled_from("abcd"), min_size=1, max_size=8),
)
def test_rouge_l_is_f1_of_the_longest_common_subsequence(answer: list[str], reference: list[str]) -> None:
    common = longest_common_subsequence(answer, reference)
    expected = 2 * common / (len(answer) + len(reference))
    assert rouge_l(" ".join(answer), [" ".join(reference)]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.torch
def test_words_are_stemmed() -> None:
    assert rouge_l("the cats were running", ["The cat were runs"]) == 1.0


@pytest.mark.torch
def test_text_without_words_scores_nothing() -> None:
    assert rouge_l("...", ["..."]) == 0.0
    assert rouge_l("", ["yes"]) == 0.0


def test_exact_match() -> None:
    assert exact_match(" yes\n", ["no", "yes"])
    assert not exact_match(" yes\n", ["no", "yes"], stripped=False)
    assert exact_match("yes", ["no", "yes"], stripped=False)
    assert exact_match("yes", [" yes "])
    assert not exact_match("Yes", ["yes"])
    assert not exact_match("yes", ["yesterday"])
    assert exact_match("", [" "])


@pytest.mark.parametrize("references", [[], "yes"])
def test_references_are_a_list(references: list[str]) -> None:
    with pytest.raises(ParameterError, match="expected at least one text in a list"):
        exact_match("yes", references)
    with pytest.raises(ParameterError, match="expected at least one text in a list"):
        rouge_l("yes", references)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    monkeypatch.setattr(scores, "_scorer", scores._scorer.__wrapped__)
    scores._rouge_l.cache_clear()
    with pytest.raises(ParameterError, match=r"expected the extra torch.*pip install 'lora-bank\[torch\]'"):
        rouge_l("yes", ["yes"])
