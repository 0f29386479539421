"""Predict every adapter of a bank on workers that are SLURM jobs of their own, asked for by dask-jobqueue.

    pip install 'lora-bank[slurm]'
    BANK_PATH=/shared/my-bank python deploy/slurm/jobqueue.py --jobs 16 -- --metric js --approach normalized

Run it where `sbatch` works and workers can connect to, such as a login node. What stands after `--` goes to
`bank predict --all`. A job that ends before the command, by `scancel` or with its time, is submitted again. With
--dry-run the script of a job is printed, and nothing is submitted.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
import sys

from dask_jobqueue import SLURMCluster

LOOK_SECONDS = 5
ENDS = (signal.SIGINT, signal.SIGTERM)


def main() -> None:
    """Start the cluster, and run the command on it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=16, help="workers, each a job")
    parser.add_argument("--memory", default="5GiB", help="of a job")
    parser.add_argument("--walltime", default="04:00:00")
    parser.add_argument("--queue", help="partition")
    parser.add_argument("--account")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("options", nargs="*", help="of bank predict --all")
    arguments = parser.parse_args()
    for number in ENDS:
        signal.signal(number, end_once)
    try:
        status = predict(arguments)
    except KeyboardInterrupt:
        status = -signal.SIGINT
    sys.exit(status if status >= 0 else 128 - status)


def end_once(number: int, _: object) -> None:
    """End by the first signal, Ctrl-C or SIGTERM: while the jobs are cancelled, others change nothing."""
    ignore_ends()
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def ignore_ends() -> None:
    """Have this program come to its end by itself."""
    for number in ENDS:
        signal.signal(number, signal.SIG_IGN)


def predict(arguments: argparse.Namespace) -> int:
    """Run the command on jobs; return its exit status, or 0 where a job's script is printed."""
    with SLURMCluster(
        queue=arguments.queue,
        account=arguments.account,
        walltime=arguments.walltime,
        cores=1,
        processes=1,
        memory=arguments.memory,
        job_name="lora-bank",
        scheduler_options={"dashboard_address": ":0"},
    ) as cluster:
        if arguments.dry_run:
            print(cluster.job_script())
            return 0
        waiting = ["--scheduler", cluster.scheduler_address, "--wait-workers", str(arguments.jobs)]
        status = run(cluster, arguments.jobs, ["bank", "predict", "--all", *waiting, *arguments.options])
        ignore_ends()  # the jobs are still to be cancelled
        return status


def run(cluster: SLURMCluster, jobs: int, command: list[str]) -> int:
    """Run a command beside so many jobs; return its exit status."""
    running = subprocess.Popen(command)
    try:
        while running.poll() is None:
            # Asks for those that are missing; a job whose worker is lost is missing after some seconds
            # (distributed.deploy.lost-worker-timeout), one that ended before it had a worker is waited for for ever.
            for name in ended_early(cluster):
                cluster.worker_spec.pop(name, None)
            cluster.scale(jobs=jobs)
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.wait(LOOK_SECONDS)
    except KeyboardInterrupt:
        # The terminal has interrupted the command too.
        return running.wait()
    finally:
        if running.poll() is None:
            running.terminate()
            running.wait()
    return running.returncode


def ended_early(cluster: SLURMCluster) -> list[object]:
    """Return the jobs that SLURM does not list any more and that never had a worker, by the names of these."""
    with_worker = {worker["name"] for worker in cluster.scheduler_info["workers"].values()}
    waiting = {
        name: str(job.job_id)
        for name, job in cluster.workers.items()
        if name not in with_worker and getattr(job, "job_id", None)
    }
    if not waiting:
        return []
    listed = subprocess.run(["squeue", "--noheader", "--format=%A"], capture_output=True, text=True)
    if listed.returncode:
        return []  # a controller that does not answer says nothing of jobs
    return [name for name, job in waiting.items() if job not in listed.stdout.split()]


if __name__ == "__main__":
    main()
