"""The files of an adapter's folder, opened: whatever is not there, or no file, or cannot be read, is named.

And the memory that they are read into.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from bankdb.errors import AdapterError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PICKLES = ("adapter_model.bin", "adapter_model.pt", "pytorch_model.bin", "adapter_model.pth")


def check_folder(folder: Path) -> None:
    """Raise AdapterError unless it is a folder."""
    try:
        found = folder.stat()
    except OSError as error:
        raise AdapterError(
            f"{folder}: {error.strerror}; an adapter is a folder that PEFT's save_pretrained wrote"
        ) from None
    if not stat.S_ISDIR(found.st_mode):
        raise AdapterError(f"{folder}: a folder was expected, a file found; give the folder that holds it")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a file for reading, with its size; whatever the disk says becomes an AdapterError."""
    try:
        with path.open("rb") as file:
            yield file, os.fstat(file.fileno()).st_size
    except OSError as error:
        raise AdapterError(
            f"{path}: cannot be read: {error.strerror}; check its permissions and the disk"
        ) from error


def check_weights_file(path: Path) -> None:
    """Raise AdapterError unless the weights are there, as a file: pickles, which can run code, are named."""
    folder = path.parent
    try:
        found = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise AdapterError(
                f"{path}: a link to a file that is not there; download the adapter again"
            ) from None
        pickles = [name for name in _PICKLES if (folder / name).exists()]
        if pickles:
            raise AdapterError(
                f"{folder / pickles[0]}: {path.name} was expected, a pickle found, which can run any code; "
                "load the adapter with PEFT where you trust it and save it again"
            ) from None
        raise AdapterError(
            f"{path}: no such file; save the adapter again with PEFT's save_pretrained"
        ) from None
    except OSError as error:
        raise AdapterError(f"{path}: cannot be read: {error.strerror}; check its permissions") from error
    if not stat.S_ISREG(found.st_mode):
        raise AdapterError(f"{path}: a file was expected, a folder or device found; give PEFT's own file")


def read_exactly(file: BinaryIO, size: int, name: str, path: Path) -> bytes:
    """Read so many bytes of a tensor. Raises AdapterError where the file ends before."""
    data = file.read(size)
    if len(data) != size:
        raise AdapterError(f"{path}: ended while {name} was read; copy the file again")
    return data


def read_into(file: BinaryIO, out: memoryview, name: str, path: Path) -> None:
    """Read a tensor's bytes into memory that has their length. Raises AdapterError where the file ends before."""
    if file.readinto(out) != len(out):  # type: ignore[attr-defined]
        raise AdapterError(f"{path}: ended while {name} was read; copy the file again")


class FreedVectors:
    """Vectors that nobody reads any more, for the next adapters: to touch new memory takes longer than to read into it.

    Of several threads.
    """

    def __init__(self) -> None:
        self._free: deque[NDArray[np.float32]] = deque()

    def give(self, vector: NDArray[np.float32]) -> None:
        """Have a vector's memory used again; nobody may look at it any more."""
        if vector.flags.owndata:
            self._free.append(vector)

    def taken(self, size: int, path: Path) -> NDArray[np.float32]:
        """Return a vector of whatever values; float32, shape (size,).

        Raises
        ------
        AdapterError
            This machine has no such memory.
        """
        import numpy as np

        while self._free:
            with contextlib.suppress(IndexError):  # another thread took it
                vector = self._free.popleft()
                if vector.size == size:
                    return vector
        try:
            if 4 * size > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
                raise MemoryError
            return np.empty(size, dtype=np.float32)
        except MemoryError:
            raise AdapterError(
                f"{path}: {4 * size / 2**30:.1f} GiB of memory would be needed for its {size} parameters; "
                "ingest it on a larger machine"
            ) from None
