"""Where a bank travels to or from: a repository on the hub, a folder, or a tar."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bankdb.errors import ParameterError, printable
from bankdb.records import HUB_PREFIX
from bankdb.sources.hub import parse_reference
from bankdb.sources.hub_client import HubReference

_PACKED = re.compile(r"\.(tar\.\w+|tgz|tbz|txz|zip|7z)$", re.IGNORECASE)
_BARE = re.compile(r"[^/\\@.~][^/\\@]*/[^/\\@]+(@[^/\\@]+)?")


@dataclass(frozen=True, slots=True)
class Place:
    """One place; of a hub's repository `reference` is given, of others `path`."""

    kind: Literal["hub", "folder", "tar"]
    path: Path
    reference: HubReference | None = None

    def __str__(self) -> str:
        """How messages name it."""
        return self.reference.repo_id if self.reference is not None else str(self.path)


def parse_place(text: str) -> Place:
    """Tell which place is meant: `FILE.tar`, `OWNER/NAME[@REVISION]` or `hub:...` on the hub, or else a folder.

    Raises
    ------
    ParameterError
        It may be a repository as well as a folder that is here; or it is packed as no shared bank is.
    SourceError
        It begins with `hub:` and is no repository's name.
    """
    if text.startswith(HUB_PREFIX):
        return Place("hub", Path(), parse_reference(text))
    if text.endswith(".tar"):
        return Place("tar", Path(text))
    if _PACKED.search(text):
        raise ParameterError(
            f"{printable(text)}: OWNER/NAME, a folder or FILE.tar was expected, a packed file found"
        )
    if not _BARE.fullmatch(text):
        if not text or "\0" in text:
            raise ParameterError(f"{printable(text)!r}: OWNER/NAME, a folder or FILE.tar was expected")
        return Place("folder", Path(text))
    owner = text.partition("/")[0]
    if os.path.isdir(owner):
        raise ParameterError(
            f"{text}: on the hub, or in the folder {owner} that is here? Write {HUB_PREFIX}{text} or ./{text}"
        )
    return Place("hub", Path(), parse_reference(text))
