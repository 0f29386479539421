"""Draw learning curves as SVG: `python -m benchmarks.training.learning_curve CURVE.csv FIGURE.svg`.

CURVE.csv is what `bank evaluate --finetune 0,2,4,8,16 --out FOLDER` writes as FOLDER/curve.csv. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

COLOURS = ("#3a6fd8", "#d9730d", "#2f9e6e", "#b04ac0", "#b8860b")


def read(path: Path) -> dict[str, list[tuple[int, float, float | None, float | None]]]:
    """Steps, share of the gap closed, and its bounds, by start and what it leaves out; shares are in percent."""
    curves: dict[str, list[tuple[int, float, float | None, float | None]]] = {}
    for row in csv.DictReader(path.open(encoding="utf-8")):
        low, high = (100 * float(row[key]) if row[key] else None for key in ("gap_low", "gap_high"))
        point = int(row["steps"]), 100 * float(row["gap_closed"]), low, high
        curves.setdefault(_named(row["start"], row["leave_out"]), []).append(point)
    return curves


def _named(start: str, leave_out: str) -> str:
    return "nothing" if start == "zero" else start + (", its group left out" if leave_out == "group" else "")


def draw(curves: dict[str, list[tuple[int, float, float | None, float | None]]], figure: Path) -> None:
    """Lines with bands, 100% being the adapters that were trained on all examples."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "learning curve"
    matplotlib.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot

    plot, axes = pyplot.subplots(figsize=(7.2, 3.6), layout="constrained")
    for colour, (start, points) in zip(COLOURS, curves.items(), strict=False):
        steps, shares, lows, highs = zip(*points, strict=True)
        axes.plot(steps, shares, marker="o", color=colour, label=start)
        if None not in lows:
            axes.fill_between(steps, lows, highs, color=colour, alpha=0.12, linewidth=0)
    axes.axhline(100, color="#6b7280", linewidth=1, linestyle="--")
    axes.set_xlabel("training steps of 8 examples")
    axes.set_ylabel("Rouge-L gap closed, %")
    axes.set_xticks(sorted({point[0] for points in curves.values() for point in points}))
    axes.legend(title="starting from", frameon=False, loc="lower right")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    plot.savefig(figure, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("curve", type=Path)
    parser.add_argument("figure", type=Path)
    arguments = parser.parse_args()
    draw(read(arguments.curve), arguments.figure)


if __name__ == "__main__":
    main()
