"""The workflow of `bank ingest` on a cluster: workers read and tokenize datasets, the client stores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bankdb.bank import AdapterBank
from bankdb.errors import ComputeError
from bankdb.ingesting.counted import Counted, DatasetToCount, NotReachedError, count_elsewhere
from bankdb.progress import Progress, SilentProgress
from compute.cluster.client import open_cluster
from compute.cluster.machine import memory_budget
from compute.cluster.options import Cluster, ClusterLike
from compute.cluster.tasks import run_tasks

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bankdb.ingest import IngestReport
    from bankdb.public.sources import WideSource

# Of adapters that wait in the client for their datasets to be counted, at the most.
_WAITING_SHARE, _MOST_WAITING = 4, 16


@dataclass(frozen=True, slots=True)
class ClusterCounter:
    """Counts on the workers: see `bankdb.ingesting.counted.Counter`.

    Attributes
    ----------
    waiting
        Adapters that the client has room for.
    """

    cluster: Cluster
    waiting: int

    @property
    def at_once(self) -> int:
        """One for each worker's thread, as far as the client has room for their adapters."""
        return max(1, min(self.cluster.slots, self.waiting))

    def __call__(self, dataset: DatasetToCount) -> Counted:
        """Count one; threads call this side by side."""
        tasks = {dataset.name: (dataset, self.cluster.task_budget)}
        ((_, found),) = run_tasks(self.cluster, "tokenize", count_in_worker, tasks, SilentProgress())
        counted: Counted = found
        return counted


def count_in_worker(dataset: DatasetToCount, memory: int) -> Counted:
    """Count a dataset; runs in a worker. Raises ComputeError, with the worker, for what it does not find."""
    try:
        return count_elsewhere(dataset, memory)
    except NotReachedError as error:
        from distributed import get_worker

        raise ComputeError(f"worker {get_worker().address}: {error}") from error


def ingest(
    bank: AdapterBank,
    sources: WideSource | Iterable[WideSource],
    *,
    cluster: ClusterLike = None,
    memory: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> IngestReport:
    """Store pairs, as `AdapterBank.ingest` does, their datasets tokenized by workers where some are asked for.

    Adapters are read and stored by this process, which alone writes.

    Parameters
    ----------
    cluster
        Options with a scheduler or a number of workers, or a `distributed.Client`; else this process does it all.
    options
        Further ones of `AdapterBank.ingest`.

    Raises
    ------
    ComputeError
        A worker does not find the datasets or the tokenizer at the client's paths, or is another version; what was
        stored before is kept.
    """
    shown = progress or SilentProgress()
    with open_cluster(cluster, shown, bank.store.path if len(bank) else None) as used:
        counter = None
        if used.asked:
            counter = ClusterCounter(used, _waiting(bank, memory))
        return bank.ingest(sources, memory=memory, progress=shown, counter=counter, **options)


def _waiting(bank: AdapterBank, memory: int | None) -> int:
    if not len(bank):
        return _MOST_WAITING  # how large adapters are is not known yet
    return min(_MOST_WAITING, memory_budget(memory) // _WAITING_SHARE // (4 * bank.layout.size))
