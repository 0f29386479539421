"""One predicted adapter of a run: made from its coefficients, in one read of the sources that have one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.shards import read_row
from bankdb.bank import AdapterBank, ready_adapters
from bankdb.derived import row_of
from bankdb.errors import BankNotFoundError, ConflictError, listed
from bankdb.gguf.export import GgufExport
from bankdb.progress import Progress, SilentProgress
from bankdb.records import AdapterRecord
from bankdb.snapshot import of_one_snapshot
from compute.cluster.machine import memory_budget
from compute.combination.predictions import stored_dtype
from compute.combination.runs import ADAPTERS, StoredRun, stored_run
from compute.combination.tensors import beside_vector, combined_vector
from compute.merge_methods.method import SUM, MergeMethod
from compute.prediction.export import AGAIN
from compute.prediction.provenance import (
    already_there,
    chosen_dtype,
    leave_one_out,
    provenance,
    write_prediction,
)


def combined(
    bank: AdapterBank,
    adapters: Sequence[AdapterRecord],
    weights: NDArray[np.float32],
    memory: int | None = None,
    progress: Progress | None = None,
    method: MergeMethod = SUM,
) -> NDArray[np.float32]:
    """Combine adapters, reading those whose weight is not zero once; float32, shape (p,).

    Sums are made in another order than those of all predictions at once, so that the last digits may differ.
    """
    return combined_vector(
        bank, adapters, weights, beside_vector(bank, memory_budget(memory)), progress, method
    )


@of_one_snapshot
def export_prediction(
    bank: AdapterBank,
    run: int,
    name: str,
    folder: str | Path,
    *,
    dtype: str = "source",
    overwrite: bool = False,
    gguf: GgufExport | None = None,
    memory: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write one prediction of a run of `predict_all` as a folder that PEFT and vLLM load; return the folder.

    It is made from the stored coefficients, in one read of its sources.

    Parameters
    ----------
    run
        Number of the run: `PredictedBank.run.id`.
    name
        Of the target.
    dtype
        `source`: that of the adapters combined (float32 if they differ); or float32, float16, bfloat16.
    overwrite
        Replace an adapter folder that is there.
    gguf
        Write it for llama.cpp too, or alone: what `AdapterBank.gguf` returns.
    memory
        Bytes that may be used; default: half of the machine's memory.

    Raises
    ------
    BankNotFoundError
        There is no such run of predictions, or no such target in it.
    ConflictError
        A source of the run is not in the bank any more; or `folder` is there and is not to be replaced.
    AdapterError, GgufError, BankFormatError
        It cannot be written, or not exactly; or a value is too large for the dtype; a row that is needed is damaged.

    Examples
    --------
    >>> export_prediction(bank, predict_all(bank).run.id, "task003", data.with_name("one")).name
    'one'
    """
    shown, found, target = progress or SilentProgress(), stored_run(bank, run), Path(folder)
    index, adapter = _target(bank, found, name)
    weights = found.coefficients(index)
    used = np.flatnonzero(weights)
    sources, shares = _sources(bank, found, used.tolist()), weights[used]
    about = bank.export_record()
    written = chosen_dtype(dtype, sources, shares)
    record = provenance(about, name, found.metric, found.options, sources, shares, written)
    record |= leave_one_out(adapter, None if found.fitted is None else found.fitted[index])
    if already_there(target, record, overwrite, gguf) is None:
        vector = _vector(bank, found, index, sources, shares, memory, shown)
        write_prediction(about, target, vector, record, overwrite, gguf=gguf)
    return target


def _vector(
    bank: AdapterBank,
    found: StoredRun,
    index: int,
    sources: Sequence[AdapterRecord],
    shares: NDArray[np.float32],
    memory: int | None,
    progress: Progress,
) -> NDArray[np.float32]:
    """Return a prediction of a run: as it is stored, if all numbers are and none is rounded, or combined now."""
    progress.begin("combine", 1)
    if stored_dtype(bank, (found.run, found.path), len(found.sources)) == "float32":
        vector = read_row(found.path / ADAPTERS, index, AGAIN)
    else:
        vector = combined(bank, sources, shares, memory, progress, found.options.merge_method)
    progress.end()
    return vector


def _target(bank: AdapterBank, found: StoredRun, name: str) -> tuple[int, AdapterRecord]:
    """Return the number of a target in the run, and what it is now."""
    adapter = next((record for record in ready_adapters(bank) if record.name == name), None)
    known = None if adapter is None else (adapter.row, row_of(adapter))
    if adapter is None or known not in found.sources:
        what = "not in the bank" if adapter is None else "stored or replaced since"
        raise BankNotFoundError(
            f"{name}: one of the {len(found.sources)} targets of run {found.run.id} was expected, this is {what}; run "
            "`bank predict --all` again for a run of what the bank has now"
        )
    return found.sources.index(known), adapter


def _sources(bank: AdapterBank, found: StoredRun, used: Sequence[int]) -> list[AdapterRecord]:
    """Return sources of the run, if all of them are in the bank as they were."""
    there = {(record.row, row_of(record)): record for record in ready_adapters(bank)}
    gone = [f"row {found.sources[index][0]}" for index in used if found.sources[index] not in there]
    if gone:
        raise ConflictError(
            f"run {found.run.id}: {len(used)} sources were expected, {listed(gone, 3)} of them found removed or "
            "replaced; run `bank predict --all` again"
        )
    return [there[found.sources[index]] for index in used]
