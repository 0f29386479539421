"""Test examples, a dataset's own or a user's file: prompts, and every reference answer; and prompts alone."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bankdb.datasets.columns import Columns, kind_of
from bankdb.datasets.limits import memory_budget
from bankdb.datasets.read import Kept, encoded_text, example_of
from bankdb.datasets.rows import values_of
from bankdb.datasets.splits import EXTENSIONS
from bankdb.errors import DatasetError, listed
from bankdb.records import AdapterRecord, is_hub_reference

_TEST = re.compile(r"test([-_.].*)?", re.IGNORECASE | re.DOTALL)
_TRAINING = re.compile(r"train([-_.].*)?", re.IGNORECASE | re.DOTALL)
_COLUMNS = ("input", "output")


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
    """

    inputs: tuple[str, ...]
    references: tuple[tuple[str, ...], ...]
    sha256: str
    notes: tuple[str, ...] = field(default=(), compare=False)

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
    if path.is_file() or path.suffix.lower() in EXTENSIONS:
        if not _TRAINING.fullmatch(path.stem):
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
    found = [path for part in (folder, folder / "data") if part.is_dir() for path in part.iterdir()]
    files = sorted(
        path
        for path in found
        if path.suffix.lower() in EXTENSIONS and path.is_file() and _TEST.fullmatch(path.stem)
    )
    if not files:
        names = listed(sorted(path.name for path in found)) or "nothing"
        raise DatasetError(f"{name}: no test split in {folder}; expected test.jsonl, found {names}; {advice}")
    if len({(path.parent, path.suffix.lower()) for path in files}) > 1:
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


def read_held_out(
    files: Sequence[Path], most: int | None = None, columns: tuple[str, str] = _COLUMNS
) -> HeldOut:
    """Read the first `most` examples, or all, with every reference answer; what comes after them is not looked at.

    Raises
    ------
    DatasetError
        A file cannot be read, or an example is not what is expected.
    PlanError
        The examples take more memory than they may.
    """
    budget = memory_budget(None)
    kept = Kept(budget)
    inputs: list[str] = []
    references: list[tuple[str, ...]] = []
    notes: list[str] = []
    for file in files:
        if len(inputs) == most:
            break
        found = Columns(columns)
        left = None if most is None else most - len(inputs)
        for place, values in itertools.islice(values_of(Path(file), found, budget), left):
            text, first = example_of(values, columns, place)
            answers = tuple(values[1]) if isinstance(values[1], list) else (first,)
            for part, column in ((text, columns[0]), *((answer, columns[1]) for answer in answers)):
                encoded_text(part, column, place)
            kept.add((text, *answers), place)
            inputs.append(text)
            references.append(answers)
        notes += found.notes(file)
    if not inputs:
        raise DatasetError(f"{listed([str(file) for file in files])}: no examples; expected at least one")
    return replace(HeldOut.of(inputs, references), notes=tuple(notes))


def read_prompts(file: Path, column: str = _COLUMNS[0]) -> tuple[str, ...]:
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
    for place, (text, _) in values_of(file, Columns((column, column)), budget):
        if not isinstance(text, str) or not text:
            what = "empty" if text == "" else kind_of(text)
            raise DatasetError(f"{place}: {column!r} is {what}; expected text to answer")
        encoded_text(text, column, place)
        kept.add((text,), place)
        prompts.append(text)
    if not prompts:
        raise DatasetError(f"{file}: no examples; expected at least one")
    return tuple(prompts)
