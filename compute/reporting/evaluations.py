"""Evaluations as a report shows them: the one module of the report that knows how they are stored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bankdb.bank import AdapterBank
from bankdb.errors import BankNotFoundError, ParameterError
from bankdb.records import without_folders
from compute.evaluation.bootstrap import Interval, gap_share, mean_difference
from compute.evaluation.records import (
    BASE,
    OWN,
    Evaluation,
    System,
    stored_evaluation,
    stored_evaluations,
)
from compute.evaluation.tables import drawn_weights, is_papers_best, is_uniform, peer
from compute.reporting.records import ADAPTER, Estimate, ReportedEvaluation, Sample, Scores, TargetScore, Way

FloatArray = NDArray[np.float64]


def reported_evaluations(bank: AdapterBank, wanted: Sequence[str] = ()) -> list[ReportedEvaluation]:
    """Return the evaluations asked for, or the newest in the bank's folder; empty if there is none.

    Parameters
    ----------
    wanted
        Identities of evaluations in the bank's folder, or files that hold one.

    Raises
    ------
    BankNotFoundError
        There is none of that identity, nor a file of that name.
    BankFormatError
        A file holds no evaluation.
    ParameterError
        An evaluation is of another bank.
    """
    found = [_one(bank, name) for name in wanted] if wanted else stored_evaluations(bank)[-1:]
    for name, evaluation in zip(wanted, found, strict=False):
        other = evaluation.bank.get("identity")
        if other != bank.record.identity:
            raise ParameterError(
                f"evaluation {name}: of bank {other}, not of this one ({bank.record.identity}); "
                "pass --bank of that one, or evaluate this one"
            )
    return [reported(evaluation) for evaluation in found]


def _one(bank: AdapterBank, name: str) -> Evaluation:
    path = Path(name)
    if path.is_file():
        return Evaluation.from_json(path.read_text(encoding="utf-8"), str(path))
    if path.suffix or path.name != name:
        raise BankNotFoundError(f"{path}: no such file; give a file or the identity of an evaluation")
    return stored_evaluation(bank, name)


def reported(evaluation: Evaluation) -> ReportedEvaluation:
    """Return what a report shows of an evaluation; intervals are drawn with its own seed."""
    settings = [
        (key.replace("_", " "), without_folders(str(value))) for key, value in evaluation.settings.items()
    ]
    settings.append(("time to generate all answers", f"{evaluation.seconds:.0f} s"))
    settings += [
        (f"not evaluated: {item.target}", without_folders(item.reason)) for item in evaluation.failures
    ]
    systems = {system.name: way_of_system(system) for system in evaluation.systems}
    left_out = {system.name: system.leave_out or ADAPTER for system in evaluation.systems}
    return ReportedEvaluation(
        identity=evaluation.identity,
        created=evaluation.created,
        targets=len(evaluation.targets),
        examples=sum(target.examples for target in evaluation.targets),
        scores=tuple(_scores(evaluation)),
        by_target=tuple(
            TargetScore(item.target, systems[item.system], left_out[item.system], item.rouge, item.exact)
            for item in evaluation.outcomes
        ),
        samples=tuple(_samples(evaluation, systems, left_out)),
        settings=tuple(settings),
    )


def way_of_system(system: System) -> Way:
    """Return the way that a system predicts by; what it leaves out is no part of it."""
    details = [
        f"{key.replace('_', '-')} {value}" for key, value in system.parameters.items() if key != "rank"
    ]
    if system.space not in (None, "factors"):
        rank = system.parameters.get("rank")
        details.append(f"space {system.space}" + ("" if rank is None else f", rank {rank}"))
    return Way(system.approach, system.metric, ", ".join(details))


def _scores(evaluation: Evaluation) -> list[Scores]:
    """Means and deviations over the targets, and paired differences with their intervals."""
    tables = [_by_target(evaluation, measure) for measure in ("rouge", "exact", "exact_unstripped")]
    weights = drawn_weights(evaluation)
    return [
        _one_system(system, evaluation.systems, tables, weights[system.leave_out or ADAPTER])
        for system in evaluation.systems
    ]


def _by_target(evaluation: Evaluation, measure: str) -> dict[str, FloatArray]:
    """Mean of each target by system, in the order of the evaluation's targets."""
    found: dict[str, dict[str, float]] = {system.name: {} for system in evaluation.systems}
    for item in evaluation.outcomes:
        found[item.system][item.target] = float(getattr(item, measure))
    names = [target.name for target in evaluation.targets]
    return {system: np.asarray([scores[name] for name in names]) for system, scores in found.items()}


def _one_system(
    system: System, systems: Sequence[System], tables: Sequence[dict[str, FloatArray]], weights: FloatArray
) -> Scores:
    rouge, exact, unstripped = tables
    uniform = peer(systems, system, is_uniform)
    paper = peer(systems, system, is_papers_best)
    mine = rouge[system.name]
    share = None
    if system.approach not in (BASE, OWN) and BASE in rouge and OWN in rouge:
        share = gap_share(weights, mine, rouge[BASE], rouge[OWN])
    return Scores(
        way=way_of_system(system),
        leave_out=system.leave_out or ADAPTER,
        rouge=_mean_and_deviation(mine),
        exact=_mean_and_deviation(exact[system.name]),
        unstripped=_mean_and_deviation(unstripped[system.name]),
        rouge_against_base=_against(weights, rouge, system.name, BASE),
        rouge_against_uniform=_against(weights, rouge, system.name, uniform),
        rouge_against_paper=_against(weights, rouge, system.name, paper),
        exact_against_base=_against(weights, exact, system.name, BASE),
        exact_against_uniform=_against(weights, exact, system.name, uniform),
        gap_closed=None if share is None else _estimate(share),
    )


def _against(
    weights: FloatArray, table: dict[str, FloatArray], system: str, other: str | None
) -> Estimate | None:
    if other is None or other == system or other not in table:
        return None
    return _estimate(mean_difference(weights, table[system], table[other]))


def _estimate(found: Interval) -> Estimate:
    return Estimate(found.estimate, found.low, found.high)


def _mean_and_deviation(values: FloatArray) -> tuple[float, float]:
    return float(values.mean()), float(values.std())


def _samples(evaluation: Evaluation, systems: dict[str, Way], left_out: dict[str, str]) -> list[Sample]:
    """The kept examples of each target, with what every system answered."""
    answers: dict[tuple[str, int], list[tuple[str, str, str]]] = {}
    texts: dict[tuple[str, int], tuple[str, tuple[str, ...]]] = {}
    for item in evaluation.outcomes:
        for place, sample in enumerate(item.samples):
            where = (item.target, place)
            texts.setdefault(where, (sample.input, sample.references))
            answers.setdefault(where, []).append(
                (systems[item.system].key, left_out[item.system], sample.answer)
            )
    return [Sample(where[0], *texts[where], tuple(found)) for where, found in answers.items()]
