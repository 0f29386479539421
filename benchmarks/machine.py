"""What this machine can do, measured there and then: the limits that steps are compared with."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil


@dataclass(frozen=True, slots=True)
class Limits:
    """Rates: float32 matrix product in flop/s; sequential read (cache dropped) and flushed write in byte/s."""

    product: float
    read: float
    write: float

    def seconds(self, flops: float = 0.0, read: float = 0.0, written: float = 0.0) -> float:
        """The larger of arithmetic and input and output: what a perfect overlap would take."""
        return max(flops / self.product, read / self.read + written / self.write)


def measure(folder: Path, stored: Path, *, gigabytes: float = 1.0) -> Limits:
    """Measure all rates: writing in `folder`, reading from the files below `stored`, which are there already."""
    size = int(gigabytes * 2**30)
    return Limits(product_rate(), read_rate(stored, size), write_rate(folder, size))


def product_rate(n: int = 2048, repeat: int = 5) -> float:
    """Best of several products of square matrices on all cores."""
    a, b = (np.random.default_rng(seed).standard_normal((n, n), dtype=np.float32) for seed in (0, 1))
    best = min(timed(lambda: a @ b) for _ in range(repeat))
    return 2 * n**3 / best


def read_rate(stored: Path, size: int) -> float:
    """Rate of reading whole files from start to end, spread over those there are, `size` bytes or all.

    A file that was just written is read more quickly: some layer below the kernel still has it.
    """
    files = sorted(file for file in stored.rglob("*") if file.is_file() and file.stat().st_size > 2**16)
    total = sum(file.stat().st_size for file in files)
    sample = files[:: max(1, total // size)]
    for file in sample:
        drop_cache(file)
    seconds = timed(lambda: [_read(file) for file in sample])
    return sum(file.stat().st_size for file in sample) / seconds


def write_rate(folder: Path, size: int) -> float:
    """Rate of writing a file of `size` random bytes; the flush to the disk included."""
    path = folder / "rate.bin"
    block = np.random.default_rng(0).bytes(1 << 24)
    blocks = max(1, size // len(block))
    try:
        return blocks * len(block) / timed(lambda: _write(path, block, blocks))
    finally:
        path.unlink(missing_ok=True)


def _write(path: Path, block: bytes, blocks: int) -> None:
    with path.open("wb") as file:
        for _ in range(blocks):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> None:
    buffer = bytearray(1 << 24)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def drop_cache(path: Path) -> None:
    """Ask the kernel to forget a file, or every file of a folder."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def timed(function) -> float:  # type: ignore[no-untyped-def]
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


class Peak:
    """The largest resident memory of this process and all below it, sampled; shared pages count once each."""

    def __init__(self) -> None:
        self.bytes = 0
        self._stop = threading.Event()

    @contextmanager
    def watch(self, pid: int | None = None) -> Iterator[Peak]:
        root = psutil.Process(pid or os.getpid())
        thread = threading.Thread(target=self._sample, args=(root,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()

    def _sample(self, root: psutil.Process) -> None:
        while not self._stop.is_set():
            self.bytes = max(self.bytes, resident(root))
            self._stop.wait(0.02)


def resident(root: psutil.Process) -> int:
    total = 0
    try:
        for process in (root, *root.children(recursive=True)):
            try:
                total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
    except psutil.NoSuchProcess:
        return 0
    return total


def description() -> str:
    """One line: processor, cores, memory, versions."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        model = names[0] if names else model
    memory = psutil.virtual_memory().total / 2**30
    cores = len(os.sched_getaffinity(0))
    versions = f"Python {platform.python_version()}, NumPy {np.__version__}"
    return f"{model}, {cores} cores, {memory:.0f} GiB, {versions}"
