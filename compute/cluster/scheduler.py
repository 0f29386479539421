"""A client of a Dask scheduler that somebody else started: its address, TLS, and waiting for workers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from bankdb.errors import ComputeError, ParameterError
from bankdb.progress import Progress, quiet_loggers

if TYPE_CHECKING:
    from distributed import Client, Security

    from compute.cluster.options import ClusterOptions

_CONNECT_SECONDS = 20.0


def check_remote(options: ClusterOptions) -> None:
    """Refuse options that contradict each other, before anything is started.

    Raises
    ------
    ParameterError
        Two schedulers; options of a running scheduler without one; a part of the TLS files, or one that is missing.
    """
    if options.scheduler is not None and options.scheduler_file is not None:
        raise ParameterError("give --scheduler or --scheduler-file, not both")
    if options.remote and options.workers is not None:
        raise ParameterError("--workers is for a local cluster; a running scheduler has its own workers")
    files = _tls_files(options)
    given = [name for name, path in files.items() if path is not None]
    if not options.remote:
        wrong = [*given, *(["--wait-workers"] if options.wait_workers is not None else [])]
        if wrong:
            raise ParameterError(
                f"{', '.join(wrong)}: for a running scheduler; give --scheduler or --scheduler-file too"
            )
    if options.wait_workers is not None and options.wait_workers < 1:
        raise ParameterError(
            f"wait-workers: expected at least 1, found {options.wait_workers}; leave it out not to wait"
        )
    if given and len(given) < len(files):
        missing = [name for name, path in files.items() if path is None]
        raise ParameterError(
            f"TLS: expected {', '.join(files)} together, {', '.join(missing)} missing; give all three or none"
        )
    for name, path in files.items():
        if path is not None and not path.is_file():
            raise ParameterError(f"{name}: expected a PEM file, found none at {path}; check the path")


@contextlib.contextmanager
def remote_client(options: ClusterOptions, progress: Progress) -> Iterator[Client]:
    """Connect to the scheduler, and wait for the workers that were asked for.

    Raises
    ------
    ParameterError
        The address is not one for TLS where TLS is asked for, or needs it where it is not.
    ComputeError
        No scheduler answers, or too few workers come.
    """
    from distributed import Client

    address = options.scheduler or _address(options.scheduler_file)
    security = _security(options, address)
    try:
        _shake_hands(address, security)
        client = Client(address, timeout=_CONNECT_SECONDS, security=security, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise _no_answer(address, error) from error
    # A scheduler that is lost is told by the piece that does not come back, not by a traceback of Dask's.
    with quiet_loggers("distributed.client", level=logging.CRITICAL), client:
        if options.wait_workers is not None:
            _wait(client, address, options.wait_workers, options.wait_seconds, progress)
        yield client


def _tls_files(options: ClusterOptions) -> dict[str, Path | None]:
    return {"--tls-ca": options.tls_ca, "--tls-cert": options.tls_cert, "--tls-key": options.tls_key}


def _security(options: ClusterOptions, address: str) -> Security:
    """Return what a connection needs: the files that were given, or what Dask is configured with."""
    from distributed import Security

    secret = address.startswith("tls://")
    if options.tls_ca is None:
        security = Security()
        if secret and security.get_connection_args("client").get("ssl_context") is None:
            raise ParameterError(
                f"{address}: a TLS address needs certificates; give --tls-ca, --tls-cert and --tls-key"
            )
        return security
    if not secret:
        raise ParameterError(
            f"{address}: expected an address that begins with tls://, as TLS files are given; start the scheduler "
            "with `dask scheduler --protocol tls://`, or leave the files out"
        )
    security = Security(
        tls_ca_file=str(options.tls_ca),
        tls_client_cert=str(options.tls_cert),
        tls_client_key=str(options.tls_key),
        require_encryption=True,
    )
    try:
        security.get_connection_args("client")
    except (ssl.SSLError, OSError, ValueError) as error:
        named = ", ".join(str(path) for path in _tls_files(options).values())
        raise ParameterError(
            f"TLS: expected a CA, and a certificate with its own key, as PEM, found something else in {named} "
            f"({error}); check the three files"
        ) from error
    return security


def _shake_hands(address: str, security: Security) -> None:
    """Connect and close: `Client` waits forever where something accepts and is silent, such as a dashboard."""
    from distributed.comm.core import connect

    async def shake() -> None:
        comm = await connect(address, timeout=_CONNECT_SECONDS, **security.get_connection_args("client"))
        await comm.close()

    # In a thread of its own: a notebook's has a loop running.
    with ThreadPoolExecutor(max_workers=1) as pool:
        pool.submit(asyncio.run, asyncio.wait_for(shake(), _CONNECT_SECONDS)).result()


def _no_answer(address: str, error: BaseException) -> ComputeError:
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    refused = [cause for cause in causes if isinstance(cause, ssl.SSLError)]
    if refused:
        reason = refused[-1].reason or str(refused[-1])
        return ComputeError(
            f"{address}: no TLS connection to the scheduler ({reason}); both sides need certificates of one CA: "
            "check the files of --tls-ca, --tls-cert and --tls-key, and the scheduler's"
        )
    hint = "start one"
    if address.startswith("tls://"):
        hint = (
            "start one; one that is there refuses certificates of another CA, and does not speak TLS unless "
        )
        hint += "started with --protocol tls://"
    return ComputeError(
        f"{address}: no Dask scheduler answers there ({type(error).__name__}); {hint}",
    )


def _wait(client: Client, address: str, count: int, seconds: float, progress: Progress) -> None:
    present = len(client.scheduler_info(n_workers=-1)["workers"])
    if present < count:
        progress.note(f"waiting up to {seconds:.0f} s for {count} workers, {present} are there")
    try:
        client.wait_for_workers(count, timeout=seconds)
    except TimeoutError as error:
        present = len(client.scheduler_info(n_workers=-1)["workers"])
        raise ComputeError(
            f"{address}: expected {count} workers within {seconds:.0f} s, found {present}; start more, "
            "or look into their logs"
        ) from error


def _address(scheduler_file: Path | None) -> str:
    """Read the address that a scheduler left in its file."""
    try:
        return str(json.loads(Path(scheduler_file or "").read_text())["address"])
    except OSError as error:
        raise ParameterError(
            f"{scheduler_file}: no such scheduler file ({error.strerror}); start the scheduler first"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ParameterError(
            f"{scheduler_file}: expected the file that `dask scheduler --scheduler-file` writes, found something "
            "else; start the scheduler again"
        ) from error
