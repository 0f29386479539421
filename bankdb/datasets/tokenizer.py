"""The bank's tokenizer, its fingerprint, and token counts of a dataset (section C.1.2)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bankdb.errors import DatasetError, TokenizerError, one_line
from bankdb.progress import quiet_loggers

_BATCH = 512
_OWN_TOKENS = 256
# What a tokenizer makes of these tells apart normalisers, splitters and special tokens alike.
_PROBES = (
    "",
    " ",
    "Hello, world! It's 3.14159 o'clock.",
    "  two  spaces\tand a tab\n\nand lines\r\n",
    "ÀÉÎõü ﬁ ½ Ⅻ e\u0301 — “quotes”",
    "def f(x):\n    return x ** 2  # 100%",
    "汉字 かな 한글 العربية हिन्दी 🙂👩‍👩‍👧",
    "<s> </s> [INST] <|im_start|> <unk> [MASK]",
    "0123456789 1,000,000 00:00 2024-01-01",
    "AaAaA aAaAa supercalifragilisticexpialidocious",
)


@dataclass(frozen=True, slots=True)
class TokenHistogram:
    """Sparse counts over token ids. `ids` and `counts`: uint32, shape (distinct,), ids ascending."""

    ids: NDArray[np.uint32]
    counts: NDArray[np.uint32]

    @property
    def tokens(self) -> int:
        """The number of tokens counted."""
        return int(self.counts.sum(dtype=np.uint64))


class BankTokenizer:
    """A tokenizer with special tokens as it adds them by default.

    Parameters
    ----------
    source
        A folder that `transformers` loads, or a name on the Hugging Face hub.

    Raises
    ------
    TokenizerError
        It cannot be loaded.
    """

    def __init__(self, source: str | Path) -> None:
        self.name = str(source)
        self._tokenizer = _load(str(source))
        self.vocabulary = _vocabulary_size(self._tokenizer)
        self.fingerprint = _fingerprint(self._tokenizer, self.vocabulary)

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files, so that the bank needs nothing else to tokenize."""
        self._tokenizer.save_pretrained(str(folder))

    def count(self, texts: Sequence[str], name: str) -> TokenHistogram:
        """Count the tokens of `texts`, in parallel on all cores where the tokenizer is a fast one.

        Raises
        ------
        DatasetError
            There are no tokens at all, a count passes 2^32 - 1, or an id is outside the vocabulary.
        """
        totals = np.zeros(self.vocabulary, dtype=np.int64)
        for ids in self._batches(texts):
            if ids.size and (ids.min() < 0 or ids.max() >= self.vocabulary):
                raise DatasetError(
                    f"{name}: the tokenizer gave id {ids.max()}, outside its vocabulary of {self.vocabulary}; "
                    "initialise the bank with the tokenizer that belongs to the base model"
                )
            totals += np.bincount(ids, minlength=self.vocabulary)
        present = np.flatnonzero(totals)
        if not present.size:
            raise DatasetError(f"{name}: its {len(texts)} examples have no tokens; check the input column")
        if totals.max() > np.iinfo(np.uint32).max:
            raise DatasetError(f"{name}: a token occurs more than 2^32 - 1 times; split the dataset")
        return TokenHistogram(present.astype(np.uint32), totals[present].astype(np.uint32))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, as they are counted."""
        encoded = self._tokenizer(
            list(texts),
            add_special_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
        return [list(ids) for ids in encoded]

    def added_tokens(self) -> int:
        """Return how many special tokens are added to each text."""
        return int(self._tokenizer.num_special_tokens_to_add(pair=False))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens left out, and nothing tidied up."""
        return str(
            self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )

    @property
    def end_of_sequence(self) -> int | None:
        """Id of the token that ends a text, if there is one."""
        found = self._tokenizer.eos_token_id
        return None if found is None else int(found)

    def _batches(self, texts: Sequence[str]) -> Iterator[NDArray[np.int64]]:
        for start in range(0, len(texts), _BATCH):
            encoded = self._tokenizer(
                list(texts[start : start + _BATCH]),
                add_special_tokens=True,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )["input_ids"]
            yield np.concatenate([np.asarray(ids, dtype=np.int64) for ids in encoded])


def _load(source: str) -> Any:
    # Set before the library is imported: it reads them then.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    # transformers warns on import that no deep-learning framework is there; none is needed.
    with quiet_loggers("transformers", "huggingface_hub"):
        from transformers import AutoTokenizer

        folder = Path(source)
        if folder.is_dir() and not any(folder.glob("tokenizer*")):
            raise TokenizerError(
                f"{source}: expected a tokenizer's files in the folder (tokenizer.json), found none"
            )
        try:
            return AutoTokenizer.from_pretrained(source)
        except Exception as error:
            raise TokenizerError(
                f"{source}: no tokenizer could be loaded from it ({one_line(error)}); pass a folder with "
                "tokenizer.json, or a name on the hub"
            ) from error


def _vocabulary_size(tokenizer: Any) -> int:
    ids = tokenizer.get_vocab().values()
    return int(max(len(tokenizer), max(ids) + 1))


def _own_probes(tokens: Sequence[str]) -> tuple[str, ...]:
    """Texts of the tokenizer's own tokens: of a small vocabulary the fixed ones may hold none."""
    chosen = tokens[:: max(1, len(tokens) // _OWN_TOKENS)]
    spaced = " ".join(chosen)
    return spaced, "".join(chosen), ", ".join(chosen), spaced.upper(), spaced.lower(), spaced.title()


def _fingerprint(tokenizer: Any, vocabulary: int) -> str:
    """Hash the vocabulary and what the tokenizer makes of some texts: stable across library versions."""
    digest = hashlib.sha256(f"vocabulary {vocabulary}\n".encode())
    entries = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    for token, index in entries:
        digest.update(f"{index} {token!a}\n".encode())
    for probe in (*_PROBES, *_own_probes([token for token, _ in entries])):
        encoded = tokenizer([probe], add_special_tokens=True, verbose=False)["input_ids"][0]
        digest.update((" ".join(map(str, encoded)) + "\n").encode())
    return digest.hexdigest()
