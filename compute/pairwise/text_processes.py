"""Rows of a stored matrix as text, made by processes: one interpreter takes longer than a disk to write the text.

Each process makes one band of so many, and writes rows into a pipe: it waits while they are not wanted yet, and ends
as soon as nobody reads them any more, however that came about.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bankdb.errors import ComputeError
from compute.pairwise.stored import StoredRows

if TYPE_CHECKING:
    from subprocess import Popen

# More make rows quicker than one process writes them.
MOST_PROCESSES = 4
# A process that has closed its pipe is about to end.
_ENDING_SECONDS = 10
# Bytes that say how long a row's text is; 0 says that a band cannot be made.
_LENGTH = 4
# Two rows of many datasets: processes wait for each other less often.
_PIPE_BYTES = 2**20
# Without the folder that this process stands in, unless it imports from there too.
_PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from compute.pairwise.text_processes import main
main()
"""


def started(source: StoredRows, height: int, count: int) -> list[Popen[bytes]]:
    """Start processes that make the rows of a matrix for `text_rows`, which ends them; none if that is impossible."""
    processes: list[Popen[bytes]] = []
    try:
        processes.extend(_process() for _ in range(count))
        for number, process in enumerate(processes):
            asked = [source.path, source.rows, height, number, count]
            assert process.stdin is not None
            # One that ended already is noticed when its rows are read.
            with contextlib.suppress(BrokenPipeError), process.stdin as stream:
                stream.write(json.dumps(asked).encode())
    except OSError:
        _end(processes)
        return []
    except BaseException:
        _end(processes)
        raise
    return processes


def _process() -> Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _PROGRAM, json.dumps(sys.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        # A terminal sends Ctrl-C to a whole session: it is this process that ends the others.
        start_new_session=True,
    )
    # Linux alone has larger pipes, and not for everyone.
    with contextlib.suppress(AttributeError, OSError):
        assert process.stdout is not None
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return process


def text_rows(
    processes: Sequence[Popen[bytes]], size: int, height: int, here: Callable[[int, int], Sequence[bytes]]
) -> Generator[bytes]:
    """Yield the N = `size` rows that processes make, in their order; afterwards the processes have ended.

    Parameters
    ----------
    here
        Makes the rows of a band that a process could not make, or raises what is wrong with it.

    Raises
    ------
    ComputeError
        A process ended before it was done.
    """
    try:
        for number, start in enumerate(range(0, size, height)):
            process, stop = processes[number % len(processes)], min(start + height, size)
            first = _row(process)
            if first is None:
                yield from here(start, stop)
                continue
            yield first
            for _ in range(start + 1, stop):
                yield _row(process) or b""
    finally:
        _end(processes)


def _row(process: Popen[bytes]) -> bytes | None:
    """Read the text of the next row of a process; None if it could not make the band that begins here."""
    stream = process.stdout
    assert stream is not None
    length = stream.read(_LENGTH)
    size = int.from_bytes(length)
    text = stream.read(size)
    if len(length) < _LENGTH or len(text) < size:
        raise ComputeError(
            f"a process that makes the text of a matrix ended before it was done ({_status(process)}); run the "
            "same command again"
        )
    return text if size else None


def _status(process: Popen[bytes]) -> str:
    try:
        code = process.wait(_ENDING_SECONDS)
    except subprocess.TimeoutExpired:
        return "it closed its pipe"
    if code >= 0:
        return f"exit status {code}"
    killed = ", as for want of memory" if code == -signal.SIGKILL else ""
    return f"signal {-code}{killed}"


def _end(processes: Sequence[Popen[bytes]]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        # Closes the pipes, and waits.
        with process:
            pass


# -- in a process --------------------------------------------------------------------------------------


def main() -> None:
    """Write the rows of a process's bands to standard output, as standard input asks for."""
    path, rows, height, number, count = json.load(sys.stdin)
    source, out = StoredRows(path, rows), sys.stdout.buffer
    for start in range(number * height, len(rows), count * height):
        values = _finite(source, start, min(start + height, len(rows)))
        if values is None:
            out.write(bytes(_LENGTH))
            out.flush()
            continue
        # All before the first is written: else this process waits for its pipe while others' bands are wanted.
        for text in [digits(row) for row in values]:
            out.write(len(text).to_bytes(_LENGTH))
            out.write(text)
    out.flush()


def _finite(source: StoredRows, start: int, stop: int) -> NDArray[np.float64] | None:
    """Read a band; None if it cannot be read, or has entries that are not numbers."""
    try:
        values = np.ascontiguousarray(source.band(start, stop))
    except Exception:  # whoever asked reads it too, and is told what it is
        return None
    return values if np.isfinite(values).all() else None


def digits(row: NDArray[np.float64]) -> memoryview:
    """Return finite numbers, C-contiguous, with commas between, in ASCII: the shortest text of each."""
    import orjson

    # Some 30 ns a number: twice as quick as by Arrow on two cores, though under the interpreter's lock.
    return memoryview(orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY))[1:-1]
