"""The A factors of a bank's adapters, compared: a sample of each is kept, and what they have in common said.

Of A as PEFT begins it each entry is drawn alone, so that a part of it tells what the whole would: of 512 entries the
cosine of two adapters of different seeds is 0 with a deviation of 1/23. What is kept is small, since each ingest reads
that of all: 41 MB of 20,000 adapters. Adapters that come are compared with all that are there, and with each other: one
more with 20,000 in no time, and 20,000 at once in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.adapter_store import AdapterStore
from bankdb.arrays.chunks import read_chunks, write_chunks
from bankdb.arrays.metadata import ArrayLayout
from bankdb.derived import find_array, make_array, set_attributes
from bankdb.errors import BankError, one_line
from bankdb.initialisation.shared import (
    GROUPS,
    LISTED,
    NEAREST,
    SHARED,
    Initialisations,
    advice_of,
    keys_of,
    known_of,
    place_of,
)
from bankdb.peft.layout import AdapterLayout, modules_of
from bankdb.progress import Progress, SilentProgress
from bankdb.storage.stored_bank import StoredBank

Samples = NDArray[np.float32]

# Of A factors of more than 512 entries, so many runs of so many are read, at even distances.
_RUNS, _RUN = 8, 64
# Columns with less than a chunk between them are read at once, of rows of at most so many values together.
_GAP, _AT_ONCE = 131_072, 1 << 24
_MOST_ADAPTERS = 1_000_000
# Adapters of a chunk: one that comes writes one chunk anew, and all are read from few files.
_CHUNK = 64
_BLOCK = 256


class TakenSamples:
    """Samples of adapters, by row, taken as they are stored: nothing of these is read again."""

    def __init__(self, bank: StoredBank) -> None:
        self._bank = bank
        self._columns: NDArray[np.int64] | None = None
        self._taken: dict[int, Samples] = {}

    def take(self, row: int, vector: NDArray[np.float32]) -> None:
        """Keep a sample of a vector, shape (p,), that is stored as this row."""
        if self._columns is None:
            self._columns = sampled_columns(self._bank.layout)
        self._taken[row] = vector[self._columns]

    def of(self, rows: Sequence[int], columns: NDArray[np.int64]) -> Samples:
        """Return samples of rows, shape (rows, columns): those that were taken, and others as they are read."""
        made = np.empty((len(rows), len(columns)), dtype=np.float32)
        others = [place for place, row in enumerate(rows) if row not in self._taken]
        made[others] = _read(self._bank.store, [rows[place] for place in others], columns)
        for place, row in enumerate(rows):
            if row in self._taken:
                made[place] = self._taken[row]
        return made


def compare(
    bank: StoredBank, progress: Progress, taken: TakenSamples | None = None
) -> Initialisations | None:
    """Compare the A factors of the adapters that were not compared yet; None while another process computes.

    Raises
    ------
    BankFormatError
        A row, or what was kept of the others, is damaged.
    """
    with bank.nobody_computing() as alone:
        if not alone:
            return None
        keys = keys_of(bank)
        if keys:
            _compare(bank, keys, progress, taken or TakenSamples(bank))
        return known_of(bank, keys)


def compared_advice(bank: StoredBank, progress: Progress, taken: TakenSamples | None = None) -> str:
    """Compare the adapters that came, and say what averaging their factors means; an error is said, not raised."""
    try:
        found = compare(bank, progress, taken)
        return advice_of(bank, bank.adapters()) if found is None else found.advice()
    except (BankError, OSError) as error:  # what was stored is stored
        return f"not compared: {one_line(error)}"


def _compare(bank: StoredBank, rows: Mapping[int, str], progress: Progress, taken: TakenSamples) -> None:
    """Compare the adapters of some rows, each with what tells it from all others."""
    layout = bank.layout
    path, made_from = place_of(bank, str(bank.record.layout))
    columns = sampled_columns(layout)
    array = ArrayLayout((_MOST_ADAPTERS, len(columns)), (_CHUNK, len(columns)), "float32")
    nothing: dict[str, list[Any]] = {LISTED: [], GROUPS: [], NEAREST: []}
    about = find_array(bank, path, array, made_from, progress) or nothing
    listed, keys = list(about[LISTED]), list(rows.values())
    if listed == keys:
        return
    kept = read_chunks(path, [slice(len(listed)), slice(None)], delete=path) if listed else ()
    known = dict(zip(listed, kept, strict=True))
    new = {key: row for row, key in rows.items() if key not in known}
    known |= dict(zip(new, taken.of(list(new.values()), columns), strict=True))
    samples = np.stack([known[key] for key in keys]).astype(np.float32, copy=False)
    first = len(listed)
    if about is nothing or keys[:first] != listed:
        # What is kept is of the adapters that are there, in their order: so it is the same however the bank came to be.
        make_array(bank, path, array, made_from, nothing)
        first, about = 0, nothing
    begin = first // _CHUNK * _CHUNK
    write_chunks(path, [begin, 0], samples[begin:])
    groups, nearest = grouped(samples, first, list(about[GROUPS]), list(about[NEAREST]), progress)
    set_attributes(bank, path, **{LISTED: keys, GROUPS: groups, NEAREST: nearest})


def sampled_columns(layout: AdapterLayout) -> NDArray[np.int64]:
    """Return the columns of a row that are compared, ascending: of its A factors all, or runs at even distances."""
    modules = modules_of(layout)
    sizes = np.asarray([module.a.size for module in modules])
    offsets, ends = np.asarray([module.a.offset for module in modules]), np.cumsum(sizes)
    total = int(ends[-1])
    if total <= _RUNS * _RUN:
        positions = np.arange(total)
    else:
        positions = (np.arange(_RUNS)[:, None] * total // _RUNS + np.arange(_RUN)).reshape(-1)
    module = np.searchsorted(ends, positions, side="right")
    return np.sort(offsets[module] + positions - (ends - sizes)[module])


def grouped(
    samples: Samples,
    first: int,
    groups: list[int],
    nearest: list[float | None],
    progress: Progress | None = None,
) -> tuple[list[int], list[float | None]]:
    """Return which adapters share an initialisation, and the cosine of each to the nearest other.

    Whoever is near one of a group is of that group. O(M N k) for M new ones of N with k entries each; two new ones are
    compared once.

    Parameters
    ----------
    samples
        float32, shape (N, k).
    first
        How many of them were compared before: `groups` and `nearest` are theirs.
    """
    norms = np.linalg.norm(samples, axis=1, keepdims=True)
    unit = samples / np.where(norms > 0, norms, 1)
    label = np.asarray([*groups, *range(first, len(unit))], dtype=np.int64)
    best = np.asarray([-2.0 if one is None else one for one in nearest] + [-2.0] * (len(unit) - first))
    progress = progress or SilentProgress()
    progress.begin("compare initialisations", -(-(len(unit) - first) // _BLOCK))
    for start in range(first, len(unit), _BLOCK):
        stop = min(start + _BLOCK, len(unit))
        cosines = unit[start:stop] @ unit[:stop].T
        own = np.arange(len(cosines))
        cosines[own, start + own] = -2.0
        best[start:stop] = np.maximum(best[start:stop], cosines.max(axis=1))
        best[:stop] = np.maximum(best[:stop], cosines.max(axis=0))
        _join(label[:stop], start, cosines >= SHARED)
        progress.advance()
    progress.end()
    return label.tolist(), [None if one < -1.5 else round(float(one), 6) for one in best.tolist()]


def _join(label: NDArray[np.int64], start: int, near: NDArray[np.bool_]) -> None:
    """Give adapters and those near them one label, in place, the smallest; `near[i, j]` is of `start + i` and j.

    A look at all labels for each adapter, and two for each that changes group: no list of pairs, which may be all.
    """
    for place, alike in enumerate(near, start):
        while (apart := alike & (label != label[place])).any():
            one, other = sorted((label[place], label[apart.argmax()]))
            label[label == other] = one


def _read(store: AdapterStore, rows: Sequence[int], columns: NDArray[np.int64]) -> Samples:
    """Read some columns of some rows, shape (rows, columns)."""
    made = np.empty((len(rows), len(columns)), dtype=np.float32)
    breaks = np.flatnonzero(np.diff(columns) >= _GAP) + 1
    for part in np.split(np.arange(len(columns)), breaks):
        start, stop = int(columns[part[0]]), int(columns[part[-1]]) + 1
        most = max(1, _AT_ONCE // (stop - start))
        for begin in range(0, len(rows), most):
            some = list(rows[begin : begin + most])
            panel = np.empty((len(some), stop - start), dtype=np.float32)
            store.read_into(some, start, stop, panel)
            made[begin : begin + len(some), part] = panel[:, columns[part] - start]
    return made
