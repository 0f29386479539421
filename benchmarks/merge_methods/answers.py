"""Whether merge methods answer better than the weighted sum: Rouge-L on the test splits of a bank's tasks.

    python -m benchmarks.merge_methods.answers BANK --model FOLDER [--every 3] [--signed] [--out FOLDER]

Prints the table of docs/coefficients.md. Answers are kept in the bank: the same again generates nothing.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

import bankdb
import compute
from cli.display import shown_progress
from compute.approaches.groups import LEAVE_OUT, units_of
from compute.approaches.options import PredictionOptions
from compute.evaluation.bootstrap import mean_difference, task_weights
from compute.evaluation.evaluate import EvaluationOptions
from compute.evaluation.records import Evaluation
from compute.evaluation.systems import System, system_of
from compute.evaluation.tables import shown_interval
from compute.types import FloatArray

SUM = PredictionOptions(metric="tf-idf")
MERGED = [replace(SUM, merge=name) for name in ("ties", "dare-linear", "magnitude-prune")]
RIDGE = PredictionOptions(metric="jensen-shannon", approach="ridge")


def ways(signed: bool) -> list[PredictionOptions]:
    """What is compared: equal shares, the weighted sum, and each method with the same coefficients."""
    more = [RIDGE, replace(RIDGE, approach="ridge-signed")] if signed else []
    return [PredictionOptions(approach="uniform"), SUM, *MERGED, *more]


def peer_of(way: PredictionOptions) -> PredictionOptions:
    """What a way is compared with: the same with a weighted sum, or without negative coefficients."""
    if way.approach == "ridge-signed":
        return replace(way, approach="ridge")
    return replace(SUM, leave_out=way.leave_out)


def table(evaluation: Evaluation, compared: list[PredictionOptions]) -> str:
    """Each system's mean Rouge-L, its difference to its peer with an interval, and the gap closed, as Markdown."""
    names = [target.name for target in evaluation.targets]
    scores: dict[str, FloatArray] = {
        system.name: np.asarray(
            [
                one.rouge
                for name in names
                for one in evaluation.outcomes
                if (one.system, one.target) == (system.name, name)
            ]
        )
        for system in evaluation.systems
    }
    groups = [target.group for target in evaluation.targets]
    shares = {one.system.name: one.gap_share for one in evaluation.summaries()}
    lines = ["| left out | system | Rouge-L | to its sum | gap closed |", f"|{'---|' * 5}"]
    for way in compared:
        system, peer = system_of(way), system_of(peer_of(way))
        weights = task_weights(len(names), units=units_of(groups, way.leave_out))
        difference = mean_difference(weights, scores[system.name], scores[peer.name])
        low_to_high = f"{difference.estimate:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
        cells = [
            way.leave_out,
            called(system),
            f"{scores[system.name].mean():.3f}",
            "" if system == peer else low_to_high,
            shown_interval(shares[system.name], percent=True) or "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def called(system: System) -> str:
    """Return metric, approach and merge method."""
    return " ".join(filter(None, (system.metric, system.approach, str(system.parameters.get("merge", "")))))


def main() -> None:
    """Evaluate, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bank", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--every", type=int, default=1, help="of the tasks, by name, the first of so many")
    parser.add_argument("--signed", action="store_true", help="ridge with negative coefficients too")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    compared = [replace(way, leave_out=one) for one in LEAVE_OUT for way in ways(asked.signed)]
    with bankdb.open(asked.bank) as bank:
        targets = tuple(sorted(record.name for record in bank.adapters())[:: asked.every])
        options = EvaluationOptions(targets=targets, model=asked.model)
        evaluation = compute.evaluate(bank, compared, options, baselines=False, progress=shown_progress())
    if asked.out is not None:
        evaluation.save(asked.out, overwrite=True)
    base, own = (
        float(np.mean([one.rouge for one in evaluation.outcomes if one.system == name]))
        for name in ("base", "own")
    )
    print(f"{len(targets)} tasks; base model {base:.3f}, own adapters {own:.3f}\n")
    print(table(evaluation, compared))


if __name__ == "__main__":
    main()
