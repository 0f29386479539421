"""The compute lock and a cluster, for as long as a workflow takes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from bankdb.bank import AdapterBank
from bankdb.derived import clear_unfinished
from bankdb.progress import Progress
from compute.cluster.client import open_cluster
from compute.cluster.options import Cluster, ClusterOptions


@contextlib.contextmanager
def computing(bank: AdapterBank, cluster: Cluster | None, progress: Progress) -> Iterator[Cluster]:
    """Hold the compute lock, with the caller's cluster or threads of this process for as long as it takes."""
    with contextlib.ExitStack() as stack:
        if cluster is None:
            cluster = stack.enter_context(open_cluster(ClusterOptions(processes=False), progress))
        stack.enter_context(bank.computing(progress))
        clear_unfinished(bank)
        yield cluster
        clear_unfinished(bank)
