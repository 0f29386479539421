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
from typing import Any

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
        Stores a pair that is prepared. Called by one thread, in which each is whole before the next begins.
    stop
        Makes `fetch` end soon.
    ahead
        Threads that prepare; a pair more waits to be stored.
    """

    def __init__(
        self,
        incoming: Sequence[Incoming],
        fetch: Callable[[PairReference], Pair | None],
        prepare: Callable[[Pair], Prepared | None],
        store: Callable[[Pair, Preparing], None],
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
        self._storing: tuple[Outcome, Future[None]] | None = None

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
            storing = stack.enter_context(ThreadPoolExecutor(1, "store"))
            stack.callback(self._give_up)  # first, so that the threads end
            while self._left or self._coming or self._preparing or self._storing:
                self._begin(fetching)
                stored = self._stored()
                self._begin_storing(storing)
                if stored is not None:
                    yield stored
                elif (arrived := self._arrived()) is not None:
                    outcome = self._prepared(*arrived, preparing)
                    if outcome is not None:
                        yield outcome
                else:
                    self._wait()

    def _begin_storing(self, pool: ThreadPoolExecutor) -> None:
        if self._storing is None and self._preparing and self._preparing[0][2].done():
            outcome = Outcome(*self._preparing.popleft())
            assert outcome.pair is not None
            assert outcome.prepared is not None
            self._storing = outcome, pool.submit(self._store, outcome.pair, outcome.prepared)

    def _stored(self) -> Outcome | None:
        """Take what is stored now. Raises what storing did."""
        if self._storing is None or not self._storing[1].done():
            return None
        outcome, stored = self._storing
        self._storing = None
        stored.result()
        return outcome

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
        if not self._coming or len(self._preparing) > self._ahead:
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

    def _wait(self) -> None:
        futures: set[Future[Any]] = set()
        if self._storing is not None:
            futures.add(self._storing[1])
        elif self._preparing:
            futures.add(self._preparing[0][2])
        if len(self._preparing) <= self._ahead:
            futures |= {future for _, future in self._coming if not future.done()}
        wait(futures, return_when=FIRST_COMPLETED)

    def _give_up(self) -> None:
        """End what runs: nothing, where all was yielded."""
        if self._left or self._coming or self._preparing or self._storing:
            self._stop()
        for _, future in self._coming:
            future.cancel()
        for _, _, preparing in self._preparing:
            preparing.cancel()
