"""The quick way to token ids gives what transformers gives, for every kind of tokenizer.json, and on real texts."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer

from bankdb.datasets.encoders import Encoder, FileEncoder, LibraryEncoder, PieceEncoder, encoder_of
from bankdb.datasets.read import read_dataset
from bankdb.datasets.tokenizer import BankTokenizer
from bankdb.datasets.tokenizer_files import tokenizer_files

# Folders of real tasks (NAME/train.jsonl), and of the tokenizers `smollm2-135m-instruct` and `mistral-7b-tokenizer`.
TASKS, MODELS = (Path(os.environ.get(name, "")) for name in ("REAL_TASKS", "REAL_TOKENIZERS"))
CORPUS = [
    "the cat's 2023 cats",
    "def f(x): return x",
    "it's 1 2 33 444",
    "naïve ÀÉ 汉字 🙂",
    "a  b\tc\n\nd",
] * 3
SPECIAL = ["<unk>", "<s>", "</s>", "[CLS]", "[SEP]", "[MASK]"]


def word_piece() -> Tokenizer:
    """As BERT has it: lower case, accents off, ## inside of words."""
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    )
    ids = [(name, made.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    return made


def unigram() -> Tokenizer:
    """As T5 and XLM-R have it: spaces as a letter, the likeliest pieces."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" ", "▁")])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", made.token_to_id("</s>"))]
    )
    return made


def byte_pairs() -> Tokenizer:
    """As GPT-2 and Qwen have it: pairs of bytes, with added tokens that strip, that stand alone, that are special."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=380, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        ),
    )
    made.add_tokens(
        [AddedToken("cats", single_word=True), AddedToken("<tool>", lstrip=True, normalized=False)]
    )
    made.add_special_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<|pad|>", rstrip=True)])
    return made


MADE = {"WordPiece": word_piece, "Unigram": unigram, "byte-level BPE with added tokens": byte_pairs}
TEXTS = st.text(max_size=60) | st.lists(
    st.sampled_from(
        [
            *SPECIAL,
            "cats",
            "the ",
            " ",
            "  ",
            "\n",
            "\t",
            "<tool>",
            "<|im_start|>",
            "<|pad|>",
            "▁",
            "##",
            "É",
            "e\u0301",
            "汉",
        ]
    ),
    max_size=12,
).map("".join)


def folder_of(folder: Path, made: Tokenizer) -> Path:
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return folder


def ids_of(encoder: Encoder, texts: Sequence[str]) -> list[list[int]]:
    return [ids.tolist() for ids in encoder.encode(texts)]


@pytest.mark.parametrize("kind", MADE)
def test_the_quick_way_gives_what_transformers_gives(tmp_path: Path, kind: str) -> None:
    folder = folder_of(tmp_path / "t", MADE[kind]())
    files = tokenizer_files(str(folder))
    quick, library = encoder_of(files), LibraryEncoder(files)
    oracle = AutoTokenizer.from_pretrained(str(folder))
    assert isinstance(quick, FileEncoder)
    assert quick.vocabulary() == library.vocabulary() == oracle.get_vocab()
    assert (quick.end, quick.added()) == (library.end, library.added())

    @settings(max_examples=150)
    @given(TEXTS)
    def same(text: str) -> None:
        assert ids_of(quick, [text]) == [oracle(text)["input_ids"]]

    same()
    assert ids_of(quick, CORPUS) == [oracle(text)["input_ids"] for text in CORPUS]


@pytest.mark.parametrize("kind", MADE)
def test_its_fingerprint_is_that_of_transformers_so_that_either_opens_a_bank(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path / "t", MADE[kind]())
    quick = BankTokenizer(folder)
    monkeypatch.setattr("bankdb.datasets.tokenizer.encoder_of", LibraryEncoder)
    assert BankTokenizer(folder).fingerprint == quick.fingerprint


def test_where_the_ids_differ_a_bank_of_transformers_ids_does_not_take_the_quick_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPT2Tokenizer, as transformers rebuilds it, splits otherwise than the file says."""
    made = byte_pairs()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    folder = folder_of(tmp_path / "t", made)
    named = {"tokenizer_class": "GPT2Tokenizer", "unk_token": "<unk>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    with monkeypatch.context() as patch:
        patch.setattr("bankdb.datasets.tokenizer.encoder_of", LibraryEncoder)
        before = BankTokenizer(folder)
    assert before.encode(CORPUS) != BankTokenizer(folder).encode(CORPUS)
    assert BankTokenizer(folder, before.fingerprint).encode(CORPUS) == before.encode(CORPUS)


@functools.cache
def shared_texts() -> tuple[str, ...]:
    """Every text of the real tasks, training and test."""
    files = sorted(TASKS.glob("*/*.jsonl"))
    return tuple(text for file in files for text in read_dataset([file]).each_text())


def smollm2() -> tuple[Encoder, Callable[[Sequence[str]], list[list[int]]]]:
    folder = MODELS / "smollm2-135m-instruct"
    oracle = AutoTokenizer.from_pretrained(str(folder))
    return encoder_of(tokenizer_files(str(folder))), lambda texts: oracle(list(texts))["input_ids"]


def mistral() -> tuple[Encoder, Callable[[Sequence[str]], list[list[int]]]]:
    """Its model of pieces alone. What transformers 5 rebuilds of it merges spaces otherwise: not the oracle."""
    import sentencepiece

    folder = MODELS / "mistral-7b-tokenizer"
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    found = encoder_of(tokenizer_files(str(folder)))
    assert isinstance(found, PieceEncoder)
    return found, lambda texts: [[1, *ids] for ids in oracle.encode(list(texts))]


@pytest.mark.skipif(TASKS == MODELS, reason="REAL_TASKS and REAL_TOKENIZERS name no folders")
@pytest.mark.parametrize("tokenizer", [smollm2, mistral])
def test_every_text_of_the_real_tasks(
    tokenizer: Callable[..., tuple[Encoder, Callable[..., list[list[int]]]]],
) -> None:
    texts = shared_texts()
    assert len(texts) > 10_000
    quick, oracle = tokenizer()
    assert ids_of(quick, texts) == oracle(texts)

    @settings(max_examples=300)
    @given(TEXTS)
    def same(text: str) -> None:
        assert ids_of(quick, [text]) == oracle([text])

    same()
