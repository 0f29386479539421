"""Synthetic banks of any size, written by the bank's own path.

Token counts are Zipf-like with real overlap between datasets: a common vocabulary that all share, and
topics that some share. Rows are mixtures of a few latent factors, with the topics' weights, plus noise: so
near datasets have near adapters, and predictions mean something.

    python benchmarks/synthetic.py --bank /tmp/bank --adapters 502 --layers 32 --hidden 4096
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.adapter_store import StoredRow
from bankdb.bank import AdapterBank
from bankdb.peft.config import AdapterConfig, read_config, render_config
from bankdb.peft.layout import AdapterLayout
from bankdb.peft.weights import SourceAdapter
from bankdb.records import NewAdapter

BASE_MODEL = "synthetic/base"
FACTORS = 8


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a bank. With 32 layers, hidden 4096 and rank 16: p = 9,437,184, as Mistral-7B's q, k, v."""

    adapters: int = 128
    layers: int = 4
    hidden: int = 512
    rank: int = 16
    vocabulary: int = 32_000
    tokens: int = 70_000
    distinct: int = 8_700
    seed: int = 0

    def layout(self) -> AdapterLayout:
        shapes: dict[str, tuple[int, int]] = {}
        for layer in range(self.layers):
            for module, width in (("q", self.hidden), ("k", self.hidden // 4), ("v", self.hidden // 4)):
                name = f"base_model.model.model.layers.{layer}.self_attn.{module}_proj"
                shapes[f"{name}.lora_A.weight"] = (self.rank, self.hidden)
                shapes[f"{name}.lora_B.weight"] = (width, self.rank)
        return AdapterLayout.from_shapes(shapes, self.rank, ("k_proj", "q_proj", "v_proj"))


def token_histograms(
    shape: Shape,
) -> Iterator[tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.float64]]]:
    """Ids, counts and the topics' weights of each dataset."""
    rng = np.random.default_rng(shape.seed)
    ranks = np.arange(1, shape.vocabulary + 1)
    zipf = 1 / ranks
    # The frequent ids are the same everywhere, as in one language; the rare ones belong to topics.
    common = rng.permutation(shape.vocabulary)
    topics = [
        np.concatenate([common[:2000], 2000 + rng.permutation(shape.vocabulary - 2000)])
        for _ in range(FACTORS)
    ]
    for _ in range(shape.adapters):
        weights = rng.dirichlet(np.full(FACTORS, 0.4))
        p = np.zeros(shape.vocabulary)
        for weight, order in zip(weights, topics, strict=True):
            p[order] += weight * zipf
        # Keep about the wanted number of distinct ids, whatever the mixture is.
        support = rng.choice(
            shape.vocabulary,
            size=min(int(shape.distinct * 1.04), shape.vocabulary),
            replace=False,
            p=p / p.sum(),
        )
        drawn = np.zeros(shape.vocabulary)
        drawn[support] = p[support]
        counts = rng.multinomial(shape.tokens, drawn / drawn.sum())
        ids = np.flatnonzero(counts)
        yield ids.astype(np.uint32), counts[ids].astype(np.uint32), weights


def make_bank(path: Path, shape: Shape, arrays: str | None = None) -> AdapterBank:
    """Write a bank; its files are what `bank ingest` would have written for such adapters.

    `arrays` is a URL for the arrays, if they are not to be in the bank's folder.
    """
    bank = AdapterBank.create(
        path,
        base_model=BASE_MODEL,
        tokenizer=_tokenizer(path.with_name(path.name + "-tokenizer"), shape.vocabulary),
        arrays=arrays,
    )
    layout = shape.layout()
    config = _config(path, layout, shape)
    header = _header(layout)
    rng = np.random.default_rng(shape.seed + 1)
    factors = rng.standard_normal((FACTORS, layout.size), dtype=np.float32)
    noise = np.float32(0.5)
    for index, (ids, counts, weights) in enumerate(token_histograms(shape)):
        vector = weights.astype(np.float32) @ factors
        vector += noise * rng.standard_normal(layout.size, dtype=np.float32) / np.sqrt(np.float32(FACTORS))
        vector *= np.float32(0.01)
        name = f"synthetic{index:05d}"
        adapter = SourceAdapter(
            config, layout, "float32", header, hashlib.sha256(vector.data).hexdigest(), vector
        )
        row = bank.reserve(name, adapter)
        stored = bank.store.write_row(row, vector)
        bank.catalog.make_ready(_record(name, row, adapter, stored, ids, counts))
    return bank


def _tokenizer(folder: Path, vocabulary: int) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0} | {f"t{index}": index for index in range(1, vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(str(folder))
    return folder


def _config(path: Path, layout: AdapterLayout, shape: Shape) -> AdapterConfig:
    file = path.with_name(path.name + "-config.json")
    # In another form than a prediction's, which would be told apart.
    file.write_text(
        json.dumps(json.loads(render_config(BASE_MODEL, layout, (2.0 * shape.rank, False), "CAUSAL_LM")))
    )
    try:
        return read_config(file)
    finally:
        file.unlink()


def _header(layout: AdapterLayout) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for spec in layout.tensors:
        entries[spec.name] = {
            "dtype": "F32",
            "shape": list(spec.shape),
            "data_offsets": [4 * spec.offset, 4 * (spec.offset + spec.size)],
        }
    raw = json.dumps(entries, separators=(",", ":")).encode()
    return raw + b" " * (-len(raw) % 8)


def _record(
    name: str,
    row: int,
    adapter: SourceAdapter,
    stored: StoredRow,
    ids: NDArray[np.uint32],
    counts: NDArray[np.uint32],
) -> NewAdapter:
    return NewAdapter(
        name=name,
        row=row,
        rank=adapter.config.rank,
        alpha=adapter.config.alpha,
        use_rslora=False,
        scaling=adapter.config.scaling,
        dtype=adapter.dtype,
        source="synthetic",
        revision=None,
        source_sha256=adapter.sha256,
        header=adapter.header,
        config=adapter.config.text,
        row_sha256=stored.sha256,
        checksums=stored.checksums.tobytes(),
        licence=None,
        group=None,
        dataset_source="synthetic",
        dataset_revision=None,
        content_sha256=hashlib.sha256(ids.tobytes() + counts.tobytes()).hexdigest(),
        examples=1,
        ids=ids.astype("<u4").tobytes(),
        counts=counts.astype("<u4").tobytes(),
        tokens=int(counts.sum()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bank", type=Path, required=True)
    for field in ("adapters", "layers", "hidden", "rank", "vocabulary", "tokens", "distinct", "seed"):
        parser.add_argument(f"--{field}", type=int, default=getattr(Shape(), field))
    arguments = vars(parser.parse_args())
    path = arguments.pop("bank")
    shape = Shape(**arguments)
    with make_bank(path, shape) as bank:
        print(f"{path}: {len(bank)} adapters of {shape.layout().size:,} parameters")


if __name__ == "__main__":
    main()
