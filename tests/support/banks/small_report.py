"""A report made by hand: known numbers, and names and texts that try to break the page."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from bankdb.records import AdapterRecord, BankRecord
from compute.approaches.by_distance import coefficients
from compute.approaches.options import PredictionOptions
from compute.evaluation.bank_sizes import SizeCurve
from compute.evaluation.bootstrap import Interval
from compute.evaluation.records import Evaluation
from compute.evaluation.scores import Outcome, Sample, Target
from compute.evaluation.systems import BASE, OWN, System, system_of
from compute.evaluation.weight_space import WaySummary
from compute.reporting.evaluations import reported
from compute.reporting.ordering import clustered_order
from compute.reporting.records import ADAPTER, GROUP, Matrix, Report, ReportedEvaluation, StageTime

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
    ways = [PredictionOptions(approach=name) for name in ("attentional", "normalized", "nearest", "uniform")]
    made = {system_of(way): coefficients(distances, itself, way.approach) for way in ways}
    best = system_of(PredictionOptions())
    return Report(
        bank=_bank(),
        adapters=tuple(
            adapter_record(name, row, f"group {place[row] // 3}") for row, name in enumerate(names)
        ),
        rank=8,
        order=clustered_order(distances),
        ordered_by="jensen-shannon",
        distances=(Matrix(distances, "jensen-shannon"),),
        coefficients=tuple(Matrix(values, system.metric, system) for system, values in made.items()),
        weight_space=tuple(
            _row(way, leave_out, i) for i, way in enumerate(ways) for leave_out in (ADAPTER, GROUP)
        ),
        evaluations=(_evaluation(names, ways),) if evaluated else (),
        sizes=(_curve(PredictionOptions()),),
        stages=(StageTime("distances jensen-shannon", 1, 0, "2026-01-02T03:04:05Z"),),
        recommended=best,
        versions=(("numpy", "2.0"),),
        in_bank=len(names),
    )


def _bank() -> BankRecord:
    return BankRecord(
        identity="0" * 32, format_version=1, base_model="owner/<model>", base_model_aliases=(),
        base_model_revision=None, tokenizer_name="owner/tokenizer", tokenizer_fingerprint="f" * 64, vocabulary=500,
        text_rule="input + output[0]", next_row=9, layout=None, parameters=1234, alpha=16.0, use_rslora=False,
        scaling=2.0, dtype="float32", task_type="CAUSAL_LM", created="2026-01-02T03:04:05Z",
    )  # fmt: skip


def adapter_record(name: str, row: int, group: str) -> AdapterRecord:
    return AdapterRecord(
        name=name, row=row, rank=8, alpha=16.0, use_rslora=False, scaling=2.0, dtype="float32", source="made",
        revision=None, source_sha256="0", header_sha256="0", config_sha256="0", row_sha256="0", licence="CC0-1.0",
        created="2026-01-02T03:04:05Z", group=group, dataset_source="made", dataset_revision=None,
        content_sha256="0", examples=100 + row, tokens=1000 * (row + 1),
    )  # fmt: skip


def _row(way: PredictionOptions, leave_out: str, place: int) -> WaySummary:
    error = 0.5 + 0.1 * place + (0.2 if leave_out == GROUP else 0.0)
    against = None if way.approach == "uniform" else Interval(error - 0.8, error - 0.85, error - 0.75)
    system = system_of(dataclasses.replace(way, leave_out=leave_out))
    return WaySummary(system, 0.01, 0.9, error, 3.0, against, against)


def _evaluation(names: Sequence[str], ways: Sequence[PredictionOptions]) -> ReportedEvaluation:
    """Each way better than the one before it, with groups left out a little worse; base 0.2, own 0.7."""
    means = {BASE.system: 0.2, OWN.system: 0.7}
    for place, way in enumerate(ways):
        for leave_out in (ADAPTER, GROUP):
            system = system_of(dataclasses.replace(way, leave_out=leave_out))
            means[system] = 0.3 + 0.05 * place - (0.02 if leave_out == GROUP else 0.0)
    outcomes = [
        _outcome(system, name, mean + 0.01 * (row % 3 - 1))
        for row, name in enumerate(names)
        for system, mean in means.items()
    ]
    return reported(
        Evaluation(
            identity="7",
            created="2026-01-02T03:04:05Z",
            settings={"device": "cpu", "new_tokens": 32, "seed": 0, "resamples": 200},
            bank={"identity": "0" * 32},
            systems=tuple(means),
            targets=tuple(Target(name, f"group {row // 3}", 10, 32, "0") for row, name in enumerate(names)),
            outcomes=tuple(outcomes),
            failures=(),
            seconds=12.0,
        )
    )


def _outcome(system: System, name: str, mean: float) -> Outcome:
    """Own adapters answer what tries to break the page; with groups left out no answer was kept."""
    answer = HOSTILE if system == OWN.system else "yes"
    samples = (Sample(f"Prompt of {name}: {HOSTILE}", ("yes", "no"), answer),)
    return Outcome(
        system.name, name, 10, mean, mean / 2, mean / 3, (mean,) * 10, (mean / 2,) * 10, (mean / 3,) * 10,
        () if system.leave_out == GROUP else samples, (), None, "0", 1.0,
    )  # fmt: skip


def _curve(way: PredictionOptions) -> SizeCurve:
    sizes = (2, 4, 8)
    relative = np.array([[spread / size for size in sizes] for spread in (0.9, 0.95, 1.0, 1.05, 1.1)])
    return SizeCurve(sizes, relative, np.full(relative.shape, 9), system_of(way))


def larger(report: Report, number: int) -> Report:
    """The same with so many adapters, their names numbered."""
    names = [f"task{row:04d}" for row in range(number)]
    grown = small_report(evaluated=False, names=names)
    return dataclasses.replace(grown, stages=report.stages)
