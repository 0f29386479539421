"""A SLURM cluster of one node, this machine, with daemons of the tests' own that end with the tests.

Debian's packages slurmctld, slurmd, slurm-client and munge; a missing program is an error, never a skip. As root, as
which slurmd starts jobs. Nothing of the machine's own configuration of SLURM is read or changed.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.support.clusters.dask_processes import free_port, wait_until

CPUS, MEGABYTES = 2, 8192
# Without control groups, which need systemd; SIGKILL follows SIGTERM after KillWait seconds.
CONFIGURATION = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=1
MailProg=/bin/true
MpiDefault=none
ReturnToService=2
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={megabytes}
PartitionName=main Nodes=ALL Default=YES State=UP
"""
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}


class SlurmCluster:
    """A running cluster; its programs find it by `environment`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen[bytes]] = []
        for name in ("munge", "state", "spool"):
            (folder / name).mkdir()
        key = folder / "munge" / "key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        (folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                host=socket.gethostname().partition(".")[0],
                controller_port=free_port(),
                node_port=free_port(),
                folder=folder,
                cpus=CPUS,
                megabytes=MEGABYTES,
            )
        )

    def start(self) -> None:
        """Start the daemons, and wait until the node takes jobs."""
        munge = self.folder / "munge"
        files = {
            "key-file": "key",
            "socket": "socket",
            "pid-file": "pid",
            "log-file": "log",
            "seed-file": "seed",
        }
        self._daemon("munged", "--foreground", *(f"--{name}={munge / file}" for name, file in files.items()))
        wait_until((munge / "socket").exists, "munged listens")
        self._daemon("slurmctld", "-D")
        self._daemon("slurmd", "-D")
        wait_until(
            lambda: self._asked("sinfo", "--noheader", "--format=%T").strip() == "idle", "the node is idle"
        )

    def stop(self) -> None:
        """End all jobs, then the daemons in turn."""
        if len(self._daemons) == 3:
            self._asked("scancel", "--user=root", "--signal=KILL", "--full")
            self._asked("scancel", "--user=root")
            wait_until(lambda: not self.jobs(), "no job is left", 60)
        for daemon in reversed(self._daemons):
            daemon.terminate()
            daemon.wait(60)

    def submit(self, *words: object, environment: Mapping[str, str]) -> int:
        """Submit a batch script with options before and arguments behind it; return the job's number."""
        return int(self._run("sbatch", "--parsable", *words, environment=environment))

    def jobs(self) -> list[int]:
        """The numbers of the jobs that wait, run or end."""
        return [int(line) for line in self._asked("squeue", "--noheader", "--format=%A").split()]

    def state(self, job: int) -> str:
        """One of SLURM's names of states, such as RUNNING."""
        about = self._run("scontrol", "--oneliner", "show", "job", job)
        return about.partition("JobState=")[2].split()[0]

    def restarts(self, job: int) -> int:
        """How often a job was put back into the queue."""
        return int(
            self._run("scontrol", "--oneliner", "show", "job", job).partition("Restarts=")[2].split()[0]
        )

    def control(self, program: str, *words: object) -> None:
        """Run `scancel` or `scontrol`."""
        self._run(program, *words)

    def wait(self, job: int, seconds: float, *, until: Callable[[str], bool] = ENDED.__contains__) -> str:
        """Wait until a job's state is as wanted, ended if not told otherwise; return it."""
        wait_until(lambda: until(self.state(job)), f"job {job}, {self.state(job)}", seconds)
        return self.state(job)

    def _daemon(self, name: str, *words: object) -> None:
        with (self.folder / f"{name}.out").open("wb") as log:
            self._daemons.append(
                subprocess.Popen(
                    [_program(name), *map(str, words)],
                    env=os.environ | self.environment,
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            )

    def _asked(self, *words: str) -> str:
        """What a program says, also while the controller does not answer yet."""
        done = subprocess.run(words, env=os.environ | self.environment, capture_output=True, text=True)
        for daemon in self._daemons:
            assert daemon.poll() is None, f"{daemon.args} ended: {self.folder}"
        return done.stdout

    def _run(self, name: str, *words: object, environment: Mapping[str, str] | None = None) -> str:
        done = subprocess.run(
            [_program(name), *map(str, words)],
            env=os.environ | (environment or {}) | self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{name} {words}: {done.stderr}"
        return done.stdout


@contextmanager
def running_cluster() -> Iterator[SlurmCluster]:
    """A cluster, and nothing of it afterwards."""
    assert os.geteuid() == 0, "slurmd starts jobs as root"
    # The path of munged's socket has to be short, and everybody may look into its folders.
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    folder.chmod(0o755)
    cluster = SlurmCluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder)


def _program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
    assert found, f"{name} is not installed: Debian's packages slurmctld, slurmd, slurm-client and munge"
    return found
