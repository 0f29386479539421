"""deploy/Dockerfile and deploy/compose.yaml for real: the image is built, and the services run from it by Podman.

No registry is asked for images; see tests/support/servers/containers.py for what stands for those that are pulled.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from compute.prediction.predict_all import predict_all
from tests.support.banks.stored_files import digests
from tests.support.banks.tiny_bank import BASE, NAMES, copy_pairs, make_bank
from tests.support.clusters.dask_processes import free_port
from tests.support.servers.containers import IMAGE, Podman

pytestmark = pytest.mark.container

COMPOSE = Path(__file__).resolve().parents[2] / "deploy" / "compose.yaml"
PASSWORDS = {"POSTGRES_PASSWORD": "p:w @1", "STORE_USER": "store", "STORE_PASSWORD": "store-password"}


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    found = Podman(tmp_path_factory.mktemp("podman"))
    found.configure()
    try:
        print(f"the image was built in {found.build_all():.0f} s")
        yield found
    finally:
        found.clear()


@pytest.fixture(scope="module")
def input_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What init and ingest read; everybody may, since containers run as another user."""
    folder = tmp_path_factory.mktemp("input")
    copy_pairs(folder / "pairs")
    shutil.copytree(BASE, folder / "tokenizer")
    for item in (folder, *folder.rglob("*"), *folder.parents[:2]):
        item.chmod(item.stat().st_mode | (0o055 if item.is_dir() else 0o044))
    return folder


class Services:
    """Services of deploy/compose.yaml, by podman-compose."""

    def __init__(self, podman: Podman, folder: Path, input_folder: Path) -> None:
        self.podman, self._env = podman, folder / ".env"
        given = {
            "BASE_MODEL": "tiny-bank/base",
            "INPUT": str(input_folder),
            "DASHBOARD_PORT": str(free_port()),
        }
        values = PASSWORDS | given
        self._env.write_text("".join(f"{name}={value}\n" for name, value in values.items()))

    def compose(self, *words: object) -> str:
        command = [
            "podman-compose",
            "--file",
            str(COMPOSE),
            "--env-file",
            str(self._env),
            "--profile",
            "client",
        ]
        return self.podman.program([*command, *map(str, words)], timeout=600).stdout

    def up(self, *words: object) -> None:
        self.compose("up", "--detach", "--no-build", "--no-deps", *words)

    def run(self, *words: object) -> str:
        return self.compose("run", "--rm", "-T", "--no-deps", *words)


@pytest.fixture(scope="module")
def services(
    podman: Podman, tmp_path_factory: pytest.TempPathFactory, input_folder: Path
) -> Iterator[Services]:
    """All that run, begun in the order that `depends_on` asks for, each when the one before is healthy."""
    made = Services(podman, tmp_path_factory.mktemp("compose"), input_folder)
    try:
        made.up("catalogue", "store", "scheduler")
        for service in ("catalogue", "store", "scheduler"):
            podman.wait_healthy(service)
        made.up("bucket")
        (bucket,) = podman.run(
            "ps", "--all", "--quiet", "--filter", "label=com.docker.compose.service=bucket"
        ).stdout.split()
        assert podman.run("wait", bucket).stdout.strip() == "0", podman.run("logs", bucket).stderr
        made.up("--scale", "worker=2", "worker")
        yield made
    finally:
        made.compose("down", "--volumes")


def test_the_image_runs_for_anybody_and_writes_nowhere(podman: Podman) -> None:
    alone = (
        "run",
        "--rm",
        "--read-only",
        "--read-only-tmpfs=false",
        "--network",
        "none",
        "--cap-drop",
        "all",
    )
    assert podman.run(*alone, IMAGE, "id", "-u").stdout.strip() == "10001"
    assert podman.run(*alone, IMAGE).stdout.startswith("Usage: bank")
    refused = podman.run(*alone, IMAGE, "touch", "/banks/x", check=False)
    assert "Read-only file system" in refused.stderr
    # As another user too, as OpenShift does it.
    plan = ("bank", "plan", "--adapters", "100", "--parameters", "1000000", "--memory", "4GiB")
    assert "100" in podman.run(*alone, "--tmpfs", "/tmp", "--user", "23456", IMAGE, *plan).stdout


def test_services_predict_what_a_local_run_does(
    podman: Podman, services: Services, input_folder: Path, tmp_path: Path
) -> None:
    services.run("init")
    services.run("ingest")
    said = services.run("client")
    assert "5 adapters predicted" in said
    (number,) = re.findall(r"^ +(\d+) +jensen-shannon", said, re.MULTILINE)
    out = tmp_path / "out"
    out.mkdir()
    out.chmod(0o777)
    for item in (tmp_path, *tmp_path.parents[:2]):
        item.chmod(item.stat().st_mode | 0o011)
    for name in NAMES:
        services.run(
            "-v",
            f"{out}:/out",
            "client",
            "bank",
            "export",
            name,
            "--prediction",
            number,
            "--out",
            f"/out/{name}",
        )
    with make_bank(tmp_path / "bank", input_folder / "pairs" / "manifest.csv") as bank:
        predict_all(bank).save(tmp_path / "local")
    ours, theirs = digests(out), digests(tmp_path / "local")
    weights = [name for name in theirs if name.endswith(".safetensors")]
    assert len(weights) == len(NAMES)
    assert {name: ours[name] for name in weights} == {name: theirs[name] for name in weights}


def test_workers_are_nobody_and_reach_the_arrays_alone(podman: Podman, services: Services) -> None:
    workers = podman.containers("worker")
    assert len(workers) == 2
    about = json.loads(podman.run("inspect", workers[0]).stdout)[0]
    assert about["HostConfig"]["ReadonlyRootfs"]
    assert about["EffectiveCaps"] in (None, [])
    assert podman.run("exec", workers[0], "id", "-u").stdout.strip() == "10001"
    connect = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 3)"
    podman.run("exec", workers[0], "python", "-c", connect, "store", 9000)
    assert podman.run("exec", workers[0], "python", "-c", connect, "catalogue", 5432, check=False).returncode
    names = {line.partition("=")[0] for line in about["Config"]["Env"]}
    assert not [name for name in names if name.startswith(("PG", "POSTGRES"))]


def test_what_was_stopped_goes_on(podman: Podman, services: Services) -> None:
    """A worker that dies is started again, and the bank is there after all services were stopped."""
    before = set(podman.containers("worker"))
    podman.run("kill", "--signal", "KILL", next(iter(before)))
    assert "5 adapters predicted" in services.run(
        "client", "bank", "predict", "--all", "--metric", "tf-idf", "--scheduler", "tcp://scheduler:8786"
    )
    assert "forms_plural" in services.run("client", "bank", "list")
