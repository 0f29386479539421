"""What is written is there, whole, after a crash: flushed files and folders, files that appear by a rename."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from bankdb.arrays import remote
from bankdb.arrays.remote import Location, RemotePath
from bankdb.errors import BankFormatError

# What fsync of a folder gives where only files are flushed.
_NO_FOLDERS = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
# Some files do not say how large they are.
_LEAST_READ = 4095
_PARTIAL_END = ".partial"
_PARTIAL = re.compile(r"\.[0-9a-f]{32}\.partial$")


def fsync_path(path: Location) -> None:
    """Flush a file or a folder to the disk.

    Some network disks flush files alone, and say so of a folder: there, a file that was just made may be gone after
    the power failed, though its content was flushed.
    """
    if isinstance(path, RemotePath):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDERS or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def read_file(file: Location | str) -> bytes | None:
    """Return what is in a file, whose path may be text, or in an object; None if it is not there.

    Raises
    ------
    BankFormatError
        There is something that cannot be read.
    ArrayStoreUnavailableError
        The store of a URL failed.
    """
    if isinstance(file, RemotePath):
        return remote.read_ranges([(file, 0, None)])[0]
    try:
        return _content(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise BankFormatError(f"{file}: cannot be read ({error.strerror or error})") from error


def _content(file: Path | str) -> bytes:
    """Return what is in a file, in half the time of Python's file objects: matrices have a hundred thousand."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        size = max(os.fstat(descriptor).st_size, _LEAST_READ) + 1
        parts = []
        while part := os.read(descriptor, size):
            parts.append(part)
    finally:
        os.close(descriptor)
    return b"".join(parts)


