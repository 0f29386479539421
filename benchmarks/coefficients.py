"""How well adapters are predicted in weight space: every approach and metric, plain and by group.

    python benchmarks/coefficients.py BANK [--neural] [--sizes 4,8,16] [--json FILE]

Prints the tables of docs/coefficients.md. Nothing is generated; with --neural networks are trained, which
takes minutes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bankdb.bank import AdapterBank
from bankdb.progress import SilentProgress
from compute.approaches.options import PredictionOptions
from compute.evaluation.bank_sizes import SizeCurve, bank_size_curve
from compute.evaluation.weight_space import WaySummary, WeightSpaceTable, as_record, weight_space_table
from compute.metrics.registry import FURTHER_METRIC_NAMES, METRIC_NAMES
from compute.prediction.matrices import compute_matrices
from compute.prediction.session import computing

EVERY_METRIC = (*METRIC_NAMES, *FURTHER_METRIC_NAMES)
CURVES = (("js", "normalized"), ("js", "tuned"), ("js", "ridge"), ("js", "uniform"), ("js", "oracle"))


def ways(neural: bool) -> list[PredictionOptions]:
    """The paper's combinations, its baselines, and what was added."""
    approaches = ["attentional", "normalized", "nearest", "tuned", "ridge"]
    chosen = [PredictionOptions(metric=m, approach=a) for a in approaches for m in EVERY_METRIC]
    chosen += [PredictionOptions(approach=a) for a in ("uniform", "matching", "oracle")]
    if neural:
        chosen += [PredictionOptions(metric=m, approach="neural") for m in METRIC_NAMES]
    return chosen


def error_table(table: WeightSpaceTable) -> str:
    """Relative errors, plain and grouped side by side, with differences to the paper's best, as Markdown."""
    by_system: dict[str, dict[str | None, WaySummary]] = {}
    for summary in table.summaries():
        by_system.setdefault(summary.system.key, {})[summary.system.leave_out] = summary
    order = sorted(by_system.values(), key=lambda found: found["group"].relative_error)
    headings = "| approach | metric | adapter left out | difference | group left out | difference |"
    lines = [headings, f"|{'---|' * 6}"]
    for summaries in order:
        system = summaries["group"].system
        cells = [part for kind in ("adapter", "group") for part in cells_of(summaries[kind])]
        lines.append(f"| {' | '.join([system.approach, system.metric or 'none', *cells])} |")
    return "\n".join(lines) + "\n"


def cells_of(summary: WaySummary) -> tuple[str, str]:
    error, difference = f"{summary.relative_error:.4f}", summary.to_paper
    if difference is None:
        return error, ""
    return error, f"{difference.estimate:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"


def curve_table(curves: list[SizeCurve]) -> str:
    """Mean relative error and its spread over the draws, approaches down, sizes across."""
    sizes = curves[0].sizes
    lines = [f"| approach | {' | '.join(map(str, sizes))} |", f"|{'---|' * (len(sizes) + 1)}"]
    for curve in curves:
        cells = [f"{m:.3f} ± {s:.3f}" for m, s in zip(curve.mean, curve.spread, strict=True)]
        lines.append(f"| {curve.system.approach} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def size_curves(bank: AdapterBank, sizes: list[int], draws: int, leave_out: str) -> list[SizeCurve]:
    curves = []
    for metric, approach in CURVES:
        options = PredictionOptions(metric=metric, approach=approach, leave_out=leave_out)
        ways = [PredictionOptions(approach="oracle"), options]
        with computing(bank, None, SilentProgress()) as cluster:
            oracle, found = compute_matrices(bank, ways, cluster, SilentProgress())
        gram = oracle.gram
        assert gram is not None
        curves.append(bank_size_curve(options, found.distances, gram, found.units, sizes, draws=draws))
    return curves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bank", type=Path)
    parser.add_argument("--neural", action="store_true", help="train the networks of the neural approach too")
    parser.add_argument("--sizes", help="also the curve over bank sizes, such as 4,8,16")
    parser.add_argument("--draws", type=int, default=20, help="random subsets of each size")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    arguments = parser.parse_args()
    with AdapterBank.open(arguments.bank) as bank:
        table = weight_space_table(bank, ways(arguments.neural))
        print(error_table(table))
        if arguments.json:
            arguments.json.write_text(json.dumps(as_record(table)) + "\n")
        if arguments.sizes:
            sizes = [int(size) for size in arguments.sizes.split(",")]
            for leave_out in ("adapter", "group"):
                print(f"{leave_out} left out, by number of adapters in the bank:\n")
                print(curve_table(size_curves(bank, sizes, arguments.draws, leave_out)))


if __name__ == "__main__":
    main()
