"""What learning curves found: scores by start, number of steps and target, and a JSON document of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bankdb.arrays.durable import write_whole
from bankdb.bank import AdapterBank
from bankdb.errors import BankFormatError, one_line
from bankdb.shown import html_summary, text_summary
from bankdb.strict_json import parse_object
from compute.curves.runs import FOLDER

FORMAT = 1
_PREFIX = "curve-"


@dataclass(frozen=True, slots=True)
class Scores:
    """Mean Rouge-L and exact match of each target, 0 to 1, in the order of the targets."""

    rouge: tuple[float, ...]
    exact: tuple[float, ...]

    @classmethod
    def of(cls, pairs: Sequence[tuple[float, float]]) -> Scores:
        """Return them from pairs of both."""
        return cls(tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs))


@dataclass(frozen=True, slots=True)
class CurveStart:
    """One start, and what followed from it.

    Attributes
    ----------
    name
        `zero`, or the system's that predicts it.
    leave_out
        `adapter` or `group`; None for `zero`.
    scores
        After each number of steps.
    held_out
        Loss on the examples held out: after each number of steps, of each target; nats a token of the answers.
    seconds
        Of all training steps, of each target.
    """

    name: str
    leave_out: str | None
    scores: tuple[Scores, ...]
    held_out: tuple[tuple[float, ...], ...]
    seconds: tuple[float, ...]

    def kept(self, place: int) -> list[int]:
        """Return, of each target, the place in the numbers of steps up to `place` with the lowest held-out loss."""
        targets = range(len(self.seconds))
        return [min((self.held_out[at][t], at) for at in range(place + 1))[1] for t in targets]


@dataclass(frozen=True, slots=True, repr=False)
class LearningCurves:
    """Scores of all starts; the base model's and own adapters' beside them.

    Attributes
    ----------
    identity
        Hash of all that determines the figures.
    settings
        What was asked for: model, dtypes, examples, batch_size, learning_rate, seeds, resamples.
    bank
        Identity of the bank.
    targets, groups
        Names, and their groups.
    steps
        Numbers of steps, ascending.
    base, own
        Of the base model, and of each target's own adapter.
    failures
        Targets that could not be trained on, with the reason.
    """

    identity: str
    created: str
    settings: Mapping[str, Any]
    bank: str
    targets: tuple[str, ...]
    groups: tuple[str | None, ...]
    steps: tuple[int, ...]
    base: Scores
    own: Scores
    starts: tuple[CurveStart, ...]
    failures: Mapping[str, str]

    def __repr__(self) -> str:
        """Return what was measured, and mean Rouge-L of each start."""
        return text_summary(self._title(), {name: ", ".join(row) for name, *row in self._means()})

    def _repr_html_(self) -> str:
        headings = ("start", *(f"{step} steps" for step in self.steps))
        return html_summary(self._title(), {}, headings, self._means(), 0)

    def _title(self) -> str:
        return f"LearningCurves {self.identity}: {len(self.targets)} tasks, steps {', '.join(map(str, self.steps))}"

    def _means(self) -> list[tuple[str, ...]]:
        count = len(self.targets)
        return [
            (one.name, *(f"{sum(scores.rouge) / count:.3f}" for scores in one.scores)) for one in self.starts
        ]

    def to_json(self) -> str:
        """Return it as a JSON document."""
        return json.dumps({"format": FORMAT, **asdict(self)}, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, where: str = "learning curves") -> LearningCurves:
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
                    f"{where}: learning curves of format {version}, this version reads {FORMAT}; measure again"
                )
            content["starts"] = tuple(map(_start, content["starts"]))
            for key in ("base", "own"):
                content[key] = _scores(content[key])
            for key in ("targets", "groups", "steps"):
                content[key] = tuple(content[key])
            found = cls(**content)
            _check(found)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BankFormatError(
                f"{where}: expected learning curves, found something else ({one_line(error)}); measure again, or "
                "delete the file"
            ) from error
        return found


def _scores(item: Mapping[str, Any]) -> Scores:
    return Scores(tuple(map(_share, item["rouge"])), tuple(map(_share, item["exact"])))


def _share(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"a score is {value!r}")
    return float(value)


def _start(item: Mapping[str, Any]) -> CurveStart:
    held_out = tuple(tuple(map(_number, losses)) for losses in item["held_out"])
    seconds = tuple(map(_number, item["seconds"]))
    scores = tuple(map(_scores, item["scores"]))
    return CurveStart(str(item["name"]), item["leave_out"], scores, held_out, seconds)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"a number is {value!r}")
    return float(value)


def _check(found: LearningCurves) -> None:
    """Raise ValueError unless all lists are of the targets and steps that are stated."""
    tasks, steps = len(found.targets), len(found.steps)
    every = [found.base, found.own, *(scores for one in found.starts for scores in one.scores)]
    lengths = [len(values) for one in every for values in (one.rouge, one.exact)]
    lengths += [len(losses) for one in found.starts for losses in one.held_out]
    lengths += [len(one.seconds) for one in found.starts] + [len(found.groups)]
    if not tasks or set(lengths) != {tasks}:
        raise ValueError(f"some figures are not of {tasks} targets")
    if not steps or any(len(part) != steps for one in found.starts for part in (one.scores, one.held_out)):
        raise ValueError(f"some figures are not of {steps} numbers of steps")
    if list(found.steps) != sorted(set(found.steps)):
        raise ValueError("steps are not ascending")


def store_curves(bank: AdapterBank, curves: LearningCurves) -> Path:
    """Write them into the bank's folder, whole or not at all; return the file."""
    path = bank.path / FOLDER / f"{_PREFIX}{curves.identity}.json"
    path.parent.mkdir(exist_ok=True)
    write_whole(path, curves.to_json())
    return path


def stored_curves(bank: AdapterBank) -> list[LearningCurves]:
    """Return all in the bank's folder, oldest first. Raises BankFormatError for a file that holds none."""
    found = [
        LearningCurves.from_json(path.read_text(encoding="utf-8", errors="replace"), str(path))
        for path in sorted((bank.path / FOLDER).glob(f"{_PREFIX}*.json"))
    ]
    return sorted(found, key=lambda one: (one.created, one.identity))
