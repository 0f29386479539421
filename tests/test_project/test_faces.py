"""The two doors: what `import bankdb` and `import compute` offer, what they load, and examples in docstrings."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

import pytest

import bankdb
import compute
from tests.support.banks.small_bank import write_dataset

ROOT = Path(__file__).parents[2]
HEAVY = ("sqlalchemy", "zarr", "numpy", "dask", "distributed", "xarray", "scipy", "torch", "transformers")
FACES = [bankdb, compute]
PUBLIC = [(face, name) for face in FACES for name in face.__all__]


def run(program: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *options, "-c", program]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)


def test_importing_both_loads_nothing_heavy() -> None:
    told = run("import bankdb, compute", "-X", "importtime").stderr
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in told.splitlines()}
    assert {"bankdb", "compute"} <= loaded
    assert loaded.isdisjoint(HEAVY)
    # Nor does asking what there is.
    program = (
        f"import sys, bankdb, compute; dir(bankdb), dir(compute); print({set(HEAVY)!r} & sys.modules.keys())"
    )
    assert run(program).stdout.strip() == "set()"


@pytest.mark.parametrize("face", FACES, ids=lambda face: face.__name__)
def test_what_is_listed_is_what_is_public(face: ModuleType) -> None:
    assert dir(face) == sorted(face.__all__)
    assert len(set(face.__all__)) == len(face.__all__)
    names: dict[str, Any] = {}
    exec(f"from {face.__name__} import *", names)
    assert names.keys() - {"__builtins__"} == set(face.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = face.nonsense


def test_names_for_type_checkers_are_those_that_are_looked_up() -> None:
    """Editors and mypy see the imports under TYPE_CHECKING; programs the table of places."""
    for face in FACES:
        source = inspect.getsource(face).partition("if TYPE_CHECKING:")[2].partition("\n\n_ERRORS")[0]
        source = source.partition("\n# Where each name is")[0]
        seen: dict[str, Any] = {}
        exec("if True:" + source, seen)
        assert seen.keys() - {"__builtins__"} == set(face.__all__)
        for name in face.__all__:
            assert seen[name] == getattr(face, name), name


@pytest.mark.parametrize(("face", "name"), PUBLIC, ids=lambda part: getattr(part, "__name__", part))
def test_every_public_name_has_a_docstring(face: ModuleType, name: str) -> None:
    value = getattr(face, name)
    text = inspect.getdoc(value)
    assert text
    assert not text.startswith(f"{name}(")  # what a dataclass writes of itself
    if inspect.isclass(value):
        methods = inspect.getmembers(value, lambda member: isinstance(member, FunctionType | MethodType))
        assert [
            key for key, method in methods if not key.startswith("_") and not inspect.getdoc(method)
        ] == []


def test_verbs_stay_functions_whatever_was_imported() -> None:
    """No module has the name of a verb: importing it would put itself in the verb's place."""
    for face in FACES:
        for module in pkgutil.walk_packages(face.__path__, f"{face.__name__}."):
            if "migrations" not in module.name and not module.name.endswith("compiled"):
                importlib.import_module(module.name)
        submodules = {module.name for module in pkgutil.iter_modules(face.__path__)}
        assert submodules.isdisjoint(face.__all__)
        for name in face.__all__:
            assert not isinstance(getattr(face, name), ModuleType)


def examples() -> Iterator[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    for face, name in PUBLIC:
        value = getattr(face, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            found = finder.find(value, f"{face.__name__}.{name}", module=inspect.getmodule(value))
            yield from (test for test in found if test.examples)


def test_examples_in_docstrings_run(bank_template: Path, pairs_folder: Path, tmp_path: Path) -> None:
    """With a bank of six pairs as `bank`, the folder it is of as `pairs`, and a new dataset as `data`."""
    shutil.copytree(bank_template, tmp_path / "bank")
    tests = list(examples())
    assert {test.name.split(".")[1] for test in tests} >= {
        "AdapterBank",
        "distances",
        "coefficients",
        "predict",
        "predict_all",
        "evaluate",
        "forecast",
        "combinations",
    }
    with bankdb.open(tmp_path / "bank") as bank:
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
        for test in tests:
            test.globs |= {name: getattr(compute, name) for name in compute.__all__}
            test.globs |= {"bank": bank, "pairs": pairs_folder, "data": tmp_path / "data", "bankdb": bankdb}
            if not (tmp_path / "data").exists():
                write_dataset(tmp_path / "data", 50)
            runner.run(test)
    assert runner.summarize(verbose=False).failed == 0
