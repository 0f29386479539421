"""zarr's store of what is below a URL, with errors that say which store failed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any

from zarr.storage import FsspecStore

from bankdb.arrays.remote import RemotePath, filesystem, reaching

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype


class RemoteStore(FsspecStore):
    """As zarr's own; what goes wrong between here and the store is an ArrayStoreUnavailableError.

    zarr itself raises whatever the file system's library does, which nobody can tell from a damaged chunk.
    """

    def __str__(self) -> str:
        return str(self.fs.unstrip_protocol(self.path))

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read an object, or a range of it; None if it is not there."""
        with reaching(f"{self}/{key}"):
            return await super().get(key, prototype, byte_range)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Read ranges of objects."""
        with reaching(self):
            return await super().get_partial_values(prototype, key_ranges)

    async def set(self, key: str, value: Buffer, byte_range: tuple[int, int] | None = None) -> None:
        """Write an object."""
        with reaching(f"{self}/{key}", missing=False):
            await super().set(key, value, byte_range)

    async def delete(self, key: str) -> None:
        """Delete an object, if it is there."""
        with reaching(f"{self}/{key}"):
            await super().delete(key)

    async def delete_dir(self, prefix: str) -> None:
        """Delete whatever is below a place."""
        with reaching(f"{self}/{prefix}"):
            await super().delete_dir(prefix)

    async def exists(self, key: str) -> bool:
        """Return whether there is an object of this name."""
        with reaching(f"{self}/{key}"):
            return await super().exists(key)

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Name what is in a place."""
        with reaching(f"{self}/{prefix}"):
            async for name in super().list_dir(prefix):
                yield name


def zarr_store(location: RemotePath, *, read_only: bool) -> Any:
    """Return zarr's store of what is below a URL; its errors are those of `reaching`."""
    made = filesystem(location.url, asynchronous=True)
    if not made.async_impl:
        from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

        made = AsyncFileSystemWrapper(made, asynchronous=True)
    return RemoteStore(made, read_only=read_only, path=made._strip_protocol(location.url))
