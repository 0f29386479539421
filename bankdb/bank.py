"""A bank on disk: a folder with its database, its arrays and its tokenizer."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from bankdb.arrays.adapter_store import AdapterStore, Vector
from bankdb.arrays.durable import fsync_path
from bankdb.arrays.remote import Location, located
from bankdb.catalog.aside import computed_aside
from bankdb.catalog.catalog import Catalog
from bankdb.catalog.database import Database
from bankdb.catalog.generations import GenerationStore
from bankdb.catalog.runs import RunBook
from bankdb.errors import AdapterError, BankFormatError, BankNotFoundError, TokenizerError
from bankdb.location import LOCATION_FILE, BankLocation
from bankdb.new_bank import (
    check_free,
    check_places_free,
    claim_arrays,
    making,
    new_location,
    record_bank,
    save_tokenizer,
)
from bankdb.progress import Progress
from bankdb.records import AdapterRecord, BankRecord, RunRecord

if TYPE_CHECKING:
    from bankdb.datasets.tokenizer import BankTokenizer
    from bankdb.peft.layout import AdapterLayout
    from bankdb.peft.weights import SourceAdapter


class AdapterBank:
    """A bank of LoRA adapters for one base model. Make one with `create`, use one with `open`.

    Attributes
    ----------
    path
        The bank's folder.
    location
        Where its parts are: folder, database, arrays.
    catalog
        What is in it, by name.
    runs
        What was computed from it.
    generations
        What adapters answered to test examples.
    arrays, derived
        Where its arrays are: its folder, another one, or a URL; and those that are computed from others.
    store
        The adapters' array.
    """

    def __init__(self, location: BankLocation, database: Database) -> None:
        self.location, self.path, self._aside = location, location.folder, contextlib.ExitStack()
        self.use_database(database, location.folder)
        self.arrays: Location = self.path if location.arrays is None else located(location.arrays)
        self.derived, self.store = self.arrays, AdapterStore(self.arrays / "adapters.zarr")

    def use_database(self, database: Database, folder: Path) -> None:
        """Take catalogue, runs and generations from a database, and locks from a folder."""
        self._database, self._locks = database, database.locks(folder)
        self.catalog, self.runs = Catalog(database), RunBook(database)
        self.generations = GenerationStore(database)

    # -- making and opening ---------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        base_model: str,
        tokenizer: str | Path,
        aliases: Sequence[str] = (),
        database: str | None = None,
        arrays: str | None = None,
    ) -> AdapterBank:
        """Make an empty bank for one base model and its tokenizer.

        Parameters
        ----------
        path
            Folder to make; it may exist if it is empty.
        base_model
            Name of the base model, as the adapters' configurations state it.
        tokenizer
            Folder or hub name of the base model's tokenizer; its files are copied into the bank.
        aliases
            Other names under which adapters may state the same base model.
        database
            URL of an empty PostgreSQL database for the catalogue, `postgresql+psycopg://USER@HOST/DATABASE`;
            None for SQLite in the folder.
        arrays
            URL, or another folder, for the arrays; None for the bank's own folder.

        Raises
        ------
        ConflictError
            A bank, or something else, is already in the folder or in the database, or where its arrays are to be.
        DatabaseUnavailableError, ArrayStoreUnavailableError
            The database's server, or the store of that URL, cannot be reached.
        ParameterError
            `database` or `arrays` is no such URL.
        TokenizerError
            The tokenizer cannot be loaded, or not saved so that it stays what it is.
        """
        from bankdb.datasets.tokenizer import BankTokenizer

        location = new_location(Path(path), database, arrays)
        folder = location.folder
        check_free(folder)
        check_places_free(location)
        loaded = BankTokenizer(tokenizer)
        folder.mkdir(parents=True, exist_ok=True)
        with making(location):
            check_free(folder)  # of two that came so far together, one goes on
            save_tokenizer(loaded, folder / "tokenizer")
            location.record()
            bank = cls(location, Database(location.database_url, create=True))
            try:
                record_bank(bank.catalog, location, loaded, base_model, aliases)
                bank._claim_arrays()
            except BaseException:
                bank.close()
                raise
            fsync_path(folder)
        return bank

    @classmethod
    def open(cls, path: str | Path) -> AdapterBank:
        """Open an existing bank.

        Raises
        ------
        BankNotFoundError
            There is no bank at `path`.
        DatabaseUnavailableError
            The server that holds its catalogue cannot be reached.
        BankFormatError
            The database or the adapters' array is damaged, foreign, or of a newer version.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise BankNotFoundError(
                f"{folder}: no bank here; make one with `bank init`, or pass --bank PATH (or set BANK_PATH)"
            )
        location = BankLocation.of(folder)
        bank = cls(location, Database(location.database_url))
        try:
            bank._check_identity()
            bank._check_arrays()
        except BaseException:
            bank.close()
            raise
        return bank

    def _claim_arrays(self) -> None:
        """Mark the place of the arrays as this bank's, where it is not the bank's own folder."""
        if self.location.arrays is not None:
            claim_arrays(self.arrays, self.record.identity)

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
        found = self.store.identity()
        if found != record.identity:
            raise BankFormatError(
                f"{self.store.path}: belongs to bank {found or 'unknown'}, not to this one ({record.identity}); "
                "put the bank's own adapters.zarr back"
            )
        columns = self.store.array.shape[-1]
        if columns != record.parameters:
            raise BankFormatError(
                f"{self.store.path / 'zarr.json'}: rows of {record.parameters} parameters expected, {columns} "
                "found; put the bank's own adapters.zarr back"
            )

    def close(self) -> None:
        """Close the database."""
        self._database.close()
        self._aside.close()

    def __enter__(self) -> AdapterBank:
        """Return the bank itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the database."""
        self.close()

    # -- looking --------------------------------------------------------------------------------

    @property
    def record(self) -> BankRecord:
        """What the bank is, as of now."""
        return self.catalog.bank()

    def adapters(self) -> list[AdapterRecord]:
        """Return every adapter in the bank, by row."""
        return self.catalog.adapters()

    def __len__(self) -> int:
        """Return the number of adapters."""
        return self.catalog.count()

    @property
    def layout(self) -> AdapterLayout:
        """How a row of the array maps to named tensors. Raises BankNotFoundError on an empty bank."""
        from bankdb.peft.layout import AdapterLayout

        text = self.record.layout
        if text is None:
            raise BankNotFoundError(f"{self.path}: the bank has no adapters yet; add some with `bank ingest`")
        return AdapterLayout.from_json(text)

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
        loaded = BankTokenizer(folder)
        if loaded.fingerprint != record.tokenizer_fingerprint:
            raise TokenizerError(
                f"{folder}: expected the tokenizer with fingerprint {record.tokenizer_fingerprint[:12]} "
                f"({record.tokenizer_name}), found {loaded.fingerprint[:12]}; put the original files back"
            )
        return loaded

    def array_path(self, kind: str) -> Location:
        """Return the place of a derived array: `distances`, `gram`, `predictions`, `distributions`, `neural`."""
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

    def reserve(self, name: str, adapter: SourceAdapter) -> int:
        """Reserve a row for `name` and make room for it; the first adapter sets the bank's layout.

        Raises
        ------
        AdapterError
            The adapter's layout is not the bank's, or it was trained on another revision of the base model.
        """
        with self._database.write() as session:
            record = self.catalog.bank_in(session)
            if record.layout is None:
                self._claim_arrays()  # `create` may have been killed before it did
                self.store.create(adapter.layout.size, record.identity)
                self.catalog.set_layout(
                    session,
                    layout=adapter.layout.to_json(),
                    parameters=adapter.layout.size,
                    alpha=adapter.config.alpha,
                    use_rslora=adapter.config.use_rslora,
                    scaling=adapter.config.scaling,
                    dtype=adapter.dtype,
                    task_type=adapter.config.task_type,
                    base_model_revision=adapter.config.revision,
                )
            else:
                _check_fits(record, record.layout, name, adapter)
            row = self.catalog.reserve(session, name)
            self.store.grow(row + 1)
            return row

    def restore(self, row: int, vector: Vector) -> None:
        """Write a ready row again; its own file is replaced, what is foreign stays."""
        with self._database.write():
            self.store.grow(self.record.next_row)
        self.store.delete(row)
        self.store.write(row, vector)

    def remove(self, name: str) -> None:
        """Remove an adapter, its dataset and its row. Raises BankNotFoundError if it is not there."""
        with self.ingesting():
            self.store.delete(self.catalog.remove(name))

    def export(self, name: str, folder: Path, *, overwrite: bool = False) -> Path:
        """Write the stored adapter as the PEFT folder it came from, bit for bit; return the folder.

        Raises
        ------
        BankNotFoundError
            There is no adapter of that name.
        ConflictError
            `folder` exists and `overwrite` is false.
        BankFormatError
            The stored row is damaged.
        """
        from bankdb.arrays.adapter_store import row_sha256
        from bankdb.peft.folder import write_adapter_folder
        from bankdb.peft.weights import source_file

        record = self.catalog.adapter(name)
        vector = self.store.read(record.row)
        if row_sha256(vector) != record.row_sha256:
            raise BankFormatError(
                f"{self.store.file(record.row)}: the stored row of {name} does not match its checksum; "
                "`bank verify --repair` restores it from its source"
            )
        weights = source_file(vector, self.layout, self.catalog.blob(record.header_sha256))
        files: Mapping[str, bytes] = {
            "adapter_config.json": self.catalog.blob(record.config_sha256),
            "adapter_model.safetensors": weights,
        }
        write_adapter_folder(folder, files=files, overwrite=overwrite)
        return folder

    # -- locks ----------------------------------------------------------------------------------

    def ingesting(self) -> AbstractContextManager[None]:
        """Announce that rows may be reserved by this process; several may do so at once."""
        return self._locks.shared("ingest")

    def nobody_ingesting(self) -> AbstractContextManager[bool]:
        """Yield True while no process can be inside `ingesting`; False at once if one is."""
        return self._locks.try_exclusive("ingest")

    def nobody_computing(self) -> AbstractContextManager[bool]:
        """Yield True while no process can be inside `computing`; False at once if one is."""
        return self._locks.try_exclusive("compute")

    def computing(self, progress: Progress) -> AbstractContextManager[None]:
        """Be the only process that writes derived arrays; waits for another that does.

        Of a bank that may only be read, they are written elsewhere from now on, until it is closed.
        """
        if self._database.read_only:
            self._aside.enter_context(computed_aside(self, self._database, progress))
        note = "another run is working on this bank; waiting for it to finish"
        return self._locks.exclusive("compute", lambda: progress.note(note))


def _check_fits(record: BankRecord, layout: str, name: str, adapter: SourceAdapter) -> None:
    from bankdb.peft.layout import AdapterLayout

    found = AdapterLayout.from_json(layout).differences(adapter.layout)
    if found:
        raise AdapterError(f"{name}: not of the bank's layout: {'; '.join(found)}")
    if adapter.config.revision != record.base_model_revision:
        raise AdapterError(other_revision(name, record.base_model_revision, adapter.config.revision))


def other_revision(what: str, expected: str | None, found: str | None) -> str:
    """Return the message for an adapter of another revision of the base model."""
    return (
        f"{what}: trained on revision {found!r} of the base model, the bank's adapters on {expected!r}; "
        "keep them in separate banks"
    )


def ready_adapters(bank: AdapterBank) -> tuple[AdapterRecord, ...]:
    """Return the adapters of a bank, by row. Raises BankNotFoundError if there are none."""
    adapters = tuple(bank.adapters())
    if not adapters:
        raise BankNotFoundError(f"{bank.path}: the bank has no adapters; add some with `bank ingest`")
    return adapters
