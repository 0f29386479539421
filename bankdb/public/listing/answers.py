"""Answers of the hub's listings, page by page, bounded in size, number and time whatever a hub sends.

Listings are those of the hub's API (https://huggingface.co/docs/hub/api): a page holds up to some hundred entries, and
its `Link` header (RFC 8288) names the next one by a cursor.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from bankdb.errors import SourceError, one_line
from bankdb.sources.downloads.session import HubSession, transport_errors
from bankdb.sources.hub_client import hub_endpoint

MOST_ENTRIES = 100_000
"""Repositories of one owner that are listed."""
_MOST_PAGES = 1000
_LARGEST, _LARGEST_OF_ALL = 64 << 20, 512 << 20
# A value takes some 200 bytes of memory, however short it is written.
_MOST_VALUES = 4_000_000
_SECONDS = 300.0


class _Endless(Exception):
    """An answer, or a listing, that is larger or takes longer than any of a hub."""


def entries(path: str, parameters: Mapping[str, Any], what: str, session: HubSession) -> Iterator[Any]:
    """Yield the entries of a listing, a request a page.

    Parameters
    ----------
    path
        Below `/api/`, such as `models`.
    parameters
        Of the query.
    what
        What is listed, for messages.
    session
        By which the hub is asked; it waits where the hub says so.

    Raises
    ------
    SourceError
        There is no such listing, no answer, or one that no hub gives.
    """
    # How many entries a page has is left to the hub, as its own client does: one that is asked for too many may refuse.
    query: dict[str, Any] = dict(parameters)
    seen: set[str] = set()
    size = number = 0
    while True:
        page, following, length = _answer(path, query, what, session)
        if not isinstance(page, list):
            raise _no_hub(what)
        yield from page
        size, number = size + length, number + len(page)
        if following is None:
            return
        # An endless listing: pages that come again, or are empty, or too many.
        if following in seen or not page or len(seen) >= _MOST_PAGES:
            raise _no_hub(what)
        if number > MOST_ENTRIES or size > _LARGEST_OF_ALL:
            raise SourceError(
                f"{what}: more than {MOST_ENTRIES:,} repositories, or {_LARGEST_OF_ALL >> 20} MiB of listing; "
                "name those that are wanted in a manifest (.csv or .jsonl)"
            )
        seen.add(following)
        query = dict(parse_qsl(following)) | dict(parameters)


def entry(path: str, what: str, session: HubSession) -> Any:
    """Return one answer of the API, in one request. Raises SourceError as `entries` does."""
    return _answer(path, {}, what, session)[0]


def _answer(
    path: str, query: Mapping[str, Any], what: str, session: HubSession
) -> tuple[Any, str | None, int]:
    """Return what was answered, the query of the next page if there is one, and the bytes."""
    endpoint = hub_endpoint()
    with _listing_errors(what, endpoint):
        text, link = _body(f"{endpoint}/api/{path}", query, session)
    try:
        if sum(map(text.count, (b",", b"[", b"{"))) > _MOST_VALUES:
            raise ValueError("too many values")
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _no_hub(what) from error
    following = link.get("url")
    # Of the address only the query is taken: a mirror names the hub that it mirrors, and others get no token.
    return value, urlsplit(str(following)).query if following else None, len(text)


def _body(url: str, query: Mapping[str, Any], session: HubSession) -> tuple[bytes, Mapping[str, Any]]:
    """Return the bytes of an answer and its `next` link; a connection that breaks on the way is made again."""
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    started, tries = time.monotonic(), 0
    while True:
        body = bytearray()
        try:
            with session.get(url, build_hf_headers(), query) as response:
                for piece in response.iter_bytes():
                    body += piece
                    if len(body) > _LARGEST or time.monotonic() - started > _SECONDS:
                        raise _Endless
                return bytes(body), response.links.get("next", {})
        except transport_errors() as error:
            tries += 1
            session.wait_after(error, tries)


def _status(error: Exception) -> int | None:
    from huggingface_hub.errors import HfHubHTTPError

    return int(error.response.status_code) if isinstance(error, HfHubHTTPError) else None


@contextmanager
def _listing_errors(what: str, endpoint: str) -> Iterator[None]:
    """Turn what the client raises, often many lines, into one line that says what to do."""
    from huggingface_hub import is_offline_mode

    if is_offline_mode():
        raise SourceError(
            f"{what}: HF_HUB_OFFLINE is set, and a listing is had from {endpoint} alone; unset it, or name the pairs "
            "that were downloaded before in a manifest (.csv), as hub:OWNER/NAME@COMMIT"
        )
    try:
        yield
    except SourceError:
        raise
    except _Endless as error:
        raise _no_hub(what) from error
    except (OSError, ValueError, RuntimeError, transport_errors()) as error:
        raise SourceError(f"{what}: {_explained(error, endpoint)}") from error


def _explained(error: Exception, endpoint: str) -> str:
    status = _status(error)
    if status in (401, 403):
        return f"{endpoint} answered with status {status}; set a valid HF_TOKEN, that may read it"
    if status == 404:
        return f"not found on {endpoint}; check its name, and set HF_TOKEN if it is private"
    if status is not None:
        return f"{endpoint} answered with status {status}; try again later"
    reason = f"{type(error).__name__}: {one_line(error)}"
    return f"cannot reach {endpoint} ({reason}); check the network and HF_ENDPOINT"


def _no_hub(what: str) -> SourceError:
    return SourceError(
        f"{what}: {hub_endpoint()}: its answer is not a hub's; check HF_ENDPOINT and the network's proxy"
    )
