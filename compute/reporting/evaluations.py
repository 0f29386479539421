"""Evaluations as a report shows them: the one module of the report that knows how they are stored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bankdb.bank import AdapterBank
from bankdb.errors import BankNotFoundError, ParameterError
from compute.evaluation.records import Evaluation, stored_evaluation, stored_evaluations
from compute.evaluation.tables import summaries
from compute.reporting.records import ReportedEvaluation


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
        An evaluation is of another bank, or lacks an outcome.
    """
    chosen = [_one(bank, name) for name in wanted] if wanted else stored_evaluations(bank)[-1:]
    for name, evaluation in zip(wanted, chosen, strict=False):
        other = evaluation.bank.get("identity")
        if other != bank.record.identity:
            raise ParameterError(
                f"evaluation {name}: of bank {other}, not of this one ({bank.record.identity}); "
                "pass --bank of that one, or evaluate this one"
            )
    return [reported(evaluation) for evaluation in chosen]


def _one(bank: AdapterBank, name: str) -> Evaluation:
    path = Path(name)
    if path.is_file():
        return Evaluation.from_json(path.read_text(encoding="utf-8"), str(path))
    if path.suffix or path.name != name:
        raise BankNotFoundError(f"{path}: no such file; give a file or the identity of an evaluation")
    return stored_evaluation(bank, name)


def reported(evaluation: Evaluation) -> ReportedEvaluation:
    """Return what a report shows of an evaluation; intervals are drawn with its own seed.

    Raises
    ------
    ParameterError
        The evaluation lacks an outcome.
    """
    return ReportedEvaluation(evaluation, tuple(summaries(evaluation)))
