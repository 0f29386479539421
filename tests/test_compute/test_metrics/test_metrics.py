"""The four metrics against SciPy, brute force and exact arithmetic, and their properties."""

from __future__ import annotations

import pickle
import tracemalloc
from collections.abc import Callable
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats
from scipy.spatial.distance import jensenshannon

from bankdb.errors import ParameterError
from compute.metrics import base as blocks
from compute.metrics import divergences, mmd
from compute.metrics.base import Metric
from compute.metrics.distributions import TokenCounts, dense
from compute.metrics.registry import METRIC_NAMES, canonical_metric_name, get_metric

EPSILON = 1e-10
ALL_METRICS = {
    metric.key: metric
    for metric in (
        get_metric("wasserstein"),
        get_metric("kullback-leibler"),
        get_metric("kullback-leibler", compatible="published"),
        get_metric("jensen-shannon"),
        get_metric("jensen-shannon", compatible="published"),
        get_metric("mmd"),
        get_metric("mmd", kernel="gaussian", sigma=0.7),
        get_metric("mmd", kernel="gaussian", sigma=12.5),
        get_metric("mmd", kernel="gaussian", sigma=300.0),
    )
}
every_metric = pytest.mark.parametrize("metric", ALL_METRICS.values(), ids=ALL_METRICS.keys())
Row = dict[int, int]


def block_of(rows: list[Row], vocabulary: int) -> TokenCounts:
    return TokenCounts.stack(
        [(np.array(sorted(row)), np.array([row[k] for k in sorted(row)])) for row in rows], vocabulary
    )


def zipf_block(datasets: int, vocabulary: int, tokens: int, seed: int) -> TokenCounts:
    rng = np.random.default_rng(seed)
    base = rng.permutation(1.0 / np.arange(1, vocabulary + 1))
    rows = []
    for _ in range(datasets):
        weights = base * np.exp(rng.normal(size=vocabulary)) * (rng.random(vocabulary) < 0.5)
        counts = rng.multinomial(tokens, weights / weights.sum())
        rows.append((np.flatnonzero(counts), counts[counts > 0]))
    return TokenCounts.stack(rows, vocabulary)


