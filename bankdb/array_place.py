"""The place of a bank's arrays, where it is not the bank's own folder: which text names one, and whose it is."""

from __future__ import annotations

from pathlib import Path

from bankdb.arrays.remote import Location, located
from bankdb.arrays.zarr_arrays import ensure_group, group_attributes, is_empty
from bankdb.errors import ConflictError, ParameterError
from bankdb.location import BankLocation


def parse_arrays(text: str) -> str:
    """Return the URL, or the absolute path, of the place that is to hold a bank's arrays.

    Raises
    ------
    ParameterError
        It names no place, or one of a kind that is not known here.
    """
    place = located(text)
    if isinstance(place, Path):
        return str(place.absolute())
    if "/" not in place.url.partition("://")[2].strip("/"):
        raise ParameterError(
            f"{text}: expected a URL of a bucket and a name in it, such as s3://BUCKET/PREFIX"
        )
    place.check()
    return place.url


def check_arrays_free(location: BankLocation) -> None:
    """Raise ConflictError unless nothing is where a new bank's arrays are to be."""
    if location.arrays is not None:
        _check_empty(located(location.arrays))


def _check_empty(arrays: Location) -> None:
    if is_empty(arrays):
        return
    owner = _owner(arrays)
    what = f"holds the arrays of bank {owner}" if owner else "is not empty"
    raise ConflictError(
        f"{arrays}: expected an empty place for the bank's arrays, it {what}; choose another one"
    )


def claim_arrays(arrays: Location, identity: str) -> None:
    """Mark a place as this bank's, if it is not yet: the attribute `bank` of the zarr group there.

    Raises
    ------
    ConflictError
        Something else is there.
    """
    if _owner(arrays) == identity:
        return
    _check_empty(arrays)
    ensure_group(arrays, {"bank": identity})
    if _owner(arrays) != identity:  # of two that came so far together, one goes on
        _check_empty(arrays)


def _owner(arrays: Location) -> str | None:
    owner = (group_attributes(arrays) or {}).get("bank")
    return None if owner is None else str(owner)
