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
# Pure functions of arrays, and plans of integers: whole folders, and modules of others.
KERNELS = (
    "budget",
    "types",
    *(
        path.relative_to(ROOT / "compute").with_suffix("").as_posix().replace("/", ".")
        for folder in ("metrics", "approaches", "merge_methods")
        for path in sorted((ROOT / "compute" / folder).rglob("*.py"))
    ),
    "combination.plan",
    "combination.products",
    "evaluation.bootstrap",
    "evaluation.scores",
    "gram.plan",
    "pairwise.plan",
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
    """But `python -m bankdb`, which is the command line."""
    libraries = [path for path in modules("bankdb") if path != ROOT / "bankdb" / "__main__.py"]
    assert [line for path in libraries for line in forbidden(path, "compute", "cli")] == []


def test_the_module_as_a_program_imports_the_command_line_when_it_runs() -> None:
    path = ROOT / "bankdb" / "__main__.py"
    assert set(imported_modules(path)) == {"cli.main"}
    program = (
        "import sys, bankdb.__main__; print([name for name in sys.modules if name.split('.')[0] == 'cli'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]"


def test_compute_does_not_import_cli() -> None:
    assert [line for path in modules("compute") for line in forbidden(path, "cli")] == []


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_know_neither_dask_nor_files(kernel: str) -> None:
    path = ROOT / "compute" / f"{kernel.replace('.', '/')}.py"
    foreign = ("dask", "distributed", "zarr", "xarray", "sqlalchemy", "pathlib", "os", "bankdb")
    assert forbidden(path, *foreign, but=("bankdb.errors",)) == []


def test_the_cut_to_a_rank_knows_numbers_alone() -> None:
    """A kernel too, of `bankdb`, since adapters are cut when they are stored as when they are combined."""
    path = ROOT / "bankdb" / "peft" / "conversion" / "low_rank.py"
    foreign = ("dask", "distributed", "zarr", "xarray", "sqlalchemy", "pathlib", "os", "bankdb", "compute")
    assert forbidden(path, *foreign) == []


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_import_kernels_alone(kernel: str) -> None:
    path = ROOT / "compute" / f"{kernel.replace('.', '/')}.py"
    ours = {name.removeprefix("compute.") for name in imported_modules(path) if is_or_is_in(name, "compute")}
    assert ours - set(KERNELS) == set()


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
        # The modules that need it; nothing imports them where there is none.
        names = [name for name in names if not name.endswith(".compiled")]
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


# Rooms, and which others each may know; `bankdb.errors` and the like are known to all. See docs/architecture.md.
COMMON = {
    "bankdb.errors",
    "bankdb.records",
    "bankdb.progress",
    "bankdb.shown",
    "bankdb.strict_json",
    "compute.budget",
    "compute.types",
}
ARROWS = {
    "bankdb.arrays": set(),
    "bankdb.catalog": {"bankdb.arrays"},
    "bankdb.patterns": set(),
    "bankdb.templates": set(),
    "bankdb.peft": {"bankdb.arrays", "bankdb.patterns"},
    "bankdb.gguf": {"bankdb.peft"},
    "bankdb.datasets": {"bankdb.templates"},
    "bankdb.sources": {"bankdb.datasets", "bankdb.patterns"},
    "bankdb.public": {"bankdb.datasets", "bankdb.peft", "bankdb.sources", "bankdb.storage"},
    "bankdb.storage": {"bankdb.arrays", "bankdb.catalog", "bankdb.datasets", "bankdb.gguf", "bankdb.peft"},
    "bankdb.bank": {
        "bankdb.arrays",
        "bankdb.catalog",
        "bankdb.datasets",
        "bankdb.gguf",
        "bankdb.ingest",
        "bankdb.peft",
        "bankdb.public",
        "bankdb.snapshot",
        "bankdb.sources",
        "bankdb.storage",
        "bankdb.verify",
    },
    "bankdb.backup": {"bankdb.arrays", "bankdb.catalog", "bankdb.storage"},
    "bankdb.snapshot": set(),
    "bankdb.scaled_rows": {"bankdb.arrays", "bankdb.bank", "bankdb.peft"},
    "bankdb.derived": {"bankdb.arrays", "bankdb.catalog", "bankdb.storage"},
    "bankdb.space": {"bankdb.arrays", "bankdb.derived", "bankdb.storage"},
    "bankdb.initialisation": {"bankdb.arrays", "bankdb.derived", "bankdb.peft", "bankdb.storage"},
    "bankdb.ingesting": {
        "bankdb.arrays",
        "bankdb.catalog",
        "bankdb.datasets",
        "bankdb.peft",
        "bankdb.sources",
        "bankdb.storage",
    },
    "bankdb.ingest": {
        "bankdb.arrays",
        "bankdb.catalog",
        "bankdb.datasets",
        "bankdb.ingesting",
        "bankdb.initialisation",
        "bankdb.peft",
        "bankdb.sources",
        "bankdb.storage",
    },
    "bankdb.sharing": {
        "bankdb.arrays",
        "bankdb.bank",
        "bankdb.catalog",
        "bankdb.datasets",
        "bankdb.gguf",
        "bankdb.ingest",
        "bankdb.initialisation",
        "bankdb.peft",
        "bankdb.sources",
        "bankdb.storage",
    },
    "bankdb.verify": {
        "bankdb.arrays",
        "bankdb.derived",
        "bankdb.ingest",
        "bankdb.peft",
        "bankdb.space",
        "bankdb.storage",
    },
    "compute.metrics": set(),
    "compute.merge_methods": set(),
    "compute.approaches": {"compute.merge_methods", "compute.metrics"},
    "compute.cluster": set(),
    "compute.generation": set(),
    "compute.pairwise": {"compute.cluster", "compute.metrics"},
    "compute.gram": {"compute.cluster"},
    "compute.combination": {"compute.approaches", "compute.cluster", "compute.merge_methods"},
    "compute.labels": {
        "compute.approaches",
        "compute.cluster",
        "compute.combination",
        "compute.generation",
    },
    "compute.prediction": {
        "compute.approaches",
        "compute.cluster",
        "compute.combination",
        "compute.generation",
        "compute.gram",
        "compute.labels",
        "compute.merge_methods",
        "compute.metrics",
        "compute.pairwise",
    },
    "compute.finetuning": {
        "compute.approaches",
        "compute.cluster",
        "compute.combination",
        "compute.generation",
        "compute.prediction",
    },
    "compute.merging": {"compute.finetuning", "compute.generation"},
    "compute.curves": {
        "compute.approaches",
        "compute.cluster",
        "compute.combination",
        "compute.evaluation",
        "compute.finetuning",
        "compute.generation",
        "compute.labels",
        "compute.prediction",
    },
    "compute.evaluation": {
        "compute.approaches",
        "compute.cluster",
        "compute.combination",
        "compute.generation",
        "compute.labels",
        "compute.merge_methods",
        "compute.prediction",
    },
    "compute.assessment": {
        "compute.approaches",
        "compute.cluster",
        "compute.evaluation",
        "compute.generation",
        "compute.prediction",
    },
    "compute.upkeep": {
        "bankdb.ingest",
        "bankdb.ingesting",
        "bankdb.public",
        "bankdb.verify",
        "compute.cluster",
    },
    "compute.reporting": {
        "compute.curves",
        "compute.approaches",
        "compute.cluster",
        "compute.evaluation",
        "compute.pairwise",
        "compute.prediction",
    },
    "compute.forecasting": {
        "compute.approaches",
        "compute.cluster",
        "compute.combination",
        "compute.evaluation",
        "compute.generation",
        "compute.gram",
        "compute.merge_methods",
        "compute.metrics",
        "compute.pairwise",
    },
}
# What computations may know of a bank.
OF_A_BANK = {
    "bankdb.arrays",
    "bankdb.bank",
    "bankdb.datasets",
    "bankdb.derived",
    "bankdb.gguf",
    "bankdb.initialisation",
    "bankdb.peft",
    "bankdb.scaled_rows",
    "bankdb.snapshot",
    "bankdb.space",
    "bankdb.templates",
}
MOST_MODULES = 12


def room_of(name: str) -> str:
    """The folder of a module, `compute.gram`; a module on its own is its own room."""
    return ".".join(name.split(".")[:2])


def imported_modules(path: Path) -> Iterator[str]:
    """Our own modules among what is imported; `from package import module` names the module."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [
                name if (ROOT / f"{name.replace('.', '/')}.py").is_file() else node.module for name in inside
            ]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] in PACKAGES)


def rooms() -> list[Path]:
    return [path for path in modules("bankdb", "compute") if len(path.relative_to(ROOT).parts) > 1]


@pytest.mark.parametrize("room", sorted(ARROWS))
def test_arrows_between_rooms(room: str) -> None:
    wrong = []
    for path in rooms():
        if room_of(name_of(path)) != room or path.name == "__init__.py":
            continue
        allowed = COMMON | ARROWS[room] | {room}
        if room.startswith("compute."):
            allowed |= OF_A_BANK if room != "compute.generation" else {"bankdb.datasets", "bankdb.peft"}
        wrong += [
            f"{path.relative_to(ROOT)} imports {name}"
            for name in imported_modules(path)
            if room_of(name) not in allowed
        ]
    assert wrong == []


def test_every_module_has_a_room() -> None:
    names = {
        room_of(name_of(path)) for path in rooms() if path.parent not in {ROOT / "bankdb", ROOT / "compute"}
    }
    assert names <= ARROWS.keys()


def test_no_import_circle() -> None:
    """Also of imports within functions and for types alone."""
    known = {
        name_of(path): set(imported_modules(path))
        for path in modules(*PACKAGES)
        if path.name != "__init__.py"
    }
    left = dict(known)
    while left:
        free = {name for name, wanted in left.items() if not (wanted & left.keys()) - {name}}
        if not free:
            break
        left = {name: wanted for name, wanted in left.items() if name not in free}
    # Alembic's environment is run by the database that it knows.
    assert left.keys() == set()


def test_no_folder_holds_more_modules_than_a_reader_can_keep_in_mind() -> None:
    folders: dict[Path, int] = {}
    for top in (*PACKAGES, "tests", "benchmarks", "examples", "deploy"):
        # Nobody imports a `__main__`.
        for path in (path for path in (ROOT / top).rglob("*.py") if path.name != "__main__.py"):
            folders[path.parent] = folders.get(path.parent, 0) + 1
    assert {
        str(path.relative_to(ROOT)): number for path, number in folders.items() if number > MOST_MODULES
    } == {}
