"""What turns texts into token ids: a folder's tokenizer.json, else its SentencePiece model, else transformers.

`tokenizer.json` is read by `tokenizers` itself. Which class a configuration names beside it is not asked:
transformers rebuilds some classes with a splitter of their own, and then gives other ids.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bankdb.datasets.tokenizer_files import (
    PIECES_FILE,
    SETTINGS_FILES,
    TEMPLATE_FILE,
    TOKENIZER_FILE,
    TokenizerFiles,
    named_tokens,
)
from bankdb.errors import TokenizerError, listed, one_line
from bankdb.progress import quiet_loggers

Ids = NDArray[np.int64]
# The slowest tokenizers that are known encode some 100,000 bytes in a second, on a machine that does much else a tenth.
_LEAST_SECONDS, _SLOWEST = 30.0, 20_000
_BUSY: set[object] = set()
"""Encoders that were given up, and run still."""


class Encoder(Protocol):
    """Texts to ids and back.

    Attributes
    ----------
    workspace
        Bytes of memory that a byte of text may take while it is encoded: the most that was measured, rounded up.
    end
        Id of the token that ends a text, if there is one.
    notes
        What a user should know of how the files were read, a line each.
    """

    workspace: int
    end: int | None
    notes: tuple[str, ...]

    def vocabulary(self) -> dict[str, int]:
        """Return the id of each token."""

    def encode(self, texts: Sequence[str]) -> Iterator[Ids]:
        """Yield the ids of each text, with the special tokens that are added by default."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, without special tokens."""

    def added(self) -> int:
        """Return how many special tokens are added to each text."""

    def save(self, folder: Path) -> None:
        """Write the files from which the same encoder is loaded."""


@contextlib.contextmanager
def _refused(name: str, what: str) -> Iterator[None]:
    """Turn whatever another library raises, its panics included, into one line."""
    try:
        yield
    except TokenizerError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(
            f"{name}: {what} ({one_line(error) or type(error).__name__}); pass a folder with the base model's "
            "own tokenizer.json, or a name on the hub"
        ) from error


