"""Objects under a URL (`s3://bucket/prefix`), through fsspec: read by ranges, put whole, listed, deleted.

Address and credentials come from the environment of each process (`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID` and
the others that botocore knows), so that a URL is all that a worker needs.
"""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bankdb.errors import ArrayStoreUnavailableError, BankError, ParameterError, one_line

# Attempts of a request that fails for a reason that may pass (5xx, throttling, a connection that is reset or
# refused), with growing random pauses, up to about 15 s in all: botocore's standard mode.
_ATTEMPTS = 5
# Times that a body is asked for again, which breaks off while it is read.
_BODY_ATTEMPTS = 3
# Requests in flight; ten, as botocore has it, leave a fast network idle while they wait for their first byte.
_CONNECTIONS = 32
_S3 = ("s3", "s3a")
# Of fsspec's, those that write, and whose URL says where an object is: of others, address or user are given apart.
_KINDS = (*_S3, "gs", "gcs", "az", "abfs", "abfss", "memory")


@dataclass(frozen=True, slots=True, order=True)
class RemotePath:
    """A place under a URL; joined, named and asked as `pathlib.Path` is, as far as arrays need it.

    Attributes
    ----------
    url
        Without a slash at its end.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(f"{self.url}/{name}")

    def joinpath(self, *names: str) -> RemotePath:
        """Return the place below this one, a name a level."""
        return RemotePath("/".join((self.url, *names)))

    @property
    def name(self) -> str:
        """The last part."""
        return self.url.rsplit("/", 1)[-1]

    @property
    def parent(self) -> RemotePath:
        """The place above."""
        return RemotePath(self.url.rsplit("/", 1)[0])

    def relative_to(self, place: RemotePath) -> str:
        """Return the names that lead from a place above to this one."""
        if not self.url.startswith(f"{place.url}/"):
            raise ValueError(f"{self} is not below {place}")
        return self.url[len(place.url) + 1 :]

    def absolute(self) -> RemotePath:
        """Return the same: a URL means the same in every process."""
        return self

    def check(self) -> None:
        """Raise ParameterError unless this kind of URL can be used here."""
        filesystem(self.url)

    def is_file(self) -> bool:
        """Return whether there is an object of this name."""
        with reaching(self):
            return bool(filesystem(self.url).isfile(self.url))

    def exists(self) -> bool:
        """Return whether there is an object of this name, or any below it."""
        with reaching(self):
            return bool(filesystem(self.url).exists(self.url))


Location = Path | RemotePath


def located(text: str) -> Location:
    """Return the place that a text names: a URL's, or a folder's; `file://` is a folder too.

    A folder is given by its absolute path, so that no name of one is taken for a URL.
    """
    scheme, separator, rest = text.partition("://")
    if not separator or not scheme.replace("+", "").isalnum():
        return Path(text)
    return Path(rest) if scheme in {"file", "local"} else RemotePath(text.rstrip("/"))


def checked_place(text: str) -> Location:
    """Return the place that a text names as every process understands it: an absolute path, or a URL that can be used.

    Raises
    ------
    ParameterError
        It names no place within a bucket, or one of a kind that is not known here.
    """
    place = located(text)
    if isinstance(place, Path):
        return place.absolute()
    if "@" in place.url.partition("://")[2].split("/")[0] or "?" in place.url:
        # Not repeated: the URL is stored, and shown in messages.
        raise ParameterError(
            "arrays: expected a URL of a place alone, such as s3://BUCKET/PREFIX, found a user, a password or options "
            "in it; give credentials as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or in ~/.aws, and an address as "
            "AWS_ENDPOINT_URL"
        )
    if "/" not in place.url.partition("://")[2].strip("/"):
        raise ParameterError(
            f"{text}: expected a URL of a bucket and a name in it, such as s3://BUCKET/PREFIX"
        )
    place.check()
    return place


def requests_at_once(place: Location) -> int:
    """Return how many requests to a place overlap: one in a folder, many under a URL."""
    return 1 if isinstance(place, Path) else _CONNECTIONS


def filesystem(url: str, *, asynchronous: bool = False) -> Any:
    """Return fsspec's file system for a URL, made once in this process, for all threads.

    Parameters
    ----------
    asynchronous
        For a caller that awaits its answers, where that kind of file system has such.

    Raises
    ------
    ParameterError
        There is no such kind of URL, or what it needs is not installed.
    """
    return _filesystem(url.partition("://")[0], *_surroundings(), asynchronous=asynchronous)


def _surroundings() -> tuple[int, str | None]:
    """Process and address, with which connections are made: those of another one are of no use."""
    return os.getpid(), os.environ.get("AWS_ENDPOINT_URL")


@cache
def _filesystem(scheme: str, process: int, address: str | None, asynchronous: bool) -> Any:
    import fsspec

    if scheme not in _KINDS:
        raise ParameterError(
            f"{scheme}://: no such kind of URL can hold arrays; expected s3://BUCKET/PREFIX, or a folder"
        )
    # Listings would be kept, and other processes write too.
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if scheme in _S3:
        retries = {"mode": "standard", "max_attempts": _ATTEMPTS}
        options["config_kwargs"] = {
            "retries": retries,
            "max_pool_connections": _CONNECTIONS,
            # Some stores send the whole object's checksum with a part of it; what is read has its own.
            "response_checksum_validation": "when_required",
        }
    try:
        kind = fsspec.get_filesystem_class(scheme)
        if asynchronous and kind.async_impl:
            options["asynchronous"] = True
        made = kind(**options)
    except ImportError as error:
        raise ParameterError(
            f"{scheme}://: needs a package that is not installed ({error}); `pip install lora-bank[s3]` for s3://"
        ) from error
    if scheme in _S3:
        made.retries = _BODY_ATTEMPTS
        if asynchronous:
            atexit.register(_close, made)
    return made


def _close(made: Any) -> None:
    """Close connections of zarr's, which s3fs leaves open: at the process's end each would be complained of."""
    from zarr.core.sync import sync

    client = getattr(made, "_s3creator", None)
    if client is not None:
        sync(client.__aexit__(None, None, None), timeout=1)


@contextlib.contextmanager
def reaching(location: object, *, missing: bool = True) -> Iterator[None]:
    """Turn whatever goes wrong between here and the store into an error that says so.

    Parameters
    ----------
    missing
        Whether FileNotFoundError is an answer, for the caller.

    Raises
    ------
    ArrayStoreUnavailableError
        The store did not answer, or refused, after all attempts.
    """
    try:
        yield
    except BankError:
        raise
    except FileNotFoundError as error:
        if missing:
            raise
        raise unavailable(location, error) from error
    except Exception as error:
        raise unavailable(location, error) from error


def unavailable(location: object, error: Exception) -> ArrayStoreUnavailableError:
    """Return the error that says that a store did not do what was asked."""
    reason = one_line(error)
    return ArrayStoreUnavailableError(
        f"{location}: the array store cannot be reached, or refuses ({type(error).__name__}: {reason}); check that it "
        "runs, its address (AWS_ENDPOINT_URL) and the credentials (AWS_*), and run the same command again: what "
        "was done is kept"
    )


# -- objects -------------------------------------------------------------------------------------------


def read_ranges(requests: Sequence[tuple[RemotePath, int, int | None]]) -> list[bytes | None]:
    """Read ranges of objects, many at once; None for an object that is not there.

    Parameters
    ----------
    requests
        Each an object, a start, and a stop; a start below zero, without stop, counts from the end.

    Returns
    -------
    The bytes of each; fewer than asked for where an object is shorter.

    Raises
    ------
    ArrayStoreUnavailableError
        A range could not be read.
    """
    if not requests:
        return []
    files, starts, stops = (list(column) for column in zip(*requests, strict=True))
    with reaching(files[0].parent):
        answers = filesystem(files[0].url).cat_ranges(
            [file.url for file in files], starts, stops, on_error="return"
        )
    return [_answer(file, answer) for file, answer in zip(files, answers, strict=True)]


def _answer(file: RemotePath, answer: Any) -> bytes | None:
    if isinstance(answer, FileNotFoundError):
        return None
    if isinstance(answer, OSError) and _begins_past_the_end(answer):
        return b""
    if isinstance(answer, Exception):
        raise unavailable(file, answer) from answer
    return bytes(answer)


def _begins_past_the_end(answer: OSError) -> bool:
    """Whether a range was refused as HTTP's 416: stores word it each in their own way."""
    response = getattr(answer.__cause__, "response", None) or {}
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return bool(status == 416) or "not satisfiable" in str(answer)


