"""Verification finds every kind of damage, repairs what it can, and deletes nothing that is not its own."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from bankdb.arrays.zarr_arrays import create_array
from bankdb.bank import AdapterBank
from bankdb.errors import BankError, BankFormatError, BankNotFoundError
from bankdb.peft.weights import load_adapter
from bankdb.verify import VerifyReport, verify
from tests.support.banks.malformed_adapters import WEIGHTS, write_good_adapter
from tests.support.banks.small_bank import create_bank, ingest_folder, write_pairs
from tests.support.servers.backends import execute

EVERY_BACKEND = True


@pytest.fixture
def pairs(tmp_path: Path, pairs_folder: Path) -> Path:
    """The six pairs, to be changed."""
    return Path(shutil.copytree(pairs_folder, tmp_path / "pairs"))


@pytest.fixture
def own_bank(tmp_path: Path, tokenizer_folder: Path, pairs: Path) -> Iterator[AdapterBank]:
    """A bank whose sources may be changed."""
    with create_bank(tmp_path / "own", tokenizer_folder) as bank:
        ingest_folder(bank, pairs)
        yield bank


def rows(bank: AdapterBank) -> dict[str, bytes]:
    return {record.name: bank.store.read(record.row).tobytes() for record in bank.adapters()}


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but the database's own, which reading alone may change."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("bank.db")
    }


def assert_clean(report: VerifyReport, checked: int = 6) -> None:
    assert (report.checked, report.damage, report.leftovers) == (checked, [], [])
    assert report.clean


# -- nothing to find --------------------------------------------------------------------------------


def test_a_whole_bank_is_clean(bank: AdapterBank, backend: str) -> None:
    before = tree(bank.path)
    for repair in (False, True):
        report = verify(bank, repair=repair)
        assert_clean(report)
        assert report.repaired == []
    assert {name: data for name, data in tree(bank.path).items() if name != ".ingest.lock"} == {
        name: data for name, data in before.items() if name != ".ingest.lock"
    } | ({".compute.lock": b""} if backend == "sqlite" else {})


def test_an_empty_bank_is_clean(empty_bank: AdapterBank) -> None:
    assert_clean(verify(empty_bank), 0)
    assert_clean(verify(empty_bank, repair=True), 0)


# -- damaged rows -----------------------------------------------------------------------------------


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def flip(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 3] ^= 4
    file.write_bytes(raw)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def unlink_folder(file: Path) -> None:
    shutil.rmtree(file.parent)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "truncated": truncate,
    "flipped": flip,
    "empty": empty,
    "deleted": Path.unlink,
    "folder deleted": unlink_folder,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_row_is_found_and_restored(bank: AdapterBank, kind: str) -> None:
    before = rows(bank)
    record = bank.catalog.adapter("task002")
    DAMAGE[kind](bank.store.file(record.row))
    report = verify(bank)
    assert (report.checked, report.leftovers, report.repaired, report.clean) == (6, [], [], False)
    (line,) = report.damage
    assert line.startswith("task002: ")
    assert f"row {record.row}" in line
    assert "bank verify --repair" in line
    assert "\n" not in line

    report = verify(bank, repair=True)
    assert_clean(report)
    assert report.repaired == [f"task002: row {record.row} restored from {record.source}"]
    assert rows(bank) == before
    assert bank.catalog.adapter("task002") == record
    assert_clean(verify(bank))


def test_a_row_with_the_content_of_another_is_found(bank: AdapterBank) -> None:
    """It decodes, its own checksums are right: only the catalogue knows that it is not the one."""
    before = rows(bank)
    shutil.copy(bank.store.file(0), bank.store.file(3))
    assert bank.store.read(3).tobytes() == before["task000"]
    (line,) = verify(bank).damage
    assert "task003: row 3 does not match its checksum" in line
    assert_clean(verify(bank, repair=True))
    assert rows(bank) == before


def test_several_damaged_rows_are_all_named(bank: AdapterBank) -> None:
    before = rows(bank)
    for row, damage in enumerate(DAMAGE.values()):
        damage(bank.store.file(row))
    assert [line.split(":")[0] for line in verify(bank).damage] == [f"task00{row}" for row in range(5)]
    assert len(verify(bank, repair=True).repaired) == 5
    assert rows(bank) == before


def test_an_older_array_is_made_to_fit_again(bank: AdapterBank) -> None:
    """zarr.json of an earlier backup: it has no room for the last rows."""
    before = rows(bank)
    metadata = bank.store.path / "zarr.json"
    metadata.write_text(metadata.read_text().replace('"shape": [\n    6,', '"shape": [\n    4,', 1))
    with AdapterBank.open(bank.path) as opened:
        lines = verify(opened).damage
        assert [line.split(":")[0] for line in lines] == ["task004", "task005"]
        assert_clean(verify(opened, repair=True))
        assert rows(opened) == before


def gone(folder: Path) -> None:
    shutil.rmtree(folder)


def changed(folder: Path) -> None:
    shutil.rmtree(folder)
    write_good_adapter(folder, seed=77)


def malformed(folder: Path) -> None:
    truncate(folder / WEIGHTS)


def of_another_rank(folder: Path) -> None:
    shutil.rmtree(folder)
    write_good_adapter(folder, r=8)


@pytest.mark.parametrize(
    ("damage_source", "reason"),
    [
        (gone, "is not on this machine"),
        (changed, "has changed since"),
        (malformed, "its source cannot be read"),
        (of_another_rank, "has changed since"),
    ],
)
def test_without_its_source_damage_stays_damage(
    own_bank: AdapterBank, pairs: Path, damage_source: Callable[[Path], None], reason: str
) -> None:
    record = own_bank.catalog.adapter("task001")
    flip(own_bank.store.file(record.row))
    damage_source(pairs / "adapters" / "task001")
    before = tree(own_bank.store.path)
    report = verify(own_bank, repair=True)
    (line,) = report.damage
    assert line.startswith("task001: ")
    assert reason in line
    assert "bank remove task001" in line
    assert report.repaired == []
    assert tree(own_bank.store.path) == before

    # What it advises works.
    own_bank.remove("task001")
    shutil.rmtree(pairs / "adapters" / "task001", ignore_errors=True)
    write_good_adapter(pairs / "adapters" / "task001", seed=1)
    assert ingest_folder(own_bank, pairs).added == ["task001"]
    assert_clean(verify(own_bank))


def test_a_source_on_the_hub_is_not_on_this_machine(bank: AdapterBank) -> None:
    execute(bank, "UPDATE adapter SET source = 'hub:owner/name' WHERE name = 'task000'")
    flip(bank.store.file(0))
    (line,) = verify(bank, repair=True).damage
    assert "hub:owner/name is not on this machine" in line


# -- the database -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        "ids = x'00'",
        "counts = x''",
        "counts = substr(counts, 1, length(counts) - 4)",
        "counts = substr(counts, 5) || substr(counts, 1, 4)",
        "ids = counts, counts = ids",
        "ids = 'text'",
        "tokenizer_fingerprint = 'another'",
    ],
)
def test_damaged_counts_are_found(bank: AdapterBank, change: str) -> None:
    of = "SELECT dataset.id FROM dataset WHERE name = 'task004'"
    execute(bank, f"UPDATE token_distribution SET {change} WHERE dataset_id = ({of})")
    for repair in (False, True):
        report = verify(bank, repair=repair)
        (line,) = report.damage
        assert line.startswith("task004: ")
        assert "ingest" in line
        assert report.checked == 6
    assert_heals(bank, "task004")


def test_a_wrong_number_of_tokens_is_found(bank: AdapterBank) -> None:
    execute(bank, "UPDATE dataset SET tokens = tokens + 1 WHERE name = 'task004'")
    (line,) = verify(bank).damage
    assert "task004: its token counts are damaged" in line


@pytest.mark.parametrize("change", ["rank = 8", "alpha = 16.0", "use_rslora = 1", "scaling = 2.5"])
def test_a_wrong_scaling_is_found(bank: AdapterBank, change: str) -> None:
    execute(bank, f"UPDATE adapter SET {change} WHERE name = 'task004'")
    (line,) = verify(bank).damage
    assert line.startswith("task004: rank, alpha, use_rslora and scaling (4, 8, False, 2.0) expected")
    assert_heals(bank, "task004")


@pytest.mark.faults
@pytest.mark.sqlite
def test_any_flipped_bit_of_the_layout_is_found_and_nothing_is_written_from_it(
    bank: AdapterBank, tmp_path: Path
) -> None:
    """Names, shapes, rank and target modules: the adapters' own headers say what they are."""
    text = bank.record.layout
    assert text is not None
    rng = random.Random(5)
    for index in range(120):
        raw = bytearray(text.encode())
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(7)
        execute(bank, f"UPDATE bank SET layout = CAST(x'{raw.hex()}' AS TEXT)")
        with pytest.raises(BankFormatError):
            _ = bank.layout
        if index % 20 == 0:
            assert not verify(bank).clean
            with pytest.raises(BankFormatError):
                bank.export("task001", tmp_path / "out")
            assert not (tmp_path / "out").exists()
    execute(bank, f"UPDATE bank SET layout = CAST(x'{text.encode().hex()}' AS TEXT)")
    assert_clean(verify(bank))


