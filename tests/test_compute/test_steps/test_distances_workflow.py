"""The stored distance matrix against SciPy on raw tokens, and what is computed when."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import math
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr
from scipy.stats import entropy, wasserstein_distance

from bankdb.arrays.zarr_arrays import open_array
from bankdb.bank import AdapterBank
from bankdb.derived import set_attributes
from bankdb.errors import BankFormatError, BankNotFoundError, ComputeError, ParameterError, PlanError
from bankdb.progress import SilentProgress
from compute.approaches.options import PredictionOptions
from compute.cluster.client import open_cluster
from compute.cluster.options import Cluster, ClusterOptions
from compute.metrics import base as blocks
from compute.metrics.distributions import TokenCounts, median_sigma
from compute.metrics.registry import get_metric
from compute.metrics.wasserstein import Wasserstein
from compute.pairwise import matrix as distances_module
from compute.pairwise.matrix import (
    _chunk_contents,
    _pieces,
    compute_tile,
    distance_matrices,
    write_distributions,
)
from compute.pairwise.plan import CHUNK_ROWS, Tile, tile_bytes
from compute.prediction.coefficients import coefficients
from compute.prediction.matrices import distances
from tests.support.banks.recorded_progress import RecordedProgress
from tests.support.banks.synthetic_bank import (
    VOCABULARY,
    SyntheticBank,
    Tokens,
    create_synthetic,
    draw_tokens,
    draw_vector,
)

EPSILON = 1e-10
METRICS = ("wasserstein", "kullback-leibler", "jensen-shannon", "mmd")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> SyntheticBank:
    """70 datasets: rows on both sides of the first chunk's edge. To be copied."""
    made = create_synthetic(tmp_path_factory.mktemp("template") / "bank", tokenizer_folder)
    made.add_many(range(CHUNK_ROWS + 6))
    made.bank.close()
    return made


@pytest.fixture
def many(template: SyntheticBank, tmp_path: Path) -> Iterator[SyntheticBank]:
    """The 70 datasets, in a bank of their own."""
    shutil.copytree(template.bank.path, tmp_path / "bank")
    with AdapterBank.open(tmp_path / "bank") as bank:
        copied = SyntheticBank(bank, template.layout, tmp_path / "adapter_config.json")
        copied.tokens |= template.tokens
        copied.vectors |= template.vectors
        yield copied


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with open_cluster(ClusterOptions(workers=2, processes=False), SilentProgress()) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _tiles_of_one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few datasets would be one tile."""
    monkeypatch.setattr("compute.pairwise.plan._balanced_sides", lambda metrics, *_: [1] * len(metrics))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What each task of a cluster in this process returns: the number of its new entries."""
    counts: list[int] = []
    monkeypatch.setattr(distances_module, "run_tasks", _count_results(counts))
    return counts


def _count_results(counts: list[int]) -> Callable[..., Iterator[tuple[str, int]]]:
    run_tasks = distances_module.run_tasks

    def counting(*arguments: object, **named: object) -> Iterator[tuple[str, int]]:
        for name, count in run_tasks(*arguments, **named):  # type: ignore[arg-type]
            counts.append(count)
            yield name, count

    return counting


# -- oracles on raw tokens -----------------------------------------------------------------------------


def shares(tokens: Tokens) -> NDArray[np.float64]:
    return np.bincount(tokens, minlength=VOCABULARY) / len(tokens)


def smoothed(tokens: Tokens) -> NDArray[np.float64]:
    return (shares(tokens) + EPSILON) / (1 + VOCABULARY * EPSILON)


def published_bins(tokens: Tokens) -> NDArray[np.float64]:
    """V - 1 bins, the last of which is closed; epsilon added, not normalised again."""
    counts, _ = np.histogram(tokens, bins=np.arange(VOCABULARY))
    return counts / len(tokens) + EPSILON


def published_js(p: Tokens, q: Tokens) -> float:
    a, b = published_bins(p), published_bins(q)
    m = (a + b) / 2
    return float((rel_entr(a, m).sum() + rel_entr(b, m).sum()) / 2)


