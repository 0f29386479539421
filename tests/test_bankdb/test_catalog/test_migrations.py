"""The migrations: they make what the models say, are packaged, and refuse what they do not know."""

from __future__ import annotations

import importlib.resources
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, inspect, text

from bankdb.catalog.database import Database
from bankdb.catalog.migrations.apply import HEAD, current_revision
from bankdb.catalog.schema import Base
from bankdb.errors import BankFormatError, BankNotFoundError

ROOT = Path(__file__).parents[3]
EVERY_BACKEND = True


@pytest.fixture
def migrated(database_url: str) -> Iterator[Database]:
    database = Database(database_url, create=True)
    yield database
    database.close()


def set_revision(database: Database, revision: str) -> None:
    with database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = :to"), {"to": revision})
    database.close()


@pytest.fixture
def scripts() -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", "bankdb:catalog/migrations")
    return ScriptDirectory.from_config(config)


def test_head_is_the_newest_script(scripts: ScriptDirectory) -> None:
    assert scripts.get_heads() == [HEAD]


def test_revisions_are_in_one_line_and_sorted(scripts: ScriptDirectory) -> None:
    """Sorted as text: an older program knows a newer database by comparing them."""
    revisions = [script.revision for script in scripts.walk_revisions()]
    assert revisions == sorted(revisions, reverse=True)
    assert all(
        not script.is_branch_point and not script.is_merge_point for script in scripts.walk_revisions()
    )


def test_migrations_make_what_the_models_say(migrated: Database) -> None:
    with migrated.read() as session:
        context = MigrationContext.configure(session.connection(), opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_constraints_and_indexes_agree_too(
    migrated: Database, tmp_path: Path, backend: str, request: pytest.FixtureRequest
) -> None:
    """Alembic compares neither CHECK constraints nor the conditions of indexes."""
    if backend == "sqlite":
        engine = create_engine(f"sqlite:///{tmp_path / 'models.db'}")
    else:
        engine = create_engine(request.getfixturevalue("postgres").new_database())
    Base.metadata.create_all(engine)
    with migrated.read() as session, engine.connect() as connection:
        assert constraints(session.connection()) == constraints(connection)
    engine.dispose()


INDEXES = {
    "sqlite": "SELECT sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL ORDER BY name",
    "postgresql": "SELECT indexdef FROM pg_indexes WHERE tablename != 'alembic_version' "
    "AND schemaname = current_schema() ORDER BY indexname",
}


def constraints(connection: Connection) -> dict[str, list[str]]:
    found = inspect(connection)
    kinds = (found.get_check_constraints, found.get_unique_constraints, found.get_foreign_keys)
    names = [name for name in found.get_table_names() if name != "alembic_version"]
    tables = {name: sorted(str(item) for kind in kinds for item in kind(name)) for name in names}
    query = text(INDEXES[connection.dialect.name])
    return tables | {"indexes": list(connection.scalars(query))}


def test_the_schema_compiles_on_postgresql() -> None:
    from sqlalchemy import create_mock_engine

    made: list[str] = []
    engine = create_mock_engine(
        "postgresql+psycopg://", lambda sql, *_, **__: made.append(str(sql.compile(dialect=engine.dialect)))
    )
    Base.metadata.create_all(engine, checkfirst=False)
    for table in Base.metadata.sorted_tables:
        assert any(f"CREATE TABLE {table.name}" in one for one in made)
    indexes = [one for one in made if "INDEX" in one]
    assert len(indexes) == sum(len(table.indexes) for table in Base.metadata.sorted_tables)
    for one in indexes:
        assert ("WHERE state = 'ready'" in one) == ("uq_adapter_ready_name" in one)


def test_a_database_is_migrated_once(migrated: Database, database_url: str) -> None:
    again = Database(database_url, create=True)
    with again.read() as session:
        assert current_revision(session.connection()) == HEAD
    again.close()


def test_a_newer_revision_is_refused(migrated: Database, database_url: str) -> None:
    set_revision(migrated, "9999")
    for create in (False, True):
        with pytest.raises(
            BankFormatError, match=f"revision 9999, but this version knows up to {HEAD}: upgrade"
        ):
            Database(database_url, create=create)


def test_a_revision_that_never_was_is_refused(migrated: Database, database_url: str) -> None:
    set_revision(migrated, "0000")
    with pytest.raises(BankFormatError, match="revision is not known"):
        Database(database_url)


def test_an_interrupted_migration_leaves_nothing(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from bankdb.catalog.migrations import apply

    def upgrade_and_fail(connection: object) -> None:
        apply.upgrade(connection)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr("bankdb.catalog.database.upgrade", upgrade_and_fail)
    with pytest.raises(KeyboardInterrupt):
        Database(database_url, create=True)
    engine = create_engine(database_url)
    assert inspect(engine).get_table_names() == []
    engine.dispose()
    monkeypatch.undo()
    with pytest.raises(BankNotFoundError, match="bank init"):
        Database(database_url)
    Database(database_url, create=True).close()


def test_the_first_schema_is_not_taken_back(migrated: Database) -> None:
    from bankdb.catalog.migrations.versions import r0001_first

    with pytest.raises(NotImplementedError, match="delete the bank's folder"):
        r0001_first.downgrade()


def test_migrations_are_resources_of_the_package() -> None:
    folder = importlib.resources.files("bankdb.catalog.migrations")
    for name in ("env.py", "script.py.mako"):
        assert (folder / name).is_file()
    versions = importlib.resources.files("bankdb.catalog.migrations.versions")
    assert [item.name for item in versions.iterdir() if item.name.startswith("r0001")] == ["r0001_first.py"]


def test_every_file_is_packaged() -> None:
    """What is no module is in no distribution unless pyproject.toml says so."""
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for package, patterns in packaged.items():
        for file in (ROOT / package).rglob("*"):
            if "__pycache__" in file.parts:  # numba keeps machine code there too
                continue
            if file.is_dir():
                within = not any(file.glob("*.py"))
                assert within or (file / "__init__.py").is_file(), file
            elif file.suffix not in {".py", ".pyc"}:
                name = file.relative_to(ROOT / package).as_posix()
                assert any(fnmatch(name, pattern) for pattern in patterns), file
