"""Single bits of a bank's database flipped, and what a bank says and gives then.

Run as a program, it flips as many bits as it is told to in a bank that is given, in every page: `python -m
tests.support.faults.database_flips BANK 5000`.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from sqlalchemy import select

from bankdb.bank import AdapterBank
from bankdb.catalog.database import Database
from bankdb.catalog.schema import GenerationRow
from bankdb.errors import BankError
from bankdb.records import GenerationKey
from bankdb.scaled_rows import sources_of
from bankdb.verify import verify

PAGE = 4096


def flips(size: int, number: int, seed: int) -> Iterator[tuple[int, int]]:
    """Offsets and bits: every page in turn, each time somewhere else in it."""
    rng = random.Random(seed)
    pages = -(-size // PAGE)
    for count in range(number):
        start = count % pages * PAGE
        yield rng.randrange(start, min(start + PAGE, size)), 1 << rng.randrange(8)


def everything(path: Path, keys: list[GenerationKey]) -> list[object]:
    """All that a bank's catalogue gives to whoever computes; every number depends on nothing else of it."""
    with AdapterBank.open(path) as bank:
        adapters = bank.adapters()
        found: list[object] = [bank.record, adapters, bank.catalog.reserved(), len(bank)]
        if adapters:
            sources = sources_of(bank, adapters)
            found += [sources.rows.tolist(), sources.ratios.tolist(), sources.b_segments, bank.layout]
            found.append(None if sources.checksums is None else sources.checksums.tolist())
        for record in adapters:
            found += [bank.catalog.find(record.name), bank.catalog.blob(record.config_sha256)]
            found.append(bank.catalog.blob(record.header_sha256))
        counts = bank.catalog.token_counts([record.row for record in adapters])
        found += [(ids.tolist(), numbers.tolist()) for ids, numbers in counts]
        for run in bank.runs.all():
            found += [run, bank.runs.done_pieces(run.id), bank.runs.predictions(run.id)]
        found += [bank.generations.find(key) for key in keys]
        return found


def generation_keys(path: Path) -> list[GenerationKey]:
    with (
        AdapterBank.open(path) as bank,
        closing(Database(bank.location.database_url)) as database,
        database.read() as session,
    ):
        rows = session.scalars(select(GenerationRow))
        return [GenerationKey(row.adapter_sha256, row.test_sha256, row.settings_sha256) for row in rows]


class Flipped:
    """A bank whose database is given back after each flip.

    Parameters
    ----------
    path
        The bank; its write-ahead log is in its database.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.file = path, path / "bank.db"
        self.keys = generation_keys(path)
        self.expected = everything(path, self.keys)
        self.original = self.file.read_bytes()

    def outcome(self, offset: int, bit: int) -> str:
        """Return `unchanged`, `error`, or `found` where other values are given and verification says so.

        Raises
        ------
        AssertionError
            Other values without a word, or an error that does not name the database.
        """
        damaged = bytearray(self.original)
        damaged[offset] ^= bit
        self._put(damaged)
        try:
            return self._look(f"byte {offset} of page {offset // PAGE + 1}, bit {bit}")
        finally:
            self._put(self.original)

    def _put(self, data: bytes | bytearray) -> None:
        for name in ("bank.db-wal", "bank.db-shm"):
            (self.path / name).unlink(missing_ok=True)
        self.file.write_bytes(data)

    def _look(self, where: str) -> str:
        try:
            found = everything(self.path, self.keys)
        except BankError as error:
            _check_named(error, where)
            kind = "error"
        else:
            kind = "unchanged" if found == self.expected else "other"
        try:
            with AdapterBank.open(self.path) as bank:
                damage = verify(bank).damage
        except BankError as error:
            _check_named(error, where)
            damage = [str(error)]
        assert kind != "other" or damage, f"{where}: other values, and nothing is found"
        assert kind != "error" or damage, f"{where}: an error, and nothing is found"
        return "found" if kind == "other" else kind


def _check_named(error: BankError, where: str) -> None:
    assert "bank.db" in str(error), f"{where}: {error}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bank", type=Path)
    parser.add_argument("flips", type=int)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(arguments.bank, Path(folder) / "bank"))
        flipped = Flipped(copy)
        outcomes: Counter[str] = Counter()
        for offset, bit in flips(len(flipped.original), arguments.flips, arguments.seed):
            try:
                outcomes[flipped.outcome(offset, bit)] += 1
            except Exception:
                outcomes["FAULT"] += 1
                print(f"offset {offset} bit {bit}", traceback.format_exc(), flush=True)
        print(len(flipped.original) // PAGE, "pages", dict(outcomes))


if __name__ == "__main__":
    main()
