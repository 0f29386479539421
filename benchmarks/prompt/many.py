"""Banks of very many tiny adapters: made in seconds, not as an ingest makes them, to time commands on them.

    python benchmarks/prompt/many.py --bank /tmp/many --adapters 20000

Beside the bank, `PATH-pair` has one pair more to ingest, and `PATH-new.jsonl` a dataset that is not in it. Files are
not flushed one by one, and records go into the database by the thousand; what is in them is what `bank ingest` writes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import insert, select
from sqlalchemy.orm import Session

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from synthetic import Shape, make_bank

from bankdb.arrays.chunks import write_chunks
from bankdb.bank import AdapterBank
from bankdb.catalog.database import Database
from bankdb.catalog.schema import AdapterRow, BankRow, DatasetRow, TokenDistributionRow
from bankdb.derived import set_attributes
from bankdb.progress import SilentProgress
from compute.metrics.registry import get_metric
from compute.pairwise.matrix import _complete, _open_run
from compute.pairwise.plan import CHUNK_ROWS

# p = 4,608: the layout of q, k and v has no 4,096.
SHAPE = Shape(adapters=1, layers=1, hidden=128, rank=8, vocabulary=32_000, tokens=20_000, distinct=2_000)
COMMON = 1_000
BATCH = 1_000


def histogram(rng: np.random.Generator, shape: Shape) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Ids that all datasets have and as many of its own, counts as rare as words are."""
    own = (
        rng.choice(shape.vocabulary - COMMON, shape.distinct - COMMON, replace=False, shuffle=False) + COMMON
    )
    ids = np.sort(np.concatenate([np.arange(COMMON), own])).astype("<u4")
    return ids, rng.zipf(1.5, len(ids)).clip(1, 5000).astype("<u4")


def rows_of(session: Session, model: Any) -> dict[str, Any]:
    """The one record of a table, by column."""
    (row,) = session.execute(select(model.__table__)).mappings()
    return dict(row)


def put(session: Session, model: Any, rows: list[dict[str, Any]]) -> None:
    session.execute(insert(model), [row | {"checksum": model.checksum_of(row)} for row in rows])


def fill(bank: AdapterBank, count: int, shape: Shape) -> None:
    """Add adapters up to `count`, like the one that is there."""
    rng = np.random.default_rng(1)
    first, one = bank.store.read(0), bank.store
    bank.store.grow(count)
    shards = one._known_shards()
    folder = Database(bank.location.database_url)
    with folder.write() as session:
        like = [rows_of(session, model) for model in (AdapterRow, DatasetRow, TokenDistributionRow)]
        for start in range(1, count, BATCH):
            numbers = range(start, min(start + BATCH, count))
            made = [list(copies(like, number, first, shards, rng, shape)) for number in numbers]
            for model, rows in zip(
                (AdapterRow, DatasetRow, TokenDistributionRow), zip(*made, strict=True), strict=True
            ):
                put(session, model, list(rows))
        record = session.scalars(select(BankRow)).one()
        record.next_row = count
    folder.close()


def copies(
    like: list[dict[str, Any]], number: int, first: Any, shards: Any, rng: np.random.Generator, shape: Shape
) -> Iterator[dict[str, Any]]:
    """The records of an adapter, its dataset and its counts; its row is written."""
    adapter, dataset, counts = like
    vector = first + np.float32(0.003) * rng.standard_normal(len(first), dtype=np.float32)
    ends: list[int] = []
    file = shards.file(number, 0)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"".join(map(bytes, shards.format.encoded(vector[None, :], ends))))
    sha256 = hashlib.sha256(vector.tobytes()).hexdigest()
    name = f"synthetic{number:05d}"
    yield adapter | {
        "id": number + 1,
        "name": name,
        "row": number,
        "source_sha256": sha256,
        "row_sha256": sha256,
        "checksums": np.asarray(ends, dtype="<u4").tobytes(),
    }
    ids, amounts = histogram(rng, shape)
    both = ids.tobytes(), amounts.tobytes()
    yield dataset | {
        "id": number + 1,
        "adapter_id": number + 1,
        "name": name,
        "content_sha256": hashlib.sha256(b"".join(both)).hexdigest(),
        "tokens": int(amounts.sum()),
    }
    yield counts | {
        "id": number + 1,
        "dataset_id": number + 1,
        "ids": both[0],
        "counts": both[1],
        "sha256": hashlib.sha256(b"".join(both)).hexdigest(),
    }


def pretend_distances(bank: AdapterBank, metric: str) -> None:
    """Leave a matrix as if it was computed: each chunk is a link to the same random numbers.

    To compute 200 million pairs takes half an hour, and what is timed is not that.
    """
    adapters = bank.adapters()
    stored = _open_run(bank, get_metric(metric), len(adapters), SilentProgress())
    values = np.random.default_rng(3).random((CHUNK_ROWS, CHUNK_ROWS))
    write_chunks(stored.path, (0, 0), values)
    blocks = -(-len(adapters) // CHUNK_ROWS)
    first = Path(str(stored.path)) / "c" / "0" / "0"
    for i in range(blocks):
        (first.parents[1] / str(i)).mkdir(exist_ok=True)
        # A file system has a limit of links to one file.
        of_row = first.parents[1] / str(i) / "0"
        if i:
            of_row.write_bytes(first.read_bytes())
        for j in range(1, blocks):
            os.link(of_row, of_row.with_name(str(j)))
    set_attributes(bank, stored.path, complete=_complete(adapters), writing={})
    bank.runs.finish(stored.run.id)


def words(seed: int, shape: Shape) -> str:
    """A data file whose texts have about as many distinct ids."""
    rng = np.random.default_rng(seed)
    ids, amounts = histogram(rng, shape)
    drawn = rng.permutation(np.repeat(ids, amounts.clip(1, 50)))
    parts = np.array_split(drawn, 100)
    lines = [{"input": " ".join(f"t{index}" for index in part), "output": ["t1"]} for part in parts]
    return "\n".join(map(json.dumps, lines)) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bank", type=Path, required=True)
    parser.add_argument("--adapters", type=int, default=20_000)
    parser.add_argument(
        "--distances",
        nargs="*",
        metavar="METRIC",
        help="Leave matrices as if they were computed, by Jensen-Shannon if no other is named.",
    )
    given = parser.parse_args()
    path: Path = given.bank
    with make_bank(path, SHAPE) as bank:
        fill(bank, given.adapters, SHAPE)
        if given.distances is not None:
            for metric in given.distances or ["jensen-shannon"]:
                pretend_distances(bank, metric)
        pair = path.with_name(f"{path.name}-pair")
        bank.export(bank.adapters()[0].name, pair / "adapters" / "one-more")
        print(f"{path}: {len(bank)} adapters of {SHAPE.layout().size:,} parameters")
    (pair / "datasets" / "one-more").mkdir(parents=True)
    (pair / "datasets" / "one-more" / "train.jsonl").write_text(words(1, SHAPE))
    path.with_name(f"{path.name}-new.jsonl").write_text(words(2, SHAPE))


if __name__ == "__main__":
    main()
