"""The main job on the bank that ships with the project: ingest it, predict, and say what came out.

    python examples/demo.py --out demo-output

Runs the `bank` commands that it prints; needs neither torch nor a network.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

TINY = Path(os.path.relpath(Path(__file__).parent / "tiny_bank"))
METRICS = ("wasserstein", "kullback-leibler", "jensen-shannon", "mmd")


class Demo:
    """Runs commands in front of the reader and keeps what is worth a picture."""

    def __init__(self, out: Path, console: Console) -> None:
        self.out = out
        self.console = console
        self.environment = {**os.environ, "BANK_PATH": str(out / "bank")}

    def run(self, *arguments: str | Path, show: bool = True) -> str:
        words = [str(argument) for argument in arguments]
        self.console.print(f"[bold cyan]$ bank {' '.join(words)}[/]", soft_wrap=True, highlight=False)
        program = [sys.executable, "-m", "cli.main", *words]
        done = subprocess.run(program, env=self.environment, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            self.console.print(done.stdout, highlight=False)
            sys.exit(f"`bank {' '.join(words)}` ended with exit status {done.returncode}")
        if show:
            self.console.print(done.stdout, end="", highlight=False, soft_wrap=True)
        return done.stdout


def new_datasets() -> list[Path]:
    return sorted(path for path in (TINY / "new").iterdir() if path.is_dir())


def comparison(predictions: list[dict[str, object]]) -> Table:
    """Approaches down, metrics across: how far predictions are from the adapters that training gave."""
    errors = {(item["approach"], item["metric"]): float(str(item["relative_error"])) for item in predictions}
    title = "Mean distance of the predictions to the trained adapters"
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title_justify="left", title=title)
    table.add_column("approach")
    for metric in METRICS:
        table.add_column(metric, justify="right")
    for approach in ("attentional", "normalized", "nearest"):
        found = {
            str(metric).split("-")[0]: value for (name, metric), value in errors.items() if name == approach
        }
        table.add_row(approach, *(f"{found[metric.split('-')[0]]:.3f}" for metric in METRICS))
    return table


def baselines(predictions: list[dict[str, object]]) -> str:
    """What the table is to be compared with."""
    alone = {item["approach"]: item["relative_error"] for item in predictions if item["metric"] == "none"}
    return (
        f"uniform, the mean of all others, reads no distances: {alone['uniform']:.3f}\n"
        f"oracle, the nearest that any combination can come; it knows the answer: {alone['oracle']:.3f}\n"
        "0 is the adapter that training gave, 1 is no adapter at all; lower is closer.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo-output"))
    parser.add_argument("--svg", type=Path, help="also draw the end of the output as a picture")
    arguments = parser.parse_args()
    started = time.monotonic()
    console = Console(record=True, width=110)
    demo = Demo(arguments.out, console)

    if not (arguments.out / "bank" / "bank.db").exists():
        demo.run("init", "--base-model", "tiny-bank/base", "--tokenizer", TINY / "base")
    demo.run("ingest", TINY / "bank" / "manifest.csv")
    shown = demo.run(
        "predict", "--all", "--metric", "all", "--approach", "all", "--approach", "oracle", "--weight-error", "--json",
        show=False,
    )  # fmt: skip
    predictions = json.loads(shown)["predictions"]
    console.export_text(clear=True)  # the picture begins here
    console.print(comparison(predictions))
    console.print(baselines(predictions), highlight=False)
    for dataset in new_datasets():
        demo.run("predict", dataset, "--out", arguments.out / dataset.name, "--overwrite")
    console.print(f"\nThe demo took {time.monotonic() - started:.0f} s.", highlight=False)
    if arguments.svg:
        picture = console.export_svg(title="lora-bank: make demo")
        # Without the fonts that the picture would load from elsewhere.
        arguments.svg.write_text(re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL))


if __name__ == "__main__":
    main()