def awkward_block(vocabulary: int, seed: int) -> TokenCounts:
    """Random rows; rows of disjoint supports; overlaps of one id; single tokens; the ends of the vocabulary."""
    rng = np.random.default_rng(seed)
    half = vocabulary // 2

    def row(low: int, high: int, size: int) -> Row:
        ids = rng.choice(np.arange(low, high), size, replace=False)
        return {int(k): int(rng.integers(1, 1000)) for k in ids}

    return block_of(
        [
            row(0, vocabulary, vocabulary // 3),
            row(0, vocabulary, vocabulary // 2),
            row(0, half, half // 2),
            row(half, vocabulary, half // 2),
            row(0, half, half // 3) | {vocabulary - 1: 1},
            {int(rng.integers(vocabulary)): 1},
            {vocabulary - 1: 3, vocabulary - 2: 1},
            {0: 1},
            dict.fromkeys(range(vocabulary), 1),
        ],
        vocabulary,
    )


def scipy_wasserstein(p: TokenCounts, i: int, q: TokenCounts, j: int) -> float:
    return float(stats.wasserstein_distance(np.repeat(*p.row(i)), np.repeat(*q.row(j))))


def scipy_kullback_leibler(p: TokenCounts, i: int, q: TokenCounts, j: int) -> float:
    smoothed = [(dense(c)[k] + EPSILON) / (1 + c.vocabulary * EPSILON) for c, k in ((p, i), (q, j))]
    return float(stats.entropy(*smoothed))


def scipy_jensen_shannon(p: TokenCounts, i: int, q: TokenCounts, j: int) -> float:
    return float(jensenshannon(dense(p)[i], dense(q)[j]) ** 2)


@pytest.mark.parametrize(
    ("name", "reference"),
    [("wd", scipy_wasserstein), ("kl", scipy_kullback_leibler), ("js", scipy_jensen_shannon)],
)
@pytest.mark.parametrize("seed", range(3))
def test_blocks_equal_scipy(
    name: str, reference: Callable[[TokenCounts, int, TokenCounts, int], float], seed: int
) -> None:
    targets, sources = awkward_block(200, seed), awkward_block(200, seed + 100)
    expected = [[reference(targets, i, sources, j) for j in range(len(sources))] for i in range(len(targets))]
    metric = get_metric(name)
    assert_allclose(metric.block(targets, sources), expected, rtol=1e-9, atol=0)
    # One target, as for a new dataset, and two: some metrics have another way for few.
    for few in (1, 2):
        for first in range(len(targets) - few + 1):
            some = targets.select(np.arange(first, first + few))
            assert_allclose(metric.block(some, sources), expected[first : first + few], rtol=1e-9, atol=0)


KERNELS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "multiscale": lambda d: sum(a**2 / (a**2 + d**2) for a in (0.2, 0.5, 0.9, 1.3)),
    "0.7": lambda d: np.exp(-(d**2) / (2 * 0.7**2)),
    "12.5": lambda d: np.exp(-(d**2) / (2 * 12.5**2)),
    "80": lambda d: np.exp(-(d**2) / (2 * 80.0**2)),
}


@pytest.mark.parametrize("kernel", KERNELS)
def test_mmd_equals_the_double_sum(kernel: str) -> None:
    metric = (
        get_metric("mmd")
        if kernel == "multiscale"
        else get_metric("mmd", kernel="gaussian", sigma=float(kernel))
    )
    targets, sources = awkward_block(201, 0), awkward_block(201, 1)
    lags = np.abs(np.subtract.outer(np.arange(201), np.arange(201))).astype(float)
    matrix = KERNELS[kernel](lags)
    d = dense(targets)[:, None, :] - dense(sources)
    expected = np.einsum("ijk,kl,ijl->ij", d, matrix, d)
    assert_allclose(metric.block(targets, sources), expected, rtol=1e-9, atol=1e-17)


def test_published_divergences_equal_the_literal_computation() -> None:
    vocabulary = 120
    targets, sources = awkward_block(vocabulary, 5), awkward_block(vocabulary, 6)

    def histograms(counts: TokenCounts) -> np.ndarray:
        tokens = (np.repeat(*counts.row(i)) for i in range(len(counts)))
        bins = np.array([np.histogram(t, bins=np.arange(vocabulary))[0] for t in tokens], dtype=float)
        return bins / bins.sum(axis=1, keepdims=True) + EPSILON

    p, q = histograms(targets)[:, None, :], histograms(sources)[None, :, :]
    m = (p + q) / 2
    kullback_leibler = (p * np.log(p / q)).sum(axis=2)
    jensen_shannon = ((p * np.log(p / m)).sum(axis=2) + (q * np.log(q / m)).sum(axis=2)) / 2
    for name, expected in (("kl", kullback_leibler), ("js", jensen_shannon)):
        metric = get_metric(name, compatible="published")
        assert_allclose(metric.block(targets, sources), expected, rtol=1e-9, atol=0)


# Exact arithmetic, for pairs whose distance is what is left of a cancellation.


def merge_last(row: Row, bins: int) -> Row:
    """Count the id `bins` with the one before it."""
    merged = {k: v for k, v in row.items() if k < bins}
    if bins in row:
        merged[bins - 1] = merged.get(bins - 1, 0) + row[bins]
    return merged


def exact(metric: Metric, p: Row, q: Row, vocabulary: int) -> float:
    """Evaluate the definition with 60 digits."""
    with localcontext() as context:
        context.prec = 60
        bins = vocabulary
        if metric.key.endswith("published"):
            bins -= 1
            p, q = (merge_last(row, bins) for row in (p, q))
        x, y = ([Decimal(row.get(k, 0)) / Decimal(sum(row.values())) for k in range(bins)] for row in (p, q))
        return float(EXACT[metric.short](metric, x, y))


def exact_wasserstein(metric: Metric, x: list[Decimal], y: list[Decimal]) -> Decimal:
    total = running = Decimal(0)
    for a, b in zip(x, y, strict=True):
        running += a - b
        total += abs(running)
    return total


def exact_kullback_leibler(metric: Metric, x: list[Decimal], y: list[Decimal]) -> Decimal:
    epsilon = Decimal(EPSILON)
    mass = 1 if metric.key.endswith("published") else 1 + len(x) * epsilon
    terms = ((a + epsilon) * ((a + epsilon) / (b + epsilon)).ln() for a, b in zip(x, y, strict=True))
    return sum(terms, Decimal(0)) / mass


def exact_jensen_shannon(metric: Metric, x: list[Decimal], y: list[Decimal]) -> Decimal:
    epsilon = Decimal(EPSILON) if metric.key.endswith("published") else Decimal(0)
    total = Decimal(0)
    for a, b in zip(x, y, strict=True):
        m = (a + b) / 2 + epsilon
        total += sum((v + epsilon) * ((v + epsilon) / m).ln() for v in (a, b) if v + epsilon > 0)
    return total / 2


def exact_mmd(metric: Metric, x: list[Decimal], y: list[Decimal]) -> Decimal:
    kernel = metric.kernel  # type: ignore[attr-defined]

    def value(lag: int) -> Decimal:
        if kernel.key == "multiscale":
            squares = [Decimal(a) ** 2 for a in (0.2, 0.5, 0.9, 1.3)]
            return sum((s / (s + lag * lag) for s in squares), Decimal(0))
        return (-Decimal(lag * lag) / (2 * Decimal(kernel.sigma) ** 2)).exp()

    values = [value(lag) for lag in range(len(x))]
    d = [(k, a - b) for k, (a, b) in enumerate(zip(x, y, strict=True)) if a != b]
    return sum((v * w * values[abs(k - m)] for k, v in d for m, w in d), Decimal(0))


EXACT = {"wd": exact_wasserstein, "kl": exact_kullback_leibler, "js": exact_jensen_shannon, "mmd": exact_mmd}

_million = {k: 1 + int(40_000 / (1 + k % 37)) for k in range(60)}
NEARLY_EQUAL = {
    "one count more": (_million, _million | {20: _million[20] + 1}),
    "one token moved": (_million, _million | {3: _million[3] - 1, 55: _million[55] + 1}),
    "one rare token more": (_million, _million | {61: 1}),
    "proportional but for one": (
        _million,
        {k: 3 * v for k, v in _million.items()} | {7: 3 * _million[7] + 1},
    ),
    "neighbours": ({30: 1}, {31: 1}),
    "a billion tokens": ({1: 2**29, 2: 2**29}, {1: 2**29 + 1, 2: 2**29}),
    "billions of tokens, far apart": ({1: 2**32 - 1, 2: 2**32 - 1}, {1: 1, 9: 2**32 - 1, 63: 2**32 - 5}),
    "billions of tokens": ({1: 2**32 - 1, 2: 2**32 - 1, 5: 7}, {1: 2**32 - 1, 2: 2**32 - 2, 5: 7}),
}


@every_metric
@pytest.mark.parametrize("case", NEARLY_EQUAL)
def test_nearly_equal_datasets_keep_their_digits(metric: Metric, case: str) -> None:
    p, q = NEARLY_EQUAL[case]
    counts = block_of([p, q], 64)
    expected = [exact(metric, p, q, 64), exact(metric, q, p, 64)]
    found = metric.block(counts, counts)
    assert_array_equal(np.diag(found), [0.0, 0.0])
    assert_allclose([found[0, 1], found[1, 0]], expected, rtol=1e-9, atol=0)
    pairs = [metric.pair(counts.row(i), counts.row(1 - i), 64) for i in range(2)]
    assert_allclose(pairs, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("sigma", [1.9, 2.1, 40.0, 5000.0])
def test_wide_gaussian_kernels_keep_their_digits(sigma: float) -> None:
    metric = get_metric("mmd", kernel="gaussian", sigma=sigma)
    for p, q in (
        ({10: 1}, {11: 1}),
        ({10: 1}, {50: 1}),
        ({1: 5, 20: 6}, {2: 5, 20: 7}),
        NEARLY_EQUAL["one token moved"],
    ):
        counts = block_of([p, q], 64)
        assert metric.block(counts, counts)[0, 1] == pytest.approx(exact(metric, p, q, 64), rel=1e-9, abs=0)


@every_metric
def test_blocks_of_no_datasets_are_empty(metric: Metric) -> None:
    """Either side, or both."""
    none, one = (TokenCounts.stack(rows, 50) for rows in ([], [(np.array([1, 7]), np.array([2, 3]))]))
    for targets, sources in ((none, none), (none, one), (one, none)):
        assert metric.block(targets, sources).shape == (len(targets), len(sources))


@every_metric
def test_equal_distributions_are_at_distance_zero(metric: Metric) -> None:
    counts = awkward_block(90, 3)
    assert_array_equal(np.diag(metric.block(counts, counts)), np.zeros(len(counts)))
    again = counts.select(np.arange(len(counts)))
    assert_array_equal(np.diag(metric.block(counts, again)), np.zeros(len(counts)))
    tripled = TokenCounts(counts.indptr, counts.ids, counts.counts * 3, counts.vocabulary)
    assert_array_equal(np.diag(metric.block(counts, tripled)), np.zeros(len(counts)))
    assert metric.pair(counts.row(1), tripled.row(1), 90) == 0.0


@st.composite
def two_blocks(draw: st.DrawFn) -> tuple[TokenCounts, TokenCounts]:
    vocabulary = draw(st.integers(2, 40))
    count = st.one_of(st.integers(1, 4), st.integers(1, 10**6))
    row = st.dictionaries(st.integers(0, vocabulary - 1), count, min_size=1, max_size=10)
    rows = st.lists(row, min_size=1, max_size=4)
    return block_of(draw(rows), vocabulary), block_of(draw(rows), vocabulary)


@every_metric
@settings(max_examples=40, deadline=None)
@given(pair=two_blocks())
def test_properties_of_a_block(metric: Metric, pair: tuple[TokenCounts, TokenCounts]) -> None:
    targets, sources = pair
    found = metric.block(targets, sources)
    assert found.shape == (len(targets), len(sources))
    assert found.dtype == np.float64
    assert (found >= 0).all()
    direct = [
        [metric.pair(targets.row(i), sources.row(j), targets.vocabulary) for j in range(len(sources))]
        for i in range(len(targets))
    ]
    assert_allclose(found, direct, rtol=1e-9, atol=0)
    reversed_rows = targets.select(np.arange(len(targets))[::-1])
    assert_allclose(metric.block(reversed_rows, sources), found[::-1], rtol=1e-9, atol=0)
    forward, backward = metric.both(targets, sources)
    assert_allclose(forward, found, rtol=1e-9, atol=0)
    assert_allclose(backward, metric.block(sources, targets), rtol=1e-9, atol=0)
    if metric.symmetric:
        assert_array_equal(backward, forward.T)
    square = metric.block(targets, targets)
    assert_array_equal(np.diag(square), np.zeros(len(targets)))
    if metric.symmetric:
        assert_array_equal(square, square.T)
    if metric.key == "jensen-shannon":
        assert (found <= np.log(2)).all()


@settings(max_examples=40, deadline=None)
@given(pair=two_blocks())
def test_triangle_inequality(pair: tuple[TokenCounts, TokenCounts]) -> None:
    targets, sources = pair
    for name, power in (("wd", 1.0), ("js", 0.5), ("mmd", 0.5)):
        metric = get_metric(name)
        there = metric.block(targets, sources) ** power
        across = metric.block(sources, sources) ** power
        assert (there[:, None, :] <= (there[:, :, None] + across[None]) * (1 + 1e-9)).all()


@every_metric
def test_blocks_of_many_panels_equal_pairs(metric: Metric, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vocabulary and supports of real size in pieces far smaller than usual."""
    targets, sources = zipf_block(5, 20_000, 30_000, 0), zipf_block(6, 20_000, 50_000, 1)
    targets = TokenCounts.stack([*(targets.row(i) for i in range(5)), sources.row(2)], 20_000)
    direct = [[metric.pair(targets.row(i), sources.row(j), 20_000) for j in range(6)] for i in range(6)]
    whole = metric.block(targets, sources)
    assert_allclose(whole, direct, rtol=1e-9, atol=0)
    assert whole[5, 2] == 0.0
    few = [metric.block(targets.select(np.array([i])), sources) for i in range(6)]
    assert_allclose(np.concatenate(few), direct, rtol=1e-9, atol=0)
    assert few[5][0, 2] == 0.0
    monkeypatch.setattr(blocks, "PANEL_BYTES", 50_000)
    monkeypatch.setattr(divergences, "GATHER_ELEMENTS", 100)
    monkeypatch.setattr(divergences, "ROWS_OF_TRIANGLE", 2)
    monkeypatch.setattr(mmd, "ROWS_AT_ONCE", 2)
    assert_allclose(metric.block(targets, sources), direct, rtol=1e-9, atol=0)
    assert_allclose(metric.both(targets, sources)[0], direct, rtol=1e-9, atol=0)
    square = metric.block(sources, sources)
    assert_allclose(square, metric.block(sources, sources.select(np.arange(6))), rtol=1e-9, atol=0)


@every_metric
@pytest.mark.parametrize(
    ("targets", "sources", "vocabulary", "tokens"),
    [
        (1, 1, 40_000, 200),
        (1, 60, 30_000, 20_000),
        (60, 1, 30_000, 20_000),
        (40, 40, 2_000, 20_000),
        (48, 64, 30_000, 60_000),
    ],
)
def test_workspace_is_an_upper_bound(
    metric: Metric, targets: int, sources: int, vocabulary: int, tokens: int
) -> None:
    rows, columns = zipf_block(targets, vocabulary, tokens, 0), zipf_block(sources, vocabulary, tokens, 1)
    nnz = -(-(len(rows.ids) + len(columns.ids)) // (targets + sources))
    for call, square in ((metric.both, False), (metric.block, False), (metric.block, True)):
        other = rows if square else columns
        bound = metric.workspace_bytes(targets, len(other), vocabulary, nnz + 100)
        tracemalloc.start()
        call(rows, other)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= bound
    # A bound that is far too high would make tiles needlessly small.
    assert bound <= 4 * peak + 2**26


def test_keys_are_unique_and_safe_as_file_names() -> None:
    assert list(ALL_METRICS)[:6] == [
        "wasserstein",
        "kullback-leibler",
        "kullback-leibler-published",
        "jensen-shannon",
        "jensen-shannon-published",
        "mmd-multiscale",
    ]
    assert "mmd-gaussian-12.5" in ALL_METRICS
    assert len(ALL_METRICS) == 9
    huge = get_metric("mmd", kernel="gaussian", sigma=1e300).key
    assert all(c.isalnum() or c in ".-" for key in [*ALL_METRICS, huge] for c in key)
    assert get_metric("wd", compatible="published").key == "wasserstein"
    assert get_metric("mmd", compatible="published").key == "mmd-multiscale"


@every_metric
def test_metrics_survive_pickling_and_are_frozen(metric: Metric) -> None:
    again = pickle.loads(pickle.dumps(metric))
    assert again == metric
    assert (again.key, again.name, again.short, again.symmetric) == (
        metric.key,
        metric.name,
        metric.short,
        metric.symmetric,
    )
    counts = awkward_block(50, 0)
    assert_array_equal(again.block(counts, counts), metric.block(counts, counts))


def test_names() -> None:
    assert [canonical_metric_name(n) for n in ("WD", "kl", "Js", "MMD")] == list(METRIC_NAMES)
    for name in METRIC_NAMES:
        assert get_metric(name).name == canonical_metric_name(name.upper()) == name
    assert [get_metric(n).symmetric for n in METRIC_NAMES] == [True, False, True, True]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("euclidean", {}, "wasserstein, kullback-leibler, jensen-shannon, mmd"),
        ("mmd", {"kernel": "cubic"}, "multiscale or gaussian"),
        ("mmd", {"kernel": "gaussian"}, "found None"),
        ("mmd", {"kernel": "gaussian", "sigma": 0.0}, "found 0.0"),
        ("mmd", {"kernel": "gaussian", "sigma": -1.0}, "found -1.0"),
        ("mmd", {"kernel": "gaussian", "sigma": float("nan")}, "found nan"),
        ("mmd", {"kernel": "gaussian", "sigma": float("inf")}, "found inf"),
        ("mmd", {"sigma": 3.0}, "leave it out or use gaussian"),
        ("kl", {"compatible": "legacy"}, "correct or published"),
    ],
)
def test_wrong_options_are_refused(name: str, options: dict, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        get_metric(name, **options)


@every_metric
def test_many_equal_addends_do_not_add_up_their_rounding(metric: Metric) -> None:
    """Thousands of ids with the same few counts, where each addition rounds the same way."""
    rng = np.random.default_rng(2)
    ids = np.arange(0, 12_000, 2)
    first = rng.integers(1, 4, len(ids))
    rows = [(ids, first + (rng.random(len(ids)) < share)) for share in (0.0, 0.003, 0.01, 0.03, 0.1, 0.3)]
    counts = TokenCounts.stack(rows, 12_000)
    direct = [[metric.pair(p, q, 12_000) for q in rows] for p in rows]
    assert_allclose(metric.block(counts, counts), direct, rtol=1e-9, atol=0)


@pytest.mark.parametrize("compatible", ["correct", "published"])
def test_sources_of_a_few_targets_pass_as_many_at_a_time_as_one_likes(
    compatible: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    metric = get_metric("jensen-shannon", compatible=compatible)
    sources, targets = zipf_block(70, 300, 2000, 1), zipf_block(3, 300, 500, 2)
    whole = metric.block(targets, sources)
    for rows in (1, 7, 1000):
        monkeypatch.setattr(divergences, "SUMMED_ROWS", rows)
        assert metric.block(targets, sources).tobytes() == whole.tobytes()