@pytest.mark.parametrize(
    "change",
    [
        "alpha = 9.0",
        "scaling = 2.0000000000000004",
        "use_rslora = 1",
        "vocabulary = vocabulary + 256",
        "base_model = 'exbmple/tiny-llama'",
        "base_model_revision = 'x'",
    ],
)
def test_a_damaged_record_of_the_bank_is_found(bank: AdapterBank, change: str) -> None:
    execute(bank, f"UPDATE bank SET {change}")
    assert not verify(bank).clean


@pytest.mark.parametrize("change", ["rank = 8", "alpha = 16.0", "use_rslora = 1", "scaling = 2.5"])
def test_nothing_is_combined_by_a_damaged_scaling(bank: AdapterBank, change: str) -> None:
    from bankdb.scaled_rows import sources_of

    execute(bank, f"UPDATE adapter SET {change} WHERE name = 'task004'")
    with pytest.raises(BankFormatError, match="task004: the scaling"):
        sources_of(bank, bank.adapters())


def test_a_damaged_dtype_is_found(bank: AdapterBank) -> None:
    execute(bank, "UPDATE adapter SET dtype = 'float33' WHERE name = 'task004'")
    (line,) = verify(bank).damage
    assert "float33 found in the database" in line


@pytest.mark.parametrize("column", ["header_sha256", "config_sha256"])
def test_damaged_blobs_are_found_and_heal_by_ingesting_again(bank: AdapterBank, column: str) -> None:
    execute(bank, f"UPDATE blob SET data = x'00' WHERE sha256 = (SELECT {column} FROM adapter WHERE row = 1)")
    lines = verify(bank).damage
    # The header is shared by adapters of one dtype, the configuration by all.
    assert len(lines) == {"header_sha256": 2, "config_sha256": 6}[column]
    assert all("damaged" in line for line in lines)
    assert_heals(bank, "task001")


