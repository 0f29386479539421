"""JSON objects from files that strangers wrote, read without the leniences of the standard parser."""

from __future__ import annotations

import json
import re
from typing import Any

from bankdb.errors import one_line

_HALF_A_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


def parse_object(text: str, *, most: int | None = None) -> dict[str, Any]:
    """Parse one JSON object, refusing what two readers could understand differently.

    Refused beyond what `json.loads` refuses: a value that is not an object, a key given twice, NaN and
    Infinity, nesting deeper than the parser can follow, and escapes that are no Unicode text (lone
    surrogates), which could be neither printed nor stored.

    Parameters
    ----------
    text
        The object.
    most
        Refuse a text of more commas and opening brackets than this before it is parsed: each value takes some 200
        bytes, however short it is.

    Raises
    ------
    ValueError
        With a one-line reason that does not name the file: callers do.
    """
    if most is not None and sum(map(text.count, ",[{")) > most:
        raise ValueError(f"it has more than {most} values")
    try:
        value = json.loads(text, object_pairs_hook=unique_keys, parse_constant=_refuse_constant)
        if _HALF_A_PAIR.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("it has escapes that are no Unicode text") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} in line {error.lineno}, column {error.colno}") from None
    if not isinstance(value, dict):
        raise ValueError(f"an object was expected, {json_type(value)} found")
    return value


def json_type(value: Any) -> str:
    """Name a parsed value's type in JSON's own words, with its article."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "an array" if isinstance(value, list) else "an object"


class RepeatedKeyError(ValueError):
    """An object gives a key twice; `key` is it, as messages show it."""

    def __init__(self, key: str) -> None:
        self.key = one_line(repr(key), 60)
        super().__init__(f"the key {self.key} is given twice")


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object's keys and values, for `object_pairs_hook`. Raises RepeatedKeyError."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise RepeatedKeyError(key)
            seen.add(key)
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")
