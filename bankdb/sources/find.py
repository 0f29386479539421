"""What a user names as the source of pairs: a folder, a manifest, or repositories of the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bankdb.records import PairReference, RefusedPair


def references_of(
    sources: Sequence[str], hub: bool, group_pattern: str | None
) -> tuple[list[PairReference], list[RefusedPair]]:
    """Return the pairs that folders, manifests, or arguments `ADAPTER=DATASET` of the hub name, and what is refused.

    Raises
    ------
    SourceError
        A source names no pairs at all.
    """
    from bankdb.sources.hub import references_from_arguments
    from bankdb.sources.pairs import find_references, screen_references

    if hub:
        return screen_references(references_from_arguments(sources), group_pattern=group_pattern)
    references: list[PairReference] = []
    refused: list[RefusedPair] = []
    for source in sources:
        found, bad = find_references(Path(source), group_pattern=group_pattern)
        references += found
        refused += bad
    screened, twice = screen_references(references)
    return screened, refused + twice
