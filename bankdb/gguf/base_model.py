"""What is known of a base model without its weights: its architecture and heads, from config.json or from its GGUF."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bankdb.errors import GgufError, listed, one_line
from bankdb.gguf.architectures import ARCHITECTURES, Architecture, by_llama_cpp
from bankdb.gguf.header import read_gguf
from bankdb.strict_json import parse_object

BASE_CONFIG = "base_config.json"
"""Copy of the base model's config.json in a bank's folder."""
_MOST_BYTES, _MOST_VALUES, _MOST_NUMBER = 1 << 20, 200_000, 1 << 24
_MOST_BLOCKS = 4096
_GIVE_GGUF = "give the base model's own with --base-gguf FILE"
MERGE = "`bank export --merge` writes the whole model, for which llama.cpp has one command"


@dataclass(frozen=True, slots=True)
class BaseModel:
    """What a GGUF adapter has to know of its base model.

    Attributes
    ----------
    architecture
        Its architecture.
    blocks
        Number of layers.
    heads, key_value_heads, head_size
        Of attention; None where it is not said.
    own_head
        Whether `lm_head` is a tensor of its own; None where it is not said.
    shapes
        Of a GGUF: rows and columns by name of every matrix.
    source
        What it was read from, as messages call it.
    gguf
        The name of its GGUF, where one was given.
    """

    architecture: Architecture
    blocks: int
    heads: int | None
    key_value_heads: int | None
    head_size: int | None
    own_head: bool | None
    source: str
    shapes: Mapping[str, tuple[int, ...]] | None = None
    gguf: str | None = None


def read_config(path: Path) -> BaseModel:
    """Read a base model's `config.json`.

    Raises
    ------
    GgufError
        It cannot be read, or its architecture is none whose adapters are written exactly.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it has more than {_MOST_BYTES >> 10} KiB")
        return of_config(path.read_bytes().decode("utf-8-sig"), str(path))
    except (OSError, ValueError) as error:
        raise GgufError(
            f"{path}: expected the base model's config.json, found one that cannot be read ({one_line(error)}); copy "
            f"it again, or {_GIVE_GGUF}"
        ) from error


def of_config(text: str, source: str) -> BaseModel:
    """Read the text of a `config.json`; messages call it `source`.

    Raises
    ------
    ValueError
        It is no JSON object.
    GgufError
        See `read_config`.
    """
    config = parse_object(text, most=_MOST_VALUES)
    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else None
    if name is None:
        raise GgufError(
            f"{source}: architectures was expected to name the base model's class, {one_line(repr(named), 80)} found; "
            f"copy the base model's own config.json, or {_GIVE_GGUF}"
        )
    if name not in ARCHITECTURES:
        raise _unknown(name, source)
    inner = config.get("text_config")
    found = {**config, **inner} if isinstance(inner, dict) else config
    heads, size = _number(found, "num_attention_heads", source), _number(found, "head_dim", source)
    hidden = _number(found, "hidden_size", source)
    if size is None and heads and hidden and hidden % heads == 0:
        size = hidden // heads
    tied = config.get("tie_word_embeddings", found.get("tie_word_embeddings"))
    return BaseModel(
        ARCHITECTURES[name],
        _blocks(_number(found, "num_hidden_layers", source), source),
        heads,
        _number(found, "num_key_value_heads", source),
        size,
        None if not isinstance(tied, bool) else not tied,
        source,
    )


