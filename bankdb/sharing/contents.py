"""What a bank gives away: which of its adapters, and the files of each, without this machine's paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, TypeVar

from bankdb.errors import BankNotFoundError, ConflictError, listed
from bankdb.gguf.base_model import BASE_CONFIG as KEPT_CONFIG
from bankdb.records import AdapterRecord, published
from bankdb.sharing.form import (
    BASE_CONFIG,
    CONFIG,
    COUNTS,
    TOKENIZER,
    WEIGHTS,
    About,
    SharedAdapter,
    with_aliases,
)
from bankdb.sharing.licences import forbids, is_stated
from bankdb.sharing.privacy import (
    check_tells_nothing,
    own_places,
    shared_config,
    shared_header,
    shared_name,
    shared_settings,
)

if TYPE_CHECKING:
    from bankdb.bank import AdapterBank

_T = TypeVar("_T")
FORBIDDEN = "whose licence forbids passing on what is made of it"
UNLICENSED = "that state no licence"


@dataclass(slots=True)
class Chosen:
    """Adapters to be given away, by row, and the names of those that are not, by reason."""

    adapters: list[AdapterRecord] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)


def named(every: Mapping[str, _T], names: Sequence[str], where: str) -> dict[str, _T]:
    """Return those of some things that are named, by name or by a pattern such as `task1*`; all where none is.

    Raises
    ------
    BankNotFoundError
        A name or pattern is of none.
    """
    if not names:
        return dict(every)
    found = {name for name in names if name in every}
    for pattern in (name for name in names if name not in every):
        matching = {name for name in every if fnmatchcase(name, pattern)}
        if not matching:
            raise BankNotFoundError(
                f"{where}: no adapter is called {pattern}; there are {listed(sorted(every), 10)}"
            )
        found |= matching
    return {name: one for name, one in every.items() if name in found}


def chosen(bank: AdapterBank, names: Sequence[str], include_unlicensed: bool) -> Chosen:
    """Return which adapters of a bank may be given away.

    Raises
    ------
    BankNotFoundError
        The bank has none, or none of a name.
    ConflictError
        None of them may.
    """
    from bankdb.bank import ready_adapters

    found = Chosen()
    asked = named({one.name: one for one in ready_adapters(bank)}, names, str(bank.path))
    for record in asked.values():
        if forbids(record.licence):
            found.left_out.setdefault(FORBIDDEN, []).append(record.name)
        elif not is_stated(record.licence) and not include_unlicensed:
            found.left_out.setdefault(UNLICENSED, []).append(record.name)
        else:
            found.adapters.append(record)
    if not found.adapters:
        reasons = "; ".join(f"{len(gone)} {reason}" for reason, gone in found.left_out.items())
        raise ConflictError(
            f"{bank.path}: no adapter may be given away: {reasons}; state licences in the manifest and `bank ingest` "
            "it again, or pass --include-unlicensed if you may share them"
        )
    return found


def about_of(bank: AdapterBank, adapters: int) -> About:
    """Return what a bank's adapters have in common, for others."""
    record = bank.record
    layout = bank.layout  # checked
    assert record.alpha is not None
    assert record.use_rslora is not None
    assert record.scaling is not None
    base_model = published(record.base_model)
    about = About(
        base_model=base_model,
        base_model_aliases=(),
        base_model_revision=record.base_model_revision,
        tokenizer_name=shared_name(record.tokenizer_name, base_model),
        tokenizer_fingerprint=record.tokenizer_fingerprint,
        vocabulary=record.vocabulary,
        text_rule=record.text_rule,
        layout=str(record.layout),
        parameters=layout.size,
        alpha=record.alpha,
        use_rslora=record.use_rslora,
        scaling=record.scaling,
        dtype=str(record.dtype),
        task_type=record.task_type,
        adapters=adapters,
    )
    return with_aliases(about, record.base_model_aliases)


class Contents:
    """Makes the files of a bank as it travels.

    Parameters
    ----------
    bank
        An open bank.
    adapters
        Those that are given away.
    """

    def __init__(self, bank: AdapterBank, adapters: Sequence[AdapterRecord]) -> None:
        self._bank, self.about, self._layout = bank, about_of(bank, len(adapters)), bank.layout
        self._rules = bank.origins.text_rules(record.row for record in adapters)
        sources = [source for one in bank.adapters() for source in (one.source, one.dataset_source)]
        self.places = own_places(bank.path, sources)

    def entry(self, record: AdapterRecord) -> SharedAdapter:
        """Return an adapter's record for others."""
        return SharedAdapter(
            name=record.name,
            group=record.group,
            licence=record.licence,
            source=published(record.source),
            revision=record.revision,
            source_sha256=record.source_sha256,
            dataset_source=published(record.dataset_source),
            dataset_revision=record.dataset_revision,
            content_sha256=record.content_sha256,
            examples=record.examples,
            tokens=record.tokens,
            text_rule=self._rules.get(record.row, self.about.text_rule),
            rank=record.rank,
            alpha=record.alpha,
            use_rslora=record.use_rslora,
            scaling=record.scaling,
            dtype=record.dtype,
            row_sha256=record.row_sha256,
        )

    def files(self, record: AdapterRecord) -> dict[str, bytes]:
        """Return an adapter's files by path: as PEFT has them, and the counts of its dataset's tokens.

        Raises
        ------
        BankFormatError
            What the bank has of it is damaged.
        ConflictError
            A file would tell of this machine.
        """
        from safetensors.numpy import save

        from bankdb.peft.weights import source_file

        bank, folder = self._bank, self.entry(record).folder
        vector, _ = bank.checked_row(record)
        header = shared_header(bank.catalog.blob(record.header_sha256))
        config = bank.catalog.blob(record.config_sha256).decode("utf-8")
        ((ids, counts),) = bank.catalog.token_counts([record.row])
        files = {f"{folder}/{CONFIG}": shared_config(config, self.about.base_model).encode()}
        check_tells_nothing({**files, f"{folder}/{WEIGHTS}": header}, self.places)
        files[f"{folder}/{WEIGHTS}"] = source_file(vector, self._layout, header)
        files[f"{folder}/{COUNTS}"] = save({"ids": ids, "counts": counts})
        return files

    def tokenizer(self) -> dict[str, bytes]:
        """Return the files of the tokenizer, and the base model's configuration if the bank has kept it, by path.

        Raises
        ------
        TokenizerError
            The tokenizer is not the bank's.
        ConflictError
            A file would tell of this machine.
        """
        folder = self._bank.tokenizer.folder
        paths = {f"{TOKENIZER}/{path.name}": path for path in sorted(folder.iterdir()) if path.is_file()}
        if (kept := self._bank.path / KEPT_CONFIG).is_file():
            paths[BASE_CONFIG] = kept
        files = {name: path.read_bytes() for name, path in paths.items()}
        for name in files:
            if (
                name.endswith(".json")
                and not name.endswith("/tokenizer.json")
                and name != f"{TOKENIZER}/vocab.json"
            ):
                files[name] = shared_settings(files[name])
        check_tells_nothing(files, self.places)
        return files