def write_file(file: Location, data: bytes) -> None:
    """Write a file so that it appears whole, in place of one that was there, and is there after a crash."""
    if isinstance(file, RemotePath):
        remote.put({file: data})
        return
    partial = partial_of(file)
    try:
        with naming(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(file)
        fsync_path(file.parent)
    finally:
        partial.unlink(missing_ok=True)


def fsync_written(path: Location, files: Iterable[Location]) -> None:
    """Flush chunk files of the array at `path`, and every folder between them and it."""
    written = list(files)
    for file in written:
        fsync_path(file)
    fsync_folders(path, written)


def fsync_folders(path: Location, files: Iterable[Location]) -> None:
    """Flush the array's folder at `path`, and every folder between it and chunk files that are flushed."""
    if isinstance(path, RemotePath):
        return
    folders: set[Path] = {path}
    for folder in {file.parent for file in files}:
        assert isinstance(folder, Path)
        folders.update(one for one in (folder, *folder.parents) if one.is_relative_to(path))
    for folder in sorted(folders, key=lambda item: len(item.parts), reverse=True):
        fsync_path(folder)


def folders_in(path: Location) -> list[Location]:
    """Return what lies in `path` and holds something."""
    if isinstance(path, RemotePath):
        inside = {name.split("/")[0] for name in remote.objects_below(path) if "/" in name}
        return [path / name for name in sorted(inside)]
    return sorted(item for item in path.iterdir() if item.is_dir()) if path.is_dir() else []


def files_below(path: Location) -> list[str]:
    """Return the names, from `path` on, of all files below it; no symbolic link is followed."""
    if isinstance(path, RemotePath):
        return remote.objects_below(path)
    found = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    return sorted(file.relative_to(path).as_posix() for file in found)


def sizes_below(path: Location) -> dict[str, int]:
    """Return the bytes of all files below `path`, by their names from there on; no symbolic link is followed.

    What a running writer takes away meanwhile is left out.
    """
    if isinstance(path, RemotePath):
        return remote.sizes_below(path)
    sizes = {}
    for name in files_below(path):
        with contextlib.suppress(FileNotFoundError):
            sizes[name] = (path / name).lstat().st_size
    return sizes


def delete_files(path: Location, names: Iterable[str]) -> None:
    """Delete files below `path`, in this order, and the folders that are left empty, `path` among them."""
    if isinstance(path, RemotePath):
        for name in names:
            remote.delete(path / name)
        return
    for name in names:
        (path / name).unlink(missing_ok=True)
    if not path.is_symlink():
        for folder, _, _ in os.walk(path, topdown=False):
            with contextlib.suppress(OSError):  # it holds something
                os.rmdir(folder)


def is_linked(path: Location, top: Location) -> bool:
    """Whether `path`, or a folder between it and `top`, is a symbolic link."""
    if isinstance(path, RemotePath) or isinstance(top, RemotePath):
        return False
    inside = path.absolute().relative_to(top.absolute()).parts
    return any(top.joinpath(*inside[:number]).is_symlink() for number in range(1, len(inside) + 1))


def free_space(path: Location) -> int | None:
    """Return the bytes that are free where `path` is, or will be; None where that is not known, under a URL."""
    if isinstance(path, RemotePath):
        return None
    there = next(item for item in (path.absolute(), *path.absolute().parents) if item.exists())
    return shutil.disk_usage(there).free


def delete_tree(path: Location) -> None:
    """Delete whatever is at `path` and below it."""
    if isinstance(path, RemotePath):
        remote.delete_below(path)
    elif path.exists():
        shutil.rmtree(path)


def copy_folder(source: Location, target: Path) -> None:
    """Copy a folder without its permissions, which may not allow to write; nothing where there is none, or a URL."""
    if isinstance(source, RemotePath) or not source.is_dir():
        return
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    for item in (target, *target.rglob("*")):
        if item.is_dir():
            item.chmod(0o700)


def is_empty(path: Location) -> bool:
    """Return whether nothing is at `path` or below it."""
    if isinstance(path, RemotePath):
        return not path.exists()  # not a listing of what may be a million objects
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def move(item: Location, target: Location) -> None:
    """Move a file, or a folder, durably."""
    if isinstance(item, RemotePath):
        assert isinstance(target, RemotePath)
        remote.move(item, target)
        return
    assert isinstance(target, Path)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(item, target)
    fsync_path(target.parent)
    fsync_path(item.parent)


def new_place(place: Location, prefix: str) -> Location:
    """Return a place of its own within another; a folder is made."""
    if isinstance(place, RemotePath):
        return place / f"{prefix}{uuid.uuid4().hex}"
    return Path(tempfile.mkdtemp(prefix=prefix, dir=place)).absolute()


def relative_name(item: Location, place: Location) -> str:
    """Return the names that lead from a place to what is below it."""
    if isinstance(item, RemotePath) and isinstance(place, RemotePath):
        return item.relative_to(place)
    return Path(str(item)).relative_to(str(place)).as_posix()


def partial_files(path: Location, *, below: bool = True) -> list[Path]:
    """Return files that a killed writer left behind: zarr writes beside the chunk, then renames.

    Parameters
    ----------
    below
        Whether to look into the folders at `path` too.
    """
    if isinstance(path, RemotePath):
        return []
    # os.walk passes over folders that a running writer removes meanwhile.
    folders = itertools.islice(os.walk(path), None if below else 1)
    walked = ((folder, name) for folder, _, names in folders for name in names)
    return sorted(Path(folder, name) for folder, name in walked if is_partial(name))


def partial_of(file: Path) -> Path:
    """Return where a file is written before it appears; zarr names its own so, and `partial_files` finds them."""
    return file.with_name(f"{file.name}.{uuid.uuid4().hex}.partial")


@contextlib.contextmanager
def naming(file: Path) -> Iterator[None]:
    """Have an OSError name the file that is written: a full disk is told by calls that know no name."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(file)
        raise


def is_partial(name: str) -> bool:
    """Return whether a file of this name is one that zarr is writing, or that a killed writer left."""
    # Nearly none is, of a hundred thousand.
    return name.endswith(_PARTIAL_END) and _PARTIAL.search(name) is not None


def write_whole(path: Path, text: str | Iterable[str] | Iterable[bytes]) -> None:
    """Write text, or bytes in parts, into a file so that it appears whole or not at all, also after a crash.

    A link stays, and what it points to is written so. What is no regular file, such as a device, a named pipe or
    `/dev/stdout`, is written into.
    """
    target = _link_target(path)
    if _is_stream(target):
        with naming(path), target.open("ab") as stream:
            stream.writelines(_parts(text))
        return
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with naming(path):
            with unfinished.open("wb") as file:
                file.writelines(_parts(text))
            if target.exists():
                shutil.copymode(target, unfinished)
            fsync_path(unfinished)
            unfinished.replace(target)
            fsync_path(target.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def _parts(text: str | Iterable[str] | Iterable[bytes]) -> Iterable[bytes]:
    parts = (text,) if isinstance(text, str) else text
    return (part if isinstance(part, bytes) else part.encode() for part in parts)


def _link_target(path: Path) -> Path:
    """Follow links, but those to what a process has open, which a path cannot replace."""
    for _ in range(40):  # as many as the kernel follows
        path = path.parent.resolve() / path.name  # /dev/fd is a link to a folder of /proc
        if not path.is_symlink() or path.is_relative_to("/proc"):
            return path
        path = path.parent / path.readlink()
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def _is_stream(path: Path) -> bool:
    if path.is_relative_to("/proc"):
        return True
    try:
        return not stat.S_ISREG(path.stat().st_mode) and not path.is_dir()
    except FileNotFoundError:
        return False
