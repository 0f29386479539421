"""What is shown of a bank itself: where it is, what its adapters are, what takes space, and its stored runs."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cli.display import print_table, tell

if TYPE_CHECKING:
    from bankdb.bank import AdapterBank
    from bankdb.records import RunRecord

COLUMNS = 80
_MOST_RUNS, _MOST_NAMES = 20, 16
_CUT = 12
"""Digits of a fingerprint that a person is shown."""
# What a run is found by and where it lies, which says nothing of how it was made.
_INNER = {
    "array",
    "inputs",
    "chunk",
    "text_rule",
    "tokenizer",
    "vocabulary",
    "rows",
    "adapters",
    "units",
    "number",
}


def bank_values(bank: AdapterBank) -> dict[str, Any]:
    """Return everything about a bank, for other programs too: nothing is cut, and no password is in it."""
    from bankdb.initialisation.shared import told_of
    from bankdb.space.used import used

    record = bank.record
    values = {"bank": str(bank.path), "database": bank.database_shown, "arrays": str(bank.arrays)}
    values |= asdict(record) | {"adapters": len(bank)}
    layout = values.pop("layout")
    of_layout = {} if layout is None else json.loads(layout)
    return values | {
        "rank": of_layout.get("rank"),
        "modules": of_layout.get("target_modules"),
        "task_type": bank.origins.task_type(),
        "initialisation": told_of(bank),
        "disk": used(bank),
        "runs": [_run_values(bank, run) for run in bank.runs.all()],
    }


def _run_values(bank: AdapterBank, run: RunRecord) -> dict[str, Any]:
    return {
        "run": run.id,
        "kind": run.kind,
        "made_by": json.loads(run.parameters) | ({} if run.seed is None else {"seed": run.seed}),
        "state": run.state,
        "created": run.created,
        "finished": run.finished,
    }


def print_bank(values: Mapping[str, Any]) -> None:
    """Print it in tables of 80 columns."""
    from bankdb.errors import listed
    from bankdb.shown import size_text

    facts = {key: value for key, value in values.items() if key not in {"disk", "runs"}}
    facts["tokenizer_fingerprint"] = str(facts["tokenizer_fingerprint"])[:_CUT]
    rows = [
        (key.replace("_", " "), listed(value, _MOST_NAMES) if isinstance(value, list | tuple) else str(value))
        for key, value in facts.items()
        if value is not None and value != ()
    ]
    _print_folded(("", ""), rows, 1)
    print_table(("on disk", "size"), [(name, size_text(size)) for name, size in values["disk"].items()])
    runs = values["runs"]
    if not runs:
        tell("no runs are stored yet")
        return
    _print_folded(
        ("run", "kind", "made by", "state", "since"), [_run_row(run) for run in runs[-_MOST_RUNS:]], 2
    )
    kinds = Counter(run["kind"] for run in runs)
    counted = ", ".join(f"{number:,} of {kind}" for kind, number in kinds.items())
    tell(f"{len(runs):,} stored runs: {counted}")
    if len(runs) > _MOST_RUNS:
        tell(f"the newest {_MOST_RUNS} are shown; --json has all")


def _run_row(run: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells of a run: its number, what it is, how it was made, whether it is done, and its day."""
    from bankdb.shown import metric_text

    how = {key: value for key, value in run["made_by"].items() if key not in _INNER}
    named = [
        metric_text(str(how.pop(key))) for key in ("approach", "metric") if how.get(key) not in {None, "none"}
    ]
    how.pop("metric", None)
    how |= how.pop("options", {})
    parts = [" ".join(named), *(f"{key} {_short(value)}" for key, value in how.items())]
    made_by = ", ".join(filter(None, parts))
    return str(run["run"]), str(run["kind"]), made_by, str(run["state"]), str(run["created"])[:10]


def _short(value: object) -> str:
    text = str(value)
    return text[:_CUT] if len(text) == 64 else text


def _print_folded(headings: Sequence[str], rows: Iterable[Sequence[str]], wide: int) -> None:
    print_table(headings, folded(headings, rows, wide))


def folded(headings: Sequence[str], rows: Iterable[Sequence[str]], wide: int) -> list[list[str]]:
    """Break the text of one column into lines, so that a table of all fits 80 columns."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    left = COLUMNS + 1 - sum(3 + width for index, width in enumerate(widths) if index != wide) - 3
    lines = []
    for row in rows:
        parts = textwrap.wrap(row[wide], max(left, 20), break_on_hyphens=False) or [""]
        for number, part in enumerate(parts):
            lines.append(
                [part if index == wide else ("" if number else cell) for index, cell in enumerate(row)]
            )
    return lines
