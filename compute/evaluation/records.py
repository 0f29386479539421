"""The result of an evaluation as frozen records, and as a JSON document in the bank's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bankdb.arrays.durable import write_whole
from bankdb.bank import AdapterBank
from bankdb.errors import BankFormatError, BankNotFoundError, listed
from bankdb.strict_json import parse_object
from compute.evaluation.systems import System

FORMAT = 1
FOLDER = "evaluations"


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
    """

    name: str
    group: str | None
    examples: int
    new_tokens: int
    test_sha256: str


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


@dataclass(frozen=True, slots=True)
class Evaluation:
    """An evaluation: what answered what, and how well.

    Attributes
    ----------
    identity
        Hash of all that determines the figures: the same evaluation again has the same.
    settings
        What was asked for: model, max_examples, dtype, margin, seed and resamples of the bootstrap.
    bank
        What the bank is: identity, base_model, adapters, parameters, tokenizer.
    seconds
        What generating all answers took, now or when they were kept.
    outcomes
        By target, then by system, in the order of `targets` and `systems`.
    """

    identity: str
    created: str
    settings: Mapping[str, Any]
    bank: Mapping[str, Any]
    systems: tuple[System, ...]
    targets: tuple[Target, ...]
    outcomes: tuple[Outcome, ...]
    failures: tuple[Failure, ...]
    seconds: float

    def to_json(self) -> str:
        """Return it as a JSON document."""
        return json.dumps({"format": FORMAT, **asdict(self)}, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, where: str = "evaluation") -> Evaluation:
        """Read what `to_json` wrote.

        Raises
        ------
        BankFormatError
            The text is none, or of another version.
        """
        try:
            content = parse_object(text)
            version = content.pop("format")
            if version != FORMAT:
                raise BankFormatError(
                    f"{where}: evaluation format {version}, this version reads {FORMAT}; evaluate again"
                )
            for key, record in (("systems", System), ("targets", Target), ("failures", Failure)):
                content[key] = tuple(record(**item) for item in content[key])
            content["outcomes"] = tuple(_outcome(item) for item in content["outcomes"])
            return cls(**content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BankFormatError(
                f"{where}: expected an evaluation, found something else ({error}); evaluate again"
            ) from error

    def outcome(self, system: str, target: str) -> Outcome:
        """Return how one system did on one target. Raises BankNotFoundError if there is none."""
        for outcome in self.outcomes:
            if outcome.system == system and outcome.target == target:
                return outcome
        raise BankNotFoundError(f"evaluation {self.identity}: no outcome of {system!r} on {target!r}")


def _outcome(item: dict[str, Any]) -> Outcome:
    for key in ("rouge_by_example", "exact_by_example", "exact_unstripped_by_example"):
        item[key] = tuple(item[key])
    item["sources"] = tuple((str(name), float(weight)) for name, weight in item["sources"])
    item["samples"] = tuple(
        Sample(sample["input"], tuple(sample["references"]), sample["answer"]) for sample in item["samples"]
    )
    return Outcome(**item)


def evaluation_path(bank: AdapterBank, identity: str) -> Path:
    """Return the file of an evaluation in the bank's folder."""
    return bank.path / FOLDER / f"{identity}.json"


def store_evaluation(bank: AdapterBank, evaluation: Evaluation) -> Path:
    """Write an evaluation into the bank's folder, whole or not at all; return the file."""
    path = evaluation_path(bank, evaluation.identity)
    path.parent.mkdir(exist_ok=True)
    write_whole(path, evaluation.to_json())
    return path


def stored_evaluations(bank: AdapterBank) -> list[Evaluation]:
    """Return every evaluation in the bank's folder, oldest first."""
    files = sorted((bank.path / FOLDER).glob("[!.]*.json"))
    evaluations = [Evaluation.from_json(path.read_text(encoding="utf-8"), str(path)) for path in files]
    return sorted(evaluations, key=lambda evaluation: (evaluation.created, evaluation.identity))


def stored_evaluation(bank: AdapterBank, identity: str) -> Evaluation:
    """Return one evaluation. Raises BankNotFoundError if there is none of that identity."""
    path = evaluation_path(bank, identity)
    if not path.is_file():
        names = listed(sorted(item.stem for item in path.parent.glob("[!.]*.json"))) or "none"
        raise BankNotFoundError(f"{path}: no such evaluation, found {names}; run `bank evaluate`")
    return Evaluation.from_json(path.read_text(encoding="utf-8"), str(path))
