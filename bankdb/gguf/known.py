"""Which base model a bank's adapters are of, as far as writing them for llama.cpp has to know."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bankdb.errors import GgufError
from bankdb.gguf.base_model import (
    BASE_CONFIG,
    BaseModel,
    UnknownArchitectureError,
    checked_against,
    read_base_gguf,
    read_config,
)
from bankdb.gguf.placement import check_extra


def known_base_model(folders: Sequence[str | Path], base_gguf: str | Path | None) -> BaseModel:
    """Return what is known of a base model: from its GGUF if one is given, else from its config.json.

    Parameters
    ----------
    folders
        The bank's, and others in which a config.json may be, in the order in which they are looked into.
    base_gguf
        If there is a configuration too, the two have to agree.

    Raises
    ------
    GgufError
        Nothing is known, or it is no model whose adapters are written exactly.
    ParameterError
        The package gguf is not installed.
    """
    check_extra()
    bank = Path(folders[0])
    paths = [bank / BASE_CONFIG, *(Path(folder) / "config.json" for folder in folders[1:])]
    config = next((path for path in paths if path.is_file()), None)
    if base_gguf is not None:
        found, known = read_base_gguf(Path(base_gguf)), None if config is None else _if_whole(config)
        return found if known is None else checked_against(known, found)
    if config is None:
        raise GgufError(
            f"{paths[0]}: the base model's config.json was expected, which `bank init` keeps where it lies beside the "
            "tokenizer, none found; copy it there, or give the base model's GGUF with --base-gguf FILE"
        )
    return read_config(config)


def _if_whole(config: Path) -> BaseModel | None:
    """Return what a configuration says; nothing of one that lacks what a GGUF has."""
    try:
        return read_config(config)
    except UnknownArchitectureError:
        raise
    except GgufError:
        return None
