"""Listings as hubs send them, hostile ones too: one line for whatever goes wrong, and nothing without bounds."""

from __future__ import annotations

import json
import socket
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bankdb.errors import SourceError
from bankdb.public.listing import answers, repositories
from bankdb.public.listing.repositories import Listing, parsed
from tests.support.servers.public_bank import card, hub_here

SHA = "a" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with hub_here(tmp_path, monkeypatch, page=2) as server:
        for number in range(5):
            server.publish("model", f"o/m{number}", {"adapter_config.json": "{}", "README.md": card("x/y")})
        yield server


def refusal(owner="o"):
    with pytest.raises(SourceError) as error:
        Listing().add("model", owner)
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 400
    return text


def test_pages_are_followed_to_the_end(hub):
    found = Listing().add("model", "o")
    assert [one.repo_id for one in found] == [f"o/m{number}" for number in range(5)]
    assert hub.asked() == 3
    first = found[0]
    assert first.information.revision == hub.repositories["model", "o/m0"].branches["main"]
    assert first.base_models == ("x/y",)
    assert first.size == sum(
        map(len, hub.repositories["model", "o/m0"].commits[first.information.revision].values())
    )


def test_a_mirror_that_names_the_hub_it_mirrors_is_asked_itself(hub, monkeypatch):
    monkeypatch.setattr(type(hub), "endpoint", property(lambda self: "http://elsewhere.invalid"))
    assert len(Listing().add("model", "o")) == 5


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_is_asked_for(hub, status):
    hub.fail("/api/models", status=status)
    assert f"answered with status {status}; set a valid HF_TOKEN" in refusal()


def test_a_token_lists_what_is_private(hub, monkeypatch):
    hub.publish("model", "o/private", {"adapter_config.json": "{}"}, token="secret")
    assert len(Listing().add("model", "o")) == 5
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert len(Listing().add("model", "o")) == 6


def test_a_busy_hub_is_waited_for_as_it_tells(hub):
    hub.fail("/api/models", status=429, headers={"RateLimit": '"api";r=0;t=0'}, times=1)
    started = time.monotonic()
    assert len(Listing().add("model", "o")) == 5
    assert time.monotonic() - started < 30


def test_a_connection_that_breaks_is_made_again(hub):
    hub.fail("/api/models", cut=100, times=1)
    assert len(Listing().add("model", "o")) == 5


