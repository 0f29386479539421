"""One new dataset: compared with every dataset of the bank, and its adapter predicted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from bankdb.bank import AdapterBank, ready_adapters
from bankdb.datasets.read import Dataset, Reading, read_dataset, training_files
from bankdb.errors import ParameterError, PlanError
from bankdb.progress import Progress, SilentProgress
from bankdb.records import AdapterRecord
from bankdb.shown import metric_text
from bankdb.snapshot import of_one_snapshot
from compute.approaches.base import Fitted
from compute.approaches.by_distance import effective_sources
from compute.approaches.coefficients import new_coefficients
from compute.approaches.neural.leave_one_out import apply
from compute.approaches.options import PredictionOptions, each_way
from compute.cluster.machine import memory_budget
from compute.cluster.options import ClusterLike
from compute.combination.delta import DeltaAdapter, delta_adapter
from compute.combination.delta_shapes import check_rank_fits
from compute.combination.tensors import beside_vector, combined_vector
from compute.generation.machine import Machine
from compute.labels.answer_labels import LabelOptions
from compute.labels.reader import LabelReader
from compute.metrics.base import Metric
from compute.metrics.distributions import TokenCounts
from compute.pairwise.counts import token_counts
from compute.pairwise.forms import unlike_forms
from compute.prediction.matrices import compute_matrices, declared_metrics
from compute.prediction.networks.models import stored_model
from compute.prediction.novelty import novelty_of, tell_novelty
from compute.prediction.prediction import Prediction
from compute.prediction.session import computing

_BLOCK = 512


@overload
def predict(
    bank: AdapterBank,
    data: str | Path | Dataset,
    options: PredictionOptions | None = ...,
    *,
    name: str | None = ...,
    input_column: str | None = ...,
    output_column: str | None = ...,
    text_column: str | None = ...,
    skip_bad_rows: bool = ...,
    include_same: bool = ...,
    machine: Machine | None = ...,
    cluster: ClusterLike = ...,
    memory: int | None = ...,
    progress: Progress | None = ...,
) -> Prediction: ...


@overload
def predict(
    bank: AdapterBank,
    data: str | Path | Dataset,
    options: Sequence[PredictionOptions],
    *,
    name: str | None = ...,
    input_column: str | None = ...,
    output_column: str | None = ...,
    text_column: str | None = ...,
    skip_bad_rows: bool = ...,
    include_same: bool = ...,
    machine: Machine | None = ...,
    cluster: ClusterLike = ...,
    memory: int | None = ...,
    progress: Progress | None = ...,
) -> list[Prediction]: ...


@of_one_snapshot
def predict(
    bank: AdapterBank,
    data: str | Path | Dataset,
    options: PredictionOptions | Sequence[PredictionOptions] | None = None,
    *,
    name: str | None = None,
    input_column: str | None = None,
    output_column: str | None = None,
    text_column: str | None = None,
    skip_bad_rows: bool = False,
    include_same: bool = False,
    machine: Machine | None = None,
    cluster: ClusterLike = None,
    memory: int | None = None,
    progress: Progress | None = None,
) -> Prediction | list[Prediction]:
    """Predict an adapter for a dataset that is not in the bank, in this process.

    Parameters
    ----------
    data
        A data file, a folder with a training split, or a dataset already read.
    options
        Metric, approach and their parameters; of a list, a list of predictions in its order.
    input_column, output_column, text_column, skip_bad_rows
        How the data is read: see `AdapterBank.ingest`.
    include_same
        Use an entry of the bank even if it holds the very same dataset.
    machine
        Where the base model computes, for an approach that reads labels.
    cluster
        Where the bank's own matrices are computed, for approaches that read them: options, a `distributed.Client`,
        or None, the default client if there is one, else threads.
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

    Examples
    --------
    >>> prediction = predict(bank, data, PredictionOptions(approach="nearest"))
    >>> print(prediction.effective_sources)
    1.0
    """
    ways, shown, budget = each_way(options), progress or SilentProgress(), memory_budget(memory)
    for way in ways:
        _check(bank, way)
    reading = bank.reading(input_column, output_column, text_column, skip_bad_rows)
    dataset, place = read_data(data, reading, budget)
    called = name or dataset_name(data)
    reader = LabelReader(bank, LabelOptions(machine or Machine()), shown)
    made = _predictions(bank, dataset, place, called, ways, include_same, reader, cluster, budget, shown)
    return made[0] if options is None or isinstance(options, PredictionOptions) else made


def _predictions(
    bank: AdapterBank,
    dataset: Dataset,
    place: str,
    name: str,
    ways: Sequence[PredictionOptions],
    include_same: bool,
    reader: LabelReader,
    cluster: ClusterLike,
    budget: int,
    progress: Progress,
) -> list[Prediction]:
    adapters = ready_adapters(bank)
    target = _target(bank, dataset, place, budget, progress)
    same = np.asarray([not include_same and record.content_sha256 == dataset.sha256 for record in adapters])
    left_out = _left_out(adapters, same, place, progress)
    for note in unlike_forms(bank, adapters, dataset.rule, place):
        progress.note(note)
    made: list[Prediction] = []
    for way in ways:
        metric, row = _distances(bank, target, adapters, way, budget, progress)
        novelty = novelty_of(bank, metric, adapters, row, same, way, budget)
        tell_novelty(novelty, [one.novelty for one in made], place, progress)
        if way.how.reads_labels:
            weights, fitted = _by_labels(
                bank, target, dataset, name, row, same, adapters, way, reader, budget, progress
            )
        else:
            weights, fitted = _coefficients(
                bank, target, metric, row, same, adapters, way, cluster, budget, progress
            )
        vector, delta = _combined(bank, adapters, weights, way, budget, progress)
        made.append(
            Prediction(
                name,
                dataset,
                int(target.totals[0]),
                adapters,
                row,
                weights,
                float(effective_sources(weights[None, :])[0]),
                left_out,
                vector,
                "none" if metric is None else metric.key,
                way,
                bank.export_record(),
                delta,
                fitted,
                novelty,
            )
        )
    return made


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


def _target(bank: AdapterBank, dataset: Dataset, place: str, budget: int, progress: Progress) -> TokenCounts:
    for note in (*bank.tokenizer.notes, *dataset.notes):
        progress.note(note)
    progress.begin("tokenize", 1)
    histogram = bank.tokenizer.count(dataset.each_text(), place, budget)
    progress.end()
    return TokenCounts.stack([(histogram.ids, histogram.counts)], bank.record.vocabulary)


def _by_metric(
    bank: AdapterBank,
    target: TokenCounts,
    adapters: Sequence[AdapterRecord],
    kept: NDArray[np.intp],
    options: PredictionOptions,
    budget: int,
    progress: Progress,
) -> dict[str, NDArray[np.float64]]:
    """Distances by each metric that the approach declares to the sources that are kept, shape (1, S)."""
    # Of all sources first: document frequencies are of the whole bank.
    return {
        one.metric: _distances(bank, target, adapters, one, budget, progress)[1][None, kept]
        for one in declared_metrics(options)
    }


def _usable(bank: AdapterBank, excluded: NDArray[np.bool_]) -> NDArray[np.intp]:
    kept = np.flatnonzero(~excluded)
    if not len(kept):
        raise ParameterError(
            f"{bank.path}: expected at least one source, found all {len(excluded)} left out; pass --include-same,"
            " or ingest others"
        )
    return kept


def _by_labels(
    bank: AdapterBank,
    target: TokenCounts,
    dataset: Dataset,
    name: str,
    distances: NDArray[np.float64],
    excluded: NDArray[np.bool_],
    adapters: Sequence[AdapterRecord],
    options: PredictionOptions,
    reader: LabelReader,
    budget: int,
    progress: Progress,
) -> tuple[NDArray[np.float64], Fitted | None]:
    """Return what `_coefficients` does, by the dataset's own examples."""
    kept = _usable(bank, excluded)
    sources = [adapters[index] for index in kept]
    by_metric = _by_metric(bank, target, adapters, kept, options, budget, progress)
    labels = reader.of_dataset(options, sources, dataset, name)
    with bank.computing(progress):
        progress.begin(f"losses {options.approach}", 1)
        rows, fitted = new_coefficients(
            options,
            distances[None, kept],
            None,
            None,
            np.arange(len(kept)),
            labels=labels,
            by_metric=by_metric,
        )
        progress.end()
    weights = np.zeros(len(excluded))
    weights[kept] = rows[0]
    return weights, None if fitted is None else {**fitted, **labels.about(0)}


