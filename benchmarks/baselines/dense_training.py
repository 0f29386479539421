"""The neural approach's networks trained by dense products: `6 K W^2` operations an epoch at K points and width W.

So they were trained before they were in passes over their weights, and so they still are where numba is missing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

from compute.approaches.neural import learners, network


@contextlib.contextmanager
def dense_training(*, batch: int = network.BATCH) -> Iterator[None]:
    """Train by dense products within; points in batches of another size are the same sums in another order."""
    with (
        mock.patch.object(learners, "worth_it", return_value=False),
        mock.patch.object(learners, "BATCH", batch),
        mock.patch.object(network, "BATCH", batch),
    ):
        yield
