"""The pass before trimming: which magnitudes of each tensor of each source are kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.adapter_store import AdapterStore
from bankdb.arrays.remote import located
from bankdb.bank import AdapterBank
from bankdb.errors import PlanError
from bankdb.peft.layout import B_SUFFIX, TensorSpec
from bankdb.progress import Progress
from bankdb.records import AdapterRecord
from bankdb.scaled_rows import Sources, read_scaled_into
from compute.budget import mebibytes
from compute.cluster.memory import give_back
from compute.cluster.options import Cluster
from compute.cluster.tasks import run_tasks
from compute.combination.merged.panels import STRIP, PanelMerge, TensorColumns, check_source
from compute.combination.merged.single import tensor_groups
from compute.combination.plan import CombinationPlan, plan_combination
from compute.merge_methods.dropping import drop_key
from compute.merge_methods.method import MergeMethod
from compute.merge_methods.trimming import border_of

Float32 = NDArray[np.float32]

# Of a task: sources whose tensors it looks through; and columns read at once, where tensors are smaller.
_SOURCES = 16
_WIDTH = 1 << 18
# Of a column that is read: itself, its magnitudes twice.
_COLUMN_BYTES = 3 * 4
# Targets of a panel that are multiplied at once, at the most.
_BLOCK = 128


def merge_of(
    bank: AdapterBank,
    adapters: Sequence[AdapterRecord],
    sources: Sources,
    method: MergeMethod,
    cluster: Cluster,
    progress: Progress,
) -> PanelMerge | None:
    """Return how sources are merged, all columns; None for the weighted sum. What is trimmed is read once for it.

    Raises
    ------
    PlanError
        The largest tensor does not fit a task's memory.
    ComputeError, BankFormatError
        A piece failed, or a row is damaged.
    """
    if method.is_linear:
        return None
    specs = bank.layout.tensors
    found = PanelMerge(
        method,
        tuple(drop_key(method.seed or 0, record.row_sha256) for record in adapters),
        sources.ratios,
        tuple(TensorColumns(spec.offset, spec.columns.stop, spec.name.endswith(B_SUFFIX)) for spec in specs),
    )
    if not method.trims:
        return found
    thresholds = np.empty((len(adapters), len(specs)), dtype=np.float32)
    stops = np.empty(thresholds.shape, dtype=np.int64)
    needed = _COLUMN_BYTES * max(_WIDTH, *(spec.size for spec in specs))
    if needed > cluster.task_budget:
        raise PlanError(
            f"merge {method.name}: a tensor needs {mebibytes(needed)}, but a task may use "
            f"{mebibytes(cluster.task_budget)}; raise --memory, or lower --workers"
        )
    read = found.as_read(sources)
    ranges = [
        range(first, min(first + _SOURCES, len(adapters))) for first in range(0, len(adapters), _SOURCES)
    ]
    tasks = {
        f"{some.start}-{some.stop}": (str(bank.store.path.absolute()), read, some, specs, method.density)
        for some in ranges
    }
    # As a core of some years ago does it.
    seconds = len(adapters) * bank.layout.size * 2e-8
    for name, (of_sources, up_to) in run_tasks(
        cluster, "thresholds", borders_of, tasks, progress, memory=needed, seconds=seconds
    ):
        first, last = map(int, name.split("-"))
        thresholds[first:last], stops[first:last] = of_sources, up_to
    return PanelMerge(method, found.keys, found.ratios, found.tensors, thresholds, stops)


def borders_of(
    adapters_path: str,
    sources: Sources,
    which: Sequence[int],
    tensors: Sequence[TensorSpec],
    density: float,
) -> tuple[Float32, NDArray[np.int64]]:
    """Return thresholds and stops of some sources, shape (K, T) each; runs in a worker. See `Border`.

    Raises
    ------
    BankFormatError
        A row is damaged.
    """
    give_back()
    store = AdapterStore(located(adapters_path))
    thresholds = np.empty((len(which), len(tensors)), dtype=np.float32)
    stops = np.empty(thresholds.shape, dtype=np.int64)
    for place, source in enumerate(which):
        index = 0
        for group in tensor_groups(tensors, _WIDTH):
            start, stop = group[0].offset, group[-1].columns.stop
            row = np.empty((1, stop - start), dtype=np.float32)
            read_scaled_into(row, store, sources, [source], start, stop)
            check_source(row[0], store, int(sources.rows[source]))
            for tensor in group:
                border = border_of(row[0, tensor.offset - start : tensor.columns.stop - start], density)
                thresholds[place, index], stops[place, index] = border.threshold, border.stop
                index += 1
    return thresholds, stops


def plan_merged(
    targets: int, parameters: int, runs: int, method: MergeMethod, *, chunk: int, budget: int
) -> tuple[CombinationPlan, int]:
    """Plan predictions by a merge method; return the plan, and the bytes that a task takes beside what that counts.

    Raises
    ------
    PlanError
        Not even one shard of targets fits the budget; or by TIES the sources of a panel do not.
    """
    if method.is_linear:
        return plan_combination(targets, parameters, runs, chunk=chunk, budget=budget), 0
    beside = _beside(targets, min(chunk, parameters), method)
    plan = plan_combination(targets, parameters, runs, chunk=chunk, budget=max(budget - beside, 0))
    if method.elects and not all(panel.held for panel in plan.panels):
        raise PlanError(
            f"merge {method.name}: {targets} sources of a panel of {chunk} columns need about "
            f"{mebibytes(4 * chunk * targets + beside)}, but a task may use {mebibytes(budget)}; raise --memory, or "
            "lower --workers"
        )
    return plan, beside


def _beside(sources: int, chunk: int, method: MergeMethod) -> int:
    """Return the bytes for masks of one source; by TIES also for what its products are made of, of a strip."""
    masks = 16 * chunk
    if not method.elects:
        return masks
    block = min(_BLOCK, sources)
    return masks + min(STRIP, chunk) * (20 * sources + 48 * block) + 16 * block * sources