def _coefficients(
    bank: AdapterBank,
    target: TokenCounts,
    metric: Metric | None,
    distances: NDArray[np.float64],
    excluded: NDArray[np.bool_],
    adapters: Sequence[AdapterRecord],
    options: PredictionOptions,
    cluster: ClusterLike,
    budget: int,
    progress: Progress,
) -> tuple[NDArray[np.float64], Fitted | None]:
    """Coefficients over all sources, shape (N,), and what was chosen for them."""
    how, network = options.how, options.how.network(options)
    if network is not None and metric is not None:
        model = stored_model(bank, metric.key, network, adapters, progress, options.leave_out)
        return apply(model, distances[None, :], excluded[None, :], network)[0], None
    kept = _usable(bank, excluded)
    between = gram = None
    units = np.arange(len(kept))
    if how.reads_bank:
        with computing(bank, cluster, progress) as used:
            (found,) = compute_matrices(bank, [options], used, progress)
        block = np.ix_(kept, kept)
        between = None if found.distances is None else found.distances[block]
        gram = None if found.gram is None else found.gram[block]
        units = np.unique(found.units[kept], return_inverse=True)[1]
    by_metric = _by_metric(bank, target, adapters, kept, options, budget, progress)
    rows, fitted = new_coefficients(options, distances[None, kept], between, gram, units, by_metric=by_metric)
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
    method = options.merge_method
    if options.space == "delta":
        made = delta_adapter(
            bank, adapters, weights, options.rank, method=method, memory=budget, progress=progress
        )
        return made.vector, made
    progress.begin("combine", 1)
    single = weights.astype(np.float32)
    vector = combined_vector(bank, adapters, single, beside_vector(bank, budget), progress, method)
    progress.end()
    return vector, None


def dataset_name(data: str | Path | Dataset) -> str:
    """Return a name for a dataset from where it lies: its folder's, or its file's unless that is `train`."""
    if isinstance(data, Dataset):
        return "new-dataset"
    path = Path(data).absolute()
    stem = path.name.split(".")[0]
    return path.parent.name if stem == "train" and not path.is_dir() else stem or path.name


def read_data(data: str | Path | Dataset, reading: Reading, budget: int) -> tuple[Dataset, str]:
    """Return a dataset, read within so many bytes unless it is there already, and what messages call it."""
    if isinstance(data, Dataset):
        return data, "the dataset"
    files = training_files(Path(data))
    found = read_dataset(files, reading, memory=budget)
    return found, str(data)


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
    progress.begin(f"distances {metric_text(metric.key)}", len(adapters))
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
