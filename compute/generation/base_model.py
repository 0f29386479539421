"""The base model on disk: where it is, and a fingerprint that costs milliseconds whatever its size."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from bankdb.errors import BankError, listed, one_line
from bankdb.progress import quiet_loggers

_BLOCK = 65_536
_BLOCKS = 64
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


def model_fingerprint(folder: Path) -> str:
    """Return a hash of the configuration, and of the weight files' names, sizes and samples of their bytes.

    64 blocks of 64 KiB, evenly spread over each file, and of a file smaller than that all of it: another
    model of the same shapes differs in them.
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
    return digest.hexdigest()
