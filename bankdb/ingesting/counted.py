"""A dataset read and its tokens counted: by this process, or by one that finds its files and the bank's tokenizer."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bankdb.datasets.read import Examples, Reading
from bankdb.errors import BankError

if TYPE_CHECKING:
    from bankdb.datasets.forms.rules import Rule
    from bankdb.datasets.tokenizer import BankTokenizer, TokenHistogram


class NotReachedError(BankError):
    """A process does not find what another has."""


@dataclass(frozen=True, slots=True)
class Counted:
    """What is stored of a dataset, and what is told of it.

    Attributes
    ----------
    content_sha256
        Of its examples, in whatever order.
    examples
        Their number.
    notes, rule
        What was left out or assumed; which columns were read, and how.
    """

    content_sha256: str
    examples: int
    notes: tuple[str, ...]
    rule: Rule
    histogram: TokenHistogram


@dataclass(frozen=True, slots=True)
class DatasetFile:
    """A file or folder as this process finds it: by absolute path, of a file with bytes and time of writing."""

    path: str
    size: int | None
    written: int | None

    @classmethod
    def of(cls, path: Path) -> DatasetFile:
        """Return it as it is now; of what is not there, or is a folder, the path alone."""
        whole = path.absolute()
        if not whole.is_file():
            return cls(str(whole), None, None)
        found = whole.stat()
        return cls(str(whole), found.st_size, found.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class DatasetToCount:
    """All that another process needs.

    Attributes
    ----------
    tokenizer, fingerprint
        Folder of the bank's tokenizer, and what it has to be.
    reading
        Without the template of chats, which is that of the tokenizer.
    templated
        Whether there is one.
    """

    name: str
    files: tuple[DatasetFile, ...]
    tokenizer: str
    fingerprint: str
    reading: Reading
    templated: bool


class Counter(Protocol):
    """Counts datasets in other processes, several at a time."""

    @property
    def at_once(self) -> int:
        """How many datasets are counted at a time."""

    def __call__(self, dataset: DatasetToCount) -> Counted:
        """Count one. Raises what `count_dataset` does; ComputeError is no fault of the dataset's."""


def dataset_to_count(
    files: Sequence[Path], reading: Reading, tokenizer: Path, fingerprint: str
) -> DatasetToCount:
    """Return what another process counts."""
    return DatasetToCount(
        str(files[0]),
        tuple(map(DatasetFile.of, files)),
        str(tokenizer.absolute()),
        fingerprint,
        replace(reading, template=None),
        reading.template is not None,
    )


def count_dataset(
    files: Sequence[Path],
    reading: Reading,
    tokenizer: BankTokenizer,
    name: str,
    *,
    memory: int | None,
    of_texts: int | None,
) -> Counted:
    """Read a dataset and count its tokens.

    Parameters
    ----------
    name
        What messages call its texts.
    memory, of_texts
        Bytes for reading, and for tokenizing beside that.

    Raises
    ------
    DatasetError, PlanError, TokenizerError
        As `Examples` and `BankTokenizer.count` have them.
    """
    examples = Examples(files, reading, memory=memory)
    histogram = tokenizer.count(examples.texts(), name, of_texts)
    return Counted(examples.sha256, len(examples), examples.notes, examples.rule, histogram)


def count_elsewhere(dataset: DatasetToCount, memory: int) -> Counted:
    """Count a dataset of another process, in so many bytes.

    Raises
    ------
    NotReachedError
        This process does not find the files, or others; or not the bank's tokenizer.
    DatasetError, PlanError, TokenizerError
        As `count_dataset` has them.
    """
    for file in dataset.files:
        if DatasetFile.of(Path(file.path)) != file or not Path(file.path).exists():
            raise NotReachedError(
                f"expected the client's {file.path}, found "
                + ("other content" if Path(file.path).exists() else "nothing")
                + " there; keep datasets in a folder that all hosts mount at the same path"
            )
    tokenizer = _tokenizer(dataset.tokenizer, dataset.fingerprint)
    reading = dataset.reading
    if dataset.templated:
        reading = replace(reading, template=lambda: tokenizer.chat_template)
    files = [Path(file.path) for file in dataset.files]
    return count_dataset(files, reading, tokenizer, dataset.name, memory=memory // 2, of_texts=memory // 2)


@functools.lru_cache(maxsize=1)
def _tokenizer(folder: str, fingerprint: str) -> BankTokenizer:
    from bankdb.datasets.tokenizer import BankTokenizer

    if not Path(folder).is_dir():
        raise NotReachedError(
            f"expected the bank's tokenizer in {folder}, found no such folder; keep the bank's folder where all hosts "
            "mount it at the same path"
        )
    loaded = BankTokenizer(folder, fingerprint)
    if loaded.fingerprint != fingerprint:
        raise NotReachedError(f"expected the bank's tokenizer in {folder}, found another; copy the client's")
    return loaded
