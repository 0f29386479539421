"""Which datasets are called far from a bank: its own with their groups left out, and foreign texts.

    python benchmarks/novelty/foreign.py BANK [--other FOLDER]

Prints the tables of docs/mathematics.md. OTHER holds datasets of another bank, `NAME/train.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bankdb.bank import AdapterBank, ready_adapters
from bankdb.datasets.read import read_dataset, training_files
from compute.approaches.options import PredictionOptions
from compute.metrics.distributions import TokenCounts
from compute.metrics.novelty import Novelty, nearest_of_others, novelty, units_apart
from compute.pairwise.counts import token_counts

METRICS = ("js", "tf-idf", "kl", "wd", "mmd")
ROOT = Path(__file__).resolve().parents[2]
WORDS = (
    *(
        "вода",
        "огонь",
        "земля",
        "ветер",
        "дом",
        "город",
        "река",
        "книга",
        "стол",
        "окно",
        "дверь",
        "слово",
        "время",
    ),
    *(
        "день",
        "ночь",
        "человек",
        "работа",
        "дорога",
        "хлеб",
        "снег",
        "зима",
        "лето",
        "мы",
        "они",
        "идёт",
        "видит",
    ),
    *("говорит", "читает", "пишет", "новый", "старый", "белый", "большой"),
)


def foreign_rows(rng: random.Random) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Texts that no task of the banks measured is like: names, and pairs of input and output."""
    code = []
    for path in sorted((ROOT / "compute").rglob("*.py")):
        lines = path.read_text().splitlines()
        starts = range(0, len(lines) - 12, 12)
        code += [
            ("\n".join(lines[at : at + 10]), "\n".join(lines[at + 10 : at + 12]) or "pass") for at in starts
        ]
    yield "source code", rng.sample(code, 200)
    yield "another alphabet", [(" ".join(rng.choices(WORDS, k=20)), rng.choice(WORDS)) for _ in range(200)]
    numbers = [[str(rng.randrange(10 ** rng.randrange(1, 6))) for _ in range(20)] for _ in range(200)]
    yield "numbers only", [(" ".join(row), str(rng.randrange(1000))) for row in numbers]
    yield "one word", [("yes", "yes")] * 200


def foreign_files(folder: Path, others: Sequence[Path]) -> list[tuple[str, Path]]:
    """Write the foreign texts; return names and files of these, and of another bank's datasets."""
    files = []
    for name, rows in foreign_rows(random.Random(0)):
        path = folder / f"{name.replace(' ', '-')}.jsonl"
        path.write_text("".join(json.dumps({"input": a, "output": [b]}) + "\n" for a, b in rows))
        files.append((name, path))
    return [*files, *((path.parent.name, path) for path in others)]


def own_flags(distances: NDArray[np.float64], units: NDArray[np.intp], largest: float) -> list[bool]:
    """Whether each of the bank's datasets is called novel to a bank without its unit."""
    flags = []
    for unit, row in zip(units, distances, strict=True):
        kept = units != unit
        own = nearest_of_others(distances[np.ix_(kept, kept)], units[kept], units[kept])
        named = {str(index): value for index, value in enumerate(row[kept])}
        flags.append(novelty("", named, own, largest=largest).novel)
    return flags


def counts_of(bank: AdapterBank, path: Path) -> TokenCounts:
    """Token counts of a file, by the bank's tokenizer."""
    dataset = read_dataset(training_files(path), bank.reading(), memory=2**30)
    found = bank.tokenizer.count(dataset.each_text(), str(path), 2**30)
    return TokenCounts.stack([(found.ids, found.counts)], bank.record.vocabulary)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bank", type=Path)
    parser.add_argument("--other", type=Path)
    given = parser.parse_args()
    others = [] if given.other is None else sorted(given.other.glob("*/train.jsonl"))
    with tempfile.TemporaryDirectory() as folder, AdapterBank.open(given.bank) as bank:
        adapters = ready_adapters(bank)
        counts = token_counts(bank, adapters)
        files = foreign_files(Path(folder), others)
        new = [(name, counts_of(bank, path)) for name, path in files]
        by_group = units_apart([one.group for one in adapters], [one.content_sha256 for one in adapters])
        alone = units_apart([None] * len(adapters), [one.content_sha256 for one in adapters])
        for name in METRICS:
            metric = PredictionOptions(metric=name).resolve_metric(counts)
            distances, largest = metric.block(counts, counts), metric.largest(counts.vocabulary)
            own = nearest_of_others(distances, by_group, by_group)
            flags = [sum(own_flags(distances, units, largest)) for units in (by_group, alone)]
            found = {
                key: novelty(
                    name,
                    {str(i): float(d) for i, d in enumerate(metric.block(one, counts)[0])},
                    own,
                    largest=largest,
                )
                for key, one in new
            }
            print(f"{name}: of its own {len(adapters)}, groups left out {flags[0]}, each alone {flags[1]}")
            report(found, len(files) - len(others))


def report(found: dict[str, Novelty], foreign: int) -> None:
    """Print each foreign text, and how many of the other bank's datasets are called novel."""
    for key, one in list(found.items())[:foreign]:
        print(f"  {key}: {one.nearest:.3f}, farther than {one.nearer} of {one.compared}, novel {one.novel}")
    rest = list(found.values())[foreign:]
    if rest:
        print(f"  of another bank: {sum(one.novel for one in rest)} of {len(rest)}")


if __name__ == "__main__":
    main()