def assert_heals(bank: AdapterBank, name: str) -> None:
    source = Path(bank.catalog.adapter(name).source).parents[1]
    bank.remove(name)
    assert ingest_folder(bank, source).added == [name]
    assert_clean(verify(bank))


@pytest.mark.sqlite
def test_broken_references_within_the_database_are_found(bank: AdapterBank) -> None:
    execute(bank, "DELETE FROM blob WHERE sha256 = (SELECT header_sha256 FROM adapter WHERE row = 0)")
    report = verify(bank)
    assert any("bank.db: foreign key of adapter" in line for line in report.damage)
    assert any(line.startswith("task000: ") and "missing" in line for line in report.damage)


@pytest.mark.slow
@pytest.mark.sqlite
def test_an_overwritten_database_is_an_error_and_no_traceback(bank: AdapterBank, tmp_path: Path) -> None:
    """Wherever bytes are overwritten: an error, or damage that is named, or they were not in use."""
    bank.close()
    original = (bank.path / "bank.db").read_bytes()
    rng = random.Random(0)
    outcomes = {"error": 0, "damage": 0, "clean": 0}
    page = 4096
    for attempt in range(60):
        damaged = bytearray(original)
        if attempt % 2:
            start = rng.randrange(len(original))
            length = rng.choice([1, 4, 64])
        else:
            start, length = page * rng.randrange(len(original) // page), rng.choice([8, 100, page])
        damaged[start : start + length] = rng.randbytes(len(damaged[start : start + length]))
        for name in ("bank.db-wal", "bank.db-shm"):
            (bank.path / name).unlink(missing_ok=True)
        (bank.path / "bank.db").write_bytes(damaged)
        outcomes[outcome(bank.path)] += 1
    assert outcomes["error"] > 10
    assert outcomes["damage"] > 0
    (bank.path / "bank.db").write_bytes(original)
    assert outcome(bank.path) == "clean"


def outcome(path: Path) -> str:
    try:
        with AdapterBank.open(path) as bank:
            return "clean" if verify(bank).clean else "damage"
    except (BankFormatError, BankNotFoundError) as error:
        return "error" if "\n" not in str(error) else str(error)


@pytest.mark.sqlite
@pytest.mark.parametrize("keep", [0, 10, 100, 4096, 10_000])
def test_a_truncated_database_is_an_error(bank: AdapterBank, keep: int) -> None:
    bank.close()
    file = bank.path / "bank.db"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(BankError, match=r"bank\.db"), AdapterBank.open(bank.path) as opened:
        verify(opened)


# -- foreign files ----------------------------------------------------------------------------------


def test_foreign_files_are_moved_and_never_deleted(bank: AdapterBank) -> None:
    before = rows(bank)
    array = bank.store.path
    foreign = {
        "notes.txt": b"mine",
        "c/readme": b"mine too",
        "c/6/0": b"a row that was never reserved",
        "c/2/1": b"beside a row",
        "c/3/deep/er": b"in a folder",
        "c/007/0": b"no number of a row",
    }
    for name, data in foreign.items():
        (array / name).parent.mkdir(parents=True, exist_ok=True)
        (array / name).write_bytes(data)
    report = verify(bank)
    assert len(report.damage) == 6
    assert all("orphan" in line and "--repair moves it" in line for line in report.damage)
    assert {name: (array / name).read_bytes() for name in foreign} == foreign

    report = verify(bank, repair=True)
    assert_clean(report)
    assert len(report.repaired) == 6
    moved = bank.path / "orphans" / "adapters.zarr"
    assert tree(moved) == foreign
    assert rows(bank) == before
    assert_clean(verify(bank))

    # One of the same name again is not put in the place of the first.
    (array / "notes.txt").write_bytes(b"another")
    (line,) = verify(bank, repair=True).damage
    assert "is taken" in line
    assert (array / "notes.txt").read_bytes() == b"another"
    assert tree(moved) == foreign


def test_foreign_files_beside_damaged_or_removed_rows_stay(bank: AdapterBank) -> None:
    """Restoring a row, removing one and clearing leftovers delete the row's own file alone."""
    array = bank.store.path
    for row in range(3):
        (array / "c" / str(row) / "mine").write_bytes(b"mine")
    flip(bank.store.file(0))
    bank.remove("task001")
    bank.store.file(2).unlink()
    bank.store.file(2).mkdir()
    (bank.store.file(2) / "inner").write_bytes(b"in the place of a row")
    assert (array / "c/1/mine").is_file()
    report = verify(bank, repair=True)
    assert_clean(report, 5)
    assert tree(bank.path / "orphans" / "adapters.zarr") == {
        "c/0/mine": b"mine",
        "c/1/mine": b"mine",
        "c/2/mine": b"mine",
        "c/2/0/inner": b"in the place of a row",
    }
    assert bank.store.rows_on_disk() == [0, 2, 3, 4, 5]


def test_a_file_in_the_place_of_a_rows_folder(bank: AdapterBank) -> None:
    before = rows(bank)
    shutil.rmtree(bank.store.file(4).parent)
    (bank.store.path / "c" / "4").write_bytes(b"mine")
    assert len(verify(bank).damage) == 2
    assert_clean(verify(bank, repair=True))
    assert rows(bank) == before
    assert (bank.path / "orphans/adapters.zarr/c/4").read_bytes() == b"mine"


# -- leftovers --------------------------------------------------------------------------------------


def leave_leftovers(bank: AdapterBank) -> None:
    adapter = load_adapter(Path(bank.catalog.adapter("task000").source))
    bank.reserve("only reserved", adapter)
    bank.store.write(bank.reserve("written", adapter), adapter.vector)
    bank.catalog.clear_reserved([bank.reserve("cleared", adapter)])
    bank.store.write(8, adapter.vector)
    (bank.store.file(1).parent / f"0.{'0f' * 16}.partial").write_bytes(b"half")
    (bank.store.path / f"zarr.{'0f' * 16}.partial").write_bytes(b"half")


def test_leftovers_are_no_damage_and_are_cleared(bank: AdapterBank) -> None:
    before = rows(bank)
    leave_leftovers(bank)
    report = verify(bank)
    assert (report.clean, report.damage, report.checked) == (True, [], 6)
    kinds = ("reserved for only reserved", "reserved for written", "no adapter any more", "1/0.", "zarr.0f")
    for kind in kinds:
        assert sum(kind in line for line in report.leftovers) == 1, kind
    assert len(report.leftovers) == len(kinds)

    report = verify(bank, repair=True)
    assert_clean(report)
    assert len(report.repaired) == len(kinds)
    assert rows(bank) == before
    assert bank.store.rows_on_disk() == list(range(6))
    assert bank.record.next_row == 9


def test_leftovers_of_computations(bank: AdapterBank) -> None:
    run = bank.runs.begin("gram", {"array": "gram.zarr/abc"})
    bank.runs.mark_done(run.id, {"0": "x"})
    kept = bank.runs.begin("distances", {"array": "distances.zarr"})
    bank.runs.mark_done(kept.id, {"0": "x"})
    array = bank.array_path("distances")
    create_array(array, shape=(2, 2), chunks=(2, 2), shards=None, dtype="float64", attributes={})
    half = array / "c" / "0" / f"0.{'0f' * 16}.partial"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half")
    report = verify(bank)
    assert report.clean
    assert sorted("array is gone" in line for line in report.leftovers) == [False, True]

    with AdapterBank.open(bank.path) as other, held(other):
        assert len(verify(bank, repair=True).leftovers) == 2
        assert half.exists()
        assert bank.runs.done_pieces(run.id) == {"0": "x"}
    assert_clean(verify(bank, repair=True))
    assert not half.exists()
    assert bank.runs.done_pieces(run.id) == {}
    assert bank.runs.done_pieces(kept.id) == {"0": "x"}


@contextmanager
def held(bank: AdapterBank) -> Iterator[None]:
    from bankdb.progress import SilentProgress

    with bank.computing(SilentProgress()):
        yield


# -- beside a running ingest ------------------------------------------------------------------------

HOLD = """
import sys
from bankdb.bank import AdapterBank
with AdapterBank.open(sys.argv[1]) as bank, bank.ingesting():
    print("holding", flush=True)
    sys.stdin.read()
"""


@contextmanager
def ingesting_elsewhere(bank: AdapterBank) -> Iterator[None]:
    """Another process is inside `bank.ingesting()`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(bank.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"holding\n"
        yield
        process.communicate()


def test_nothing_is_repaired_while_an_ingest_runs(bank: AdapterBank) -> None:
    before = rows(bank)
    leave_leftovers(bank)
    flip(bank.store.file(5))
    (bank.store.path / "notes.txt").write_bytes(b"mine")
    with ingesting_elsewhere(bank):
        files = tree(bank.path)
        report = verify(bank, repair=True)
        assert tree(bank.path).keys() - files.keys() <= {".compute.lock"}
        assert {name: tree(bank.path)[name] for name in files} == files
        assert len(bank.catalog.reserved()) == 2
    assert report.repaired == []
    assert len(report.damage) == 2
    assert sum("an ingest is running" in line for line in report.leftovers) == 1
    assert_clean(verify(bank, repair=True))
    assert rows(bank) == before


class Meanwhile:
    """Does something while the rows are being checked, just before the row that is numbered `at`."""

    def __init__(self, act: Callable[[], object], at: int = 0) -> None:
        self.act, self.at, self.seen = act, at, 0

    def begin(self, stage: str, total: int) -> None:
        self.advance(0)

    def advance(self, steps: int = 1) -> None:
        self.seen += steps
        if self.seen == self.at:
            self.at = -1
            self.act()

    def end(self) -> None: ...
    def received(self, count: int, expected: int) -> None: ...
    def note(self, text: str) -> None: ...


def test_what_is_removed_meanwhile_is_no_damage(bank: AdapterBank) -> None:
    with AdapterBank.open(bank.path) as other:
        report = verify(bank, progress=Meanwhile(lambda: other.remove("task003"), at=2))
    assert_clean(report, 5)


def test_what_is_added_and_replaced_meanwhile_is_no_damage(
    bank: AdapterBank, tmp_path: Path, pairs: Path
) -> None:
    shutil.rmtree(pairs / "adapters" / "task003")
    write_good_adapter(pairs / "adapters" / "task003", seed=50)
    write_pairs(pairs, 2, prefix="new")
    with AdapterBank.open(bank.path) as other:
        ingest = lambda: ingest_folder(other, pairs, replace=True)  # noqa: E731
        report = verify(bank, progress=Meanwhile(ingest, at=1))
    assert_clean(report, 5)
    assert len(bank) == 8
    assert_clean(verify(bank), 8)


def test_rows_that_are_being_written_are_no_orphans(
    bank: AdapterBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row is reserved and written between two looks of the verification, whichever they are."""
    adapter = load_adapter(Path(bank.catalog.adapter("task000").source))
    reserved: list[int] = []

    def reserve_and_write() -> None:
        row = bank.reserve(f"late{len(reserved)}", adapter)
        bank.store.write(row, adapter.vector)
        reserved.append(row)

    looks = [
        (bank.store, "rows_on_disk"),
        (bank.store, "foreign_files"),
        (bank.catalog, "adapters"),
        (bank.catalog, "bank"),
    ]
    for owner, name in looks:
        look = getattr(owner, name)

        def looked(look: Callable[[], object] = look) -> object:
            found = look()
            reserve_and_write()
            return found

        monkeypatch.setattr(owner, name, looked)
    report = verify(bank)
    assert report.damage == []
    assert len(reserved) >= 3
    assert not any("no adapter any more" in line for line in report.leftovers)
    assert np.isfinite(bank.store.read(reserved[0])).all()
