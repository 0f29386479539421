"""Test examples, a dataset's own or a user's file: prompts, and every reference answer; and prompts alone."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bankdb.datasets.columns import Columns
from bankdb.datasets.files.saved import is_saved, saved_files
from bankdb.datasets.forms.rules import Reading, Rule
from bankdb.datasets.forms.values import BadRows, kind_of
from bankdb.datasets.limits import memory_budget
from bankdb.datasets.read import Kept, encoded_text, example_of
from bankdb.datasets.rows import values_of
from bankdb.datasets.splits import format_of, is_data_file, stem_of
from bankdb.errors import DatasetError, listed
from bankdb.records import AdapterRecord, is_hub_reference

_TEST = re.compile(r"test([-_.].*)?", re.IGNORECASE | re.DOTALL)
_TRAINING = re.compile(r"train([-_.].*)?", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Test examples of one dataset.

    Attributes
    ----------
    inputs
        What is generated from, exactly as it stands.
    references
        For each example one or more right answers.
    sha256
        Hash of both, in their order.
    notes
        What a user should know of how they were read, a line each.
    rule
        By which rows became inputs and references, if they were read from files.
    """

    inputs: tuple[str, ...]
    references: tuple[tuple[str, ...], ...]
    sha256: str
    notes: tuple[str, ...] = field(default=(), compare=False)
    rule: Rule | None = field(default=None, compare=False)

    @classmethod
    def of(cls, inputs: Sequence[str], references: Sequence[Sequence[str]]) -> HeldOut:
        """Return a split of these examples."""
        digest = hashlib.sha256()
        for text, answers in zip(inputs, references, strict=True):
            digest.update(f"{len(answers)} ".encode())
            for part in (text, *answers):
                encoded = part.encode()
                digest.update(f"{len(encoded)} ".encode() + encoded)
        return cls(tuple(inputs), tuple(tuple(answers) for answers in references), digest.hexdigest())

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.inputs)


def held_out_files(adapter: AdapterRecord, data: Path | None = None) -> tuple[Path, ...]:
    """Return the files of the test split that belongs to an adapter of the bank.

    Looked for beside the training split that was ingested, as `test.*` or `test-*.*`, also in `data/`.

    Parameters
    ----------
    data
        Where to look instead: a folder with `NAME/test.jsonl`.

    Raises
    ------
    DatasetError
        There is none, or more than one.
    """
    if data is not None:
        return _in_folder(data / adapter.name, adapter.name)
    source = adapter.dataset_source
    if is_hub_reference(source):
        raise DatasetError(
            f"{adapter.name}: its dataset is {source}; download its test split and pass --data FOLDER, "
            f"with FOLDER/{adapter.name}/test.jsonl"
        )
    path = Path(source)
    if path.is_file() or is_data_file(path.name):
        if not _TRAINING.fullmatch(stem_of(path.name)):
            raise DatasetError(
                f"{adapter.name}: its dataset is the single file {path}, whose test split is not known; "
                f"pass --data FOLDER, with FOLDER/{adapter.name}/test.jsonl"
            )
        path = path.parent
    return _in_folder(path, adapter.name)


def _in_folder(folder: Path, name: str, advice: str = "") -> tuple[Path, ...]:
    advice = advice or f"pass --data FOLDER, with FOLDER/{name}/test.jsonl"
    if not os.path.isdir(folder):
        raise DatasetError(f"{name}: expected its test split in {folder}, found no such folder; {advice}")
    if is_saved(folder):
        return saved_files(folder, "test")
    found = [path for part in (folder, folder / "data") if part.is_dir() for path in part.iterdir()]
    files = sorted(
        path
        for path in found
        if is_data_file(path.name) and path.is_file() and _TEST.fullmatch(stem_of(path.name))
    )
    if not files:
        names = listed(sorted(path.name for path in found)) or "nothing"
        raise DatasetError(f"{name}: no test split in {folder}; expected test.jsonl, found {names}; {advice}")
    if len({(path.parent, format_of(path.name)) for path in files}) > 1:
        names = listed([str(path.relative_to(folder)) for path in files])
        raise DatasetError(f"{name}: more than one test split in {folder}: {names}; keep one")
    return tuple(files)


def test_files(path: Path) -> tuple[Path, ...]:
    """Return the files of a user's test examples: `path` itself if it is a file, else the test split in its folder.

    Raises
    ------
    DatasetError
        There is none, or more than one.
    """
    if os.path.isfile(path):
        return (path,)
    if not os.path.isdir(path):
        raise DatasetError(
            f"{path}: not found; expected a file of test examples, or a folder with test.jsonl"
        )
    return _in_folder(path, str(path), "give the file itself")


def read_held_out(files: Sequence[Path], most: int | None = None, reading: Reading | None = None) -> HeldOut:
    """Read the first `most` examples, or all, with every reference answer; what comes after them is not looked at.

    Raises
    ------
    DatasetError
        A file cannot be read, or an example is not what is expected.
    PlanError
        The examples take more memory than they may.
    """
    budget, reading = memory_budget(None), reading or Reading()
    kept, bad = Kept(budget), BadRows(reading.skip_bad_rows)
    inputs: list[str] = []
    references: list[tuple[str, ...]] = []
    notes: list[str] = []
    with Columns(reading, bare=True, split="test") as found:
        for file in files:
            if len(inputs) == most:
                break
            left = None if most is None else most - len(inputs)
            for text, answers in itertools.islice(_answered(Path(file), found, budget, kept, bad), left):
                inputs.append(text)
                references.append(answers)
            notes += found.notes(file)
    if not inputs:
        names = listed([str(file) for file in files])
        raise DatasetError(bad.first or f"{names}: no examples; expected at least one")
    notes += [f"test examples: {note}" for note in (*found.notes_at_end(), *bad.note(len(inputs)))]
    return replace(HeldOut.of(inputs, references), notes=tuple(notes), rule=found.rule)


def _answered(
    file: Path, columns: Columns, budget: int, kept: Kept, bad: BadRows
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield input and every answer of each example of a file."""
    for place, values in values_of(file, columns, budget, bad):
        try:
            names = columns.both
            text, first = example_of(values, names, place)
            answers = tuple(values[1]) if isinstance(values[1], list) else (first,)
            for part, column in ((text, names[0]), *((answer, names[1]) for answer in answers)):
                encoded_text(part, column, place)
        except DatasetError as error:
            bad.take(error)
            continue
        kept.add((text, *answers), place)
        yield text, answers


def read_prompts(file: Path, column: str = "input") -> tuple[str, ...]:
    """Read one column of text: what is to be answered, where there may be no answers yet.

    Raises
    ------
    DatasetError
        The file cannot be read whole, or a row has no text.
    PlanError
        The texts take more memory than they may.
    """
    budget = memory_budget(None)
    kept = Kept(budget)
    prompts: list[str] = []
    with Columns(Reading(text_column=column), option="--input-column") as columns:
        for place, (text, _) in values_of(file, columns, budget, BadRows(skip=False)):
            if not isinstance(text, str) or not text:
                what = "empty" if text == "" else kind_of(text)
                raise DatasetError(f"{place}: {column!r} is {what}; expected text to answer")
            encoded_text(text, column, place)
            kept.add((text,), place)
            prompts.append(text)
    if not prompts:
        raise DatasetError(f"{file}: no examples; expected at least one")
    return tuple(prompts)
