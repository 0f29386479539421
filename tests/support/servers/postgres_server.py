"""A PostgreSQL server of the tests' own: a fresh cluster in a temporary folder, ended with the tests.

The programs are looked for on PATH and where Debian puts them; a missing server is an error, never a skip.
The server refuses to run as root: then it runs as the user `postgres`, whom its packages make.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

# Nothing survives a crash of the machine, which no test needs; a crash of the server is survived.
SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "max_connections": "60",
    "max_wal_size": "64MB",
    "autovacuum": "off",
    "listen_addresses": "127.0.0.1",
    "log_line_prefix": "%a|%p|",
    "log_connections": "on",
}
PASSWORD = "ge:h/eim @1"
USERS = ("bank", "guarded")
EMPTY = """
SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
WHERE datname = current_database() AND pid != pg_backend_pid();
DROP SCHEMA public CASCADE; CREATE SCHEMA public AUTHORIZATION pg_database_owner;
"""


class PostgresServer:
    """A running server. The user `bank` needs no password, `guarded` has to give one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = _free_port()
        self.log = folder / "log"
        self._databases = 0
        self._free: list[str] = []
        self._lent: list[str] = []
        self._dumps: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            entry = pwd.getpwnam("postgres")
            self._user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
            os.chown(folder, entry.pw_uid, entry.pw_gid)
        command = [
            *(_program("initdb"), "-D", folder / "data", "-U", "owner", "--encoding=UTF8", "--locale=C"),
            *("--auth=trust", "--no-sync", "--no-instructions"),
        ]
        self._run(command)
        access = "host all guarded 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n"
        (folder / "data" / "pg_hba.conf").write_text(access)
        self.start()
        with self.connect() as connection:
            for user in USERS:
                connection.execute(
                    sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(
                        sql.Identifier(user), sql.Literal(PASSWORD)
                    )
                )

    def start(self) -> None:
        """Start, and wait until it answers."""
        options = [item for name, value in SETTINGS.items() for item in ("-c", f"{name}={value}")]
        command = [_program("postgres"), "-D", self.folder / "data", "-p", str(self.port), "-k", "", *options]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.folder, stdin=subprocess.DEVNULL, **self._user
            )
        end = time.monotonic() + 60
        while True:
            try:
                self.connect().close()
                return
            except psycopg.OperationalError:
                assert self._process.poll() is None, self.log.read_text()
                assert time.monotonic() < end, self.log.read_text()
                time.sleep(0.02)

    def crash(self) -> None:
        """End it at once, clients and all, as after a fault: it recovers when it is started again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(60)

    def connect(self, database: str = "postgres", user: str = "owner") -> psycopg.Connection[Any]:
        """Connect, as the superuser if not told otherwise; each statement is its own transaction."""
        return psycopg.connect(host="127.0.0.1", port=self.port, user=user, dbname=database, autocommit=True)

    def new_database(self, *, options: str = "", owner: str = "bank") -> str:
        """Make an empty database; return its URL."""
        self._databases += 1
        name = f"test_{self._databases}"
        with self.connect() as connection:
            statement = sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE template0 " + options)  # type: ignore[arg-type]
            connection.execute(statement.format(sql.Identifier(name), sql.Identifier(owner)))
        return self.url(name, owner)

    def url(self, name: str, user: str = "bank") -> str:
        """URL of a database for a user."""
        return f"postgresql+psycopg://{user}@127.0.0.1:{self.port}/{name}"

    def borrow(self, template: str | None = None) -> str:
        """Lend a database, empty or with what that of the name `template` held when it was first asked for.

        Making a database writes a thousand files; what a bank has in one is loaded in milliseconds.
        """
        name = self._free.pop() if self._free else self.new_database().rpartition("/")[2]
        self._lent.append(name)
        if template is not None:
            if template not in self._dumps:
                address = ("-h", "127.0.0.1", "-p", str(self.port), "-U", "owner", template)
                command = [_program("pg_dump"), "--inserts", "--no-owner", "--no-privileges", *address]
                lines = self._run(command).splitlines(keepends=True)
                # Lines with a backslash are for psql.
                self._dumps[template] = "".join(line for line in lines if not line.startswith("\\"))
            with self.connect(name, "bank") as connection:
                connection.execute(self._dumps[template].encode())
        return self.url(name)

    def take_back(self) -> None:
        """Empty every database that was lent, whoever is connected still."""
        while self._lent:
            name = self._lent.pop()
            with self.connect(name) as connection:
                connection.execute(EMPTY)
            self._free.append(name)

    def clients(self, database: str) -> set[str]:
        """Return the names under which clients have connected to a database, as the log has it."""
        lines = [line for line in self.log.read_text().splitlines() if "connection authorized" in line]
        assert lines
        of_database = [line for line in lines if f" database={database} " in line]
        return {line.partition(" application_name=")[2] for line in of_database}

    def _run(self, command: list[Any]) -> str:
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder, **self._user)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout


@contextmanager
def running_server() -> Iterator[PostgresServer]:
    """A server, and nothing of it afterwards."""
    # Not below pytest's own folder, where only its owner may look; in memory, where there is enough.
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 2**30
    folder = Path(tempfile.mkdtemp(prefix="postgres-", dir=memory if roomy else None))
    try:
        server = PostgresServer(folder)
        try:
            yield server
        finally:
            server.crash()
    finally:
        shutil.rmtree(folder)


def _program(name: str) -> str:
    """The newest installed, since `postgres` and `initdb` have to be of one version."""
    installed = Path("/usr/lib/postgresql").glob(f"*/bin/{name}")
    found = sorted(installed, key=lambda path: float(path.parts[4]))
    program = str(found[-1]) if found else shutil.which(name)
    assert program, f"{name} is not installed: Debian's package postgresql has it"
    return program


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
