"""Whether an adapter can be computed with, and whether what a bank's database says of adapters is what they say."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from bankdb.errors import AdapterError, BankFormatError, listed
from bankdb.peft.config import CONFIG_NAME, AdapterConfig, is_rendered, parse_config, scaling
from bankdb.peft.conversion.source_layout import source_layout
from bankdb.peft.header import parse_header
from bankdb.peft.layout import A_SUFFIX, AdapterLayout, modules_of
from bankdb.peft.model_card import PROVENANCE_NAME
from bankdb.peft.names import tensor_names
from bankdb.peft.targets import Selection
from bankdb.peft.weights import WEIGHTS_NAME, SourceAdapter, dtype_of, is_base_model
from bankdb.records import AdapterRecord, BankRecord

# Outside of these, float32 loses what is computed. With scalings within 1e8 of each other, a weight that is brought to
# another's scaling lies in 1e-18 to 1e14; its square, in 1e-36 to 1e28, and the sum of 1e9 squares are normal numbers.
SCALINGS, LARGEST_WEIGHTS = (1e-4, 1e4), (1e-10, 1e6)
PREDICTED = (
    "a prediction, not trained: a source like the others, but of its own dataset no measure of training"
)
_AGAIN = "restore the database from a copy, or make the bank anew: `bank init`, `bank ingest`"


def notes_on(adapter: SourceAdapter, folder: Path) -> tuple[str, ...]:
    """Check an adapter's range, and return what is to be said of it, a line each: see `check_range`."""
    notes = (*adapter.notes, *check_range(adapter, folder))
    if is_rendered(adapter.config.text):
        return (*notes, PREDICTED)
    if (folder / PROVENANCE_NAME).is_file():
        return (
            *notes,
            f"beside it lies the {PROVENANCE_NAME} of a prediction, and another configuration than a prediction's: "
            "taken for trained since",
        )
    return notes


def check_range(adapter: SourceAdapter, folder: Path) -> tuple[str, ...]:
    """Check that float32 can hold what is computed with an adapter; return a note if it does nothing.

    Raises
    ------
    AdapterError
        Its scaling is not from 1e-4 to 1e4, or its largest weight not from 1e-10 to 1e6.
    """
    low, high = SCALINGS
    factor = adapter.config.scaling
    if not low <= factor <= high:
        raise AdapterError(
            f"{folder / CONFIG_NAME}: a scaling (lora_alpha / r) from {low:g} to {high:g} was expected, {factor:g} "
            "found: beyond it float32 loses the weights; train with another lora_alpha"
        )
    low, high = LARGEST_WEIGHTS
    vector = adapter.vector
    largest = max(float(vector.max()), -float(vector.min()))
    if not low <= largest <= high:
        raise AdapterError(
            f"{folder / WEIGHTS_NAME}: weights whose largest is from {low:g} to {high:g} were expected, {largest:g} "
            "found: beyond it float32 loses their squares; train it again"
        )
    if any(vector[start:stop].any() for start, stop in adapter.layout.b_segments()):
        return ()
    return ("every lora_B is zero: the adapter does nothing, as before its first step of training",)


@dataclass(frozen=True, slots=True)
class StoredAdapter:
    """What the header and the configuration that a bank keeps of an adapter say."""

    config: AdapterConfig
    layout: AdapterLayout
    dtype: str


@functools.lru_cache(maxsize=64)
def stored_adapter(header: bytes, config: bytes) -> StoredAdapter:
    """Read the stored header and configuration of an adapter.

    Raises
    ------
    BankFormatError
        They are not those of an adapter that can be stored.
    """
    try:
        found = parse_config(config.decode("utf-8"), Path(CONFIG_NAME))
        entries = parse_header(header, Path(WEIGHTS_NAME))
        layout = source_layout(entries, found, Path(WEIGHTS_NAME)).layout
    except (AdapterError, UnicodeDecodeError) as error:
        raise BankFormatError(f"the stored header or configuration is refused: {error}; {_AGAIN}") from error
    return StoredAdapter(found, layout, dtype_of(entries))


