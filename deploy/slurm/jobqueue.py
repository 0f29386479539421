"""Predict every adapter of a bank on workers that are SLURM jobs of their own, asked for by dask-jobqueue.

    pip install 'lora-bank[slurm]'
    BANK_PATH=/shared/my-bank python deploy/slurm/jobqueue.py --jobs 16 -- --metric js --approach normalized

Run it where `sbatch` works and workers can connect to, such as a login node. What stands after `--` goes to
`bank predict --all`. With --dry-run the script of a job is printed, and nothing is submitted.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from dask_jobqueue import SLURMCluster


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
            return
        cluster.scale(jobs=arguments.jobs)
        waiting = ["--scheduler", cluster.scheduler_address, "--wait-workers", str(arguments.jobs)]
        done = subprocess.run(["bank", "predict", "--all", *waiting, *arguments.options], check=False)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
