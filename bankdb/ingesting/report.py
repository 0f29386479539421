"""How an ingest is asked for, and what it says that it did."""

from __future__ import annotations

from dataclasses import dataclass, field

from bankdb.datasets.read import Reading
from bankdb.errors import ParameterError
from bankdb.ingesting.counted import Counter
from bankdb.records import AS_IT_COMES, RefusedPair, Taking
from bankdb.shown import html_summary, text_summary

# Refused pairs that a report shows of itself.
_LISTED = 10


@dataclass(frozen=True, slots=True)
class IngestOptions:
    """How datasets are read, what happens to a pair whose name is taken by other content, and the bytes of memory.

    `taking` is what may be assumed of adapters, or done to them; `downloads` how many pairs come from the hub at a
    time. `counter` has datasets read and tokenized by other processes; None does it in this one.
    """

    reading: Reading = field(default_factory=Reading)
    replace: bool = False
    memory: int | None = None
    taking: Taking = AS_IT_COMES
    downloads: int = 4
    counter: Counter | None = None

    def __post_init__(self) -> None:
        """Check. Raises ParameterError."""
        if self.downloads < 1:
            raise ParameterError(
                f"downloads: expected 1 or more at a time, found {self.downloads}; 4 is the default"
            )


@dataclass(slots=True)
class IngestReport:
    """What an ingest did, by name; `notes` are lines about what was not read, or taken for what it is not."""

    added: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    refused: list[RefusedPair] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=dict)
    """What was left out or assumed of stored adapters, with the names of those."""
    initialisations: str = ""
    """Where the bank's A factors are of several initialisations: how many share one, and what that means."""
    downloaded: int = 0
    """Bytes that came from the hub."""

    def __repr__(self) -> str:
        """Return how many of each, and the first that were refused."""
        return text_summary(self._title(), {one.name: one.reason for one in self.refused[:_LISTED]})

    def _repr_html_(self) -> str:
        rows = [(one.name, one.reason) for one in self.refused[:_LISTED]]
        return html_summary(self._title(), {}, ("refused", "why"), rows, len(self.refused) - len(rows))

    def _title(self) -> str:
        counts = f"{len(self.added)} added, {len(self.skipped)} there already, {len(self.replaced)} replaced"
        return f"IngestReport: {counts}, {len(self.refused)} refused"
