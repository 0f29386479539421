"""Folders that `Dataset.save_to_disk` wrote: which of their files are the split that is asked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bankdb.errors import DatasetError, listed, one_line
from bankdb.strict_json import parse_object

_SPLITS, _STATE = "dataset_dict.json", "state.json"
_LARGEST = 16 << 20
_MOST_FILES = 100_000
_WRITE_AGAIN = "write the dataset again with save_to_disk"


def is_saved(folder: Path) -> bool:
    """Whether a folder holds what `save_to_disk` writes."""
    if (folder / _SPLITS).is_file():
        return True
    return (folder / _STATE).is_file() and (folder / "dataset_info.json").is_file()


def saved_files(folder: Path, split: str) -> tuple[Path, ...]:
    """Return the files of a split, `train` or `test`, in their order: of several splits, or of the one there is.

    Raises
    ------
    DatasetError
        There is no such split, or not all of it.
    """
    if (folder / _SPLITS).is_file():
        names = _described(folder / _SPLITS).get("splits")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DatasetError(f"{folder / _SPLITS}: names no splits; {_WRITE_AGAIN}")
        if split not in names:
            raise DatasetError(
                f"{folder}: no split {split!r}, only {listed(names) or 'none'}; give the folder of the one that is "
                "meant"
            )
        return _of_one(folder / split)
    return _of_one(folder, split)


def _of_one(folder: Path, split: str | None = None) -> tuple[Path, ...]:
    state = _described(folder / _STATE)
    stated = state.get("_split")
    if split == "train" and stated in ("test", "validation"):
        raise DatasetError(f"{folder}: is the split {stated!r}; expected the training split")
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise DatasetError(
            f"{folder}: only some of its rows are meant; {_WRITE_AGAIN}, by datasets 2.0 or newer"
        )
    items = state.get("_data_files")
    if not isinstance(items, list) or not 0 < len(items) <= _MOST_FILES:
        raise DatasetError(f"{folder / _STATE}: names no files; {_WRITE_AGAIN}")
    names = [item.get("filename") if isinstance(item, dict) else None for item in items]
    files = []
    for name in names:
        if not isinstance(name, str) or os.path.basename(name) != name or not name.endswith(".arrow"):
            raise DatasetError(
                f"{folder / _STATE}: names the file {one_line(repr(name), 60)}, expected an .arrow file of this "
                f"folder; {_WRITE_AGAIN}"
            )
        files.append(folder / name)
    if gone := [file.name for file in files if not file.is_file()]:
        raise DatasetError(f"{folder}: {listed(gone)} is missing; copy the whole folder again")
    return tuple(files)


def _described(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST >> 20} MiB")
        return parse_object(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: cannot be read ({one_line(error)}); {_WRITE_AGAIN}") from error
