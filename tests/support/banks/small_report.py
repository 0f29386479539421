"""A report made by hand: known numbers, and names and texts that try to break the page."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from bankdb.records import AdapterRecord, BankRecord
from compute.approaches.by_distance import coefficients
from compute.reporting.ordering import clustered_order
from compute.reporting.records import (
    ADAPTER,
    GROUP,
    Estimate,
    Matrix,
    Report,
    ReportedEvaluation,
    Sample,
    Scores,
    SizeCurve,
    SizePoint,
    StageTime,
    TargetScore,
    Way,
    WeightSpaceRow,
)

NAMES = (
    "plain", "other one", "third", "<img src=x onerror=alert(1)>", "</script><b>", "$$x^2$$ \\(y\\)", "ünï–cødé 東",
    "a-name-that-is-so-long-that-no-axis-has-room-for-it-1", "a-name-that-is-so-long-that-no-axis-has-room-for-it-2",
)  # fmt: skip
HOSTILE = "</script><script>window.broken = true</script><img src='http://example.invalid/x.png'> & \u2028 \"quoted\""


def small_report(*, evaluated: bool = True, names: Sequence[str] = NAMES) -> Report:
    """Nine adapters in three groups."""
    number = len(names)
    place = np.arange(number) * 7 % number
    distances = np.abs(place[:, None] - place[None, :]) / number
    itself = np.eye(number, dtype=np.bool_)
    made = {
        way: coefficients(distances, itself, way.approach)
        for way in (
            Way("attentional", "jensen-shannon"),
            Way("normalized", "jensen-shannon"),
            Way("nearest", "jensen-shannon"),
            Way("uniform"),
        )
    }
    best = Way("normalized", "jensen-shannon")
    return Report(
        bank=_bank(),
        adapters=tuple(_adapter(name, row, f"group {place[row] // 3}") for row, name in enumerate(names)),
        rank=8,
        order=clustered_order(distances),
        ordered_by="jensen-shannon",
        distances=(Matrix(Way("distance", "jensen-shannon"), distances),),
        coefficients=tuple(Matrix(way, values) for way, values in made.items()),
        weight_space=tuple(
            _row(way, leave_out, i) for i, way in enumerate(made) for leave_out in (ADAPTER, GROUP)
        ),
        evaluations=(_evaluation(names, list(made)),) if evaluated else (),
        sizes=(_curve(best),),
        stages=(StageTime("distances jensen-shannon", 1, 0, "2026-01-02T03:04:05Z"),),
        recommended=best,
        versions=(("numpy", "2.0"),),
    )


def _bank() -> BankRecord:
    return BankRecord(
        identity="0" * 32, format_version=1, base_model="owner/<model>", base_model_aliases=(),
        base_model_revision=None, tokenizer_name="owner/tokenizer", tokenizer_fingerprint="f" * 64, vocabulary=500,
        text_rule="input + output[0]", next_row=9, layout=None, parameters=1234, alpha=16.0, use_rslora=False,
        scaling=2.0, dtype="float32", task_type="CAUSAL_LM", created="2026-01-02T03:04:05Z",
    )  # fmt: skip


def _adapter(name: str, row: int, group: str) -> AdapterRecord:
    return AdapterRecord(
        name=name, row=row, rank=8, alpha=16.0, use_rslora=False, scaling=2.0, dtype="float32", source="made",
        revision=None, source_sha256="0", header_sha256="0", config_sha256="0", row_sha256="0", licence="CC0-1.0",
        created="2026-01-02T03:04:05Z", group=group, dataset_source="made", dataset_revision=None,
        content_sha256="0", examples=100 + row, tokens=1000 * (row + 1),
    )  # fmt: skip


def _row(way: Way, leave_out: str, place: int) -> WeightSpaceRow:
    error = 0.5 + 0.1 * place + (0.2 if leave_out == GROUP else 0.0)
    against = None if way.approach == "uniform" else Estimate(error - 0.8, error - 0.85, error - 0.75)
    return WeightSpaceRow(way, leave_out, error, 0.01, 0.9, 3.0, against, against)


def _evaluation(names: Sequence[str], ways: Sequence[Way]) -> ReportedEvaluation:
    systems = [Way("base"), Way("own"), *ways]
    means = {way: 0.2 + 0.05 * place for place, way in enumerate(systems)} | {Way("own"): 0.7}
    scores = []
    for way, mean in means.items():
        for leave_out in (ADAPTER, GROUP) if way in ways else (ADAPTER,):
            shown = mean - (0.02 if leave_out == GROUP else 0.0)
            against = None if way == Way("base") else Estimate(shown - 0.2, shown - 0.25, shown - 0.15)
            share = Estimate((shown - 0.2) / 0.5, 0.1, 0.9) if way in ways else None
            scores.append(
                Scores(
                    way, leave_out, (shown, 0.3), (shown / 2, 0.4), (shown / 3, 0.4),
                    rouge_against_base=against, rouge_against_uniform=against, gap_closed=share,
                )
            )  # fmt: skip
    by_target = [
        TargetScore(name, way, ADAPTER, mean, mean / 2) for name in names for way, mean in means.items()
    ]
    answers = tuple((way.key, ADAPTER, HOSTILE if way == Way("own") else "yes") for way in systems)
    samples = tuple(Sample(name, f"Prompt of {name}: {HOSTILE}", ("yes", "no"), answers) for name in names)
    settings = (("device", "cpu"), ("new-token limit", "32"))
    return ReportedEvaluation(
        "7",
        "2026-01-02T03:04:05Z",
        len(names),
        10 * len(names),
        tuple(scores),
        tuple(by_target),
        samples,
        settings,
    )


def _curve(way: Way) -> SizeCurve:
    points = tuple(SizePoint(way, size, 5, 1 / size, 0.9 / size, 1.1 / size) for size in (2, 4, 8))
    return SizeCurve("relative distance", True, "least to largest draw", points)


def larger(report: Report, number: int) -> Report:
    """The same with so many adapters, their names numbered."""
    names = [f"task{row:04d}" for row in range(number)]
    grown = small_report(evaluated=False, names=names)
    return dataclasses.replace(grown, stages=report.stages)
