"""The bytes of an answer, in large pieces.

The hub's client hands out at most 64 KiB at a time, each through layers that cost more than copying and hashing it. Of
a large body the connection itself is read once the client has given what it has received so far: what it knows of the
body's length says where that ends, and the file's hash whether it was right.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

from bankdb.sources.downloads.session import transport_errors

# Bytes of a body from which on it is worth a connection of its own: it is not used again.
_LARGE = 4 << 20
# Bytes of the pieces of such a body; to write and hash at once: each time other threads get the interpreter, and have
# to give it back.
AT_ONCE = 1 << 20


def body(response: Any, *, direct: bool = True) -> Iterator[bytes | memoryview]:
    """Yield an answer's bytes as they come, each piece only until the next is asked for.

    Parameters
    ----------
    direct
        Whether the connection may be read past the client.

    Raises
    ------
    What `transport_errors` returns
        The connection broke.
    """
    pieces = response.iter_raw()
    connection = _connection(response) if direct else None
    if connection is None:
        yield from pieces
        return
    first = next(pieces, b"")  # all that the client has received
    yield first
    yield from _read(connection, int(response.headers["content-length"]) - len(first))


def _connection(response: Any) -> socket.socket | None:
    """Return the connection of a large body whose end is known by its length; None if it is another."""
    length = response.headers.get("content-length", "")
    if response.http_version != "HTTP/1.1" or "transfer-encoding" in response.headers:
        return None
    if not length.isdecimal() or len(length) > 18 or int(length) < _LARGE:
        return None
    stream = response.extensions.get("network_stream")
    found = None if stream is None else stream.get_extra_info("socket")
    return found if isinstance(found, socket.socket) else None


def _read(connection: socket.socket, left: int) -> Iterator[memoryview]:
    from huggingface_hub import constants

    buffer = memoryview(bytearray(AT_ONCE))
    try:
        connection.settimeout(constants.HF_HUB_DOWNLOAD_TIMEOUT)
        while left > 0:
            wanted, had = min(left, len(buffer)), 0
            while had < wanted:
                came = connection.recv_into(buffer[had:wanted])
                if not came:
                    yield buffer[:had]
                    raise ConnectionResetError("the connection was closed before the end")
                had += came
            yield buffer[:had]
            left -= had
    except OSError as error:
        raise transport_errors()(str(error)) from error
