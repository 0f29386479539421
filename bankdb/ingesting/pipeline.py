"""What comes in, what is prepared of it, and what is stored: side by side, each as soon as the one before lets it.

Pairs are stored in the order of their references, which decides the numbers of their rows, and with these in which
order sums over the bank's adapters run: the same references make the same bank, however fast each file came. Only where
one keeps so many others waiting that downloads would stand still are those stored before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

from bankdb.errors import (
    ArrayStoreUnavailableError,
    BankError,
    DatabaseUnavailableError,
    FileSystemError,
)
from bankdb.ingesting.prepared import AHEAD, Prepared
from bankdb.records import Pair, PairReference

# Pairs that are being downloaded or wait to be stored, for each download at a time.
_WINDOW = 8
# No fault of the pair's; the others would fare no better.
OF_NO_PAIR = (ArrayStoreUnavailableError, DatabaseUnavailableError, FileSystemError)

# Pairs that are being stored: one waits for the disk while another's row is hashed and copied.
_STORED_AT_ONCE = 2

Preparing = Future["Prepared | None"]


@dataclass(frozen=True, slots=True)
class Incoming:
    """A pair to be stored; `pair` where its files are on this machine already."""

    reference: PairReference
    pair: Pair | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a reference: a pair that is prepared or refused, an error, or neither: the bank has it."""

    reference: PairReference
    pair: Pair | None = None
    prepared: Preparing | None = None
    error: BankError | None = None


class Begun(Protocol):
    """A pair that is being stored, whose row is to be written."""

    def write(self) -> None:
        """Write it, beside others; what goes wrong is raised at the end."""


class Store(Protocol):
    """Stores pairs, each by one thread in its turn; rows are written beside that."""

    def begin(self, pair: Pair, outcome: Preparing, /) -> Begun | None:
        """Begin with a pair that is prepared; None where no more is to be done."""

    def end(self, begun: Any, /) -> None:
        """End with a pair, once it is written."""


@dataclass(slots=True)
class _Stored:
    """A pair that is being stored, and what of it is under way: its beginning, its writing or its end."""

    outcome: Outcome
    beginning: Future[Begun | None]
    is_begun: bool = False
    writing: Future[None] | None = None
    ending: Future[None] | None = None

    @property
    def under_way(self) -> Future[Any]:
        return self.ending or self.writing or self.beginning

    @property
    def is_whole(self) -> bool:
        """Whether all is done. Raises what went wrong at the end."""
        if self.ending is not None:
            return self.ending.done() and self.ending.result() is None
        return self.is_begun and self.writing is None


