"""Finds which files of a dataset's folder or repository are its training split, by their names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from bankdb.datasets.files.saved import is_saved, saved_files
from bankdb.errors import DatasetError, listed

EXTENSIONS = (".jsonl", ".json", ".csv", ".parquet")
"""File name extensions of the formats that are read."""

SAVED = ".arrow"
"""Of files that `save_to_disk` wrote: read where their folder, or a user, names them."""
COMPRESSIONS = (".gz", ".zst")
"""What may follow the extension of a file of text."""

_NOT_UNPACKED = (".bz2", ".xz", ".zip", ".7z")
_TRAINING = re.compile(r"train([-_.].*)?", re.IGNORECASE | re.DOTALL)
_HELD_OUT = re.compile(r"(test|validation|valid|val|dev|eval)([-_.].*)?", re.IGNORECASE | re.DOTALL)
# As in train-00000-of-00002.parquet; some older repositories add a hash.
_SHARD = re.compile(r"(?P<stem>.*)-(?P<index>\d+)-of-(?P<total>\d+)(-[0-9a-f]+)?", re.DOTALL)
# As in train_1.jsonl or train-b.json: parts that are numbered or lettered. Other names, such as train_sft and
# train_gen, are alternatives that share examples.
_PART = re.compile(r"train[-_.](part[-_.]?)?([0-9]+|[a-z])", re.IGNORECASE)
# Written beside the data by the `datasets` library and the hub: they hold no examples.
_DESCRIPTIONS = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})


def format_of(name: str) -> tuple[str, str]:
    """Return the extension of a file's format and that of its compression, '' for none, both in lower case."""
    name = name.lower()
    compression = next((end for end in COMPRESSIONS if name.endswith(end)), "")
    return os.path.splitext(name.removesuffix(compression))[1], compression


def stem_of(name: str) -> str:
    """Return a file's name without folder and extensions."""
    base = name.rpartition("/")[2]
    compression = format_of(base)[1]
    return os.path.splitext(base[: len(base) - len(compression)])[0]


def is_data_file(name: str) -> bool:
    """Whether a file of this name may be read: of a known format, and, if it is text, perhaps compressed."""
    extension, compression = format_of(name)
    return extension in EXTENSIONS and not (compression and extension == ".parquet")


def training_files(path: Path) -> tuple[Path, ...]:
    """Files of the training split: `path` itself if it is a file, else those `choose_training_files` takes.

    Raises
    ------
    DatasetError
        When there is nothing at `path`, or its folder has no single, whole training split.

    A folder that `datasets` saved has the files that its own description names.
    """
    path = Path(path)
    if os.path.isfile(path):
        return (path,)
    if not os.path.isdir(path):
        raise DatasetError(f"{path}: not found; expected a dataset file or a folder with one")
    if is_saved(path):
        return saved_files(path, "train")
    try:
        names = [entry.name for entry in path.iterdir() if entry.is_file()]
        data = path / "data"
        if data.is_dir():
            names += [f"data/{entry.name}" for entry in data.iterdir() if entry.is_file()]
    except OSError as error:
        raise DatasetError(f"{path}: cannot be listed: {error.strerror}; check its permissions") from error
    return tuple(path / name for name in choose_training_files(names, str(path)))


def choose_training_files(names: Iterable[str], where: str) -> tuple[str, ...]:
    """Choose the files of the training split by their names; never a test or validation file.

    Taken are `train.*`, `train-*.*` and `train_*.*` in the folder or in its `data/`; if there are
    none, the only data file there is.

    Parameters
    ----------
    names
        Paths relative to the dataset's folder or repository, with `/` between parts.
    where
        What the names are relative to, for messages.

    Raises
    ------
    DatasetError
        When there is no training split, more than one, or one with a shard missing.
    """
    names = sorted(names)
    there = set(names)
    # What `gunzip --keep` leaves behind is the same file twice.
    data = [
        name
        for name in names
        if _is_data(name) and not (name.endswith(COMPRESSIONS) and name.rpartition(".")[0] in there)
    ]
    training = [name for name in data if _TRAINING.fullmatch(stem_of(name))]
    if training:
        _check_one_split(training, where)
        return tuple(training)
    others = [name for name in data if not _HELD_OUT.fullmatch(stem_of(name))]
    if len(others) == 1:
        return tuple(others)
    found = listed(names) or "nothing"
    raise DatasetError(
        f"{where}: no training split; expected train.jsonl, train.json, train.csv, train.parquet, "
        f"train-*.*, the same in data/, or a single data file; found {found}{_advice(names)}"
    )


def parts_note(files: Sequence[Path]) -> list[str]:
    """Say that several files are read as one training split, where their names do not say how many there are."""
    if len(files) < 2 or all(_SHARD.fullmatch(stem_of(Path(file).name)) for file in files):
        return []
    return [
        f"{Path(files[0]).parent}: {listed([Path(file).name for file in files])} are read as parts of one dataset"
    ]


def _advice(names: Sequence[str]) -> str:
    """What to do about files of formats that are not read."""
    if any(name.lower().endswith(_NOT_UNPACKED) for name in names):
        return "; decompress the file first"
    if any(name.endswith((".arrow", "dataset_dict.json")) for name in names):
        return "; open it with datasets.load_from_disk, and write its training split by to_parquet('train.parquet')"
    return ""


def _is_data(name: str) -> bool:
    folder, _, base = name.rpartition("/")
    return (
        folder in ("", "data")
        and not base.startswith(".")
        and is_data_file(base)
        and base.lower() not in _DESCRIPTIONS
    )


def _check_one_split(training: Sequence[str], where: str) -> None:
    """Refuse the same split twice (in two formats, folders or shardings) and a split with a shard missing."""
    kinds = {(name.rpartition("/")[0], format_of(name)) for name in training}
    shards = [shard for name in training if (shard := _SHARD.fullmatch(stem_of(name)))]
    shardings = {(shard["stem"], int(shard["total"])) for shard in shards}
    present = {int(shard["index"]) for shard in shards}
    whole = any(stem_of(name).lower() == "train" for name in training)
    mixed = shards and (len(shardings) > 1 or not len(present) == len(shards) == len(training))
    others = [
        name for name in training if not (_SHARD.fullmatch(stem_of(name)) or _PART.fullmatch(stem_of(name)))
    ]
    alternatives = len(training) > 1 and others
    if len(kinds) > 1 or (whole and len(training) > 1) or mixed or alternatives:
        raise DatasetError(
            f"{where}: more than one training split: {listed(training)}; "
            "keep one of them, or name the file itself as the dataset"
        )
    for stem, total in shardings:
        if len(present) != total or max(present) >= total:
            raise DatasetError(
                f"{where}: {len(present)} shards of {stem} are there and {total} are expected, numbered from 0 "
                f"to {total - 1}; copy or download all of them"
            )