@functools.lru_cache(maxsize=8)
def checked_layout(text: str, header: bytes | None) -> AdapterLayout:
    """Return a bank's layout, compared with the header of one of its adapters; None where it has none.

    Raises
    ------
    BankFormatError
        The text is no layout, or not that of the header.
    """
    layout = AdapterLayout.from_json(text)
    if header is None:
        return layout
    path = Path(WEIGHTS_NAME)
    try:
        entries = parse_header(header, path)
        names = tensor_names([entry.name for entry in entries], path)
    except AdapterError as error:
        raise BankFormatError(f"the stored header of an adapter is refused: {error}; {_AGAIN}") from error
    shapes = {names.clean(entry.name): entry.shape for entry in entries}
    ranks = [shape[0] for name, shape in shapes.items() if name.endswith(A_SUFFIX)]
    own = AdapterLayout.from_shapes(
        shapes, max(ranks, default=1), layout.target_modules, layout.fan_in_fan_out
    )
    found = layout.differences(own) or _target_differences(own)
    if found:
        raise BankFormatError(
            f"the bank's layout is not that of its adapters' own headers: {'; '.join(found)}; {_AGAIN}"
        )
    return layout


def _target_differences(layout: AdapterLayout) -> list[str]:
    selection, modules = Selection(layout.target_modules), [module.name for module in modules_of(layout)]
    wrong = [*selection.idle(modules), *sorted(set(modules) - selection.selected(modules))]
    return [f"target modules select other modules than have tensors: {listed(wrong, 3)}"] if wrong else []


def check_bank(bank: BankRecord, layout: AdapterLayout) -> None:
    """Compare what a bank's record says of its adapters with itself.

    Raises
    ------
    BankFormatError
        Scaling or number of parameters do not follow from the others.
    """
    if bank.alpha is None or bank.use_rslora is None:
        raise BankFormatError(f"the bank has a layout but no scaling; {_AGAIN}")
    expected = scaling(bank.alpha, layout.rank, bank.use_rslora), layout.size
    if (bank.scaling, bank.parameters) != expected:
        raise BankFormatError(
            f"the bank's scaling and parameters {expected} expected from its alpha {bank.alpha}, use_rslora "
            f"{bank.use_rslora} and layout, {(bank.scaling, bank.parameters)} found; {_AGAIN}"
        )


def check_scalings(adapters: Iterable[AdapterRecord], rank: int) -> None:
    """Compare the scalings that adapters are combined by with what each follows from.

    Raises
    ------
    BankFormatError
        One does not, or an adapter's rank is not the bank's.
    """
    for one in adapters:
        if one.rank != rank or one.scaling != scaling(one.alpha, rank, one.use_rslora):
            raise BankFormatError(
                f"{one.name}: the scaling {one.scaling} is not that of rank {rank}, alpha {one.alpha} and use_rslora "
                f"{one.use_rslora}; remove and ingest it again"
            )


def stored_differences(bank: BankRecord, record: AdapterRecord, header: bytes, config: bytes) -> list[str]:
    """Say where the database differs from an adapter's own header and configuration."""
    own = stored_adapter(header, config)
    if own.config.alpha.is_integer():  # as files have it
        own = replace(own, config=replace(own.config, alpha=int(own.config.alpha)))
    rank, alpha, rslora = own.config.rank, own.config.alpha, own.config.use_rslora
    expected = (rank, alpha, rslora, own.config.scaling)
    found = (record.rank, record.alpha, record.use_rslora, record.scaling)
    differences = []
    if found != expected:
        differences.append(
            f"rank, alpha, use_rslora and scaling {expected} expected from its configuration, {found} found in "
            "the database"
        )
    if record.dtype != own.dtype:
        differences.append(
            f"dtype {own.dtype} expected from its header, {record.dtype} found in the database"
        )
    if not is_base_model(own.config.base_model, (bank.base_model, *bank.base_model_aliases)):
        differences.append(
            f"base model {own.config.base_model!r} in its configuration, not one of the bank's"
        )
    if own.config.revision != bank.base_model_revision:
        differences.append(
            f"revision {own.config.revision!r} of the base model in its configuration, "
            f"{bank.base_model_revision!r} in the bank"
        )
    if bank.layout is not None:
        differences += AdapterLayout.from_json(bank.layout).differences(own.layout)
    return differences


def check_fits(bank: BankRecord, layout: AdapterLayout, name: str, adapter: SourceAdapter) -> None:
    """Raise AdapterError unless an adapter is of a bank's layout and of its base model's revision."""
    found = layout.differences(adapter.layout)
    if found:
        raise AdapterError(f"{name}: not of the bank's layout: {'; '.join(found)}")
    if adapter.config.revision != bank.base_model_revision:
        raise AdapterError(other_revision(name, bank.base_model_revision, adapter.config.revision))


def other_revision(what: str, expected: str | None, found: str | None) -> str:
    """Return the message for an adapter of another revision of the base model."""
    return (
        f"{what}: trained on revision {found!r} of the base model, the bank's adapters on {expected!r}; "
        "keep them in separate banks"
    )
