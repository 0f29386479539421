"""What the average of factors loses and delta space keeps, on banks trained with one seed and with many.

    python examples/make_tiny_bank.py --out different --base examples/tiny_bank/base --seeds different
    python benchmarks/spaces.py --same examples/tiny_bank/bank --different different/bank --score

Leave-one-out predictions of every adapter. Errors are of the products `scaling * B @ A` of all modules
together, computed densely here. With `--score` (needs the torch extra), also the share of test answers that
are exactly right.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bankdb.bank import AdapterBank
from bankdb.ingest import ingest
from bankdb.peft.layout import AdapterLayout
from bankdb.scaled_rows import sources_of
from bankdb.sources.pairs import find_references, resolve
from compute.approaches.options import PredictionOptions
from compute.combination.combine import combine_one
from compute.combination.delta import DeltaAdapter, delta_adapter
from compute.combination.delta_shapes import DeltaForm
from compute.prediction.coefficients import Coefficients, coefficients

ROOT = Path(__file__).resolve().parent.parent
BASE = ROOT / "examples" / "tiny_bank" / "base"

Products = dict[str, NDArray[np.float64]]
Score = Callable[[str, Path], float]


@dataclass(slots=True)
class Figures:
    """Of one space: a number for each target."""

    to_sum: list[float] = field(default_factory=list)
    to_own: list[float] = field(default_factory=list)
    cosine: list[float] = field(default_factory=list)
    retained: list[float] = field(default_factory=list)
    score: list[float] = field(default_factory=list)

    def cells(self) -> list[str]:
        columns = (self.to_sum, self.to_own, self.cosine, self.retained, self.score)
        return [f"{np.mean(values):.3f}" if values else "" for values in columns]


def products(vector: NDArray[np.float32], layout: AdapterLayout, scaling: float) -> Products:
    tensors = layout.unflatten(vector.astype(np.float64))
    names = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
    return {
        name: scaling * tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"] for name in names
    }


def flat(found: Products) -> NDArray[np.float64]:
    return np.concatenate([found[name].reshape(-1) for name in sorted(found)])


def spaces(bank: AdapterBank, found: Coefficients, index: int) -> Iterator[tuple[str, DeltaAdapter]]:
    """The prediction for one target in each space, the factors' as if it were one of delta space."""
    weights, layout, about = found.values[index], bank.layout, bank.record
    assert about.alpha is not None
    vector = combine_one(
        bank.store,
        sources_of(bank, found.adapters),
        weights.astype(np.float32),
        chunk=layout.size,
        budget=1 << 28,
    )
    yield "factors", DeltaAdapter(vector, DeltaForm(layout, about.alpha, bool(about.use_rslora)), {})
    for name, rank in ((f"delta, rank {layout.rank}", None), ("delta, full", "full")):
        yield name, delta_adapter(bank, found.adapters, weights, rank)


def measure(bank: AdapterBank, options: PredictionOptions, score: Score | None) -> Mapping[str, Figures]:
    found = coefficients(bank, options)
    own = [
        flat(products(bank.store.read(record.row), bank.layout, record.scaling)) for record in found.adapters
    ]
    figures: dict[str, Figures] = {}
    for index, record in enumerate(found.adapters):
        exact = found.values[index] @ np.stack(own)
        for space, made in spaces(bank, found, index):
            told = flat(products(made.vector, made.form.layout, made.form.scaling))
            row = figures.setdefault(space, Figures())
            row.to_sum.append(float(np.linalg.norm(told - exact) / np.linalg.norm(exact)))
            row.to_own.append(float(np.linalg.norm(told - own[index]) / np.linalg.norm(own[index])))
            cosine = told @ own[index] / np.linalg.norm(told) / np.linalg.norm(own[index])
            row.cosine.append(float(cosine))
            row.retained += [float(np.mean(list(made.retained.values())))] if made.retained else []
            if score is not None:
                row.score.append(scored(bank, made, record.name, score))
    return figures


def scored(bank: AdapterBank, made: DeltaAdapter, name: str, score: Score) -> float:
    from bankdb.peft.config import render_config
    from bankdb.peft.weights import write_safetensors

    form = made.form
    with tempfile.TemporaryDirectory() as folder:
        config = render_config(
            str(BASE), form.layout, (form.alpha, form.use_rslora), bank.origins.task_type(), revision=None
        )
        (Path(folder) / "adapter_config.json").write_text(config)
        write_safetensors(Path(folder) / "adapter_model.safetensors", made.vector, form.layout, "float32")
        return score(name, Path(folder))


def exact_match() -> Score:
    """Greedy answers on the test splits of the example's tasks, by the example's own code."""
    sys.path.insert(0, str(ROOT / "examples"))
    import make_tiny_bank as example
    import torch
    from peft import PeftModel

    torch.set_num_threads(1)
    tokenizer = example.PreTrainedTokenizerFast.from_pretrained(BASE, padding_side="left")
    model: Any = example.LlamaForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    tasks = {task.name: task for task in example.TASKS}

    def score(name: str, folder: Path) -> float:
        nonlocal model
        adapted = PeftModel.from_pretrained(model, folder)
        share = float(example.exact_match(adapted, tokenizer, tasks[name], example.split(tasks[name], 0)[1]))
        model = adapted.unload()
        return share

    return score


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--same", type=Path, default=ROOT / "examples" / "tiny_bank" / "bank")
    parser.add_argument("--different", type=Path, required=True)
    parser.add_argument("--approach", action="append", choices=["uniform", "normalized", "nearest"])
    parser.add_argument("--score", action="store_true")
    arguments = parser.parse_args()
    score = exact_match() if arguments.score else None
    headings = ("error to the sum", "error to own", "cosine to own", "retained energy", "exact match")
    print(f"| seeds | approach | space | {' | '.join(headings)} |\n|---|---|---|{'---|' * len(headings)}")
    for seeds, pairs in (("same", arguments.same), ("different", arguments.different)):
        with tempfile.TemporaryDirectory() as folder:
            bank = AdapterBank.create(Path(folder) / "bank", base_model="tiny-bank/base", tokenizer=BASE)
            with bank:
                references, refused = find_references(pairs)
                ingest(bank, references, resolve=resolve, refused=refused)
                for approach in arguments.approach or ["uniform", "normalized"]:
                    found = measure(bank, PredictionOptions(approach=approach), score)
                    for space, figures in found.items():
                        print(
                            f"| {seeds} | {approach} | {space} | {' | '.join(figures.cells())} |", flush=True
                        )


if __name__ == "__main__":
    main()
