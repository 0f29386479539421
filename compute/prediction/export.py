"""Predicted adapters as PEFT folders, with a model card and a provenance record."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.zarr_arrays import open_array, read_region
from bankdb.bank import AdapterBank
from bankdb.errors import BankError, BankFormatError, ConflictError, ParameterError
from bankdb.peft.config import render_config
from bankdb.peft.folder import clear_unfinished, write_adapter_folder
from bankdb.peft.model_card import model_card
from bankdb.peft.weights import write_safetensors
from bankdb.progress import Progress, SilentProgress
from bankdb.records import AdapterRecord, BankRecord, library_versions, published
from bankdb.strict_json import parse_object
from compute.approaches.options import PredictionOptions
from compute.cluster.machine import core_count
from compute.combination.delta import DeltaForm, delta_adapter, delta_form
from compute.prediction.coefficients import Coefficients
from compute.prediction.predict import Prediction
from compute.prediction.predict_all import PredictedBank

DTYPES = ("source", "float32", "float16", "bfloat16")
PROVENANCE = "provenance.json"
RETAINED = "retained_energy"


def export_prediction(
    bank: AdapterBank,
    prediction: Prediction,
    folder: str | Path,
    *,
    dtype: str = "source",
    overwrite: bool = False,
) -> Path:
    """Write one prediction as a folder that PEFT and vLLM load; return the folder.

    Parameters
    ----------
    dtype
        `source`: that of the adapters combined (float32 if they differ); or float32, float16, bfloat16.
    overwrite
        Replace an adapter folder that is there.

    Raises
    ------
    ConflictError
        `folder` is there and is not to be replaced.
    AdapterError
        It cannot be written, or a value is too large for the dtype.
    """
    weights = prediction.coefficients.astype(np.float32)
    written = _dtype(dtype, prediction.adapters, weights)
    record = _provenance(
        bank.record,
        prediction.name,
        prediction.metric,
        prediction.options,
        prediction.adapters,
        weights,
        written,
    )
    record["dataset"] = {
        "content_sha256": prediction.dataset.sha256,
        "examples": len(prediction.dataset),
        "tokens": prediction.tokens,
    }
    record["left_out"] = list(prediction.left_out)
    if prediction.fitted is not None:
        record["fitted"] = prediction.fitted
    target = Path(folder)
    form = None
    if prediction.delta is not None:
        form = prediction.delta.form
        record |= {**_form_record(form), RETAINED: dict(prediction.delta.retained)}
    _write(bank, target, prediction.vector, record, written, overwrite, form)
    return target


def export_all(
    bank: AdapterBank,
    predicted: PredictedBank,
    folder: str | Path,
    *,
    dtype: str = "source",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[Path]:
    """Write every prediction as `folder/NAME`; what is there already from the same run is kept.

    Raises
    ------
    ConflictError
        A folder is there that holds something else, and is not to be replaced.
    """
    progress = progress or SilentProgress()
    root = Path(folder)
    adapters = predicted.coefficients.adapters
    progress.begin("export", len(adapters))

    def export(index: int) -> Path:
        where, name = root / adapters[index].name, adapters[index].name
        written = _export_one(bank, predicted, index, where, dtype, overwrite)
        bank.runs.set_exported(predicted.run.id, name, str(where.absolute()), written)
        progress.advance()
        return where

    with bank.computing(progress), ThreadPoolExecutor(max_workers=core_count()) as pool:
        for adapter in adapters:
            clear_unfinished(root / adapter.name)
        futures = [pool.submit(export, index) for index in range(len(adapters))]
        try:
            folders = [future.result() for future in futures]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
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
    memory
        Bytes that may be used; default: half of the machine's memory.

    Raises
    ------
    ConflictError
        A folder is there that holds something else, and is not to be replaced.
    ParameterError, PlanError, BankFormatError
        See `compute.combination.delta.delta_adapter`.
    """
    if found.options.space != "delta":
        raise ParameterError(f"space: delta expected, {found.options.space} found; use export_all")
    progress = progress or SilentProgress()
    root = Path(folder)
    progress.begin("export", len(found.adapters))
    exported = []
    with bank.computing(progress):
        for index, adapter in enumerate(found.adapters):
            clear_unfinished(root / adapter.name)
            exported.append(
                _export_delta_one(bank, found, index, root / adapter.name, dtype, overwrite, memory)
            )
            progress.advance()
    progress.end()
    return exported


def _export_delta_one(
    bank: AdapterBank,
    found: Coefficients,
    index: int,
    folder: Path,
    dtype: str,
    overwrite: bool,
    memory: int | None,
) -> DeltaExport:
    """Make and write one prediction in delta space, unless it is there already."""
    sources, weights, rank = found.adapters, found.values[index], found.options.rank
    record, written = _leave_one_out(bank, found, index, dtype)
    form = delta_form(bank, sources, weights, rank)
    record |= _form_record(form)
    kept = _already_there(folder, record, overwrite)
    if kept is not None and RETAINED in kept:
        return DeltaExport(folder, form.layout.rank, kept[RETAINED])
    made = delta_adapter(bank, sources, weights, rank, memory=memory)
    record[RETAINED] = dict(made.retained)
    _write(bank, folder, made.vector, record, written, overwrite, form)
    return DeltaExport(folder, form.layout.rank, made.retained)


def _form_record(form: DeltaForm) -> dict[str, Any]:
    return {
        "rank": form.layout.rank,
        "alpha": form.alpha,
        "use_rslora": form.use_rslora,
        "scaling": form.scaling,
    }


