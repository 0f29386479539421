"""A public bank of 502 pairs on the tests' hub, as Lots-of-LoRAs is but with tiny files, ingested by one command.

    python -m benchmarks.hub.public_bank --folder build/bench-hub

Three pairs have no dataset, one is gated; some requests are answered 429 with the time of a reset, some connections
break. Prints a line a figure: what was stored, requests a pair, what a rerun asks, what ten kills cost, how much faster
four downloads at a time are than one where each answer takes 20 ms, and the memory that the command took.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from bankdb.bank import AdapterBank
from bankdb.verify import verify
from tests.support.banks.small_bank import create_bank, write_tokenizer
from tests.support.servers.hub_listing_server import ListingHubServer
from tests.support.servers.public_bank import OWNER, publish_bank

UNMATCHED, GATED = (100, 200, 300), (400,)
# The command, as `bank ingest --hub OWNER` runs it; the last line is its peak of memory in MiB.
INGEST = """
import resource, sys
from bankdb.bank import AdapterBank
from cli.display import LineProgress
with AdapterBank.open(sys.argv[1]) as bank:
    report = bank.ingest(sys.argv[2], hub=True, downloads=int(sys.argv[3]), memory=1 << 30, progress=LineProgress(),
                         keep_downloads=sys.argv[4] == "cache")
print(len(report.added), len(report.skipped), len(report.refused))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


class Bench:
    """A hub with its pairs, and banks filled from it."""

    def __init__(self, folder: Path, hub: ListingHubServer, pairs: int) -> None:
        self.folder, self.hub, self.pairs = folder, hub, pairs
        self.tokenizer = write_tokenizer(folder / "tokenizer")
        publish_bank(hub, folder / "files", pairs, unmatched=UNMATCHED, gated=GATED)

    def bank(self, name: str) -> Path:
        """Make an empty bank."""
        create_bank(self.folder / name, self.tokenizer).close()
        return self.folder / name

    def start(self, bank: Path, cache: str, downloads: int = 4, kept: str = "cache") -> subprocess.Popen[str]:
        """Begin to ingest."""
        environment = {**os.environ, **self.hub.environment(self.folder / cache)}
        command = [sys.executable, "-c", INGEST, str(bank), OWNER, str(downloads), kept]
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def ingest(
        self, bank: Path, cache: str, downloads: int = 4, kept: str = "cache"
    ) -> tuple[list[int], float, int]:
        """Ingest; return what was added, skipped and refused, the seconds, and MiB of memory."""
        begun = time.perf_counter()
        out, errors = self.start(bank, cache, downloads, kept).communicate()
        seconds = time.perf_counter() - begun
        counts, peak = out.splitlines() if out else sys.exit(errors[-2000:])
        return [int(one) for one in counts.split()], seconds, int(peak)


def one_command(bench: Bench) -> None:
    """Store all that can be stored, though requests are refused and connections break; and again."""
    hub = bench.hub
    hub.fail("resolve", status=429, headers={"RateLimit": '"resolvers";r=0;t=2'}, times=12)
    hub.fail("/blobs/", cut=900, times=30)
    counts, seconds, peak = bench.ingest(bank := bench.bank("one"), "cache-one")
    again = 12 + 30 + hub.listings()
    asked = sum(count for path, count in hub.requests.items() if "/blobs/" not in path)
    print(
        f"stored {counts[0]} of {bench.pairs}, {counts[2]} refused by name, in {seconds:.1f} s; peak {peak} MiB"
    )
    print(
        f"requests: {asked}; {(asked - again) / bench.pairs:.2f} a pair without listings, and those that were asked "
        "again since they were refused or broke"
    )
    hub.failures.clear()
    before = hub.requests.total()
    counts, seconds, _ = bench.ingest(bank, "cache-one")
    print(f"again: {counts[1]} there already, {hub.requests.total() - before} requests, {seconds:.1f} s")


def side_by_side(bench: Bench, latency: float) -> None:
    """Compare one download at a time, which storing goes on beside too, with four."""
    bench.hub.latency = latency
    taken = {}
    for downloads in (1, 4):
        _, taken[downloads], _ = bench.ingest(bench.bank(f"speed{downloads}"), f"cache{downloads}", downloads)
    bench.hub.latency = 0.0
    print(
        f"{1000 * latency:.0f} ms an answer: {taken[1]:.1f} s one at a time, {taken[4]:.1f} s four at a time, "
        f"{taken[1] / taken[4]:.2f} times faster"
    )


def kills(bench: Bench, times: int, seed: int) -> None:
    """Kill the command at random moments, and count what is downloaded again."""
    rng, hub = random.Random(seed), bench.hub
    bank, begun = bench.bank("killed"), sum(path.startswith("/blobs/") for path in hub.downloads())
    stored = 0
    for _ in range(times):
        process = bench.start(bank, "cache-killed")
        with AdapterBank.open(bank) as opened:
            goal = stored + rng.randint(1, max(1, (bench.pairs - stored) // times))
            while len(opened) < goal and process.poll() is None:
                time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        with AdapterBank.open(bank) as opened:
            assert verify(opened).clean
            assert len(opened) >= stored
            stored = len(opened)
    counts, _, _ = bench.ingest(bank, "cache-killed")
    good = bench.pairs - len(UNMATCHED) - len(GATED)
    large = sum(path.startswith("/blobs/") for path in hub.downloads()) - begun
    print(
        f"{times} kills: {stored} were stored by then, {counts[0]} after; {large - 2 * good} of {2 * good} large files "
        f"asked for again ({(large - 2 * good) / times:.1f} a kill)"
    )


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=502)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["one", "speed", "kills"])
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    with ListingHubServer() as hub:
        bench = Bench(options.folder, hub, options.pairs)
        if options.only in (None, "one"):
            one_command(bench)
        if options.only in (None, "speed"):
            side_by_side(bench, 0.02)
        if options.only in (None, "kills"):
            kills(bench, options.kills, options.seed)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"processor: {used.ru_utime + used.ru_stime:.0f} s of the commands")
    shutil.rmtree(options.folder)


if __name__ == "__main__":
    main()
