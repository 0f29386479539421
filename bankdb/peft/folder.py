"""A folder of files that appears under its name whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from bankdb.arrays.durable import fsync_path
from bankdb.errors import AdapterError, ConflictError
from bankdb.peft.config import CONFIG_NAME

_UNFINISHED = re.compile(r"\.(.+)\.(partial|replaced)-[0-9a-f]{8}")

Content = bytes | Callable[[Path], None]
# One of these is in the folder of any adapter: PEFT's, or llama.cpp's alone.
_OF_AN_ADAPTER = (CONFIG_NAME, "adapter.gguf")


def write_adapter_folder(folder: Path, *, files: Mapping[str, Content], overwrite: bool = False) -> None:
    """Write an adapter folder, so that no reader and no crash ever sees half of it.

    The files are written into a hidden sibling folder and synced to disk; then it is renamed. A killed
    process may leave that sibling, `.NAME.partial-XXXX`, which can be deleted; killed between the two
    renames of an overwrite, it leaves the adapter that was there as `.NAME.replaced-XXXX`.

    Parameters
    ----------
    folder
        Where the adapter shall be; parents are made. An empty folder may already be there.
    files
        Content by file name: the bytes, or a function that writes the file at the path it is given.
    overwrite
        Replace an adapter that is already there, as a whole.

    Raises
    ------
    ConflictError
        The folder is there and not to be replaced, or holds more than an adapter's files.
    AdapterError
        The disk is full, read-only, or not permitted.
    """
    # `--out .` has no name of its own to rename to.
    folder = Path(os.path.abspath(folder))
    partial = folder.with_name(f".{folder.name}.partial-{secrets.token_hex(4)}")
    try:
        check_free(folder, overwrite)
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        for name, content in files.items():
            _write_file(partial / name, content)
        fsync_path(partial)
        _replace(partial, folder, overwrite)
        fsync_path(folder.parent)
    except OSError as error:
        raise AdapterError(
            f"{folder}: cannot be written: {error.strerror or error}; check its permissions and the disk"
        ) from error
    finally:
        # Whatever ended it: there is nothing here after success.
        shutil.rmtree(partial, ignore_errors=True)


def clear_unfinished(root: Path, names: Collection[str]) -> None:
    """Delete what killed writers of folders of these names left in `root`; no other process may be writing them.

    What an unfinished overwrite had moved aside is put back.
    """
    if not root.is_dir():
        return
    for item in sorted(root.iterdir()):
        found = _UNFINISHED.fullmatch(item.name)
        if found is None or found[1] not in names:
            continue
        folder = root / found[1]
        if found[2] == "partial":
            shutil.rmtree(item)
        elif not os.path.lexists(folder):
            item.rename(folder)  # killed between the two renames of an overwrite
        else:
            _delete(item)


def check_free(folder: Path, overwrite: bool) -> None:
    """Raise what `write_adapter_folder` would, as far as can be told before the work whose result is to be written."""
    if not os.path.lexists(folder):
        _check_writable(folder)
        return
    if not folder.is_dir():
        raise ConflictError(f"{folder}: a new folder was expected, a file found; choose another name")
    found = sorted(folder.iterdir())
    if not found and not folder.is_symlink():
        return
    if not overwrite:
        raise ConflictError(f"{folder}: already there; choose another name, or ask to overwrite it")
    # Replacing deletes all of it: that must never be somebody's project or training run.
    folders = [path.name for path in found if path.is_dir()]
    if folders or not any((folder / name).is_file() for name in _OF_AN_ADAPTER):
        what = f"the folder {folders[0]!r}" if folders else f"no {CONFIG_NAME}"
        raise ConflictError(
            f"{folder}: an adapter's files alone were expected to be overwritten, {what} found; choose another name"
        )


def _check_writable(folder: Path) -> None:
    """Raise AdapterError where the folder that is to hold a new one is none, or not this user's to write in."""
    above = next(parent for parent in folder.absolute().parents if os.path.lexists(parent))
    if not above.is_dir():
        raise AdapterError(f"{folder}: cannot be written: {above} is no folder; choose another place")
    if not os.access(above, os.W_OK | os.X_OK):
        raise AdapterError(
            f"{folder}: cannot be written: no permission to write in {above}; choose another place"
        )


def _write_file(path: Path, content: Content) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        # A library may make its file for the owner alone; it gets the mode of any other file.
        path.touch()
        mode = path.stat().st_mode
        content(path)
        path.chmod(mode)
    fsync_path(path)


def _replace(partial: Path, folder: Path, overwrite: bool) -> None:
    old = None
    if overwrite and os.path.lexists(folder):
        old = folder.with_name(f".{folder.name}.replaced-{secrets.token_hex(4)}")
        folder.rename(old)
    try:
        # Onto an empty folder this succeeds; onto one that came to be meanwhile it fails.
        partial.rename(folder)
    except OSError as error:
        if old is not None:
            old.rename(folder)
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise ConflictError(
                f"{folder}: written by another process meanwhile; choose another name"
            ) from error
        raise
    if old is not None:
        _delete(old)


def _delete(folder: Path) -> None:
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder)
