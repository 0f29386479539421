"""Large files are read from the connection itself: the same bytes, gone on with, and never without their hash."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from bankdb.sources.downloads import body as bodies
from bankdb.sources.downloads.files import RemoteFile, download
from bankdb.sources.downloads.session import HubSession
from tests.support.servers.hub_listing_server import ListingHubServer

REPO = "owner/large"
LARGE = random.Random(1).randbytes(6_500_000)


class Reads:
    """Counts bytes that were read past the client."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bytes = 0
        read = bodies._read

        def counted(connection: socket.socket, left: int) -> Iterator[memoryview]:
            for piece in read(connection, left):
                self.bytes += len(piece)
                yield piece

        monkeypatch.setattr(bodies, "_read", counted)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(monkeypatch)


@pytest.fixture
def wanted(hub: ListingHubServer) -> RemoteFile:
    return RemoteFile(
        "model", REPO, hub.publish("model", REPO, {"w.safetensors": LARGE}), "w.safetensors", None
    )


def have(hub: ListingHubServer, wanted: RemoteFile, session: HubSession) -> Path:
    return download(wanted, session, hub.endpoint)


def test_most_of_a_large_file_is_read_past_the_client(
    hub: ListingHubServer, wanted: RemoteFile, reads: Reads
) -> None:
    session = HubSession()
    assert have(hub, wanted, session).read_bytes() == LARGE
    assert reads.bytes > len(LARGE) / 2
    assert (session.bytes_received, session.bytes_expected) == (len(LARGE), len(LARGE))
    # The connection is not used again; another is.
    commit = hub.publish("model", "owner/other", {"w.safetensors": LARGE[::-1]})
    other = RemoteFile("model", "owner/other", commit, "w.safetensors", None)
    assert have(hub, other, session).read_bytes() == LARGE[::-1]


def test_a_connection_that_breaks_is_gone_on_with(
    hub: ListingHubServer, wanted: RemoteFile, reads: Reads
) -> None:
    hub.fail("/blobs/", cut=2_500_000, times=2)
    assert have(hub, wanted, HubSession()).read_bytes() == LARGE
    assert len(hub.ranges) == 2
    assert 0 < hub.ranges[0] < hub.ranges[1] < len(LARGE)


def test_other_bytes_of_a_connection_are_seen_and_the_client_is_asked(
    hub: ListingHubServer, wanted: RemoteFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of a connection within another would be."""

    def garbage(connection: socket.socket, left: int) -> Iterator[memoryview]:
        yield memoryview(b"?" * left)

    monkeypatch.setattr(bodies, "_read", garbage)
    session = HubSession()
    assert have(hub, wanted, session).read_bytes() == LARGE
    assert not session.reads_connections


def test_small_files_and_bodies_of_no_stated_length_are_the_clients(
    hub: ListingHubServer, reads: Reads
) -> None:
    commit = hub.publish("model", REPO, {"w.safetensors": LARGE[:3_000_000]})
    found = have(hub, RemoteFile("model", REPO, commit, "w.safetensors", None), HubSession())
    assert found.read_bytes() == LARGE[:3_000_000]
    assert reads.bytes == 0
