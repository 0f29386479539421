"""The compiled loops and the NumPy path beside them, against SciPy, exact arithmetic and each other."""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats
from scipy.spatial.distance import jensenshannon

from compute.metrics import base as blocks
from compute.metrics import divergences, mixtures, wasserstein
from compute.metrics.base import Metric, allow_compiled, compiled_kernels, worth_compiling
from compute.metrics.distributions import TokenCounts, dense
from compute.metrics.registry import get_metric
from compute.types import Compatible
from tests.test_compute.test_metrics.test_metrics import (
    NEARLY_EQUAL,
    Row,
    awkward_block,
    block_of,
    exact,
    zipf_block,
)

METRICS = {
    metric.key: metric
    for metric in (
        get_metric("wasserstein"),
        get_metric("jensen-shannon"),
        get_metric("jensen-shannon", compatible="published"),
    )
}
compiled_metrics = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS.keys())
needs_numba = pytest.mark.skipif(
    importlib.util.find_spec("numba") is None, reason="numba is not for this Python yet"
)


@pytest.fixture(params=["numpy", pytest.param("compiled", marks=needs_numba)])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every block by one of the two paths, whatever its size."""
    monkeypatch.setattr(blocks, "LEAST_SAVING", math.inf if request.param == "numpy" else 0.0)
    assert (compiled_kernels(1, 1.0) is None) == (request.param == "numpy")
    name: str = request.param
    return name


# -- the logarithm -------------------------------------------------------------------------------------


def compiled_logarithms(values: np.ndarray) -> np.ndarray:
    from compute.metrics.compiled import logarithms

    results = np.empty_like(values)
    logarithms(values, results)
    return results


def units_off(values: np.ndarray) -> float:
    """Largest error in units in the last place; the oracle has more digits where the machine has them."""
    exact_values = np.log(values.astype(np.longdouble))
    spacing = np.spacing(np.abs(exact_values.astype(np.float64)))
    return float(np.max(np.abs(compiled_logarithms(values) - exact_values) / spacing))


@needs_numba
def test_the_logarithm_is_good_to_two_units_in_the_last_place() -> None:
    rng = np.random.default_rng(0)
    samples = {
        "probabilities": 10 ** rng.uniform(-15, 0, 300_000),
        "all normal numbers": 10 ** rng.uniform(-307.6, 308.2, 300_000),
        "around one": 1 + rng.uniform(-1e-3, 1e-3, 100_000),
        "where the exponent changes": math.sqrt(0.5) * (1 + rng.uniform(-1e-6, 1e-6, 100_000)),
        "counts over totals": rng.integers(1, 2**31, 100_000) / rng.integers(2**31, 2**40, 100_000),
        "beside powers of two": np.nextafter(2.0 ** np.arange(-1000, 1000), 0),
    }
    off = {name: units_off(values) for name, values in samples.items()}
    assert max(off.values()) <= 2, off


@needs_numba
def test_the_logarithm_of_powers_of_two() -> None:
    powers = np.arange(-1022, 1024)
    assert_array_equal(compiled_logarithms(2.0**powers), powers * math.log(2))


# -- blocks against oracles ----------------------------------------------------------------------------


def scipy_wasserstein(p: tuple[np.ndarray, np.ndarray], q: tuple[np.ndarray, np.ndarray]) -> float:
    return float(stats.wasserstein_distance(p[0], q[0], p[1], q[1]))


def oracle(metric: Metric, targets: TokenCounts, sources: TokenCounts) -> np.ndarray:
    if metric.key == "wasserstein":
        return np.array(
            [
                [scipy_wasserstein(targets.row(i), sources.row(j)) for j in range(len(sources))]
                for i in range(len(targets))
            ]
        )
    if metric.key == "jensen-shannon":
        return jensenshannon(dense(targets)[:, None], dense(sources)[None], axis=2) ** 2
    return published_jensen_shannon(targets, sources)


def published_jensen_shannon(targets: TokenCounts, sources: TokenCounts) -> np.ndarray:
    def bins(counts: TokenCounts) -> np.ndarray:
        shares = dense(counts)
        shares[:, -2] += shares[:, -1]
        return shares[:, :-1] + 1e-10

    p, q = bins(targets)[:, None], bins(sources)[None]
    m = (p + q) / 2
    return ((p * np.log(p / m)).sum(axis=2) + (q * np.log(q / m)).sum(axis=2)) / 2


@compiled_metrics
@pytest.mark.parametrize(("targets", "sources"), [(1, 1), (1, 9), (9, 1), (2, 3), (5, 4), (8, 7), (9, 9)])
def test_blocks_of_any_shape_equal_the_oracle(path: str, metric: Metric, targets: int, sources: int) -> None:
    """No multiple of what the loops take at once, and ids on both sides of 128 and 256."""
    rows, columns = awkward_block(300, 0), awkward_block(300, 1)
    rows, columns = rows.select(np.arange(9 - targets, 9)), columns.select(np.arange(sources))
    assert_allclose(metric.block(rows, columns), oracle(metric, rows, columns), rtol=1e-9, atol=1e-16)


@compiled_metrics
def test_a_block_with_itself_is_a_mirror_and_zero_on_the_diagonal(path: str, metric: Metric) -> None:
    rows = awkward_block(300, 3)
    square = metric.block(rows, rows)
    assert_array_equal(square, square.T)
    assert_array_equal(np.diag(square), np.zeros(9))
    assert_allclose(square, metric.block(rows, rows.select(np.arange(9))), rtol=1e-9, atol=0)


@compiled_metrics
@pytest.mark.parametrize("case", NEARLY_EQUAL)
def test_nearly_equal_datasets_keep_their_digits(path: str, metric: Metric, case: str) -> None:
    p, q = NEARLY_EQUAL[case]
    counts = block_of([p, q], 64)
    assert metric.block(counts, counts)[0, 1] == pytest.approx(exact(metric, p, q, 64), rel=1e-9, abs=0)


@st.composite
def datasets(draw: st.DrawFn) -> tuple[TokenCounts, TokenCounts]:
    """Few ids, so that some pairs share none and some are equal; counts up to 2^31; copies nearly equal."""
    vocabulary = draw(st.sampled_from([2, 9, 140, 400]))
    count = st.one_of(st.integers(1, 3), st.integers(1, 2**31))
    row = st.dictionaries(st.integers(0, vocabulary - 1), count, min_size=1, max_size=12)
    targets, sources = (
        draw(st.lists(row, min_size=1, max_size=6)),
        draw(st.lists(row, min_size=1, max_size=6)),
    )
    copy: Row = dict(targets[0])
    sources.append(dict(copy))
    changed = draw(st.sampled_from(sorted(copy)))
    copy[changed] = min(2**31, copy[changed] + 1)
    sources.append(copy)
    return block_of(targets, vocabulary), block_of(sources, vocabulary)


@compiled_metrics
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pair=datasets())
def test_blocks_equal_pairs(path: str, metric: Metric, pair: tuple[TokenCounts, TokenCounts]) -> None:
    targets, sources = pair
    found = metric.block(targets, sources)
    direct = [
        [metric.pair(targets.row(i), sources.row(j), targets.vocabulary) for j in range(len(sources))]
        for i in range(len(targets))
    ]
    assert (found >= 0).all()
    assert_allclose(found, direct, rtol=1e-9, atol=0)
    assert found[0, -2] == 0
    with np.errstate(invalid="ignore"):
        expected = oracle(metric, targets, sources)
    # SciPy has few digits, or none, where the two are nearly equal.
    far = expected > 1e-6
    assert_allclose(found[far], expected[far], rtol=1e-8, atol=0)


@compiled_metrics
def test_supports_of_real_size(path: str, metric: Metric) -> None:
    """Thousands of ids, and more that both have than the buffers hold at once."""
    targets, sources = zipf_block(3, 20_000, 30_000, 0), zipf_block(25, 20_000, 50_000, 1)
    direct = [[metric.pair(targets.row(i), sources.row(j), 20_000) for j in range(25)] for i in range(3)]
    assert_allclose(metric.block(targets, sources), direct, rtol=1e-9, atol=0)
    square = metric.block(sources, sources)
    assert_allclose(square, metric.block(sources, sources.select(np.arange(25))), rtol=1e-9, atol=0)


@compiled_metrics
def test_more_sources_than_the_buffer_holds(path: str, metric: Metric) -> None:
    targets, sources = (
        block_of([{0: 2, 5: 1, 7: 9}], 20),
        block_of([{5: 1 + k, 8: 3} for k in range(1500)], 20),
    )
    assert_allclose(metric.block(targets, sources), oracle(metric, targets, sources), rtol=1e-9, atol=0)


@compiled_metrics
def test_many_equal_addends_do_not_add_up_their_rounding(path: str, metric: Metric) -> None:
    rng = np.random.default_rng(2)
    ids = np.arange(0, 12_000, 2)
    first = rng.integers(1, 4, len(ids))
    rows = [(ids, first + (rng.random(len(ids)) < share)) for share in (0.0, 0.003, 0.03, 0.3)]
    counts = TokenCounts.stack(rows, 12_000)
    direct = [[metric.pair(p, q, 12_000) for q in rows] for p in rows]
    assert_allclose(metric.block(counts, counts), direct, rtol=1e-9, atol=0)


@needs_numba
@compiled_metrics
def test_both_paths_agree(metric: Metric, monkeypatch: pytest.MonkeyPatch) -> None:
    targets, sources = zipf_block(30, 3_000, 20_000, 4), zipf_block(21, 3_000, 9_000, 5)
    by_numpy = metric.block(targets, sources)
    monkeypatch.setattr(blocks, "LEAST_SAVING", 0.0)
    assert_allclose(metric.block(targets, sources), by_numpy, rtol=1e-11, atol=0)


@needs_numba
@pytest.mark.parametrize("compatible", ["correct", "published"])
@pytest.mark.parametrize("entries", [1, 100_000, 300_000])
def test_panels_of_ids_do_not_change_a_digit(
    monkeypatch: pytest.MonkeyPatch, compatible: Compatible, entries: int
) -> None:
    metric = get_metric("jensen-shannon", compatible=compatible)
    targets, sources = zipf_block(30, 9_000, 20_000, 6), zipf_block(21, 9_000, 30_000, 7)
    monkeypatch.setattr(blocks, "LEAST_SAVING", 0.0)
    whole, square = metric.block(targets, sources), metric.block(targets, targets)
    monkeypatch.setattr(mixtures, "LOOP_ENTRIES", entries)
    assert_array_equal(metric.block(targets, sources), whole)
    assert_array_equal(metric.block(targets, targets), square)


@needs_numba
def test_what_the_loops_read_is_made_for_few_entries_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = zipf_block(400, 30_000, 30_000, 8)
    monkeypatch.setattr(blocks, "LEAST_SAVING", 0.0)
    monkeypatch.setattr(mixtures, "LOOP_ENTRIES", len(rows.ids) // 50)
    metric = get_metric("jensen-shannon")
    metric.block(rows, rows)  # compiled, and loaded
    tracemalloc.start()
    try:
        metric.block(rows, rows)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The support and the results are not made by entry: what is left is less than one number for each.
    assert peak - 6 * 30_000 - 5 * 8 * 400**2 < 8 * len(rows.ids)


# -- when they are used --------------------------------------------------------------------------------


def test_small_blocks_are_not_worth_it() -> None:
    # One new dataset against five hundred, 32,000 ids of which each has 8,700; then tiles of the paper's bank.
    assert not worth_compiling(500 * 32_000, wasserstein.SAVED)
    assert not worth_compiling(500 * 8_700, divergences.SAVED)
    assert worth_compiling(128 * 128 * 30_000, wasserstein.SAVED)
    assert worth_compiling(128 * 128 * 8_700, divergences.SAVED)
    least = int(blocks.LEAST_SAVING * 1e9)
    assert worth_compiling(least, 1.0)
    assert not worth_compiling(least - 1, 1.0)


def test_a_small_block_loads_no_compiler() -> None:
    program = (
        "import sys, numpy as np\n"
        "from compute.metrics.distributions import TokenCounts\n"
        "from compute.metrics.registry import METRIC_NAMES, get_metric\n"
        "row = (np.arange(50), np.arange(1, 51))\n"
        "counts = TokenCounts.stack([row, row], 60)\n"
        "[get_metric(name).block(counts, counts) for name in METRIC_NAMES]\n"
        "print([name for name in ('numba', 'llvmlite') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Every block worth compiling, and numba looked for again."""
    monkeypatch.setattr(blocks, "LEAST_SAVING", 0.0)
    blocks._compiled.cache_clear()
    yield blocks._compiled.cache_clear
    blocks._compiled.cache_clear()


