"""A hub, and a cache of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.servers.hub_listing_server import ListingHubServer
from tests.support.servers.public_bank import hub_here


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ListingHubServer]:
    with hub_here(tmp_path, monkeypatch) as server:
        yield server
