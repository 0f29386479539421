"""Where an adapter lies: in the folder or repository that is named, or in the one folder below that is certainly meant.

A folder below is meant where it is the only one with an adapter, or the newest of a training run's checkpoints, and
nothing of an adapter lies above it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from bankdb.errors import FROM_MLX, AdapterError, listed, printable

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_MLX_FILES = ("adapters.safetensors", "adapters.npz")
_LOOKED_INTO = 1000
_CHECKPOINT = re.compile(r"(?P<run>(?:.*/)?)checkpoint-(?P<step>[0-9]{1,18})")


@dataclass(frozen=True, slots=True)
class LocalAdapter:
    """The absolute path of an adapter's folder, and how it was found where it is not the one that was named."""

    path: Path
    notes: tuple[str, ...] = ()


def local_adapter(text: str) -> LocalAdapter:
    """Find an adapter's folder, after a look at what is in it.

    Raises
    ------
    AdapterError
        When it is not a folder with a config and weights in safetensors, and no folder below is certainly meant.
    """
    path = Path(os.path.abspath(text))
    if not os.path.isdir(path):
        found = "a file" if os.path.isfile(path) else "nothing"
        raise AdapterError(
            f"{path}: expected an adapter folder with {CONFIG_FILE} and {WEIGHTS_FILE}, found {found}"
        )
    try:
        names = os.listdir(path)
    except OSError as error:
        raise AdapterError(f"{path}: cannot be listed: {error.strerror}; check its permissions") from error
    if not {CONFIG_FILE, WEIGHTS_FILE} <= set(names):
        names += [
            f"{name}/{file}"
            for name in sorted(names)[:_LOOKED_INTO]
            for file in (CONFIG_FILE, WEIGHTS_FILE)
            if os.path.isfile(path / name / file)
        ]
    below = adapter_below(names, str(path), "")
    return LocalAdapter(path / below, notes_of(below, names)) if below else LocalAdapter(path)


def adapter_below(names: Collection[str], where: str, first: str = "download the repository, and ") -> str:
    """Return the folder with the two files that are read, relative to what is named; empty for that itself.

    Parameters
    ----------
    names
        Paths of the files of an adapter's folder or repository; of those in folders below, the two are looked for.
    where
        What it is called.
    first
        What has to be done before a folder below can be named.

    Raises
    ------
    AdapterError
        When one is missing, or the weights are there only as pickle, which can run code when loaded; or adapters lie
        in folders below and it is not certain which is meant.
    """
    if CONFIG_FILE in names and WEIGHTS_FILE in names:
        return ""
    below = _with(CONFIG_FILE, names)
    meant = _meant(below, names)
    if meant is not None:
        return meant
    if below:
        raise AdapterError(
            f"{where}: no {CONFIG_FILE if CONFIG_FILE not in names else WEIGHTS_FILE} in it, but adapters in folders "
            f"below: {printable(listed(below[-3:]))}; {first}name one of them in a manifest (.csv), as "
            f"{printable(f'{where}/{below[-1]}') if not first else printable(below[-1])}, or move its files up"
        )
    _refuse(names, where)
    raise AdapterError(f"{where}: no {WEIGHTS_FILE}; expected an adapter that PEFT has saved")


def notes_of(below: str, names: Collection[str]) -> tuple[str, ...]:
    """Return the line that says why a folder below was taken; none for the folder that was named."""
    if not below:
        return ()
    others = len(_with(CONFIG_FILE, names)) - 1
    why = f"the newest of {others + 1} checkpoints" if others else "the only folder below that has an adapter"
    return (f"the adapter is in {printable(below)}, {why}",)


def _with(file: str, names: Collection[str]) -> list[str]:
    """Return the folders below that have a file, checkpoint-900 before checkpoint-1000."""
    below = [name.removesuffix(f"/{file}") for name in names if name.endswith(f"/{file}")]
    return sorted(below, key=_numbers_by_size)


def _meant(below: list[str], names: Collection[str]) -> str | None:
    """Return the folder below that is certainly meant; None if there is no such."""
    above = {
        name for name in names if name in {CONFIG_FILE, *_MLX_FILES} or name.startswith("adapter_model.")
    }
    whole = [folder for folder in below if f"{folder}/{WEIGHTS_FILE}" in names]
    if above or not below or whole != below:
        return None
    checkpoints = [_CHECKPOINT.fullmatch(folder) for folder in below]
    if len(below) == 1 or (all(checkpoints) and len({one and one["run"] for one in checkpoints}) == 1):
        return below[-1]
    return None


def _refuse(names: Collection[str], where: str) -> None:
    of_mlx = [name for name in _MLX_FILES if name in names]
    if of_mlx and WEIGHTS_FILE not in names:
        raise AdapterError(
            f"{where}: {of_mlx[0]} is in MLX's format, {WEIGHTS_FILE} was expected; {FROM_MLX}"
        )
    if CONFIG_FILE not in names:
        raise AdapterError(f"{where}: no {CONFIG_FILE}; expected an adapter that PEFT has saved")
    pickles = sorted(
        name for name in names if name.startswith("adapter_model.") and not name.endswith(".json")
    )
    if pickles:
        raise AdapterError(
            f"{where}: {pickles[0]} is not read, safetensors only; save the adapter again with "
            f"save_pretrained(..., safe_serialization=True), which writes {WEIGHTS_FILE}"
        )


def _numbers_by_size(name: str) -> list[tuple[int, str]]:
    """A key by which checkpoint-900 comes before checkpoint-1000."""
    return [(len(part), part) if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]
