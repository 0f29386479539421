"""The order in which llama.cpp keeps the rows of q and k; pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.intp]


def neighbours(heads: int, rows: int) -> Rows:
    """Return which row of transformers' comes at each place where neighbours are turned.

    A head of d rows has pairs (j, j + d/2) in transformers, and (2j, 2j + 1) there.

    Parameters
    ----------
    heads
        Of the projection: those of k are the key-value heads.
    rows
        Of the projection, a multiple of `2 * heads`.

    Returns
    -------
    A permutation of `range(rows)`, shape (rows,).

    Examples
    --------
    >>> neighbours(2, 8).tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    return np.arange(rows).reshape(heads, 2, -1).swapaxes(1, 2).reshape(rows)


def split_groups(heads: int, key_value_heads: int, rows: int) -> tuple[Rows, Rows, Rows]:
    """Return the rows of q, k and v in InternLM2's one projection, q and k in the order of `neighbours`.

    There each key-value head has a group of its query heads, then its key, then its value.

    Parameters
    ----------
    rows
        Of the projection, a multiple of `2 * (heads + 2 * key_value_heads)`; heads a multiple of key_value_heads.
    """
    groups = np.arange(rows).reshape(key_value_heads, heads // key_value_heads + 2, -1)
    q, k, v = (part.reshape(-1) for part in (groups[:, :-2], groups[:, -2], groups[:, -1]))
    return q[neighbours(heads, q.size)], k[neighbours(key_value_heads, k.size)], v
