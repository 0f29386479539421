"""A bank on its way out: to a repository of the hub, a folder or a tar."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bankdb.errors import BankError, ConflictError, listed, one_line
from bankdb.progress import Progress, SilentProgress
from bankdb.records import AdapterRecord
from bankdb.sharing.card import bank_card
from bankdb.sharing.contents import Contents, chosen
from bankdb.sharing.form import (
    ABOUT,
    ADAPTERS,
    CARD,
    CATALOGUE,
    SUMS,
    SharedAdapter,
    about_text,
    catalogue_text,
    sums_text,
)
from bankdb.sharing.places.hub import quiet_client
from bankdb.sharing.places.opened import Shared, closing
from bankdb.sharing.places.place import Place, parse_place
from bankdb.sharing.places.published import Target, target_of
from bankdb.sharing.privacy import check_tells_nothing
from bankdb.sharing.received import read_shared

if TYPE_CHECKING:
    from bankdb.bank import AdapterBank


@dataclass(slots=True)
class PushReport:
    """What a push did.

    Attributes
    ----------
    target
        Where the bank is now.
    adapters
        Names of the adapters that are there.
    new
        Files that were not there already, byte for byte; of the hub, files that were offered to it.
    left_out
        Names of adapters of the bank that are not there, by reason.
    made
        What is said of a place that was made.
    """

    target: str
    adapters: list[str] = field(default_factory=list)
    new: int = 0
    left_out: dict[str, list[str]] = field(default_factory=dict)
    made: str = ""


def push(
    bank: AdapterBank,
    target: str,
    names: Sequence[str] = (),
    *,
    include_unlicensed: bool = False,
    public: bool = False,
    replace: bool = False,
    progress: Progress | None = None,
) -> PushReport:
    """Give a bank away: adapters, counts of tokens, tokenizer and records; no text of datasets, and no local path.

    What is there already with the same content is not sent again, so that a push that was interrupted goes on.

    Parameters
    ----------
    target
        `OWNER/NAME` on the hub, a dataset repository, made if there is none; a folder; or `FILE.tar`.
    names
        Names of adapters, or patterns such as `task1*`; all if none is given.
    include_unlicensed
        Those that state no licence too. Those whose licence forbids it are never among them.
    public
        Whether a repository that is made may be seen by all.
    replace
        Take the place of what is there, where that has other adapters or other content under their names.

    Raises
    ------
    BankNotFoundError
        The bank has no such adapter.
    ConflictError
        None may be given away; or the place holds something else, or adapters that this would replace or lack.
    ParameterError
        There is no token for the hub, or it is not to be asked.
    PublishError, SourceError
        The hub or the disk refused. What is there is kept.
    """
    place, progress = parse_place(target), progress or SilentProgress()
    found = chosen(bank, names, include_unlicensed)
    report = PushReport(str(place), [one.name for one in found.adapters], left_out=found.left_out)
    contents = Contents(bank, found.adapters)
    entries = [contents.entry(one) for one in found.adapters]
    quiet = quiet_client() if place.kind == "hub" else contextlib.nullcontext()
    with quiet, tempfile.TemporaryDirectory(prefix="bank-push-") as folder:
        destination = target_of(place, Path(folder), public)
        there, paths = destination.there()
        report.made = destination.made
        gone = _replaced(there, paths, entries, Path(folder), replace, str(place))
        try:
            _write(destination, contents, entries, found.adapters, gone, place, report, progress)
        except BaseException:
            destination.abandon()
            raise
    return report


def _write(
    destination: Target,
    contents: Contents,
    entries: Sequence[SharedAdapter],
    adapters: Sequence[AdapterRecord],
    gone: set[str],
    place: Place,
    report: PushReport,
    progress: Progress,
) -> None:
    sums: dict[str, str] = {}

    def put(files: Mapping[str, bytes]) -> None:
        sums.update({path: hashlib.sha256(data).hexdigest() for path, data in files.items()})
        report.new += destination.put(files)

    first = {ABOUT: about_text(contents.about), **contents.tokenizer()}
    title = place.reference.repo_id.partition("/")[2] if place.reference else place.path.absolute().name
    pulled_as = place.reference.repo_id if place.reference else title
    card = bank_card(title, pulled_as, contents.about, entries, report.left_out).encode()
    last = {CATALOGUE: catalogue_text(entries)}
    check_tells_nothing({ABOUT: first[ABOUT], CARD: card, **last}, contents.places)
    put(first)
    progress.begin("push", len(adapters))
    for record in adapters:
        put(contents.files(record))
        progress.advance()
    progress.end()
    put(last)
    destination.finish({CARD: card, SUMS: sums_text(sums)}, gone)


def _replaced(
    there: Shared | None,
    paths: set[str],
    entries: Sequence[SharedAdapter],
    folder: Path,
    replace: bool,
    where: str,
) -> set[str]:
    """Return the paths of adapters that are there and go.

    Raises
    ------
    ConflictError
        An adapter there is not among those that come, or another one, and none is to be replaced.
    """
    here = {one.name: one for one in entries}
    names = {path.split("/")[1] for path in paths if path.startswith(f"{ADAPTERS}/") and path.count("/") > 1}
    lacking, other = sorted(names - here.keys()), list[str]()
    if there is not None:
        with closing(there):
            found = None if replace else _read(there, folder, where)
        for one in found or ():
            new = here.get(one.name)
            if new is None:
                lacking.append(one.name)
            elif (one.row_sha256, one.content_sha256) != (new.row_sha256, new.content_sha256):
                other.append(one.name)
    if not replace and (lacking or other):
        what = (
            f"adapters that would be lost: {listed(sorted(set(lacking)))}"
            if lacking
            else f"others under: {listed(other)}"
        )
        raise ConflictError(
            f"{where}: there are {what}; choose another place, or pass --replace to put this there instead"
        )
    gone = set(lacking)
    return {path for path in paths if path.startswith(f"{ADAPTERS}/") and path.split("/")[1] in gone}


def _read(there: Shared, folder: Path, where: str) -> Sequence[SharedAdapter]:
    try:
        return read_shared(there, folder / "there").adapters
    except BankError as error:
        raise ConflictError(
            f"{where}: what is there cannot be read ({one_line(error)}); choose another place, or pass --replace to "
            "put this bank in its place"
        ) from error
