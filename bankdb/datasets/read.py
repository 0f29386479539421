"""Reads the training examples of a dataset from JSONL, JSON, CSV or Parquet files, or from what `datasets` saved.

An example is an `input` and the first of its `output`s (arXiv 2507.01806, section C.1.2); which columns these are is
recognised: see `bankdb.datasets.forms.rules`. Anything else is refused with the file, the line or row, and what to do
about it.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bankdb.datasets.columns import Columns
from bankdb.datasets.files.compressed import EXPANSION
from bankdb.datasets.forms.rules import TEXT_RULE, Reading, Rule
from bankdb.datasets.forms.values import BadRows, kind_of
from bankdb.datasets.limits import memory_budget
from bankdb.datasets.rows import values_of
from bankdb.datasets.splits import EXTENSIONS, choose_training_files, parts_note, training_files
from bankdb.errors import DatasetError, PlanError

__all__ = [
    "TEXT_RULE",
    "Dataset",
    "Examples",
    "Reading",
    "choose_training_files",
    "read_dataset",
    "training_files",
]

# Of the memory, what the examples may take, and what one takes beside its texts: a digest, and places in lists.
_KEPT_SHARE, _EXAMPLE_BYTES = 4, 128
_ADVICE = "; write one there, or remove the example"


@dataclass(frozen=True, slots=True)
class Dataset:
    """The training examples of one dataset, in the order they were read.

    Attributes
    ----------
    inputs
        The input of each example.
    outputs
        The first output of each example.
    sha256
        Hash of the content, the same whatever the file format and the order of the examples.
    notes
        What a user should know of how it was read, a line each.
    rule
        By which its rows became input and output; None for one that was made otherwise.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    sha256: str
    notes: tuple[str, ...] = field(default=(), compare=False)
    rule: Rule | None = field(default=None, compare=False)

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.inputs)

    def texts(self) -> list[str]:
        """The text of each example that is tokenised: input and first output (section C.1.2)."""
        return list(self.each_text())

    def each_text(self) -> Iterator[str]:
        """The same, one after another."""
        return (text + output for text, output in zip(self.inputs, self.outputs, strict=True))


def read_dataset(
    files: Sequence[Path], reading: Reading | None = None, *, memory: int | None = None
) -> Dataset:
    """Read the examples of all files, one after another.

    Parameters
    ----------
    files
        Files of the training split, as `training_files` returns them.
    reading
        Which columns hold the input (a string) and the output (a string, or a list of strings of which the first is
        used; in CSV always a string), and the template of chats; if not given, columns are recognised.
    memory
        Bytes that reading may take; half of the machine's if not given. The examples may take a quarter.

    Raises
    ------
    DatasetError
        When a file cannot be read whole, an example is not what is expected, or text would be left out that
        tells tasks apart.
    PlanError
        The examples take more memory than they may.
    """
    passed = Examples(files, reading, memory=memory)
    kept = Kept(passed.memory)
    inputs: list[str] = []
    outputs: list[str] = []
    for text, output in passed:
        kept.add((text, output), passed.place)
        inputs.append(text)
        outputs.append(output)
    return Dataset(tuple(inputs), tuple(outputs), passed.sha256, passed.notes, passed.rule)


