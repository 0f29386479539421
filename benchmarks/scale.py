"""Tables of what banks of several sizes would take, from the plans of a run and from rates: docs/scale.md.

python benchmarks/scale.py --rates docs/scale-rates.json
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from bankdb.shown import size_text
from compute.approaches.options import PredictionOptions
from compute.forecasting.forecast import time_text
from compute.forecasting.rates import Rates, expected_seconds, read_rates
from compute.forecasting.shape import BankShape
from compute.forecasting.steps import StepForecast, forecast_steps

ADAPTERS = (502, 10_000, 100_000)
PARAMETERS = (9_437_184, 40_000_000)
VOCABULARY, TOKENS, DISTINCT = 32_000, 70_000, 8_750
# Of one worker of one thread.
MEMORY = 8 << 30
FEW, MANY = 2, 64
WAYS = [PredictionOptions(metric="js", approach=approach) for approach in ("normalized", "neural")]
HEADINGS = ("tasks", "read", "written", "Tflop", "memory", "2 workers", "64, one disk", "64, storage x 32")


def planned(adapters: int, parameters: int, workers: int) -> list[StepForecast]:
    """The steps of one approach, with the Gram matrix, and the coefficients of the other."""
    shape = BankShape.of_numbers(adapters, parameters, VOCABULARY, TOKENS, DISTINCT)
    steps, neural = (
        forecast_steps(shape, [way], slots=workers, budget=MEMORY, weight_errors=True) for way in WAYS
    )
    steps = list(steps)
    steps[3:3] = [step for step in neural if step.kind == "coefficients"]
    return steps


def cells(adapters: int, parameters: int, rates: Rates) -> Iterator[tuple[StepForecast, list[str]]]:
    few, many = (planned(adapters, parameters, workers) for workers in (FEW, MANY))
    hosts = MANY // FEW
    wide = replace(rates, read=rates.read * hosts, write=rates.write * hosts, flush=rates.flush / hosts)
    for one, other in zip(few, many, strict=True):
        if other.problem is not None:
            yield other, [f"does not fit: {other.problem}"]
            continue
        times = [
            expected_seconds(step, used, workers, VOCABULARY, DISTINCT)
            for step, used, workers in ((one, rates, FEW), (other, rates, MANY), (other, wide, MANY))
        ]
        yield (
            other,
            [
                f"{other.tasks:,}" if other.tasks else "client",
                size_text(other.read),
                size_text(other.written),
                f"{other.flops / 1e12:,.3g}" if other.flops < 1e15 else f"{other.flops / 1e12:,.0f}",
                size_text(other.memory),
                *("" if time is None else time_text(time) for time in times),
            ],
        )


def table(first: Sequence[str], rows: Sequence[tuple[Sequence[str], list[str]]]) -> str:
    lines = [f"| {' | '.join([*first, *HEADINGS])} |", f"|{'---|' * (len(first) + len(HEADINGS))}"]
    for names, values in rows:
        padded = values + [""] * (len(HEADINGS) - len(values))
        lines.append(f"| {' | '.join([*names, *padded])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rates", type=Path, required=True)
    rates = read_rates(parser.parse_args().rates)
    by_number, by_size = [], []
    for adapters in ADAPTERS:
        for parameters in PARAMETERS:
            for step, values in cells(adapters, parameters, rates):
                if step.kind in ("gram", "combine", "export"):
                    by_size.append(((f"{adapters:,}", f"{parameters / 1e6:.1f} M", step.name), values))
                elif parameters == PARAMETERS[0]:
                    by_number.append(((f"{adapters:,}", step.name), values))
    print(table(("N", "step"), by_number), end="\n\n")
    print(table(("N", "p", "step"), by_size))


if __name__ == "__main__":
    main()
