"""A bank that was pushed and pulled is the bank that it was; and nothing that was changed on the way becomes one."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import compute
from bankdb.bank import AdapterBank
from bankdb.errors import BankError, BankFormatError, BankNotFoundError, ConflictError, ParameterError
from bankdb.sharing.form import CARD, COUNTS, SUMS, WEIGHTS
from bankdb.sharing.places.place import parse_place
from bankdb.sharing.pull import pull
from bankdb.sharing.push import push
from tests.support.banks.bank_content import assert_nothing_else, content
from tests.support.banks.small_bank import create_bank, ingest_folder, write_pairs
from tests.support.banks.stored_files import digests
from tests.support.shared_bank import changed

ROOT = Path(__file__).resolve().parents[3]


def told(bank: AdapterBank) -> dict[str, tuple[Any, ...]]:
    """What a bank holds of each adapter, but for where it came from on this machine."""
    return {
        name: (dataclasses.replace(found[0], source="", dataset_source=""), *found[1:])
        for name, found in content(bank).items()
    }


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_what_comes_back_is_what_was(bank: AdapterBank, tmp_path: Path, kind: str) -> None:
    bank.catalog.set_group("task001", "some", "mit")
    place = str(tmp_path / ("away.tar" if kind == "tar" else "away"))
    assert push(bank, place, include_unlicensed=True).adapters == [one.name for one in bank.adapters()]
    report = pull(place, tmp_path / "back")
    assert (report.made, len(report.added), report.refused) == (True, 6, [])
    assert not (tmp_path / ".back.pull").exists()
    with AdapterBank.open(tmp_path / "back") as back:
        assert told(back) == told(bank)
        assert_nothing_else(back)
        same = ("identity", "created", "tokenizer_name")
        assert {k: v for k, v in dataclasses.asdict(back.record).items() if k not in same} == {
            k: v for k, v in dataclasses.asdict(bank.record).items() if k not in same
        }
        for metric in ("js", "mmd"):
            here, there = (compute.distances(one, metric).values for one in (bank, back))
            np.testing.assert_array_equal(here, there)
        for name in ("task000", "task001", "task002"):  # in three dtypes
            files = [one.export(name, tmp_path / f"{index}-{name}") for index, one in enumerate((bank, back))]
            assert digests(files[0]) == digests(files[1])
    assert pull(place, tmp_path / "back").skipped == report.added


def test_the_sums_are_those_that_sha256sum_reads(shared: Path) -> None:
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", SUMS], cwd=shared, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    checked = {line.partition(": ")[0] for line in done.stdout.splitlines()}
    files = {path.relative_to(shared).as_posix() for path in shared.rglob("*") if path.is_file()}
    assert files - checked == {SUMS, CARD}


def test_a_tar_has_the_same_bytes_wherever_it_is_made(bank: AdapterBank, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        push(bank, str(tmp_path / name / "x.tar"), include_unlicensed=True)
    assert (tmp_path / "one" / "x.tar").read_bytes() == (tmp_path / "two" / "x.tar").read_bytes()


def test_some_adapters_by_name_and_pattern(shared: Path, tmp_path: Path) -> None:
    assert pull(str(shared), tmp_path / "bank", ["task00[01]", "task004"]).added == [
        "task000",
        "task001",
        "task004",
    ]
    with pytest.raises(BankNotFoundError, match="no adapter is called nothing"):
        pull(str(shared), tmp_path / "bank", ["nothing*", "task000"])
    report = pull(str(shared), tmp_path / "bank")
    assert (report.added, report.skipped) == (
        ["task002", "task003", "task005"],
        ["task000", "task001", "task004"],
    )
    with AdapterBank.open(tmp_path / "bank") as bank:
        assert_nothing_else(bank)


def test_into_a_bank_that_has_others(shared: Path, tmp_path: Path, tokenizer_folder: Path) -> None:
    with create_bank(tmp_path / "bank", tokenizer_folder) as bank:
        ingest_folder(bank, write_pairs(tmp_path / "pairs", 2, start=5))
        # task005 is the same but for its dtype; task006 is there alone.
        before = told(bank)
    report = pull(str(shared), tmp_path / "bank")
    assert (len(report.added), [one.name for one in report.refused]) == (5, ["task005"])
    assert "--replace" in report.refused[0].reason
    with AdapterBank.open(tmp_path / "bank") as bank:
        assert {name: told(bank)[name] for name in before} == before
    assert pull(str(shared), tmp_path / "bank", replace=True).replaced == ["task005"]
    with AdapterBank.open(tmp_path / "bank") as bank:
        assert_nothing_else(bank)


def test_no_bank_of_another_kind_takes_it(shared: Path, tmp_path: Path, tokenizer_folder: Path) -> None:
    AdapterBank.create(tmp_path / "bank", base_model="other/model", tokenizer=tokenizer_folder).close()
    with pytest.raises(ConflictError, match=r"base model other/model, there .*bank alias add"):
        pull(str(shared), tmp_path / "bank")
    with AdapterBank.open(tmp_path / "bank") as bank:
        assert len(bank) == 0


def flip(path: Path) -> None:
    """Change a byte."""
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


def test_files_of_adapters_that_were_changed_on_the_way(shared: Path, tmp_path: Path) -> None:
    """A byte of each kind of file, or the whole of it: refused by name, and the others are stored."""
    change = {
        f"adapters/task000/{WEIGHTS}": flip,
        f"adapters/task001/{COUNTS}": flip,
        "adapters/task002/adapter_config.json": flip,
        f"adapters/task003/{WEIGHTS}": Path.unlink,
        f"adapters/task004/{COUNTS}": Path.unlink,
    }
    place = changed(
        shared,
        tmp_path / "changed",
        lambda folder: [done(folder / path) for path, done in change.items()] and None,
        sealed=False,
    )
    report = pull(str(place), tmp_path / "bank")
    assert report.added == ["task005"]
    assert [one.name for one in report.refused] == [f"task00{number}" for number in range(5)]
    assert all(path in one.reason for path, one in zip(change, report.refused, strict=True))
    with AdapterBank.open(tmp_path / "bank") as bank:
        assert_nothing_else(bank)
    assert len(pull(str(shared), tmp_path / "bank").added) == 5


@pytest.mark.parametrize("path", ["shared_bank.json", "catalogue.jsonl", "tokenizer/tokenizer.json"])
@pytest.mark.parametrize("done", [flip, Path.unlink])
def test_what_all_need_that_was_changed_on_the_way(
    shared: Path, tmp_path: Path, path: str, done: Callable[[Path], None]
) -> None:
    place = changed(shared, tmp_path / "changed", lambda folder: done(folder / path), sealed=False)
    with pytest.raises(BankError, match=path.rsplit("/", 1)[-1]):
        pull(str(place), tmp_path / "bank")
    assert not (tmp_path / "bank").exists()


def test_sums_that_were_changed_or_are_missing(shared: Path, tmp_path: Path) -> None:
    def change(folder: Path) -> None:
        text = (folder / SUMS).read_text()
        assert text[66:].startswith("adapters/task000/")
        (folder / SUMS).write_text("0" * 64 + text[64:])

    place = changed(shared, tmp_path / "changed", change, sealed=False)
    report = pull(str(place), tmp_path / "bank", ["task000", "task001"])
    assert (report.added, [one.name for one in report.refused]) == (["task001"], ["task000"])
    (place / SUMS).unlink()
    with pytest.raises(BankFormatError, match="SHA256SUMS was expected, none found"):
        pull(str(place), tmp_path / "bank")


def test_a_push_that_did_not_end_is_not_called_a_bank(
    bank: AdapterBank, shared: Path, tmp_path: Path
) -> None:
    half = changed(shared, tmp_path / "half", lambda folder: (folder / SUMS).unlink(), sealed=False)
    shutil.rmtree(half / "adapters" / "task003")
    with pytest.raises(BankFormatError, match="its push was interrupted, run it again"):
        pull(str(half), tmp_path / "new")
    kept = (half / "adapters" / "task001" / WEIGHTS).stat().st_mtime_ns
    report = push(bank, str(half), include_unlicensed=True)
    assert report.new == 3  # those of task003
    assert (half / "adapters" / "task001" / WEIGHTS).stat().st_mtime_ns == kept
    same = {path: one for path, one in digests(half).items() if not str(path).endswith(CARD)}
    assert same.items() <= digests(shared).items()
    assert len(pull(str(half), tmp_path / "new").added) == 6


def test_a_push_costs_nothing_that_is_there(bank: AdapterBank, shared: Path, tmp_path: Path) -> None:
    there = changed(shared, tmp_path / "there", lambda folder: None)
    before = digests(there)
    with pytest.raises(ConflictError, match=r"would be lost: task002, .* --replace"):
        push(bank, str(there), ["task000", "task001"], include_unlicensed=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ConflictError, match=r"notes\.txt"):
        push(bank, str(tmp_path / "mine"), include_unlicensed=True, replace=True)
    assert digests(there) == before
    push(bank, str(there), ["task000"], include_unlicensed=True, replace=True)
    assert len(pull(str(there), tmp_path / "other").added) == 1
    assert [path.name for path in (there / "adapters").iterdir()] == ["task000"]


def test_licences_decide_what_goes(bank: AdapterBank, tmp_path: Path) -> None:
    with pytest.raises(ConflictError, match=r"6 that state no licence; .*--include-unlicensed"):
        push(bank, str(tmp_path / "away"))
    for name, licence in {"task000": "mit", "task001": "cc-by-nd-4.0", "task002": "My Own Licence"}.items():
        bank.catalog.set_group(name, None, licence)
    report = push(bank, str(tmp_path / "away"))
    assert report.adapters == ["task000", "task002"]
    assert sorted(map(sorted, report.left_out.values())) == [["task001"], ["task003", "task004", "task005"]]
    card = (tmp_path / "away" / CARD).read_text()
    assert "| mit | 1 |" in card
    assert "forbids" in card
    report = push(bank, str(tmp_path / "all"), include_unlicensed=True)
    assert "task001" not in report.adapters
    assert len(report.adapters) == 5


def test_paths_of_this_machine_stay_here(tmp_path: Path, tokenizer_folder: Path) -> None:
    """Adapters that state the base model by a path, tokenizers that state where they were, headers that say more."""
    import json
    import struct

    secret = tmp_path / "ada-lovelace"
    tokens = shutil.copytree(tokenizer_folder, secret / "models" / "base")
    settings_file = tokens / "tokenizer_config.json"
    stated = json.loads(settings_file.read_text()) | {
        "name_or_path": str(tokens),
        "tokenizer_file": f"{tokens}/t.json",
    }
    settings_file.write_text(json.dumps(stated))
    pairs = write_pairs(secret / "pairs", 2)
    for folder in (pairs / "adapters").iterdir():
        config = json.loads((folder / "adapter_config.json").read_text())
        config |= {"base_model_name_or_path": str(tokens), "loftq_config": {"at": f"{secret}/x"}}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        data = (folder / WEIGHTS).read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        header["__metadata__"] = {"format": "pt", "out": f"saved in {secret}/runs/1"}
        text = json.dumps(header).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    with AdapterBank.create(secret / "bank", base_model=str(tokens), tokenizer=tokens) as bank:
        assert not bank.ingest(pairs).refused
        push(bank, str(tmp_path / "away"), include_unlicensed=True)
        before = {name: found[1:] for name, found in content(bank).items()}
    for path in (tmp_path / "away").rglob("*"):
        assert path.is_dir() or b"ada-lovelace" not in path.read_bytes(), path
    pull(str(tmp_path / "away"), tmp_path / "back")
    with AdapterBank.open(tmp_path / "back") as back:
        assert {name: found[1:] for name, found in content(back).items()} == before
        assert (back.record.base_model, back.record.tokenizer_name) == ("base", "base")
        assert_nothing_else(back)


# -- tars that are none --------------------------------------------------------------------------------


def tar_of(folder: Path, path: Path, more: list[tuple[tarfile.TarInfo, bytes]]) -> str:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.add(folder, arcname="bank")
        for member, data in more:
            archive.addfile(member, io.BytesIO(data))
    return str(path)


def member(name: str, kind: bytes = tarfile.REGTYPE, **values: Any) -> tuple[tarfile.TarInfo, bytes]:
    made = tarfile.TarInfo(name)
    made.type = kind
    for key, value in values.items():
        setattr(made, key, value)
    return made, b""


@pytest.mark.parametrize(
    "more",
    [
        member("/etc/passwd"),
        member("bank/../../x"),
        member("bank/link", tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("bank/hard", tarfile.LNKTYPE, linkname="bank/SHA256SUMS"),
        member("bank/pipe", tarfile.FIFOTYPE),
        member("bank/device", tarfile.CHRTYPE, devmajor=1, devminor=3),
        member("bank/SHA256SUMS"),
        member("bank/sparse", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0",
                                           "GNU.sparse.realsize": str(1 << 50), "GNU.sparse.name": "x"}),
    ],
    ids=lambda found: found[0].name,
)  # fmt: skip
def test_a_tar_with_anything_but_files_is_refused(shared: Path, tmp_path: Path, more: Any) -> None:
    place = tar_of(shared, tmp_path / "x.tar", [more])
    with pytest.raises(BankFormatError, match=r"x\.tar: no tar of a shared bank"):
        pull(place, tmp_path / "bank")
    assert not (tmp_path / "bank").exists()
    assert not (tmp_path / ".bank.pull").exists()


def test_a_tar_that_people_made_of_the_folder_is_read(shared: Path, tmp_path: Path) -> None:
    assert len(pull(tar_of(shared, tmp_path / "x.tar", []), tmp_path / "bank").added) == 6


@settings(max_examples=10)
@given(st.data())
def test_no_bytes_of_a_tar_are_another_bank(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Changed anywhere, cut off anywhere: an error in one line, or the very same adapters."""
    whole = tars(tmp_path_factory)
    changed = bytearray(whole[0])
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.one_of(st.just(len(changed)), st.integers(0, len(changed))))
    folder = tmp_path_factory.mktemp("changed")
    (folder / "x.tar").write_bytes(changed[:end])
    with contextlib.suppress(BankError):
        pull(str(folder / "x.tar"), folder / "bank", ["task000"])
    if (folder / "bank" / "bank.db").exists():
        with AdapterBank.open(folder / "bank") as bank:
            assert content(bank).items() <= whole[1].items()
    shutil.rmtree(folder)


