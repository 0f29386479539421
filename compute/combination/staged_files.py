"""Weights files that are filled panel by panel, beside the folders that they will be in; a killed run goes on.

They lie in one hidden folder, `.BANK-DIGEST.unfinished`, in which the journal `done` tells which panels all files hold.
What a killed process had written is in the kernel's cache or on the disk; after a restart of the machine, of which
the journal knows the number, nothing of it is believed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bankdb.arrays.durable import naming

_FILES, _DONE, _SUFFIX = "files.json", "done", ".unfinished"
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class StagedFile:
    """A file that is being filled.

    Attributes
    ----------
    index
        Number of its target in the run.
    dtype
        Of the values in it.
    data
        Bytes before them: the header with its length.
    """

    index: int
    dtype: str
    data: int

    @property
    def name(self) -> str:
        """Its name among the others."""
        return f"{self.index}.safetensors"


def read_staged(folder: Path) -> list[StagedFile]:
    """Read which files are filled in a folder."""
    with naming(folder / _FILES):
        return [StagedFile(*entry) for entry in json.loads((folder / _FILES).read_bytes())]


class StagedFiles:
    """The files of a run that are not whole yet, and the panels that they hold; one process at a time fills them.

    Parameters
    ----------
    root
        Where the finished folders will be.
    bank
        Identity of the bank; what earlier runs of it left here is deleted, unless it is of these very inputs.
    made_from
        Hash of all that decides a byte of the files, and of how they are cut into panels.
    """

    def __init__(self, root: Path, bank: str, made_from: str) -> None:
        self.folder = root.absolute() / f"{_prefix(bank)}{made_from[:16]}{_SUFFIX}"
        clear_staged(root, bank, keep=self.folder.name)

    def begin(self, starts: Mapping[int, tuple[str, bytes]], data: Mapping[str, int]) -> None:
        """Have a file for each target: those that are there, if all are, or new ones.

        Parameters
        ----------
        starts
            By target: the dtype, and the bytes that the file begins with.
        data
            By dtype, the bytes that follow.

        Raises
        ------
        OSError
            A file cannot be made; it is named.
        """
        files = [StagedFile(index, dtype, len(start)) for index, (dtype, start) in starts.items()]
        if self._goes_on(files, data):
            return
        self.remove()
        self.folder.mkdir(parents=True)
        for file in files:
            place = self.folder / file.name
            with naming(place), place.open("wb") as stream:
                stream.write(starts[file.index][1])
                stream.truncate(file.data + data[file.dtype])
        entries = json.dumps([[file.index, file.dtype, file.data] for file in files])
        (self.folder / _FILES).write_text(entries)
        # Last: with it the files count.
        (self.folder / _DONE).write_text(f"{_boot() or ''}\n")

    def _goes_on(self, files: Sequence[StagedFile], data: Mapping[str, int]) -> bool:
        boot, lines = _boot(), self._lines()
        if boot is None or not lines or lines[0] != boot:
            return False
        with contextlib.suppress(OSError, ValueError, TypeError):
            known = {file.index: file for file in read_staged(self.folder)}
            return all(
                known.get(file.index) == file
                and (self.folder / file.name).stat().st_size == file.data + data[file.dtype]
                for file in files
            )
        return False

    def _lines(self) -> list[str]:
        """Return the whole lines of the journal: the number of the machine's start, and the panels that are done."""
        try:
            return (self.folder / _DONE).read_text().split("\n")[:-1]
        except FileNotFoundError:
            return []

    def done(self) -> set[str]:
        """Return the names of the panels that all files hold."""
        return set(self._lines()[1:])

    def mark_done(self, panel: str) -> None:
        """Note that all files hold a panel."""
        with (self.folder / _DONE).open("a") as stream:
            stream.write(f"{panel}\n")

    def missing_bytes(self) -> int:
        """Return how much of the files, all of which are there, takes no place on the disk yet."""
        sizes = [(self.folder / file.name).stat() for file in read_staged(self.folder)]
        return sum(max(0, found.st_size - 512 * found.st_blocks) for found in sizes)

    def file(self, index: int) -> Path:
        """Return the file of a target."""
        return self.folder / StagedFile(index, "", 0).name

    def remove(self) -> None:
        """Delete everything."""
        if self.folder.exists():
            shutil.rmtree(self.folder)


def clear_staged(root: Path, bank: str, keep: str = "") -> None:
    """Delete what earlier runs of a bank left half filled in `root`, but a folder of one name."""
    for other in root.glob(f"{_prefix(bank)}*{_SUFFIX}"):
        if other.name != keep:
            shutil.rmtree(other)


def _prefix(bank: str) -> str:
    return f".{hashlib.sha256(bank.encode()).hexdigest()[:8]}-"


def _boot() -> str | None:
    """Return what tells a start of this machine from others, or None where nothing does."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return None
