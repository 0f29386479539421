"""Chunks with a right checksum around a container that lies: refused by every reader, in a process of its own.

blosc believes what a container says of itself; a crash would be seen as the signal that ended the process.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

FUZZ = """
import random, sys, tempfile
from pathlib import Path
import numpy as np
from bankdb.arrays.chunks import block_problems, read_chunks, write_chunks
from bankdb.arrays.metadata import ArrayLayout, read_layout, write_array
from bankdb.arrays.adapter_store import AdapterStore
from bankdb.arrays.shard_format import ShardFormat, checksum
from bankdb.arrays.remote import located
from bankdb.arrays.durable import write_file, read_file
from bankdb.errors import BankError

kind, seed, draws = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = random.Random(seed)
numbers = np.random.default_rng(seed)
folder = located("memory://fuzz") if kind == "remote" else Path(tempfile.mkdtemp())
values = numbers.integers(0, 50, (3, 5000)).astype("float32")  # small: they are compressed
if kind == "chunks":
    path = folder / "array"
    write_array(path, ArrayLayout((3, 5000), (3, 2048), "float64"), {})
    write_chunks(path, (0, 0), values.astype("float64"))
    file = path / "c" / "0" / "1"
    start, stop = 0, len(read_file(file)) - 4
    def read():
        return read_chunks(path)
else:
    path = folder / "adapters.zarr"
    store = AdapterStore(path)
    store.create(5000, "x")
    store.grow(3)
    for row in range(3):
        store.write(row, values[row])
    file = store.file(1)
    whole = read_file(file)
    shape = ShardFormat.from_layout(read_layout(path)[0])
    offset, length = map(int, shape.index(whole[-shape.index_bytes:])[0, 0])
    start, stop = offset, offset + length - 4
    def read():
        return AdapterStore(path).read_rows([0, 1, 2])
whole = read_file(file)
right = read()
outcomes = {"refused": 0, "right": 0, "wrong": 0}
EXTREMES = (0, 1, 2, 3, 4, 7, 15, 16, 2**15, 2**16 + 1, 2**30, 2**31 - 1, 2**31, 2**32 - 1)
for _ in range(draws):
    body = bytearray(whole[start:stop])
    for _ in range(rng.choice((1, 1, 2, 3))):
        way = rng.randrange(4)
        if way == 0:  # a length, a block size, a start
            at = 4 * rng.randrange(1, min(12, len(body) // 4))
            body[at : at + 4] = rng.choice(EXTREMES).to_bytes(4, "little")
        elif way == 1:
            body[rng.randrange(4)] = rng.randrange(256)
        elif way == 2:
            body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
        else:
            at = rng.randrange(16, len(body))
            body[at : at + 64] = rng.randbytes(len(body[at : at + 64]))
    if kind != "chunks" and rng.random() < 0.2:
        # The index, with a right checksum too.
        index = bytearray(whole[-shape.index_bytes:-4])
        at = 8 * rng.randrange(len(index) // 8)
        index[at : at + 8] = rng.choice((0, 1, 2**31, 2**62, 2**63, 2**64 - 2)).to_bytes(8, "little")
        rest = bytes(index) + checksum(bytes(index))
    else:
        rest = whole[stop + 4 :]
    write_file(file, whole[:start] + bytes(body) + checksum(bytes(body)) + rest)
    try:
        found = read()
    except BankError as error:
        assert str(file) in str(error), str(error)
        outcomes["refused"] += 1
    else:
        outcomes["right" if np.array_equal(found, right) else "wrong"] += 1
    list(block_problems(path, read_layout(path)[0]))
print(outcomes)
"""


@pytest.mark.parametrize("kind", ["chunks", "shards", "remote"])
def test_a_container_that_lies_never_ends_the_process(kind: str) -> None:
    """Values that a stranger compressed are what he says; the process lives, and errors name the file."""
    limited = f'ulimit -v {6 * 2**20}; exec {sys.executable} -c "$1" {kind} 0 400'
    done = subprocess.run(
        ["bash", "-c", limited, "fuzz", FUZZ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    assert "'refused': " in done.stdout
    assert "'refused': 0" not in done.stdout
