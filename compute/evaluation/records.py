"""The result of an evaluation as frozen records, and as a JSON document in the bank's folder."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from bankdb.arrays.durable import write_whole
from bankdb.bank import AdapterBank
from bankdb.errors import BankFormatError, BankNotFoundError, ConflictError, listed, one_line, printable
from bankdb.records import without_folders
from bankdb.shown import html_summary, text_summary
from bankdb.strict_json import json_type, parse_object
from compute.approaches.groups import LEAVE_OUT
from compute.evaluation.scores import Failure, Outcome, Sample, Target
from compute.evaluation.systems import BASE, OWN, System
from compute.evaluation.tables import Summary, summaries, summary_csv, target_csv

FORMAT = 1
FOLDER = "evaluations"
# Systems that an evaluation shows of itself.
_LISTED = 10


@dataclass(frozen=True, slots=True, repr=False)
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

    def summaries(self) -> list[Summary]:
        """Return each system over all tasks, with intervals: see `Summary`."""
        return summaries(self)

    def _without_paths(self) -> Evaluation:
        """Return what may be given away: reasons name files of this machine."""
        failures = [replace(one, reason=without_folders(one.reason)) for one in self.failures]
        return replace(self, failures=tuple(failures))

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write `systems.csv`, `targets.csv` and `evaluation.json`, which `from_json` reads; return the folder.

        Raises
        ------
        ConflictError
            One of them is there and is not to be replaced.
        """
        target = Path(folder)
        files: dict[str, Callable[[], str]] = {
            "systems.csv": lambda: printable(summary_csv(self.summaries()), keep="\n\t"),
            "targets.csv": lambda: printable(target_csv(self), keep="\n\t"),
            "evaluation.json": lambda: self._without_paths().to_json() + "\n",
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

    def __repr__(self) -> str:
        """Return what was evaluated, and the mean scores of the first systems."""
        rows = {name: f"Rouge-L {rouge:.3f}, exact {exact:.3f}" for name, rouge, exact in self._means()}
        return text_summary(self._title(), dict(list(rows.items())[:_LISTED]) | self._rest())

    def _repr_html_(self) -> str:
        rows = self._means()
        headings = ("system", "Rouge-L", "exact")
        return html_summary(self._title(), {}, headings, rows[:_LISTED], len(rows) - _LISTED)

    def _title(self) -> str:
        examples = sum(target.examples for target in self.targets)
        return f"Evaluation {self.identity}: {len(self.targets)} tasks, {examples} test examples"

    def _means(self) -> list[tuple[str, float, float]]:
        """Name and mean scores over the tasks of each system."""
        by_system: dict[str, list[Outcome]] = {system.name: [] for system in self.systems}
        predicted = {target.name for target in self.targets if target.predicted}
        for outcome in self.outcomes:
            if outcome.system != OWN.system.name or outcome.target not in predicted:
                by_system[outcome.system].append(outcome)
        return [
            (name, *(sum(getattr(one, key) for one in made) / len(made) for key in ("rouge", "exact")))
            for name, made in by_system.items()
            if made
        ]

    def _rest(self) -> dict[str, str]:
        more, failed = len(self.systems) - _LISTED, len(self.failures)
        return ({"further systems": str(more)} if more > 0 else {}) | (
            {"not evaluated": f"{failed} tasks"} if failed else {}
        )

    def to_json(self) -> str:
        """Return it as a JSON document."""
        content = asdict(self)
        for target in content["targets"]:
            if not target["predicted"]:
                del target["predicted"]  # as before there was such a thing
        return json.dumps({"format": FORMAT, **content}, ensure_ascii=False, allow_nan=False)

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
            found = cls(**content)
            _check_types(found, "")
            _check_values(found)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise BankFormatError(
                f"{where}: expected an evaluation, found something else ({one_line(error)}); evaluate again, or "
                "delete the file"
            ) from error
        return found

    def outcome(self, system: str, target: str) -> Outcome:
        """Return how one system did on one target. Raises BankNotFoundError if there is none."""
        for outcome in self.outcomes:
            if outcome.system == system and outcome.target == target:
                return outcome
        raise BankNotFoundError(f"evaluation {self.identity}: no outcome of {system!r} on {target!r}")


def _outcome(item: dict[str, Any]) -> Outcome:
    for key in ("rouge_by_example", "exact_by_example", "exact_unstripped_by_example"):
        item[key] = tuple(item[key])
    item["sources"] = tuple((name, weight) for name, weight in item["sources"])
    item["samples"] = tuple(
        Sample(sample["input"], tuple(sample["references"]), sample["answer"]) for sample in item["samples"]
    )
    return Outcome(**item)


def _check_types(record: Any, place: str) -> None:
    """Raise ValueError unless every field of a record, and of those in it, is of the type that it states."""
    for name, hint in get_type_hints(type(record)).items():
        _check_type(getattr(record, name), hint, f"{place}{name}")


def _check_type(value: Any, hint: Any, place: str) -> None:
    kind, inner = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        _check_types(value, f"{place}.")
    elif kind is UnionType:
        if value is not None:
            _check_type(value, next(one for one in inner if one is not NoneType), place)
    elif kind is tuple:
        items = inner[:1] * len(value) if inner[1:] == (...,) else inner
        for index, (item, of_item) in enumerate(zip(value, items, strict=True)):
            _check_type(item, of_item, f"{place}[{index}]")
    else:
        wanted = {float: (float, int), Mapping: (dict,)}.get(kind or hint, (hint,))
        if not isinstance(value, wanted) or (isinstance(value, bool) and hint is not bool):
            raise ValueError(f"{place} is {json_type(value)}")
        if hint is float and not math.isfinite(value):
            raise ValueError(f"{place} is {value}")


def _check_values(found: Evaluation) -> None:
    """Raise ValueError unless the figures are of what the evaluation says that it compares."""
    systems, targets = ([one.name for one in group] for group in (found.systems, found.targets))
    compared = [(one.system, one.target) for one in found.outcomes]
    for names in (systems, targets, compared):
        if len(set(names)) < len(names):
            raise ValueError(f"{names[0]!r} or another of these {len(names)} is there twice")
    if not targets or set(compared) != {(system, target) for system in systems for target in targets}:
        raise ValueError("outcomes are not of each system on each target")
    unknown = [one.leave_out for one in found.systems if one.leave_out not in (None, *LEAVE_OUT)]
    if unknown:
        raise ValueError(f"leave_out is {unknown[0]!r}")
    lacking = [one.name for one in (BASE.system, OWN.system) if one.name not in systems]
    if lacking:
        raise ValueError(f"the system {lacking[0]!r} is lacking")
    for key, least, most in (("resamples", 1, 10**6), ("seed", 0, 2**63)):
        value = found.settings[key]
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"settings.{key} is {value!r}")
    for one in found.outcomes:
        _check_scores(one)


