"""A server that forks clients of a Dask cluster from a process with the heavy imports done, to be killed.

Run as a script: a JSON object a line in, a process id out. The client predicts a whole bank by coefficients
that need every stage, on threads of its own or on a running scheduler, and tells its stages in a log.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).parents[3]
PRELOADED = (
    "alembic.command",
    "compute.prediction.export",
    "compute.prediction.predict_all",
    "distributed",
    "distributed.worker",
    "numcodecs.blosc",
    "xarray",
    "zarr.codecs",
)
MEMORY = 2 << 30
SLOTS = 2


class ComputeServer:
    """The server's other end, for tests."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )

    def start(self, bank: Path, log: Path, scheduler_file: Path | None) -> int:
        """Fork a client; return its process id."""
        log.write_text("")
        where = None if scheduler_file is None else str(scheduler_file)
        return self._ask({"start": str(bank), "log": str(log), "scheduler_file": where})

    def wait(self, pid: int) -> int:
        """Return the exit status of a client that has ended or will, negative if a signal ended it."""
        return self._ask({"wait": pid})

    def ended(self, pid: int) -> bool:
        """Whether a client has ended; it may still be waited for."""
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"

    def __enter__(self) -> ComputeServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    def _ask(self, request: dict[str, object]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the server ended"
        return int(line)


def _serve() -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            print(os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1]), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            _run(Path(request["start"]), Path(request["log"]), request["scheduler_file"])
        print(pid, flush=True)


def _run(bank: Path, log: Path, scheduler_file: str | None) -> None:
    """Be the client; never returns."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    status = 1
    try:
        _predict(bank, scheduler_file)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def _predict(path: Path, scheduler_file: str | None) -> None:
    from bankdb.bank import AdapterBank
    from cli.display import LineProgress
    from compute.approaches.options import PredictionOptions
    from compute.cluster.client import open_cluster
    from compute.cluster.options import ClusterOptions
    from compute.prediction.predict_all import predict_all

    ways = [PredictionOptions(metric="js", approach=name) for name in ("normalized", "oracle")]
    options = ClusterOptions(workers=SLOTS, processes=False, memory=MEMORY)
    if scheduler_file is not None:
        file = Path(scheduler_file)
        options = ClusterOptions(scheduler_file=file, memory=MEMORY, wait_workers=SLOTS, wait_seconds=120)
    with AdapterBank.open(path) as bank, open_cluster(options, LineProgress(), bank.store.path) as cluster:
        # Plans follow the number of tasks at once, and products round by the threads of BLAS.
        alike = dataclasses.replace(cluster, blas=None, slots=SLOTS, task_budget=MEMORY // SLOTS)
        predict_all(bank, ways, cluster=alike, progress=LineProgress())


if __name__ == "__main__":
    _serve()
