"""What the workers of a running scheduler have to share with the client: versions, and the bank's folder."""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bankdb.arrays.remote import Location, requests_at_once
from bankdb.arrays.zarr_arrays import array_mark
from bankdb.errors import ComputeError, one_line
from compute.cluster.blas import threads_by_host

if TYPE_CHECKING:
    from distributed import Client

_OWN = "lora-bank"
_ANSWER_SECONDS = 60
# Tasks and results are pickled between them. Of the last two, a patch release reads and writes the same.
_EXACT = ("dask", "distributed", _OWN)
_MINOR = ("python", "numpy", "zarr")
# The scheduler passes tasks on, and neither computes nor stores.
_SCHEDULER = ("python", "dask", "distributed")
_TRIES = 3


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What a worker tells about itself.

    Attributes
    ----------
    cores
        That its process may use.
    code
        Hash of the source that it computes with.
    folder
        What it finds where the bank's arrays are: see `array_mark`.
    """

    cores: int
    code: str
    folder: str


def check_workers(client: Client, folder: Location | None) -> dict[str, int]:
    """Compare versions, code and the bank's folder of client, scheduler and workers.

    Parameters
    ----------
    folder
        The adapters' array, as tasks are given it; nothing is written there. None compares no folder.

    Returns
    -------
    The BLAS threads of a task on each host.

    Raises
    ------
    ComputeError
        A worker or the scheduler has another version of what matters, a worker does not find the same
        folder, or does not answer.
    """
    _check_versions(client)
    facts = _facts(client, folder)
    if folder is not None:
        _check_folder(client, folder, facts)
    known = client.scheduler_info(n_workers=-1)["workers"]
    return threads_by_host(
        {
            address: (str(known[address]["host"]), fact.cores, int(known[address]["nthreads"]))
            for address, fact in facts.items()
            if address in known
        }
    )


# -- versions ------------------------------------------------------------------------------------------


def _check_versions(client: Client) -> None:
    # Dask's own function, pickled by name: it is there even where this package is not.
    from distributed.versions import get_versions

    own = get_versions(["zarr", _OWN])["packages"]
    asked: dict[str, Any] = {"packages": ["zarr", _OWN], "callback_timeout": _ANSWER_SECONDS}
    try:
        there = {
            "the scheduler": client.run_on_scheduler(get_versions, **asked),
            **_named(client.run(get_versions, **asked, on_error="return")),
        }
    except TimeoutError as error:
        raise _silent(client) from error
    for name, answer in there.items():
        if isinstance(answer, OSError):
            continue  # it went away meanwhile
        if isinstance(answer, Exception):
            raise _unanswered(name, answer)
        packages = _SCHEDULER if name == "the scheduler" else (*_EXACT, *_MINOR)
        _compare(name, own, answer["packages"], packages)


def _named(answers: Mapping[str, Any]) -> dict[str, Any]:
    return {f"worker {address}": answer for address, answer in answers.items()}


def _compare(name: str, own: Mapping[str, Any], other: Mapping[str, Any], packages: tuple[str, ...]) -> None:
    for package in packages:
        here, there = _version(package, own), _version(package, other)
        if here == there or (package == _OWN and None in (here, there)):
            continue  # not installed but on the path: its code is compared
        installed = other.get(package) or "none"
        fix = f"python -m pip install '{package}=={own.get(package)}'"
        if package == "python":
            fix = f"use Python {here}"
        raise ComputeError(
            f"{name} has {package} {_plain(package, installed)}, the client {_plain(package, own.get(package))}; "
            f"on that host: {fix}, and start it again"
        )


def _version(package: str, versions: Mapping[str, Any]) -> str | None:
    version = versions.get(package)
    return ".".join(str(version).split(".")[:2]) if version and package in _MINOR else version


def _plain(package: str, version: Any) -> str:
    return ".".join(str(version).split(".")[:3]) if package == "python" else str(version)


def _silent(client: Client) -> ComputeError:
    now = time.time()
    late = [
        address
        for address, worker in client.scheduler_info(n_workers=-1)["workers"].items()
        if now - float(worker["last_seen"]) > _ANSWER_SECONDS / 2
    ]
    named = f"of the workers, {', '.join(late)}" if late else "some worker, or the scheduler,"
    return ComputeError(
        f"{named} did not answer within {_ANSWER_SECONDS} s; stop it, and run the command again"
    )


def _unanswered(name: str, error: BaseException) -> ComputeError:
    reason = one_line(error)
    if isinstance(error, ImportError):
        return ComputeError(
            f"{name} cannot import what tasks are made of ({reason}), expected this package; on that host: "
            f"python -m pip install {_OWN}, the client's version, and start it again"
        )
    return ComputeError(
        f"{name} failed at the first question ({type(error).__name__}: {reason}); look into its log"
    )


# -- code and folder -----------------------------------------------------------------------------------


def worker_facts(folder: str | None) -> WorkerFacts:
    """Return what this process is and finds; runs in a worker, and writes nothing."""
    from dask.system import CPU_COUNT

    return WorkerFacts(int(CPU_COUNT), code_digest(), "" if folder is None else array_mark(folder))


@functools.cache
def code_digest() -> str:
    """Return a hash of the source that tasks run: equal versions may come from different checkouts."""
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for path in sorted([*root.glob("bankdb/**/*.py"), *root.glob("compute/**/*.py")]):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _facts(client: Client, folder: Location | None) -> dict[str, WorkerFacts]:
    where = None if folder is None else str(folder.absolute())
    try:
        answers = client.run(worker_facts, where, on_error="return", callback_timeout=_ANSWER_SECONDS)
    except TimeoutError as error:
        raise _silent(client) from error
    facts = {}
    for address, answer in answers.items():
        if isinstance(answer, OSError):
            continue
        if isinstance(answer, Exception):
            raise _unanswered(f"worker {address}", answer)
        if answer.code != code_digest():
            raise ComputeError(
                f"worker {address} has other code of {_OWN} ({answer.code}) than the client ({code_digest()}), under "
                "one version; on that host: install the client's, and start the worker again"
            )
        facts[address] = answer
    return facts


def _check_folder(client: Client, folder: Location, facts: Mapping[str, WorkerFacts]) -> None:
    # Another process may ingest meanwhile, which changes the array's metadata.
    for _ in range(_TRIES):
        own = array_mark(str(folder.absolute()))
        wrong = list(_elsewhere(own, facts))
        if not wrong or own.startswith("nothing"):
            return
        time.sleep(0.5)
        facts = _facts(client, folder)
    address, what = wrong[0]
    what = what if what.startswith("nothing") else "another array"
    advice = "keep the bank in a folder that all hosts mount at the same path"
    if requests_at_once(folder) > 1:  # under a URL
        advice = "give all hosts the same address and credentials (AWS_ENDPOINT_URL, AWS_*)"
    raise ComputeError(
        f"worker {address} finds {what} at {folder.absolute()}, expected the client's; {advice}"
        + (f" ({len(wrong)} of {len(facts)} workers)" if len(wrong) > 1 else "")
    )


def _elsewhere(own: str, facts: Mapping[str, WorkerFacts]) -> Iterator[tuple[str, str]]:
    for address, fact in sorted(facts.items()):
        if fact.folder != own:
            yield address, fact.folder
