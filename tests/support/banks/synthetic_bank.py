"""Banks written straight through the catalogue and the store: many datasets of given tokens, in little time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bankdb.bank import AdapterBank
from bankdb.peft.config import read_config
from bankdb.peft.layout import AdapterLayout
from bankdb.peft.weights import SourceAdapter
from bankdb.records import AdapterRecord, NewAdapter
from tests.support.banks.malformed_adapters import ITEM_BYTES, good_config
from tests.support.banks.small_bank import WORDS, create_bank, write_tokenizer

Tokens = NDArray[np.int64]
Vector = NDArray[np.float32]

VOCABULARY = len(WORDS) + 2
# A mixed file has no dtype of its own: half of one will do here.
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "mixed": "F32"}
MODULE = "base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{factor}.weight"


def layout_of(*, hidden: int = 4, rank: int = 2, layers: int = 2) -> AdapterLayout:
    """A and B of one module in each of some layers; p = 2 hidden rank layers."""
    shapes = {}
    for layer in range(layers):
        shapes[MODULE.format(layer=layer, factor="A")] = (rank, hidden)
        shapes[MODULE.format(layer=layer, factor="B")] = (hidden, rank)
    return AdapterLayout.from_shapes(shapes, rank, ("q_proj",))


def draw_tokens(seed: int, *, size: int = 400, vocabulary: int = VOCABULARY) -> Tokens:
    """Tokens around a place that depends on the seed, so that some pairs of datasets share no id."""
    rng = np.random.default_rng(seed)
    centre, width = rng.uniform(0, vocabulary), rng.uniform(2, vocabulary / 8)
    return np.clip(rng.normal(centre, width, size).round(), 0, vocabulary - 1).astype(np.int64)


def draw_vector(seed: int, parameters: int) -> Vector:
    return np.random.default_rng([seed, 1]).normal(size=parameters).astype(np.float32)


class SyntheticBank:
    """Adds adapters to a bank without folders to read.

    Attributes
    ----------
    tokens, vectors
        What was added, by name.
    """

    def __init__(self, bank: AdapterBank, layout: AdapterLayout, config: Path) -> None:
        self.bank, self.layout = bank, layout
        self.tokens: dict[str, Tokens] = {}
        self.vectors: dict[str, Vector] = {}
        self._config = config

    def _adapter(self, vector: Vector, dtype: str = "float32", **options: object) -> SourceAdapter:
        settings = good_config(r=self.layout.rank, target_modules=["q_proj"]) | options
        self._config.write_text(json.dumps(settings))
        header = json.dumps(
            {
                spec.name: {
                    "dtype": _DTYPES[dtype],
                    "shape": spec.shape,
                    "data_offsets": [
                        ITEM_BYTES[_DTYPES[dtype]] * n for n in (spec.offset, spec.offset + spec.size)
                    ],
                }
                for spec in self.layout.tensors
            }
        ).encode()
        return SourceAdapter(read_config(self._config), self.layout, dtype, header, "0" * 64, vector)

    def add(
        self,
        name: str,
        tokens: Tokens,
        vector: Vector,
        *,
        alpha: float = 8,
        use_rslora: bool = False,
        dtype: str = "float32",
        licence: str | None = None,
    ) -> AdapterRecord:
        adapter = self._adapter(vector, dtype, lora_alpha=alpha, use_rslora=use_rslora)
        config = adapter.config
        row = self.bank.reserve(name, adapter)
        stored = self.bank.store.write_row(row, vector)
        ids, counts = np.unique(tokens, return_counts=True)
        self.bank.catalog.make_ready(
            NewAdapter(
                name=name,
                row=row,
                rank=config.rank,
                alpha=config.alpha,
                use_rslora=config.use_rslora,
                scaling=config.scaling,
                dtype=dtype,
                source=f"/made/by/hand/{name}",
                revision=None,
                source_sha256=hashlib.sha256(vector.tobytes()).hexdigest(),
                header=adapter.header,
                config=config.text,
                row_sha256=stored.sha256,
                checksums=stored.checksums.tobytes(),
                licence=licence,
                group=None,
                dataset_source=f"/made/by/hand/{name}",
                dataset_revision=None,
                content_sha256=hashlib.sha256(tokens.tobytes()).hexdigest(),
                examples=1,
                ids=ids.astype("<u4").tobytes(),
                counts=counts.astype("<u4").tobytes(),
                tokens=len(tokens),
            )
        )
        self.tokens[name], self.vectors[name] = tokens, vector
        return self.bank.catalog.adapter(name)

    def skip_rows(self, count: int) -> None:
        """Give away row numbers, as ingests that were refused do."""
        vector = draw_vector(0, self.layout.size)
        for index in range(count):
            self.bank.catalog.abandon(self.bank.reserve(f"gone{index}", self._adapter(vector)))

    def add_many(self, seeds: Sequence[int], *, size: int = 400) -> None:
        for seed in seeds:
            self.add(f"s{seed:03d}", draw_tokens(seed, size=size), draw_vector(seed, self.layout.size))

    @property
    def theta(self) -> NDArray[np.float64]:
        """The vectors of what is in the bank, by row, in double precision; shape (N, p)."""
        return np.stack([self.vectors[record.name] for record in self.bank.adapters()]).astype(np.float64)

    @property
    def token_lists(self) -> list[Tokens]:
        """The tokens of what is in the bank, by row."""
        return [self.tokens[record.name] for record in self.bank.adapters()]


def create_synthetic(path: Path, tokenizer: Path, layout: AdapterLayout | None = None) -> SyntheticBank:
    """An empty bank for adapters of a layout; its configuration is written beside it."""
    bank = create_bank(path, tokenizer)
    return SyntheticBank(bank, layout or layout_of(), path.with_name(f"{path.name}-adapter_config.json"))


def zipf_bank(
    folder: Path, layout: AdapterLayout, number: int, vocabulary: int, tokens: int
) -> SyntheticBank:
    """A closed bank of so many drawn adapters; tokens by Zipf's law, seven kinds of datasets."""
    tokenizer = write_tokenizer(folder / "tokenizer", [f"w{index}" for index in range(vocabulary - 2)])
    made = create_synthetic(folder / "bank", tokenizer, layout)
    for seed in range(number):
        rng = np.random.default_rng(seed)
        drawn = np.minimum(rng.zipf(1.2, tokens), vocabulary // 7) * (1 + seed % 7) - 1
        made.add(f"s{seed:02d}", drawn, draw_vector(seed, layout.size))
    made.bank.close()
    return made
