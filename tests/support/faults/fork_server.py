"""Both ends of a server that forks processes from one with the heavy imports done, so that they can be killed.

A script beside it gives it what to import and what a request to start is; a line of JSON in, one out.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[3]


class ForkServer:
    """The server's other end, for tests.

    Attributes
    ----------
    script
        What is run as the server.
    """

    script: str

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, self.script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **(environment or {})},
        )
        self._ready = False

    def wait(self, pid: int) -> int:
        """Wait for a process; return its exit status, negative if a signal ended it."""
        status = self.ask({"wait": pid})
        assert isinstance(status, int)
        return status

    def close(self) -> None:
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        if not self._ready:  # not before it is needed: it starts while the test prepares
            self._ready = self._read() == "ready"
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the server ended"
        return json.loads(line)


def serve(preloaded: Sequence[str], run: Callable[[Any], int]) -> None:
    """Be the server: `wait` and `stopped` are of a process id; `start` forks a process that runs it and ends."""
    for name in preloaded:
        importlib.import_module(name)
    _answer("ready")
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _answer(os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1]))
        elif "stopped" in request:
            _answer(os.WIFSTOPPED(os.waitpid(request["stopped"], os.WUNTRACED)[1]))
        else:
            pid = os.fork()
            if pid == 0:
                _run(request, run)
            _answer(pid)


def _answer(value: Any) -> None:
    print(json.dumps(value), flush=True)


def _run(request: Any, run: Callable[[Any], int]) -> None:
    """Be the process, with its output in the request's log; never returns."""
    for descriptor, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, request["log"], os.O_WRONLY | os.O_CREAT),
    ):
        os.dup2(os.open(path, flags | os.O_APPEND), descriptor)
    os.dup2(1, 2)
    status = 70
    try:
        status = run(request)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)