def read_base_gguf(path: Path) -> BaseModel:
    """Read what a base model's GGUF says of it; of a file in several parts, the first.

    Raises
    ------
    GgufError
        It is no GGUF of a model, or of an architecture whose adapters are not written exactly.
    """
    found = read_gguf(path)
    keys, source = found.values, str(path)
    name = keys.get("general.architecture")
    if keys.get("general.type", "model") != "model" or not isinstance(name, str):
        raise GgufError(
            f"{path}: a base model's GGUF was expected, one of type {one_line(repr(keys.get('general.type')), 40)} "
            f"and architecture {one_line(repr(name), 40)} found; give the file that llama.cpp's -m takes"
        )
    if keys.get("split.count", 1) not in (0, 1):
        raise GgufError(
            f"{path}: the GGUF of a whole model was expected, one of {keys['split.count']} parts found; join them with "
            "llama-gguf-split --merge"
        )
    architecture = by_llama_cpp(name)
    if architecture is None:
        raise _unknown(name, source)
    heads = _every(keys, f"{name}.attention.head_count", source)
    size = _every(keys, f"{name}.attention.key_length", source)
    width = _every(keys, f"{name}.embedding_length", source)
    if size is None and heads and width and width % heads == 0:
        size = width // heads
    return BaseModel(
        architecture,
        _blocks(_every(keys, f"{name}.block_count", source), source),
        heads,
        _every(keys, f"{name}.attention.head_count_kv", source),
        size,
        "output.weight" in found.shapes,
        source,
        found.shapes,
        path.name,
    )


def checked_against(config: BaseModel, gguf: BaseModel) -> BaseModel:
    """Return the GGUF's, if it is of the model that the configuration is of.

    Raises
    ------
    GgufError
        The two differ.
    """
    differences = [
        f"{what} {ours} expected, {theirs} found"
        for what, ours, theirs in (
            ("architecture", config.architecture.name, gguf.architecture.name),
            ("layers", config.blocks, gguf.blocks),
            ("heads", config.heads, gguf.heads),
            ("key-value heads", config.key_value_heads, gguf.key_value_heads),
            ("head size", config.head_size, gguf.head_size),
        )
        if ours is not None and theirs is not None and ours != theirs
    ]
    if differences:
        raise GgufError(
            f"{gguf.source}: not the base model of {config.source}: {'; '.join(differences)}; give the GGUF of the "
            "bank's base model"
        )
    return gguf


def config_worth_keeping(folders: tuple[str, ...]) -> bytes | None:
    """Return the first `config.json` in some folders that names a model's class.

    Nothing is refused here: it may never be needed.
    """
    for folder in folders:
        path = Path(folder).expanduser() / "config.json"
        try:
            if not os.path.isfile(path) or path.stat().st_size > _MOST_BYTES:
                continue
            content = path.read_bytes()
            if parse_object(content.decode("utf-8-sig"), most=_MOST_VALUES).get("architectures"):
                return content
        except (OSError, ValueError):
            continue
    return None


class UnknownArchitectureError(GgufError):
    """A base model of an architecture whose adapters are not written exactly."""


def _unknown(name: str, source: str) -> GgufError:
    known = listed(sorted({one.name for one in ARCHITECTURES.values()}), 60)
    return UnknownArchitectureError(
        f"{source}: architecture {one_line(ascii(name), 80)} is none whose adapters are written as GGUF exactly "
        f"({known}); {MERGE}"
    )


def _blocks(number: int | None, source: str) -> int:
    if number is None or not 0 < number <= _MOST_BLOCKS:
        raise GgufError(
            f"{source}: the number of layers was expected, 1 to {_MOST_BLOCKS}, {number} found; give the base model's "
            "own file"
        )
    return number


def _number(config: Mapping[str, Any], key: str, source: str) -> int | None:
    value = config.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < _MOST_NUMBER:
        raise GgufError(
            f"{source}: {key} was expected to be a positive whole number, {one_line(repr(value), 40)} found; copy the "
            f"base model's own config.json, or {_GIVE_GGUF}"
        )
    return value


def _every(keys: Mapping[str, Any], key: str, source: str) -> int | None:
    """Return a number, or that of every layer; one that differs from layer to layer is refused."""
    value = keys.get(key)
    several = set(value) if isinstance(value, list) else {value}
    if several == {None}:
        return None
    one = several.pop() if len(several) == 1 else None
    if not isinstance(one, int) or isinstance(one, bool) or not 0 < one < _MOST_NUMBER:
        raise GgufError(
            f"{source}: {key} was expected to be one positive whole number for all layers, "
            f"{one_line(repr(value), 60)} found; {MERGE}"
        )
    return one
