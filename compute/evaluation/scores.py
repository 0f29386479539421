"""How good an answer is: Rouge-L and exact match against the references (arXiv 2507.01806, section 4)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from bankdb.errors import ParameterError


@functools.cache
def _scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ParameterError(
            f"expected the extra torch, found no rouge-score ({error}): pip install 'lora-bank[torch]'"
        ) from error
    return RougeScorer(["rougeL"], use_stemmer=True)


@functools.lru_cache(maxsize=65_536)
def _rouge_l(answer: str, references: tuple[str, ...]) -> float:
    return float(_scorer().score_multi(list(references), answer)["rougeL"].fmeasure)


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """Rouge-L, the F1 of the longest common subsequence of stemmed words; the best over the references.

    Words are the runs of a-z and 0-9 in the lower-case text, as `rouge_score` has them: text without any
    scores 0.

    Raises
    ------
    ParameterError
        There is no reference, or `rouge-score` is not installed.
    """
    _check(references)
    return _rouge_l(answer, tuple(references))


def exact_match(answer: str, references: Sequence[str], *, stripped: bool = True) -> bool:
    """Whether the answer is one of the references; `stripped`: white space at both ends aside.

    The paper's code compares the texts as they are, `stripped=False`.
    """
    _check(references)
    if not stripped:
        return answer in references
    return answer.strip() in {reference.strip() for reference in references}


def _check(references: Sequence[str]) -> None:
    if isinstance(references, str) or not references:
        raise ParameterError(f"references: expected at least one text in a list, found {references!r}")