@compiled_metrics
def test_without_numba_numpy_does_it(
    fresh: Callable[[], None], monkeypatch: pytest.MonkeyPatch, metric: Metric
) -> None:
    for name in ("compute.metrics.compiled", "numba"):
        monkeypatch.setitem(sys.modules, name, None)
    rows, columns = awkward_block(300, 0), awkward_block(300, 1)
    assert compiled_kernels(1, 1.0) is None
    assert_allclose(metric.block(rows, columns), oracle(metric, rows, columns), rtol=1e-9, atol=1e-16)


@needs_numba
def test_compiled_loops_can_be_forbidden(fresh: Callable[[], None]) -> None:
    with allow_compiled(False):
        assert compiled_kernels(1, 1.0) is None
        with allow_compiled(True):
            assert compiled_kernels(1, 1.0) is not None
        assert compiled_kernels(1, 1.0) is None
    assert compiled_kernels(1, 1.0) is not None


@needs_numba
def test_numba_told_not_to_compile_leaves_it_to_numpy() -> None:
    """Interpreted, the loops would be far slower than NumPy."""
    program = (
        "from compute.metrics import base; base.LEAST_SAVING = 0.0; print(base.compiled_kernels(1, 1.0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        env={"NUMBA_DISABLE_JIT": "1", "PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stdout.strip() == "None"


@needs_numba
def test_where_machine_code_cannot_be_kept_it_is_compiled_again() -> None:
    """Such as in a container whose folders are all read-only; here, code of no file."""
    from compute.metrics.compiled import compiled

    names: dict[str, Callable[[float], float]] = {}
    exec("def half(x):\n    return x / 2", names)
    assert compiled(names["half"])(3.0) == 1.5