_TARS: list[tuple[bytes, dict[str, tuple[Any, ...]]]] = []


def tars(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, dict[str, tuple[Any, ...]]]:
    if not _TARS:
        folder = tmp_path_factory.mktemp("one")
        from tests.support.banks.small_bank import write_tokenizer

        with create_bank(
            folder / "bank", write_tokenizer(folder / "tokens", [f"w{n}" for n in range(200)])
        ) as bank:
            ingest_folder(bank, write_pairs(folder / "pairs", 1))
            push(bank, str(folder / "x.tar"), include_unlicensed=True)
        pull(str(folder / "x.tar"), folder / "back")
        with AdapterBank.open(folder / "back") as back:
            _TARS.append(((folder / "x.tar").read_bytes(), content(back)))
    return _TARS[0]


# -- links, and killed ---------------------------------------------------------------------------------


def test_no_link_in_a_folder_is_followed(shared: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    shutil.copytree(shared / "adapters" / "task001", outside)

    def change(folder: Path) -> None:
        shutil.rmtree(folder / "adapters" / "task001")
        (folder / "adapters" / "task001").symlink_to(outside)
        (folder / "adapters" / "task002" / COUNTS).unlink()
        os.mkfifo(folder / "adapters" / "task002" / COUNTS)

    report = pull(str(changed(shared, tmp_path / "changed", change, sealed=False)), tmp_path / "bank")
    assert [one.name for one in report.refused] == ["task001", "task002"]
    assert len(report.added) == 4


@pytest.mark.faults
def test_killed_it_goes_on(shared: Path, tmp_path: Path) -> None:
    """What was stored is not fetched again, and at the end it is the bank."""
    kills = int(os.environ.get("FAULT_KILLS", "2"))
    program = f"from bankdb.sharing.pull import pull; pull({str(shared)!r}, {str(tmp_path / 'bank')!r})"
    stored = 0
    for number in range(kills):
        running = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
        until = time.monotonic() + 60
        database = tmp_path / "bank" / "adapters.zarr" / "c"
        while running.poll() is None and time.monotonic() < until:
            if database.is_dir() and len(list(database.iterdir())) > min(stored + 1, 4) + number % 2:
                break
            time.sleep(0.002)
        running.send_signal(signal.SIGKILL)
        running.wait()
        # Killed before there is a bank, or while it is made, nothing is stored.
        with contextlib.suppress(BankNotFoundError), AdapterBank.open(tmp_path / "bank") as bank:
            assert len(bank) >= stored
            stored = len(bank)
    report = pull(str(shared), tmp_path / "bank")
    assert (len(report.skipped), report.refused) == (stored, [])
    with AdapterBank.open(tmp_path / "bank") as bank:
        assert [one.name for one in bank.adapters()] == [f"task00{n}" for n in range(6)]
        assert_nothing_else(bank)
    assert not (tmp_path / ".bank.pull").exists()


# -- places --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "shown"),
    [
        ("ada/bank", "hub", "ada/bank"),
        ("hub:ada/bank@v1", "hub", "ada/bank"),
        ("./ada/bank", "folder", "ada/bank"),
        ("../ada/bank", "folder", "../ada/bank"),
        ("/ada/bank", "folder", "/ada/bank"),
        ("bank", "folder", "bank"),
        ("a/b/c", "folder", "a/b/c"),
        ("ada/bank.tar", "tar", "ada/bank.tar"),
    ],
)
def test_which_place_is_meant(text: str, kind: str, shown: str) -> None:
    assert (parse_place(text).kind, str(parse_place(text))) == (kind, shown)


def test_a_folder_that_is_here_is_never_published_by_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "exports").mkdir()
    monkeypatch.chdir(tmp_path)
    for packed in ("bank.tar.gz", "bank.zip"):
        with pytest.raises(ParameterError, match=r"FILE\.tar was expected, a packed file found"):
            parse_place(packed)
    with pytest.raises(ParameterError, match=r"hub:exports/bank or \./exports/bank"):
        parse_place("exports/bank")
