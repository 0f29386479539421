from __future__ import annotations

import threading
from pathlib import Path

import pytest

from bankdb.errors import AdapterError, ConflictError
from bankdb.peft.folder import clear_unfinished, write_adapter_folder
from tests.support.banks.malformed_adapters import CONFIG


def test_a_folder_is_written_whole(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "er" / "adapter"
    write_adapter_folder(
        folder, files={"a.json": b"{}", "b.bin": lambda path: path.write_bytes(b"b") and None}
    )
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"a.json": b"{}", "b.bin": b"b"}
    assert [path.name for path in folder.parent.iterdir()] == ["adapter"]
    assert folder.stat().st_mode & 0o055 == folder.parent.stat().st_mode & 0o055


def test_a_folder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fails(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    for overwrite in (False, True):
        with pytest.raises(AdapterError, match="No space left on device"):
            write_adapter_folder(tmp_path / "adapter", files={"a": b"a", "b": fails}, overwrite=overwrite)
        assert list(tmp_path.iterdir()) == []


def test_a_folder_is_replaced_only_when_asked_and_only_an_adapter(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()  # empty: nothing to lose
    write_adapter_folder(folder, files={CONFIG: b"1", "old": b"1"})
    with pytest.raises(ConflictError, match="already there"):
        write_adapter_folder(folder, files={CONFIG: b"2"})
    assert (folder / CONFIG).read_bytes() == b"1"
    write_adapter_folder(folder, files={CONFIG: b"2"}, overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {CONFIG: b"2"}
    (folder / "checkpoint-10").mkdir()
    with pytest.raises(ConflictError, match="the folder 'checkpoint-10' found"):
        write_adapter_folder(folder, files={CONFIG: b"3"}, overwrite=True)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years")
    with pytest.raises(ConflictError, match=f"no {CONFIG} found"):
        write_adapter_folder(tmp_path / "home", files={CONFIG: b"3"}, overwrite=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConflictError, match="a file found"):
        write_adapter_folder(tmp_path / "file", files={CONFIG: b"3"}, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "file", "home"]


def test_replacing_a_link_leaves_what_it_points_to(tmp_path: Path) -> None:
    write_adapter_folder(tmp_path / "real", files={CONFIG: b"1"})
    (tmp_path / "link").symlink_to("real")
    write_adapter_folder(tmp_path / "link", files={CONFIG: b"2"}, overwrite=True)
    assert (tmp_path / "link" / CONFIG).read_bytes() == b"2"
    assert (tmp_path / "real" / CONFIG).read_bytes() == b"1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_of_two_writers_at_once_one_wins_whole(tmp_path: Path) -> None:
    barrier = threading.Barrier(2)
    results: list[str] = []

    def write(text: bytes) -> None:
        def meet(path: Path) -> None:
            path.write_bytes(text)
            barrier.wait()

        try:
            write_adapter_folder(tmp_path / "adapter", files={CONFIG: meet, "same": text})
            results.append("written")
        except ConflictError:
            results.append("conflict")

    threads = [threading.Thread(target=write, args=(text,)) for text in (b"1", b"2")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["conflict", "written"]
    assert (tmp_path / "adapter" / CONFIG).read_bytes() == (tmp_path / "adapter" / "same").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_failed_replacement_puts_the_old_adapter_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "adapter"
    write_adapter_folder(folder, files={CONFIG: b"1"})
    real = Path.rename

    def fails(path: Path, target: Path) -> Path:
        if ".partial-" in path.name:
            raise OSError(5, "Input/output error")
        return real(path, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(AdapterError, match="Input/output error"):
        write_adapter_folder(folder, files={CONFIG: b"2"}, overwrite=True)
    assert (folder / CONFIG).read_bytes() == b"1"
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_what_killed_writers_left_is_cleared_and_what_was_moved_aside_is_put_back(tmp_path: Path) -> None:
    folder = tmp_path / "a[b]"
    for name, text in (
        (".a[b].partial-0badc0de", b"half"),
        (".a[b].replaced-0badc0d2", b"whole"),
        (".ab.partial-0badc0d1", b"other"),
    ):
        write_adapter_folder(tmp_path / name, files={CONFIG: text})
    clear_unfinished(tmp_path, {"a[b]"})
    assert (folder / CONFIG).read_bytes() == b"whole"
    write_adapter_folder(tmp_path / ".a[b].replaced-0badc0d3", files={CONFIG: b"older"})
    clear_unfinished(tmp_path, {"a[b]"})
    assert (folder / CONFIG).read_bytes() == b"whole"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".ab.partial-0badc0d1", "a[b]"]
