"""Small banks for tests: a word-level tokenizer, datasets with overlap, adapters with random weights."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from bankdb.bank import AdapterBank
from bankdb.ingest import IngestReport
from tests.support.banks.malformed_adapters import BASE_MODEL, write_good_adapter

WORDS = [f"w{index}" for index in range(200)]


def write_tokenizer(folder: Path, words: Sequence[str] = WORDS) -> Path:
    """A tokenizer that `transformers` loads: a token a word, one special token in front."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<s>": 0, "<unk>": 1} | {word: index + 2 for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")
    fast.save_pretrained(str(folder))
    return folder


def write_dataset(folder: Path, seed: int, examples: int = 12) -> Path:
    """A training split whose words are drawn around a place in the vocabulary that depends on `seed`."""
    folder.mkdir(parents=True)
    rng = random.Random(seed)
    centre = rng.uniform(0, len(WORDS))
    with (folder / "train.jsonl").open("w") as file:
        for index in range(examples):
            drawn = [WORDS[int(rng.gauss(centre, 25)) % len(WORDS)] for _ in range(rng.randint(5, 30))]
            example = {"id": index, "input": " ".join(drawn[:-1]) + " ", "output": [drawn[-1]]}
            file.write(json.dumps(example) + "\n")
    return folder


def write_pairs(
    folder: Path, count: int = 6, *, dtypes: Sequence[str] = ("F32",), start: int = 0, prefix: str = "task"
) -> Path:
    """`datasets/NAME/` and `adapters/NAME/` for `count` names; dtypes are taken in turn."""
    for index in range(start, start + count):
        name = f"{prefix}{index:03d}"
        write_dataset(folder / "datasets" / name, index)
        write_good_adapter(folder / "adapters" / name, seed=index, dtype=dtypes[index % len(dtypes)])
    return folder


def create_bank(path: Path, tokenizer: Path, database: str | None = None) -> AdapterBank:
    """An empty bank for the adapters that `write_pairs` writes."""
    return AdapterBank.create(path, base_model=BASE_MODEL, tokenizer=tokenizer, database=database)


def ingest_folder(bank: AdapterBank, folder: Path, **options: object) -> IngestReport:
    """Ingest a folder of pairs as the command does."""
    return bank.ingest(folder, **options)  # type: ignore[arg-type]
