"""A server that forks `bank` commands from a process with the heavy imports done, to be killed.

Run as a script: a JSON object a line in, one a line out. `start` forks a command and answers with its
process id, `wait` answers with its exit status (negative: the signal that ended it). A command may be
told to kill itself, by SIGKILL, at the begin or the end of the n-th call of one of the functions below; or
to stop there, by SIGSTOP, which `stopped` waits for, so that another process does what it does meanwhile.
"""

from __future__ import annotations

import functools
import importlib
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from tests.support.faults.fork_server import ForkServer, serve

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
    "discard_checkpoints": "compute.finetuning.checkpoints Checkpoints.discard",
    "execute": "sqlalchemy.engine.default DefaultDialect.do_execute",
    "execute_many": "sqlalchemy.engine.default DefaultDialect.do_executemany",
    "fsync": "bankdb.arrays.durable fsync_path",
    "fsync_bank": "bankdb.storage.new_bank fsync_path",
    "fsync_row": "bankdb.arrays.adapter_store fsync_folders",
    "grow": "bankdb.arrays.adapter_store AdapterStore.grow",
    "keep_copy": "bankdb.catalog.sqlite SqliteBackend.keep_copy",
    "keep_checkpoint": "compute.finetuning.checkpoints write_file",
    "keep_loss": "compute.labels.kept_losses KeptLosses.keep",
    "keep_answers": "bankdb.catalog.generations GenerationStore.keep",
    "make_ready": "bankdb.catalog.catalog Catalog.make_ready",
    "remove": "bankdb.catalog.catalog Catalog.remove",
    "rename": "pathlib Path.replace",
    "reserve": "bankdb.bank AdapterBank.reserve",
    "save": "bankdb.datasets.tokenizer BankTokenizer.save",
    "training_step": "compute.finetuning.trainer Trainer.step",
    "upgrade": "bankdb.catalog.database upgrade",
    "write": "bankdb.arrays.adapter_store AdapterStore.write_row",
}


class FaultServer(ForkServer):
    """The server's other end, for tests."""

    script = __file__

    def start(
        self, *arguments: str | Path, log: Path, kill: str | None = None, stop: str | None = None
    ) -> int:
        """Fork `bank ARGUMENTS`, output to `log`; `kill` or `stop` is `POINT begin|end N`. Returns the pid."""
        at = {"SIGKILL": kill} if kill else {"SIGSTOP": stop} if stop else {}
        pid = self.ask({"start": [str(item) for item in arguments], "log": str(log), "at": at})
        assert isinstance(pid, int)
        return pid

    def stopped(self, pid: int) -> None:
        """Wait until a command has stopped where it was told to."""
        assert self.ask({"stopped": pid}), "it ended without stopping"


def run_command(request: Any) -> int:
    """Be the command."""
    from cli.main import main

    for name, place in request["at"].items():
        _arm(signal.Signals[name], *place.split())
    sys.argv = ["bank", *request["start"]]
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 0


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
            _send(sent)
        result = function(*args, **options)
        if mine:
            _send(sent)
        return result

    setattr(owner, name, armed)


def _send(sent: signal.Signals) -> None:
    """Send this thread a signal, which it has before it goes on: another might take a lock first."""
    signal.pthread_kill(threading.get_ident(), sent)


if __name__ == "__main__":
    serve(PRELOADED, run_command)
