"""A server that forks clients of a Dask cluster from a process with the heavy imports done, to be killed.

Run as a script: a JSON object a line in, a process id out. The client predicts a whole bank by coefficients
that need every stage, on threads of its own or on a running scheduler, and tells its stages in a log.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from tests.support.faults.fork_server import ForkServer, serve

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


class ComputeServer(ForkServer):
    """The server's other end, for tests."""

    script = __file__

    def start(self, bank: Path, log: Path, scheduler_file: Path | None) -> int:
        """Fork a client; return its process id."""
        log.write_text("")
        where = None if scheduler_file is None else str(scheduler_file)
        return int(self.ask({"start": str(bank), "log": str(log), "scheduler_file": where}))

    def ended(self, pid: int) -> bool:
        """Whether a client has ended; it may still be waited for."""
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def _run(request: Any) -> int:
    """Be the client."""
    _predict(Path(request["start"]), request["scheduler_file"])
    return 0


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
        predict_all(bank, ways, store="float32", cluster=alike, progress=LineProgress())


if __name__ == "__main__":
    serve(PRELOADED, _run)
