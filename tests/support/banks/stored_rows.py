"""An adapters' array with given rows, without a bank around it."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.adapter_store import AdapterStore
from compute.prediction.predict_all import predict_all


def write_rows(path: Path, theta: NDArray[np.float32]) -> AdapterStore:
    store = AdapterStore(path)
    store.create(theta.shape[1], "test")
    store.grow(len(theta))
    for row, vector in enumerate(theta):
        store.write(row, vector)
    return store


predict_all_stored = functools.partial(predict_all, store="float32")
"""As `predict_all`, with all N x p numbers of each way stored too."""
