"""Matrices as text by processes: the bytes of one process, its errors, and no process that stays."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from bankdb.arrays.chunks import write_chunks
from bankdb.arrays.metadata import ArrayLayout, write_array
from bankdb.bank import AdapterBank
from bankdb.errors import BankError, BankFormatError, ComputeError
from compute.pairwise import matrix as matrix_module
from compute.pairwise import text as text_module
from compute.pairwise import text_processes
from compute.pairwise.matrix import StoredDistances
from compute.pairwise.plan import CHUNK_ROWS
from compute.pairwise.stored import StoredRows
from compute.pairwise.text import csv_bytes, joined, matrices_csv, values_json
from compute.prediction.matrices import distances
from tests.support.banks.synthetic_bank import create_synthetic

Processes = list["subprocess.Popen[bytes]"]
SIZE = 1500  # a band's text is longer than what a pipe holds


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    made = create_synthetic(tmp_path_factory.mktemp("texts") / "bank", tokenizer_folder)
    made.add_many(range(2 * CHUNK_ROWS + 6))
    distances(made.bank, "js")
    made.bank.close()
    return made.bank.path


@pytest.fixture
def matrix(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StoredDistances]:
    """A matrix of three bands that is not held; one adapter in the middle is gone."""
    monkeypatch.setattr(matrix_module, "HELD_ROWS", 10)
    monkeypatch.setattr(text_module, "_BAND_ENTRIES", 1)
    monkeypatch.setattr(text_module, "core_count", lambda: 2)
    shutil.copytree(template, tmp_path / "bank")
    with AdapterBank.open(tmp_path / "bank") as bank:
        bank.remove(bank.adapters()[5].name)
        found = distances(bank, "js")
        assert isinstance(found, StoredDistances)
        yield found


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Processes:
    """Those that are started."""
    made: Processes = []
    start = text_processes._process

    def kept() -> subprocess.Popen[bytes]:
        made.append(start())
        return made[-1]

    monkeypatch.setattr(text_processes, "_process", kept)
    return made


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[StoredRows, np.ndarray]:
    path = tmp_path_factory.mktemp("large") / "array"
    values = np.random.default_rng(0).random((SIZE, SIZE))
    write_array(path, ArrayLayout(values.shape, (CHUNK_ROWS, CHUNK_ROWS), "float64"), {})
    write_chunks(path, (0, 0), values)
    return StoredRows(str(path), list(range(SIZE))), values


def by_one(matrix: StoredDistances, monkeypatch: pytest.MonkeyPatch) -> str:
    with monkeypatch.context() as patch:
        patch.setattr(text_module, "core_count", lambda: 1)
        return "".join(matrices_csv([matrix], [{}]))


def ended(processes: Processes) -> list[bool]:
    """Whether each has ended, and was waited for, with its pipe closed."""
    return [
        process.returncode is not None and process.stdout is not None and process.stdout.closed
        for process in processes
    ]


def none_here(start: int, stop: int) -> list[bytes]:
    raise AssertionError(f"rows {start} to {stop} are made by this process")


# -- bytes ---------------------------------------------------------------------------------------------


def test_processes_make_the_bytes_of_one(
    matrix: StoredDistances, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = by_one(matrix, monkeypatch)
    assert processes == []
    text = "".join(matrices_csv([matrix], [{}]))
    assert text == expected
    assert ended(processes) == [True, True]
    saved = matrix.save(Path(str(matrix._path)).parents[1] / "out.csv")
    assert saved.read_bytes() == expected.encode()
    listed = json.loads("".join(values_json(matrix)))
    assert len(processes) == 6
    head, *rows = csv.reader(io.StringIO(text))
    assert head == ["target", *matrix.names]
    assert [row[0] for row in rows] == matrix.names
    assert not matrix.held
    values = matrix.values  # read by this process; from here on it is held
    assert np.array([row[1:] for row in rows], dtype=np.float64).tobytes() == values.tobytes()
    assert np.array(listed).tobytes() == values.tobytes()
    assert "".join(matrices_csv([matrix], [{}])) == expected
    assert len(processes) == 6


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_number_of_processes_makes_the_rows_in_their_order(
    large: tuple[StoredRows, np.ndarray], count: int
) -> None:
    source, values = large
    processes = text_processes.started(source, 2 * CHUNK_ROWS, count)
    assert len(processes) == count
    rows = list(text_processes.text_rows(processes, SIZE, 2 * CHUNK_ROWS, none_here))
    assert rows == joined(values)
    assert rows[7] == ",".join(map(repr, values[7].tolist())).encode()
    assert all(ended(processes))


def test_what_a_process_cannot_read_is_made_here(large: tuple[StoredRows, np.ndarray]) -> None:
    source, values = large
    nowhere = StoredRows(f"{source.path}-gone", source.rows)
    asked = []

    def here(start: int, stop: int) -> list[bytes]:
        asked.append((start, stop))
        return joined(values[start:stop])

    processes = text_processes.started(nowhere, 1000, 2)
    assert list(text_processes.text_rows(processes, SIZE, 1000, here)) == joined(values)
    assert asked == [(0, 1000), (1000, SIZE)]


def test_several_matrices_are_made_one_after_another(
    matrix: StoredDistances, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = [{"metric": "a"}, {"metric": "b"}]
    text = "".join(matrices_csv([matrix, matrix], labels))
    _, *rows = by_one(matrix, monkeypatch).splitlines()
    assert text.splitlines()[1:] == [f"{name},{row}" for name in "ab" for row in rows]


def test_where_no_process_can_be_started_there_is_one(
    matrix: StoredDistances, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused() -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(text_processes, "_process", refused)
    assert "".join(matrices_csv([matrix], [{}])) == by_one(matrix, monkeypatch)


# -- damage and kills ----------------------------------------------------------------------------------


def test_a_damaged_chunk_is_told_as_by_one_process(matrix: StoredDistances, processes: Processes) -> None:
    file = Path(str(matrix._path)) / "c" / "2" / "1"
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    with pytest.raises(BankFormatError) as here:
        matrix.band(CHUNK_ROWS, 2 * CHUNK_ROWS)
    assert str(file) in str(here.value)
    got: list[bytes] = []
    with pytest.raises(BankFormatError) as there:
        got.extend(csv_bytes([matrix], [{}]))
    assert str(there.value) == str(here.value)
    # The band before it came: a row is three parts.
    assert len(got) == 1 + 3 * CHUNK_ROWS
    assert ended(processes) == [True, True]


def test_an_entry_that_is_no_number_is_told_with_its_names(
    matrix: StoredDistances, processes: Processes
) -> None:
    (Path(str(matrix._path)) / "c" / "0" / "1").unlink()
    names = matrix.names
    with pytest.raises(ComputeError, match=f"from {names[0]} to {names[CHUNK_ROWS - 1]} is nan"):
        "".join(matrices_csv([matrix], [{}]))
    assert ended(processes) == [True, True]


@pytest.mark.faults
@pytest.mark.parametrize("number", [0, 1])
def test_a_killed_process_ends_the_text(large: tuple[StoredRows, np.ndarray], number: int) -> None:
    source, values = large
    processes = text_processes.started(source, CHUNK_ROWS, 2)
    rows = text_processes.text_rows(processes, SIZE, CHUNK_ROWS, none_here)
    got = [next(rows)]
    os.kill(processes[number].pid, signal.SIGKILL)
    with pytest.raises(BankError, match=r"ended before it was done \(signal 9, as for want of memory\)"):
        got.extend(rows)
    assert got == joined(values)[: len(got)]
    assert len(got) < 3 * CHUNK_ROWS
    assert all(ended(processes))


@pytest.mark.faults
def test_a_process_that_is_killed_as_it_starts_leaves_no_file(
    matrix: StoredDistances, processes: Processes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    start = text_processes._process

    def killed() -> subprocess.Popen[bytes]:
        process = start()
        process.kill()
        return process

    monkeypatch.setattr(text_processes, "_process", killed)
    with pytest.raises(ComputeError, match="signal 9"):
        matrix.save(tmp_path / "out.csv")
    assert ended(processes) == [True, True]
    assert [path.name for path in tmp_path.iterdir()] == ["bank"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_whoever_stops_early_leaves_no_process(
    matrix: StoredDistances, processes: Processes, error: type[BaseException]
) -> None:
    with contextlib.suppress(error), closing(matrices_csv([matrix], [{}])) as rows:
        next(rows)
        next(rows)
        assert ended(processes) == [False, False]
        raise error
    assert ended(processes) == [True, True]


def test_a_file_that_cannot_be_written_leaves_no_process(
    matrix: StoredDistances, processes: Processes
) -> None:
    with pytest.raises(OSError, match="No space left") as kept:
        matrix.save("/dev/full", overwrite=True)
    assert kept.value.filename == "/dev/full"
    assert all(ended(processes))


PARENT = """
import json, os, signal, sys
from compute.pairwise.stored import StoredRows
from compute.pairwise.text_processes import started, text_rows

path, size = sys.argv[1], int(sys.argv[2])
processes = started(StoredRows(path, list(range(size))), 64, 2)
rows = text_rows(processes, size, 64, None)
next(rows)
print(json.dumps([process.pid for process in processes]), flush=True)
sys.stdin.read()
"""


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_processes_end_with_the_one_that_started_them(
    large: tuple[StoredRows, np.ndarray], number: signal.Signals
) -> None:
    """Also where it had no time to end them; a terminal's Ctrl-C goes to a whole group."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, large[0].path, str(SIZE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as parent:
        assert parent.stdout is not None
        pids = json.loads(parent.stdout.readline())
        assert [is_running(pid) for pid in pids] == [True, True]
        os.killpg(parent.pid, number)
        parent.wait(60)
    until = time.monotonic() + 60
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < until
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Whether a process, whose parent may not have asked how it ended, is at work."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False
