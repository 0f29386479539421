from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from bankdb.bank import AdapterBank
from tests.support.banks.small_bank import create_bank, ingest_folder, write_pairs, write_tokenizer
from tests.support.servers.backends import move_database, parametrize_backend
from tests.support.servers.object_store import reached_at, served
from tests.support.servers.postgres_server import PostgresServer, running_server

# How long an example takes is no property of what is tested: other processes may run beside it.
settings.register_profile("lora-bank", deadline=None)
settings.load_profile("lora-bank")


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def pairs_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six good pairs, in all three dtypes; do not change them."""
    return write_pairs(tmp_path_factory.mktemp("pairs"), 6, dtypes=("F32", "F16", "BF16"))


@pytest.fixture(scope="session")
def bank_template(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path, pairs_folder: Path
) -> Iterator[Path]:
    """A bank with the six pairs, to be copied."""
    path = tmp_path_factory.mktemp("bank") / "bank"
    with create_bank(path, tokenizer_folder) as bank:
        ingest_folder(bank, pairs_folder)
    before = {item.name for item in path.iterdir()}
    yield path
    # A test that computes in it changes what others find.
    assert not {item.name for item in path.iterdir() if item.suffix == ".zarr"} - before


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server for all tests of this process."""
    with running_server() as server:
        yield server


@pytest.fixture
def databases(postgres: PostgresServer) -> Iterator[PostgresServer]:
    """The server; what it lends to a test, it takes back."""
    yield postgres
    postgres.take_back()


@pytest.fixture
def backend() -> str:
    """The kind of database; `backends` gives every kind to the tests of the contract."""
    return "sqlite"


@pytest.fixture
def database_url(tmp_path: Path, backend: str, request: pytest.FixtureRequest) -> str:
    """An empty database of its own."""
    if backend == "sqlite":
        return f"sqlite:///{tmp_path / 'bank.db'}"
    server: PostgresServer = request.getfixturevalue("databases")
    return server.borrow()


@pytest.fixture(scope="session")
def postgres_template(
    postgres: PostgresServer,
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer_folder: Path,
    pairs_folder: Path,
) -> Path:
    """A bank with the six pairs whose catalogue is in PostgreSQL."""
    path = tmp_path_factory.mktemp("postgres") / "bank"
    with create_bank(path, tokenizer_folder, postgres.new_database()) as bank:
        ingest_folder(bank, pairs_folder)
    return path


@pytest.fixture
def empty_bank(
    tmp_path: Path, tokenizer_folder: Path, backend: str, request: pytest.FixtureRequest
) -> Iterator[AdapterBank]:
    database = None if backend == "sqlite" else request.getfixturevalue("database_url")
    with create_bank(tmp_path / "bank", tokenizer_folder, database) as bank:
        yield bank


@pytest.fixture
def bank(
    tmp_path: Path, bank_template: Path, backend: str, request: pytest.FixtureRequest
) -> Iterator[AdapterBank]:
    """An open bank with the six pairs, its own copy."""
    template: Path = bank_template if backend == "sqlite" else request.getfixturevalue("postgres_template")
    shutil.copytree(template, tmp_path / "bank")
    if backend != "sqlite":
        move_database(tmp_path / "bank", request.getfixturevalue("databases"))
    with AdapterBank.open(tmp_path / "bank") as opened:
        yield opened


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrize_backend(metafunc)


@pytest.fixture(scope="session")
def object_server() -> Iterator[str]:
    """The address of an S3-compatible server with the bucket `banks`."""
    with served() as address:
        yield address


@pytest.fixture
def s3(object_server: str) -> Iterator[str]:
    """An empty place of the test's own on that server."""
    with reached_at(object_server):
        yield f"s3://banks/{uuid.uuid4().hex}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses an object store, so that it can be run on another implementation of one."""
    for item in items:
        if "object_server" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.s3)
