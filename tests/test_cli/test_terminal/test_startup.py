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
    subprocess.run([sys.executable, "-m", "cli.main", *arguments], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_takes_less_than_a_third_of_a_second() -> None:
    cpu_seconds("--help")  # writes the byte code
    assert min(cpu_seconds("--help") for _ in range(3)) < 0.3


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
