"""A bank on disk, its parts opened together: a folder with its database, its arrays and its tokenizer."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from bankdb.arrays.metadata import METADATA, ArrayLayout, read_rows_metadata
from bankdb.arrays.remote import Location, located
from bankdb.catalog.catalog import Catalog
from bankdb.catalog.database import Database
from bankdb.catalog.generations import GenerationStore
from bankdb.catalog.origins import Origins
from bankdb.catalog.runs import RunBook
from bankdb.errors import BankFormatError, BankNotFoundError, TokenizerError
from bankdb.progress import Progress
from bankdb.records import AdapterRecord, BankRecord, RunRecord
from bankdb.storage.aside import computed_aside
from bankdb.storage.location import LOCATION_FILE, BankLocation
from bankdb.storage.ownership import Ownership

if TYPE_CHECKING:
    from bankdb.arrays.adapter_store import AdapterStore, StoredRow, Vector
    from bankdb.datasets.tokenizer import BankTokenizer
    from bankdb.peft.layout import AdapterLayout
    from bankdb.peft.weights import SourceAdapter


class StoredBank:
    """The parts of a bank, and what changes them: rows of adapters, what they are called, locks.

    Attributes
    ----------
    path
        The bank's folder.
    location
        Where its parts are: folder, database, arrays.
    catalog
        What is in it, by name.
    origins
        What its adapters' own files say of the bank.
    runs
        What was computed from it.
    generations
        What adapters answered to test examples.
    arrays, derived
        Where its arrays are: its folder, another one, or a URL; and those that are computed from others.
    """

    def __init__(self, location: BankLocation, database: Database) -> None:
        self.location, self.path, self._aside = location, location.folder, contextlib.ExitStack()
        self.use_database(database, location.folder)
        self.arrays: Location = self.path if location.arrays is None else located(location.arrays)
        self.derived = self.arrays
        self._opened: tuple[ArrayLayout, dict[str, Any]] | None = None

    def use_database(self, database: Database, folder: Path) -> None:
        """Take catalogue, runs and generations from a database, and locks from a folder."""
        self._database, self._locks = database, database.locks(folder)
        self.catalog, self.origins = Catalog(database), Origins(database)
        self.runs, self.generations = RunBook(database), GenerationStore(database)

    @functools.cached_property
    def store(self) -> AdapterStore:
        """The adapters' array. Whoever only looks at the catalogue does without it, and without NumPy."""
        from bankdb.arrays.adapter_store import AdapterStore

        return AdapterStore(self._rows, self._opened)

    @property
    def _rows(self) -> Location:
        return self.arrays / "adapters.zarr"

    @property
    def ownership(self) -> Ownership:
        """Which catalogue writes the adapters' array, and what it knows of rows as they are stored."""
        return Ownership(self._database, self.store, self.store.path)

    # -- opening --------------------------------------------------------------------------------

    def claim_arrays(self) -> None:
        """Mark the place of the arrays as this bank's, where it is not the bank's own folder."""
        from bankdb.storage.new_bank import claim_place

        if self.location.arrays is not None:
            claim_place(self.arrays, self.record.identity)

    def check(self) -> None:
        """Raise BankFormatError if the database or the adapters' array is not this bank's."""
        self._check_identity()
        self._check_arrays()

    def _check_identity(self) -> None:
        expected, found = self.location.identity, self.record.identity
        if expected not in {None, found}:
            raise BankFormatError(
                f"{self.path / LOCATION_FILE}: expected bank {expected}, but its database holds bank {found}; "
                "put the bank's own database or bank.json back"
            )

    def _check_arrays(self) -> None:
        record = self.record
        if record.layout is None or not self.catalog.count():
            return
        self._opened = layout, attributes = read_rows_metadata(self._rows)
        found = str(attributes.get("bank", ""))
        if found != record.identity:
            raise BankFormatError(
                f"{self._rows}: belongs to bank {found or 'unknown'}, not to this one ({record.identity}); "
                "put the bank's own adapters.zarr back"
            )
        columns = layout.shape[1]
        if columns != record.parameters:
            raise BankFormatError(
                f"{self._rows / METADATA}: rows of {record.parameters} parameters expected, {columns} "
                "found; put the bank's own adapters.zarr back"
            )

    def close(self) -> None:
        """Close the database."""
        self._database.close()
        self._aside.close()

    def __enter__(self) -> Self:
        """Return the bank itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the database."""
        self.close()

    # -- looking --------------------------------------------------------------------------------

    @property
    def read_only(self) -> bool:
        """Whether it may only be read here."""
        return self._database.read_only

    @property
    def record(self) -> BankRecord:
        """What the bank is, as of now."""
        return self.catalog.bank()

    def adapters(self) -> list[AdapterRecord]:
        """Return every adapter in the bank, by row."""
        return self.catalog.adapters()

    def rows(self) -> set[int]:
        """Return the adapters' row numbers, as of now: quick, since no record is held against its checksum."""
        return {row for (row,) in self.catalog.glance("row")}

    def __len__(self) -> int:
        """Return the number of adapters."""
        return self.catalog.count()

    @property
    def layout(self) -> AdapterLayout:
        """How a row of the array maps to named tensors, as the adapters' own headers have it.

        Raises
        ------
        BankNotFoundError
            The bank is empty.
        BankFormatError
            The database's own record is damaged: it is not what an adapter's stored header says.
        """
        from bankdb.peft.checks import check_bank, checked_layout

        record, first = self.record, self.origins.first_header()
        if record.layout is None:
            raise BankNotFoundError(f"{self.path}: the bank has no adapters yet; add some with `bank ingest`")
        layout = checked_layout(record.layout, None if first is None else self.catalog.blob(first))
        check_bank(record, layout)
        return layout

    def export_record(self) -> BankRecord:
        """Return the record that predictions are written by: its layout was checked, its task type is the majority's.

        Raises
        ------
        BankNotFoundError, BankFormatError
            As `layout`.
        """
        _ = self.layout
        return replace(self.record, task_type=self.origins.task_type())

    def predicted_among(self, adapters: Iterable[AdapterRecord]) -> list[str]:
        """Return the names of those that were predicted, not trained, as their configurations tell.

        Raises
        ------
        BankFormatError
            A configuration is missing or damaged.
        """
        from bankdb.peft.config import is_rendered

        chosen = list(adapters)
        hashes = {record.config_sha256 for record in chosen}
        texts = self.origins.configurations(hashes)
        for sha256 in hashes - texts.keys():
            self.catalog.blob(sha256)  # says that it is damaged
        predicted = {sha256 for sha256, text in texts.items() if is_rendered(text)}
        return [record.name for record in chosen if record.config_sha256 in predicted]

    @functools.cached_property
    def tokenizer(self) -> BankTokenizer:
        """The bank's own tokenizer.

        Raises
        ------
        TokenizerError
            It cannot be loaded, or is not the one that the bank was made with.
        """
        from bankdb.datasets.tokenizer import BankTokenizer

        record = self.record
        folder = self.path / "tokenizer"
        if not folder.is_dir():
            raise TokenizerError(
                f"{folder}: the bank's tokenizer is missing; copy {record.tokenizer_name} there"
            )
        loaded = BankTokenizer(folder, record.tokenizer_fingerprint)
        if loaded.fingerprint != record.tokenizer_fingerprint:
            raise TokenizerError(
                f"{folder}: expected the tokenizer with fingerprint {record.tokenizer_fingerprint[:12]} "
                f"({record.tokenizer_name}), found {loaded.fingerprint[:12]}; put the original files back"
            )
        return loaded

    def array_path(self, kind: str) -> Location:
        """Return the place of a derived array: see `bankdb.derived.KINDS`."""
        return self.derived / f"{kind}.zarr"

    def run_array(self, run: RunRecord) -> Location | None:
        """Return the place of the array that a run writes, or None if it writes none."""
        name = json.loads(run.parameters).get("array")
        return None if name is None else self.derived / str(name)

    @property
    def database_shown(self) -> str:
        """How messages name the bank's database: a file, or a server's database without its password."""
        return self._database.shown

    def database_problems(self) -> list[str]:
        """Return what the database itself reports as damaged; empty when it is whole."""
        return self._database.integrity_problems()

    # -- changing -------------------------------------------------------------------------------

    def reserve(self, name: str, adapter: SourceAdapter, first: Mapping[str, Any] | None = None) -> int:
        """Reserve a row for `name` and make room for it; the first adapter sets the bank's layout.

        Parameters
        ----------
        first
            What is recorded of the layout if this is the first adapter, where it is known: see `Catalog.set_layout`.

        Raises
        ------
        AdapterError
            The adapter's layout is not the bank's, or it was trained on another revision of the base model.
        ConflictError
            Another copy of the bank has written rows.
        """
        from bankdb.peft.checks import check_fits
        from bankdb.peft.layout import AdapterLayout

        with self._database.write() as session:
            self.ownership.check(session)
            record = self.catalog.bank_in(session)
            if record.layout is None:
                self.claim_arrays()  # `create` may have been killed before it did
                self.store.create(adapter.layout.size, record.identity, self.ownership.mark(session))
                self.catalog.set_layout(session, **(first or _layout_of(adapter)))
            else:
                check_fits(record, AdapterLayout.from_json(record.layout), name, adapter)
            row = self.catalog.reserve(session, name)
            self.store.grow(row + 1, opened=True)
            return row

    def restore(self, row: int, vector: Vector) -> None:
        """Write a ready row again; its own file is replaced, what is foreign stays."""
        with self._database.write():
            self.store.grow(self.record.next_row)
        self.store.delete(row)
        stored = self.store.write_row(row, vector)
        self.ownership.set_checksums({row: (stored.sha256, stored.checksums.tobytes())})

    def checked_row(self, record: AdapterRecord) -> tuple[Vector, StoredRow]:
        """Read a whole row, shape (p,), with what it is known by. Raises BankFormatError if it is not the one."""
        vector, stored = self.store.read_stored(record.row)
        if stored.sha256 != record.row_sha256:
            raise BankFormatError(
                f"{self.store.file(record.row)}: the stored row of {record.name} does not match its checksum; "
                "`bank verify --repair` restores it from its source"
            )
        return vector, stored

    # -- locks ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def ingesting(self) -> Iterator[None]:
        """Announce that rows may be reserved by this process; several may do so at once.

        Raises
        ------
        ConflictError
            Another copy of the bank has written rows.
        """
        with self.nobody_ingesting() as alone:
            if alone:
                self.ownership.renew()
        with self._locks.shared("ingest"):
            self.ownership.check_now()
            yield

    @contextlib.contextmanager
    def nobody_ingesting(self) -> Iterator[bool]:
        """Yield True while no process can be inside `ingesting`; False at once if one is."""
        with self._locks.try_exclusive("ingest") as alone:
            yield alone

    @contextlib.contextmanager
    def nobody_computing(self) -> Iterator[bool]:
        """Yield True while no process can be inside `computing`; False at once if one is."""
        with self._locks.try_exclusive("compute") as alone:
            yield alone

    def computing(self, progress: Progress) -> contextlib.AbstractContextManager[None]:
        """Be the only process that writes derived arrays; waits for another that does.

        Of a bank that may only be read, they are written elsewhere from now on, until it is closed.
        """
        if self._database.read_only:
            self._aside.enter_context(computed_aside(self, self._database, progress))
        note = "another run is working on this bank; waiting for it to finish"
        return self._locks.exclusive("compute", lambda: progress.note(note))


def _layout_of(adapter: SourceAdapter) -> dict[str, Any]:
    """Return what a bank's record takes of its first adapter."""
    config = adapter.config
    return {
        "layout": adapter.layout.to_json(),
        "parameters": adapter.layout.size,
        "alpha": config.alpha,
        "use_rslora": config.use_rslora,
        "scaling": config.scaling,
        "dtype": adapter.dtype,
        "task_type": config.task_type,
        "base_model_revision": config.revision,
    }
