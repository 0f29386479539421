"""One file: one request, found by the hub's own client afterwards, resumed, and never other than the hub says."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download, try_to_load_from_cache
from hypothesis import given
from hypothesis import strategies as st

from bankdb.errors import SourceError
from bankdb.sources.downloads.cache import Content, RepositoryCache, content_of
from bankdb.sources.downloads.files import RemoteFile, download, is_cached
from bankdb.sources.downloads.session import HubSession, StoppedError
from tests.support.servers.hub_listing_server import ListingHubServer

REPO = "owner/one"
WEIGHTS = random.Random(0).randbytes(3_000_000)
CONFIG = b'{"r": 4}'


@pytest.fixture
def commit(hub: ListingHubServer) -> str:
    return hub.publish("model", REPO, {"w.safetensors": WEIGHTS, "folder/config.json": CONFIG})


def file(commit: str, path: str = "w.safetensors", content: Content | None = None) -> RemoteFile:
    return RemoteFile("model", REPO, commit, path, content)


def have(hub: ListingHubServer, wanted: RemoteFile, session: HubSession | None = None) -> Path:
    return download(wanted, session or HubSession(), hub.endpoint)


def known() -> Content:
    return Content(hashlib.sha256(WEIGHTS).hexdigest(), len(WEIGHTS))


@pytest.mark.parametrize(
    ("path", "data"), [("w.safetensors", WEIGHTS), ("folder/config.json", CONFIG)], ids=["large", "small"]
)
def test_a_file_is_one_request_and_the_client_finds_it(
    hub: ListingHubServer, commit: str, path: str, data: bytes
) -> None:
    """Nothing is known of it but its commit, as of a listing's."""
    found = have(hub, file(commit, path))
    assert found.read_bytes() == data
    assert hub.asked_of(REPO) == 1
    assert try_to_load_from_cache(REPO, path, revision=commit) == str(found)
    assert snapshot_download(REPO, revision=commit, local_files_only=True) == str(
        RepositoryCache.of("model", REPO).pointer(commit, path).parents[path.count("/")]
    )
    assert is_cached(file(commit, path))
    found.resolve().write_bytes(data[:-1] + b"?")  # another content of the same size under that hash
    assert not is_cached(file(commit, path))


def test_the_content_of_another_commit_is_not_sent_again(hub: ListingHubServer, commit: str) -> None:
    have(hub, file(commit))
    later = hub.publish("model", REPO, {"w.safetensors": WEIGHTS, "folder/config.json": b"{}"})
    session = HubSession()
    assert have(hub, file(later), session).read_bytes() == WEIGHTS
    assert session.bytes_received == 0
    before = hub.requests.total()
    third = hub.publish("model", REPO, {"again.safetensors": WEIGHTS})
    assert have(hub, file(third, "again.safetensors", known())).read_bytes() == WEIGHTS
    assert hub.requests.total() == before  # its hash was known before it was asked for


@pytest.mark.parametrize("stated", [False, True])
def test_a_connection_that_breaks_is_gone_on_with(hub: ListingHubServer, commit: str, stated: bool) -> None:
    hub.fail("/blobs/", cut=100_000, times=2)
    session = HubSession()
    found = have(hub, file(commit, content=known() if stated else None), session)
    assert found.read_bytes() == WEIGHTS
    assert len(hub.ranges) == 2
    assert 0 < hub.ranges[0] < hub.ranges[1] < len(WEIGHTS)
    assert (session.bytes_received, session.bytes_expected) == (len(WEIGHTS), len(WEIGHTS))


class Killed(HubSession):
    """One that ends in the middle of a file, as a process that is killed does: nothing is tidied up."""

    def count(self, received: int = 0, expected: int = 0) -> None:
        super().count(received, expected)
        if self.bytes_received > 1_200_000:
            raise StoppedError


