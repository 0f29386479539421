"""What it costs to hold each chunk that is read against the catalogue: the same work with the checksums and without.

    python benchmarks/synthetic.py --bank BANK --adapters 502 --layers 32 --hidden 4096
    python benchmarks/checks.py --bank BANK

Three readings of a bank: the chunks alone, one after another; the slices of the Gram matrix; and one combination of
all adapters. Each is done with and without the check in turn, which goes first too; a ratio is of the least times of
all rounds. Processor time is what a busy machine changes least, the wall's time what one waits for; products are
computed by one thread, as in a worker, since idle threads of BLAS take processor time too.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import machine
import numpy as np
from threadpoolctl import threadpool_limits

from bankdb.arrays.adapter_store import row_sha256
from bankdb.arrays.zarr_arrays import create_array
from bankdb.bank import AdapterBank, ready_adapters
from bankdb.scaled_rows import Sources, sources_of
from compute.combination.combine import combine_one
from compute.gram.slices import gram_slice

Work = Callable[[AdapterBank, Sources], object]


def read_chunks(bank: AdapterBank, sources: Sources) -> None:
    chunk, size, n = bank.store.chunk, bank.layout.size, len(sources.rows)
    panel = np.empty((n, chunk), dtype=np.float32)
    for start in range(0, size, chunk):
        stop = min(start + chunk, size)
        sources.read_into(panel[:, : stop - start], bank.store, range(n), start, stop)


def gram_slices(bank: AdapterBank, sources: Sources, columns: int) -> None:
    """The slices over so many columns, as tasks are given them."""
    n, chunk = len(sources.rows), bank.store.chunk
    starts = range(0, min(columns, bank.layout.size), chunk)
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "part"
        create_array(
            part, shape=(len(starts), n, n), chunks=(1, n, n), shards=None, dtype="float64", attributes={}
        )
        for index, start in enumerate(starts):
            stop = min(start + chunk, bank.layout.size)
            own = sources.within(start, stop, chunk)
            gram_slice(str(bank.store.path), str(part), own, range(n), index, start, stop)


def combination(bank: AdapterBank, sources: Sources) -> None:
    n = len(sources.rows)
    weights = np.full(n, 1 / n, dtype=np.float32)
    combine_one(bank.store, sources, weights, chunk=bank.store.chunk, budget=1 << 30)


def timed(work: Work, bank: AdapterBank, sources: Sources) -> tuple[float, float]:
    """Processor time of this process, and the wall's."""
    started, wall = time.process_time(), time.perf_counter()
    work(bank, sources)
    return time.process_time() - started, time.perf_counter() - wall


def ratios(name: str, work: Work, bank: AdapterBank, sources: Sources, rounds: int) -> str:
    """A line of the table: seconds without the check, and how much longer it takes with it."""
    ways = {True: sources, False: replace(sources, checksums=None)}
    found: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    work(bank, sources)  # files that the kernel can keep are in its cache
    for number in range(rounds):
        for checked in (number % 2 == 0, number % 2 == 1):
            found[checked].append(timed(work, bank, ways[checked]))
    least = {
        checked: [min(column) for column in zip(*times, strict=True)] for checked, times in found.items()
    }
    cpu, wall = (least[True][place] / least[False][place] for place in (0, 1))
    return f"| {name} | {least[False][0]:.2f} | {cpu:.3f} | {least[False][1]:.2f} | {wall:.3f} |"


def hash_rate(bank: AdapterBank) -> float:
    """Bytes a second of a whole row's sha256, which is what it would cost without checksums of chunks."""
    vector = bank.store.read(bank.adapters()[0].row)
    started = time.process_time()
    for _ in range(5):
        row_sha256(vector)
    return 5 * vector.nbytes / (time.process_time() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bank", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--columns", type=int, default=1 << 20, help="of the Gram matrix's slices")
    arguments = parser.parse_args()
    with AdapterBank.open(arguments.bank) as bank:
        adapters = ready_adapters(bank)
        sources = sources_of(bank, adapters)
        listing = min(timed(lambda bank, _: bank.adapters(), bank, sources)[0] for _ in range(5))
        assert sources.checksums is not None
        load = os.getloadavg()[0]
        print(
            f"N = {len(bank)}, p = {bank.layout.size:,}; {machine.description()}; load {load:.1f} when it began; "
            f"least of {arguments.rounds} rounds. Checksums of chunks: {sources.checksums.nbytes:,} bytes. All "
            f"{len(bank)} records read and checked: {1000 * listing:.1f} ms. A whole row's sha256: "
            f"{hash_rate(bank) / 1e9:.2f} GB/s.\n"
        )
        print("| reading | processor s | with the check | wall s | with the check |\n|---|---|---|---|---|")
        works: dict[str, Work] = {
            "chunks alone": read_chunks,
            f"Gram matrix, {arguments.columns:,} columns": lambda bank, sources: gram_slices(
                bank, sources, arguments.columns
            ),
            "one combination of all": combination,
        }
        with threadpool_limits(limits=1):
            for name, work in works.items():
                print(ratios(name, work, bank, sources, arguments.rounds), flush=True)


if __name__ == "__main__":
    main()
