"""Which files of the cache the pairs of one ingest use, so that what it downloaded can be freed and nothing else."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

from bankdb.sources.downloads.cache import RepositoryCache


class HeldFiles:
    """Files of the cache by the pairs that use them.

    Parameters
    ----------
    free
        Delete what was downloaded here when the last pair that uses it is done with; what was in the cache before
        stays.
    """

    def __init__(self, *, free: bool) -> None:
        self._free = free
        self._lock = threading.Lock()
        self._users: Counter[Path] = Counter()
        self._of_pair: dict[str, dict[Path, RepositoryCache]] = {}
        self._new: set[Path] = set()

    def hold(self, name: str, pointer: Path, cache: RepositoryCache) -> None:
        """Note that a pair uses a file, before it is looked for: until `done` it is not freed."""
        with self._lock:
            mine = self._of_pair.setdefault(name, {})
            if pointer not in mine:
                mine[pointer] = cache
                self._users[pointer] += 1

    def downloaded(self, pointer: Path) -> None:
        """Note that a file was not in the cache before."""
        with self._lock:
            self._new.add(pointer)

    def done(self, name: str) -> None:
        """Let go of a pair's files; free those that nobody else uses and that are new here."""
        with self._lock:
            for pointer, cache in self._of_pair.pop(name, {}).items():
                self._users[pointer] -= 1
                if self._free and not self._users[pointer] and pointer in self._new:
                    cache.free(pointer)
                    self._new.discard(pointer)
