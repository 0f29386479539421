"""Requests to the hub by several threads, which wait together when it says that there were too many.

The hub tells how long by `RateLimit` (draft-ietf-httpapi-ratelimit-headers: `"api";r=0;t=55` is 55 seconds) or by
`Retry-After` (RFC 9110, section 10.2.3: seconds, or a date).
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from bankdb.errors import SourceError

# Statuses after which the same request may be answered; 429 is "too many", the others are a hub in trouble.
_TOO_MANY = 429
_LATER = (408, _TOO_MANY, 502, 503, 504)
# How often one request is made again where the hub tells when, and where it does not; the waits between the latter.
_TOLD_TRIES, _TRIES = 20, 5
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 8.0
# A hub that asks for more than this is not waited for.
LONGEST_PAUSE = 3600.0
_LARGEST_ANSWER = 256 << 20


class StoppedError(Exception):
    """The work that a request was for is given up."""


class HubSession:
    """What the requests of one command share: a pause, a count of bytes, and an end.

    Parameters
    ----------
    note
        Called with a line for the user, once a pause.
    received
        Called with the bytes received so far, and with those expected so far; by several threads.
    """

    def __init__(
        self,
        note: Callable[[str], None] | None = None,
        received: Callable[[int, int], None] | None = None,
    ) -> None:
        self._note, self._received = note, received
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._pause_ends = 0.0
        self._headers: Mapping[str, str] | None = None
        self._reached = False
        self.reads_connections = True
        """Whether large bodies are read from the connection, past the client: until that gives other bytes."""
        self.bytes_received = self.bytes_expected = 0

    def tell(
        self,
        note: Callable[[str], None] | None,
        received: Callable[[int, int], None] | None,
    ) -> None:
        """Tell somebody else of pauses and of bytes."""
        self._note, self._received = note, received

    def headers(self) -> Mapping[str, str]:
        """Return the client's headers, the token among them: made once."""
        if self._headers is None:
            from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

            self._headers = build_hf_headers()
        return self._headers

    def stop(self) -> None:
        """Give up: whoever waits or downloads ends with StoppedError."""
        self._stopped.set()

    def count(self, received: int = 0, expected: int = 0) -> None:
        """Count bytes; negative where they have to be received again. Raises StoppedError after `stop`."""
        if self._stopped.is_set():
            raise StoppedError
        with self._lock:
            self.bytes_received += received
            self.bytes_expected += expected
            done, known = self.bytes_received, self.bytes_expected
        if self._received is not None:
            self._received(done, known)

    def wait(self, seconds: float) -> None:
        """Wait. Raises StoppedError after `stop`."""
        if self._stopped.wait(max(0.0, seconds)):
            raise StoppedError

    @contextmanager
    def get(
        self, url: str, headers: Mapping[str, str], params: Mapping[str, Any] | None = None
    ) -> Iterator[Any]:
        """Ask until the answer is another than "later"; yields the response, whose body is not read yet.

        Raises
        ------
        SourceError
            The hub asks to wait for longer than `LONGEST_PAUSE`.
        HfHubHTTPError
            The answer is an error, also after waiting.
        StoppedError
            After `stop`.
        Whatever the client's transport raises.
        """
        from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

        with ExitStack() as stack:
            response = self._answered(stack, url, headers, params)
            if response.status_code != 416:  # of a range: for whoever asked for one
                hf_raise_for_status(response)
            yield response

    def json(self, url: str, headers: Mapping[str, str], params: Mapping[str, Any] | None = None) -> Any:
        """Ask for JSON. Raises ValueError for anything else, and what `get` raises."""
        tries = 0
        while True:
            body = bytearray()
            try:
                with self.get(url, headers, params) as response:
                    for piece in response.iter_bytes():
                        body += piece
                        if len(body) > _LARGEST_ANSWER:
                            raise ValueError(f"an answer of more than {_LARGEST_ANSWER >> 20} MiB")
                return json.loads(bytes(body))
            except transport_errors() as error:
                tries += 1
                self.wait_after(error, tries)

    def wait_after(self, error: Exception, tries: int) -> None:
        """Wait before the next try after a connection that broke; raise its error where there is no point in one.

        A hub that never answered is not asked again: there is no network, or no such address.
        """
        if not self._reached or tries > _TRIES or _is_answer(error):
            raise error
        self.wait(_backoff(tries - 1))

    def _answered(
        self, stack: ExitStack, url: str, headers: Mapping[str, str], params: Mapping[str, Any] | None
    ) -> Any:
        from huggingface_hub import constants
        from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

        tries = 0
        while True:
            self._wait_for_pause()
            response = stack.enter_context(
                get_session().stream(
                    "GET", url, params=params, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
                )
            )
            self._reached = True
            if response.status_code not in _LATER:
                return response
            told = told_wait(response.headers)
            tries += 1
            if tries > (_TRIES if told is None else _TOLD_TRIES):
                return response
            stack.close()
            if told is not None:
                self._pause(told, url)
            else:
                self.wait(_backoff(tries))

    def _pause(self, seconds: float, url: str) -> None:
        """Let nobody ask before so many seconds are over."""
        if seconds > LONGEST_PAUSE:
            raise SourceError(
                f"{url.split('?')[0]}: the hub asks to wait for {seconds:,.0f} s, at most {LONGEST_PAUSE:,.0f} s are "
                "waited for; run the same command again then"
            )
        ends = time.monotonic() + seconds
        with self._lock:
            # Those that were refused at once are told the same: it is one pause.
            new = ends > self._pause_ends + max(0.5, 0.1 * seconds)
            self._pause_ends = max(self._pause_ends, ends)
        if new and seconds >= 1 and self._note is not None:
            self._note(f"the hub takes no more requests for {seconds:.0f} s; waiting as it asks")

    def _wait_for_pause(self) -> None:
        while (left := self._pause_ends - time.monotonic()) > 0:
            self.wait(left)
        self.wait(0)


def _backoff(tries: int) -> float:
    """Seconds before a try that nobody told when to make: 0 first, then doubled."""
    return 0.0 if tries < 1 else min(_LONGEST_WAIT, _FIRST_WAIT * 2.0 ** (tries - 1))


def told_wait(headers: Mapping[str, str]) -> float | None:
    """Return the seconds after which the hub takes requests again, as its answer says; None if it does not.

    Parameters
    ----------
    headers
        Of the answer, by names in lower case or in a mapping that ignores case.
    """
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    told: list[float] = []
    limits = parse_ratelimit_headers(headers)
    if limits is not None:
        told.append(float(limits.reset_in_seconds))
    text = (headers.get("retry-after") or "").strip()
    if text.isdecimal() and len(text) < 10:
        told.append(float(text))
    elif text:
        try:
            date = parsedate_to_datetime(text)
        except ValueError:
            date = None
        if date is not None:
            date = date if date.tzinfo else date.replace(tzinfo=UTC)
            told.append(max(0.0, (date - datetime.now(UTC)).total_seconds()))
    return max(told, default=None)


def transport_errors() -> type[Exception]:
    """Return the root of what the client's HTTP library raises; which library that is changes with its version."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__bases__[0]


def _is_answer(error: Exception) -> bool:
    """Whether an error is the hub's answer, rather than a connection that broke."""
    from huggingface_hub.errors import HfHubHTTPError

    return isinstance(error, HfHubHTTPError)