class Pipeline:
    """Downloads, preparation and whoever stores, side by side.

    Parameters
    ----------
    incoming
        The pairs, in the order in which they are to be stored.
    fetch
        Has a pair's files on this machine; None says that the bank has it. Called by `downloads` threads.
    prepare
        Reads and tokenizes a pair. Called by `ahead` threads.
    store
        Stores pairs that are prepared: `begin` and `end` are called by one thread, in the order of the pairs.
    stop
        Makes `fetch` end soon.
    ahead
        Threads that prepare; two pairs more are being stored, or wait for it.
    """

    def __init__(
        self,
        incoming: Sequence[Incoming],
        fetch: Callable[[PairReference], Pair | None],
        prepare: Callable[[Pair], Prepared | None],
        store: Store,
        *,
        downloads: int,
        stop: Callable[[], None],
        ahead: int = AHEAD,
    ) -> None:
        self._left = deque(incoming)
        self._fetch, self._prepare, self._store, self._stop = fetch, prepare, store, stop
        self._downloads, self._ahead = downloads, ahead
        self._coming: deque[tuple[PairReference, Future[Pair | None]]] = deque()
        self._preparing: deque[tuple[PairReference, Pair, Preparing]] = deque()
        self._storing: deque[_Stored] = deque()

    def outcomes(self) -> Generator[Outcome, None, None]:
        """Yield what came of each pair, of a prepared one once it was stored.

        Raises
        ------
        ArrayStoreUnavailableError, DatabaseUnavailableError, FileSystemError
            The store, the database or the disk failed, which is no pair's fault.
        """
        with ExitStack() as stack:
            fetching = stack.enter_context(ThreadPoolExecutor(self._downloads, "download"))
            preparing = stack.enter_context(ThreadPoolExecutor(self._ahead, "prepare"))
            writing = stack.enter_context(ThreadPoolExecutor(_STORED_AT_ONCE, "write"))
            storing = stack.enter_context(ThreadPoolExecutor(1, "store"))
            stack.callback(self._give_up, storing)  # first, so that the threads end
            while self._left or self._coming or self._preparing or self._storing:
                self._begin(fetching)
                self._go_on_storing(storing, writing)
                if self._storing and self._storing[0].is_whole:
                    yield self._storing.popleft().outcome
                elif (arrived := self._arrived()) is not None:
                    outcome = self._prepared(*arrived, preparing)
                    if outcome is not None:
                        yield outcome
                else:
                    self._wait()

    def _go_on_storing(self, pool: ThreadPoolExecutor, writers: ThreadPoolExecutor) -> None:
        """Have rows written, end with the first that is, and begin with the next pair. Raises what storing did."""
        for place, one in enumerate(self._storing):
            if not one.is_begun and one.beginning.done():
                begun, one.is_begun = one.beginning.result(), True
                one.writing = None if begun is None else writers.submit(begun.write)
            # In their order, as they began.
            if place == 0 and one.ending is None and one.writing is not None and one.writing.done():
                one.ending = pool.submit(self._store.end, one.beginning.result())
        if self._may_begin() and self._preparing and self._preparing[0][2].done():
            outcome = Outcome(*self._preparing.popleft())
            assert outcome.pair is not None
            assert outcome.prepared is not None
            beginning = pool.submit(self._store.begin, outcome.pair, outcome.prepared)
            self._storing.append(_Stored(outcome, beginning))

    def _begin(self, pool: ThreadPoolExecutor) -> None:
        while self._left and len(self._coming) < _WINDOW * self._downloads:
            one = self._left.popleft()
            future: Future[Pair | None] = Future()
            if one.pair is not None:
                future.set_result(one.pair)
            else:
                future = pool.submit(self._fetch, one.reference)
            self._coming.append((one.reference, future))

    def _arrived(self) -> tuple[PairReference, Future[Pair | None]] | None:
        """Take the next pair whose files are here, if there is room to prepare it."""
        if not self._coming or not self._has_room():
            return None
        if self._coming[0][1].done():
            return self._coming.popleft()
        running = sum(not future.done() for _, future in self._coming)
        if not self._left or running >= self._downloads:
            return None
        # The window is full, and the first of it is late: downloads would stand still.
        late = next(place for place, (_, future) in enumerate(self._coming) if future.done())
        found = self._coming[late]
        del self._coming[late]
        return found

    def _prepared(
        self, reference: PairReference, arrived: Future[Pair | None], pool: ThreadPoolExecutor
    ) -> Outcome | None:
        """Begin to prepare what arrived; what there is to say where nothing is to be prepared."""
        try:
            pair = arrived.result()
        except OF_NO_PAIR:
            raise
        except BankError as error:
            return Outcome(reference, error=error)
        if pair is None:
            return Outcome(reference)
        self._preparing.append((reference, pair, pool.submit(self._prepare, pair)))
        return None

    def _may_begin(self) -> bool:
        """Whether one more may be stored: where one fails, none that was prepared after it is begun with."""
        return len(self._storing) < _STORED_AT_ONCE and all(one.is_begun for one in self._storing)

    def _has_room(self) -> bool:
        """Whether one more may be prepared, for all that are in memory."""
        return len(self._preparing) + max(0, len(self._storing) - 1) <= self._ahead

    def _wait(self) -> None:
        """Wait for something after which there is more to do; of what is done by now, that is to be done already."""
        futures: set[Future[Any]] = {one.beginning for one in self._storing if not one.is_begun}
        if self._storing:
            futures.add(self._storing[0].under_way)
        if self._preparing and self._may_begin():
            futures.add(self._preparing[0][2])
        if self._coming and self._has_room():
            futures |= {self._coming[0][1], *(future for _, future in self._coming if not future.done())}
        wait(futures, return_when=FIRST_COMPLETED)

    def _give_up(self, pool: ThreadPoolExecutor) -> None:
        """End what runs: nothing, where all was yielded. What is being stored is stored."""
        if self._left or self._coming or self._preparing or self._storing:
            self._stop()
        for _, future in self._coming:
            future.cancel()
        for _, _, preparing in self._preparing:
            preparing.cancel()
        for one in self._storing:
            if one.ending is None:
                pool.submit(self._complete, one)

    def _complete(self, one: _Stored) -> None:
        begun = one.beginning.result()
        if begun is None:
            return
        if one.writing is None:
            begun.write()
        else:
            one.writing.result()
        self._store.end(begun)
