"""The bank as its users have it: made, opened, filled, looked at, checked, and cared for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bankdb.arrays.durable import fsync_path
from bankdb.catalog.database import Database
from bankdb.errors import BankError, BankNotFoundError, one_line
from bankdb.progress import Mapper, Progress
from bankdb.records import AS_IT_COMES, AdapterRecord, Taking, published
from bankdb.shown import html_summary, text_summary
from bankdb.snapshot import snapshot_of
from bankdb.storage.location import BankLocation
from bankdb.storage.stored_bank import StoredBank

if TYPE_CHECKING:
    from bankdb.datasets.forms.rules import Reading
    from bankdb.datasets.tokenizer import BankTokenizer
    from bankdb.gguf.export import GgufExport
    from bankdb.ingest import Counter, IngestReport
    from bankdb.public.found import FoundPairs
    from bankdb.public.sources import WideSource
    from bankdb.verify import VerifyReport

_LISTED = 10


class AdapterBank(StoredBank):
    """A bank of LoRA adapters for one base model. Make one with `create`, use one with `open`.

    It closes its database at the end of a `with` block, or by `close`.

    >>> len(bank)
    6
    >>> [record.name for record in bank.adapters()][:3]
    ['task000', 'task001', 'task002']
    """

    # -- making and opening ---------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        base_model: str | None = None,
        tokenizer: str | Path | BankTokenizer | None = None,
        aliases: Sequence[str] = (),
        like: str | None = None,
        database: str | None = None,
        arrays: str | None = None,
    ) -> AdapterBank:
        """Make an empty bank for one base model and its tokenizer.

        Parameters
        ----------
        path
            Folder to make; it may exist if it is empty.
        base_model, aliases, tokenizer, like
            Name of the base model, as the adapters' configurations state it, and others under which they may; folder or
            hub name of its tokenizer, or that tokenizer, loaded: its files are copied into the bank. What is not given
            is as in the known public bank that `like` names, such as `lots-of-loras`.
        database, arrays
            URL of an empty PostgreSQL database, `postgresql+psycopg://USER@HOST/DATABASE`; URL, or another folder, for
            the arrays. Neither: SQLite and arrays in the bank's own folder.

        Raises
        ------
        ConflictError
            Something is in the folder or in the database already, or where its arrays are to be.
        DatabaseUnavailableError, ArrayStoreUnavailableError
            The database's server, or the store of that URL, cannot be reached.
        ParameterError
            `database` or `arrays` is no such URL; no such bank is known, or base model or tokenizer are not given.
        TokenizerError
            The tokenizer cannot be loaded, or not saved so that it stays what it is.
        """
        from bankdb.datasets.tokenizer import BankTokenizer
        from bankdb.public.known import made_like
        from bankdb.storage import new_bank

        base_model, tokenizer, aliases = made_like(like, base_model, tokenizer, aliases)
        location = new_bank.new_location(Path(path), database, arrays)
        new_bank.check_free(folder := location.folder)
        new_bank.check_places_free(location)
        loaded = tokenizer if isinstance(tokenizer, BankTokenizer) else BankTokenizer(tokenizer)
        folder.mkdir(parents=True, exist_ok=True)
        with new_bank.making(location):
            new_bank.check_free(folder)  # of two that came so far together, one goes on
            new_bank.save_tokenizer(loaded, folder / "tokenizer")
            new_bank.save_base_config(loaded, base_model, folder)
            location.record()
            bank = cls(location, Database(location.database_url, create=True))
            try:
                new_bank.claim_arrays(location)
                new_bank.record_bank(bank.catalog, location, loaded, base_model, aliases)
            except BaseException:
                bank.close()
                raise
            fsync_path(folder)
        return bank

    @classmethod
    def open(cls, path: str | Path, *, told: Callable[[str], None] | None = None) -> AdapterBank:
        """Open an existing bank; one whose catalogue is of an earlier version is brought to this one's first.

        Parameters
        ----------
        told
            Is given the line that says so, and where the catalogue as it was is kept; a warning is logged if not given.

        Raises
        ------
        BankNotFoundError
            There is no bank at `path`.
        DatabaseUnavailableError
            The server that holds its catalogue cannot be reached.
        ConflictError, FileSystemError
            Its catalogue is of an earlier version, and others write in the bank, or no copy of it can be kept.
        BankFormatError
            The database or the adapters' array is damaged, foreign, or of a newer version.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise BankNotFoundError(
                f"{folder}: no bank here; make one with `bank init`, or pass --bank PATH (or set BANK_PATH)"
            )
        location = BankLocation.of(folder)
        bank = cls(location, Database(location.database_url, told=told))
        try:
            bank.check()
        except BaseException:
            bank.close()
            raise
        return bank

    # -- pairs of adapter and dataset -----------------------------------------------------------

    def ingest(
        self,
        sources: WideSource | Iterable[WideSource],
        *,
        hub: bool = False,
        group_pattern: str | None = None,
        input_column: str | None = None,
        output_column: str | None = None,
        text_column: str | None = None,
        skip_bad_rows: bool = False,
        replace: bool = False,
        taking: Taking = AS_IT_COMES,
        memory: int | None = None,
        downloads: int = 4,
        keep_downloads: bool = True,
        progress: Progress | None = None,
        counter: Counter | None = None,
    ) -> IngestReport:
        """Store every pair that can be stored, each whole or not at all; others are named and leave nothing.

        Parameters
        ----------
        sources
            One or several: a folder with `datasets/` and `adapters/`; a manifest (`.csv` or `.jsonl`) with name,
            adapter, dataset and, if wanted, group and licence; a tuple `(adapter, dataset)`, called as the adapter's
            folder or repository is, or a `PairReference`, both with `hub:OWNER/NAME[/FOLDER][@REVISION]` for what is on
            the hub; what `search_hub` found.
        hub
            Texts are of the hub: `"ADAPTER[@REVISION]=DATASET[@REVISION]"`, `"ADAPTER"` where its model card names the
            dataset, or `"OWNER"` for all of its adapters that suit.
        group_pattern
            Regular expression whose first group, found in a pair's name, is its group, unless the source states one.
        input_column, output_column, text_column, skip_bad_rows
            Columns with the input text and the output, recognised if neither is given, or the one that is read; skip
            rows that are no examples, and say how many, rather than refuse the pair.
        replace, taking
            Store a pair anew where the bank has other content under its name; what may be assumed of adapters, or done.
        memory, counter, downloads, keep_downloads
            Bytes for reading and tokenizing, half of the machine's if not given, and who does it, None for this one;
            how many pairs come from the hub at a time; whether what came stays in its cache, as what was there does.

        Raises
        ------
        SourceError, ParameterError
            A source names no pairs at all; a value is out of its range.
        ArrayStoreUnavailableError, DatabaseUnavailableError, FileSystemError
            The store of a bank on a URL, or its database, failed, or the disk is full; what was stored before is kept.

        Examples
        --------
        >>> bank.ingest(pairs)
        IngestReport: 0 added, 6 there already, 0 replaced, 0 refused
        """
        from bankdb.ingest import IngestOptions, ingest
        from bankdb.public.sources import referenced

        reading = self.reading(input_column, output_column, text_column, skip_bad_rows)
        how = IngestOptions(reading, replace, memory, taking, downloads, counter)
        found, refused, resolve = referenced(self, sources, hub, group_pattern, free=not keep_downloads)
        return ingest(self, found, resolve=resolve, options=how, refused=refused, progress=progress)

    def search_hub(
        self,
        place: str,
        *,
        collection: bool = False,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        limit: int | None = None,
    ) -> FoundPairs:
        """Find what an owner, a collection or a library on the hub has for this bank; `ingest` takes it as a source.

        Parameters
        ----------
        place
            `OWNER`; `OWNER/NAME[=DATASETS]`, which has an adapter a folder; or a collection, `OWNER/TITLE-HASH`.
        include, exclude, limit
            Shell patterns of names, and the largest number of pairs: see `bankdb.public.selection.Selection`.

        Raises
        ------
        SourceError
            It cannot be listed, or has no adapters.
        ParameterError
            It is one adapter, or a pattern or the limit is out of its range.
        """
        from bankdb.public.sources import found_at

        return found_at(self, place, collection, include, exclude, limit)

    def reading(
        self,
        input_column: str | None = None,
        output_column: str | None = None,
        text_column: str | None = None,
        skip_bad_rows: bool = False,
    ) -> Reading:
        """Return how data is read for this bank, whose tokenizer has the template of chats; see `ingest`."""
        from bankdb.datasets.forms.rules import Reading

        return Reading(
            input_column, output_column, text_column, skip_bad_rows, lambda: self.tokenizer.chat_template
        )

    def verify(
        self, *, repair: bool = False, progress: Progress | None = None, mapper: Mapper | None = None
    ) -> VerifyReport:
        """Check every stored row against its checksum, and find what lies about; reads the whole bank.

        Parameters
        ----------
        repair
            Restore damaged rows from their sources, where those are still there unchanged; clear what killed
            processes left; move foreign files into `orphans/`. Nothing that is whole is ever deleted.
        mapper
            Where rows are read; None in this process. `compute.verify` has workers of a cluster do it.

        Examples
        --------
        >>> bank.verify()
        VerifyReport: 6 adapters checked, clean; 0 repaired, 0 leftovers
        """
        from bankdb.verify import verify

        return verify(self, repair=repair, progress=progress, mapper=mapper)

    def remove(self, name: str) -> None:
        """Remove an adapter, its dataset and its row. Raises BankNotFoundError if it is not there."""
        with self.ingesting():
            if (row := self.catalog.remove(name)) is not None:
                self.store.delete(row)

    def export(
        self, name: str, folder: str | Path, *, overwrite: bool = False, gguf: GgufExport | None = None
    ) -> Path:
        """Write the stored adapter as the PEFT folder it came from, bit for bit; return the folder.

        Tensor names in which a wrapper left segments that PEFT does not look for are written without them.

        Parameters
        ----------
        gguf
            Write it for llama.cpp too, or alone: see `gguf`.

        Raises
        ------
        BankNotFoundError
            There is no adapter of that name.
        ConflictError
            `folder` exists and `overwrite` is false.
        BankFormatError
            The stored row is damaged.
        GgufError
            It cannot be written for llama.cpp exactly.
        """
        from bankdb.gguf.export import GGUF_NAME, MODELFILE_NAME
        from bankdb.peft.folder import Content, write_adapter_folder
        from bankdb.peft.weights import source_file

        record, layout = self.catalog.adapter(name), self.layout
        if gguf is not None:
            gguf.check(layout)
        vector, _ = self.checked_row(record)
        files: dict[str, Content] = {}
        if gguf is None or not gguf.alone:
            files["adapter_config.json"] = self.catalog.blob(record.config_sha256)
            files["adapter_model.safetensors"] = source_file(
                vector, layout, self.catalog.blob(record.header_sha256)
            )
        if gguf is not None:
            names = {"name": name, "base_model": published(self.record.base_model)}
            tensors = layout.unflatten(vector)
            files[GGUF_NAME] = gguf.writer(lambda _: tensors, layout, record.scaling, names)
            files[MODELFILE_NAME] = gguf.modelfile().encode()
        target = Path(folder)
        write_adapter_folder(target, files=files, overwrite=overwrite)
        return target

    def gguf(
        self,
        base_gguf: str | Path | None = None,
        *,
        model: str | Path | None = None,
        alone: bool = False,
    ) -> GgufExport:
        """Return how adapters of this bank are written for llama.cpp, for whatever writes a folder.

        Parameters
        ----------
        base_gguf
            The base model's GGUF: names and shapes are held against it, and heads are read from it.
        model
            A folder with the base model's config.json, where the bank has kept none.
        alone
            Leave out PEFT's two files.

        Raises
        ------
        GgufError
            Nothing is known of the base model, or its architecture is none whose adapters are written exactly.
        ParameterError
            The package gguf is not installed.
        """
        from bankdb.gguf.export import GgufExport
        from bankdb.gguf.known import known_base_model

        folders = (self.path, *((model,) if model is not None else ()), self.record.base_model)
        return GgufExport(known_base_model(folders, base_gguf), alone)

    # -- showing --------------------------------------------------------------------------------

    def _facts(self) -> dict[str, object]:
        try:
            return self._counted()
        except BankError as error:  # whoever shows it, a debugger or a traceback, is shown this
            return {"cannot be read": one_line(error)}

    def _counted(self) -> dict[str, object]:
        record = self.record
        groups = {adapter.group for adapter in self.adapters() if adapter.group is not None}
        facts: dict[str, object] = {"base model": record.base_model, "adapters": len(self)}
        if record.parameters is not None:
            facts["parameters of an adapter"] = f"{record.parameters:,}"
        if groups:
            facts["groups of datasets"] = len(groups)
        return facts

    def __repr__(self) -> str:
        """Return a few lines: where it is, for which base model, and what it holds."""
        return text_summary(f"AdapterBank {self.path}", self._facts())

    def _repr_html_(self) -> str:
        """Return the same for a notebook, with the first adapters."""
        facts = self._facts()
        adapters = [] if "cannot be read" in facts else self.adapters()
        rows = [(r.name, r.group, r.examples, r.tokens, r.rank, r.dtype) for r in adapters[:_LISTED]]
        headings = ("adapter", "group", "examples", "tokens", "rank", "dtype")
        return html_summary(f"AdapterBank {self.path}", facts, headings, rows, len(adapters) - len(rows))


def ready_adapters(bank: AdapterBank) -> tuple[AdapterRecord, ...]:
    """Return the adapters of a bank, by row, of one snapshot a command. Raises BankNotFoundError for none."""
    if adapters := snapshot_of(bank):
        return adapters
    raise BankNotFoundError(f"{bank.path}: the bank has no adapters; add some with `bank ingest`")
