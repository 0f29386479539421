"""Who may import whom, what an import may load, and how long a function may be. See docs/architecture.md."""

from __future__ import annotations

import ast
import functools
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("bankdb", "compute", "cli")
# Pure functions of arrays.
KERNELS = (
    "approaches.by_distance",
    "approaches.groups",
    "approaches.matching",
    "approaches.oracle",
    "approaches.ridge",
    "approaches.tuned",
    "combination.low_rank",
    "combination.plan",
    "combination.products",
    "evaluation.bootstrap",
    "evaluation.scores",
    "metrics.aligned",
    "metrics.base",
    "metrics.compiled",
    "metrics.distributions",
    "metrics.divergences",
    "metrics.mixtures",
    "metrics.mmd",
    "metrics.registry",
    "metrics.tfidf",
    "metrics.wasserstein",
    "pairwise.plan",
    "plans",
)
LONGEST_FUNCTION, LONGEST_MODULE = 60, 400


def modules(*packages: str) -> list[Path]:
    found = [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]
    assert found
    return found


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imported(path: Path) -> Iterator[str]:
    """Full names of what a module imports, anywhere in it: functions and type checking included."""
    package = name_of(path).split(".")[:-1]
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            yield ".".join([*base, *([node.module] if node.module else [])])


def is_or_is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def forbidden(path: Path, *packages: str, but: tuple[str, ...] = ()) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for name in imported(path)
        if any(is_or_is_in(name, package) for package in packages) and name not in but
    ]


def test_bankdb_imports_neither_compute_nor_cli() -> None:
    assert [line for path in modules("bankdb") for line in forbidden(path, "compute", "cli")] == []


def test_compute_does_not_import_cli() -> None:
    assert [line for path in modules("compute") for line in forbidden(path, "cli")] == []


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_know_neither_dask_nor_files(kernel: str) -> None:
    path = ROOT / "compute" / f"{kernel.replace('.', '/')}.py"
    foreign = ("dask", "distributed", "zarr", "xarray", "sqlalchemy", "pathlib", "os", "bankdb")
    assert forbidden(path, *foreign, but=("bankdb.errors",)) == []


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_import_kernels_alone(kernel: str) -> None:
    ours = [
        name
        for name in imported(ROOT / "compute" / f"{kernel.replace('.', '/')}.py")
        if is_or_is_in(name, "compute")
    ]
    assert [name for name in ours if name.removeprefix("compute.") not in KERNELS] == []


def test_nobody_but_the_bank_touches_the_database() -> None:
    """The client alone writes it, through the catalogue."""
    assert [
        line for path in modules("compute", "cli") for line in forbidden(path, "sqlalchemy", "alembic")
    ] == []


def test_there_is_no_private_import_between_packages() -> None:
    found = [
        f"{path.relative_to(ROOT)} imports {node.module}.{alias.name}"
        for path in modules(*PACKAGES)
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ImportFrom)
        and (node.module or "").split(".")[0] in {*PACKAGES} - {path.relative_to(ROOT).parts[0]}
        for alias in node.names
        if alias.name.startswith("_")
    ]
    assert found == []


def test_the_command_line_loads_nothing_heavy() -> None:
    heavy = (
        "numpy",
        "scipy",
        "dask",
        "distributed",
        "transformers",
        "zarr",
        "sqlalchemy",
        "xarray",
        "pyarrow",
        "numba",
    )
    program = f"import sys; import cli.main;print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]"


def test_importing_any_module_starts_no_process_and_no_thread() -> None:
    names = [name_of(path) for path in modules(*PACKAGES) if "migrations" not in path.parts]
    names = [name.removesuffix(".__init__") for name in names]
    if importlib.util.find_spec("numba") is None:
        # The one module that needs it; nothing imports it where there is none.
        names.remove("compute.metrics.compiled")
    program = (
        "import importlib, os, threading;"
        f"[importlib.import_module(name) for name in {names!r}];"
        "print(threading.active_count(), os.path.exists(f'/proc/{os.getpid()}/task/{os.getpid()}/children') and "
        "open(f'/proc/{os.getpid()}/task/{os.getpid()}/children').read())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert done.stdout.split() in (["1"], ["1", "False"])


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_functions_are_short() -> None:
    """Docstrings included; a command's signature is a line an option and is not counted."""
    long = []
    for path in modules(*PACKAGES):
        if "versions" in path.parts:
            continue  # a migration is a list of tables
        for function in functions(path):
            body = (function.end_lineno or 0) - function.body[0].lineno + 1
            whole = (function.end_lineno or 0) - function.lineno + 1
            if (body if path.relative_to(ROOT).parts[0] == "cli" else whole) > LONGEST_FUNCTION:
                long.append(f"{path.relative_to(ROOT)}: {function.name} has {whole} lines")
    assert long == []


def test_modules_are_short() -> None:
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in modules(*PACKAGES)}
    assert {path: length for path, length in lengths.items() if length > LONGEST_MODULE} == {}
