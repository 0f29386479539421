"""What a person at a prompt waits for: processor and wall seconds of commands, medians, next to importing NumPy.

python benchmarks/prompt/startup.py --bank my-bank --new my-data.jsonl
"""

from __future__ import annotations

import argparse
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import bankdb


def measured(command: Sequence[str]) -> tuple[float, float]:
    """Processor seconds, those of children included, and wall seconds of a command that succeeds."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def commands(bank: Path, new: Path, out: Path) -> Iterator[tuple[str, list[str]]]:
    python, program = sys.executable, str(Path(sys.executable).with_name("bank"))
    at = ["--bank", str(bank)]
    with bankdb.open(bank) as opened:
        name = opened.adapters()[0].name
    yield "python -c 'import numpy'", [python, "-c", "import numpy"]
    yield "bank --help", [program, "--help"]
    yield "bank list", [program, "list", *at]
    yield "bank show NAME", [program, "show", name, *at]
    yield "bank predict NEWDATA", [program, "predict", str(new), "--out", str(out), *at]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bank", type=Path, required=True)
    parser.add_argument("--new", type=Path, required=True, help="A dataset that is not in the bank.")
    parser.add_argument("--times", type=int, default=10)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "made"
        chosen = dict(commands(given.bank, given.new, out))
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in chosen}
        # In turn, so that whatever else the machine does falls on all of them.
        for _ in range(given.times + 1):
            for name, command in chosen.items():
                shutil.rmtree(out, ignore_errors=True)
                taken[name].append(measured(command))
    print("| command | processor s | wall s |\n|---|---|---|")
    for name, pairs in taken.items():
        # The first of each fills caches.
        cpu, wall = (statistics.median(column) for column in zip(*pairs[1:], strict=True))
        print(f"| `{name}` | {cpu:.2f} | {wall:.2f} |")


if __name__ == "__main__":
    main()
