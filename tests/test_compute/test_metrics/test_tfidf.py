"""tf-idf against brute force over words, exact arithmetic, and the promises of a metric."""

from __future__ import annotations

import math
import pickle
import tracemalloc
from collections import Counter
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from bankdb.errors import ParameterError
from compute.metrics import base as blocks
from compute.metrics.distributions import TokenCounts
from compute.metrics.registry import get_metric
from compute.metrics.tfidf import TfIdf, inverse_document_frequencies

Row = dict[int, int]
VOCABULARY = 30


def stacked(rows: list[Row], vocabulary: int = VOCABULARY) -> TokenCounts:
    return TokenCounts.stack(
        [(np.array(sorted(row)), np.array([row[k] for k in sorted(row)])) for row in rows], vocabulary
    )


def by_hand(bank: list[Row], p: Row, q: Row) -> float:
    """One minus the cosine, an id at a time."""
    having = Counter(k for row in bank for k in row)

    def vector(row: Row) -> dict[int, float]:
        total = sum(row.values())
        return {k: v / total * (math.log((1 + len(bank)) / (1 + having[k])) + 1) for k, v in row.items()}

    x, y = vector(p), vector(q)
    product = sum(value * y.get(k, 0.0) for k, value in x.items())
    lengths = [math.sqrt(sum(value * value for value in v.values())) for v in (x, y)]
    return 1 - product / (lengths[0] * lengths[1])


rows = st.lists(
    st.dictionaries(
        st.integers(0, VOCABULARY - 1),
        st.one_of(st.integers(1, 4), st.integers(1, 10**6)),
        min_size=1,
        max_size=10,
    ),
    min_size=2,
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(bank=rows, new=rows)
def test_blocks_equal_brute_force(bank: list[Row], new: list[Row]) -> None:
    counts, targets = stacked(bank), stacked(new)
    metric = TfIdf(inverse_document_frequencies(counts))
    expected = [[by_hand(bank, p, q) for q in bank] for p in new]
    found = metric.block(targets, counts)
    assert_allclose(found, expected, rtol=1e-9, atol=1e-14)
    assert (found >= 0).all()
    assert (found <= 1).all()
    direct = [
        [metric.pair(targets.row(i), counts.row(j), VOCABULARY) for j in range(len(bank))]
        for i in range(len(new))
    ]
    assert_allclose(found, direct, rtol=1e-9, atol=0)
    forward, backward = metric.both(targets, counts)
    assert_array_equal(backward, forward.T)
    square = metric.block(counts, counts)
    assert_array_equal(np.diag(square), np.zeros(len(bank)))
    assert_array_equal(square, square.T)


@pytest.mark.parametrize(
    ("p", "q"),
    [
        ({1: 2**29, 2: 2**29}, {1: 2**29 + 1, 2: 2**29}),
        ({k: 40_000 + k for k in range(20)}, {k: 40_000 + k + (k == 7) for k in range(20)}),
        ({1: 3, 2: 10**6}, {1: 4, 2: 10**6}),
        ({0: 1}, {0: 1, 1: 1}),
    ],
)
def test_nearly_equal_datasets_keep_their_digits(p: Row, q: Row) -> None:
    metric = TfIdf(np.linspace(1.0, 3.0, VOCABULARY))
    with localcontext() as context:
        context.prec = 60
        weights = [Decimal(float(value)) for value in metric.frequencies]
        x, y = ([row.get(k, 0) * weights[k] for k in range(VOCABULARY)] for row in (p, q))
        dot, xx, yy = (sum(a * b for a, b in zip(u, v, strict=True)) for u, v in ((x, y), (x, x), (y, y)))
        exact = float(1 - dot / (xx * yy).sqrt())
    counts = stacked([p, q])
    assert metric.block(counts, counts)[0, 1] == pytest.approx(exact, rel=1e-9, abs=0)
    assert metric.pair(counts.row(1), counts.row(0), VOCABULARY) == pytest.approx(exact, rel=1e-9, abs=0)


def test_equal_distributions_are_at_distance_zero() -> None:
    counts = stacked([{1: 3, 5: 7}, {1: 9, 5: 21}, {2: 1}])
    metric = TfIdf(inverse_document_frequencies(counts))
    assert metric.block(counts, counts)[0, 1] == 0.0
    assert metric.pair(counts.row(0), counts.row(1), VOCABULARY) == 0.0
    assert metric.block(counts, counts)[0, 2] == 1.0


def test_the_key_changes_with_the_bank_and_with_nothing_else() -> None:
    counts = stacked([{1: 3, 5: 7}, {1: 9, 2: 21}])
    key = get_metric("tf-idf", frequencies=inverse_document_frequencies(counts)).key
    assert TfIdf(inverse_document_frequencies(stacked([{1: 1, 5: 1}, {1: 1, 2: 1}]))).key == key
    assert TfIdf(inverse_document_frequencies(stacked([{1: 3, 5: 7}, {1: 9, 2: 21}, {7: 1}]))).key != key
    assert all(c.isalnum() or c == "-" for c in key)
    again = pickle.loads(pickle.dumps(TfIdf(inverse_document_frequencies(counts))))
    assert again.key == key
    assert_array_equal(again.block(counts, counts), again.block(counts, counts.select(np.arange(2))))


def test_panels_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(50):
        ids = np.sort(rng.choice(20_000, 3_000, replace=False))
        rows.append((ids, rng.integers(1, 30, len(ids))))
    counts = TokenCounts.stack(rows, 20_000)
    metric = TfIdf(inverse_document_frequencies(counts))
    tracemalloc.start()
    whole = metric.block(counts, counts)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= metric.workspace_bytes(50, 50, 20_000, 3_000) <= 4 * peak + 2**26
    monkeypatch.setattr(blocks, "PANEL_BYTES", 50_000)
    assert_allclose(metric.block(counts, counts), whole, rtol=1e-9, atol=0)


def test_wrong_frequencies_are_refused() -> None:
    with pytest.raises(ParameterError, match="found none"):
        get_metric("tf-idf")
    with pytest.raises(ParameterError, match="above 0"):
        TfIdf(np.array([1.0, 0.0]))
    metric, counts = TfIdf(np.ones(3)), stacked([{1: 1}])
    with pytest.raises(ParameterError, match="over 3 token ids, found 30"):
        metric.block(counts, counts)
