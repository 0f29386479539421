"""Twelve pairs of real size, 37.8 MB each, from a hub in another process: the whole ingest next to a bare copy.

    python -m benchmarks.hub.real_size --folder build/bench-hub-size

The copy takes the same bytes from the same server by the same HTTP client, as many at a time, into files; with and
without flushing them to the disk, as rows are flushed. Rounds alternate; medians and their ratios are printed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import urllib.request
from pathlib import Path

# The bare copy: what the client sends into files. The last line is the seconds.
COPY = """
import os, sys, time
from concurrent.futures import ThreadPoolExecutor
from huggingface_hub.utils import get_session
folder, flushed, urls = sys.argv[1], sys.argv[2] == "flushed", sys.argv[4:]
os.makedirs(folder)
def copy(url):
    path = os.path.join(folder, url.replace("/", "_"))
    with get_session().stream("GET", url) as response, open(path, "wb") as out:
        response.raise_for_status()
        for piece in response.iter_raw():
            out.write(piece)
        out.flush()
        if flushed:
            os.fsync(out.fileno())
begun = time.perf_counter()
with ThreadPoolExecutor(int(sys.argv[3])) as pool:
    list(pool.map(copy, urls))
print(time.perf_counter() - begun)
"""
INGEST = """
import resource, sys, time
from bankdb.bank import AdapterBank
import bankdb.ingest, numpy, zarr, pyarrow.parquet, huggingface_hub.utils  # not what is measured
with AdapterBank.open(sys.argv[1]) as bank:
    bank.tokenizer.notes
    begun = time.perf_counter()
    report = bank.ingest(sys.argv[2], hub=True, downloads=int(sys.argv[3]), keep_downloads=sys.argv[4] == "keep",
                         memory=1 << 30)
    seconds = time.perf_counter() - begun
assert len(report.added) == int(sys.argv[5]), report
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, report.downloaded)
print(seconds)
"""
SERVE = """
import sys
import urllib.request
from pathlib import Path
from benchmarks.hub.real_size import published
hub = published(Path(sys.argv[1]), int(sys.argv[2]))
with hub:
    print(hub.endpoint, *hub.addresses, flush=True)
    sys.stdin.read()
"""
LAYERS, HIDDEN, RANK = 32, 4096, 16


def published(folder: Path, pairs: int):  # type: ignore[no-untyped-def]
    """Return a hub with that many adapters of the paper's size, each of other values, and datasets of 300 examples."""
    import io
    import json

    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from bankdb.peft.weights import write_safetensors
    from benchmarks.synthetic import Shape
    from tests.support.banks.malformed_adapters import good_config
    from tests.support.banks.small_bank import write_dataset
    from tests.support.servers.hub_listing_server import ListingHubServer
    from tests.support.servers.public_bank import ADAPTER, DATASET, OWNER

    hub = ListingHubServer()
    hub.addresses = []
    layout = Shape(layers=LAYERS, hidden=HIDDEN, rank=RANK).layout()
    for number in range(1, pairs + 1):
        values = np.random.default_rng(number).normal(size=layout.size).astype(np.float32)
        write_safetensors(folder / "made.safetensors", values, layout, "float32")
        config = good_config(r=RANK, target_modules=["q_proj", "k_proj", "v_proj"])
        rows = (write_dataset(folder / f"d{number}", number, 300) / "train.jsonl").read_text().splitlines()
        table = pa.Table.from_pylist([{**row, "id": str(row["id"])} for row in map(json.loads, rows)])
        pq.write_table(table, data := io.BytesIO())
        model, dataset = f"{OWNER}/{ADAPTER.format(number)}", f"{OWNER}/{DATASET.format(number, 0)}"
        weights = (folder / "made.safetensors").read_bytes()
        commit = hub.publish(
            "model", model, {"adapter_config.json": json.dumps(config), "adapter_model.safetensors": weights}
        )
        other = hub.publish("dataset", dataset, {"data/train-00000-of-00001.parquet": data.getvalue()})
        hub.addresses += [
            f"{hub.endpoint}/{model}/resolve/{commit}/adapter_config.json",
            f"{hub.endpoint}/{model}/resolve/{commit}/adapter_model.safetensors",
            f"{hub.endpoint}/datasets/{dataset}/resolve/{other}/data/train-00000-of-00001.parquet",
        ]
    (folder / "made.safetensors").unlink()
    return hub


def seconds(command: list[str], environment: dict[str, str]) -> tuple[float, str]:
    """Run a program; return the seconds that it says, and what it says before."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    *before, last = done.stdout.splitlines()
    return float(last), " ".join(before)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--downloads", type=int, default=4)
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True)
    from tests.support.banks.small_bank import create_bank, write_tokenizer
    from tests.support.servers.public_bank import OWNER

    tokenizer = write_tokenizer(folder / "tokenizer")
    server = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(folder), str(options.pairs)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    endpoint, *addresses = server.stdout.readline().split()
    for kind in ("models", "datasets"):  # it hashes its files when it is first asked for them
        urllib.request.urlopen(f"{endpoint}/api/{kind}?author={OWNER}").read()
    taken: dict[str, list[float]] = {}
    said = ""
    for number in range(options.rounds):
        environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(folder / f"home{number}")}
        environment["NO_PROXY"] = "127.0.0.1,localhost"
        for kind in ("copy", "flushed"):
            target = folder / f"{kind}{number}"
            command = [sys.executable, "-c", COPY, str(target), kind, str(options.downloads), *addresses]
            taken.setdefault(kind, []).append(seconds(command, environment)[0])
            shutil.rmtree(target)
        for kind in ("keep", "free"):
            create_bank(folder / f"bank{number}{kind}", tokenizer).close()
            arguments = [str(folder / f"bank{number}{kind}"), OWNER, str(options.downloads), kind]
            command = [sys.executable, "-c", INGEST, *arguments, str(options.pairs)]
            found, said = seconds(command, environment | {"HF_HOME": str(folder / f"home{number}{kind}")})
            taken.setdefault(kind, []).append(found)
            shutil.rmtree(folder / f"bank{number}{kind}")
            shutil.rmtree(folder / f"home{number}{kind}")
    server.stdin.close()
    server.wait()
    peak, size = said.split()
    middle = {kind: statistics.median(every) for kind, every in taken.items()}
    for kind, name in (
        ("copy", "bare copy"),
        ("flushed", "bare copy, flushed"),
        ("keep", "bank ingest"),
        ("free", "bank ingest --no-cache"),
    ):
        print(f"{name}: {middle[kind]:.2f} s, {int(size) / middle[kind] / 1e6:.0f} MB/s")
    for kind, name in (("keep", "ingest"), ("free", "ingest --no-cache")):
        print(
            f"{name}: {middle['copy'] / middle[kind]:.2f} of the bare copy's throughput, "
            f"{middle['flushed'] / middle[kind]:.2f} of the flushed copy's"
        )
    print(f"peak {peak} MiB with --memory 1GiB")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