def _check_scores(one: Outcome) -> None:
    for key in ("rouge", "exact", "exact_unstripped"):
        scores = getattr(one, f"{key}_by_example")
        whole = len(scores) == one.n > 0 and all(0 <= score <= 1 for score in scores)
        if not whole or not math.isclose(getattr(one, key), sum(scores) / one.n, abs_tol=1e-9):
            raise ValueError(f"{key} of {one.system} on {one.target} is not the mean of {one.n} scores")


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
    evaluations = [_read(path) for path in files]
    return sorted(evaluations, key=lambda evaluation: (evaluation.created, evaluation.identity))


def stored_evaluation(bank: AdapterBank, identity: str) -> Evaluation:
    """Return one evaluation. Raises BankNotFoundError if there is none of that identity."""
    path = evaluation_path(bank, identity)
    if not path.is_file():
        names = listed(sorted(item.stem for item in path.parent.glob("[!.]*.json"))) or "none"
        raise BankNotFoundError(f"{path}: no such evaluation, found {names}; run `bank evaluate`")
    return _read(path)


def _read(path: Path) -> Evaluation:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BankFormatError(
            f"{path}: expected an evaluation, found no UTF-8 text; evaluate again, or delete the file"
        ) from error
    return Evaluation.from_json(text, str(path))
