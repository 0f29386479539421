"""Leave-one-out predictions of all N adapters of a bank: stored as coefficients, made when they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.remote import Location
from bankdb.arrays.shards import read_row
from bankdb.bank import AdapterBank
from bankdb.errors import BankNotFoundError, ParameterError
from bankdb.progress import Progress, SilentProgress
from bankdb.records import PredictionRecord, RunRecord
from bankdb.scaled_rows import sources_of
from bankdb.shown import html_summary, text_summary
from compute.approaches.options import PredictionOptions, each_way
from compute.approaches.weight_errors import weight_space_errors
from compute.cluster.options import Cluster, ClusterLike
from compute.combination.predictions import check_dtype, combine_missing, open_stored, stored_dtype
from compute.combination.runs import ADAPTERS, COEFFICIENTS, Opened, open_run
from compute.labels.answer_labels import LabelOptions
from compute.prediction.coefficients import Coefficients, compute_coefficients, described
from compute.prediction.export import AGAIN, export_all
from compute.prediction.folders.by_run import combined
from compute.prediction.folders.one_pass import save_in_one_pass
from compute.prediction.matrices import compute_gram
from compute.prediction.session import computing

if TYPE_CHECKING:
    import xarray

    from bankdb.gguf.export import GgufExport


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class PredictedBank:
    """All N leave-one-out predictions: their coefficients, from which an adapter is made when it is read.

    Attributes
    ----------
    run
        The run that made them.
    coefficients
        What they are combinations by.
    path
        zarr group with `coefficients` (N, N), float32; and with `adapters` (N, p), where all predictions are stored.
    relative_error
        `norm(predicted - own) / norm(own)` of each target, shape (N,), where it was asked for, or the Gram matrix was
        needed anyway.
    bank
        The bank that stores them; it has to be open where they are read or saved.
    stored
        dtype to which the stored predictions are rounded; None where coefficients alone are stored.
    """

    run: RunRecord
    coefficients: Coefficients
    path: Location
    relative_error: NDArray[np.float64] | None
    bank: AdapterBank
    stored: str | None = None

    def adapter(self, name: str, *, memory: int | None = None) -> NDArray[np.float32]:
        """Return a predicted adapter in the bank's layout and scaling, shape (p,); made now, or read if stored.

        Parameters
        ----------
        name
            Of the target.
        memory
            Bytes that may be used beside it; default: half of the machine's memory.

        Raises
        ------
        BankNotFoundError
            There is no such target.
        BankFormatError
            A row that is needed, or the stored prediction, is damaged.
        """
        found = self.coefficients
        index = next((i for i, record in enumerate(found.adapters) if record.name == name), None)
        if index is None:
            raise BankNotFoundError(
                f"{name}: expected one of the {len(found.adapters)} adapters that were predicted, found none of that "
                "name; `coefficients.adapters` has them"
            )
        if self.stored is not None:
            return read_row(self.path / ADAPTERS, index, AGAIN)
        weights, method = found.values[index].astype(np.float32), found.options.merge_method
        return combined(self.bank, found.adapters, weights, memory, method=method)

    def save(
        self,
        folder: str | Path,
        *,
        dtype: str = "source",
        overwrite: bool = False,
        gguf: GgufExport | None = None,
        cluster: ClusterLike = None,
        progress: Progress | None = None,
    ) -> list[Path]:
        """Write every prediction as `folder/NAME`, which PEFT and vLLM load; what is there of the same run is kept.

        They are combined and written in one pass over the bank's adapters; a run that was killed goes on.

        Parameters
        ----------
        dtype
            `source`: that of the adapters combined (float32 if they differ); or float32, float16, bfloat16.
        overwrite
            Replace folders that hold something else.
        gguf
            Write them for llama.cpp too, or alone: what `AdapterBank.gguf` returns.
        cluster
            Options, a `distributed.Client`, or None: the default client if there is one, else threads.

        Raises
        ------
        ConflictError
            A folder is there that holds something else, and is not to be replaced.
        PlanError, ComputeError
            The work does not fit the memory, or the files the disk; or a piece failed, and what was done is kept.
        AdapterError, GgufError, BankFormatError
            A folder cannot be written, or not exactly; or a row of the bank, or a stored prediction, is damaged.
        """
        what, shown = (
            (self.bank, self.run, self.coefficients, self.path, folder),
            progress or SilentProgress(),
        )
        if self.stored == "float32":
            return export_all(*what, dtype=dtype, overwrite=overwrite, gguf=gguf, progress=shown)
        return save_in_one_pass(
            *what, dtype=dtype, overwrite=overwrite, gguf=gguf, cluster=cluster, progress=shown
        )

    def to_xarray(self) -> xarray.Dataset:
        """Return effective sources, and weight errors where there are, by `target`; and the coefficients."""
        import xarray

        table = {"effective_sources": ("target", self.coefficients.effective)}
        if self.relative_error is not None:
            table["relative_error"] = ("target", self.relative_error)
        matrix = self.coefficients.to_xarray().drop_vars("effective_sources")
        return xarray.Dataset({"coefficients": matrix, **table})

    def __repr__(self) -> str:
        """Return what was predicted, how, and where it is."""
        return text_summary(self._title(), self._facts())

    def _repr_html_(self) -> str:
        return html_summary(self._title(), self._facts())

    def _title(self) -> str:
        found = self.coefficients
        return f"PredictedBank {described(found.options)}, {len(found.adapters):,} adapters by leave-one-out"

    def _facts(self) -> dict[str, object]:
        facts: dict[str, object] = {"effective sources": float(np.mean(self.coefficients.effective))}
        if self.relative_error is not None:
            facts["relative weight error"] = float(np.nanmean(self.relative_error))
        array = COEFFICIENTS if self.stored is None else ADAPTERS
        return facts | {"run": self.run.id, "array": str(self.path / array)}


@overload
def predict_all(
    bank: AdapterBank,
    options: PredictionOptions | None = ...,
    *,
    labels: LabelOptions | None = ...,
    cluster: ClusterLike = ...,
    weight_errors: bool = ...,
    store: str | None = ...,
    progress: Progress | None = ...,
) -> PredictedBank: ...


@overload
def predict_all(
    bank: AdapterBank,
    options: Sequence[PredictionOptions],
    *,
    labels: LabelOptions | None = ...,
    cluster: ClusterLike = ...,
    weight_errors: bool = ...,
    store: str | None = ...,
    progress: Progress | None = ...,
) -> list[PredictedBank]: ...


def predict_all(
    bank: AdapterBank,
    options: PredictionOptions | Sequence[PredictionOptions] | None = None,
    *,
    labels: LabelOptions | None = None,
    cluster: ClusterLike = None,
    weight_errors: bool = False,
    store: str | None = None,
    progress: Progress | None = None,
) -> PredictedBank | list[PredictedBank]:
    """Predict every adapter of the bank from all the others.

    A prediction is its coefficients, which are stored; adapters are made when they are read or saved. What a run that
    was killed had finished is not computed again.

    Parameters
    ----------
    options
        Metric, approach and their parameters; of a list, a list of results in its order, made in one pass over the
        adapters.
    labels
        Where the base model computes, for an approach that reads labels; all targets are predicted.
    cluster
        Options, a `distributed.Client`, or None: the default client if there is one, else threads.
    weight_errors
        Also compute how far each is from the adapter's own weights; done anyway where a way reads the Gram matrix.
    store
        Store all N x p numbers too, rounded to this dtype: float32, float16, bfloat16. None: coefficients alone.

    Raises
    ------
    BankNotFoundError, ParameterError
        The bank is empty, or has a single adapter; or a way is of delta space: see `export_delta`.
    PlanError
        The work does not fit the memory budget.
    ComputeError, BankFormatError
        A piece failed, or a stored row is damaged; what was done is kept.

    Examples
    --------
    >>> predicted = predict_all(bank, PredictionOptions(approach="uniform"), weight_errors=True)
    >>> predicted.to_xarray()["relative_error"].shape
    (6,)
    """
    shown, ways = progress or SilentProgress(), each_way(options)
    if not ways:
        return []
    if store is not None:
        check_dtype(store)
    if labels is not None and labels.targets is not None:
        raise ParameterError(
            "targets: all adapters are predicted; leave the targets out, or use compute.coefficients"
        )
    _check_ways(ways, weight_errors)
    with computing(bank, cluster, shown) as used:
        predicted = _predict_all(bank, ways, used, weight_errors, store, shown, labels)
    return predicted[0] if options is None or isinstance(options, PredictionOptions) else predicted


def _check_ways(ways: Sequence[PredictionOptions], weight_errors: bool) -> None:
    if any(way.space != "factors" for way in ways):
        raise ParameterError(
            "space: stored predictions are of factors, delta found; export folders: with --export, or export_delta"
        )
    if weight_errors and not all(way.merge_method.is_linear for way in ways):
        raise ParameterError(
            "weight errors: of weighted sums alone, a merge method found; leave one of the two out"
        )


def _predict_all(
    bank: AdapterBank,
    ways: Sequence[PredictionOptions],
    cluster: Cluster,
    weight_errors: bool,
    store: str | None,
    progress: Progress,
    labels: LabelOptions | None,
) -> list[PredictedBank]:
    found = compute_coefficients(bank, ways, cluster, progress, labels)
    adapters = found[0].adapters
    errors: list[NDArray[np.float64] | None] = [None] * len(found)
    if weight_errors or any(way.how.reads_gram for way in ways):
        gram = compute_gram(bank, cluster, progress)
        targets, size = np.arange(len(adapters)), bank.layout.size
        errors = [
            # The Gram matrix knows weighted sums alone.
            weight_space_errors(way.values, gram, targets, size).relative
            if way.options.merge_method.is_linear
            else None
            for way in found
        ]
    runs = [
        open_run(bank, adapters, way.values, way.metric, way.options, way.fitted, progress, way.labels)
        for way in found
    ]
    if store is not None:
        for opened in runs:
            open_stored(bank, opened, len(adapters), store, progress)
        _combine_by_method(bank, found, runs, cluster, store, progress)
    for (run, _), way, error in zip(runs, found, errors, strict=True):
        _store_records(bank, run, way, error)
        bank.runs.finish(run.id)
    return [
        PredictedBank(run, way, path, error, bank, stored_dtype(bank, (run, path), len(adapters)))
        for (run, path), way, error in zip(runs, found, errors, strict=True)
    ]


def _combine_by_method(
    bank: AdapterBank,
    found: Sequence[Coefficients],
    runs: Sequence[Opened],
    cluster: Cluster,
    store: str,
    progress: Progress,
) -> None:
    """Store all numbers of the runs: those of one merge method in one pass over the adapters."""
    adapters = found[0].adapters
    sources = sources_of(bank, adapters, progress)
    for method in dict.fromkeys(way.options.merge_method for way in found):
        some = [run for run, way in zip(runs, found, strict=True) if way.options.merge_method == method]
        merging = None if method.is_linear else (adapters, method)
        combine_missing(bank, some, sources, cluster, progress, store, merging)


def _store_records(
    bank: AdapterBank, run: RunRecord, found: Coefficients, error: NDArray[np.float64] | None
) -> None:
    """Store what is told of each prediction; what an earlier command stored of the same run stays."""
    stored = {record.target: record for record in bank.runs.predictions(run.id)}
    records = []
    for index, adapter in enumerate(found.adapters):
        effective = float(found.effective[index])
        record = stored.get(adapter.name) or PredictionRecord(run.id, adapter.name, effective, None)
        if error is not None:
            record = replace(record, relative_error=float(error[index]))
        records.append(replace(record, effective_sources=effective))
    if records != list(stored.values()):
        bank.runs.store_predictions(records)
