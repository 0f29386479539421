"""The command is quick to answer, and what it needs is loaded only when it is needed."""

from __future__ import annotations

import resource
import subprocess
import sys

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
