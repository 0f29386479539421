"""Where a bank is: what `bank.json` says, and that a password in it is shown to nobody."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from bankdb.catalog.url import parse_database, shown_database
from bankdb.errors import BankFormatError, ParameterError
from bankdb.storage.location import BankLocation

URL = "postgresql+psycopg://ada@db.example:5433/adapters"


def test_without_a_file_everything_is_in_the_folder(tmp_path: Path) -> None:
    location = BankLocation.of(tmp_path)
    assert location == BankLocation(tmp_path, None, None, None)
    assert location.database_url.database == str(tmp_path / "bank.db")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("database", "arrays", "identity"),
    [(URL, None, "a" * 32), (None, "s3://bucket/bank", None), (URL, "s3://bucket/bank", "b" * 32)],
)
def test_what_is_recorded_is_read(
    tmp_path: Path, database: str | None, arrays: str | None, identity: str | None
) -> None:
    location = BankLocation(tmp_path, database and parse_database(database), arrays, identity)  # type: ignore[arg-type]
    (tmp_path / "bank.json").write_text("an older one")
    location.record()
    assert BankLocation.of(tmp_path) == location
    assert [item.name for item in tmp_path.iterdir()] == ["bank.json"]


def test_a_password_is_kept_for_the_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        for url, mode in ((URL, 0o644), (URL.replace("ada@", "ada:geheim@"), 0o600)):
            location = BankLocation(tmp_path, parse_database(url), None, "a" * 32)
            location.record()
            assert stat.S_IMODE((tmp_path / "bank.json").stat().st_mode) == mode
            assert BankLocation.of(tmp_path) == location
            assert "geheim" not in f"{location} {location!r}"
    finally:
        os.umask(before)


@pytest.mark.parametrize(
    "text",
    [
        "postgresql+psycopg://ada:geheim@db.example:5433/adapters",
        "postgresql://ada:geheim@db.example:5433/adapters",
        "postgresql://ada@db.example:5433/adapters?password=geheim&sslmode=require",
    ],
)
def test_a_password_is_not_shown(text: str) -> None:
    url = parse_database(text)
    assert url.drivername == "postgresql+psycopg"
    assert url.password == "geheim"
    assert shown_database(url) == "postgresql://ada@db.example:5433/adapters"
    assert "geheim" not in f"{url} {url!r}"
    assert dict(url.query) == ({"sslmode": "require"} if "sslmode" in text else {})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("geheim", "cannot be read"),
        ("postgresql://ada:geheim@db:port/adapters", "cannot be read"),
        ("sqlite:///geheim.db", "'sqlite' is not supported"),
        ("mysql://ada:geheim@db/adapters", "'mysql' is not supported"),
        ("postgresql+asyncpg://ada:geheim@db/adapters", "'postgresql\\+asyncpg' is not supported"),
        ("postgresql://ada:geheim@db", "names no database"),
        ("postgresql://ada:geheim@db/", "names no database"),
    ],
)
def test_another_url_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(
        ParameterError, match=rf"{reason}.*expected postgresql\+psycopg://USER@HOST/DATABASE"
    ) as found:
        parse_database(text)
    assert "geheim" not in str(found.value)
    (tmp_path / "bank.json").write_text(json.dumps({"format": 1, "database": text}))
    with pytest.raises(BankFormatError, match=rf"bank\.json: does not say where the bank is: .*{reason}"):
        BankLocation.of(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value"),
        (b"{", "line 1"),
        (b"\xff\xfe", "no text file"),
        (b"[]", "an object was expected, an array found"),
        (b"{}", "expected format 1, found None: upgrade"),
        (b'{"format": 2}', "expected format 1, found 2: upgrade"),
        (b'{"format": 1, "arrays": 3}', "'arrays' should be a string or null, it is a number"),
        (b'{"format": 1, "identity": []}', "'identity' should be a string or null, it is an array"),
        (b'{"format": 1, "shards": null}', "the key 'shards' is not known"),
        (b'{"format": 1, "arrays": "a", "arrays": "b"}', "given twice"),
    ],
)
def test_a_file_that_says_something_else_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "bank.json").write_bytes(content)
    with pytest.raises(BankFormatError, match=rf"bank\.json: .*{reason}"):
        BankLocation.of(tmp_path)
    assert (tmp_path / "bank.json").read_bytes() == content


def test_a_folder_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bank.json").mkdir()
    with pytest.raises(BankFormatError, match="no text file"):
        BankLocation.of(tmp_path)
