"""What files of a bank say of the machine that they were made on, left out before anybody else reads them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

from bankdb.errors import BankFormatError, ConflictError
from bankdb.peft.config import CONFIG_NAME, parse_config, restated
from bankdb.peft.header import without_metadata
from bankdb.records import published
from bankdb.strict_json import parse_object

_BASE_MODEL = "base_model_name_or_path"
# Patterns of modules, which may begin with anything.
_NO_PATHS = ("target_modules", "exclude_modules", "layers_pattern")
# What transformers writes of where it found things.
_OF_FOLDERS = re.compile(r"_?name_or_path|\w+_file|cache_dir|tokenizer_name")
_PATH = re.compile(r"(?:~[^/\s]*|\.{1,2})?/[^\n]*|[A-Za-z]:[\\/][^\n]*|file:[^\n]*")
_HOLDS_PATH = re.compile(r"(?<![\w.:/])(?:~|\.{0,2})/(?:[^/\s'\"]+/)+|[A-Za-z]:[\\/]\w|file:/")


def shared_name(base_model: str, known: str) -> str:
    """Return a base model's name for others: of a path the bank's own, or the last name of that."""
    return base_model if published(base_model) == base_model else published(known)


def shared_config(text: str, base_model: str) -> str:
    """Return an `adapter_config.json` without this machine's paths, which states the base model by one name.

    Text in which nothing has to change stays as it is, byte for byte.

    Parameters
    ----------
    base_model
        The name of the base model for others.
    """
    options = parse_object(text)
    changes = {
        key: without_paths(value)
        for key, value in options.items()
        if key not in _NO_PATHS and without_paths(value) != value
    }
    if options.get(_BASE_MODEL) != base_model:
        changes[_BASE_MODEL] = base_model
    if not changes:
        return text
    return restated(parse_config(text, Path(CONFIG_NAME)), **changes).text


def shared_header(header: bytes) -> bytes:
    """Return a safetensors header without metadata that name a folder; the same bytes where none does."""
    metadata = parse_object(header.decode("utf-8")).get("__metadata__") or {}
    named = [key for key, value in metadata.items() if _HOLDS_PATH.search(value) or _PATH.fullmatch(value)]
    return without_metadata(header, named) if named else header


def shared_settings(data: bytes) -> bytes:
    """Return a configuration of a tokenizer or a model without the places where its files were; else the same bytes."""
    try:
        content = parse_object(data.decode("utf-8-sig"))
    except ValueError as error:
        raise BankFormatError(f"a JSON object was expected, none found ({error})") from None
    found = {
        key: value
        for key, value in content.items()
        if not (_OF_FOLDERS.fullmatch(key) and isinstance(value, str) and published(value) != value)
    }
    if found == content:
        return data
    return (json.dumps(found, indent=2, ensure_ascii=False) + "\n").encode()


def without_paths(value: Any) -> Any:
    """Return a value of JSON in which a text that is a path is its last name."""
    if isinstance(value, str):
        return PurePath(value.replace("\\", "/")).name if _PATH.fullmatch(value) else value
    if isinstance(value, list):
        return [without_paths(one) for one in value]
    if isinstance(value, Mapping):
        return {key: without_paths(one) for key, one in value.items()}
    return value


def own_places(bank: Path, sources: Iterable[str]) -> tuple[bytes, ...]:
    """Return paths that no published byte may hold: the bank's, the user's, and where the bank's pairs came from."""
    folders = {bank.absolute(), bank.resolve(), Path.home(), Path.cwd()}
    folders |= {Path(source).parent for source in sources if source.startswith("/")}
    # One of a single name, such as /data, is told from any text by the slash after it.
    return tuple(sorted({f"{folder}/".encode() for folder in folders if len(folder.parts) > 1}))


def check_tells_nothing(files: Mapping[str, bytes], places: Iterable[bytes]) -> None:
    """Raise ConflictError if one of some files holds one of some paths."""
    for path, data in files.items():
        for place in places:
            if place in data:
                raise ConflictError(
                    f"{path}: would tell others of {place.decode(errors='replace')} on this machine; rename what "
                    "is called so there, or leave that adapter out"
                )
