"""A Dask cluster of real processes: a scheduler and workers, as `dask scheduler` and `dask worker` start them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parents[3]
FAULTS = ROOT / "tests/support/faults/worker_faults.py"
START_SECONDS = 120


@dataclass(frozen=True)
class Certificates:
    """PEM files: a private authority, and what it signed."""

    ca: Path
    cert: Path
    key: Path

    def options(self) -> list[str]:
        return [
            "--tls-ca-file", str(self.ca), "--tls-cert", str(self.cert), "--tls-key", str(self.key)
        ]  # fmt: skip


def make_certificates(folder: Path, name: str = "cluster") -> Certificates:
    """A new authority, and a certificate with its key."""
    folder.mkdir(parents=True, exist_ok=True)
    ca, ca_key = folder / f"{name}-ca.pem", folder / f"{name}-ca-key.pem"
    cert, key, request = folder / f"{name}.pem", folder / f"{name}-key.pem", folder / f"{name}.csr"
    new_key = ["-newkey", "rsa:2048", "-nodes"]

    def openssl(*arguments: str | Path) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)

    openssl("req", "-x509", *new_key, "-keyout", ca_key, "-out", ca, "-days", "2", "-subj", f"/CN={name} CA")
    openssl("req", *new_key, "-keyout", key, "-out", request, "-subj", f"/CN={name}")
    openssl(
        "x509", "-req", "-in", request, "-CA", ca, "-CAkey", ca_key, "-CAcreateserial", "-out", cert, "-days", "2"
    )  # fmt: skip
    return Certificates(ca, cert, key)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_until(condition: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.02)


@dataclass
class DaskProcesses:
    """A scheduler and its workers; all end with the `with` block.

    Attributes
    ----------
    folder
        For the scheduler's file, logs and faults.
    host
        Address that they listen on.
    """

    folder: Path
    certificates: Certificates | None = None
    host: str = "127.0.0.1"
    environment: Mapping[str, str] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    port: int = field(default_factory=free_port)

    def __enter__(self) -> DaskProcesses:
        self.faults.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
        for process in self.processes.values():
            process.wait()

    @property
    def file(self) -> Path:
        return self.folder / "scheduler.json"

    @property
    def faults(self) -> Path:
        """See `worker_faults`."""
        return self.folder / "faults"

    @property
    def address(self) -> str:
        return str(json.loads(self.file.read_text())["address"])

    def start_scheduler(self, prefix: Sequence[str] = (), **environment: str) -> subprocess.Popen[bytes]:
        self.file.unlink(missing_ok=True)
        options = [
            "--host",
            self.host,
            "--port",
            str(self.port),
            "--no-dashboard",
            "--scheduler-file",
            str(self.file),
        ]
        process = self._start("scheduler", [*options, *self._tls()], prefix, environment)
        wait_until(lambda: self.file.is_file() and self.file.stat().st_size > 0, self.log("scheduler"))
        return process

    def start_worker(
        self,
        name: str,
        *,
        threads: int = 1,
        memory: str = "2GiB",
        host: str | None = None,
        prefix: Sequence[str] = (),
        tls: bool = True,
        scheduler: str | None = None,
        patience: int = 60,
        **environment: str,
    ) -> subprocess.Popen[bytes]:
        """Start one; it ends when no scheduler has let it in for `patience` seconds."""
        options = [
            "--no-nanny", "--no-dashboard", "--nthreads", str(threads), "--memory-limit", memory, "--name", name,
            "--host", host or self.host, "--local-directory", str(self.folder / f"{name}-scratch"),
            "--preload", str(FAULTS), "--death-timeout", str(patience),
        ]  # fmt: skip
        where = [scheduler] if scheduler else ["--scheduler-file", str(self.file)]
        return self._start(
            "worker", [*where, *options, *(self._tls() if tls else [])], prefix, environment, name
        )

    def log(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.is_file() else ""

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].wait()

    def _tls(self) -> list[str]:
        protocol = "tls://" if self.certificates else "tcp://"
        return ["--protocol", protocol, *(self.certificates.options() if self.certificates else [])]

    def _start(
        self,
        what: str,
        options: Sequence[str],
        prefix: Sequence[str],
        environment: Mapping[str, str],
        name: str | None = None,
    ) -> subprocess.Popen[bytes]:
        name = name or what
        path = str(ROOT)
        variables = (
            os.environ | {"PYTHONPATH": path, "FAULTS": str(self.faults)} | self.environment | environment
        )
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [*prefix, sys.executable, "-m", "dask", what, *options],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self.folder, env=variables,
            )  # fmt: skip
        return self.processes[name]
