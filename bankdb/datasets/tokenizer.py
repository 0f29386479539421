"""The bank's tokenizer, its fingerprint, and token counts of a dataset (section C.1.2)."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import operator
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bankdb.datasets.encoders import Encoder, LibraryEncoder, PieceEncoder, encode_in_time, encoder_of
from bankdb.datasets.limits import memory_budget
from bankdb.datasets.tokenizer_files import TokenizerFiles, named_tokens, tokenizer_files
from bankdb.errors import DatasetError, PlanError, TokenizerError
from bankdb.templates.sandbox import ChatTemplate

_BATCH, _BATCH_BYTES = 512, 1 << 20
# Counts are arrays over all ids; the largest vocabularies have a quarter of a million.
_LARGEST_VOCABULARY = 1 << 22
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
        A folder with a tokenizer's files, or a name on the Hugging Face hub.
    fingerprint
        What it was before: where `tokenizer.json` gives other ids and transformers gives these, transformers is
        used, and a note says so.

    Attributes
    ----------
    vocabulary
        One more than the largest id.
    fingerprint
        Hash of the vocabulary and of what it makes of some texts.
    notes
        What a user should know of how it was read, a line each.
    folder
        Where its files are.

    Raises
    ------
    TokenizerError
        It cannot be loaded.
    """

    def __init__(self, source: str | Path, fingerprint: str | None = None) -> None:
        self.name, self._turn = str(source), threading.Lock()
        self._files = files = tokenizer_files(self.name)
        self.folder = files.folder
        self._use(encoder_of(files))
        if fingerprint not in (None, self.fingerprint) and not isinstance(self._encoder, LibraryEncoder):
            self._use_as_before(files, str(fingerprint))

    def _use(self, encoder: Encoder) -> None:
        self._encoder = encoder
        entries = encoder.vocabulary()
        self.vocabulary = _vocabulary_size(entries, self.name)
        self.fingerprint = _fingerprint(encoder, entries, self.vocabulary, self.name)
        self.notes = encoder.notes

    def _use_as_before(self, files: TokenizerFiles, fingerprint: str) -> None:
        """Use what transformers makes of the files if that is the tokenizer of before; else stay as it is."""
        found = self._encoder
        with contextlib.suppress(TokenizerError):
            self._use(LibraryEncoder(files))
        if self.fingerprint != fingerprint:
            self._use(found)
            return
        self.notes = (
            f"{self.name}: the bank was made with ids that are not those of its tokenizer.json, but what transformers "
            "makes of it; they are kept here, and a bank that is made anew has those of tokenizer.json",
        )

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files, so that the bank needs nothing else to tokenize."""
        self._encoder.save(folder)

    @functools.cached_property
    def chat_template(self) -> ChatTemplate | None:
        """How the model is spoken to, if its files say that; nothing of it was run.

        Raises
        ------
        TokenizerError
            Its file cannot be read; or it writes tokens that a SentencePiece model alone takes for letters.
        """
        text = self._files.chat_template
        if text is None:
            return None
        named = {
            key: value for key, value in named_tokens(self._files.settings).items() if key.endswith("_token")
        }
        begins = self._begins(named.get("bos_token"))
        if isinstance(self._encoder, PieceEncoder):
            written = [
                value for key, value in named.items() if value != begins and (key in text or value in text)
            ]
            if written:
                raise TokenizerError(
                    f"{self.name}: its chat template writes {written[0]!a}, which a SentencePiece model alone "
                    "takes for letters; pass a folder with the base model's own tokenizer.json"
                )
        return ChatTemplate(self.name, text, tuple(sorted(named.items())), begins)

    def _begins(self, token: str | None) -> str | None:
        """Return the token if each text is begun with it."""
        if token is None or not self.added_tokens():
            return None
        (ids,) = encode_in_time(self._encoder, [""], self.name)
        return token if ids[:1].tolist() == [self._encoder.vocabulary().get(token)] else None

    def count(self, texts: Iterable[str], name: str, memory: int | None = None) -> TokenHistogram:
        """Count the tokens of `texts`, in parallel on all cores where the tokenizer can.

        Parameters
        ----------
        name
            What messages call the texts.
        memory
            Bytes that the work may use beside the texts themselves; half of the machine's if not given.

        Raises
        ------
        DatasetError
            There are no tokens at all, a count passes 2^32 - 1, or an id is outside the vocabulary.
        TokenizerError
            The tokenizer fails on a text, or takes far too long.
        PlanError
            A text is too long for the memory.
        """
        totals = np.zeros(self.vocabulary, dtype=np.int64)
        examples = 0
        for batch in self._batches(texts, name, memory):
            examples += len(batch)
            with self._turn:  # of several threads one takes the memory
                found = encode_in_time(self._encoder, batch, self.name)
                ids = np.concatenate(found)
                del found
            if ids.size and (ids.min() < 0 or ids.max() >= self.vocabulary):
                raise DatasetError(
                    f"{name}: the tokenizer gave id {ids.max()}, outside its vocabulary of {self.vocabulary}; "
                    "initialise the bank with the tokenizer that belongs to the base model"
                )
            totals += np.bincount(ids, minlength=self.vocabulary)
        present = np.flatnonzero(totals)
        if not present.size:
            raise DatasetError(f"{name}: its {examples} examples have no tokens; check the input column")
        if totals.max() > np.iinfo(np.uint32).max:
            raise DatasetError(f"{name}: a token occurs more than 2^32 - 1 times; split the dataset")
        return TokenHistogram(present.astype(np.uint32), totals[present].astype(np.uint32))

    def encode(self, texts: Sequence[str], memory: int | None = None) -> list[list[int]]:
        """Return the token ids of each text, as they are counted."""
        batches = self._batches(texts, "a text", memory)
        return [ids.tolist() for batch in batches for ids in encode_in_time(self._encoder, batch, self.name)]

    def added_tokens(self) -> int:
        """Return how many special tokens are added to each text."""
        return self._encoder.added()

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens left out, and nothing tidied up."""
        return self._encoder.decode(ids)

    @property
    def end_of_sequence(self) -> int | None:
        """Id of the token that ends a text, if there is one."""
        return self._encoder.end

    def _batches(self, texts: Iterable[str], name: str, memory: int | None) -> Iterator[list[str]]:
        """Cut texts into batches by their bytes: a text takes some hundred times its size while it is tokenized."""
        budget = memory_budget(memory)
        most = max(1, budget // 2 // self._encoder.workspace)
        longest = most * 3 // 2
        batch: list[str] = []
        size = 0
        for number, text in enumerate(texts, 1):
            length = len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
            if length > longest:
                raise PlanError(
                    f"{name}, example {number}: a text of {length:,} bytes, expected at most {longest:,} where "
                    f"{budget >> 20} MiB may be used; cut it into several examples, or give more with --memory"
                )
            if batch and (size + length > min(most, _BATCH_BYTES) or len(batch) == _BATCH):
                yield batch
                batch, size = [], 0
            batch.append(text)
            size += length
        if batch:
            yield batch


def _vocabulary_size(entries: Mapping[str, int], name: str) -> int:
    size = max(len(entries), max(entries.values(), default=-1) + 1)
    if not 0 < size <= _LARGEST_VOCABULARY:
        raise TokenizerError(
            f"{name}: no tokenizer could be loaded, its vocabulary has {size:,} ids; expected one of at least 1 and at "
            f"most {_LARGEST_VOCABULARY:,} in tokenizer.json"
        )
    return size


def _own_probes(tokens: Sequence[str]) -> tuple[str, ...]:
    """Texts of the tokenizer's own tokens: of a small vocabulary the fixed ones may hold none."""
    chosen = tokens[:: max(1, len(tokens) // _OWN_TOKENS)]
    spaced = " ".join(chosen)
    return spaced, "".join(chosen), ", ".join(chosen), spaced.upper(), spaced.lower(), spaced.title()


def _fingerprint(encoder: Encoder, vocabulary: Mapping[str, int], size: int, name: str) -> str:
    """Hash the vocabulary and what the tokenizer makes of some texts: stable across library versions."""
    digest = hashlib.sha256(f"vocabulary {size}\n".encode())
    entries = sorted(vocabulary.items(), key=operator.itemgetter(1, 0))
    digest.update("".join([f"{index} {token!a}\n" for token, index in entries]).encode())
    for probe in (*_PROBES, *_own_probes([token for token, _ in entries])):
        (encoded,) = encode_in_time(encoder, [probe], name)
        digest.update((" ".join(map(str, encoded.tolist())) + "\n").encode())
    return digest.hexdigest()