@pytest.mark.parametrize("damage", [False, True])
@pytest.mark.parametrize("stated", [False, True])
def test_a_file_is_gone_on_with_by_the_next_process(
    hub: ListingHubServer, commit: str, stated: bool, damage: bool
) -> None:
    wanted = file(commit, content=known() if stated else None)
    with pytest.raises(StoppedError):
        have(hub, wanted, Killed())
    (partial,) = RepositoryCache.of("model", REPO).folder.glob("blobs/*.incomplete")
    begun = partial.stat().st_size
    assert 1_200_000 < begun < len(WEIGHTS)
    if damage:
        partial.write_bytes(b"x" * begun)
    assert have(hub, wanted).read_bytes() == WEIGHTS
    assert hub.ranges == [begun]
    assert not partial.exists()


def test_a_server_that_knows_no_ranges_sends_all_again(hub: ListingHubServer, commit: str) -> None:
    with pytest.raises(StoppedError):
        have(hub, file(commit, content=known()), Killed())
    hub.fail("/blobs/", status=200, times=1)  # an empty answer in place of the rest
    assert have(hub, file(commit, content=known())).read_bytes() == WEIGHTS


def test_other_bytes_are_never_kept(hub: ListingHubServer, commit: str) -> None:
    hub.fail("/blobs/", body=b"y" * len(WEIGHTS))
    with pytest.raises(SourceError, match=r"w\.safetensors is not the file that the hub describes"):
        have(hub, file(commit))
    folder = RepositoryCache.of("model", REPO).folder
    assert [path for path in folder.rglob("*") if path.is_file() and path.name != "CACHEDIR.TAG"] == []
    hub.failures.clear()
    hub.fail("config", body=b'{"r": 5}')  # of the same size: git's hash tells
    with pytest.raises(SourceError, match=r"folder/config\.json is not the file"):
        have(hub, file(commit, "folder/config.json"))


def test_an_answer_without_a_hash_or_of_another_commit_is_refused(hub: ListingHubServer, commit: str) -> None:
    hub.fail("config", status=200)
    with pytest.raises(SourceError, match="states no hash"):
        have(hub, file(commit, "folder/config.json"))
    hub.failures.clear()
    hub.fail("config", status=200, headers={"X-Repo-Commit": "0" * 40, "ETag": '"' + "0" * 40 + '"'})
    with pytest.raises(SourceError, match=rf"commit {commit[:12]} was asked for, 000000000000 came"):
        have(hub, file(commit, "folder/config.json"))


@pytest.mark.parametrize("path", ["../../out", "/etc/passwd", "a/../../b", "a\\b", "a\0b", ""])
def test_a_path_that_leads_elsewhere_is_refused(hub: ListingHubServer, commit: str, path: str) -> None:
    with pytest.raises(SourceError, match="no path of a repository"):
        have(hub, file(commit, path))
    assert hub.requests.total() == 0


def test_freeing_leaves_what_another_snapshot_has(hub: ListingHubServer, commit: str) -> None:
    cache = RepositoryCache.of("model", REPO)
    later = hub.publish("model", REPO, {"w.safetensors": WEIGHTS})
    first, second = have(hub, file(commit)), have(hub, file(later))
    cache.free(second)
    assert not second.exists()
    assert first.read_bytes() == WEIGHTS
    cache.note_branch("main", commit)
    cache.free(first)
    assert not cache.folder.exists()


@given(st.binary(max_size=2000))
def test_contents_are_known_by_gits_hash_and_by_sha256(data: bytes) -> None:
    """git's own way, from its documentation: `blob SIZE` and NUL before the content."""
    import tempfile

    git = hashlib.sha1(b"blob " + str(len(data)).encode() + b"\0" + data).hexdigest()
    with tempfile.NamedTemporaryFile() as there:
        Path(there.name).write_bytes(data)
        for etag in (git, hashlib.sha256(data).hexdigest()):
            for stated in (etag, f'"{etag}"', f'W/"{etag}"'):
                content = content_of(stated, len(data))
                assert content is not None
                assert content.is_in(Path(there.name))
                assert not Content(content.etag, len(data) + 1).is_in(Path(there.name))
        other = content_of(hashlib.sha256(data + b"x").hexdigest(), None)
        assert other is not None
        assert not other.is_in(Path(there.name))
    assert content_of("main", 1) is None
    assert content_of("../../x", 1) is None
