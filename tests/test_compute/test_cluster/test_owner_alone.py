"""A cluster on this machine is its owner's alone: another user runs nothing on it, and reads nothing by it."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bankdb.bank import AdapterBank
from bankdb.progress import SilentProgress
from compute.cluster.client import open_cluster
from compute.cluster.options import Cluster, ClusterOptions
from compute.prediction.matrices import distances
from tests.support.faults.other_user import attack_as_nobody

PROCESSES = ClusterOptions(workers=2, memory=1 << 30)


@pytest.fixture(scope="module")
def processes() -> Iterator[Cluster]:
    with open_cluster(PROCESSES, SilentProgress()) as opened:
        yield opened


def listening() -> dict[int, str]:
    """The ports that this process and those it started listen on, and the addresses that they are bound to."""
    found = {}
    here = psutil.Process()
    for process in (here, *here.children(recursive=True)):
        for connection in process.net_connections(kind="inet"):
            if connection.status == psutil.CONN_LISTEN:
                found[connection.laddr.port] = connection.laddr.ip
    return found


def opened_by(options: ClusterOptions) -> tuple[dict[int, str], Cluster]:
    before = listening()
    with open_cluster(options, SilentProgress()) as cluster:
        _ = cluster.client  # it starts when it is needed
        return {port: host for port, host in listening().items() if port not in before}, cluster


def test_threads_open_no_port() -> None:
    ports, cluster = opened_by(ClusterOptions(workers=2, processes=False, memory=1 << 30))
    assert ports == {}
    assert not cluster.dashboard


def test_processes_listen_on_this_machine_alone() -> None:
    ports, _ = opened_by(PROCESSES)
    # Scheduler and dashboard, and of each of two workers its own and its nanny's.
    assert set(ports.values()) == {"127.0.0.1"}
    assert len(ports) == 6


@pytest.mark.parametrize("page", ["proxy/1/127.0.0.1/", "api/v1/get_workers", "metrics"])
def test_the_dashboard_has_its_own_pages_alone(page: str, processes: Cluster) -> None:
    root = processes.dashboard.removesuffix("status")
    with urllib.request.urlopen(f"{root}status", timeout=20) as answer:
        assert answer.status == 200
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{root}{page}", timeout=20)
    assert refused.value.code == 404


@pytest.mark.parametrize(
    ("origin", "status"), [("http://127.0.0.1:{}", 101), ("http://elsewhere.example", 403)]
)
def test_pages_from_elsewhere_may_not_listen_to_the_dashboard(
    origin: str, status: int, processes: Cluster
) -> None:
    port = int(processes.dashboard.rpartition(":")[2].partition("/")[0])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Protocol": f"bokeh, {_token()}",
        "Origin": origin.format(port),
    }
    connection.request("GET", "/status/ws", headers=headers)
    assert connection.getresponse().status == status
    connection.close()


def _token() -> str:
    from bokeh.util.token import generate_jwt_token, generate_session_id

    return str(generate_jwt_token(generate_session_id()))


def test_settings_for_other_clusters_do_not_matter(bank: AdapterBank) -> None:
    """What a user has in ~/.config/dask for a cluster of many machines would end or stop a local one."""
    import dask

    expected = distances(bank, "js").values
    foreign = {
        "distributed.comm.require-encryption": True,
        "distributed.comm.tls.ca-file": "/nowhere/ca.pem",
        "distributed.comm.tls.client.cert": "/nowhere/cert.pem",
        "distributed.comm.tls.min-version": 7,
        "distributed.comm.timeouts.connect": "1ms",
        "distributed.worker.daemon": False,
        "distributed.worker.memory.pause": 0.0001,
        "distributed.worker.memory.terminate": 0.0002,
        "distributed.worker.preload": ["nowhere.to.be.found"],
        "distributed.scheduler.idle-timeout": "1ms",
        "distributed.scheduler.preload": ["nowhere.to.be.found"],
        "distributed.scheduler.http.routes": ["distributed.http.scheduler.api"],
        "distributed.dashboard.link": "{NOT_A_VARIABLE}",
    }
    before = dask.config.get("distributed.comm.timeouts.connect")
    with dask.config.set(foreign), open_cluster(PROCESSES, SilentProgress()) as cluster:
        assert (distances(bank, "js", cluster=cluster).values == expected).all()
        assert cluster.client.submit(os.getpid).result() != os.getpid()
    assert dask.config.get("distributed.comm.timeouts.connect") == before


@pytest.mark.netns
def test_another_user_runs_nothing_and_reads_nothing(tmp_path: Path) -> None:
    assert os.getuid() == 0, "another user's rights can be taken by root alone; run as root"
    secret = tmp_path / "secret"
    secret.write_text("of the owner alone")
    secret.chmod(0o600)
    before = listening()
    with open_cluster(PROCESSES, SilentProgress()) as cluster:
        _ = cluster.client  # it starts when it is needed
        ports = [str(port) for port in listening() if port not in before]
        assert len(ports) == 6
        found = attack_as_nobody(secret, ports)
        assert cluster.client.submit(sum, (1, 2)).result() == 3  # and the cluster is still there
    # The attack works where nothing is protected.
    assert "of the owner alone" in found["open"]["plain"]
    assert found.pop("file") == {"read": "refused"}
    del found["open"]
    assert sorted(found) == sorted(ports)
    answers = {answer for tried in found.values() for answer in tried.values()}
    assert all(answer.startswith("refused: ") for answer in answers), found
