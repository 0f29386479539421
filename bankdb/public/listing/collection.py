"""The items of a collection on the hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote

from bankdb.errors import SourceError
from bankdb.public.listing.answers import entry
from bankdb.sources.downloads.session import HubSession
from bankdb.sources.hub import is_repository

_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,250}")
_MOST_ITEMS = 100_000


@dataclass(frozen=True, slots=True)
class CollectionItems:
    """The models and datasets of a collection, OWNER/NAME each, in its order."""

    models: tuple[str, ...]
    datasets: tuple[str, ...]


def collection_items(slug: str, session: HubSession) -> CollectionItems:
    """Return what a collection holds, in one request.

    Parameters
    ----------
    slug
        As in the collection's address: OWNER/TITLE-HASH.
    session
        By which the hub is asked.

    Raises
    ------
    SourceError
        It is no such text, there is no such collection, or the hub does not tell of it.
    """
    if not _SLUG.fullmatch(slug) or ".." in slug:
        raise SourceError(
            f"{ascii(slug[:100])[1:-1]!r} is no collection; expected OWNER/TITLE-HASH, as in the address of its page"
        )
    answer = entry(f"collections/{quote(slug)}", f"collection {slug}", session)
    items = answer.get("items") if isinstance(answer, dict) else None
    if not isinstance(items, list) or len(items) > _MOST_ITEMS:
        raise SourceError(
            f"collection {slug}: expected its items, at most {_MOST_ITEMS:,}, found another answer; check HF_ENDPOINT"
        )
    return CollectionItems(_ids(items, "model"), _ids(items, "dataset"))


def _ids(items: list[object], kind: str) -> tuple[str, ...]:
    ids = [item.get("id") for item in items if isinstance(item, dict) and item.get("type") == kind]
    return tuple(dict.fromkeys(one for one in ids if isinstance(one, str) and is_repository(one)))
