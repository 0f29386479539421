"""The standard streams as users have them: closed, broken, of an old encoding; and systems that are not supported."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
BANK = f"{shlex.quote(sys.executable)} -m cli.main"


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["bash", "-c", line],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        timeout=120,
    )


@pytest.fixture
def bank(bank_template: Path) -> str:
    return shlex.quote(str(bank_template))


def test_a_closed_standard_error(bank: str, bank_template: Path) -> None:
    """Its number would be the next file's, and messages would be written into the database."""
    before = (bank_template / "bank.db").read_bytes()
    done = shell(f"{BANK} verify --bank {bank} 2>&-")
    assert done.returncode == 0
    assert b"6 adapters checked: clean" in done.stdout
    assert shell(f"{BANK} show --bank {bank} nobody 2>&-").returncode == 1
    assert (bank_template / "bank.db").read_bytes() == before


def test_a_closed_standard_output(bank: str) -> None:
    for command in (f"list --bank {bank}", f"list --json --bank {bank}", "--help"):
        done = shell(f"{BANK} {command} >&-")
        assert done.returncode == 1, command
        assert b"standard output" in done.stderr
        assert b"internal error" not in done.stderr
        assert b"Traceback" not in done.stderr


def test_all_closed(bank: str) -> None:
    assert shell(f"{BANK} list --bank {bank} <&- >&- 2>&-").returncode == 1


def test_a_reader_that_goes(bank: str) -> None:
    done = shell(f"{BANK} list --bank {bank} | true; echo ${{PIPESTATUS[0]}}")
    assert done.stdout.strip() in {b"0", b"1"}  # it may have written before the reader went
    assert done.stderr == b""


def test_a_full_device(bank: str) -> None:
    done = shell(f"{BANK} list --bank {bank} > /dev/full")
    assert done.returncode == 1
    assert done.stderr.startswith(b"bank: error: ")
    assert b"No space left" in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "koi8-r"])
def test_an_old_encoding(encoding: str, bank_template: Path, tmp_path: Path) -> None:
    import shutil

    from bankdb.bank import AdapterBank

    copy = tmp_path / "bank"
    shutil.copytree(bank_template, copy)
    with AdapterBank.open(copy) as opened:
        opened.catalog.set_group("task001", "東京 é — ±", None)
    bank, settings = shlex.quote(str(copy)), {"PYTHONUTF8": "0", "PYTHONIOENCODING": encoding}
    listed = shell(f"{BANK} list --bank {bank}", **settings)
    assert (listed.returncode, listed.stderr) == (0, b"")
    assert b"\\u6771\\u4eac" in listed.stdout
    found = json.loads(shell(f"{BANK} list --json --bank {bank}", **settings).stdout.decode(encoding))
    assert found[1]["group"] == "東京 é — ±"
    missing = shell(f"{BANK} show --bank {bank} 東京", **settings)
    assert missing.returncode == 1
    assert missing.stderr.startswith(b"bank: error: ")
    assert b"internal error" not in missing.stderr


@pytest.mark.parametrize("command", ["list", "ingest x", "predict x --out y", "report", "distances"])
def test_a_system_without_file_locks_is_named(command: str, bank: str) -> None:
    """As Windows is: Python has no `fcntl` there."""
    program = (
        # What Python itself has other modules for there comes first.
        "import asyncio, sys, sysconfig, click; sysconfig.get_config_vars(); "
        "sys.modules['fcntl'] = None; sys.platform = 'win32'; "
        f"sys.argv[1:] = {[*shlex.split(command), '--bank', shlex.split(bank)[0]]!r}; "
        "from cli.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("bank: error: lora-bank runs on Linux and macOS, found win32")
    assert "WSL" in line


def test_that_system_is_named_in_python_too() -> None:
    program = "import sys; sys.modules['fcntl'] = None; import bankdb.bank"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert "lora-bank runs on Linux and macOS" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("processes", [True, False])
def test_a_task_that_fails_has_one_line(processes: bool, tmp_path: Path) -> None:
    """Dask would print the traceback of the task before it."""
    script = tmp_path / "fails.py"
    script.write_text(
        "from bankdb.progress import SilentProgress\n"
        "from compute.cluster.client import open_cluster\n"
        "from compute.cluster.options import ClusterOptions\n"
        "from compute.cluster.tasks import run_tasks\n"
        "if __name__ == '__main__':\n"
        f"    options = ClusterOptions(workers=1, processes={processes}, memory=1 << 30)\n"
        "    with open_cluster(options, SilentProgress()) as cluster:\n"
        "        try:\n"
        "            list(run_tasks(cluster, 'stage', int, {'piece': ('no number',)}, SilentProgress()))\n"
        "        except Exception as error:\n"
        "            print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, script],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.startswith("stage: piece piece failed (ValueError: invalid literal")
    assert done.stderr == ""