def _export_one(
    bank: AdapterBank, predicted: PredictedBank, index: int, folder: Path, dtype: str, overwrite: bool
) -> str:
    """Write a stored prediction, unless it is there already; return the dtype of its weights."""
    found = predicted.coefficients
    target = found.adapters[index]
    record, written = _leave_one_out(bank, found, index, dtype)
    if _already_there(folder, record, overwrite) is not None:
        return written
    again = "delete predictions.zarr and run the same command again"
    vector = read_region(open_array(predicted.path / "adapters"), np.s_[index, :], again)
    if not np.isfinite(vector).all():
        raise BankFormatError(f"{predicted.path}: the prediction for {target.name} lacks shards; {again}")
    _write(bank, folder, vector, record, written, overwrite)
    return written


def _leave_one_out(
    bank: AdapterBank, found: Coefficients, index: int, dtype: str
) -> tuple[dict[str, Any], str]:
    """Return the provenance of one of all predictions, and the dtype of its weights."""
    target, weights = found.adapters[index], found.values[index].astype(np.float32)
    written = _dtype(dtype, found.adapters, weights)
    record = _provenance(
        bank.record, target.name, found.metric, found.options, found.adapters, weights, written
    )
    record["leave_one_out"] = True
    if found.fitted is not None:
        record["fitted"] = found.fitted[index]
    record["dataset"] = {
        "content_sha256": target.content_sha256,
        "examples": target.examples,
        "tokens": target.tokens,
    }
    return record, written


def _already_there(folder: Path, record: Mapping[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """Return the record in the folder, if it holds this very prediction: a folder appears whole."""
    try:
        found = (folder / PROVENANCE).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    same = _same_prediction(found, record) if (folder / "adapter_model.safetensors").is_file() else None
    if same is None and not overwrite:
        raise ConflictError(
            f"{folder}: holds an adapter from another prediction; choose another folder, or pass --overwrite"
        )
    return same


def _same_prediction(text: bytes, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the record that is written, if it is this one but for what the making of it found out."""
    try:
        found = parse_object(text.decode())
    except ValueError:
        return None
    given = {key: value for key, value in found.items() if key != RETAINED}
    return found if _json(given) == _json(record) else None


def _dtype(asked: str, adapters: Sequence[AdapterRecord], weights: NDArray[np.float32]) -> str:
    if asked not in DTYPES:
        raise ParameterError(f"dtype: expected one of {', '.join(DTYPES)}, found {asked!r}")
    if asked != "source":
        return asked
    used = {adapters[index].dtype for index in np.flatnonzero(weights).tolist()}
    only = used.pop()
    # A file of several dtypes, or sources of several: the one that holds them all.
    return "float32" if used or only == "mixed" else only


def _provenance(
    bank: BankRecord,
    name: str,
    metric: str,
    options: PredictionOptions,
    adapters: Sequence[AdapterRecord],
    weights: NDArray[np.float32],
    dtype: str,
) -> dict[str, Any]:
    """Everything that determines a prediction. Depends on that alone: no time, no machine, and no path of it."""
    used = sorted(np.flatnonzero(weights).tolist(), key=lambda index: (-weights[index], adapters[index].name))
    double = weights.astype(np.float64)
    return {
        "name": name,
        "base_model": bank.base_model,
        "base_model_revision": bank.base_model_revision,
        "tokenizer": {"name": published(bank.tokenizer_name), "fingerprint": bank.tokenizer_fingerprint},
        "text_rule": bank.text_rule,
        "metric": metric,
        "approach": options.approach,
        "parameters": options.parameters(),
        "effective_sources": float(1 / np.sum(double**2)),
        "rank": adapters[0].rank,
        "alpha": bank.alpha,
        "use_rslora": bank.use_rslora,
        "scaling": bank.scaling,
        "dtype": dtype,
        "versions": library_versions(),
        "sources": [_source(adapters[index], float(weights[index])) for index in used],
    }


def _source(adapter: AdapterRecord, coefficient: float) -> dict[str, Any]:
    return {
        "name": adapter.name,
        "coefficient": coefficient,
        "source": published(adapter.source),
        "revision": adapter.revision,
        "sha256": adapter.source_sha256,
        "scaling": adapter.scaling,
        "licence": adapter.licence,
        "group": adapter.group,
        "dataset_source": published(adapter.dataset_source),
        "dataset_revision": adapter.dataset_revision,
        "dataset_sha256": adapter.content_sha256,
    }


def _json(record: Mapping[str, Any]) -> str:
    return json.dumps(record, indent=2, ensure_ascii=False) + "\n"


def _write(
    bank: AdapterBank,
    folder: Path,
    vector: NDArray[np.float32],
    record: Mapping[str, Any],
    dtype: str,
    overwrite: bool,
    form: DeltaForm | None = None,
) -> None:
    layout, about = bank.layout, bank.record
    if about.alpha is None or about.use_rslora is None:
        raise BankError(
            f"{bank.path}: the bank has a layout but no scaling; restore the database from a copy"
        )
    scaling = about.alpha, about.use_rslora
    if form is not None:
        layout, scaling = form.layout, (form.alpha, form.use_rslora)
    config = render_config(
        about.base_model,
        layout,
        scaling,
        about.task_type,
        revision=about.base_model_revision,
    )
    write_adapter_folder(
        folder,
        files={
            "adapter_config.json": config.encode(),
            "adapter_model.safetensors": lambda path: write_safetensors(path, vector, layout, dtype),
            PROVENANCE: _json(record).encode(),
            "README.md": model_card(record).encode(),
        },
        overwrite=overwrite,
    )
