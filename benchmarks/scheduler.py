"""The scheduler's own cost: tasks that do nothing, as many as are planned, through `compute.cluster.tasks.run_tasks`.

python benchmarks/scheduler.py --tasks 1000 10000 100000
"""

from __future__ import annotations

import argparse

import machine

from bankdb.progress import SilentProgress
from compute.cluster.client import open_cluster
from compute.cluster.options import Cluster, ClusterOptions
from compute.cluster.tasks import run_tasks


def nothing() -> None:
    pass


def run(cluster: Cluster, count: int) -> None:
    for _ in run_tasks(cluster, "nothing", nothing, {str(i): () for i in range(count)}, SilentProgress()):
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--workers", type=int)
    arguments = parser.parse_args()
    with open_cluster(ClusterOptions(workers=arguments.workers), SilentProgress()) as cluster:
        run(cluster, 4 * cluster.slots)
        print(f"{machine.description()}, {cluster.slots} workers\n")
        print("| tasks | s | ms a task |\n|---|---|---|")
        for count in arguments.tasks:
            seconds = machine.timed(lambda count=count: run(cluster, count))
            print(f"| {count:,} | {seconds:.1f} | {1000 * seconds / count:.2f} |", flush=True)


if __name__ == "__main__":
    main()
