"""What a second worker gains where answers are generated: `python -m benchmarks.generation.workers`.

The bank that ships with the project is evaluated on one worker process and on two, the base model loaded before.
Beside seconds, the processor time of the busiest worker is told, which other work on the machine does not lengthen.
Answers have to be the same.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from bankdb.bank import AdapterBank
from bankdb.progress import SilentProgress
from compute.approaches.options import PredictionOptions
from compute.cluster.client import open_cluster
from compute.cluster.options import Cluster, ClusterOptions
from compute.evaluation.evaluate import EvaluationOptions, evaluate
from compute.evaluation.systems import with_baselines
from compute.generation.machine import Machine

TINY = Path(__file__).resolve().parents[2] / "examples" / "tiny_bank"
WAYS = with_baselines([PredictionOptions(metric="js", approach="normalized")])


def processor_seconds(cluster: Cluster) -> dict[str, float]:
    """Processor time of each worker so far, all its threads together."""
    return dict(cluster.client.run(time.process_time))


def measured(bank: Path, workers: int, options: EvaluationOptions, last: str) -> dict[str, object]:
    """Evaluate a copy of a bank; the last target, which is not counted, has the workers load the model."""
    progress = SilentProgress()
    with (
        tempfile.TemporaryDirectory() as folder,
        AdapterBank.open(shutil.copytree(bank, Path(folder) / "bank")) as copied,
        open_cluster(ClusterOptions(workers=workers), progress, copied.store.path) as cluster,
    ):
        evaluate(copied, WAYS, replace(options, targets=(last,)), cluster=cluster)
        before, begin = processor_seconds(cluster), time.perf_counter()
        evaluation = evaluate(copied, WAYS, options, cluster=cluster)
        seconds = time.perf_counter() - begin
        after = processor_seconds(cluster)
    busy = [after[address] - before[address] for address in before]
    answers = [(one.system, one.target, one.rouge_by_example) for one in evaluation.outcomes]
    return {
        "workers": workers,
        "seconds": seconds,
        "busiest": max(busy),
        "all": sum(busy),
        "answers": answers,
    }


def main() -> None:
    """Measure by turns, and print the best of each as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--targets", type=int, default=12)
    parser.add_argument("--examples", type=int, default=30)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bank"
        with AdapterBank.create(path, base_model="tiny-bank/base", tokenizer=TINY / "base") as bank:
            bank.ingest(TINY / "bank")
            *names, last = [record.name for record in bank.adapters()]
        options = EvaluationOptions(
            targets=tuple(names[: asked.targets]),
            data=TINY / "bank" / "datasets",
            max_examples=asked.examples,
            model=str(TINY / "base"),
            machine=Machine(device="cpu"),
            resamples=100,
        )
        found = [measured(path, workers, options, last) for _ in range(asked.turns) for workers in (1, 2)]
    assert all(one["answers"] == found[0]["answers"] for one in found), "answers differ"
    best = {
        key: {
            workers: min(float(str(one[key])) for one in found if one["workers"] == workers)
            for workers in (1, 2)
        }
        for key in ("seconds", "busiest", "all")
    }
    gains = {key: best[key][1] / best[key][2] for key in ("seconds", "busiest")}
    print(json.dumps(best | {"gain": gains}, indent=2))


if __name__ == "__main__":
    main()
