"""All predictions of a bank as PEFT folders in one pass: what is combined goes straight into the files.

A safetensors file is a header and the row in the layout's order. Each panel of columns is written into the files of
all targets at its place; when all panels are there, each file gets its folder, which appears whole.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bankdb.arrays.durable import free_space, fsync_path
from bankdb.arrays.remote import Location
from bankdb.arrays.zarr_arrays import column_chunk
from bankdb.bank import AdapterBank
from bankdb.derived import digest_of
from bankdb.errors import BankError, ComputeError, PlanError
from bankdb.gguf.export import GgufExport
from bankdb.peft.folder import check_free, clear_unfinished
from bankdb.peft.header import DTYPES
from bankdb.peft.model_card import PROVENANCE_NAME
from bankdb.peft.weights import safetensors_start
from bankdb.progress import Progress
from bankdb.records import RunRecord
from bankdb.scaled_rows import sources_of
from compute.cluster.client import open_cluster
from compute.cluster.machine import core_count
from compute.cluster.options import Cluster, ClusterLike, ClusterOptions
from compute.cluster.tasks import run_tasks
from compute.combination.files import combine_into_files
from compute.combination.merged.borders import merge_of, plan_merged
from compute.combination.plan import CombinationPlan, following
from compute.combination.staged_files import StagedFiles, clear_staged
from compute.prediction.coefficients import Coefficients
from compute.prediction.export import leave_one_out_record
from compute.prediction.provenance import already_there, chosen_dtype, write_prediction
from compute.prediction.session import computing


@dataclass(frozen=True, slots=True)
class _Export:
    """What is exported, from where, to where."""

    bank: AdapterBank
    run: RunRecord
    found: Coefficients
    path: Location
    root: Path
    dtype: str
    overwrite: bool
    gguf: GgufExport | None
    progress: Progress

    @property
    def names(self) -> list[str]:
        return [adapter.name for adapter in self.found.adapters]

    @property
    def folders(self) -> list[Path]:
        return [self.root / name for name in self.names]


def save_in_one_pass(
    bank: AdapterBank,
    run: RunRecord,
    found: Coefficients,
    path: Location,
    folder: str | Path,
    *,
    dtype: str,
    overwrite: bool,
    gguf: GgufExport | None,
    cluster: ClusterLike,
    progress: Progress,
) -> list[Path]:
    """Combine every prediction of a run and write it as `folder/NAME`; what is there of the same run is kept.

    A run that was killed goes on where it was. The bytes are those that stored predictions would be written with.

    Parameters
    ----------
    run, found, path
        The run, its coefficients, and the zarr group that holds them.

    Raises
    ------
    ConflictError
        A folder is there that holds something else, and is not to be replaced; nothing is computed.
    ParameterError, PlanError
        The dtype is none of an adapter; or the work does not fit the memory, or the files the disk.
    ComputeError, AdapterError, BankFormatError
        A piece failed, a value is too large for the dtype, a file cannot be written, or a source row is damaged;
        what was done is kept beside the folders, as `.….unfinished`.
    """
    export = _Export(bank, run, found, path, Path(folder), dtype, overwrite, gguf, progress)
    with computing(bank, cluster, progress) as used:
        dtypes = _dtypes(export)
        clear_unfinished(export.root, set(export.names))
        missing = _missing(export, dtypes)
        if missing:
            with _writers(used, export, progress) as (writers, flush):
                files = _filled(export, missing, writers, flush)
            _finish(export, files, list(missing))
        else:
            clear_staged(export.root, bank.record.identity)
        places = map(str, (item.absolute() for item in export.folders))
        bank.runs.set_exported(run.id, dict(zip(export.names, zip(places, dtypes, strict=True), strict=True)))
    return export.folders


def _dtypes(export: _Export) -> list[str]:
    weights = export.found.values.astype(np.float32)
    return [chosen_dtype(export.dtype, export.found.adapters, row) for row in weights]


def _missing(export: _Export, dtypes: Sequence[str]) -> dict[int, str]:
    """Return the targets that have no folder yet, each with its dtype; raise for folders that are in the way."""
    about, missing = export.bank.export_record(), {}
    for index, folder in enumerate(export.folders):
        # What tells the same prediction is made only where there is something to compare it with.
        if (folder / PROVENANCE_NAME).exists():
            record, _ = leave_one_out_record(about, export.found, index, export.dtype)
            if already_there(folder, record, export.overwrite, export.gguf) is not None:
                continue
        check_free(folder, export.overwrite)
        missing[index] = dtypes[index]
    return missing


# -- who writes ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _writers(cluster: Cluster, export: _Export, progress: Progress) -> Iterator[tuple[Cluster, bool]]:
    """Yield a cluster whose tasks can write where an export goes, and whether each has to flush what it writes.

    Workers of a scheduler that somebody else started may be on other machines, which see the folder or do not.
    """
    root = export.root
    # Of one name in all runs, so that what a killed one left is deleted by the next.
    probe = root.absolute() / f".{export.bank.record.identity[:16]}.seen"
    try:
        probe.unlink(missing_ok=True)
        seen = cluster.blas is None or _all_see(cluster, probe)
    except OSError as error:
        raise _not_written(error, root) from error
    if seen:
        yield cluster, cluster.blas is not None
    else:
        progress.note(
            f"{root}: some workers do not see this folder, so that this process combines and writes"
        )
        with open_cluster(ClusterOptions(processes=False), progress) as own:
            yield own, False


def _all_see(cluster: Cluster, probe: Path) -> bool:
    probe.parent.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(8)
    probe.write_text(token)
    try:
        answers = cluster.client.run(_read_probe, str(probe), on_error="return")
    finally:
        probe.unlink(missing_ok=True)
    return bool(answers) and all(answer == token for answer in answers.values())


def _read_probe(path: str) -> str | None:
    """Return what is in a file; runs in a worker."""
    try:
        return Path(path).read_text()
    except OSError:
        return None


# -- panels ----------------------------------------------------------------------------------------------


def _filled(export: _Export, missing: Mapping[int, str], cluster: Cluster, flush: bool) -> StagedFiles:
    """Return the files of the targets that are missing, with all panels in them."""
    bank, layout, adapters = export.bank, export.bank.layout, export.found.adapters
    chunk = column_chunk(layout.size)
    method = export.found.options.merge_method
    plan, beside = plan_merged(len(adapters), layout.size, 1, method, chunk=chunk, budget=cluster.task_budget)
    starts = {dtype: safetensors_start(layout, dtype) for dtype in set(missing.values())}
    files = StagedFiles(export.root, bank.record.identity, _made_from(export.run, plan, starts))
    try:
        files.begin(
            {index: (dtype, starts[dtype]) for index, dtype in missing.items()},
            {dtype: DTYPES[dtype] * layout.size for dtype in starts},
        )
    except OSError as error:
        raise _not_written(error, files.folder) from error
    done, sources = files.done(), sources_of(bank, adapters, export.progress)
    columns = [range(panel.start, panel.stop) for panel in plan.panels]
    missing_panels = [
        panel
        for panel in plan.panels
        if panel.name not in done and any(panel.target_start <= one < panel.target_stop for one in missing)
    ]
    merge = merge_of(bank, adapters, sources, method, cluster, export.progress) if missing_panels else None
    tasks = {
        panel.name: (
            str(bank.store.path.absolute()),
            str(export.path.absolute()),
            str(files.folder),
            sources.within(panel.start, panel.stop, chunk),
            panel,
            following(columns, plan.panels.index(panel), cluster.slots),
            flush,
            None if merge is None else merge.within(panel.start, panel.stop),
        )
        for panel in missing_panels
    }
    if tasks:
        _check_space(files)
        ended = run_tasks(
            cluster, "export", combine_into_files, tasks, export.progress, memory=plan.memory + beside
        )
        try:
            for name, _ in ended:
                files.mark_done(name)
        except BankError:
            if not files.done():
                files.remove()  # nothing of use is in it
            raise
        except OSError as error:
            raise _not_written(error, files.folder) from error
    return files


def _made_from(run: RunRecord, plan: CombinationPlan, starts: Mapping[str, bytes]) -> str:
    """Hash all that decides a byte: in other panels, or blocks, sums are made in another order."""
    panels = [[panel.name, panel.held, panel.batch, panel.block] for panel in plan.panels]
    return digest_of(
        run=run.inputs_sha256, panels=panels, starts={name: start.hex() for name, start in starts.items()}
    )


def _check_space(files: StagedFiles) -> None:
    needed, free = files.missing_bytes(), free_space(files.folder)
    if free is not None and needed > free:
        files.remove()
        raise PlanError(
            f"{files.folder.parent}: expected {needed / 2**30:.1f} GiB free for the folders, found {free / 2**30:.1f} "
            "GiB; choose another disk, or make single adapters (`bank export --prediction`)"
        )


# -- folders ---------------------------------------------------------------------------------------------


def _finish(export: _Export, files: StagedFiles, missing: Sequence[int]) -> None:
    """Give each file its folder."""
    about = export.bank.export_record()
    export.progress.begin("folders", len(missing))
    folders = export.folders

    def finish(index: int) -> None:
        staged = files.file(index)
        record, _ = leave_one_out_record(about, export.found, index, export.dtype)
        try:
            fsync_path(staged)
        except OSError as error:
            files.remove()  # what the disk could not take is gone
            raise _not_written(error, staged) from error
        write_prediction(about, folders[index], _linked(staged), record, export.overwrite, gguf=export.gguf)
        staged.unlink(missing_ok=True)
        export.progress.advance()

    with ThreadPoolExecutor(max_workers=core_count()) as pool:
        futures = [pool.submit(finish, index) for index in missing]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    files.remove()
    export.progress.end()


def _linked(staged: Path) -> Callable[[Path], None]:
    """Return what puts a file into its folder, and leaves it where it is until the folder has its name."""

    def write(path: Path) -> None:
        path.unlink()
        try:
            os.link(staged, path)
        except OSError:  # a disk without links
            staged.replace(path)

    return write


def _not_written(error: OSError, place: Path) -> ComputeError:
    return ComputeError(
        f"{error.filename or place}: cannot be written ({error.strerror or error}); check the disk's space and "
        "permissions, and run the same command again"
    )
