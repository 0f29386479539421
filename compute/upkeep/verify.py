"""The workflow of `bank verify` on a cluster: workers read the rows, the client compares, repairs and tells."""

from __future__ import annotations

from bankdb.bank import AdapterBank
from bankdb.progress import Progress, SilentProgress
from bankdb.verify import VerifyReport
from compute.cluster.client import open_cluster
from compute.cluster.options import ClusterLike
from compute.upkeep.mapping import ClusterMapper


def verify(
    bank: AdapterBank,
    *,
    repair: bool = False,
    cluster: ClusterLike = None,
    progress: Progress | None = None,
) -> VerifyReport:
    """Check a whole bank, as `bankdb.verify` does, its rows read by workers where some are asked for.

    Blocks of what is derived are read by this process: they are small beside the rows.

    Parameters
    ----------
    repair
        See `AdapterBank.verify`; this process alone writes.
    cluster
        Options with a scheduler or a number of workers, or a `distributed.Client`; else this process reads the rows.

    Raises
    ------
    ComputeError
        A worker does not find the bank's arrays, or is another version.
    PlanError
        A task's share of the memory does not hold a row.
    """
    shown = progress or SilentProgress()
    with open_cluster(cluster, shown, bank.store.path) as used:
        mapper = None
        if used.asked and len(bank):
            # Values and their bytes as they are hashed.
            mapper = ClusterMapper(used, shown, 8 * bank.layout.size)
        return bank.verify(repair=repair, progress=shown, mapper=mapper)
