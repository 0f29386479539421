"""What trainings on a bank go on from after they were interrupted, beside the networks that are kept.

Coefficients of finished folds, and the state of the training that runs, in two places by turns: one is whole when the
other is being written. Nothing is kept before it is worth the time of writing it. There is one unfinished training of
networks in a bank: what another left is deleted when one begins. A state is up to `16 W^2` bytes at width W, and takes
as much memory for a moment when it is gone on from.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.chunks import read_chunks
from bankdb.arrays.durable import folders_in
from bankdb.arrays.remote import Location
from bankdb.bank import AdapterBank
from bankdb.derived import delete_others, digest_of, find_group, read_group, write_group
from bankdb.progress import Progress, SilentProgress
from compute.approaches.neural.workspace import Rows, State
from compute.types import FloatArray

LEAST_SECONDS = 1.0
"""Seconds of training after which something is worth keeping."""
_SHARE = 0.1
"""Writing takes at most about this share of the time."""
_SECONDS_A_BYTE = 1 / 300e6
"""Of writing, as long as no large array was written."""
_VERSION = 1
_PREFIX = "part-"
_COEFFICIENTS = "coefficients"
_SMALL = "small"
"""Of a state: all arrays that are smaller than `_LARGE` in one, so that few files are flushed."""
_LARGE = 1 << 20


class UnfinishedTraining:
    """Of one metric and one set of options; see `compute.approaches.neural.workspace.Kept`.

    Parameters
    ----------
    path
        Where the network will be; what is unfinished lies beside it.
    made_from
        Hash of everything that changes a number of the training.
    """

    def __init__(self, bank: AdapterBank, path: Location, made_from: str, progress: Progress) -> None:
        self._bank, self._root, self._progress = bank, path.parent, progress
        self._key = digest_of(network=made_from, version=_VERSION)
        self._prefix = f"{_PREFIX}{self._key[:8]}"
        self._states = [self._place(f"state {turn}") for turn in range(2)]
        self._written, self._seconds_a_byte = time.monotonic(), _SECONDS_A_BYTE

    def state(self, rows: Rows) -> State | None:
        """Return the newest state that was kept of the training on these rows; None without one."""
        made_from = self._made_from("state", rows)
        found = {self._epochs(place): place for place in self._states if self._holds(place, made_from)}
        if not found:
            return None
        newest = max(found)
        self._states.sort(key=lambda place: place == found[newest])  # which is written last
        self._progress.note(f"{found[newest]}: training of a network goes on after its epoch {newest}")
        arrays = read_group(found[newest])
        return _unpacked(arrays.pop(_SMALL)) | arrays

    def keep_state(self, rows: Rows, state: State) -> None:
        """Write it in place of the one before the last, if that is worth it."""
        if not self._due(state):
            return
        small = {name: array for name, array in state.items() if array.nbytes < _LARGE}
        large = {name: array for name, array in state.items() if name not in small}
        self._write(self._states[0], self._made_from("state", rows), {_SMALL: _packed(small), **large})
        self._states.reverse()

    def coefficients(self, rows: Rows) -> FloatArray | None:
        """Return the coefficients that were kept of these targets, shape (len(rows), N); None without them."""
        made_from = self._made_from(_COEFFICIENTS, rows)
        place = self._place(made_from)
        if not self._holds(place, made_from):
            return None
        self._progress.note(f"{place}: coefficients of {len(rows)} adapters of a training before are there")
        return read_chunks(place / _COEFFICIENTS, delete=place)

    def keep_coefficients(self, rows: Rows, values: FloatArray) -> None:
        """Write coefficients of these targets, shape (len(rows), N), if that is worth it."""
        if not self._due({_COEFFICIENTS: values}):
            return
        made_from = self._made_from(_COEFFICIENTS, rows)
        self._write(self._place(made_from), made_from, {_COEFFICIENTS: values})

    def forget_others(self) -> None:
        """Delete what trainings of other networks left."""
        self._delete(keep=self._prefix)

    def discard(self) -> None:
        """Delete all that is unfinished."""
        self._delete(keep=None)

    def _due(self, arrays: State) -> bool:
        """Return whether so much time has passed that writing these is a small share of it."""
        writing = _size(arrays) * self._seconds_a_byte
        return time.monotonic() - self._written >= max(LEAST_SECONDS, writing / _SHARE)

    def _write(self, place: Location, made_from: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        started = time.monotonic()
        write_group(self._bank, place, made_from, arrays)
        self._written = time.monotonic()
        if _size(arrays) >= _LARGE:
            self._seconds_a_byte = (self._written - started) / _size(arrays)

    def _holds(self, place: Location, made_from: str) -> bool:
        return find_group(self._bank, place, SilentProgress(), made_from)

    def _epochs(self, place: Location) -> int:
        """Epochs that a state has behind it; steps of Adam, of which each makes one."""
        return int(_unpacked(read_chunks(place / _SMALL, delete=place))["steps"][0])

    def _place(self, name: str) -> Location:
        return self._root / f"{self._prefix}{digest_of(of=name)[:8]}"

    def _made_from(self, kind: str, rows: Rows) -> str:
        return digest_of(key=self._key, kind=kind, rows=np.asarray(rows).tolist())

    def _delete(self, keep: str | None) -> None:
        names = [place.name for place in folders_in(self._root)]
        unfinished = {name for name in names if name.startswith(_PREFIX)}
        if keep is not None:
            unfinished -= {name for name in names if name.startswith(keep)}
        delete_others(self._bank, self._root, keep=set(names) - unfinished)


def _size(arrays: State) -> int:
    return sum(array.nbytes for array in arrays.values())


def _packed(arrays: State) -> NDArray[np.uint32]:
    """Return arrays of numbers of four and eight bytes as a safetensors file, which is of whole words then."""
    from safetensors.numpy import save

    return np.frombuffer(
        save({name: np.ascontiguousarray(array) for name, array in arrays.items()}), np.uint32
    )


def _unpacked(packed: NDArray[np.uint32]) -> dict[str, NDArray[Any]]:
    """Return the arrays again."""
    from safetensors.numpy import load

    return load(packed.tobytes())
