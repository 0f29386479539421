"""Tables and places for figures, as the page's template takes them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bankdb.records import published, without_folders
from compute.reporting.page.words import duration
from compute.reporting.records import Report


@dataclass(frozen=True, slots=True)
class HtmlTable:
    """A table of text.

    Attributes
    ----------
    numeric
        Columns that are set to the right and sorted as numbers.
    strong
        Rows that stand out.
    over
        Headings above the headings, each with the number of columns that it spans; empty for none.
    """

    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[int, ...] = ()
    strong: tuple[int, ...] = ()
    over: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Plot:
    """Where a figure goes, and what it says to somebody who does not see it."""

    id: str
    alt: str
    caption: str
    table: HtmlTable | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """A comparison: text, tables, and plots below each other."""

    heading: str
    texts: tuple[str, ...]
    tables: tuple[HtmlTable, ...]
    plots: tuple[Plot, ...]


def facts(report: Report) -> list[tuple[str, str]]:
    """What the bank is, as name and value."""
    bank, adapters = report.bank, report.adapters
    groups = {record.group for record in adapters if record.group}
    examples = sum(record.examples for record in adapters)
    tokens = sum(record.tokens for record in adapters)
    pairs = [
        ("Base model", bank.base_model),
        ("Adapters", f"{len(adapters):,}"),
        ("Groups", f"{len(groups):,}" if groups else "none recorded"),
        ("LoRA rank", f"{report.rank}"),
        ("Parameters an adapter", f"{bank.parameters or 0:,}"),
        ("Training examples", f"{examples:,}"),
        ("Tokens", f"{tokens:,}"),
        ("Vocabulary", f"{bank.vocabulary:,} ids"),
    ]
    if bank.base_model_revision:
        pairs.insert(1, ("Revision", bank.base_model_revision[:12]))
    return pairs


def groups(report: Report) -> list[tuple[str, int]]:
    """Groups with the number of their adapters, the largest first."""
    counts = Counter(record.group for record in report.adapters if record.group)
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def adapters_table(report: Report) -> HtmlTable:
    """Every adapter with what it was trained on."""
    rows = tuple(
        (
            record.name,
            record.group or "",
            f"{record.rank}",
            f"{record.alpha:g}",
            record.dtype,
            f"{record.examples:,}",
            f"{record.tokens:,}",
            record.licence or "",
        )
        for record in report.adapters
    )
    headings = ("name", "group", "rank", "alpha", "stored as", "examples", "tokens", "licence")
    return HtmlTable(f"{len(rows)} adapters; click a heading to sort", headings, rows, numeric=(2, 3, 5, 6))


def stages_table(report: Report) -> HtmlTable:
    """How long runs took."""
    rows = tuple(
        (item.stage, f"{item.runs}", duration(item.seconds), item.started.replace("T", " ").removesuffix("Z"))
        for item in report.stages
    )
    return HtmlTable("Finished runs", ("stage", "runs", "time", "first begun (UTC)"), rows, numeric=(1, 2))


def made_tables(report: Report) -> list[HtmlTable]:
    """Versions and settings."""
    bank = report.bank
    settings = [
        ("bank", bank.identity),
        ("bank format", str(bank.format_version)),
        ("bank made (UTC)", bank.created.replace("T", " ").removesuffix("Z")),
        ("tokenizer", f"{published(bank.tokenizer_name)}, fingerprint {bank.tokenizer_fingerprint[:12]}"),
        ("text of an example", bank.text_rule),
        ("scaling of B A", f"{bank.scaling:g}" if bank.scaling is not None else ""),
        ("modules", _modules(bank.layout)),
    ]
    tables = [_pairs("Settings", settings), _pairs("Versions", report.versions)]
    for reported in report.evaluations:
        evaluation = reported.evaluation
        about = [("made (UTC)", evaluation.created.replace("T", " ").removesuffix("Z"))]
        about += [
            (key.replace("_", " "), without_folders(str(value))) for key, value in evaluation.settings.items()
        ]
        about.append(("time to generate all answers", f"{evaluation.seconds:.0f} s"))
        about += [
            (f"not evaluated: {failure.target}", without_folders(failure.reason))
            for failure in evaluation.failures
        ]
        tables.append(_pairs(f"Evaluation {evaluation.identity}", about))
    return tables


def _modules(layout: str | None) -> str:
    """Return the names of the adapted modules, from the layout's tensors."""
    if layout is None:
        return ""
    names = json.loads(layout).get("target_modules", [])
    return ", ".join(str(name) for name in names)


def _pairs(caption: str, pairs: Sequence[tuple[str, str]]) -> HtmlTable:
    return HtmlTable(caption, ("what", "value"), tuple(pairs))
