"""`--push-to` of commands that write an adapter: the adapter goes to a repository of its own too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.display import tell
from cli.options import together

if TYPE_CHECKING:
    from bankdb.sharing.adapters import Repository

push_options = together(
    click.option(
        "--push-to",
        metavar="OWNER/NAME",
        help="Push the adapter to this model repository on the hub too, with a card without a path of this machine.",
    ),
    click.option(
        "--public/--private",
        help="With --push-to: who may see a repository that is made.  [default: private]",
    ),
)


def repository_of(other: Mapping[str, Any]) -> Repository | None:
    """Return where the adapter is to be pushed, if that was asked for; raise what would end it before any work is done.

    Parameters
    ----------
    other
        What `push_options` and the option `--overwrite` gave a command.
    """
    if other["push_to"] is None:
        return None
    from bankdb.sharing.adapters import repository

    return repository(other["push_to"], public=other["public"], overwrite=other["overwrite"])


def push_written(
    to: Repository | None,
    folder: Path,
    other: Mapping[str, Any],
    stored: Mapping[str, Any] | None = None,
    *,
    kept: bool = True,
) -> dict[str, Any]:
    """Push an adapter that was just written, if that was asked for; return what the command's JSON has more.

    Parameters
    ----------
    stored
        See `bankdb.sharing.adapters.push_folder`.
    kept
        Whether the folder stays, so that it can be pushed again by itself.
    """
    if to is None:
        return {}
    from bankdb.errors import BankError, PublishError
    from bankdb.sharing.adapters import push_folder

    try:
        said = push_folder(to, folder, stored)
    except BankError as error:
        if not kept or stored is not None:
            raise
        raise PublishError(
            f"{error}. The adapter itself is in {folder}; `bank export --adapter {folder} --push-to {to.repo_id}` "
            "pushes it"
        ) from error
    if not other.get("as_json"):
        tell(said)
    return {"pushed_to": to.repo_id}
