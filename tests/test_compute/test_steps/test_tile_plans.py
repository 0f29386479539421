"""Plans of distance matrices: nothing left out, no worker left waiting, the same for a run that goes on."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bankdb.errors import PlanError
from compute.metrics.registry import METRIC_NAMES, get_metric
from compute.pairwise.plan import (
    PlannedTile,
    busiest,
    chunk_count,
    expected_seconds,
    plan_distances,
    tile_bytes,
)

METRICS = tuple(get_metric(name) for name in METRIC_NAMES)
VOCABULARY, NNZ = 2_000, 500
Chunks = set[tuple[int, int]]


def every(rows: int) -> Chunks:
    return set(itertools.combinations_with_replacement(range(chunk_count(rows)), 2))


def planned(
    rows: int, slots: int, *, metrics: int = 4, missing: Chunks | None = None, budget: int = 1 << 60
) -> tuple[PlannedTile, ...]:
    chunks = every(rows) if missing is None else missing
    return plan_distances(
        [(metric, chunks) for metric in METRICS[:metrics]],
        rows,
        vocabulary=VOCABULARY,
        nnz=NNZ,
        slots=slots,
        budget=budget,
    )


def loads(tiles: tuple[PlannedTile, ...], slots: int) -> tuple[int, int]:
    """The cost of what the busiest worker does, and of everything."""
    return busiest(Counter(tile.cost for tile in tiles), slots), sum(tile.cost for tile in tiles)


@settings(deadline=None)
@given(st.integers(1, 1500), st.integers(1, 20), st.integers(1, 4), st.floats(0, 1))
def test_every_matrix_is_covered_and_every_tile_fits(
    rows: int, slots: int, metrics: int, room: float
) -> None:
    """Metrics need different memory; each has tiles as large as its own allows."""
    budget = int(
        (1 + 20 * room) * max(tile_bytes(metric, min(rows, 64), VOCABULARY, NNZ) for metric in METRICS)
    )
    tiles = planned(rows, slots, metrics=metrics, budget=budget)
    for matrix in range(metrics):
        own = [piece.tile for piece in tiles if piece.matrix == matrix]
        covered = [chunk for tile in own for chunk in tile.chunks()]
        assert len(covered) == len(set(covered))
        assert set(covered) == every(rows)
        for tile in own:
            side = max(tile.row_stop - tile.row_start, tile.column_stop - tile.column_start)
            assert tile_bytes(METRICS[matrix], side, VOCABULARY, NNZ) <= budget
    assert [piece.cost for piece in tiles] == sorted((piece.cost for piece in tiles), reverse=True)


@pytest.mark.parametrize("metrics", [1, 4])
@pytest.mark.parametrize(("rows", "slots"), [(502, 2), (768, 2), (2_000, 4), (4_000, 16), (10_000, 64)])
def test_no_worker_waits_long(rows: int, slots: int, metrics: int) -> None:
    """The busiest has little more than its share, and all together little more than one worker alone has."""
    longest, total = loads(planned(rows, slots, metrics=metrics), slots)
    alone, _ = loads(planned(rows, 1, metrics=metrics), 1)
    assert longest <= 1.25 * total / slots
    assert alone / longest >= 0.6 * slots


@settings(max_examples=30, deadline=None)
@given(st.integers(200, 3000), st.integers(1, 40))
def test_no_other_side_of_tiles_would_be_done_much_sooner(rows: int, slots: int) -> None:
    """Against every side there is, by brute force."""
    longest, _ = loads(planned(rows, slots), slots)
    for side in range(4, chunk_count(rows) + 1):
        # Memory that no tile with a larger side fits leaves the planner no other choice than this and smaller ones.
        budget = max(tile_bytes(metric, min(64 * side, rows), VOCABULARY, NNZ) for metric in METRICS)
        other, _ = loads(planned(rows, slots, budget=budget), slots)
        assert longest <= 1.3 * other


@settings(max_examples=50, deadline=None)
@given(st.data(), st.integers(1, 1500), st.integers(1, 16))
def test_a_run_that_goes_on_has_the_same_tiles(data: st.DataObject, rows: int, slots: int) -> None:
    """What is computed again is computed in the same blocks, and so to the same last digit."""
    whole = [piece.tile for piece in planned(rows, slots) if piece.matrix == 0]
    undone = data.draw(st.sets(st.sampled_from(whole), min_size=1))
    missing = {chunk for tile in undone for chunk in tile.chunks()}
    rest = {piece.tile for piece in planned(rows, slots, missing=missing) if piece.matrix == 0}
    assert rest == undone
    # A matrix that lacks nothing counts as before.
    done = [(metric, missing if index == 0 else ()) for index, metric in enumerate(METRICS)]
    alone = plan_distances(done, rows, vocabulary=VOCABULARY, nnz=NNZ, slots=slots, budget=1 << 60)
    assert {piece.tile for piece in alone} == rest


@settings(max_examples=50, deadline=None)
@given(st.data(), st.integers(1, 1500), st.integers(1, 16))
def test_whatever_is_missing_lies_in_parts_of_the_same_tiles(
    data: st.DataObject, rows: int, slots: int
) -> None:
    """Of a tile above the diagonal the rows, or columns, that it lacks may be enough; the others are whole."""
    missing = data.draw(st.sets(st.sampled_from(sorted(every(rows))), min_size=1))
    whole = [piece.tile for piece in planned(rows, slots) if piece.matrix == 0]
    rest = [piece.tile for piece in planned(rows, slots, missing=missing) if piece.matrix == 0]
    covered = [chunk for tile in rest for chunk in tile.chunks()]
    assert len(covered) == len(set(covered))
    assert missing <= set(covered)
    for tile in rest:
        (around,) = [one for one in whole if set(tile.chunks()) <= set(one.chunks())]
        if tile != around:
            assert not around.diagonal
            assert set(tile.chunks()) <= missing
            rows_kept = (tile.row_start, tile.row_stop) == (around.row_start, around.row_stop)
            assert rows_kept or (tile.column_start, tile.column_stop) == (
                around.column_start,
                around.column_stop,
            )


@given(st.integers(1, 256), st.integers(1, 64), st.integers(1, 4))
def test_a_small_bank_has_the_same_tiles_on_whatever_workers(rows: int, slots: int, metrics: int) -> None:
    """So that its distances are the same to the last digit."""
    each = len(every(rows)) if rows <= 128 else 1
    assert len(planned(rows, slots, metrics=metrics)) == each * metrics


def test_nothing_missing_is_no_tile() -> None:
    assert planned(500, 2, missing=set(), budget=0) == ()


def test_a_tile_that_does_not_fit_is_refused() -> None:
    with pytest.raises(PlanError, match="--memory"):
        planned(500, 2, budget=1000)


@given(st.dictionaries(st.integers(1, 50), st.integers(1, 6), max_size=8), st.integers(1, 6))
def test_the_busiest_worker_by_hand(costs: dict[int, int], slots: int) -> None:
    """Each task, the dearest first, goes to who has least."""
    workers = [0] * slots
    for cost in sorted(Counter(costs).elements(), reverse=True):
        workers[workers.index(min(workers))] += cost
    assert busiest(costs, slots) == max(workers)


def test_a_dataset_more_by_jensen_shannon_is_of_its_ids_alone() -> None:
    """A few targets are compared id by id; of more, and by other metrics, the vocabulary counts too."""
    js, wd = get_metric("js"), get_metric("wd")
    for metric, new, same in ((js, 1, True), (js, 4, True), (js, 5, False), (wd, 1, False)):
        tiles = plan_distances(
            [(metric, {(i, 9) for i in range(10)})],
            640,
            vocabulary=VOCABULARY,
            nnz=9,
            slots=2,
            budget=1 << 60,
        )
        small, large = (expected_seconds(tiles, [new], vocabulary, 9) for vocabulary in (2_000, 200_000))
        assert (small == large) is same
        assert 0 < small <= large