def mmd(p: Tokens, q: Tokens, kernel: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> float:
    ids = np.arange(VOCABULARY, dtype=float)
    matrix = kernel((ids[:, None] - ids) ** 2)
    difference = shares(p) - shares(q)
    return float(difference @ matrix @ difference)


def multiscale(squares: NDArray[np.float64]) -> NDArray[np.float64]:
    return sum(a * a / (a * a + squares) for a in (0.2, 0.5, 0.9, 1.3))  # type: ignore[return-value]


ORACLES: list[tuple[str, dict[str, object], Callable[[Tokens, Tokens], float]]] = [
    ("wasserstein", {}, lambda p, q: float(wasserstein_distance(p, q))),
    ("kullback-leibler", {}, lambda p, q: float(entropy(smoothed(p), smoothed(q)))),
    ("jensen-shannon", {}, lambda p, q: float(jensenshannon(shares(p), shares(q)) ** 2)),
    ("mmd", {}, lambda p, q: mmd(p, q, multiscale)),
    ("wd", {"compatible": "published"}, lambda p, q: float(wasserstein_distance(p, q))),
    (
        "kl",
        {"compatible": "published"},
        lambda p, q: float(rel_entr(published_bins(p), published_bins(q)).sum()),
    ),
    ("js", {"compatible": "published"}, published_js),
    (
        "mmd",
        {"kernel": "gaussian", "sigma": 3.5},
        lambda p, q: mmd(p, q, lambda squares: np.exp(-squares / (2 * 3.5**2))),
    ),
]


@pytest.mark.parametrize(
    ("metric", "options", "oracle"), ORACLES, ids=[f"{name}-{options}" for name, options, _ in ORACLES]
)
def test_stored_matrix_equals_the_oracle_on_raw_tokens(
    many: SyntheticBank,
    cluster: Cluster,
    metric: str,
    options: dict[str, object],
    oracle: Callable[[Tokens, Tokens], float],
) -> None:
    found = distances(many.bank, metric, cluster=cluster, **options)  # type: ignore[arg-type]
    lists = many.token_lists
    # Every pair around the chunk's edge and a sample of the rest: targets are rows.
    edge = range(CHUNK_ROWS - 3, len(lists))
    pairs = set(itertools.product(edge, edge))
    pairs |= {(i, (7 * i + k) % len(lists)) for i in range(len(lists)) for k in range(0, 60, 5)}
    for i, j in pairs:
        expected = oracle(lists[i], lists[j]) if i != j else 0.0
        assert found.values[i, j] == pytest.approx(expected, rel=1e-9, abs=1e-15), (i, j)
    stored = open_array(many.bank.array_path("distances") / found.metric)
    np.testing.assert_array_equal(np.asarray(stored[:, :]), found.values)


def test_gaussian_kernel_without_bandwidth_takes_the_median_of_the_bank(
    many: SyntheticBank, cluster: Cluster
) -> None:
    sigma = median_sigma(
        TokenCounts.stack([np.unique(t, return_counts=True) for t in many.token_lists], VOCABULARY)
    )
    found = distances(many.bank, "mmd", kernel="gaussian", cluster=cluster)
    given = distances(many.bank, "mmd", kernel="gaussian", sigma=sigma, cluster=cluster)
    np.testing.assert_array_equal(found.values, given.values)
    assert found.metric == given.metric


def test_names_are_on_both_axes(many: SyntheticBank, cluster: Cluster) -> None:
    found = distances(many.bank, "kl", cluster=cluster).to_xarray()
    names = list(many.tokens)
    assert found.dims == ("target", "source")
    assert list(found["target"].values) == list(found["source"].values) == names
    one_way = entropy(smoothed(many.tokens[names[3]]), smoothed(many.tokens[names[66]]))
    assert float(found.sel(target=names[3], source=names[66])) == pytest.approx(one_way, rel=1e-9)
    assert found.name == "kullback-leibler"


# -- what is computed ----------------------------------------------------------------------------------


def test_adding_one_adapter_computes_its_own_distances_alone(
    many: SyntheticBank, cluster: Cluster, counted: list[int]
) -> None:
    n = len(many.tokens)
    for metric in ("js", "kl"):
        distances(many.bank, metric, cluster=cluster)
    assert sum(counted) == 2 * n * n
    counted.clear()
    before = {metric: distances(many.bank, metric, cluster=cluster).values for metric in ("js", "kl")}
    assert counted == []
    many.add_many([500])
    for metric, old in before.items():
        counted.clear()
        found = distances(many.bank, metric, cluster=cluster).values
        assert sum(counted) == 2 * n + 1
        np.testing.assert_array_equal(found[:n, :n], old)
        p, q = many.token_lists[-1], many.token_lists[5]
        if metric == "kl":
            assert found[-1, 5] == pytest.approx(entropy(smoothed(p), smoothed(q)), rel=1e-9)
            assert found[5, -1] == pytest.approx(entropy(smoothed(q), smoothed(p)), rel=1e-9)
        assert found[-1, -1] == 0


def test_adding_across_a_chunk_edge_one_by_one(
    tokenizer_folder: Path, tmp_path: Path, cluster: Cluster
) -> None:
    """The chunk at the edge is partial, then full, then not the last."""
    few = create_synthetic(tmp_path / "bank", tokenizer_folder)
    few.add_many(range(2))
    distances(few.bank, "wd", cluster=cluster)
    few.skip_rows(CHUNK_ROWS - 2 - 2)
    for seed in range(10, 14):
        few.add_many([seed])
        found = distances(few.bank, "wd", cluster=cluster)
        expected = [[wasserstein_distance(p, q) for q in few.token_lists] for p in few.token_lists]
        np.testing.assert_allclose(found.values, expected, rtol=1e-9, atol=1e-15)
    assert [record.row for record in few.bank.adapters()] == [0, 1, 62, 63, 64, 65]
    few.bank.close()


def test_removing_adapters_leaves_the_distances_of_the_others(
    many: SyntheticBank, cluster: Cluster, counted: list[int]
) -> None:
    before = distances(many.bank, "js", cluster=cluster).to_xarray()
    gone = ["s000", "s031", "s063", "s064", "s069"]
    for name in gone:
        many.bank.remove(name)
    counted.clear()
    found = distances(many.bank, "js", cluster=cluster).to_xarray()
    assert sum(counted) == 0
    kept = [name for name in before["target"].values if name not in gone]
    assert list(found["target"].values) == kept
    np.testing.assert_array_equal(found.values, before.sel(target=kept, source=kept).values)
    many.add_many([700])
    counted.clear()
    assert distances(many.bank, "js", cluster=cluster).shape == (len(kept) + 1,) * 2
    assert sum(counted) == 2 * len(kept) + 1


def test_a_whole_chunk_of_removed_adapters(many: SyntheticBank, cluster: Cluster) -> None:
    before = distances(many.bank, "kl", cluster=cluster)
    for record in many.bank.adapters()[CHUNK_ROWS:]:
        many.bank.remove(record.name)
    found = distances(many.bank, "kl", cluster=cluster)
    np.testing.assert_array_equal(found.values, before.values[:CHUNK_ROWS, :CHUNK_ROWS])


def test_deleted_distances_are_computed_again(many: SyntheticBank, cluster: Cluster) -> None:
    before = distances(many.bank, "kl", cluster=cluster).values
    root = many.bank.array_path("distances")
    for deleted in (
        root,
        many.bank.array_path("distributions"),
        root / "kullback-leibler",
        root / "kullback-leibler" / "c" / "0" / "0",
        root / "kullback-leibler" / "c" / "1" / "0",
        root / "kullback-leibler" / "c",
        root / "kullback-leibler" / "zarr.json",
    ):
        if deleted.is_dir():
            shutil.rmtree(deleted)
        else:
            deleted.unlink()
        again = distances(many.bank, "kl", cluster=cluster).values
        np.testing.assert_allclose(again, before, rtol=1e-12, err_msg=str(deleted))


@pytest.mark.parametrize("place", ["0/0", "1/0", "1/1"])
def test_a_truncated_chunk_is_named(many: SyntheticBank, cluster: Cluster, place: str) -> None:
    before = distances(many.bank, "js", cluster=cluster).values
    chunk = many.bank.array_path("distances") / "jensen-shannon" / "c" / place
    chunk.write_bytes(chunk.read_bytes()[:-20])
    with pytest.raises(
        BankFormatError, match=f"delete .*/jensen-shannon/c/{place}; run the same command again"
    ):
        distances(many.bank, "js", cluster=cluster)
    # An adapter that needs the chunk does not hide it either.
    many.add_many([900])
    with pytest.raises(BankFormatError, match=f"/c/{place}"):
        distances(many.bank, "js", cluster=cluster)
    chunk.unlink()
    again = distances(many.bank, "js", cluster=cluster).values
    np.testing.assert_allclose(again[:-1, :-1], before, rtol=1e-12)


def test_damaged_distributions_are_told_and_written_again(many: SyntheticBank, cluster: Cluster) -> None:
    stored, _ = write_distributions(many.bank, many.bank.adapters(), SilentProgress())
    path = Path(stored.folders[0])
    chunk = next(path.glob("ids/c/*"))
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BankFormatError, match=f"delete {path}"):
        distances(many.bank, "js", cluster=cluster)
    shutil.rmtree(path / "ids")
    assert np.isfinite(distances(many.bank, "js", cluster=cluster)).all()


