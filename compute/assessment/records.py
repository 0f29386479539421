"""What was assessed, as frozen records: scores of each example, differences with intervals, and what they mean."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bankdb.arrays.durable import write_whole
from bankdb.errors import ConflictError, ParameterError, listed, printable
from bankdb.shown import html_summary, text_summary
from compute.evaluation.bootstrap import LEAST_UNITS, Interval, mean_difference, task_weights

if TYPE_CHECKING:
    import xarray

FORMAT = 1
BASE, ADAPTER, COMPARED = "base", "adapter", "compared"
BASE_NAME = "base model"
_MEASURES = ("rouge", "exact")


@dataclass(frozen=True, slots=True)
class Assessed:
    """One of those that answered.

    Attributes
    ----------
    name
        Unique in an assessment.
    kind
        `base`, `adapter`, or `compared`: predicted from the bank, to compare with.
    about
        Where the adapter is from, or how it was made.
    adapter_sha256
        Hash of the adapter.
    answers
        The texts, in the order of the examples.
    rouge_by_example, exact_by_example
        Rouge-L, 0 to 1, and whether the stripped text is a reference.
    """

    name: str
    kind: str
    about: str
    adapter_sha256: str
    answers: tuple[str, ...]
    rouge_by_example: tuple[float, ...]
    exact_by_example: tuple[int, ...]

    @property
    def rouge(self) -> float:
        """Mean Rouge-L."""
        return float(np.mean(self.rouge_by_example))

    @property
    def exact(self) -> float:
        """Share of exact matches."""
        return float(np.mean(self.exact_by_example))

    @property
    def called(self) -> str:
        """The name as a sentence has it."""
        return {"uniform": "the mean of all adapters", BASE_NAME: "the base model"}.get(
            self.name, f"the {self.name}" if self.kind == COMPARED else self.name
        )


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Assessment:
    """Whether adapters help on some test examples.

    Attributes
    ----------
    test, test_sha256
        Name of the file, and hash of the examples used.
    inputs, references
        Of each example.
    systems
        The base model first, then the adapters, then what they are compared with.
    settings
        The base model, dtype, the limit on an answer's tokens, and resamples and seed of the bootstrap.
    notes
        What was assumed or left out, a line each.
    """

    test: str
    test_sha256: str
    inputs: tuple[str, ...]
    references: tuple[tuple[str, ...], ...]
    systems: tuple[Assessed, ...]
    settings: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.inputs)

    def system(self, name: str) -> Assessed:
        """Return one of those that answered. Raises ParameterError if there is none of that name."""
        for one in self.systems:
            if one.name == name:
                return one
        known = listed([one.name for one in self.systems])
        raise ParameterError(f"system: expected one of {known}, found {name!r}")

    def difference(self, name: str, other: str = BASE_NAME, measure: str = "rouge") -> Interval:
        """Return the mean over examples of one's score minus another's, with its 95% interval.

        By a paired bootstrap over examples: the same examples are drawn for all. Of fewer than ten none is told; see
        `compute.evaluation.bootstrap`.

        Parameters
        ----------
        measure
            `rouge` or `exact`.
        """
        if measure not in _MEASURES:
            raise ParameterError(f"measure: expected one of {', '.join(_MEASURES)}, found {measure!r}")
        return _difference(self.system(name), self.system(other), measure, self._weights())

    def _weights(self) -> Any:
        return task_weights(
            len(self), resamples=int(self.settings["resamples"]), seed=int(self.settings["seed"])
        )

    def sentences(self) -> list[str]:
        """Return a sentence for each adapter: what it is better than."""
        weights = self._weights()
        found = []
        for position, one in enumerate(self.systems):
            if one.kind != ADAPTER:
                continue
            others = [
                other for index, other in enumerate(self.systems) if other.kind != ADAPTER or index < position
            ]
            verdicts = "; ".join(_verdict(self, one, other, weights) for other in others)
            found.append(f"{one.name}: {verdicts}")
        return found

    def rows(self) -> tuple[list[str], list[list[object]]]:
        """Return headings and rows of a table: means, and differences to the base model with 95% intervals."""
        weights, base = self._weights(), self.systems[0]
        headings = ["", "Rouge-L", "exact match", "Rouge-L to base", "exact to base", "better/equal/worse"]
        rows: list[list[object]] = []
        for one in self.systems:
            row: list[object] = [one.name, one.rouge, one.exact]
            if one is base:
                rows.append([*row, None, None, None])
                continue
            row += [shown(_difference(one, base, measure, weights)) for measure in _MEASURES]
            gain = np.subtract(one.rouge_by_example, base.rouge_by_example)
            counts = (int(np.sum(gain > 0)), int(np.sum(gain == 0)), int(np.sum(gain < 0)))
            rows.append([*row, "/".join(map(str, counts))])
        return headings, rows

    def to_csv(self) -> str:
        """Return a row for each of those that answered, all digits kept."""
        weights, base = self._weights(), self.systems[0]
        headings = ["system", "kind", "about", "examples", *_MEASURES]
        headings += [f"{key}_to_base{end}" for key in _MEASURES for end in ("", "_low", "_high")]
        rows: list[list[object]] = []
        for one in self.systems:
            row: list[object] = [one.name, one.kind, one.about, len(self), one.rouge, one.exact]
            for measure in _MEASURES:
                found = None if one is base else _difference(one, base, measure, weights)
                row += [None] * 3 if found is None else [found.estimate, *found.bounds]
            rows.append(row)
        return _csv(headings, rows)

    def examples_csv(self) -> str:
        """Return a row for each example and each of those that answered: input, references, answer and scores."""
        headings = ["example", "input", "references", "system", "answer", *_MEASURES]
        rows = [
            [
                index + 1,
                self.inputs[index],
                json.dumps(self.references[index], ensure_ascii=False),
                one.name,
                one.answers[index],
                one.rouge_by_example[index],
                one.exact_by_example[index],
            ]
            for index in range(len(self))
            for one in self.systems
        ]
        return _csv(headings, rows)

    def as_record(self) -> dict[str, Any]:
        """Return all of it for JSON, with differences to the base model and the sentences."""
        weights, base = self._weights(), self.systems[0]
        record = asdict(self)
        for one, shown_one in zip(self.systems, record["systems"], strict=True):
            shown_one |= {"rouge": one.rouge, "exact": one.exact}
            for measure in _MEASURES:
                found = None if one is base else _difference(one, base, measure, weights)
                shown_one[f"{measure}_to_base"] = None if found is None else found.as_record()
        return {"format": FORMAT, **record, "sentences": self.sentences()}

    def measured(self, name: str) -> dict[str, Any]:
        """Return what the provenance and the model card of an adapter say of it: figures, and what they are of."""
        weights, mine = self._weights(), self.system(name)
        others = [one for one in self.systems if one.kind != ADAPTER]
        return {
            "test": {"name": self.test, "sha256": self.test_sha256, "examples": len(self)},
            "base_model": self.settings["model"],
            "dtype": self.settings["dtype"],
            "decoding": "greedy",
            "adapter_sha256": mine.adapter_sha256,
            "rouge_l": mine.rouge,
            "exact_match": mine.exact,
            "compared_with": [
                {
                    "name": one.name,
                    "rouge_l": one.rouge,
                    "exact_match": one.exact,
                    "rouge_l_difference": _difference(mine, one, "rouge", weights).as_record(),
                }
                for one in others
            ],
        }

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write `systems.csv`, `examples.csv` and `assessment.json`; return the folder.

        Raises
        ------
        ConflictError
            One of them is there and is not to be replaced.
        """
        target = Path(folder)
        files: dict[str, Callable[[], str]] = {
            "systems.csv": lambda: printable(self.to_csv(), keep="\n\t"),
            "examples.csv": lambda: printable(self.examples_csv(), keep="\n\t"),
            "assessment.json": lambda: json.dumps(self.as_record(), allow_nan=False) + "\n",
        }
        taken = [name for name in files if (target / name).exists()]
        if taken and not overwrite:
            raise ConflictError(
                f"{target / taken[0]}: already there; choose another folder, or give overwrite=True"
            )
        target.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_whole(target / name, text())
        return target

    def to_xarray(self) -> xarray.Dataset:
        """Return `rouge` and `exact` by `system` and `example`."""
        import xarray

        scores = {
            key: (
                ("system", "example"),
                np.asarray([getattr(one, f"{key}_by_example") for one in self.systems]),
            )
            for key in _MEASURES
        }
        names = [one.name for one in self.systems]
        return xarray.Dataset(scores, {"system": names, "example": np.arange(1, len(self) + 1)})

    def __repr__(self) -> str:
        """Return the mean scores of all that answered, and what they mean."""
        facts: dict[str, object] = {
            one.name: f"Rouge-L {one.rouge:.3f}, exact {one.exact:.3f}" for one in self.systems
        }
        return "\n".join([text_summary(self._title(), facts), *(f"  {line}" for line in self.sentences())])

    def _repr_html_(self) -> str:
        headings, rows = self.rows()
        facts = {"what it means": " | ".join(self.sentences())}
        return html_summary(self._title(), facts, headings, rows)

    def _title(self) -> str:
        return f"Assessment on {self.test}: {len(self)} test examples, base model {self.settings['model']}"


def shown(interval: Interval) -> str:
    """Return an estimate with its bounds, or alone where there are too few examples for any."""
    if not interval.has_bounds:
        return f"{interval.estimate:+.2f}"
    return f"{interval.estimate:+.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def _difference(one: Assessed, other: Assessed, measure: str, weights: Any) -> Interval:
    first, second = (np.asarray(getattr(each, f"{measure}_by_example"), float) for each in (one, other))
    return mean_difference(weights, first, second)


def _verdict(assessment: Assessment, one: Assessed, other: Assessed, weights: Any) -> str:
    asked = f"better than {other.called}"
    if one.answers == other.answers:
        return f"{asked}: no, it gives the same answers"
    found = _difference(one, other, "rouge", weights)
    if not found.has_bounds:
        return f"{asked}: too few examples to tell ({len(assessment)} of {LEAST_UNITS}), {shown(found)}"
    answer = "yes" if found.low > 0 else "no, worse" if found.high < 0 else "not clearly"
    return f"{asked}: {answer}, {shown(found)}"


def _csv(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(headings)
    writer.writerows(rows)
    return text.getvalue()
