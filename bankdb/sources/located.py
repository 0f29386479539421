"""How the files of references are had: at once where they are on this machine, by a download where on the hub."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from bankdb.records import AdapterRecord, Pair, PairReference
from bankdb.sources.downloads.held import HeldFiles
from bankdb.sources.downloads.session import HubSession
from bankdb.sources.hub import PinnedPair, fetch, fetch_configuration, pin
from bankdb.sources.hub_client import Ask, repository_information
from bankdb.sources.pairs import resolve, uses_hub


@dataclass(slots=True)
class Located:
    """The files of references; several threads may ask at once, also for one and the same.

    Parameters
    ----------
    find
        What the bank has under a name: a pair of those very revisions is not downloaded.
    names
        Those that the bank has; of others `find` is not asked. None: it is asked of each.
    ask
        What tells of a repository on the hub.
    session
        What the requests share.
    held
        The files of the cache that pairs use.
    local
        Has the files of any reference; then nothing is downloaded.
    screen
        Called with the folder of an adapter's configuration, before its weights are downloaded; refuses it by raising.
    """

    find: Callable[[str], AdapterRecord | None]
    ask: Ask = repository_information
    session: HubSession = field(default_factory=HubSession)
    held: HeldFiles = field(default_factory=lambda: HeldFiles(free=False))
    names: Collection[str] | None = None
    local: Callable[[PairReference], Pair | None] | None = None
    screen: Callable[[Path], None] | None = None
    _pinned: dict[PairReference, PinnedPair] = field(default_factory=dict)

    def is_remote(self, reference: PairReference) -> bool:
        """Whether a side has to be downloaded."""
        return self.local is None and uses_hub(reference)

    def pair(self, reference: PairReference) -> Pair | None:
        """Have a pair's files on this machine; None where the bank has that very revision.

        Raises
        ------
        SourceError, AdapterError, DatasetError
            They cannot be had, or are not there.
        FileSystemError
            The disk is full.
        DatabaseUnavailableError
            The bank's database is gone.
        """
        if not self.is_remote(reference):
            return (self.local or resolve)(reference)
        pinned = self._pin(reference)
        if self._is_there(pinned):
            return None
        if self.screen is not None:
            self.screen(fetch_configuration(pinned, self.session, self.held))
        return fetch(pinned, self.session, self.held)

    def configuration(self, reference: PairReference) -> Path | None:
        """Have the adapter's configuration alone; None where the bank has that very revision. Raises as `pair`."""
        pinned = self._pin(reference)
        return None if self._is_there(pinned) else fetch_configuration(pinned, self.session, self.held)

    def done(self, reference: PairReference) -> None:
        """Let go of a pair's files."""
        self.held.done(reference.name)
        self._pinned.pop(reference, None)

    def stop(self) -> None:
        """Give up what is being downloaded."""
        self.session.stop()

    def _pin(self, reference: PairReference) -> PinnedPair:
        pinned = self._pinned.get(reference)
        if pinned is None:
            pinned = self._pinned[reference] = pin(reference, self.ask)
        return pinned

    def _is_there(self, pinned: PinnedPair) -> bool:
        if self.names is not None and pinned.name not in self.names:
            return False
        present = self.find(pinned.name)
        revisions = (pinned.adapter_revision, pinned.dataset_revision)
        same = present is not None and (
            (present.source, present.dataset_source) == (pinned.adapter_source, pinned.dataset_source)
            and (present.revision, present.dataset_revision) == revisions
        )
        # A local side has no revision: it must be read to know.
        return same and None not in revisions
