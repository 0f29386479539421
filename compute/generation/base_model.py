"""The base model on disk: where it is, and hashes of all that its answers depend on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bankdb.errors import BankError, listed, one_line
from bankdb.progress import Progress, SilentProgress, quiet_loggers

_BLOCK = 65_536
_BLOCKS = 64
# Beside the weights: what is loaded in which way. Of generation_config.json only the ids that end a text.
_SETTINGS = ("config.json", "adapter_config.json", "*.safetensors.index.json")
# Where the configuration of a model of several parts says what ends a text.
_DECODERS = ("decoder", "generator", "text_config")
_FILES = ["*.json", "*.safetensors", "tokenizer*", "*.model"]


def model_folder(model: str | Path) -> Path:
    """Return the folder of a model: `model` itself, or the hub's files of that name, downloaded if need be.

    Raises
    ------
    BankError
        There is no model, or its weights are not safetensors.
    """
    folder = Path(model)
    if not folder.is_dir():
        folder = _from_hub(str(model))
    if not (folder / "config.json").is_file():
        raise BankError(f"{folder}: expected a base model with config.json, found none; pass --model PATH")
    if not any(folder.glob("*.safetensors")):
        names = listed(sorted(os.listdir(folder)))
        raise BankError(
            f"{folder}: expected weights in *.safetensors, found {names}; save the model with save_pretrained"
        )
    return folder


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    with quiet_loggers("huggingface_hub"):
        try:
            try:
                # What is there already is taken without a question to the hub.
                return Path(snapshot_download(name, allow_patterns=_FILES, local_files_only=True))
            except LocalEntryNotFoundError:
                return Path(snapshot_download(name, allow_patterns=_FILES))
        except Exception as error:
            raise BankError(
                f"base model {name}: expected a folder or a model on the hub, found neither "
                f"({one_line(error, 100)}); pass --model PATH"
            ) from error


def model_fingerprint(folder: Path, progress: Progress | None = None) -> str:
    """Return a hash of the model's configuration and of every byte of its weights, under their names.

    Raises
    ------
    BankError
        A file cannot be read, or the index of the weights names one that is not there.
    """
    names = [*_matching(folder, *_SETTINGS), *weight_files(folder)]
    return hash_of_files(folder, names, progress or SilentProgress())


def hash_of_files(folder: Path, names: Sequence[str], progress: Progress) -> str:
    """Return a hash of the names and all bytes of files, read side by side.

    A core hashes about 1.5 GB/s where the processor has instructions for SHA-256.
    """
    progress.begin("check the base model's files", len(names))
    digest = hashlib.sha256()
    with ThreadPoolExecutor() as pool:
        for name, found in zip(names, pool.map(lambda name: _sha256(folder / name), names), strict=True):
            digest.update(f"{len(name)} {name} {found}\n".encode())
            progress.advance(1)
    progress.end()
    return digest.hexdigest()


def weight_files(folder: Path) -> list[str]:
    """Return the names of all weight files: those in the folder, and those that an index of them names."""
    found = set(_matching(folder, "*.safetensors"))
    for name in _matching(folder, "*.safetensors.index.json"):
        parts = _object(folder / name).get("weight_map")
        if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()):
            raise BankError(f"{folder / name}: expected a weight_map of file names; copy the model again")
        found.update(parts.values())
    return sorted(found)


def end_ids(folder: Path) -> frozenset[int]:
    """Return the ids that the model's generation settings end a text with; without settings its config's.

    Raises
    ------
    BankError
        They are no token ids.
    """
    settings = folder / "generation_config.json"
    return _end_ids(settings if settings.is_file() else folder / "config.json")


def config_of(folder: Path) -> Mapping[str, Any]:
    """Return the model's configuration, of a model of several parts its decoder's; raises BankError if it is none."""
    whole = _object(folder / "config.json")
    parts = (whole.get(name) for name in _DECODERS)
    return next((part for part in parts if isinstance(part, dict)), whole)


def earlier_fingerprint(folder: Path) -> tuple[str, bool]:
    """Return the fingerprint that version 0.1.0 kept answers under, and whether it tells all that it should.

    It hashed 64 blocks of 64 KiB of each weight file, so that only of files up to 4 MiB every byte is known,
    and no `eos_token_id` but that of config.json.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as stream:
            if size <= _BLOCK * _BLOCKS:
                digest.update(stream.read())
                continue
            for index in range(_BLOCKS):
                stream.seek((size - _BLOCK) * index // (_BLOCKS - 1))
                digest.update(stream.read(_BLOCK))
    whole = all((folder / name).stat().st_size <= _BLOCK * _BLOCKS for name in weight_files(folder))
    alone = _matching(folder, *_SETTINGS) == ["config.json"]
    return digest.hexdigest(), whole and alone and end_ids(folder) == _end_ids(folder / "config.json")


def _matching(folder: Path, *patterns: str) -> list[str]:
    return sorted(file.name for pattern in patterns for file in folder.glob(pattern))


def _sha256(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise BankError(
            f"{file}: expected a file of the base model that can be read ({error.strerror}); copy it again"
        ) from error


def _object(file: Path) -> Mapping[str, Any]:
    try:
        # As transformers reads it: some configurations hold Infinity.
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise BankError(
            f"{file}: expected a JSON object ({one_line(error)}); copy the model again"
        ) from error
    if not isinstance(found, dict):
        raise BankError(f"{file}: expected a JSON object, found something else; copy the model again")
    return found


def _end_ids(file: Path) -> frozenset[int]:
    settings = _object(file)
    parts = [settings] if file.name != "config.json" else [settings, *map(settings.get, _DECODERS)]
    stated = next(
        (part["eos_token_id"] for part in parts if part and part.get("eos_token_id") is not None), None
    )
    ids = [one for one in (stated if isinstance(stated, list) else [stated]) if one is not None]
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in ids):
        shown = json.dumps(stated)[:60]
        raise BankError(f"{file}: expected token ids as eos_token_id, found {shown}; copy the model again")
    return frozenset(ids)
