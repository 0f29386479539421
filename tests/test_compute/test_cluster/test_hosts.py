"""Hosts as network namespaces: a scheduler, two workers and a client with addresses of their own, over TLS.

Needs root and `ip` (iproute2); where namespaces cannot be made, these tests fail: `make test-hosts`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from bankdb.bank import AdapterBank
from compute.prediction.matrices import distances
from compute.prediction.predict_all import predict_all
from tests.support.clusters.dask_processes import (
    ROOT,
    Certificates,
    DaskProcesses,
    make_certificates,
    wait_until,
)

pytestmark = pytest.mark.netns

NAMES = ("scheduler", "one", "two", "client")


@dataclass
class Hosts:
    """Namespaces on one bridge, in a namespace of its own: nothing of it is seen from outside."""

    mark: str = field(default_factory=lambda: f"lb{os.getpid()}")

    def address(self, name: str) -> str:
        return f"10.77.0.{NAMES.index(name) + 2}"

    def prefix(self, name: str) -> list[str]:
        return ["ip", "netns", "exec", f"{self.mark}-{name}"]

    def make(self) -> None:
        switch = f"{self.mark}-switch"
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge0", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge0", "up")
        for number, name in enumerate(NAMES):
            host = f"{self.mark}-{name}"
            _ip("netns", "add", host)
            peer = ("peer", "name", f"port{number}", "netns", switch)
            _ip("-n", host, "link", "add", "eth0", "type", "veth", *peer)
            _ip("-n", switch, "link", "set", f"port{number}", "master", "bridge0", "up")
            _ip("-n", host, "address", "add", f"{self.address(name)}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", host, "link", "set", device, "up")

    def remove(self) -> None:
        for name in ("switch", *NAMES):
            subprocess.run(["ip", "netns", "delete", f"{self.mark}-{name}"], check=False, capture_output=True)


def _ip(*arguments: str) -> None:
    try:
        subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.fail("network namespaces: `ip` is not there; install iproute2")
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip()
        pytest.fail(
            f"network namespaces cannot be made here (ip {' '.join(arguments)}: {reason}); run as root"
        )


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    made = Hosts()
    try:
        made.make()
        yield made
    finally:
        made.remove()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def cluster(
    hosts: Hosts, certificates: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DaskProcesses]:
    folder = tmp_path_factory.mktemp("cluster")
    with DaskProcesses(folder, certificates, host=hosts.address("scheduler"), port=8786) as processes:
        processes.start_scheduler(hosts.prefix("scheduler"))
        for name in ("one", "two"):
            processes.start_worker(name, host=hosts.address(name), prefix=hosts.prefix(name))
        yield processes


def client(
    hosts: Hosts, arguments: list[str | Path], *, seconds: float = 150
) -> subprocess.CompletedProcess[str]:
    """Run `bank` on the client's host."""
    program = [*hosts.prefix("client"), sys.executable, "-m", "cli.main", *map(str, arguments)]
    return subprocess.run(
        program, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=seconds
    )  # fmt: skip


def tls(certificates: Certificates) -> list[str | Path]:
    return ["--tls-ca", certificates.ca, "--tls-cert", certificates.cert, "--tls-key", certificates.key]


def test_a_run_completes(
    hosts: Hosts, cluster: DaskProcesses, certificates: Certificates, bank: AdapterBank, tmp_path: Path
) -> None:
    assert cluster.address == f"tls://{hosts.address('scheduler')}:8786"
    where = [
        "--scheduler",
        cluster.address,
        "--wait-workers",
        "2",
        "--wait-seconds",
        "90",
        *tls(certificates),
    ]
    command = ["predict", "--bank", bank.path, "--all", "--metric", "js", "--weight-error"]
    done = client(hosts, [*command, "--export", tmp_path / "out", *where])
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"dashboard: http://{hosts.address('scheduler')}" in done.stderr
    assert len(list((tmp_path / "out").iterdir())) == 6
    # Both hosts were there, by addresses of their own.
    seen = set(re.findall(r"Register worker addr: tls://([\d.]+):", cluster.log("scheduler")))
    assert seen == {hosts.address("one"), hosts.address("two")}
    _assert_as_here(bank)


def _assert_as_here(bank: AdapterBank) -> None:
    """What the hosts computed is what this process computes from nothing."""
    there = distances(bank, "js").values
    array = bank.array_path("distances") / "jensen-shannon"
    array.rename(array.with_name("there"))
    np.testing.assert_array_equal(distances(bank, "js").values, there)
    assert predict_all(bank).run.state


def test_a_client_without_certificates_is_refused(
    hosts: Hosts, cluster: DaskProcesses, certificates: Certificates, bank: AdapterBank, tmp_path: Path
) -> None:
    command: list[str | Path] = ["distances", "--bank", bank.path, "--scheduler"]
    bare = client(hosts, [*command, cluster.address])
    assert bare.returncode == 2
    assert "needs certificates; give --tls-ca" in bare.stderr
    plain = client(hosts, [*command, cluster.address.replace("tls://", "tcp://")])
    assert plain.returncode == 1
    assert "no Dask scheduler answers there" in plain.stderr
    foreign = client(hosts, [*command, cluster.address, *tls(make_certificates(tmp_path, "foreign"))])
    assert foreign.returncode == 1
    assert "no TLS connection to the scheduler" in foreign.stderr
    assert not (bank.array_path("distances") / "jensen-shannon").exists()
    assert cluster.processes["scheduler"].poll() is None


def test_a_plaintext_worker_is_refused(hosts: Hosts, cluster: DaskProcesses) -> None:
    plain = cluster.address.replace("tls://", "tcp://")
    worker = cluster.start_worker(
        "plain",
        host=hosts.address("client"),
        prefix=hosts.prefix("client"),
        scheduler=plain,
        tls=False,
        patience=8,
    )
    wait_until(lambda: "Waiting to connect to" in cluster.log("plain"), "it tries")
    # `--death-timeout` is over: it never came in.
    wait_until(lambda: worker.poll() is not None, "it gives up", 90)
    assert worker.returncode != 0
    assert hosts.address("client") not in " ".join(
        line for line in cluster.log("scheduler").splitlines() if "Register worker" in line
    )


def test_a_worker_with_a_folder_of_its_own_is_named(
    hosts: Hosts, cluster: DaskProcesses, certificates: Certificates, bank: AdapterBank
) -> None:
    """On its host something else is mounted where the bank is."""
    hide = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none "{bank.path}" && exec "$@"', "sh"]
    cluster.start_worker(
        "alone", host=hosts.address("client"), prefix=[*hosts.prefix("client"), *hide]
    )  # fmt: skip
    where = [
        "--scheduler",
        cluster.address,
        "--wait-workers",
        "3",
        "--wait-seconds",
        "90",
        *tls(certificates),
    ]
    done = client(hosts, ["distances", "--bank", bank.path, *where])
    cluster.kill("alone")
    assert done.returncode == 1
    assert re.search(
        rf"worker tls://{re.escape(hosts.address('client'))}:\d+ finds nothing .* expected the client's",
        done.stderr,
    ), done.stderr
