"""The compute lock and a cluster, for as long as a workflow takes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from bankdb.bank import AdapterBank, ready_adapters
from bankdb.progress import Progress
from bankdb.snapshot import one_snapshot
from bankdb.space.unfinished import clear_unfinished
from compute.cluster.client import open_cluster
from compute.cluster.options import Cluster, ClusterLike


@contextlib.contextmanager
def one_cluster(bank: AdapterBank, given: ClusterLike, progress: Progress) -> Iterator[Cluster]:
    """Have a cluster for several workflows, one after another; nothing is started for an empty bank.

    Raises
    ------
    BankNotFoundError
        The bank has no adapters.
    """
    ready_adapters(bank)
    with open_cluster(given, progress, bank.store.path) as cluster:
        yield cluster


@contextlib.contextmanager
def computing(bank: AdapterBank, given: ClusterLike, progress: Progress) -> Iterator[Cluster]:
    """Hold the compute lock, with a cluster as `open_cluster` takes it, for as long as a workflow takes.

    Raises
    ------
    BankNotFoundError
        The bank has no adapters; nothing is started for it.
    """
    with contextlib.ExitStack() as stack:
        if not isinstance(given, Cluster) and not len(bank):
            ready_adapters(bank)  # raises
        cluster = stack.enter_context(open_cluster(given, progress, bank.store.path))
        stack.enter_context(bank.computing(progress))
        stack.enter_context(one_snapshot(bank, progress))
        clear_unfinished(bank)
        yield cluster
        if cluster.started():  # this process deletes what it could not finish; a worker may have been killed
            clear_unfinished(bank)
