"""The order in which pairs are stored, whatever comes when; and that whatever is slow stops no others."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bankdb.errors import FileSystemError, SourceError
from bankdb.ingesting.pipeline import Incoming, Outcome, Pipeline, Preparing
from bankdb.records import Pair, PairReference


def reference(number: int) -> PairReference:
    return PairReference(f"{number}", "hub:o/a", "hub:o/d")


def pair_of(one: PairReference) -> Pair:
    return Pair(one.name, Path("a"), (Path("d"),), "a", "d")


@dataclass
class Kept:
    """Keeps what is stored, in the order in which it ends; rows are written beside others, or at once."""

    stored: list[int] = field(default_factory=list)
    begun: list[int] = field(default_factory=list)
    write: Callable[[int], None] | None = None

    def begin(self, pair: Pair, prepared: Preparing) -> Writing | None:
        assert prepared.done()
        number = int(pair.name)
        self.begun.append(number)
        if self.write is None:
            self.stored.append(number)
            return None
        return Writing(self.write, number)

    def end(self, begun: Writing) -> None:
        assert begun.written
        self.stored.append(begun.number)


@dataclass
class Writing:
    how: Callable[[int], None]
    number: int
    written: bool = False

    def write(self) -> None:
        assert not self.written
        self.how(self.number)
        self.written = True


def kept_in(stored: list[int]) -> Kept:
    return Kept(stored)


def run(
    incoming: list[Incoming], fetch, downloads: int = 2, write: Callable[[int], None] | None = None
) -> list[Outcome]:
    store = Kept(write=write)
    pipeline = Pipeline(incoming, fetch, lambda pair: None, store, downloads=downloads, stop=lambda: None)
    outcomes = list(pipeline.outcomes())
    assert store.stored == store.begun
    return outcomes


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from(["pair", "there", "refused", "local"]), max_size=12),
    st.integers(1, 4),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_each_comes_once_and_in_order(kinds: list[str], downloads: int, beside: bool, seed: int) -> None:
    rng = random.Random(seed)
    pauses = [rng.choice([0, 0, 0.002]) for _ in kinds]

    def fetch(one: PairReference) -> Pair | None:
        number = int(one.name)
        time.sleep(pauses[number])
        if kinds[number] == "refused":
            raise SourceError(f"no {number}")
        return pair_of(one) if kinds[number] == "pair" else None

    incoming = [
        Incoming(reference(number), pair_of(reference(number)) if kind == "local" else None)
        for number, kind in enumerate(kinds)
    ]
    write = (lambda number: time.sleep(pauses[-number])) if beside else None
    outcomes = run(incoming, fetch, downloads, write)
    prepared = [one for one in outcomes if one.prepared is not None]
    assert [one.reference.name for one in prepared] == [
        str(number) for number, kind in enumerate(kinds) if kind in ("pair", "local")
    ]
    assert sorted(int(one.reference.name) for one in outcomes) == list(range(len(kinds)))
    assert {str(one.error) for one in outcomes if one.error} == {
        f"no {number}" for number, kind in enumerate(kinds) if kind == "refused"
    }


def test_one_that_is_late_stops_no_others() -> None:
    """The first ends only when all others are there, many more than wait for it."""
    others = 60
    arrived, all_there = [], threading.Event()

    def fetch(one: PairReference) -> Pair:
        if one.name == "0":
            assert all_there.wait(60)
        return pair_of(one)

    pipeline = Pipeline(
        [Incoming(reference(number)) for number in range(others + 1)],
        fetch,
        lambda pair: all_there.set() if int(pair.name) == others - 20 else None,
        kept_in(arrived),
        downloads=2,
        stop=lambda: None,
    )
    assert [int(one.reference.name) for one in pipeline.outcomes()] == arrived
    assert sorted(arrived) == list(range(others + 1))
    assert arrived.index(0) > 1
    # What was not passed over by need has its place.
    without = [number for number in arrived if number != 0]
    assert without == sorted(without)


def test_no_more_at_a_time_than_asked() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def fetch(one: PairReference) -> Pair:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.002)
        with lock:
            running -= 1
        return pair_of(one)

    run([Incoming(reference(number)) for number in range(20)], fetch, downloads=3)
    assert 1 < most <= 3


def test_a_full_disk_ends_it_and_stops_the_others() -> None:
    stopped = threading.Event()

    def fetch(one: PairReference) -> Pair:
        if one.name == "1":
            raise FileSystemError("full")
        if one.name != "0":
            assert stopped.wait(60)
        return pair_of(one)

    pipeline = Pipeline(
        [Incoming(reference(number)) for number in range(9)],
        fetch,
        lambda pair: None,
        kept_in([]),
        downloads=4,
        stop=stopped.set,
    )
    with pytest.raises(FileSystemError):
        list(pipeline.outcomes())
    assert stopped.is_set()


def of_six(store: Kept, stop: Callable[[], None] = lambda: None) -> Pipeline:
    """Six pairs that are on this machine."""
    incoming = [Incoming(one, pair_of(one)) for one in map(reference, range(6))]
    return Pipeline(incoming, pair_of, lambda pair: None, store, downloads=1, stop=stop)


def test_two_rows_are_written_at_a_time_and_end_in_their_order() -> None:
    """The first is whole only when the second is written; nothing else of the second is done before."""
    second, most, writing, lock = threading.Event(), 0, 0, threading.Lock()

    def write(number: int) -> None:
        nonlocal most, writing
        with lock:
            writing += 1
            most = max(most, writing)
        if number == 0:
            assert second.wait(60)
        if number == 1:
            second.set()
        with lock:
            writing -= 1

    store = Kept(write=write)
    pipeline = of_six(store)
    assert [int(one.reference.name) for one in pipeline.outcomes()] == store.stored == list(range(6))
    assert store.begun == store.stored
    assert most == 2


@pytest.mark.parametrize("late", [False, True])
def test_what_is_being_stored_is_stored_though_all_is_given_up(late: bool) -> None:
    """Whoever takes outcomes ends after the first, as Ctrl-C does."""
    gate = threading.Event()

    def write(number: int) -> None:
        if number:
            assert gate.wait(60)

    store = Kept(write=write)
    pipeline = of_six(store, gate.set)
    outcomes = pipeline.outcomes()
    next(outcomes)
    if late:
        time.sleep(0.05)
    outcomes.close()
    assert store.begun[: len(store.stored)] == store.stored == store.begun
    assert len(store.stored) < 6
