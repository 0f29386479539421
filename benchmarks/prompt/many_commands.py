"""What each command costs on banks of 200, 2,000 and 20,000 tiny adapters: a table of seconds and peak memory.

    python benchmarks/prompt/many_commands.py --folder build/many

Each bank is made by `many.py`, beside a matrix of distances that is made up. Every command is a process of its own; its
processor seconds and its peak memory, the largest of it and its workers, are the kernel's. Nothing but the standard
library is loaded here: a process that is started counts the memory of the one that started it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
BANK = str(Path(sys.executable).with_name("bank"))
# N x N float64 that `predict --all` has at once, in bytes an entry; a machine with less memory does not run it.
ALL_BYTES = 48
WRITE = """
import os, sys
left, block = int(sys.argv[2]), os.urandom(2**20)
with open(sys.argv[1], "wb") as file:
    while left > 0:
        left -= file.write(block[:left])
    file.flush()
    os.fsync(file.fileno())
"""


@dataclass(frozen=True)
class Cost:
    """Seconds of the wall and of the processor, and peak memory in MiB."""

    wall: float
    cpu: float
    memory: float

    def __str__(self) -> str:
        return f"{self.wall:.1f} s, {self.cpu:.1f} s, {self.memory:.0f} MiB"


def measured(command: Sequence[str]) -> Cost:
    """Run a command that succeeds; without its output, unless it fails."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    output = process.stdout.read()[-4000:].decode("utf-8", "replace")
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: status {process.returncode}\n{output}")
    return Cost(time.perf_counter() - begin, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def another_pair(pair: Path) -> Path:
    """Return a second pair, of the same adapter and other texts."""
    made = pair.with_name(f"{pair.name}-2")
    shutil.copytree(pair, made)
    for kind in ("adapters", "datasets"):
        (made / kind / "one-more").rename(made / kind / "second")
    data = made / "datasets" / "second" / "train.jsonl"
    data.write_text(data.read_text().replace("t1 ", "t2 "))
    return made


def commands(bank: Path, n: int, matrix: bool) -> Iterator[tuple[str, Cost]]:
    """Run the commands on a bank of N adapters; yield what was run, and what it cost."""
    pair, at = bank.with_name(f"{bank.name}-pair"), ["--bank", str(bank)]
    out = bank.with_name(f"{bank.name}-out")
    out.mkdir()

    def run(*arguments: str) -> Cost:
        return measured([BANK, *arguments, *at])

    yield "`list`", run("list")
    yield "`show NAME`", run("show", "synthetic00007")
    new = str(bank.with_name(f"{bank.name}-new.jsonl"))
    yield "`predict NEWDATA`", run("predict", new, "--out", str(out / "made"))
    yield "`ingest`, the first: all are compared", run("ingest", str(pair))
    yield "`distances`, the first: all counts are written", run("distances")
    yield "`ingest` of one more pair", run("ingest", str(another_pair(pair)))
    yield "`distances` after it", run("distances")
    yield "`distances`, nothing to do", run("distances")
    yield "`verify`", run("verify")
    if ALL_BYTES * n * n < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2:
        yield "`predict --all`", run("predict", "--all")
    if matrix:
        yield from files(run, out)


def files(run: object, out: Path) -> Iterator[tuple[str, Cost]]:
    """Write the matrix in each format, and as many bytes as its CSV has."""
    assert callable(run)
    csv = out / "d.csv"
    yield "`distances --parquet`", run("distances", "--parquet", str(out / "d.parquet"))
    yield "`distances --zarr`", run("distances", "--zarr", str(out / "d.zarr"))
    yield "`distances --csv`", run("distances", "--csv", str(csv))
    size = csv.stat().st_size
    csv.unlink()
    cost = measured([sys.executable, "-c", WRITE, str(out / "bytes"), str(size)])
    yield "as many bytes, written and flushed", cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--folder", type=Path, required=True, help="For the banks; it is made, and deleted after."
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[200, 2_000, 20_000])
    parser.add_argument(
        "--report", type=int, default=5_000, help="Adapters of a bank for `bank report` alone."
    )
    parser.add_argument(
        "--no-matrix", action="store_true", help="Leave out the files of a matrix: 20 GB at 20,000."
    )
    given = parser.parse_args()
    given.folder.mkdir(parents=True)
    try:
        tell(given.folder, given.sizes, given.report, not given.no_matrix)
    finally:
        shutil.rmtree(given.folder)


def made(folder: Path, n: int) -> Path:
    bank = folder / f"n{n}"
    measured(
        [sys.executable, str(HERE / "many.py"), "--bank", str(bank), "--adapters", str(n), "--distances"]
    )
    return bank


def tell(folder: Path, sizes: Sequence[int], report: int, matrix: bool) -> None:
    """Measure, each as it comes on stderr, and print the table."""
    table: dict[str, dict[int, Cost]] = {}
    for n in sizes:
        for name, cost in commands(made(folder, n), n, matrix):
            print(f"N = {n:,}: {name}: {cost}", file=sys.stderr, flush=True)
            table.setdefault(name, {})[n] = cost
        for left in folder.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    print(f"| wall, processor, peak memory | {' | '.join(f'N = {n:,}' for n in sizes)} |")
    print("|---" * (len(sizes) + 1) + "|")
    for name, costs in table.items():
        print(f"| {name} | {' | '.join(str(costs.get(n, 'not run')) for n in sizes)} |")
    if report:
        page = folder / "report.html"
        cost = measured([BANK, "report", "--bank", str(made(folder, report)), "--out", str(page)])
        print(f"\n`report` at N = {report:,}: {cost}, a page of {page.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
