"""Frozen records that leave the catalogue and pass between modules; never ORM objects."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePath

_LIBRARIES = ("lora-bank", "dask", "distributed", "numpy", "scipy", "zarr", "transformers", "safetensors")
HUB_PREFIX = "hub:"
"""What a hub reference begins with where a local path could stand too."""

DERIVED_KINDS = ("distributions", "distances", "gram", "predictions", "neural", "losses", "initialisation")
"""What is derived from a bank, as the folders of its arrays are called."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One adapter and the dataset it was trained on, both on local disk, ready to be read.

    Attributes
    ----------
    name
        Unique name in the bank.
    adapter
        Folder with `adapter_config.json` and `adapter_model.safetensors`.
    dataset
        Files of the training split, in reading order.
    adapter_source, dataset_source
        What is recorded as the origin: an absolute path, or a hub id.
    adapter_revision, dataset_revision
        Full commit hash for a hub source, else None.
    group
        Datasets that share a source share a group.
    licence
        As stated by the source, if known.
    notes
        How the adapter was found, where that is to be said; a line each.
    weights_sha256
        Of the weights' file, where it was found to be that a moment ago, as what is downloaded is.
    """

    name: str
    adapter: Path
    dataset: tuple[Path, ...]
    adapter_source: str
    dataset_source: str
    adapter_revision: str | None = None
    dataset_revision: str | None = None
    group: str | None = None
    licence: str | None = None
    notes: tuple[str, ...] = ()
    weights_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class PairReference:
    """A pair as a folder, manifest or hub argument names it, before anything is read or downloaded.

    `adapter` and `dataset` are local paths, or `hub:OWNER/NAME[@REVISION]`.
    """

    name: str
    adapter: str
    dataset: str
    group: str | None = None
    licence: str | None = None


@dataclass(frozen=True, slots=True)
class RefusedPair:
    """A pair that was refused, by name, with the one-line reason."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Taking:
    """What may be assumed of adapters, or done to them, so that they fit a bank.

    Attributes
    ----------
    assume_base_model
        One whose configuration names no base model is of the bank's.
    adapt_rank
        One of another rank is padded with zeros, or cut.
    """

    assume_base_model: bool = False
    adapt_rank: bool = False


AS_IT_COMES = Taking()
"""Nothing is assumed, and nothing done that changes a number."""
AS_BEFORE = Taking(assume_base_model=True, adapt_rank=True)
"""Of an adapter that was taken before; its hashes tell whether it is the same."""


@dataclass(frozen=True, slots=True)
class BankRecord:
    """What a bank is. Everything from `layout` on is None until the first adapter sets it.

    `scaling` is the factor on B A that every row is brought to when adapters are combined:
    `alpha / rank`, or `alpha / sqrt(rank)` with rank-stabilised LoRA.
    """

    identity: str
    format_version: int
    base_model: str
    base_model_aliases: tuple[str, ...]
    base_model_revision: str | None
    tokenizer_name: str
    tokenizer_fingerprint: str
    vocabulary: int
    text_rule: str
    next_row: int
    layout: str | None
    parameters: int | None
    alpha: float | None
    use_rslora: bool | None
    scaling: float | None
    dtype: str | None
    task_type: str | None
    created: str


@dataclass(frozen=True, slots=True)
class AdapterRecord:
    """A ready adapter together with the dataset that it was trained on.

    `checksums` are those of its row's chunks, little-endian uint32: see `bankdb.arrays.adapter_store.StoredRow`. None
    in a bank of a version that kept none, until its row is read the next time.
    """

    name: str
    row: int
    rank: int
    alpha: float
    use_rslora: bool
    scaling: float
    dtype: str
    source: str
    revision: str | None
    source_sha256: str
    header_sha256: str
    config_sha256: str
    row_sha256: str
    licence: str | None
    created: str
    group: str | None
    dataset_source: str
    dataset_revision: str | None
    content_sha256: str
    examples: int
    tokens: int
    checksums: bytes | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class NewAdapter:
    """All that the catalogue stores of a pair when it becomes ready; its row is already on disk.

    `text_rule` is by which the dataset's rows became the texts whose tokens are counted; None is the
    bank's own.
    """

    name: str
    row: int
    rank: int
    alpha: float
    use_rslora: bool
    scaling: float
    dtype: str
    source: str
    revision: str | None
    source_sha256: str
    header: bytes
    config: str
    row_sha256: str
    licence: str | None
    group: str | None
    dataset_source: str
    dataset_revision: str | None
    content_sha256: str
    examples: int
    ids: bytes
    counts: bytes
    tokens: int
    text_rule: str | None = None
    checksums: bytes | None = None


@dataclass(frozen=True, slots=True)
class ReservedRow:
    """A row that an ingest reserved and has not made ready."""

    name: str
    row: int
    created: str


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A computation over the bank. `parameters` and `versions` are JSON objects."""

    id: int
    kind: str
    inputs_sha256: str
    parameters: str
    versions: str
    seed: int | None
    state: str
    created: str
    finished: str | None


@dataclass(frozen=True, slots=True)
class PredictionRecord:
    """A predicted adapter. Its coefficients are in the run's array.

    Version 0.1.0 kept them here too: `sources` are rows of the bank, `weights` their coefficients; empty since.
    """

    run_id: int
    target: str
    effective_sources: float
    relative_error: float | None
    exported_to: str | None = None
    export_dtype: str | None = None
    sources: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()


def library_versions() -> dict[str, str]:
    """Return the versions that a run's result may depend on; each is looked up once."""
    return dict(_versions())


@functools.cache
def _versions() -> dict[str, str]:
    import importlib.metadata

    return {name: importlib.metadata.version(name) for name in _LIBRARIES}


def now() -> str:
    """Return the time as ISO 8601 text in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, slots=True)
class GenerationKey:
    """What determines the answers: sha256 of the adapter, of the test examples, and of the settings."""

    adapter_sha256: str
    test_sha256: str
    settings_sha256: str


@dataclass(frozen=True, slots=True)
class GenerationRecord:
    """The answers of one adapter to the test examples of one dataset.

    Attributes
    ----------
    texts
        One for each example, in the order of the test split.
    new_tokens
        The limit on the tokens of an answer.
    seconds
        What it took.
    """

    key: GenerationKey
    texts: tuple[str, ...]
    new_tokens: int
    seconds: float
    created: str = ""


def is_hub_reference(text: str) -> bool:
    """Whether the adapter or dataset of a reference is on the hub rather than on local disk."""
    return text.startswith(HUB_PREFIX)


@functools.lru_cache(
    maxsize=1 << 16
)  # a bank's sources are named in every adapter that is combined from them
def published(source: str) -> str:
    """Where something came from, as strangers may read it: of a path of this machine, the last name alone."""
    named = source.startswith(HUB_PREFIX) or re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", source)
    return source if named else PurePath(source).name


def without_folders(text: str) -> str:
    """A message whose paths are their last names alone."""
    return re.sub(r"(?<![\w:/.])(?:~|\.{0,2})/(?:[^/\s'\"]+/)*(?=[^/\s])", "", text)
