"""What a bank stores: adapters in zarr, metadata and token counts in a database.

`create` makes a bank and `open` opens one; both give an `AdapterBank`, which ingests pairs of adapter and dataset,
checks itself, and exports. What is computed from it is in `compute`. Importing this loads nothing else: each name is
looked up when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bankdb.bank import AdapterBank as AdapterBank
    from bankdb.errors import AdapterError as AdapterError
    from bankdb.errors import ArrayStoreUnavailableError as ArrayStoreUnavailableError
    from bankdb.errors import BankError as BankError
    from bankdb.errors import BankFormatError as BankFormatError
    from bankdb.errors import BankNotFoundError as BankNotFoundError
    from bankdb.errors import ComputeError as ComputeError
    from bankdb.errors import ConflictError as ConflictError
    from bankdb.errors import DatabaseUnavailableError as DatabaseUnavailableError
    from bankdb.errors import DatasetError as DatasetError
    from bankdb.errors import GgufError as GgufError
    from bankdb.errors import ParameterError as ParameterError
    from bankdb.errors import PlanError as PlanError
    from bankdb.errors import PublishError as PublishError
    from bankdb.errors import SourceError as SourceError
    from bankdb.errors import TokenizerError as TokenizerError
    from bankdb.ingest import IngestReport as IngestReport
    from bankdb.public.found import FoundPairs as FoundPairs
    from bankdb.records import AdapterRecord as AdapterRecord
    from bankdb.records import BankRecord as BankRecord
    from bankdb.records import PairReference as PairReference
    from bankdb.records import RefusedPair as RefusedPair
    from bankdb.records import Taking as Taking
    from bankdb.sharing.pull import PullReport as PullReport
    from bankdb.sharing.pull import pull as pull
    from bankdb.sharing.push import PushReport as PushReport
    from bankdb.sharing.push import push as push
    from bankdb.verify import VerifyReport as VerifyReport

    open = AdapterBank.open
    create = AdapterBank.create

_ERRORS = (
    "BankError",
    "BankNotFoundError",
    "BankFormatError",
    "DatabaseUnavailableError",
    "ArrayStoreUnavailableError",
    "AdapterError",
    "GgufError",
    "DatasetError",
    "TokenizerError",
    "SourceError",
    "ConflictError",
    "ParameterError",
    "PlanError",
    "PublishError",
    "ComputeError",
)
# Where each name is, in the order in which they are listed.
_PLACES = {
    "AdapterBank": "bankdb.bank",
    "FoundPairs": "bankdb.public.found",
    "IngestReport": "bankdb.ingest",
    "VerifyReport": "bankdb.verify",
    "PullReport": "bankdb.sharing.pull",
    "PushReport": "bankdb.sharing.push",
    "pull": "bankdb.sharing.pull",
    "push": "bankdb.sharing.push",
    **dict.fromkeys(
        ("AdapterRecord", "BankRecord", "PairReference", "RefusedPair", "Taking"), "bankdb.records"
    ),
    **dict.fromkeys(_ERRORS, "bankdb.errors"),
}

__all__ = ["open", "create", *_PLACES]


def __getattr__(name: str) -> object:
    """Look a public name up in its module."""
    if name in ("open", "create"):
        from bankdb.bank import AdapterBank

        value: object = getattr(AdapterBank, name)
    elif name in _PLACES:
        value = getattr(importlib.import_module(_PLACES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