class Examples:
    """The examples of a dataset, checked and passed on one after another; nothing is kept but a hash of each.

    Parameters
    ----------
    files, reading, memory
        As `read_dataset` takes them.

    Attributes
    ----------
    memory
        Bytes that reading may take.
    place
        Where the example stands that was passed on last.

    Raises
    ------
    DatasetError, PlanError
        As `read_dataset`, also while they are passed on.
    """

    def __init__(
        self, files: Sequence[Path], reading: Reading | None = None, *, memory: int | None = None
    ) -> None:
        if not files:
            raise DatasetError("no dataset file was given; expected at least one of " + ", ".join(EXTENSIONS))
        self.memory, self.place = memory_budget(memory), object()
        self._files, self._reading = files, reading or Reading()
        self._columns, self._bad = Columns(self._reading), BadRows(self._reading.skip_bad_rows)
        self._digests: list[bytes] = []
        self._notes: list[str] = []
        self._sha256: str | None = None

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Yield input and first output of each, once; at the end the hash of all is known."""
        self._notes += parts_note(self._files)
        kept, passed = Kept(self.memory), 0
        sizes = (os.path.getsize(file) for file in self._files if os.path.isfile(file))
        most = max(self.memory // _KEPT_SHARE, EXPANSION * sum(sizes))
        with self._columns:
            for file in self._files:
                before = len(self._digests)
                for place, text, output in self._of_file(Path(file)):
                    self.place = place
                    kept.add((), place)
                    passed += len(text) + len(output)
                    if passed > most:
                        raise PlanError(
                            f"{place}: the examples up to here have more than {most >> 20} MiB of text, {EXPANSION} "
                            "times what the files have; use fewer of them, or give more with --memory"
                        )
                    yield text, output
                if len(self._digests) == before:
                    raise DatasetError(self._bad.first or f"{file}: no examples; expected at least one")
                self._notes += self._columns.notes(file)
        self._notes += [*self._columns.notes_at_end(), *self._bad.note(len(self))]
        self._sha256 = hashlib.sha256(b"".join(sorted(self._digests))).hexdigest()

    def _of_file(self, file: Path) -> Iterator[tuple[object, str, str]]:
        for place, values in values_of(file, self._columns, self.memory, self._bad):
            try:
                text, output = example_of(values, self._columns.both, place)
                digest = _digest(text, output, self._columns.both, place)
            except DatasetError as error:
                self._bad.take(error)
            else:
                self._digests.append(digest)
                yield place, text, output

    def texts(self) -> Iterator[str]:
        """Yield the text of each example that is tokenised: input and first output (section C.1.2)."""
        return (text + output for text, output in self)

    def pass_over(self) -> None:
        """Read them all for their hash alone."""
        for _ in self:
            pass

    def __len__(self) -> int:
        """How many were passed on."""
        return len(self._digests)

    @property
    def sha256(self) -> str:
        """Hash of the content, the same whatever the file format and the order of the examples."""
        assert self._sha256 is not None, "all of them were passed on"
        return self._sha256

    @property
    def rule(self) -> Rule:
        """By which rows became input and output, when at least one was passed on."""
        assert self._columns.rule is not None, "an example was passed on"
        return self._columns.rule

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of how they were read, a line each."""
        return tuple(self._notes)


class Kept:
    """Counts the memory of the examples that are kept: a quarter of what reading may take."""

    def __init__(self, memory: int) -> None:
        self._most, self._bytes = memory // _KEPT_SHARE, 0

    def add(self, texts: Sequence[str], place: object) -> None:
        """Count some texts. Raises PlanError when all of them take more than they may."""
        self._bytes += _EXAMPLE_BYTES + sum(map(sys.getsizeof, texts))
        if self._bytes > self._most:
            raise PlanError(
                f"{place}: the examples up to here take more than {self._most >> 20} MiB; give more with --memory, or "
                "use fewer of them"
            )


def example_of(values: tuple[Any, Any], columns: tuple[str, str], place: object) -> tuple[str, str]:
    """Check one example and take the first of its outputs."""
    text, output = values
    if not isinstance(text, str):
        more = "" if isinstance(output, str | list) else f", and {columns[1]!r} is {kind_of(output)}"
        raise DatasetError(f"{place}: {columns[0]!r} is {kind_of(text)}; expected a string{more}{_ADVICE}")
    if isinstance(output, list):
        if not output:
            raise DatasetError(f"{place}: {columns[1]!r} is an empty list; expected at least one string")
        for item in output:
            if not isinstance(item, str):
                raise DatasetError(
                    f"{place}: {columns[1]!r} has {kind_of(item)} in its list; expected strings"
                )
        output = output[0]
    if not isinstance(output, str):
        raise DatasetError(
            f"{place}: {columns[1]!r} is {kind_of(output)}; expected a string or a list of strings{_ADVICE}"
        )
    if not text and not output:
        raise DatasetError(f"{place}: input and output are both empty; remove the example")
    return text, output


def _digest(text: str, output: str, columns: tuple[str, str], place: object) -> bytes:
    """Hash of one example; each part is preceded by its length, so that no two examples look alike."""
    digest = hashlib.sha256()
    for column, part in zip(columns, (text, output), strict=True):
        encoded = encoded_text(part, column, place)
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.digest()


def encoded_text(text: str, column: str, place: object) -> bytes:
    """Return a text as UTF-8. Raises DatasetError for characters that no text has."""
    if "\0" in text:
        raise DatasetError(f"{place}: {column!r} has a NUL character, a sign of a damaged file; remove it")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DatasetError(
            f"{place}: {column!r} has half of a surrogate pair, which is no character; remove it"
        ) from error
