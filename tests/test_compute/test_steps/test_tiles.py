"""Plans of integers: everything once, whole chunks and shards, never over the budget."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bankdb.errors import PlanError
from compute.combination.plan import SHARD_ROWS, following, panel_bytes, plan_panels
from compute.gram.plan import plan_slices
from compute.pairwise.counts import contiguous
from compute.pairwise.plan import CHUNK_ROWS, chunk_count, cover, largest_side


def workspace(side: int) -> int:
    return 1000 + 40 * side + 8 * side * side


@st.composite
def rows_and_missing(draw: st.DrawFn) -> tuple[int, set[tuple[int, int]]]:
    rows = draw(st.integers(1, 1000))
    blocks = -(-rows // CHUNK_ROWS)
    chunks = list(itertools.combinations_with_replacement(range(blocks), 2))
    return rows, draw(st.one_of(st.just(set(chunks)), st.sets(st.sampled_from(chunks))))


sides = st.integers(1, 20)


@given(rows_and_missing(), sides)
def test_tiles_cover_each_missing_chunk_once(plan: tuple[int, set[tuple[int, int]]], side: int) -> None:
    rows, missing = plan
    tiles = cover(rows, missing, side)
    covered = [chunk for tile in tiles for chunk in tile.chunks()]
    assert len(covered) == len(set(covered))
    assert missing <= set(covered)
    assert all(0 <= i <= j < chunk_count(rows) for i, j in covered)
    assert all(missing.intersection(tile.chunks()) for tile in tiles)
    assert len({tile.name for tile in tiles}) == len(tiles)


@given(rows_and_missing(), sides)
def test_tiles_and_their_mirrors_own_whole_chunks_alone(
    plan: tuple[int, set[tuple[int, int]]], side: int
) -> None:
    rows, missing = plan
    owner = np.zeros((chunk_count(rows),) * 2, dtype=int)
    for tile in cover(rows, missing, side):
        edges = (tile.row_start, tile.row_stop, tile.column_start, tile.column_stop)
        assert all(edge % CHUNK_ROWS == 0 or edge == rows for edge in edges)
        assert tile.row_start < tile.row_stop <= rows
        assert tile.column_start < tile.column_stop <= rows
        i, j = (slice(start // CHUNK_ROWS, -(-stop // CHUNK_ROWS)) for start, stop in (edges[:2], edges[2:]))
        owner[i, j] += 1
        if tile.diagonal:
            assert edges[:2] == edges[2:]
        else:
            # Nothing of an off-diagonal tile lies on its own mirror.
            assert tile.row_stop <= tile.column_start
            owner[j, i] += 1
        assert max(tile.row_stop - tile.row_start, tile.column_stop - tile.column_start) <= side * CHUNK_ROWS
    assert owner.max(initial=0) <= 1


@given(st.integers(1, 1000), st.integers(0, workspace(1000)))
def test_the_largest_side_is_the_last_that_fits(rows: int, more: int) -> None:
    budget = workspace(min(rows, CHUNK_ROWS)) + more
    side = largest_side(rows, budget=budget, workspace=workspace)
    assert 1 <= side <= chunk_count(rows)
    assert workspace(min(side * CHUNK_ROWS, rows)) <= budget
    assert side == chunk_count(rows) or workspace(min((side + 1) * CHUNK_ROWS, rows)) > budget


def test_nothing_missing_is_no_tile() -> None:
    assert cover(500, (), 1) == ()


@given(st.integers(1, 1000), st.integers(0, workspace(CHUNK_ROWS) - 1))
def test_a_tile_that_does_not_fit_is_refused(rows: int, budget: int) -> None:
    assume(workspace(min(rows, CHUNK_ROWS)) > budget)
    with pytest.raises(PlanError, match="--memory"):
        largest_side(rows, budget=budget, workspace=workspace)


def test_a_small_bank_needs_memory_for_its_own_rows_alone() -> None:
    assert largest_side(3, budget=workspace(3), workspace=workspace) == 1


targets_and_sources = st.integers(1, 150)
widths = st.integers(1, 40)


@given(targets_and_sources, targets_and_sources, st.integers(1, 200), widths, st.floats(0, 3))
def test_panels_cover_each_entry_once_in_whole_shards(
    targets: int, sources: int, parameters: int, chunk: int, room: float
) -> None:
    chunk = min(chunk, parameters)
    budget = int(panel_bytes(min(targets, SHARD_ROWS), 1, sources, chunk, blocks=1) * (1 + room))
    covered = np.zeros((targets, parameters), dtype=int)
    panels = plan_panels(targets, sources, parameters, chunk=chunk, budget=budget)
    for panel in panels:
        covered[panel.target_start : panel.target_stop, panel.start : panel.stop] += 1
        assert panel.start % chunk == 0
        assert panel.stop % chunk == 0 or panel.stop == parameters
        assert panel.target_start % SHARD_ROWS == 0
        assert panel.target_stop % SHARD_ROWS == 0 or panel.target_stop == targets
        assert 1 <= panel.batch <= sources
        height = panel.target_stop - panel.target_start
        assert panel.block % SHARD_ROWS == 0 or panel.block == targets
        if panel.held:
            assert (height, panel.batch) == (targets, sources)
            assert panel_bytes(panel.block, sources, sources, panel.stop - panel.start) <= budget
        else:
            assert panel.block >= height
            assert panel_bytes(height, panel.batch, sources, panel.stop - panel.start, blocks=1) <= budget
    assert (covered == 1).all()
    assert len({panel.name for panel in panels}) == len(panels)


@pytest.mark.parametrize("targets", [502, 12 * 512])
@pytest.mark.parametrize(("mebibytes", "block"), [(2048, 128), (512, 64), (340, 32), (290, 16)])
def test_sources_that_fit_are_read_once_however_many_targets(
    targets: int, mebibytes: int, block: int
) -> None:
    panels = plan_panels(targets, 502, 9_437_184, chunk=131_072, budget=mebibytes << 20)
    assert len(panels) == 72
    assert {(panel.target_start, panel.target_stop) for panel in panels} == {(0, targets)}
    assert {(panel.held, panel.batch, panel.block) for panel in panels} == {(True, 502, block)}


def test_sources_that_do_not_fit_are_read_once_for_a_range_of_targets() -> None:
    panels = plan_panels(502, 502, 9_437_184, chunk=131_072, budget=200 << 20)
    assert len(panels) == 2 * 72
    assert not any(panel.held for panel in panels)


@given(targets_and_sources, targets_and_sources, widths, st.floats(0, 1, exclude_max=True))
def test_a_panel_that_does_not_fit_is_refused(targets: int, sources: int, chunk: int, share: float) -> None:
    smallest = panel_bytes(min(targets, SHARD_ROWS), 1, sources, chunk, blocks=1)
    with pytest.raises(PlanError, match="--memory"):
        plan_panels(targets, sources, 1000, chunk=chunk, budget=int((smallest - 1) * share))


@given(st.integers(1, 5000), st.integers(1, 300), st.integers(1, 100), st.integers(1, 80))
def test_slices_partition_the_columns(parameters: int, chunk: int, rows: int, pieces: int) -> None:
    slices = plan_slices(parameters, rows, chunk=chunk, budget=1 << 40, pieces=pieces)
    assert [column for part in slices for column in part] == list(range(parameters))
    assert all(part.start % chunk == 0 for part in slices)
    assert len(slices) >= min(pieces, -(-parameters // chunk))


@given(st.integers(1, 300), st.integers(1, 1000))
def test_a_gram_matrix_that_does_not_fit_is_refused(rows: int, chunk: int) -> None:
    # The sum itself, and one chunk of every row: less cannot be enough.
    with pytest.raises(PlanError, match="--memory"):
        plan_slices(10_000, rows, chunk=chunk, budget=8 * rows * rows + 4 * chunk * rows, pieces=4)


@given(st.lists(st.integers(0, 50), unique=True).map(sorted), st.integers(0, 60), st.integers(0, 60))
def test_contiguous_positions(values: list[int], start: int, length: int) -> None:
    first, last = contiguous(values, start, start + length)
    assert values[first:last] == [value for value in values if start <= value < start + length]


@given(st.integers(1, 40), st.integers(1, 8))
def test_what_is_read_ahead_is_the_slice_after_those_that_run(count: int, slots: int) -> None:
    slices = [range(7 * i, 7 * i + 7) for i in range(count)]
    for index in range(count):
        later = index + slots
        assert following(slices, index, slots) == ((7 * later, 7 * later + 7) if later < count else (0, 0))
