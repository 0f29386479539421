"""What the adapters to come are, where the bank has none yet that says what they have to be.

Of adapters on this machine the headers tell. Of those on the hub only the small configurations are downloaded before
the first pair is stored; the header of the first of the kind that most are says the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from bankdb.errors import AdapterError, BankError
from bankdb.ingesting.pipeline import OF_NO_PAIR, Incoming
from bankdb.records import Pair, PairReference, Taking
from bankdb.sources.located import Located
from bankdb.storage.expected import Expected, expected_of
from bankdb.storage.stored_bank import StoredBank

_Found = TypeVar("_Found")


def surveyed(
    bank: StoredBank,
    incoming: Sequence[Incoming],
    located: Located,
    taking: Taking,
    downloads: int,
    advance: Callable[[], None],
) -> Expected:
    """Return what adapters have to be; where some are on the hub, by what most of the configurations say.

    What cannot be had or read has no voice; it is refused with its reason when its turn comes.

    Parameters
    ----------
    advance
        Called for each pair on the hub.

    Raises
    ------
    ArrayStoreUnavailableError, DatabaseUnavailableError, FileSystemError
        The store, the database or the disk failed.
    """
    if bank.record.layout is not None or all(one.pair is not None for one in incoming):
        return expected_of(bank, [one.pair for one in incoming if one.pair is not None], taking)
    pool = ThreadPoolExecutor(downloads, "survey")
    try:
        folders = pool.map(lambda one: _configuration(one, located), incoming)
        kinds = _kinds(bank, incoming, folders, taking, advance)
        votes = Counter(kind for kind in kinds if kind is not None)
        if not votes:
            return expected_of(bank, [], taking)
        most = votes.most_common(1)[0][0]
        members = [one for one, kind in zip(incoming, kinds, strict=True) if kind == most]
        for one in members:
            pair = _pair(one, located)
            expected = expected_of(bank, [] if pair is None else [pair], taking)
            if expected.layout is not None:
                return expected
        return expected_of(bank, [], taking)
    except BaseException:
        located.stop()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _kinds(
    bank: StoredBank,
    incoming: Sequence[Incoming],
    folders: Iterator[Path | None],
    taking: Taking,
    advance: Callable[[], None],
) -> list[Hashable]:
    """Return what each configuration says, as far as it bears on the layout; None where it is none of the bank's."""
    from bankdb.peft.config import CONFIG_NAME, read_config
    from bankdb.peft.weights import is_base_model

    record = bank.record
    base_models = (record.base_model, *record.base_model_aliases)
    assumed = record.base_model if taking.assume_base_model else None
    kinds: list[Hashable] = []
    for one, folder in zip(incoming, folders, strict=True):
        kinds.append(None)
        if one.pair is None:
            advance()
        if folder is None:
            continue
        try:
            config = read_config(folder / CONFIG_NAME, assumed)
        except AdapterError:
            continue
        if is_base_model(config.base_model, base_models):
            kinds[-1] = (config.revision, config.rank, config.scaling, config.selection)
    return kinds


def _configuration(one: Incoming, located: Located) -> Path | None:
    if one.pair is not None:
        return one.pair.adapter
    return _had(located.configuration, one.reference)


def _pair(one: Incoming, located: Located) -> Pair | None:
    return one.pair if one.pair is not None else _had(located.pair, one.reference)


def _had(have: Callable[[PairReference], _Found], reference: PairReference) -> _Found | None:
    try:
        return have(reference)
    except OF_NO_PAIR:
        raise
    except BankError:
        return None
