"""The compute lock and a cluster, for as long as a workflow takes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from bankdb.arrays.durable import partial_files
from bankdb.bank import AdapterBank
from bankdb.progress import Progress
from bankdb.snapshot import one_snapshot
from compute.cluster.client import open_cluster
from compute.cluster.options import Cluster, ClusterOptions


@contextlib.contextmanager
def computing(bank: AdapterBank, cluster: Cluster | None, progress: Progress) -> Iterator[Cluster]:
    """Hold the compute lock, with the caller's cluster or threads of this process for as long as it takes."""
    with contextlib.ExitStack() as stack:
        if cluster is None:
            cluster = stack.enter_context(open_cluster(ClusterOptions(processes=False), progress))
        stack.enter_context(bank.computing(progress))
        stack.enter_context(one_snapshot(bank, progress))
        _clear_unfinished(bank)
        yield cluster
        _clear_unfinished(bank)


def _clear_unfinished(bank: AdapterBank) -> None:
    """Delete what killed workers left half written; whoever holds the lock, and has no task, is alone."""
    for kind in ("distances", "gram", "predictions"):
        for file in partial_files(bank.array_path(kind)):
            file.unlink(missing_ok=True)
