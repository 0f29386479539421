"""Which modules a command may import: what a person at a prompt waits for is mostly that."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cli.main import cli
from tests.support.banks.small_bank import write_dataset

ROOT = Path(__file__).resolve().parents[3]
# Never before a model generates or is trained.
TORCH = ("torch", "peft", "accelerate")
# What computes on a cluster, opens arrays of any layout, migrates, downloads or draws.
LARGE = (
    *(
        "dask",
        "distributed",
        "zarr",
        "xarray",
        "alembic",
        "transformers",
        "bokeh",
        "pyarrow",
        "numba",
        "ml_dtypes",
    ),
    *(
        "scipy.special",
        "scipy.interpolate",
        "scipy.stats",
        "scipy.optimize",
        "sqlalchemy.dialects.postgresql",
    ),
)
ARRAYS = ("numpy", "scipy", "numcodecs", "tokenizers", "yaml")

PROGRAM = """
import json, sys
from cli.main import main
sys.argv = ["bank", *{arguments!r}]
try:
    main()
except SystemExit as ended:
    status = ended.code
print(json.dumps([status or 0, [name for name in {names!r} if name in sys.modules]]), file=sys.stderr)
"""


def loaded(arguments: list[str], names: tuple[str, ...], cwd: Path) -> list[str]:
    """Which of some modules a command has loaded in the end; it succeeds."""
    program = PROGRAM.format(arguments=arguments, names=names)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{program}"],
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    status, found = json.loads(done.stderr.splitlines()[-1])
    assert status == 0, done.stderr
    return list(found)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, bank_template: Path) -> Path:
    """A folder with a bank of six pairs, `bank`, that bank as it is shared, and a dataset that is not in it."""
    folder = tmp_path_factory.mktemp("imports")
    shutil.copytree(bank_template, folder / "bank")
    write_dataset(folder / "new", 99)
    words = ["push", "received.tar", "--include-unlicensed", "--bank", str(folder / "bank")]
    done = subprocess.run(
        [sys.executable, "-m", "bankdb", *words], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder


# In one bank; the last ones change it.
QUICK = {
    "--help": (["--help"], (*TORCH, *LARGE, *ARRAYS, "sqlalchemy")),
    "list": (["list"], (*TORCH, *LARGE, *ARRAYS)),
    "list --json": (["list", "--json"], (*TORCH, *LARGE, *ARRAYS)),
    "show": (["show"], (*TORCH, *LARGE, *ARRAYS)),
    "show NAME": (["show", "task001"], (*TORCH, *LARGE, *ARRAYS)),
    "alias": (["alias", "add", "another/name"], (*TORCH, *LARGE, *ARRAYS)),
    "export": (["export", "task001", "--out", "task001"], (*TORCH, *LARGE)),
    "ingest again": (["ingest", "{pairs}"], (*TORCH, *LARGE)),
    "verify": (["verify"], (*TORCH, "distributed", "xarray", "alembic", "transformers", "bokeh")),
    "predict NEWDATA": (["predict", "new", "--out", "made"], (*TORCH, *LARGE)),
    "predict NEWDATA by delta": (
        ["predict", "new", "--out", "cut", "--space", "delta", "--metric", "kl"],
        (*TORCH, *LARGE),
    ),
    "distances": (["distances", "--workers", "1", "--csv", "d.csv"], (*TORCH, "transformers")),
    "predict --all": (["predict", "--all", "--workers", "1"], (*TORCH, "transformers")),
    "report": (["report", "--out", "r.html"], (*TORCH, "transformers")),
    # Some of these adapters are bfloat16, which ml_dtypes has.
    "push": (
        ["push", "shared.tar", "--include-unlicensed"],
        (*TORCH, *(name for name in LARGE if name != "ml_dtypes")),
    ),
    # It makes a bank, which zarr and Alembic do, with all of its databases.
    "pull": (
        ["pull", "received.tar", "--bank", "pulled"],
        (*TORCH, "dask", "distributed", "xarray", "transformers", "bokeh", "pyarrow", "numba"),
    ),
    "group": (["group", "task001", "a"], (*TORCH, *LARGE, *ARRAYS)),
    "remove": (["remove", "task005"], (*TORCH, *LARGE)),
}


@pytest.mark.parametrize("command", QUICK)
def test_what_a_command_loads(place: Path, pairs_folder: Path, command: str) -> None:
    arguments, names = QUICK[command]
    assert loaded([word.format(pairs=pairs_folder) for word in arguments], names, place) == []


def test_a_table_of_commands_has_each_under_its_name() -> None:
    """They are imported one by one; the table must not lose one, or call it otherwise."""
    assert {name: command.name for name, command in cli.commands.items()} == {
        name: name for name in cli.commands
    }
    folder = ROOT / "cli" / "commands"
    paths = (path.relative_to(folder).with_suffix("") for path in folder.rglob("[!_]*.py"))
    modules = sorted(".".join(path.parts) for path in paths)
    offered = {
        command.name
        for name in modules
        for command in getattr(importlib.import_module(f"cli.commands.{name}"), "COMMANDS", ())
    }
    assert offered == set(cli.commands)
