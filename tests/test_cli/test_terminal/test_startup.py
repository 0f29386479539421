"""The command is quick to answer, and what it needs is loaded only when it is needed."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
HEAVY = (
    "numpy",
    "scipy",
    "dask",
    "distributed",
    "zarr",
    "sqlalchemy",
    "transformers",
    "xarray",
    "rich",
    "pyarrow",
    "numba",
)


def cpu_seconds(*arguments: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_takes_no_longer_than_twice_what_numpy_takes() -> None:
    """Which is a fifth of a second of a slow processor, and a tenth of a quick one."""
    shown, numpy = ("-m", "cli.main", "--help"), ("-c", "import numpy")
    cpu_seconds(*shown)  # writes the byte code
    taken = [(cpu_seconds(*shown), cpu_seconds(*numpy)) for _ in range(4)]
    assert min(one for one, _ in taken) < 2 * min(other for _, other in taken)


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys; from click.testing import CliRunner; from cli.main import cli;"
        "[CliRunner().invoke(cli, [*name, '--help']) for name in [[], *([n] for n in cli.commands)]];"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["list", "--bank", "none"], ["lst"], ["show", "-h"]]
)
def test_python_m_bankdb_is_the_command(arguments: list[str], tmp_path: Path) -> None:
    """To the letter of what it says, under the name of the command."""
    answers = [
        subprocess.run(
            [sys.executable, "-m", module, *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        for module in ("bankdb", "cli.main")
    ]
    assert len({(one.returncode, one.stdout, one.stderr) for one in answers}) == 1
    assert answers[0].returncode == {"list": 1, "lst": 2}.get(arguments[0], 0)
    assert "bank" in answers[0].stdout + answers[0].stderr
