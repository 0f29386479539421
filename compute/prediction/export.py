"""All predictions of a bank as PEFT folders: those that are stored, and those that delta space makes as it writes."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bankdb.arrays.remote import Location
from bankdb.arrays.shards import read_row
from bankdb.bank import AdapterBank
from bankdb.errors import ParameterError
from bankdb.gguf.export import GgufExport
from bankdb.peft.folder import clear_unfinished
from bankdb.progress import Progress, SilentProgress
from bankdb.records import BankRecord, RunRecord
from compute.cluster.machine import core_count
from compute.combination.delta import delta_adapter
from compute.combination.delta_shapes import delta_form
from compute.prediction.coefficients import Coefficients
from compute.prediction.provenance import (
    RETAINED,
    already_there,
    chosen_dtype,
    form_record,
    leave_one_out,
    provenance,
    write_prediction,
)

AGAIN = "delete predictions.zarr and run the same command again"


def export_all(
    bank: AdapterBank,
    run: RunRecord,
    found: Coefficients,
    path: Location,
    folder: str | Path,
    *,
    dtype: str = "source",
    overwrite: bool = False,
    gguf: GgufExport | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Write every stored prediction as `folder/NAME`; what is there already from the same run is kept.

    Parameters
    ----------
    run, found, path
        The run, its coefficients, and the zarr group that holds the predictions.

    Raises
    ------
    ConflictError
        A folder is there that holds something else, and is not to be replaced.
    """
    progress = progress or SilentProgress()
    root = Path(folder)
    adapters = found.adapters
    progress.begin("export", len(adapters))
    about = bank.export_record()
    exported: dict[str, tuple[str, str]] = {}

    def export(index: int) -> Path:
        where, name = root / adapters[index].name, adapters[index].name
        written = _export_one(about, found, path, index, where, dtype, overwrite, gguf)
        exported[name] = (str(where.absolute()), written)
        progress.advance()
        return where

    with bank.computing(progress), ThreadPoolExecutor(max_workers=core_count()) as pool:
        clear_unfinished(root, {adapter.name for adapter in adapters})
        futures = [pool.submit(export, index) for index in range(len(adapters))]
        try:
            folders = [future.result() for future in futures]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            bank.runs.set_exported(run.id, exported)
    progress.end()
    return folders


@dataclass(frozen=True, slots=True)
class DeltaExport:
    """A folder written in delta space, its rank, and the retained energy of each module: see `DeltaAdapter`."""

    folder: Path
    rank: int
    retained: Mapping[str, float]


def export_delta(
    bank: AdapterBank,
    found: Coefficients,
    folder: str | Path,
    *,
    dtype: str = "source",
    overwrite: bool = False,
    gguf: GgufExport | None = None,
    memory: int | None = None,
    progress: Progress | None = None,
) -> list[DeltaExport]:
    """Combine every leave-one-out prediction in delta space and write it as `folder/NAME`.

    A folder that is there already from the same coefficients, rank and dtype is kept, and not made again.
    Runs in this process, as many modules at a time as there are cores and fit the memory.

    Parameters
    ----------
    found
        The coefficients; space and rank are those of their options.
    gguf
        Write them for llama.cpp too, or alone: what `AdapterBank.gguf` returns.
    memory
        Bytes that may be used; default: half of the machine's memory.

    Returns
    -------
    For each adapter its folder, its rank, and how much of each module the rank kept.

    Raises
    ------
    ConflictError
        A folder is there that holds something else, and is not to be replaced.
    ParameterError, PlanError, BankFormatError
        See `compute.combination.delta.delta_adapter`.
    """
    if found.options.space != "delta":
        raise ParameterError(f"space: delta expected, {found.options.space} found; use predict_all")
    progress = progress or SilentProgress()
    root = Path(folder)
    progress.begin("export", len(found.adapters))
    about, exported = bank.export_record(), []
    with bank.computing(progress):
        clear_unfinished(root, {adapter.name for adapter in found.adapters})
        for index, adapter in enumerate(found.adapters):
            where = root / adapter.name
            exported.append(
                _export_delta_one(bank, about, found, index, where, dtype, overwrite, gguf, memory)
            )
            progress.advance()
    progress.end()
    return exported


def _export_delta_one(
    bank: AdapterBank,
    about: BankRecord,
    found: Coefficients,
    index: int,
    folder: Path,
    dtype: str,
    overwrite: bool,
    gguf: GgufExport | None,
    memory: int | None,
) -> DeltaExport:
    """Make and write one prediction in delta space, unless it is there already."""
    sources, weights, rank = found.adapters, found.values[index], found.options.rank
    method = found.options.merge_method
    record, _ = leave_one_out_record(about, found, index, dtype)
    form = delta_form(bank, sources, weights, rank, method)
    record |= form_record(form)
    kept = already_there(folder, record, overwrite, gguf)
    if kept is not None and RETAINED in kept:
        return DeltaExport(folder, form.layout.rank, kept[RETAINED])
    made = delta_adapter(bank, sources, weights, rank, method=method, memory=memory)
    record[RETAINED] = dict(made.retained)
    write_prediction(about, folder, made.vector, record, overwrite, form, gguf)
    return DeltaExport(folder, form.layout.rank, made.retained)


def _export_one(
    about: BankRecord,
    found: Coefficients,
    path: Location,
    index: int,
    folder: Path,
    dtype: str,
    overwrite: bool,
    gguf: GgufExport | None,
) -> str:
    """Write a stored prediction, unless it is there already; return the dtype of its weights."""
    record, written = leave_one_out_record(about, found, index, dtype)
    if already_there(folder, record, overwrite, gguf) is not None:
        return written
    vector = read_row(path / "adapters", index, AGAIN)
    write_prediction(about, folder, vector, record, overwrite, gguf=gguf)
    return written


def leave_one_out_record(
    about: BankRecord, found: Coefficients, index: int, dtype: str
) -> tuple[dict[str, Any], str]:
    """Return the provenance of one of all predictions, and the dtype of its weights.

    Raises
    ------
    ParameterError
        The dtype is none of an adapter.
    """
    target, weights = found.adapters[index], found.values[index].astype(np.float32)
    written = chosen_dtype(dtype, found.adapters, weights)
    record = provenance(about, target.name, found.metric, found.options, found.adapters, weights, written)
    record |= leave_one_out(target, None if found.fitted is None else found.fitted[index])
    return record, written
