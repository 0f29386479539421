"""Shared banks for tests: copied, changed, and sealed again so that the change alone is what is wrong."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bankdb.bank import AdapterBank
from bankdb.sharing.form import ABOUT, CARD, CATALOGUE, SUMS
from bankdb.sharing.push import push


def share(template: Path, folder: Path) -> Path:
    """The bank of a template as a shared folder."""
    with AdapterBank.open(template) as bank:
        push(bank, str(folder), include_unlicensed=True)
    return folder


def changed(shared: Path, folder: Path, change: Callable[[Path], None], *, sealed: bool = True) -> Path:
    """A copy of a shared folder in which something is changed; its checksums follow, unless `sealed` is false."""
    shutil.copytree(shared, folder)
    change(folder)
    if sealed:
        seal(folder)
    return folder


def seal(folder: Path) -> None:
    """Make the checksums of a shared folder anew."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (SUMS, CARD))
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}\n"
        for path in paths
    ]
    (folder / SUMS).write_text("".join(lines))


def edit_about(folder: Path, **values: Any) -> None:
    """Change values of the record of the bank."""
    path = folder / ABOUT
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_adapter(folder: Path, number: int, **values: Any) -> None:
    """Change values of the record of an adapter."""
    path = folder / CATALOGUE
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[number] |= values
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
