"""One new dataset: compared with every dataset of the bank, and its adapter predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.zarr_arrays import column_chunk
from bankdb.bank import AdapterBank, ready_adapters
from bankdb.datasets.read import Dataset, read_dataset, training_files
from bankdb.errors import ParameterError, PlanError
from bankdb.progress import Progress, SilentProgress
from bankdb.records import AdapterRecord
from bankdb.scaled_rows import sources_of
from compute.approaches.base import Fitted
from compute.approaches.by_distance import effective_sources
from compute.approaches.coefficients import new_coefficients
from compute.approaches.neural.leave_one_out import apply
from compute.approaches.options import PredictionOptions
from compute.cluster.machine import memory_budget
from compute.combination.combine import combine_one
from compute.combination.delta import DeltaAdapter, check_rank_fits, delta_adapter
from compute.metrics.base import Metric
from compute.metrics.distributions import TokenCounts
from compute.pairwise.counts import token_counts
from compute.prediction.matrices import bank_matrices
from compute.prediction.neural_models import stored_model

_BLOCK = 512


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """A predicted adapter and how it came about.

    Attributes
    ----------
    name
        The dataset's name.
    dataset
        The dataset predicted for.
    tokens
        Its number of tokens.
    adapters
        The N adapters of the bank, by row.
    distances
        float64, shape (N,); NaN throughout for an approach that reads none. For `ridge`, and
        others that say so, the mean of both directions where they differ.
    coefficients
        float64, shape (N,), sum 1.
    effective_sources
        1 / sum of squared coefficients.
    left_out
        Names of adapters left out because they hold the very same dataset.
    vector
        float32, shape (p,): the predicted weights in the bank's layout and scaling; in delta space those of
        `delta`, in its own.
    metric
        The metric's key, or `none`.
    options
        How it was made.
    delta
        In delta space: the adapter with its layout, scaling and retained energies.
    fitted
        Of an approach that is fitted: what was chosen by the bank's own rows.
    """

    name: str
    dataset: Dataset
    tokens: int
    adapters: tuple[AdapterRecord, ...]
    distances: NDArray[np.float64]
    coefficients: NDArray[np.float64]
    effective_sources: float
    left_out: tuple[str, ...]
    vector: NDArray[np.float32]
    metric: str
    options: PredictionOptions
    delta: DeltaAdapter | None = None
    fitted: Fitted | None = None


def predict(
    bank: AdapterBank,
    data: str | Path | Dataset,
    options: PredictionOptions | None = None,
    *,
    name: str | None = None,
    input_column: str = "input",
    output_column: str = "output",
    include_same: bool = False,
    memory: int | None = None,
    progress: Progress | None = None,
) -> Prediction:
    """Predict an adapter for a dataset that is not in the bank.

    Parameters
    ----------
    data
        A data file, a folder with a training split, or a dataset already read.
    include_same
        Use an entry of the bank even if it holds the very same dataset.
    memory
        Bytes that may be used; default: half of the machine's memory.

    Raises
    ------
    DatasetError, TokenizerError
        The data cannot be read or tokenized.
    ParameterError
        Nothing is left to combine, or the approach needs the answer.
    BankNotFoundError, BankFormatError
        The bank is empty, or a row that is needed is damaged.
    """
    options, progress = options or PredictionOptions(), progress or SilentProgress()
    _check(bank, options)
    budget = memory_budget(memory)
    adapters = ready_adapters(bank)
    dataset, place = _dataset(data, input_column, output_column)
    target = _target(bank, dataset, place, progress)
    same = np.asarray([not include_same and record.content_sha256 == dataset.sha256 for record in adapters])
    left_out = _left_out(adapters, same, place, progress)
    metric, row = _distances(bank, target, adapters, options, budget, progress)
    weights, fitted = _coefficients(bank, metric, row, same, adapters, options, progress)
    vector, delta = _combined(bank, adapters, weights, options, budget, progress)
    return Prediction(
        name=name or dataset_name(data),
        dataset=dataset,
        tokens=int(target.totals[0]),
        adapters=adapters,
        distances=row,
        coefficients=weights,
        effective_sources=float(effective_sources(weights[None, :])[0]),
        left_out=left_out,
        vector=vector,
        metric="none" if metric is None else metric.key,
        options=options,
        delta=delta,
        fitted=fitted,
    )


def _left_out(
    adapters: Sequence[AdapterRecord], same: NDArray[np.bool_], place: str, progress: Progress
) -> tuple[str, ...]:
    """Return the names of the entries that hold the very same data, and say so."""
    names = tuple(adapters[index].name for index in np.flatnonzero(same).tolist())
    if names:
        progress.note(f"{place}: the same data as {', '.join(names)} in the bank, which is left out")
    return names


def _check(bank: AdapterBank, options: PredictionOptions) -> None:
    check_rank_fits(bank, options.rank)
    if options.how.knows_answer:
        raise ParameterError(
            f"approach: {options.approach} needs the adapter that is to be predicted; it is for --all only, use"
            " normalized"
        )


def _target(bank: AdapterBank, dataset: Dataset, place: str, progress: Progress) -> TokenCounts:
    progress.begin("tokenize", 1)
    histogram = bank.tokenizer.count(dataset.texts(), place)
    progress.end()
    return TokenCounts.stack([(histogram.ids, histogram.counts)], bank.record.vocabulary)


def _coefficients(
    bank: AdapterBank,
    metric: Metric | None,
    distances: NDArray[np.float64],
    excluded: NDArray[np.bool_],
    adapters: Sequence[AdapterRecord],
    options: PredictionOptions,
    progress: Progress,
) -> tuple[NDArray[np.float64], Fitted | None]:
    """Coefficients over all sources, shape (N,), and what was chosen for them."""
    how, network = options.how, options.how.network(options)
    if network is not None and metric is not None:
        model = stored_model(bank, metric.key, network, adapters, progress, options.leave_out)
        return apply(model, distances[None, :], excluded[None, :], network)[0], None
    kept = np.flatnonzero(~excluded)
    if not len(kept):
        raise ParameterError(
            f"{bank.path}: expected at least one source, found all {len(excluded)} left out; pass --include-same,"
            " or ingest others"
        )
    between = gram = None
    units = np.arange(len(kept))
    if how.reads_bank:
        found = bank_matrices(bank, options, progress=progress)
        block = np.ix_(kept, kept)
        between = None if found.distances is None else found.distances[block]
        gram = None if found.gram is None else found.gram[block]
        units = np.unique(found.units[kept], return_inverse=True)[1]
    rows, fitted = new_coefficients(options, distances[None, kept], between, gram, units)
    weights = np.zeros(len(excluded))
    weights[kept] = rows[0]
    return weights, fitted


def _combined(
    bank: AdapterBank,
    adapters: Sequence[AdapterRecord],
    weights: NDArray[np.float64],
    options: PredictionOptions,
    budget: int,
    progress: Progress,
) -> tuple[NDArray[np.float32], DeltaAdapter | None]:
    if options.space == "delta":
        made = delta_adapter(bank, adapters, weights, options.rank, memory=budget, progress=progress)
        return made.vector, made
    parameters = bank.layout.size
    progress.begin("combine", 1)
    vector = combine_one(
        bank.store,
        sources_of(bank, adapters),
        weights.astype(np.float32),
        chunk=column_chunk(parameters),
        budget=max(budget - 8 * parameters, 1 << 26),
    )
    progress.end()
    return vector, None


def dataset_name(data: str | Path | Dataset) -> str:
    """Return a name for a dataset from where it lies: its folder's, or its file's unless that is `train`."""
    if isinstance(data, Dataset):
        return "new-dataset"
    path = Path(data).absolute()
    stem = path.name.split(".")[0]
    return path.parent.name if stem == "train" and not path.is_dir() else stem or path.name


def _dataset(data: str | Path | Dataset, input_column: str, output_column: str) -> tuple[Dataset, str]:
    if isinstance(data, Dataset):
        return data, "the dataset"
    files = training_files(Path(data))
    return read_dataset(files, input_column=input_column, output_column=output_column), str(data)


def _distances(
    bank: AdapterBank,
    target: TokenCounts,
    adapters: Sequence[AdapterRecord],
    options: PredictionOptions,
    budget: int,
    progress: Progress,
) -> tuple[Metric | None, NDArray[np.float64]]:
    """Distances from one target to every source, shape (N,), in blocks that fit the budget."""
    row = np.full(len(adapters), np.nan)
    if not options.how.reads_distances:
        return None, row
    counts = token_counts(bank, adapters) if options.needs_counts else None
    metric = options.resolve_metric(counts)
    block = _block_size(metric, bank.record.vocabulary, budget)
    progress.begin(f"distances {metric.key}", len(adapters))
    for start in range(0, len(adapters), block):
        part = adapters[start : start + block]
        counts = token_counts(bank, part)
        if options.how.averages_directions and not metric.symmetric:
            there, back = metric.both(target, counts)
            row[start : start + len(part)] = (there[0] + back[:, 0]) / 2
        else:
            row[start : start + len(part)] = metric.block(target, counts)[0]
        progress.advance(len(part))
    progress.end()
    return metric, row


def _block_size(metric: Metric, vocabulary: int, budget: int) -> int:
    block = _BLOCK
    while block > 1 and metric.workspace_bytes(1, block, vocabulary, vocabulary) > budget:
        block //= 2
    if metric.workspace_bytes(1, block, vocabulary, vocabulary) > budget:
        raise PlanError(
            f"{metric.key} over {vocabulary} token ids does not fit {budget / 2**20:.0f} MiB; raise --memory"
        )
    return block
