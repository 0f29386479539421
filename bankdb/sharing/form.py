"""The form in which a bank travels: which files there are, what their records say, and how strictly they are read.

    SHA256SUMS           of every file below, as `sha256sum -c` reads it; written last
    shared_bank.json     what all adapters have in common: see `About`
    catalogue.jsonl      an adapter a line: see `SharedAdapter`
    tokenizer/           the bank's tokenizer
    base_config.json     the base model's config.json, where the bank has kept it
    adapters/NAME/       adapter_config.json, adapter_model.safetensors, token_counts.safetensors
    README.md            the card, which whoever keeps the place may edit

Files are found by names that are made here of names that were checked, never by what a catalogue says.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from bankdb.datasets.forms.rules import TEXT_RULE, Rule
from bankdb.errors import BankError, BankFormatError, SourceError, one_line
from bankdb.peft.config import scaling
from bankdb.peft.layout import AdapterLayout
from bankdb.records import published
from bankdb.sources.pairs import check_name, name_key
from bankdb.strict_json import json_type, parse_object

SUMS, ABOUT, CATALOGUE, CARD = "SHA256SUMS", "shared_bank.json", "catalogue.jsonl", "README.md"
TOKENIZER, BASE_CONFIG, ADAPTERS = "tokenizer", "base_config.json", "adapters"
CONFIG, WEIGHTS, COUNTS = "adapter_config.json", "adapter_model.safetensors", "token_counts.safetensors"
_FORMAT, _VERSION = "lora-bank", 1
# Bytes that a file of the form may have; those of weights and counts follow from the bank.
MOST_BYTES = {SUMS: 64 << 20, ABOUT: 32 << 20, CATALOGUE: 256 << 20, BASE_CONFIG: 1 << 20}
MOST_TOKENIZER_BYTES = 256 << 20
_LONGEST_LINE, _MOST_VALUES, _MOST_ADAPTERS = 1 << 20, 2_000_000, 1_000_000
_SUM = re.compile(r"([0-9a-f]{64})  ([^\0-\x1f\x7f]{1,1000})")
_SHA256, _COMMIT = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")
_DTYPES = ("float32", "float16", "bfloat16", "mixed")


@dataclass(frozen=True, slots=True)
class About:
    """What all adapters of a bank have in common: see `bankdb.records.BankRecord`, whose fields have these names."""

    base_model: str
    base_model_aliases: tuple[str, ...]
    base_model_revision: str | None
    tokenizer_name: str
    tokenizer_fingerprint: str
    vocabulary: int
    text_rule: str
    layout: str
    parameters: int
    alpha: float
    use_rslora: bool
    scaling: float
    dtype: str
    task_type: str | None
    adapters: int


@dataclass(frozen=True, slots=True)
class SharedAdapter:
    """An adapter and its dataset as they travel: see `bankdb.records.AdapterRecord`, whose fields have these names."""

    name: str
    group: str | None
    licence: str | None
    source: str
    revision: str | None
    source_sha256: str
    dataset_source: str
    dataset_revision: str | None
    content_sha256: str
    examples: int
    tokens: int
    text_rule: str
    rank: int
    alpha: float
    use_rslora: bool
    scaling: float
    dtype: str
    row_sha256: str

    @property
    def folder(self) -> str:
        """Where its files are."""
        return f"{ADAPTERS}/{self.name}"


def about_text(about: About) -> bytes:
    """Return the file ABOUT."""
    content = {"format": _FORMAT, "version": _VERSION, **asdict(about), "layout": json.loads(about.layout)}
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def catalogue_text(adapters: Iterable[SharedAdapter]) -> bytes:
    """Return the file CATALOGUE."""
    return "".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in adapters).encode()


def sums_text(sums: Mapping[str, str]) -> bytes:
    """Return the file SUMS, of hashes by path."""
    return "".join(f"{sums[path]}  {path}\n" for path in sorted(sums)).encode()


def read_sums(data: bytes, where: str) -> dict[str, str]:
    """Return hashes by path. Raises BankFormatError where a line is none, or a path is given twice."""
    found: dict[str, str] = {}
    for number, line in enumerate(_text(data, f"{where}: {SUMS}").splitlines(), 1):
        match = _SUM.fullmatch(line)
        if match is None or match[2] in found:
            what = "is no hash with a path" if match is None else "names a path again"
            raise BankFormatError(f"{where}: {SUMS}: line {number} {what}; {AGAIN}")
        found[match[2]] = match[1]
    return found


AGAIN = "ask whoever shares it to push it again"


def read_about(data: bytes, where: str) -> About:
    """Read and check the file ABOUT.

    Raises
    ------
    BankFormatError
        It is none, of another version, or contradicts itself.
    """
    place = f"{where}: {ABOUT}"
    try:
        content = parse_object(_text(data, place), most=_MOST_VALUES)
        if content.pop("format", None) != _FORMAT:
            raise ValueError(f"format {_FORMAT!r} was expected")
        if (version := content.pop("version", None)) != _VERSION:
            raise ValueError(
                f"version {_VERSION} was expected, {one_line(repr(version), 40)} found: upgrade lora-bank"
            )
        layout = content.get("layout")
        if not isinstance(layout, dict):
            raise ValueError(f"layout: an object was expected, {json_type(layout)} found")
        content["layout"] = json.dumps(layout, separators=(",", ":"))
        found: About = _record(About, content, _OF_ABOUT)
        _check_about(found)
    except (ValueError, BankError) as error:
        raise BankFormatError(f"{place}: {one_line(error, 300)}; {AGAIN}") from None
    return found


def _check_about(about: About) -> None:
    try:
        layout = AdapterLayout.from_json(about.layout)
    except BankFormatError:
        raise ValueError(
            "layout: rank, target_modules, fan_in_fan_out and tensors were expected, others found"
        ) from None
    if layout.size != about.parameters or about.scaling != scaling(
        about.alpha, layout.rank, about.use_rslora
    ):
        raise ValueError(
            "parameters and scaling were expected to follow from its layout, alpha and use_rslora"
        )
    if about.text_rule != TEXT_RULE:
        raise ValueError(f"tokens counted by the rule {TEXT_RULE!r} were expected, {about.text_rule!r} found")
    for name in (about.base_model, about.tokenizer_name, *about.base_model_aliases):
        if not name or published(name) != name:
            raise ValueError(f"the name of a model was expected, {name!r} found, a path")


def read_catalogue(data: bytes, about: About, where: str) -> tuple[SharedAdapter, ...]:
    """Read and check the file CATALOGUE: each record by itself, and their names against each other.

    Raises
    ------
    BankFormatError
        A line is none of an adapter; it is named by its number.
    """
    place, found, names = f"{where}: {CATALOGUE}", list[SharedAdapter](), dict[str, str]()
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line and number > about.adapters:
            continue
        try:
            if len(line) > _LONGEST_LINE or number > _MOST_ADAPTERS:
                raise ValueError(f"at most {_MOST_ADAPTERS:,} lines of {_LONGEST_LINE:,} bytes were expected")
            one = _record(SharedAdapter, parse_object(line.decode("utf-8"), most=1000), _OF_ADAPTER)
            _check_adapter(one, about)
            if (other := names.setdefault(name_key(one.name), one.name)) != one.name or len(names) <= len(
                found
            ):
                raise ValueError(f"the name {one.name!r} is there already, as {other!r}")
        except (ValueError, BankError) as error:
            raise BankFormatError(f"{place}, line {number}: {one_line(error, 300)}; {AGAIN}") from None
        found.append(one)
    if len(found) != about.adapters:
        raise BankFormatError(
            f"{place}: {about.adapters} adapters were expected, {len(found)} found; {AGAIN}"
        )
    return tuple(found)


def _check_adapter(one: SharedAdapter, about: About) -> None:
    try:
        check_name(one.name)
    except SourceError as error:
        raise ValueError(str(error)) from None
    for what in (one.source, one.dataset_source):
        if published(what) != what:
            raise ValueError(
                f"{one.name}: a name, or one on the hub, was expected as source, {what!r} found, a path"
            )
    if one.scaling != scaling(one.alpha, one.rank, one.use_rslora):
        raise ValueError(f"{one.name}: scaling was expected to follow from alpha, rank and use_rslora")
    if one.text_rule != about.text_rule and not one.text_rule.startswith(f"{about.text_rule}; "):
        raise ValueError(
            f"{one.name}: tokens counted by {about.text_rule!r} were expected, {one.text_rule!r} found"
        )
    Rule.of_text(one.text_rule)


def _record(kind: type[Any], content: Mapping[str, Any], rules: Mapping[str, Any]) -> Any:
    """Return a record of JSON, each of its values checked by its rule; no key is lacking, or more."""
    names = {item.name for item in fields(kind)}
    if content.keys() != names:
        odd = sorted(content.keys() ^ names)[0]
        raise ValueError(f"the key {one_line(repr(odd), 60)} is {'lacking' if odd in names else 'not known'}")
    return kind(**{name: rules[name](name, content[name]) for name in names})


def _wrong(key: str, expected: str, value: Any) -> ValueError:
    found = one_line(repr(value), 60) if isinstance(value, str | int | float) else json_type(value)
    return ValueError(f"{key}: {expected} was expected, {found} found")


def _line(key: str, value: Any) -> str:
    if isinstance(value, str) and value.isprintable() and 0 < len(value) <= 4096:
        return value
    raise _wrong(key, "a line of text", value)


def _maybe_line(key: str, value: Any) -> str | None:
    return None if value is None else _line(key, value)


def _lines(key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > 1000:
        raise _wrong(key, "a list of names", value)
    return tuple(_line(key, one) for one in value)


def _layout(key: str, value: str) -> str:
    return value


def _matching(pattern: re.Pattern[str], expected: str) -> Any:
    def check(key: str, value: Any) -> str:
        if isinstance(value, str) and pattern.fullmatch(value):
            return value
        raise _wrong(key, expected, value)

    return check


_hash = _matching(_SHA256, "64 hexadecimal digits")


def _commit(key: str, value: Any) -> str | None:
    return None if value is None else str(_matching(_COMMIT, "a commit's 40 hexadecimal digits")(key, value))


def _one_of(*names: str) -> Any:
    return _matching(re.compile("|".join(map(re.escape, names))), f"one of {', '.join(names)}")


def _whole(most: int) -> Any:
    def check(key: str, value: Any) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= most:
            return value
        raise _wrong(key, f"a whole number from 1 to {most:,}", value)

    return check


def _positive(key: str, value: Any) -> float:
    if (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and 0 < value < 2**64
        and math.isfinite(value)
    ):
        return float(value)
    raise _wrong(key, "a positive number", value)


def _boolean(key: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise _wrong(key, "true or false", value)


_RULE_OF = {"alpha": _positive, "scaling": _positive, "use_rslora": _boolean, "dtype": _one_of(*_DTYPES)}
_OF_ABOUT = {
    **_RULE_OF,
    **dict.fromkeys(("base_model", "tokenizer_name", "text_rule"), _line),
    **dict.fromkeys(("base_model_revision", "task_type"), _maybe_line),
    "base_model_aliases": _lines,
    "tokenizer_fingerprint": _hash,
    "vocabulary": _whole(1 << 22),
    "layout": _layout,
    "parameters": _whole(1 << 40),
    "adapters": _whole(_MOST_ADAPTERS),
}
_OF_ADAPTER = {
    **_RULE_OF,
    **dict.fromkeys(("name", "source", "dataset_source", "text_rule"), _line),
    **dict.fromkeys(("group", "licence"), _maybe_line),
    **dict.fromkeys(("revision", "dataset_revision"), _commit),
    **dict.fromkeys(("source_sha256", "content_sha256", "row_sha256"), _hash),
    "rank": _whole(2**31 - 1),
    "examples": _whole(2**31 - 1),
    "tokens": _whole(2**62),
}


def _text(data: bytes, place: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise BankFormatError(f"{place}: UTF-8 text was expected, other bytes found; {AGAIN}") from None


def with_aliases(about: About, names: Iterable[str]) -> About:
    """Return it with other names of the base model: those that are no path."""
    return replace(about, base_model_aliases=tuple(name for name in names if published(name) == name))
