"""What is left out together: a target alone, or with every dataset of its group.

Datasets of one group share a source. Where one of them is predicted from the others, its figure says how well
an adapter is predicted whose near relatives are in the bank; with the group left out, how well one without.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bankdb.errors import ParameterError

LEAVE_OUT = ("adapter", "group")


def units_of(groups: Sequence[str | None], leave_out: str) -> NDArray[np.intp]:
    """Number of the unit of each of N datasets, from 0 in the order of their first rows; shape (N,).

    With `adapter` each dataset is a unit of its own; with `group` those of one group are, and a dataset
    without a group (None) is one of its own.

    Raises
    ------
    ParameterError
        For another `leave_out`.
    """
    if leave_out not in LEAVE_OUT:
        raise ParameterError(
            f"leave_out: expected {' or '.join(LEAVE_OUT)}, found {leave_out!r}; use one of them"
        )
    if leave_out == "adapter":
        return np.arange(len(groups), dtype=np.intp)
    numbers: dict[tuple[str, str | int], int] = {}
    units = [
        numbers.setdefault(("row", row) if group is None else ("group", group), len(numbers))
        for row, group in enumerate(groups)
    ]
    return np.asarray(units, dtype=np.intp)


def same_unit(units: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Whether two datasets are left out together; shape (N, N), true on the diagonal."""
    same: NDArray[np.bool_] = units[:, None] == units
    return same


def excluded_sources(
    names: Sequence[str], groups: Sequence[str | None], leave_out: str
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Units of N datasets, shape (N,), and the sources that each must not use, shape (N, N).

    Raises
    ------
    ParameterError
        Where nothing is left for a target, which is named.
    """
    units = units_of(groups, leave_out)
    excluded = same_unit(units)
    empty = np.flatnonzero(excluded.all(axis=1))
    if len(empty):
        target = int(empty[0])
        raise ParameterError(
            f"leave-out {leave_out}: {names[target]} needs a source outside of its group"
            f" {groups[target]!r}, found all {len(names)} datasets in it; leave out adapters, or ingest others"
            if leave_out == "group" and len(names) > 1
            else f"leave-out {leave_out}: {names[target]} needs another adapter, found none; ingest more"
        )
    return units, excluded
