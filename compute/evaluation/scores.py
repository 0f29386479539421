"""How good an answer is: Rouge-L and exact match against the references (arXiv 2507.01806, section 4), as records."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bankdb.errors import ParameterError, listed


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


@dataclass(frozen=True, slots=True)
class Target:
    """A dataset with its test examples.

    Attributes
    ----------
    examples
        Number of test examples used.
    new_tokens
        Limit on the tokens of an answer.
    test_sha256
        Hash of the inputs and references used.
    predicted
        Whether its own adapter was predicted, not trained: of it no gap is told.
    """

    name: str
    group: str | None
    examples: int
    new_tokens: int
    test_sha256: str
    predicted: bool = False


def of_predicted(names: Sequence[str]) -> list[str]:
    """Return the line, if there is one, that says which targets have no trained adapter, and what follows from that."""
    if not names:
        return []
    return [
        f"of {listed(names, 5)} the own adapter is itself a prediction, not trained: left out of what is told of own "
        "adapters, of the gap to them and of the distance to their weights"
    ]


@dataclass(frozen=True, slots=True)
class Sample:
    """A test example, its references, and an answer."""

    input: str
    references: tuple[str, ...]
    answer: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one system did on one target.

    Attributes
    ----------
    rouge, exact, exact_unstripped
        Means over the n examples, 0 to 1: Rouge-L, exact match of stripped texts, and of texts as they are.
    rouge_by_example, exact_by_example, exact_unstripped_by_example
        The same of each example, in the order of the test split.
    samples
        Up to three.
    sources
        Names and coefficients of up to eight of the largest sources, largest first; the adapter itself with
        1 for `own`, empty for `base`.
    effective_sources
        1 / sum of squared coefficients; None for `base`.
    adapter_sha256
        Hash of what the adapter was made of: equal ones answered once.
    seconds
        What generating took, now or when it was kept.
    weight_error
        `norm(predicted - own) / norm(own)` of the weights; None for `base` and `own`, and in delta space.
    """

    system: str
    target: str
    n: int
    rouge: float
    exact: float
    exact_unstripped: float
    rouge_by_example: tuple[float, ...]
    exact_by_example: tuple[int, ...]
    exact_unstripped_by_example: tuple[int, ...]
    samples: tuple[Sample, ...]
    sources: tuple[tuple[str, float], ...]
    effective_sources: float | None
    adapter_sha256: str
    seconds: float
    weight_error: float | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """A target that could not be evaluated, with the one-line reason."""

    target: str
    reason: str