class FileEncoder:
    """Of `tokenizer.json`, as `tokenizers` reads it."""

    workspace = 300

    def __init__(self, files: TokenizerFiles) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        from tokenizers import Tokenizer

        self._files = files
        with _refused(files.name, f"no tokenizer could be loaded from its {TOKENIZER_FILE}"):
            self._tokenizer = Tokenizer.from_file(str(files.folder / TOKENIZER_FILE))
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
        named = named_tokens(files.settings)
        self.end = self._id(named.get("eos_token"))
        self._special = {found for token in named.values() if (found := self._id(token)) is not None}
        self.notes = _file_notes(files, self._tokenizer, named)

    def _id(self, token: str | None) -> int | None:
        return None if token is None else self._tokenizer.token_to_id(token)

    def vocabulary(self) -> dict[str, int]:
        """Return the id of each token."""
        return dict(self._tokenizer.get_vocab(with_added_tokens=True))

    def encode(self, texts: Sequence[str]) -> Iterator[Ids]:
        """Yield the ids of each text."""
        with _refused(self._files.name, "its tokenizer fails on a text"):
            found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=True)
        found.reverse()  # each is let go as soon as its ids are out
        while found:
            yield np.asarray(found.pop().ids, dtype=np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, without special tokens."""
        kept = [index for index in ids if index not in self._special]
        return str(self._tokenizer.decode(kept, skip_special_tokens=True))

    def added(self) -> int:
        """Return how many special tokens are added to each text."""
        return int(self._tokenizer.num_special_tokens_to_add(False))

    def save(self, folder: Path) -> None:
        """Copy the files that were read."""
        _copy(self._files.folder, folder, (TOKENIZER_FILE, TEMPLATE_FILE, *SETTINGS_FILES))


def _file_notes(files: TokenizerFiles, tokenizer: Any, named: dict[str, str]) -> tuple[str, ...]:
    notes = []
    lacking = sorted({token for token in named.values() if tokenizer.token_to_id(token) is None})
    if lacking:
        notes.append(
            f"{files.name}: {TOKENIZER_FILE} has no token {listed([ascii(token)[:60] for token in lacking])} that the "
            f"configuration beside it names; {TOKENIZER_FILE} is followed"
        )
    first = named.get("bos_token")
    if files.settings.get("add_bos_token") is True and first is not None:
        ids = tokenizer.encode("").ids
        if not ids or ids[0] != tokenizer.token_to_id(first):
            notes.append(
                f"{files.name}: the configuration says add_bos_token, {TOKENIZER_FILE} adds none; "
                f"{TOKENIZER_FILE} is followed"
            )
    return tuple(notes)


class PieceEncoder:
    """Of a SentencePiece model alone, as `sentencepiece` reads it; texts begin and end as the class says."""

    workspace = 120

    def __init__(self, files: TokenizerFiles) -> None:
        import sentencepiece

        self._files = files
        with _refused(files.name, f"no SentencePiece model could be loaded from its {PIECES_FILE}"):
            self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(files.folder / PIECES_FILE))
        self._size = int(self._pieces.get_piece_size())
        end = int(self._pieces.eos_id())
        self.end = end if end >= 0 else None
        begins, ends = files.settings.get("add_bos_token"), files.settings.get("add_eos_token")
        # LlamaTokenizer's and GemmaTokenizer's own defaults.
        begins = files.class_name is not None if begins is None else bool(begins)
        self._before = [int(self._pieces.bos_id())] if begins and self._pieces.bos_id() >= 0 else []
        self._after = [end] if ends and end >= 0 else []
        self._silent = {index for index in range(self._size) if self._pieces.is_control(index)}
        self.notes: tuple[str, ...] = ()
        if files.class_name is None:
            self.notes = (
                f"{files.name}: a SentencePiece model and no tokenizer_config.json with a tokenizer_class; "
                "texts are taken to begin without a token such as <s>",
            )

    def vocabulary(self) -> dict[str, int]:
        """Return the id of each piece."""
        with _refused(self._files.name, f"no SentencePiece model could be loaded from its {PIECES_FILE}"):
            return {self._pieces.id_to_piece(index): index for index in range(self._size)}

    def encode(self, texts: Sequence[str]) -> Iterator[Ids]:
        """Yield the ids of each text."""
        with _refused(self._files.name, "its SentencePiece model fails on a text"):
            found = self._pieces.encode(list(texts), out_type=int)
        found.reverse()
        while found:
            yield np.asarray([*self._before, *found.pop(), *self._after], dtype=np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, without control pieces."""
        kept = [index for index in ids if index < self._size and index not in self._silent]
        return str(self._pieces.decode(kept))

    def added(self) -> int:
        """Return how many control pieces are added to each text."""
        return len(self._before) + len(self._after)

    def save(self, folder: Path) -> None:
        """Copy the files that were read."""
        _copy(self._files.folder, folder, (PIECES_FILE, TEMPLATE_FILE, "config.json", *SETTINGS_FILES))


class LibraryEncoder:
    """Of files that only transformers reads; code that a folder brings along is never run."""

    workspace = 600

    def __init__(self, files: TokenizerFiles) -> None:
        # Set before the library is imported: it reads them then.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        self._name = files.name
        # transformers warns on import that no deep-learning framework is there; none is needed.
        with (
            quiet_loggers("transformers", "huggingface_hub"),
            _refused(files.name, "no tokenizer could be loaded"),
        ):
            from transformers import AutoTokenizer

            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                str(files.folder), trust_remote_code=False, local_files_only=True
            )
        end = self._tokenizer.eos_token_id
        self.end = None if end is None else int(end)
        self.notes: tuple[str, ...] = ()

    def vocabulary(self) -> dict[str, int]:
        """Return the id of each token."""
        return dict(self._tokenizer.get_vocab())

    def encode(self, texts: Sequence[str]) -> Iterator[Ids]:
        """Yield the ids of each text."""
        with _refused(self._name, "its tokenizer fails on a text"):
            found = self._tokenizer(
                list(texts),
                add_special_tokens=True,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )["input_ids"]
        for ids in found:
            yield np.asarray(ids, dtype=np.int64)

    def pieces(self, text: str) -> list[str]:
        """Return the tokens of a text, nothing added."""
        return list(self._tokenizer.tokenize(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, without special tokens, and nothing tidied up."""
        return str(
            self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )

    def added(self) -> int:
        """Return how many special tokens are added to each text."""
        return int(self._tokenizer.num_special_tokens_to_add(pair=False))

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files."""
        self._tokenizer.save_pretrained(str(folder))


def _copy(source: Path, target: Path, names: Iterable[str]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def encode_in_time(encoder: Encoder, texts: Sequence[str], name: str) -> list[Ids]:
    """Return the ids of each text, of a tokenizer that may hold regular expressions of strangers.

    Nothing interrupts a library that is kept busy by one. It is let run in a thread that ends with the process, and
    what it is asked then is refused at once.

    Raises
    ------
    TokenizerError
        It took more than half a minute, and more than a second for each 20,000 bytes.
    """
    answer: SimpleQueue[list[Ids] | BaseException] = SimpleQueue()

    def encode() -> None:
        try:
            answer.put(list(encoder.encode(texts)))
        except BaseException as error:
            answer.put(error)

    size = sum(map(len, texts))
    seconds = _LEAST_SECONDS + size / _SLOWEST
    try:
        if encoder not in _BUSY:
            Thread(target=encode, name="tokenize", daemon=True).start()
        found = answer.get(timeout=0 if encoder in _BUSY else seconds)
    except Empty:
        _BUSY.add(encoder)
        raise TokenizerError(
            f"{name}: its tokenizer took more than {seconds:.0f} s for {size:,} characters, as a regular expression in "
            "it may; pass a folder with the base model's own tokenizer.json"
        ) from None
    if isinstance(found, BaseException):
        raise found
    return found


def encoder_of(files: TokenizerFiles) -> Encoder:
    """Return what encodes as a folder's files say.

    Raises
    ------
    TokenizerError
        They cannot be loaded, or transformers gives other tokens than the SentencePiece model itself.
    """
    if files.has(TOKENIZER_FILE):
        return FileEncoder(files)
    if files.pieces_alone:
        return PieceEncoder(files)
    encoder = LibraryEncoder(files)
    if files.model_file is not None:
        _check_pieces(files, encoder)
    return encoder


_PLAIN = (
    "Hello, world! It's 3.14159 o'clock.",
    " one  two   three\nand lines\n",
    "ÀÉÎõü ½ “quotes” 汉字 かな",
    "def f(x): return x ** 2  # 100%",
    "0123456789 1,000,000 supercalifragilisticexpialidocious",
)


def _check_pieces(files: TokenizerFiles, encoder: LibraryEncoder) -> None:
    """Refuse a rebuilt tokenizer whose tokens are not the SentencePiece model's own."""
    import sentencepiece

    with _refused(files.name, f"no SentencePiece model could be loaded from its {files.model_file}"):
        model = sentencepiece.SentencePieceProcessor(model_file=str(files.folder / str(files.model_file)))
        own = [model.id_to_piece(index) for index in range(model.get_piece_size())]
        # Ids may be moved by the class; the pieces themselves may not.
        texts = (*_PLAIN, " ".join(own[3 :: max(1, len(own) // 256)]).replace("▁", " "))
        other = next(
            (text for text in texts if encoder.pieces(text) != model.encode(text, out_type=str)), None
        )
    if other is not None:
        raise TokenizerError(
            f"{files.name}: transformers gives other tokens than the SentencePiece model {files.model_file} for "
            f"{other[:30]!a}; pass a folder with the base model's own tokenizer.json"
        )
