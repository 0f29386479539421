"""What a user names as the source of pairs: a folder, a manifest, two paths, or repositories of the hub."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from bankdb.errors import ParameterError
from bankdb.records import HUB_PREFIX, AdapterRecord, PairReference, RefusedPair, is_hub_reference

if TYPE_CHECKING:
    from bankdb.sources.hub_client import Ask
    from bankdb.sources.located import Located

Source: TypeAlias = "str | PathLike[str] | tuple[str | PathLike[str], str | PathLike[str]] | PairReference"
"""A folder, a manifest, `(adapter, dataset)`, or a reference."""


def references_of(
    sources: Source | Iterable[Source], hub: bool, group_pattern: str | None
) -> tuple[list[PairReference], list[RefusedPair]]:
    """Return the pairs that sources name, and what of them is refused; see `AdapterBank.ingest`.

    Raises
    ------
    SourceError
        A source names no pairs at all.
    ParameterError
        A source is of none of these kinds, or `group_pattern` is no regular expression with a group.
    """
    from bankdb.sources.hub import references_from_arguments
    from bankdb.sources.pairs import find_references, screen_references

    references: list[PairReference] = []
    refused: list[RefusedPair] = []
    on_hub: list[str] = []
    for source in each_source(sources):
        if isinstance(source, PairReference):
            references.append(source)
        elif isinstance(source, tuple):
            references.append(_pair(source, hub))
        elif hub:
            on_hub.append(str(source))
        else:
            found, bad = find_references(Path(source), group_pattern=group_pattern)
            references += found
            refused += bad
    references += references_from_arguments(on_hub)
    screened, twice = screen_references(references, group_pattern=group_pattern)
    return screened, refused + twice


def each_source(sources: object, also: tuple[type, ...] = ()) -> list[Any]:
    """Return one source, or several, as a list. Raises ParameterError for what is none, and of no type of `also`."""
    one = (str, os.PathLike, PairReference, *also)
    alone = isinstance(sources, (*one, tuple)) or not isinstance(sources, Iterable)
    each = [sources] if alone else list(cast("Iterable[object]", sources))
    for source in each:
        pair = isinstance(source, tuple) and len(source) == 2
        if not (
            pair and all(isinstance(part, str | os.PathLike) for part in cast("tuple[object]", source))
        ) and not isinstance(source, one):
            raise ParameterError(
                "sources: expected a folder, a manifest, a tuple (adapter, dataset) or a PairReference, or a list of "
                f"them, found {source!r:.80}"
            )
    return each


def _pair(pair: tuple[str | PathLike[str], str | PathLike[str]], hub: bool) -> PairReference:
    """Return the reference of two paths or repositories, called as the adapter is, without what it lies in."""
    adapter, dataset = (os.fspath(one) for one in pair)
    if hub:
        adapter, dataset = (
            text if is_hub_reference(text) else f"{HUB_PREFIX}{text}" for text in (adapter, dataset)
        )
    if is_hub_reference(adapter):
        from bankdb.sources.hub import parse_reference

        return PairReference(parse_reference(adapter).place.rpartition("/")[2], adapter, dataset)
    return PairReference(os.path.basename(os.path.abspath(adapter)), adapter, dataset)


def resolver(
    find: Callable[[str], AdapterRecord | None], ask: Ask | None = None, *, free_downloads: bool = False
) -> Located:
    """Return what finds the files of a reference, here or on the hub; nothing for what `find` has of that revision.

    Parameters
    ----------
    ask
        What tells of a repository on the hub, such as a listing; the hub itself if not given.
    free_downloads
        Delete what was downloaded of a pair when it is done with.
    """
    from bankdb.sources.downloads.held import HeldFiles
    from bankdb.sources.downloads.session import HubSession
    from bankdb.sources.hub_client import asked_once, repository_information
    from bankdb.sources.located import Located

    session = HubSession()
    asked = ask or functools.partial(repository_information, session=session)
    return Located(find, asked_once(asked), session, HeldFiles(free=free_downloads))
