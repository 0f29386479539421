"""A bank on its way in: from a repository of the hub, a folder or a tar, into a new bank or one of its kind."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bankdb.bank import AdapterBank
from bankdb.catalog.locks import exclusive_lock
from bankdb.errors import (
    AdapterError,
    ArrayStoreUnavailableError,
    BankError,
    BankNotFoundError,
    ConflictError,
    DatabaseUnavailableError,
    ParameterError,
    SourceError,
    TokenizerError,
    one_line,
)
from bankdb.ingest import clear_leftovers
from bankdb.progress import Progress, SilentProgress
from bankdb.records import AdapterRecord, RefusedPair
from bankdb.sharing.contents import named
from bankdb.sharing.form import SharedAdapter
from bankdb.sharing.places.hub import SharedHub, quiet_client
from bankdb.sharing.places.opened import Shared, SharedFolder, SharedTar, closing
from bankdb.sharing.places.place import Place, parse_place
from bankdb.sharing.places.published import naming_disk
from bankdb.sharing.received import (
    ReceivedAdapter,
    SharedBank,
    read_adapter,
    read_shared,
    take_adapter,
    take_tokenizer,
)
from bankdb.sharing.stored import store_received
from bankdb.sources.pairs import name_key

if TYPE_CHECKING:
    from bankdb.peft.layout import AdapterLayout


@dataclass(slots=True)
class PullReport:
    """What a pull did, by name of adapter.

    Attributes
    ----------
    source
        Where they came from; of the hub with the commit.
    made
        Whether the bank was made.
    added, skipped, replaced
        Stored; there already; stored anew.
    refused
        Not stored, with the reason.
    initialisations
        See `bankdb.ingest.IngestReport`.
    """

    source: str
    made: bool = False
    added: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    refused: list[RefusedPair] = field(default_factory=list)
    initialisations: str = ""


def pull(
    source: str,
    bank: str | Path,
    names: Sequence[str] = (),
    *,
    replace: bool = False,
    database: str | None = None,
    arrays: str | None = None,
    progress: Progress | None = None,
) -> PullReport:
    """Take a shared bank, or some of its adapters, into a bank that is made if there is none.

    All records are checked before anything is stored, and each adapter before it is ready: its files against their
    hashes, its weights and counts against its record. One that is not what it should be is refused by name. What is
    there already is not fetched again, so that a pull that was interrupted goes on.

    Parameters
    ----------
    source
        `OWNER/NAME[@REVISION]` on the hub, a folder, or `FILE.tar`.
    bank
        Its folder: a bank of the same base model, tokenizer and layout, or a new one.
    names
        Names of adapters, or patterns such as `task1*`; all if none is given.
    replace
        Store an adapter anew where the bank has another one, or other data, under its name.
    database, arrays
        Where a bank that is made keeps its catalogue and its arrays: see `AdapterBank.create`.

    Raises
    ------
    SourceError
        The source cannot be reached.
    BankFormatError
        It is no shared bank, or not the whole of one, or its records are not what they should be.
    BankNotFoundError
        It has no adapter of a name.
    ConflictError
        The bank is of another base model, tokenizer or layout.
    ParameterError
        `database` or `arrays` is given, and the bank is there already.
    """
    place, progress, path = parse_place(source), progress or SilentProgress(), Path(bank)
    quiet = quiet_client() if place.kind == "hub" else contextlib.nullcontext()
    with quiet, staging(path, progress) as folder, closing(opened(place, folder, progress.note)) as there:
        shared = read_shared(there, folder)
        wanted = list(named({one.name: one for one in shared.adapters}, names, there.where).values())
        revision = f"@{there.revision}" if isinstance(there, SharedHub) else ""
        report = PullReport(f"{there.where}{revision}")
        with bank_for(shared, path, folder, report, Kept(database, arrays, progress.note)) as opened_bank:
            _store_all(opened_bank, shared, wanted, folder, replace, report, progress)
            if report.added or report.replaced:
                from bankdb.initialisation.compare import compared_advice

                report.initialisations = compared_advice(opened_bank, progress)
    return report


def opened(place: Place, folder: Path, note: Callable[[str], None] | None = None) -> Shared:
    """Open the place that a bank comes from."""
    if place.reference is not None:
        return SharedHub(place.reference, folder / "hub", note)
    return SharedTar(place.path) if place.kind == "tar" else SharedFolder(place.path)


@contextlib.contextmanager
def staging(bank: Path, progress: Progress) -> Iterator[Path]:
    """Make the hidden folder beside a bank in which files are while they are fetched, for one process alone.

    After an interruption it stays, so that what is in it is not fetched again.
    """
    whole = Path(os.path.abspath(bank))
    folder = whole.with_name(f".{whole.name}.pull")
    with naming_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(
        folder / ".lock",
        lambda: progress.note("another pull into this bank is running; waiting for it to finish"),
    ):
        try:
            with naming_disk(folder):
                folder.mkdir(parents=True, exist_ok=True)  # the other one took it away
                yield folder
        except BaseException:
            if not any(item.is_dir() for item in folder.iterdir()):
                shutil.rmtree(folder)  # nothing that would be worth keeping
            raise
        shutil.rmtree(folder)


@dataclass(frozen=True, slots=True)
class Kept:
    """Where a bank that is made keeps its catalogue and arrays; `told` hears of an upgrade of one that is there."""

    database: str | None = None
    arrays: str | None = None
    told: Callable[[str], None] | None = None


@contextlib.contextmanager
def bank_for(
    shared: SharedBank, path: Path, folder: Path, report: PullReport, kept: Kept
) -> Iterator[AdapterBank]:
    """Open the bank that takes a shared one, or make it.

    Raises
    ------
    ParameterError
        It is there already, and said to be kept elsewhere.
    ConflictError
        It is of another kind.
    TokenizerError
        The tokenizer that came is not the one that the records name.
    """
    try:
        bank = AdapterBank.open(path, told=kept.told)
    except BankNotFoundError:
        bank, report.made = _made(shared, path, folder, kept), True
    with bank:
        if not report.made and (kept.database or kept.arrays):
            raise ParameterError(
                f"database, arrays: expected with a bank that is made, found one in {bank.path}, which keeps its own; "
                "leave them out, or give another folder"
            )
        _check_kind(bank, shared)
        yield bank


def _made(shared: SharedBank, path: Path, folder: Path, kept: Kept) -> AdapterBank:
    from bankdb.datasets.tokenizer import BankTokenizer

    about = shared.about
    tokenizer = BankTokenizer(take_tokenizer(shared, folder), about.tokenizer_fingerprint)
    if (tokenizer.fingerprint, tokenizer.vocabulary) != (about.tokenizer_fingerprint, about.vocabulary):
        raise TokenizerError(
            f"{shared.place.where}: tokenizer/: expected the one with fingerprint "
            f"{about.tokenizer_fingerprint[:12]} and {about.vocabulary:,} ids, found {tokenizer.fingerprint[:12]} with "
            f"{tokenizer.vocabulary:,}"
        )
    tokenizer.name = about.tokenizer_name
    return AdapterBank.create(
        path,
        base_model=about.base_model,
        tokenizer=tokenizer,
        aliases=about.base_model_aliases,
        database=kept.database,
        arrays=kept.arrays,
    )


def _check_kind(bank: AdapterBank, shared: SharedBank) -> None:
    """Raise ConflictError unless the adapters fit a bank."""
    from bankdb.peft.layout import AdapterLayout
    from bankdb.peft.weights import is_base_model

    record, about = bank.record, shared.about
    names = (record.base_model, *record.base_model_aliases)
    differences = []
    if not is_base_model(about.base_model, names):
        alias = f"(if it is the same, `bank alias add {about.base_model}`)"
        differences.append(f"base model {record.base_model}, there {about.base_model} {alias}")
    if record.tokenizer_fingerprint != about.tokenizer_fingerprint:
        differences.append(
            f"tokenizer {record.tokenizer_fingerprint[:12]}, there {about.tokenizer_fingerprint[:12]}"
        )
    if record.text_rule != about.text_rule:
        differences.append(f"tokens counted by {record.text_rule!r}, there by {about.text_rule!r}")
    if record.layout is not None:
        differences += AdapterLayout.from_json(record.layout).differences(
            AdapterLayout.from_json(about.layout)
        )
        if record.base_model_revision != about.base_model_revision:
            differences.append(
                f"revision {record.base_model_revision} of the base model, there {about.base_model_revision}"
            )
    if differences:
        raise ConflictError(
            f"{bank.path}: not of the kind of {shared.place.where}: {'; '.join(differences)}; pull it into a bank of "
            "its own, with another --bank"
        )


def _store_all(
    bank: AdapterBank,
    shared: SharedBank,
    wanted: Sequence[SharedAdapter],
    folder: Path,
    replace: bool,
    report: PullReport,
    progress: Progress,
) -> None:
    clear_leftovers(bank)
    with bank.ingesting():
        present = {record.name: record for record in bank.adapters()}
        fresh = _fresh(wanted, present, replace, report)
        progress.begin("pull", len(fresh))
        for one, fetched in _ahead(shared, fresh, folder):
            reason = _taken(bank, shared, one, fetched, folder, replace)
            if reason is None:
                (report.replaced if one.name in present else report.added).append(one.name)
            else:
                report.refused.append(RefusedPair(one.name, reason))
            shutil.rmtree(_place(folder, one), ignore_errors=True)
            progress.advance()
        progress.end()


def _taken(
    bank: AdapterBank,
    shared: SharedBank,
    one: SharedAdapter,
    fetched: Future[None],
    folder: Path,
    replace: bool,
) -> str | None:
    """Store an adapter whose files were fetched; return why it is refused, or None.

    What is no fault of the adapter's is raised: the others would fare no better.
    """
    try:
        fetched.result()
        received = _read(bank, shared, one, folder)
    except (ArrayStoreUnavailableError, DatabaseUnavailableError, SourceError):
        raise
    except BankError as error:
        return one_line(error, 500)
    try:
        store_received(bank, shared.about, received, replace)
    except (AdapterError, ConflictError) as error:
        return one_line(error, 500)
    return None


def _fresh(
    wanted: Sequence[SharedAdapter],
    present: dict[str, AdapterRecord],
    replace: bool,
    report: PullReport,
) -> list[SharedAdapter]:
    """Return those of the adapters that are to be fetched; the others are reported as there, or refused."""
    keys, fresh = {name_key(name): name for name in present}, []
    for one in wanted:
        here = present.get(one.name)
        if (other := keys.get(name_key(one.name), one.name)) != one.name:
            reason = f"the name differs from {other!r} in the bank only in case; pull it into another bank"
            report.refused.append(RefusedPair(one.name, reason))
        elif here is not None and (here.row_sha256, here.scaling, here.content_sha256) == (
            one.row_sha256,
            one.scaling,
            one.content_sha256,
        ):
            report.skipped.append(one.name)
        elif here is not None and not replace:
            reason = "already in the bank with another adapter or dataset; pass --replace to store this one"
            report.refused.append(RefusedPair(one.name, reason))
        else:
            fresh.append(one)
    return fresh


def _place(folder: Path, one: SharedAdapter) -> Path:
    """Where the files of an adapter are while it is read: the same when the pull is run again."""
    return folder / one.row_sha256


def _ahead(
    shared: SharedBank, adapters: Sequence[SharedAdapter], folder: Path
) -> Iterator[tuple[SharedAdapter, Future[None]]]:
    """Yield adapters in their order, whose files are fetched meanwhile."""
    side_by_side = shared.place.side_by_side
    with ThreadPoolExecutor(max_workers=side_by_side, thread_name_prefix="pull") as pool:
        waiting: deque[tuple[SharedAdapter, Future[None]]] = deque()
        try:
            for one in adapters:
                waiting.append((one, pool.submit(take_adapter, shared, one, _place(folder, one))))
                if len(waiting) > side_by_side:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            for _, future in waiting:
                future.cancel()


def _read(bank: AdapterBank, shared: SharedBank, one: SharedAdapter, folder: Path) -> ReceivedAdapter:
    from bankdb.peft.checks import checked_layout

    record = bank.record
    # What the first adapter sets in an empty bank: its own header says whether the records are right.
    layout: AdapterLayout = bank.layout if record.layout else checked_layout(shared.about.layout, None)
    revision = record.base_model_revision if record.layout else shared.about.base_model_revision
    names = (record.base_model, *record.base_model_aliases)
    received = read_adapter(shared, one, _place(folder, one), layout, names, revision)
    if not record.layout:
        checked_layout(shared.about.layout, received.adapter.header)
    return received
