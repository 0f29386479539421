"""An `init` that failed, at whatever step: the same command again goes on, and so does another place."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import create_engine, inspect, text

from bankdb.arrays.remote import filesystem
from bankdb.bank import AdapterBank
from bankdb.catalog.catalog import Catalog
from bankdb.errors import BankError, BankNotFoundError, ConflictError
from bankdb.storage import new_bank
from bankdb.storage.location import BankLocation
from cli.main import cli
from tests.support.banks.malformed_adapters import BASE_MODEL
from tests.support.banks.small_bank import ingest_folder
from tests.support.servers.backends import BEFORE, take_back

EVERY_BACKEND = True


@pytest.fixture
def database(backend: str, database_url: str) -> str | None:
    return None if backend == "sqlite" else database_url


def make(path: Path, tokenizer: Path, database: str | None, arrays: str | None) -> AdapterBank:
    return AdapterBank.create(
        path, base_model=BASE_MODEL, tokenizer=tokenizer, database=database, arrays=arrays
    )


def check(bank: AdapterBank, pairs: Path) -> None:
    with bank:
        assert len(ingest_folder(bank, pairs).added) == 6
    with AdapterBank.open(bank.path) as again:
        assert len(again) == 6


def test_a_bucket_that_is_not_there(
    tmp_path: Path, tokenizer_folder: Path, pairs_folder: Path, s3: str, database: str | None
) -> None:
    bucket = f"absent-{tmp_path.name.replace('_', '-')[-20:].strip('-').lower()}-{'p' if database else 's'}"
    words = ["init", "--bank", str(tmp_path / "bank"), "--base-model", BASE_MODEL]
    words += ["--tokenizer", str(tokenizer_folder), "--arrays", f"s3://{bucket}/a"]
    words += [] if database is None else ["--database", database]
    for _ in range(2):
        done = CliRunner().invoke(cli, words)
        assert done.exit_code == 1
        assert bucket in done.stderr
        assert "already" not in done.stderr
        assert not (tmp_path / "bank").exists() or _is_no_bank(tmp_path / "bank")
    filesystem(f"s3://{bucket}/a").call_s3("create_bucket", Bucket=bucket)
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    check(AdapterBank.open(tmp_path / "bank"), pairs_folder)
    done = CliRunner().invoke(cli, words)
    assert "already" in done.stderr


def _is_no_bank(folder: Path) -> bool:
    with pytest.raises(BankNotFoundError):
        AdapterBank.open(folder)
    return True


@pytest.mark.faults
@pytest.mark.parametrize("again", ["the same place", "another place"])
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        ("bankdb.storage.new_bank", "save_tokenizer"),
        (BankLocation, "record"),
        ("bankdb.storage.new_bank", "claim_arrays"),
        (new_bank, "ensure_group"),
        (Catalog, "create_bank"),
        ("bankdb.bank", "fsync_path"),
    ],
)
@pytest.mark.parametrize("after", [False, True])
def test_every_step_that_fails(
    tmp_path: Path,
    tokenizer_folder: Path,
    pairs_folder: Path,
    database: str | None,
    owner: Any,
    name: str,
    after: bool,
    again: str,
) -> None:
    """Before it did anything, or after it did all that it does."""
    with pytest.MonkeyPatch.context() as patch:
        target = f"{owner}.{name}" if isinstance(owner, str) else owner
        step = _step(owner, name)

        def failing(*arguments: Any, **options: Any) -> Any:
            if after:
                step(*arguments, **options)
            raise KeyboardInterrupt

        if isinstance(owner, str):
            patch.setattr(target, failing)
        else:
            patch.setattr(owner, name, failing)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "bank", tokenizer_folder, database, str(tmp_path / "arrays"))
    whole = name == "fsync_path" or (name == "create_bank" and after)
    if whole:
        check(AdapterBank.open(tmp_path / "bank"), pairs_folder)
        with pytest.raises(BankError, match="already"):
            make(tmp_path / "bank", tokenizer_folder, database, str(tmp_path / "arrays"))
        return
    _is_no_bank(tmp_path / "bank")
    place = tmp_path / ("arrays" if again == "the same place" else "elsewhere")
    check(make(tmp_path / "bank", tokenizer_folder, database, str(place)), pairs_folder)


def _step(owner: Any, name: str) -> Callable[..., Any]:
    module = importlib.import_module(owner) if isinstance(owner, str) else owner
    found: Callable[..., Any] = getattr(module, name)
    return found


def test_one_place_another_and_the_first_again(
    tmp_path: Path, tokenizer_folder: Path, pairs_folder: Path, database: str | None
) -> None:
    """Killed with the first place marked as the bank's, then with the second."""
    places = [str(tmp_path / name) for name in ("first", "second")]
    for place in places:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("bankdb.storage.new_bank.record_bank", _interrupted)
            with pytest.raises(KeyboardInterrupt):
                make(tmp_path / "bank", tokenizer_folder, database, place)
    check(make(tmp_path / "bank", tokenizer_folder, database, places[0]), pairs_folder)


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_tokenizer_that_cannot_be_had_leaves_nothing(
    tmp_path: Path, tokenizer_folder: Path, database: str | None, database_url: str
) -> None:
    with pytest.raises(BankError):
        make(tmp_path / "bank", tmp_path / "absent", database, str(tmp_path / "arrays"))
    assert list(tmp_path.iterdir()) == []
    if database is not None:
        engine = create_engine(database_url)
        assert inspect(engine).get_table_names() == []
        engine.dispose()
    make(tmp_path / "bank", tokenizer_folder, database, str(tmp_path / "arrays")).close()


def test_looking_at_a_bank_of_an_older_version_does_not_upgrade_it(
    tmp_path: Path, tokenizer_folder: Path, database: str | None
) -> None:
    """`init` in its place is refused, and the older version can go on with it."""
    make(tmp_path / "bank", tokenizer_folder, database, None).close()
    take_back(tmp_path / "bank")
    with pytest.raises(ConflictError, match="already"):
        make(tmp_path / "bank", tokenizer_folder, database, None)
    engine = create_engine(BankLocation.of(tmp_path / "bank").database_url)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == BEFORE
    engine.dispose()
