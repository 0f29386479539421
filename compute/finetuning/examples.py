"""The examples that an adapter is trained on, and those that are held out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from bankdb.datasets.read import Dataset
from bankdb.datasets.tokenizer import BankTokenizer
from compute.finetuning.schedule import Split, split_examples
from compute.generation.labelled import LabelledExample, encode_labelled


@dataclass(frozen=True, slots=True)
class TrainingExamples:
    """Examples as a trainer reads them.

    Attributes
    ----------
    training, held_out
        In the order drawn.
    split
        Which of the dataset they are.
    sha256
        Hash of the texts of both, and of which are held out.
    """

    training: tuple[LabelledExample, ...]
    held_out: tuple[LabelledExample, ...]
    split: Split
    sha256: str


def training_examples(
    dataset: Dataset, tokenizer: BankTokenizer, end: int, most: int | None, seed: int, name: str
) -> TrainingExamples:
    """Draw, hold out and tokenize: see `split_examples` and `encode_labelled`, whose errors it raises."""
    texts = list(zip(dataset.inputs, dataset.outputs, strict=True))
    split = split_examples(texts, most, seed, name)
    groups = [[texts[place] for place in places] for places in (split.training, split.held_out)]
    training, held_out = (
        encode_labelled(tokenizer, [one[0] for one in group], [one[1] for one in group], end, name)
        for group in groups
    )
    return TrainingExamples(training, held_out, split, _sha256(groups))


def _sha256(groups: Sequence[Sequence[tuple[str, str]]]) -> str:
    return hashlib.sha256(json.dumps(groups).encode()).hexdigest()
