"""Somebody else's cluster, in threads of this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from distributed import Client, LocalCluster


@contextmanager
def thread_workers(workers: int = 2, **options: object) -> Iterator[Client]:
    """Yield a client of so many workers."""
    with (
        LocalCluster(n_workers=workers, processes=False, dashboard_address=None, **options) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client