def test_offline_there_is_no_listing(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert refusal().startswith(
        "models of o: HF_HUB_OFFLINE is set, and a listing is had from http://127.0.0.1"
    )
    assert hub.asked() == 0


def test_no_hub_there(hub, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    assert f"models of o: cannot reach http://127.0.0.1:{port}" in refusal()
    monkeypatch.setenv("HF_ENDPOINT", "ftp://x")
    assert "HF_ENDPOINT is 'ftp://x'" in refusal()


@pytest.mark.parametrize(
    "body",
    [b"<html>", b"{}", b'"text"', b"", b"[1", b"[" * 100_000, b"\xff\xfe", b'{"error":"x"}'],
    ids=["html", "object", "string", "empty", "cut", "deep", "bytes", "error"],
)
def test_what_no_hub_answers_is_one_line(hub, body):
    hub.fail("/api/models", body=body)
    assert "its answer is not a hub's; check HF_ENDPOINT" in refusal()


def test_answers_are_bounded(hub, monkeypatch):
    monkeypatch.setattr(answers, "_LARGEST", 10_000)
    hub.fail("/api/models", body=b"[" + b" " * 20_000 + b"]", times=1)
    assert "its answer is not a hub's" in refusal()
    monkeypatch.setattr(answers, "_MOST_VALUES", 1000)
    hub.fail("/api/models", body=json.dumps([0] * 2000).encode(), times=1)
    assert "its answer is not a hub's" in refusal()
    monkeypatch.setattr(answers, "_SECONDS", -1.0)
    assert "its answer is not a hub's" in refusal()


def test_more_repositories_or_files_than_anybody_has_are_refused(hub, monkeypatch):
    monkeypatch.setattr(answers, "MOST_ENTRIES", 3)
    assert "more than 3 repositories" in refusal()
    monkeypatch.setattr(answers, "MOST_ENTRIES", 100)
    monkeypatch.setattr(repositories, "_MOST_FILES_OF_ALL", 3)
    assert "more than 3 files in all" in refusal()


class _Answers:
    """A hub whose pages have no end."""

    def __init__(self, page, links):
        self.page, self.links, self.asked = page, links, 0

    def body(self, url, query, session):
        self.asked += 1
        link = next(self.links)
        return json.dumps(self.page).encode(), {"url": link} if link else {}


@pytest.mark.parametrize("page", [[], [{"id": "o/m", "sha": SHA}]])
def test_pages_without_end_end(hub, monkeypatch, page):
    same = _Answers(page, iter(["http://x/?cursor=1"] * 10))
    monkeypatch.setattr(answers, "_body", same.body)
    assert "its answer is not a hub's" in refusal()
    assert same.asked <= 2
    more = _Answers(page, (f"http://x/?cursor={number}" for number in range(10**9)))
    monkeypatch.setattr(answers, "_body", more.body)
    monkeypatch.setattr(answers, "_MOST_PAGES", 7)
    assert "its answer is not a hub's" in refusal()
    assert more.asked <= 8


HOSTILE = [
    None, 7, "o/m", [], {}, {"id": "o/m"}, {"id": "o/m", "sha": "main", "siblings": []}, {"id": "o/m", "sha": SHA[:-1]},
    {"id": "../../etc", "sha": SHA}, {"id": "o/m/x", "sha": SHA}, {"id": "o/m\n", "sha": SHA},
    {"id": ["o/m"], "sha": SHA},
    {"id": "o/m", "sha": SHA, "siblings": {"rfilename": "x"}}, {"id": "o/\x1b[2J", "sha": SHA}, {"id": "o/m", "sha": 7},
]  # fmt: skip


@pytest.mark.parametrize("entry", HOSTILE)
def test_an_entry_that_is_no_repository_is_none(entry):
    assert parsed("model", entry) is None


def test_entries_of_others_and_of_no_form_are_counted(hub):
    body = [*HOSTILE, {"id": "p/other", "sha": SHA}, {"id": "O/m", "sha": SHA, "siblings": []}]
    hub.page = 500
    hub.fail("/api/models", body=json.dumps(body).encode())
    listing = Listing()
    assert [one.repo_id for one in listing.add("model", "o")] == ["O/m"]
    assert listing.unread_count == len(HOSTILE) + 1
    assert len(listing.unread) == 3
    assert all(text.isprintable() for text in listing.unread)


def test_files_are_paths_below_the_repository_and_not_too_many(monkeypatch):
    monkeypatch.setattr(repositories, "MOST_FILES", 10)
    names = ["ok.json", "/abs", "../up", "a/../b", "a\\b", "a\n", "", "a//b", 7, None]
    entry = {"id": "o/m", "sha": SHA, "siblings": [{"rfilename": name} for name in names] + [3, {}] * 10**5}
    found = parsed("model", entry)
    assert found is not None
    assert list(found.information.files) == ["ok.json"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
ENTRY = st.fixed_dictionaries(
    {"id": st.just("o/m") | JSON, "sha": st.just(SHA) | JSON},
    optional={
        "siblings": JSON
        | st.lists(st.fixed_dictionaries({"rfilename": JSON}, optional={"lfs": JSON, "size": JSON})),
        "cardData": JSON | st.fixed_dictionaries({}, optional={"base_model": JSON, "datasets": JSON}),
        "tags": JSON,
        "gated": JSON,
        "usedStorage": JSON,
    },
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(ENTRY)
def test_whatever_an_entry_holds_it_is_read_or_left(entry):
    found = parsed("model", entry)
    if found is not None:
        assert all(isinstance(text, str) for text in (*found.base_models, *found.datasets))
        assert found.size is None or found.size >= 0
        assert found.is_adapter() in (True, False)
