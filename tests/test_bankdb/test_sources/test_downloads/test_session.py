"""Requests of several threads: one pause for all, as long as the hub says, and an end when they are stopped."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bankdb.errors import SourceError
from bankdb.sources.downloads.session import HubSession, StoppedError, told_wait
from bankdb.sources.hub_client import HubReference, repository_information
from tests.support.servers.hub_listing_server import ListingHubServer

REPO = HubReference("owner/one")


@pytest.fixture
def commit(hub: ListingHubServer) -> str:
    return hub.publish("model", REPO.repo_id, {"a": b"a"})


@pytest.mark.parametrize(
    "headers", [{"RateLimit": '"api";r=0;t=1'}, {"Retry-After": "1"}], ids=["RateLimit", "Retry-After"]
)
def test_all_wait_once_and_as_long_as_told(
    hub: ListingHubServer, commit: str, headers: dict[str, str]
) -> None:
    notes: list[str] = []
    session = HubSession(notes.append)
    hub.latency = 0.1  # so that all four have asked before the first is refused
    hub.fail("/api/models", status=429, headers=headers, times=4)
    begun = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: repository_information("model", REPO, session), range(4)))
    assert time.monotonic() - begun >= 1
    assert {one.revision for one in found} == {commit}
    assert hub.requests.total() == 8
    assert notes == ["the hub takes no more requests for 1 s; waiting as it asks"]


def test_a_hub_that_asks_for_hours_is_not_waited_for(hub: ListingHubServer, commit: str) -> None:
    hub.fail("/api/models", status=429, headers={"RateLimit": '"api";r=0;t=7200'})
    with pytest.raises(SourceError, match=r"asks to wait for 7,200 s, at most 3,600 s .* run the same"):
        repository_information("model", REPO, HubSession())


def test_who_waits_is_stopped_at_once(hub: ListingHubServer, commit: str) -> None:
    hub.fail("/api/models", status=429, headers={"Retry-After": "600"})
    session = HubSession()
    threading.Timer(0.3, session.stop).start()
    begun = time.monotonic()
    with pytest.raises(StoppedError):
        repository_information("model", REPO, session)
    assert time.monotonic() - begun < 60


def test_a_connection_that_is_reset_is_tried_again(hub: ListingHubServer, commit: str) -> None:
    session = HubSession()
    hub.fail("/api/models", cut=3, times=2)
    assert repository_information("model", REPO, session).revision == commit


@given(st.integers(0, 10**8), st.integers(0, 10**8))
def test_what_is_told_is_read(limit: int, retry: int) -> None:
    assert told_wait({}) is None
    assert told_wait({"ratelimit": f'"resolvers";r=0;t={limit}'}) == limit
    assert told_wait({"retry-after": str(retry)}) == retry
    both = {"ratelimit": f'"api";r=0;t={limit}', "retry-after": str(retry)}
    assert told_wait(both) == max(limit, retry)


@pytest.mark.parametrize("text", ["soon", "-1", "1e9", "9" * 40, "", "Wed, 99 Foo 2015"])
def test_what_is_no_time_is_not_told(text: str) -> None:
    assert told_wait({"retry-after": text}) is None


def test_a_date_is_so_far_from_now() -> None:
    date = datetime.now(UTC) + timedelta(seconds=90)
    assert told_wait({"retry-after": format_datetime(date, usegmt=True)}) == pytest.approx(90, abs=5)
    past = datetime.now(UTC) - timedelta(days=1)
    assert told_wait({"retry-after": format_datetime(past, usegmt=True)}) == 0
