"""Copies of banks, and every byte that a run leaves in one."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path


def copy_bank(source: Path, path: Path) -> Path:
    """Rows are linked: nobody writes into a row's file."""
    shutil.copytree(source, path, ignore=shutil.ignore_patterns("c"))
    shutil.copytree(source / "adapters.zarr" / "c", path / "adapters.zarr" / "c", copy_function=os.link)
    return path


def digests(folder: Path) -> dict[str, str]:
    """The hash of each file, by its path within the folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
