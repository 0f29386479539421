"""The compute lock and a cluster, for as long as a workflow takes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from bankdb.arrays.durable import partial_files
from bankdb.bank import AdapterBank, ready_adapters
from bankdb.progress import Progress
from compute.cluster.client import open_cluster
from compute.cluster.options import Cluster, ClusterLike


@contextlib.contextmanager
def computing(bank: AdapterBank, given: ClusterLike, progress: Progress) -> Iterator[Cluster]:
    """Hold the compute lock, with a cluster as `open_cluster` takes it, for as long as a workflow takes.

    Raises
    ------
    BankNotFoundError
        The bank has no adapters; nothing is started for it.
    """
    with contextlib.ExitStack() as stack:
        if not isinstance(given, Cluster):
            ready_adapters(bank)
        cluster = stack.enter_context(open_cluster(given, progress, bank.store.path))
        stack.enter_context(bank.computing(progress))
        _clear_unfinished(bank)
        yield cluster
        _clear_unfinished(bank)


def _clear_unfinished(bank: AdapterBank) -> None:
    """Delete what killed workers left half written; whoever holds the lock, and has no task, is alone."""
    for kind in ("distances", "gram", "predictions"):
        for file in partial_files(bank.array_path(kind)):
            file.unlink(missing_ok=True)
