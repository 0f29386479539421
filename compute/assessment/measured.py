"""Measured figures into the folder of an adapter that this project wrote: its provenance, and its model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bankdb.arrays.durable import write_whole
from bankdb.errors import AdapterError, one_line
from bankdb.peft.model_card import PROVENANCE_NAME, model_card
from bankdb.strict_json import parse_object
from compute.assessment.records import Assessment
from compute.prediction.provenance import MEASURED

_MOST_BYTES = 64 << 20


def add_measured(folder: str | Path, assessment: Assessment, name: str) -> dict[str, Any]:
    """Write what was measured of an adapter into its folder; return the whole record.

    The provenance is replaced first, then the card, each whole or not at all: a card that lacks the figures is made
    again from the record by the same call.

    Parameters
    ----------
    name
        Of the adapter in the assessment.

    Raises
    ------
    AdapterError
        The folder has no provenance record of this project.
    """
    path = Path(folder) / PROVENANCE_NAME
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it has more than {_MOST_BYTES >> 20} MiB")
        record = parse_object(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(
            f"{path}: expected the record of a predicted adapter, found none ({one_line(error)}); predict it again"
        ) from error
    record[MEASURED] = assessment.measured(name)
    card = model_card(record)
    write_whole(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    write_whole(Path(folder) / "README.md", card)
    return record
