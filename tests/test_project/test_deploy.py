"""deploy/: what the files say is valid, and the very commands in them give what a local run gives.

Without a container engine, Kubernetes and SLURM: images, manifests and scripts are checked against their schemas, and
their commands run as processes of this machine, with addresses of this machine in the place of theirs. Containers and
SLURM for real are in `test_containers.py` and `test_slurm.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kubernetes_validate
import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from bankdb.arrays.zarr_arrays import open_array
from bankdb.bank import AdapterBank
from compute.prediction.predict_all import predict_all
from tests.support.banks.tiny_bank import copy_pairs, make_bank

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
CLAIMS = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "bank.yaml").read_text()))
KUBERNETES = {
    name: yaml.safe_load((DEPLOY / "kubernetes" / f"{name}.yaml").read_text())
    for name in ("cluster", "init", "ingest", "predict")
}
JOBS = ("init", "ingest", "predict")
CLUSTER = KUBERNETES["cluster"]["spec"]
JOB = KUBERNETES["predict"]["spec"]["template"]["spec"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
BIN = Path(sys.executable).parent
SECONDS = 150


# -- the image ---------------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with their arguments, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def copied() -> list[str]:
    return [source for name, text in instructions() if name == "COPY" for source in text.split()[:-1]]


def test_the_image_holds_what_the_package_is_built_from() -> None:
    names = [name for name, _ in instructions()]
    assert names[:2] == ["ARG", "FROM"]
    assert set(names) <= {"ARG", "FROM", "RUN", "WORKDIR", "COPY", "USER", "ENV", "CMD"}
    assert all((ROOT / source).exists() for source in copied())
    packages = {
        pattern.rstrip("*") for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    }
    assert packages == {source for source in copied() if (ROOT / source).is_dir()}
    needed = {PROJECT["project"]["readme"], "pyproject.toml", *PROJECT["project"]["license-files"]}
    assert needed == {source for source in copied() if (ROOT / source).is_file()}


def test_the_context_of_the_image_is_what_it_copies() -> None:
    rules = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == set(copied())


def test_the_image_installs_extras_that_exist_and_runs_as_nobody_special() -> None:
    found = dict(instructions())
    (extras,) = re.findall(r"\.\[(.*?)\]", found["RUN"])
    assert set(extras.split(",")) <= set(PROJECT["project"]["optional-dependencies"])
    assert found["USER"].split(":")[0] not in ("0", "root")
    order = [name for name, _ in instructions()]
    assert order.index("USER") > max(i for i, name in enumerate(order) if name == "RUN")
    assert found["FROM"] == "${BASE}"
    minor = re.match(r"BASE=python:3\.(\d+)-slim", found["ARG"])
    assert minor is not None
    assert int(minor[1]) >= int(PROJECT["project"]["requires-python"].split(".")[1])


# -- compose -----------------------------------------------------------------------------------------------

SERVICE_KEYS = {
    "image",
    "build",
    "command",
    "environment",
    "ports",
    "volumes",
    "networks",
    "depends_on",
    "healthcheck",
    "deploy",
    "restart",
    "profiles",
    "read_only",
    "tmpfs",
    "security_opt",
    "cap_drop",
}
CONDITIONS = {"service_started", "service_healthy", "service_completed_successfully"}


def problems_of(compose: dict[str, Any]) -> list[str]:
    """What the Compose specification refuses of the parts of it that are used here."""
    found = [f"unknown key {key}" for key in compose if key not in KEYS and not key.startswith("x-")]
    services = compose["services"]
    for name, service in services.items():
        found += [f"{name}: unknown key {key}" for key in set(service) - SERVICE_KEYS]
        if not isinstance(service.get("image"), str):
            found.append(f"{name}: no image")
        for other, wait in service.get("depends_on", {}).items():
            condition = wait.get("condition")
            if other not in services or condition not in CONDITIONS:
                found.append(f"{name}: waits for {other} to be {condition}")
            elif condition == "service_healthy" and "healthcheck" not in services[other]:
                found.append(f"{name}: {other} has no healthcheck")
        for kind in ("networks", "volumes"):
            # A folder of the user's is no volume.
            used = {str(value).split(":")[0] for value in service.get(kind, []) if "INPUT" not in value}
            found += [f"{name}: {kind} {value} not declared" for value in used - set(compose[kind])]
        for key, value in service.get("environment", {}).items():
            if not isinstance(value, str | int | float):
                found.append(f"{name}: {key} is {value!r}")
    return found


KEYS = {"name", "services", "networks", "volumes"}


def test_compose_is_what_its_specification_allows() -> None:
    assert problems_of(COMPOSE) == []


@pytest.mark.parametrize(
    "break_it",
    [
        lambda compose: compose.update(service={}),
        lambda compose: compose["services"]["worker"].update(comand=[]),
        lambda compose: compose["services"]["store"].pop("image"),
        lambda compose: compose["services"]["store"].pop("healthcheck"),
        lambda compose: compose["services"]["client"]["volumes"].append("bank:/x"),
    ],
)
def test_what_compose_would_refuse_is_found(break_it: Any) -> None:
    broken = json.loads(json.dumps(COMPOSE))
    break_it(broken)
    assert len(problems_of(broken)) == 1


def test_passwords_of_compose_are_named_in_the_example_and_have_no_default() -> None:
    used = re.findall(r"\$\{([^}]*)\}", (DEPLOY / "compose.yaml").read_text())
    assert all(":?" in name for name in used if "PASSWORD" in name or "USER" in name)
    example = re.findall(r"^(\w+)=(.*)$", (DEPLOY / ".env.example").read_text(), re.MULTILINE)
    assert {name.split(":")[0] for name in used} == {name for name, _ in example}
    assert {value for _, value in example} == {""}


def test_services_of_compose_change_nothing_but_the_bank() -> None:
    for name, service in COMPOSE["services"].items():
        if service["image"].startswith("lora-bank:"):
            assert (service["read_only"], service["tmpfs"], service["cap_drop"]) == (
                True,
                ["/tmp"],
                ["ALL"],
            ), name


def test_workers_of_compose_know_and_reach_the_arrays_alone() -> None:
    worker, catalogue = COMPOSE["services"]["worker"], COMPOSE["services"]["catalogue"]
    assert {name.split("_")[0] for name in worker["environment"]} == {"AWS"}
    assert not set(worker["networks"]) & set(catalogue["networks"])
    assert "volumes" not in worker


# -- Kubernetes --------------------------------------------------------------------------------------------


def validate(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def pod(spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}


def test_manifests_are_what_their_schemas_allow() -> None:
    for manifest in (*CLAIMS, *(KUBERNETES[name] for name in JOBS)):
        validate(manifest)
    # The operator's resource has pods and a service inside.
    head = {key: KUBERNETES["cluster"][key] for key in ("apiVersion", "kind")}
    assert head == {"apiVersion": "kubernetes.dask.org/v1", "kind": "DaskCluster"}
    assert {name: set(part) for name, part in CLUSTER.items()} == {
        "worker": {"replicas", "spec"},
        "scheduler": {"spec", "service"},
    }
    for part in CLUSTER.values():
        validate(pod(part["spec"]))
    service = CLUSTER["scheduler"]["service"]
    validate({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": service})


def test_what_kubernetes_would_refuse_is_found() -> None:
    broken = json.loads(json.dumps(KUBERNETES["predict"]))
    broken["spec"]["template"]["spec"]["container"] = broken["spec"]["template"]["spec"].pop("containers")
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(broken)


def claims_of(job: str) -> set[str]:
    volumes = KUBERNETES[job]["spec"]["template"]["spec"]["volumes"]
    return {volume["persistentVolumeClaim"]["claimName"] for volume in volumes if "emptyDir" not in volume}


def test_pods_are_restricted() -> None:
    """As Kubernetes' restricted profile of pods demands; and their images stay as they are."""
    specs = [CLUSTER[part]["spec"] for part in CLUSTER]
    specs += [KUBERNETES[name]["spec"]["template"]["spec"] for name in JOBS]
    for spec in specs:
        own = spec["securityContext"]
        assert (own["runAsNonRoot"], own["seccompProfile"]["type"]) == (True, "RuntimeDefault")
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "readOnlyRootFilesystem": True,
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_init_and_ingest_are_commands_of_this_program() -> None:
    """The same in Compose and in Kubernetes, with options that there are."""
    for name in ("init", "ingest"):
        (container,) = KUBERNETES[name]["spec"]["template"]["spec"]["containers"]
        of_compose = [
            "NAME" if "BASE_MODEL" in word else word for word in COMPOSE["services"][name]["command"]
        ]
        assert container["args"] == of_compose
        asked = subprocess.run(
            [sys.executable, "-m", "cli.main", name, "--help"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
        assert all(word in asked.stdout for word in container["args"] if word.startswith("--"))


def test_manifests_name_each_other() -> None:
    name = KUBERNETES["cluster"]["metadata"]["name"]
    (client,), (worker,), (scheduler,) = (
        spec["containers"] for spec in (JOB, CLUSTER["worker"]["spec"], CLUSTER["scheduler"]["spec"])
    )
    assert f"tcp://{name}-scheduler:8786" in client["args"]
    assert client["args"][-2:] == ["--wait-workers", str(CLUSTER["worker"]["replicas"])]
    assert client["image"] == worker["image"] == scheduler["image"] == COMPOSE["services"]["client"]["image"]
    assert client["image"].split(":")[1] == PROJECT["project"]["version"]
    bank, given = (claim["metadata"]["name"] for claim in CLAIMS)
    assert [claims_of(job) for job in JOBS] == [{bank, given}, {bank, given}, {bank}]
    for job in JOBS:
        (container,) = KUBERNETES[job]["spec"]["template"]["spec"]["containers"]
        assert (container["image"], container["envFrom"]) == (client["image"], client["envFrom"])
    assert CLUSTER["scheduler"]["service"]["selector"]["dask.org/cluster-name"] == name
    secrets = {source["secretRef"]["name"] for one in (client, worker) for source in one["envFrom"]}
    page = (ROOT / "docs" / "deploy.md").read_text()
    assert all(f"secret generic {secret} " in page for secret in secrets)
    assert [source["secretRef"]["name"] for source in worker["envFrom"]] == ["lora-bank-store"]


# -- scripts -----------------------------------------------------------------------------------------------


def test_scripts_pass_their_linter() -> None:
    script = DEPLOY / "slurm" / "predict.sbatch"
    subprocess.run(["bash", "-n", script], check=True)
    done = subprocess.run([BIN / "shellcheck", "--shell=bash", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_job_that_jobqueue_would_submit() -> None:
    """The module makes the script without SLURM."""
    script = DEPLOY / "slurm" / "jobqueue.py"
    arguments = ["--dry-run", "--queue", "long", "--account", "nlp", "--memory", "7GiB"]
    done = subprocess.run(
        [sys.executable, script, *arguments], check=True, capture_output=True, text=True, timeout=SECONDS
    )
    for line in ("#SBATCH -J lora-bank", "#SBATCH -p long", "#SBATCH -A nlp", "#SBATCH --cpus-per-task=1"):
        assert line in done.stdout
    assert re.search(r"dask.worker tcp://\S+ .*--nthreads 1 .*--memory-limit 7", done.stdout)


@pytest.mark.parametrize(("status", "ended"), [(0, ["early"]), (1, [])])
def test_a_job_that_ended_before_it_had_a_worker_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, ended: list[str]
) -> None:
    """Of SLURM's list alone, and of none where it does not answer; who had a worker is dask-jobqueue's to know."""
    (tmp_path / "squeue").write_text(f"#!/bin/sh\necho 12\nexit {status}\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    jobs = {"early": 11, "pending": 12, "unsubmitted": None, "worked": 10}
    cluster = SimpleNamespace(
        scheduler_info={"workers": {"tcp://a": {"name": "worked"}}},
        workers={name: SimpleNamespace(job_id=number) for name, number in jobs.items()},
    )
    script = runpy.run_path(str(DEPLOY / "slurm" / "jobqueue.py"))
    assert script["ended_early"](cluster) == ended


# -- the commands, as processes ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deploy")
    make_bank(folder / "bank", copy_pairs(folder / "pairs")).close()
    return folder / "bank"


@pytest.fixture(scope="module")
def expected(template: Path, tmp_path_factory: pytest.TempPathFactory) -> NDArray[np.float32]:
    """The coefficients of a run on threads of this process."""
    path = tmp_path_factory.mktemp("local") / "bank"
    shutil.copytree(template, path)
    with AdapterBank.open(path) as bank:
        return np.asarray(open_array(predict_all(bank).path / "coefficients")[:, :])


class Machine:
    """Processes with a bank of their own; whatever still runs is ended."""

    def __init__(self, bank: Path, folder: Path) -> None:
        self.bank, self.folder = bank, folder
        self.path = f"{folder / 'bin'}{os.pathsep}{BIN}{os.pathsep}{os.environ['PATH']}"
        self._running: list[subprocess.Popen[str]] = []

    def environment(self, **more: str) -> dict[str, str]:
        own = {"PATH": self.path, "PYTHONPATH": str(ROOT), "BANK_PATH": str(self.bank)}
        return os.environ | own | more

    def program(self, name: str, text: str) -> None:
        """Put a program in front of the system's."""
        file = self.folder / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/bash\n{text}\n")
        file.chmod(0o755)

    def start(self, command: Sequence[str], **more: str) -> None:
        with (self.folder / f"log-{len(self._running)}").open("w") as log:
            self._running.append(
                subprocess.Popen(
                    list(command),
                    env=self.environment(**more),
                    cwd=self.folder,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def run(self, command: Sequence[str | Path], **more: str) -> None:
        done = subprocess.run(
            list(command),
            env=self.environment(**more),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        logs = "\n".join(log.read_text()[-2000:] for log in self.folder.glob("log-*"))
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{logs}"

    def end(self) -> None:
        for process in self._running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in self._running:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)

    def predictions(self) -> NDArray[np.float32]:
        with AdapterBank.open(self.bank) as bank:
            (run,) = bank.runs.all("predictions")
            assert run.state == "done"
            path = bank.run_array(run)
            assert path is not None
            return np.asarray(open_array(path)[:, :])


@pytest.fixture
def machine(template: Path, tmp_path: Path) -> Iterator[Machine]:
    shutil.copytree(template, tmp_path / "bank")
    found = Machine(tmp_path / "bank", tmp_path)
    try:
        yield found
    finally:
        found.end()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def here(command: Sequence[str], host: str, port: int, **variables: str) -> list[str]:
    """A command with addresses of this machine in the place of a container's."""
    found = []
    for word in command:
        replaced = word.replace(f"{host}:8786", f"127.0.0.1:{port}").replace("0.0.0.0", "127.0.0.1")
        replaced = {"8786": str(port), ":8787": ":0"}.get(replaced, replaced)
        found.append(re.sub(r"\$\((\w+)\)", lambda match: variables[match[1]], replaced))
    return found


def test_the_commands_of_compose(machine: Machine, expected: NDArray[np.float32]) -> None:
    port, services = free_port(), COMPOSE["services"]
    machine.start(here(services["scheduler"]["command"], "scheduler", port))
    for _ in range(services["worker"]["deploy"]["replicas"]):
        machine.start(here(services["worker"]["command"], "scheduler", port))
    machine.run(here(services["client"]["command"], "scheduler", port))
    assert np.array_equal(machine.predictions(), expected)


def test_the_commands_of_kubernetes(machine: Machine, expected: NDArray[np.float32]) -> None:
    """The operator gives each worker its name, and the scheduler's address."""
    port, host = free_port(), f"{KUBERNETES['cluster']['metadata']['name']}-scheduler"
    (scheduler,), (worker,) = (CLUSTER[part]["spec"]["containers"] for part in ("scheduler", "worker"))
    machine.start(here(scheduler["args"], host, port))
    for number in range(CLUSTER["worker"]["replicas"]):
        command = here(worker["args"], host, port, DASK_WORKER_NAME=f"worker-{number}")
        machine.start(command, DASK_SCHEDULER_ADDRESS=f"tcp://127.0.0.1:{port}")
    machine.run(here(JOB["containers"][0]["args"], host, port))
    assert np.array_equal(machine.predictions(), expected)


def test_the_batch_script_of_slurm(machine: Machine, expected: NDArray[np.float32]) -> None:
    """The script itself; its `srun` starts the tasks on this machine."""
    machine.program(
        "srun",
        'for task in $(seq "$SLURM_NTASKS"); do SLURM_PROCID=$task "${@:2}" & done\n'
        "trap 'kill $(jobs -p)' TERM\nwait\nwait",
    )
    script = DEPLOY / "slurm" / "predict.sbatch"
    machine.run(["bash", script, "--metric", "js"], SLURM_NTASKS="2", SLURM_JOB_ID="17")
    assert np.array_equal(machine.predictions(), expected)
    assert not list(machine.folder.glob("scheduler-*.json"))


def test_the_batch_script_of_slurm_fails_as_its_command_does(machine: Machine) -> None:
    machine.program("dask", "exec sleep 60")
    machine.program("srun", "exec sleep 60")
    machine.program("bank", "exit 7")
    machine.program("seq", "echo 1")
    script = DEPLOY / "slurm" / "predict.sbatch"
    done = subprocess.run(
        ["bash", script], env=machine.environment(SLURM_NTASKS="2", SLURM_JOB_ID="18"), timeout=SECONDS
    )
    assert done.returncode == 7


def test_jobqueue_predicts_on_jobs(machine: Machine, expected: NDArray[np.float32]) -> None:
    """`sbatch` runs the job that it is given on this machine, and `scancel` ends it."""
    machine.program(
        "sbatch",
        # The script is gone when this returns: SLURM keeps it too.
        'script="$BANK_PATH/../job-$$"\ncp "$1" "$script"\nsetsid bash "$script" >"$script.log" 2>&1 </dev/null &\n'
        'echo "$!" >> "$BANK_PATH/../jobs"\n'
        'echo "Submitted batch job $!"',
    )
    machine.program("scancel", 'for job in "$@"; do kill -- "-$job"; done')
    script = DEPLOY / "slurm" / "jobqueue.py"
    try:
        machine.run([sys.executable, script, "--jobs", "2", "--", "--metric", "js"])
    finally:
        for job in (machine.folder / "jobs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(job), signal.SIGKILL)
    assert np.array_equal(machine.predictions(), expected)