def object_size(file: RemotePath) -> int:
    """Return the bytes of an object. Raises ArrayStoreUnavailableError if it cannot be asked, or is not there."""
    with reaching(file, missing=False):
        return int(filesystem(file.url).size(file.url))


def put(objects: Mapping[RemotePath, bytes]) -> None:
    """Write objects, several at once; each is there whole when this returns, in place of what was there.

    Raises
    ------
    ArrayStoreUnavailableError
        One could not be written; what was there under its name is there still.
    """
    first = next(iter(objects))
    with reaching(first, missing=False):
        filesystem(first.url).pipe({file.url: data for file, data in objects.items()})


def delete(file: RemotePath) -> None:
    """Delete an object, if it is there."""
    with reaching(file), contextlib.suppress(FileNotFoundError):
        filesystem(file.url).rm_file(file.url)


def delete_below(location: RemotePath) -> None:
    """Delete every object below a place."""
    with reaching(location), contextlib.suppress(FileNotFoundError):
        filesystem(location.url).rm(location.url, recursive=True)


def objects_below(location: RemotePath) -> list[str]:
    """Return the names of all objects below a place, from there on, sorted."""
    return sorted(sizes_below(location))


def sizes_below(location: RemotePath) -> dict[str, int]:
    """Return the bytes of all objects below a place, by their names from there on: the listing has both."""
    made = filesystem(location.url)
    with reaching(location):
        try:
            found = made.find(location.url, detail=True)
        except FileNotFoundError:
            return {}
    root = str(made._strip_protocol(location.url)).rstrip("/") + "/"
    return {
        name.removeprefix(root): int(about["size"] or 0)
        for name, about in found.items()
        if name.startswith(root)
    }


def move(item: RemotePath, target: RemotePath) -> None:
    """Move an object, or whatever is below a place; there is no moment at which it is nowhere."""
    with reaching(item):
        made = filesystem(item.url)
        made.copy(item.url, target.url, recursive=not made.isfile(item.url))
        made.rm(item.url, recursive=True)
