"""What another user of the machine tries on a cluster: every port, with no certificate and with one of their own.

Run as a script, as root: a file to read, then addresses. It imports all that it needs, by attacking a cluster
of its own that is open, gives root up, and prints JSON: by address, what each attempt gave.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
NOBODY = 65534
SECONDS = 5


def attack_as_nobody(secret: Path, addresses: list[str]) -> dict[str, dict[str, str]]:
    """Run the script; return by address what each attempt gave. The key `open` is a cluster without protection."""
    done = subprocess.run(
        [sys.executable, __file__, str(secret), *addresses],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=300,
    )
    found: dict[str, dict[str, str]] = json.loads(done.stdout)
    return found


async def _run_there(address: str, security: Any, path: str) -> str:
    """Have a Dask server read a file, whatever kind of server it is."""
    from distributed.core import rpc
    from distributed.protocol.pickle import dumps

    def read(path: str) -> str:
        return Path(path).read_text()

    arguments = {"connection_args": security.get_connection_args("client"), "timeout": SECONDS}
    async with rpc(address, **arguments) as server:
        found: dict[str, Any] = await asyncio.wait_for(
            server.run(function=dumps(read), args=dumps((path,))), SECONDS
        )
    return str(found)


def _attempts(port: str, path: str) -> dict[str, str]:
    from distributed import Security

    tried = {}
    for name, address, security in (
        ("plain", f"tcp://127.0.0.1:{port}", Security(require_encryption=False)),
        ("own certificate", f"tls://127.0.0.1:{port}", Security.temporary()),
    ):
        try:
            tried[name] = asyncio.run(_run_there(address, security, path))
        except Exception as error:
            tried[name] = f"refused: {type(error).__name__}"
    for method in ("POST", "PUT", "DELETE"):
        for page in (
            "/api/v1/retire_workers",
            "/api/v1/adaptive_target",
            "/status",
            "/info/main/workers.html",
        ):
            request = urllib.request.Request(f"http://127.0.0.1:{port}{page}", b"{}", method=method)
            try:
                with urllib.request.urlopen(request, timeout=SECONDS) as answer:
                    tried[f"{method} {page}"] = f"{answer.status}: {answer.read()[:80]!r}"
            except urllib.error.HTTPError as error:
                tried[f"{method} {page}"] = f"refused: {error.code}"
            except Exception as error:
                tried[f"{method} {page}"] = f"refused: {type(error).__name__}"
    return tried


def _main(path: str, ports: list[str]) -> None:
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=1, processes=False, protocol="tcp://", host="127.0.0.1", dashboard_address="127.0.0.1:0"
    ) as opened:
        port = opened.workers[0].address.rpartition(":")[2]
        found = {"open": _attempts(port, path)}
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    try:
        Path(path).read_text()
        found["file"] = {"read": "it may be read"}
    except PermissionError:
        found["file"] = {"read": "refused"}
    for port in ports:
        found[port] = _attempts(port, path)
    print(json.dumps(found))


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2:])