def test_old_distributions_are_deleted(many: SyntheticBank, cluster: Cluster) -> None:
    distances(many.bank, "js", cluster=cluster)
    many.add_many([901])
    distances(many.bank, "js", cluster=cluster)
    folders = [path for path in many.bank.array_path("distributions").iterdir() if path.is_dir()]
    assert len(folders) == 1


# -- interrupted runs, and databases restored from a copy ----------------------------------------------


def chunk_bytes(bank: AdapterBank, metric: str) -> dict[str, bytes]:
    root = bank.array_path("distances") / metric
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.glob("c/*/*"))}


def test_a_tile_that_was_written_in_part_is_computed_to_the_same_bytes(
    many: SyntheticBank, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compute.pairwise.plan._balanced_sides", lambda metrics, *_: [2] * len(metrics))
    n = len(many.tokens)
    distances(many.bank, "mmd", cluster=cluster)
    many.add_many(range(800, 803))
    whole = many.bank.path.with_name("whole")
    shutil.copytree(many.bank.path, whole)
    with AdapterBank.open(whole) as unbroken:
        expected = distances(unbroken, "mmd", cluster=cluster)
        files = chunk_bytes(unbroken, "mmd-multiscale")
        attributes = json.loads((whole / "distances.zarr/mmd-multiscale/zarr.json").read_text())["attributes"]
    for taken in itertools.combinations(files, 2):
        # Killed while it wrote: some chunks are new, the others old, and nothing is marked as done.
        broken = many.bank.path.with_name("broken")
        shutil.copytree(many.bank.path, broken)
        with AdapterBank.open(broken) as bank:
            for name in taken:
                (broken / "distances.zarr" / "mmd-multiscale" / name).write_bytes(files[name])
            found = distances(bank, "mmd", cluster=cluster)
            np.testing.assert_array_equal(found.values, expected.values)
            assert chunk_bytes(bank, "mmd-multiscale") == files
        shutil.rmtree(broken)
    assert len(attributes["complete"]) == n + 3


def test_a_first_run_goes_on_with_the_tiles_that_are_missing(
    many: SyntheticBank, cluster: Cluster, counted: list[int]
) -> None:
    expected = distances(many.bank, "wd", cluster=cluster).values
    n, edge = len(many.tokens), CHUNK_ROWS
    files = chunk_bytes(many.bank, "wasserstein")
    path = many.bank.array_path("distances") / "wasserstein"
    (run,) = many.bank.runs.all("distances")
    contents = _chunk_contents(many.bank.adapters())
    whole = hashlib.sha256(" ".join(contents.values()).encode()).hexdigest()
    # As it is before its last tile: two are done under the mark that the array has.
    many.bank.runs.reopen(run.id)
    many.bank.runs.mark_done(run.id, _pieces("mark", [(0, 0), (1, 1)], contents))
    set_attributes(many.bank, path, complete={}, writing={"of": whole, "mark": "mark"})
    counted.clear()
    np.testing.assert_array_equal(distances(many.bank, "wd", cluster=cluster).values, expected)
    assert counted == [2 * edge * (n - edge)]
    assert chunk_bytes(many.bank, "wasserstein") == files


def test_leftovers_of_killed_writers_are_cleared(many: SyntheticBank, cluster: Cluster) -> None:
    distances(many.bank, "js", cluster=cluster)
    left = many.bank.array_path("distances") / "jensen-shannon" / "c" / "0" / f"1.{'0a' * 16}.partial"
    left.write_bytes(b"half")
    distances(many.bank, "js", cluster=cluster)
    assert not left.exists()


def test_a_database_from_an_older_copy_does_not_bring_distances_of_other_datasets(
    many: SyntheticBank, cluster: Cluster
) -> None:
    """Two databases that gave the same row number to different datasets, one array."""
    distances(many.bank, "wd", cluster=cluster)
    root = many.bank.path
    many.bank.close()
    databases = {}
    for lineage, seed in (("left", 1001), ("right", 1002)):
        if databases:
            _restore(root, root.with_name("old"))
        else:
            shutil.copytree(root, root.with_name("old"), ignore=shutil.ignore_patterns("*.zarr"))
        with AdapterBank.open(root) as bank:
            branch = SyntheticBank(bank, many.layout, root.with_name("config.json"))
            branch.add_many([seed])
            tokens = [*(many.tokens[name] for name in many.tokens), *branch.tokens.values()]
            found = distances(bank, "wd", cluster=cluster).values
            expected = [wasserstein_distance(tokens[-1], other) for other in tokens]
            np.testing.assert_allclose(found[-1], expected, rtol=1e-9, atol=1e-15)
        shutil.copytree(root, root.with_name(lineage), ignore=shutil.ignore_patterns("*.zarr"))
        databases[lineage] = expected
    # Back to the first, which calls every chunk done; the array holds the second's.
    _restore(root, root.with_name("left"))
    with AdapterBank.open(root) as bank:
        found = distances(bank, "wd", cluster=cluster).values
        np.testing.assert_allclose(found[-1], databases["left"], rtol=1e-9, atol=1e-15)


def _restore(bank: Path, copy: Path) -> None:
    for file in bank.glob("bank.db*"):
        file.unlink()
    for file in copy.glob("bank.db*"):
        shutil.copy(file, bank)


# -- tiles and clusters --------------------------------------------------------------------------------


class Watched(Wasserstein):
    """Wasserstein that keeps what it was asked; tasks run in this process."""

    asked: ClassVar[list[tuple[int, int, bool]]] = []
    __slots__ = ()

    def block(self, targets: TokenCounts, sources: TokenCounts) -> NDArray[np.float64]:
        self.asked.append((len(targets), len(sources), targets is sources))
        return super().block(targets, sources)


class Failing(Wasserstein):
    """A metric whose code is wrong for one tile: the one beside the diagonal."""

    __slots__ = ()

    def block(self, targets: TokenCounts, sources: TokenCounts) -> NDArray[np.float64]:
        if len(targets) != len(sources):
            raise ZeroDivisionError("overheated")
        return super().block(targets, sources)


class Unfinished(Wasserstein):
    """A metric that does not keep its promise."""

    __slots__ = ()

    def block(self, targets: TokenCounts, sources: TokenCounts) -> NDArray[np.float64]:
        values = super().block(targets, sources)
        values[-1, -1] = np.nan
        return values


def test_a_symmetric_metric_is_computed_once_for_both_triangles(
    many: SyntheticBank, cluster: Cluster
) -> None:
    Watched.asked.clear()
    with many.bank.computing(SilentProgress()):
        (matrix,) = distance_matrices(many.bank, [Watched()], cluster, SilentProgress())
    found = matrix.values
    n, edge = len(many.tokens), CHUNK_ROWS
    # The diagonal tiles know that both sides are one; the tile beside them is computed in one direction.
    assert sorted(Watched.asked) == sorted(
        [(edge, edge, True), (n - edge, n - edge, True), (edge, n - edge, False)]
    )
    np.testing.assert_array_equal(found, found.T)
    assert (np.diag(found) == 0).all()


def test_what_is_not_a_number_is_an_error_and_not_stored(many: SyntheticBank, cluster: Cluster) -> None:
    with (
        many.bank.computing(SilentProgress()),
        pytest.raises(ComputeError, match=r"distances wasserstein: row \d+ to row \d+ gave nan"),
    ):
        distance_matrices(many.bank, [Unfinished()], cluster, SilentProgress())
    assert np.isnan(np.asarray(open_array(many.bank.array_path("distances") / "wasserstein")[:, :])).all()
    assert np.isfinite(distances(many.bank, "wd", cluster=cluster)).all()


def test_the_same_whatever_the_workers_are(many: SyntheticBank, cluster: Cluster) -> None:
    expected = {metric: distances(many.bank, metric, cluster=cluster).values for metric in METRICS}
    for options in (ClusterOptions(workers=1, processes=False), ClusterOptions(workers=2)):
        shutil.rmtree(many.bank.array_path("distances"))
        shutil.rmtree(many.bank.array_path("distributions"))
        with open_cluster(options, SilentProgress()) as other:
            for metric, values in expected.items():
                found = distances(many.bank, metric, cluster=other).values
                np.testing.assert_allclose(found, values, rtol=1e-12, atol=1e-16)


def test_a_cluster_of_its_own(many: SyntheticBank) -> None:
    progress = RecordedProgress()
    assert distances(many.bank, "js", progress=progress).shape == (70, 70)
    assert progress.notes == []  # threads of this process have no dashboard, which would be a port
    assert set(progress.stages) == {"distances jensen-shannon"}


def test_memory_that_is_not_enough_is_said_before_anything_is_computed(many: SyntheticBank) -> None:
    options = ClusterOptions(workers=1, processes=False, memory=1 << 16)
    with (
        open_cluster(options, SilentProgress()) as poor,
        pytest.raises(PlanError, match="--memory"),
    ):
        distances(many.bank, "js", cluster=poor)


def test_a_tile_stays_within_the_memory_it_was_planned_with(many: SyntheticBank, cluster: Cluster) -> None:
    adapters = many.bank.adapters()
    counts, nnz = write_distributions(many.bank, adapters, SilentProgress())
    metric = get_metric("kl")
    distances(many.bank, "kl", cluster=cluster)
    tile = Tile(0, CHUNK_ROWS, CHUNK_ROWS, len(adapters))
    none = np.zeros(0, dtype=np.int64)
    arguments = (str(many.bank.array_path("distances") / metric.key), counts, metric, tile, none)
    compute_tile(*arguments)  # modules are loaded
    tracemalloc.start()
    computed = compute_tile(*arguments)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert computed == 2 * CHUNK_ROWS * (len(adapters) - CHUNK_ROWS)
    assert peak <= tile_bytes(metric, CHUNK_ROWS, VOCABULARY, nnz)


# -- several metrics at once ---------------------------------------------------------------------------


def ways_of(*metrics: str) -> list[PredictionOptions]:
    return [PredictionOptions(metric=metric) for metric in metrics]


def test_several_metrics_are_one_stage_and_the_same_matrices(
    many: SyntheticBank, cluster: Cluster, counted: list[int]
) -> None:
    progress = RecordedProgress()
    found = distances(many.bank, ways_of(*METRICS), cluster=cluster, progress=progress)
    n = len(many.tokens)
    # Two tiles on the diagonal and one beside them, for each metric.
    assert progress.stages == {"distances by 4 metrics": 12}
    assert sum(counted) == 4 * n * n
    folders = [path for path in many.bank.array_path("distributions").iterdir() if path.is_dir()]
    assert len(folders) == 1
    shutil.rmtree(many.bank.array_path("distances"))
    for metric, matrix in zip(METRICS, found, strict=True):
        alone = distances(many.bank, metric, cluster=cluster)
        assert alone.metric == matrix.metric
        np.testing.assert_allclose(matrix.values, alone.values, rtol=1e-12, atol=1e-16)
    assert all(run.state == "done" for run in many.bank.runs.all("distances"))


def test_only_what_is_missing_is_in_the_stage(
    many: SyntheticBank, cluster: Cluster, counted: list[int]
) -> None:
    n = len(many.tokens)
    distances(many.bank, "js", cluster=cluster)
    counted.clear()
    progress = RecordedProgress()
    distances(many.bank, ways_of("js", "wd"), cluster=cluster, progress=progress)
    assert progress.stages == {"distances wasserstein": 3}
    assert sum(counted) == n * n
    counted.clear()
    many.add_many([500])
    distances(many.bank, ways_of("js", "wd", "kl"), cluster=cluster)
    assert sum(counted) == 2 * (2 * n + 1) + (n + 1) ** 2
    counted.clear()
    # The same metric twice, once under another name, is one matrix.
    twice = [PredictionOptions(metric="wd"), PredictionOptions(metric="wd", compatible="published")]
    first, second = distances(many.bank, twice, cluster=cluster)
    np.testing.assert_array_equal(first.values, second.values)
    assert counted == []


def test_a_tile_that_fails_is_named_with_its_metric_and_the_others_are_kept(
    many: SyntheticBank, cluster: Cluster, counted: list[int]
) -> None:
    n = len(many.tokens)
    metrics = [get_metric("kl"), Failing(), get_metric("mmd")]
    with (
        many.bank.computing(SilentProgress()),
        pytest.raises(
            ComputeError, match=r"distances by 3 metrics: piece wasserstein-\d+-\d+-\d+ .*overheated"
        ),
    ):
        distance_matrices(many.bank, metrics, cluster, SilentProgress())
    kept = sum(counted)
    counted.clear()
    found = distances(many.bank, ways_of("kl", "wd", "mmd"), cluster=cluster)
    # Computed again: nothing that was taken before the failure.
    assert sum(counted) == 3 * n * n - kept
    for matrix, metric in zip(found, ("kl", "wd", "mmd"), strict=True):
        oracle = next(oracle for name, _, oracle in ORACLES if get_metric(name) == get_metric(metric))
        p, q = many.token_lists[2], many.token_lists[-1]
        assert matrix.values[2, -1] == pytest.approx(oracle(p, q), rel=1e-9)


@pytest.mark.parametrize("taken", [1, 5, 8])
def test_a_stage_of_several_metrics_that_was_killed_goes_on(
    many: SyntheticBank, cluster: Cluster, counted: list[int], taken: int
) -> None:
    """Killed after some results were taken: these are not computed again."""

    class Killed(BaseException):
        pass

    n, steps = len(many.tokens), itertools.count(1)

    def kill(stage: str) -> None:
        if next(steps) == taken:
            raise Killed

    with pytest.raises(Killed):
        distances(many.bank, ways_of("js", "kl", "wd"), cluster=cluster, progress=RecordedProgress(kill))
    assert len(counted) == taken
    kept = sum(counted)
    counted.clear()
    progress = RecordedProgress()
    found = distances(many.bank, ways_of("js", "kl", "wd"), cluster=cluster, progress=progress)
    assert sum(counted) == 3 * n * n - kept
    assert sum(progress.stages.values()) == 9 - taken
    assert all(np.isfinite(matrix.values).all() for matrix in found)
    runs = many.bank.runs.all("distances")
    assert [run.state for run in runs] == ["done"] * 3


def test_deleted_chunks_of_several_metrics_are_computed_again(many: SyntheticBank, cluster: Cluster) -> None:
    before = distances(many.bank, ways_of("js", "kl", "wd"), cluster=cluster)
    root = many.bank.array_path("distances")
    (root / "jensen-shannon" / "c" / "0" / "1").unlink()
    shutil.rmtree(root / "wasserstein" / "c" / "1")
    progress = RecordedProgress()
    again = distances(many.bank, ways_of("js", "kl", "wd"), cluster=cluster, progress=progress)
    assert set(progress.stages) == {"distances by 2 metrics"}
    for old, new in zip(before, again, strict=True):
        np.testing.assert_allclose(new.values, old.values, rtol=1e-12)


def test_coefficients_of_several_metrics_compute_the_distances_in_one_stage(
    many: SyntheticBank, cluster: Cluster
) -> None:
    ways = [
        PredictionOptions(metric=metric, approach=approach)
        for metric in ("js", "wd")
        for approach in ("attentional", "normalized", "uniform")
    ]
    progress = RecordedProgress()
    found = coefficients(many.bank, ways, cluster=cluster, progress=progress)
    assert progress.stages == {"distances by 2 metrics": 6}
    for options, matrix in zip(ways, found, strict=True):
        alone = coefficients(many.bank, options, cluster=cluster)
        np.testing.assert_array_equal(matrix.values, alone.values)
        assert matrix.to_xarray().name == alone.to_xarray().name == options.approach


@pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not for this Python yet")
@pytest.mark.parametrize("first", ["numpy", "compiled"])
def test_a_matrix_computed_by_both_paths(
    many: SyntheticBank,
    cluster: Cluster,
    counted: list[int],
    monkeypatch: pytest.MonkeyPatch,
    first: str,
) -> None:
    """A bank computed with compiled loops, an adapter added without them, and the other way round."""
    n = len(many.tokens)
    saving = {"numpy": math.inf, "compiled": 0.0}
    monkeypatch.setattr(blocks, "LEAST_SAVING", saving.pop(first))
    before = distances(many.bank, ways_of("js", "wd"), cluster=cluster)
    many.add_many([500])
    counted.clear()
    (other,) = saving.values()
    monkeypatch.setattr(blocks, "LEAST_SAVING", other)
    after = distances(many.bank, ways_of("js", "wd"), cluster=cluster)
    assert sum(counted) == 2 * (2 * n + 1)
    for old, new, metric in zip(before, after, ("js", "wd"), strict=True):
        np.testing.assert_array_equal(new.values[:n, :n], old.values)
        oracle = next(oracle for name, _, oracle in ORACLES if get_metric(name) == get_metric(metric))
        for i, j in [(0, n), (n, 3), (n, n - 1), (5, 8), (n - 1, 2)]:
            expected = oracle(many.token_lists[i], many.token_lists[j])
            assert new.values[i, j] == pytest.approx(expected, rel=1e-9)


def test_with_little_memory_no_compiler_is_loaded(
    many: SyntheticBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take each worker memory that the budget does not know of."""
    monkeypatch.setattr(blocks, "LEAST_SAVING", 0.0)
    asked: list[bool] = []
    monkeypatch.setattr(blocks, "_compiled", lambda: asked.append(True))
    for memory, loads in ((2**29, False), (2**31, True)):
        options = ClusterOptions(workers=1, processes=False, memory=memory)
        with open_cluster(options, SilentProgress()) as opened:
            distances(many.bank, ways_of("js", "wd"), cluster=opened)
        assert bool(asked) == loads
        shutil.rmtree(many.bank.array_path("distances"))


# -- nothing to compute with ---------------------------------------------------------------------------


def test_an_empty_bank_says_so(empty_bank: AdapterBank, cluster: Cluster) -> None:
    with pytest.raises(BankNotFoundError, match="bank ingest"):
        distances(empty_bank, "js", cluster=cluster)


def test_a_bank_whose_adapters_were_all_removed_says_so(bank: AdapterBank, cluster: Cluster) -> None:
    for record in bank.adapters():
        bank.remove(record.name)
    for metric, options in (("js", {}), ("mmd", {"kernel": "gaussian"})):
        with pytest.raises(BankNotFoundError, match="bank ingest"):
            distances(bank, metric, cluster=cluster, **options)


def test_a_single_dataset_has_one_distance(tokenizer_folder: Path, tmp_path: Path, cluster: Cluster) -> None:
    few = create_synthetic(tmp_path / "bank", tokenizer_folder)
    few.add("alone", draw_tokens(3), draw_vector(3, few.layout.size))
    for metric in METRICS:
        assert distances(few.bank, metric, cluster=cluster).values.tolist() == [[0.0]]
    few.bank.close()


@pytest.mark.parametrize(
    ("metric", "options"),
    [
        ("euclid", {}),
        ("js", {"compatible": "mostly"}),
        ("mmd", {"kernel": "linear"}),
        ("mmd", {"sigma": 2.0}),
        ("mmd", {"kernel": "gaussian", "sigma": 0.0}),
    ],
)
def test_options_that_are_refused(
    many: SyntheticBank, cluster: Cluster, metric: str, options: dict[str, object]
) -> None:
    with pytest.raises(ParameterError):
        distances(many.bank, metric, cluster=cluster, **options)  # type: ignore[arg-type]
