"""A server that forks `bank` commands from a process with the heavy imports done, to be killed.

Run as a script: a JSON object a line in, one a line out. `start` forks a command and answers with its
process id, `wait` answers with its exit status (negative: the signal that ended it). A command may be
told to kill itself, by SIGKILL, at the begin or the end of the n-th call of one of the functions below; or
to stop there, by SIGSTOP, which `stopped` waits for, so that another process does what it does meanwhile.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]

# What is imported before the fork; nothing of it may have started threads by then.
PRELOADED = (
    "alembic.command",
    "bankdb.sources.hub",
    "bankdb.ingest",
    "bankdb.peft.weights",
    "bankdb.catalog.postgresql",
    "bankdb.datasets.tokenizer",
    "bankdb.verify",
    "cli.main",
    "numcodecs.blosc",
    "psycopg",
    "pyarrow",
    "transformers.models.auto.tokenization_auto",
    "zarr.codecs",
)

# Where a command can be killed: module, class if any, function.
POINTS = {
    "abandon": "bankdb.catalog.catalog Catalog.abandon",
    "commit": "sqlalchemy.orm Session.commit",
    "create_array": "bankdb.arrays.adapter_store create_array",
    "create_bank": "bankdb.catalog.catalog Catalog.create_bank",
    "delete": "bankdb.arrays.adapter_store AdapterStore.delete",
    "fsync": "bankdb.arrays.durable fsync_path",
    "fsync_bank": "bankdb.storage.new_bank fsync_path",
    "fsync_written": "bankdb.arrays.adapter_store fsync_written",
    "grow": "bankdb.arrays.adapter_store AdapterStore.grow",
    "keep_answers": "bankdb.catalog.generations GenerationStore.keep",
    "make_ready": "bankdb.catalog.catalog Catalog.make_ready",
    "remove": "bankdb.catalog.catalog Catalog.remove",
    "rename": "pathlib Path.replace",
    "reserve": "bankdb.bank AdapterBank.reserve",
    "save": "bankdb.datasets.tokenizer BankTokenizer.save",
    "upgrade": "bankdb.catalog.database upgrade",
    "write": "bankdb.arrays.adapter_store AdapterStore.write",
}


class FaultServer:
    """The server's other end, for tests."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        )
        self._ready = False

    def start(
        self, *arguments: str | Path, log: Path, kill: str | None = None, stop: str | None = None
    ) -> int:
        """Fork `bank ARGUMENTS`, output to `log`; `kill` or `stop` is `POINT begin|end N`. Returns the pid."""
        at = {"SIGKILL": kill} if kill else {"SIGSTOP": stop} if stop else {}
        pid = self._ask({"start": [str(item) for item in arguments], "log": str(log), "at": at})
        assert isinstance(pid, int)
        return pid

    def stopped(self, pid: int) -> None:
        """Wait until a command has stopped where it was told to."""
        assert self._ask({"stopped": pid}), "it ended without stopping"

    def wait(self, pid: int) -> int:
        """Wait for a command; return its exit status, negative if a signal ended it."""
        status = self._ask({"wait": pid})
        assert isinstance(status, int)
        return status

    def close(self) -> None:
        self._process.communicate()

    def _ask(self, request: dict[str, Any]) -> Any:
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


def _serve() -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    _answer("ready")
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _answer(os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1]))
            continue
        if "stopped" in request:
            _answer(os.WIFSTOPPED(os.waitpid(request["stopped"], os.WUNTRACED)[1]))
            continue
        pid = os.fork()
        if pid == 0:
            _run(request["start"], request["log"], request["at"])
        _answer(pid)


def _answer(value: Any) -> None:
    print(json.dumps(value), flush=True)


def _run(arguments: list[str], log: str, at: dict[str, str]) -> None:
    """Be the command; never returns."""
    from cli.main import main

    for descriptor, path, flags in ((0, os.devnull, os.O_RDONLY), (1, log, os.O_WRONLY | os.O_CREAT)):
        os.dup2(os.open(path, flags | os.O_APPEND), descriptor)
    os.dup2(1, 2)
    status = 70
    try:
        for name, place in at.items():
            _arm(signal.Signals[name], *place.split())
        sys.argv = ["bank", *arguments]
        main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def _arm(sent: signal.Signals, point: str, when: str, number: str) -> None:
    """Replace a function by one that sends the process a signal at its n-th call."""
    module, path = POINTS[point].split()
    owner = importlib.import_module(module)
    *within, name = path.split(".")
    for part in within:
        owner = getattr(owner, part)
    function = getattr(owner, name)
    calls = 0

    @functools.wraps(function)
    def armed(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        mine = calls == int(number)
        if mine and when == "begin":
            os.kill(os.getpid(), sent)
        result = function(*args, **options)
        if mine:
            os.kill(os.getpid(), sent)
        return result

    setattr(owner, name, armed)


if __name__ == "__main__":
    _serve()
