"""Which ids a folder gives: those of its tokenizer.json, else of its SentencePiece model, and never by its code."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from click.testing import CliRunner
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from bankdb.bank import AdapterBank
from bankdb.datasets import encoders
from bankdb.datasets.encoders import LibraryEncoder
from bankdb.datasets.tokenizer import BankTokenizer
from bankdb.datasets.tokenizer_files import tokenizer_files
from bankdb.errors import TokenizerError
from cli.main import cli
from tests.support.banks.small_bank import create_bank
from tests.test_bankdb.test_datasets.small_pieces import SETTINGS, write_pieces

TEXTS = [
    "2023 cats", "def f(x): return x", "it's the cat's", "", " ", "  two  spaces", "the cat sees\nthe  dog ",
    "ÀÉ 汉字 🙂", "<s> </s>", "the▁cat", "\tthe cat",
]  # fmt: skip


def byte_tokenizer(splitter: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["def f(x): return x", "the cat's 2023 cats", "it's 1 2 33 444"] * 3, trainer
    )
    return tokenizer


SPLITTERS = {
    "digits apart": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "at spaces alone": pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)]
    ),
    "punctuation apart": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Punctuation("isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
    "a space in front": pre_tokenizers.ByteLevel(add_prefix_space=True),
}


def write(folder: Path, tokenizer: Tokenizer, **settings: object) -> Path:
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named | settings))
    return folder


@pytest.mark.parametrize("splitter", SPLITTERS)
@pytest.mark.parametrize("stated", ["GPT2Tokenizer", "GPT2TokenizerFast", "LlamaTokenizer", "Qwen2Tokenizer"])
def test_whatever_class_is_named_the_ids_are_the_files(tmp_path: Path, splitter: str, stated: str) -> None:
    plain = byte_tokenizer(SPLITTERS[splitter])
    folder = write(tmp_path / "t", plain, tokenizer_class=stated)
    found = BankTokenizer(folder)
    assert found.encode(TEXTS) == [plain.encode(text).ids for text in TEXTS]
    found.save(tmp_path / "saved")
    again = BankTokenizer(tmp_path / "saved")
    assert again.fingerprint == found.fingerprint
    assert again.encode(TEXTS) == found.encode(TEXTS)
    assert found.end_of_sequence == plain.token_to_id("<|endoftext|>")


def test_what_the_file_puts_around_a_text_is_kept_and_what_it_does_not_is_said(tmp_path: Path) -> None:
    plain = byte_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False))
    folder = write(tmp_path / "bare", plain, add_bos_token=True, pad_token="[PAD]")
    bare = BankTokenizer(folder)
    assert bare.encode([""]) == [[]]
    assert bare.vocabulary == plain.get_vocab_size()
    assert any("add_bos_token" in note for note in bare.notes)
    assert any("[PAD]" in note for note in bare.notes)
    plain.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    around = BankTokenizer(write(tmp_path / "around", plain, add_bos_token=True))
    assert (around.encode([""]), around.added_tokens(), around.notes) == ([[0]], 1, ())


def test_a_bank_of_before_keeps_its_ids_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its fingerprint is of what transformers made of the files, and that is not what tokenizer.json says."""
    plain = byte_tokenizer(SPLITTERS["a space in front"])
    folder = write(tmp_path / "t", plain, tokenizer_class="GPT2Tokenizer", unk_token="<|endoftext|>")
    with monkeypatch.context() as patch:
        patch.setattr("bankdb.datasets.tokenizer.encoder_of", LibraryEncoder)
        before = BankTokenizer(folder)
        rebuilt = before.encode(TEXTS)
    assert rebuilt != [plain.encode(text).ids for text in TEXTS]
    kept = BankTokenizer(folder, before.fingerprint)
    assert kept.encode(TEXTS) == rebuilt
    assert any("are not those of its tokenizer.json" in note for note in kept.notes)
    anew = BankTokenizer(folder)
    assert anew.fingerprint != before.fingerprint
    assert BankTokenizer(folder, "0" * 64).fingerprint == anew.fingerprint


@pytest.mark.parametrize("which", ["words", "bytes", "pieces"])
def test_a_saved_folder_has_the_fingerprint_that_transformers_gave(
    tmp_path: Path, tokenizer_folder: Path, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Banks made before hold what transformers saved: they open with the same fingerprint, and without it."""
    source = {
        "words": lambda: tokenizer_folder,
        "bytes": lambda: write(
            tmp_path / "t", byte_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False))
        ),
        "pieces": lambda: write_pieces(tmp_path / "t"),
    }[which]()
    with monkeypatch.context() as patch:
        patch.setattr("bankdb.datasets.tokenizer.encoder_of", LibraryEncoder)
        BankTokenizer(source).save(tmp_path / "saved")
        before = BankTokenizer(tmp_path / "saved")
    now = BankTokenizer(tmp_path / "saved", before.fingerprint)
    assert now.fingerprint == before.fingerprint
    assert now.notes == ()


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize(
    ("settings", "before", "after"),
    [
        ({}, [1], []),
        ({"add_bos_token": False}, [], []),
        ({"add_bos_token": True, "add_eos_token": True}, [1], [2]),
    ],
)
def test_a_model_alone_gives_the_ids_of_sentencepiece(
    tmp_path: Path, kind: str, settings: dict[str, object], before: list[int], after: list[int]
) -> None:
    folder = write_pieces(tmp_path / "t", kind, SETTINGS | settings)
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    found = BankTokenizer(folder)
    assert found.encode(TEXTS) == [[*before, *model.encode(text), *after] for text in TEXTS]
    assert (found.added_tokens(), found.end_of_sequence) == (len(before) + len(after), 2)
    assert found.decode([1, *model.encode("the cat sees"), 2]) == "the cat sees"
    with AdapterBank.create(tmp_path / "bank", base_model="b", tokenizer=folder):
        pass
    with AdapterBank.open(tmp_path / "bank") as bank:
        assert bank.tokenizer.encode(TEXTS) == found.encode(TEXTS)


def test_tokens_on_top_of_a_model_are_refused(tmp_path: Path) -> None:
    more = {"added_tokens_decoder": {"50": {"content": "<|im_start|>"}}}
    with pytest.raises(TokenizerError, match=r"<\|im_start\|>.*tokenizer\.json"):
        BankTokenizer(write_pieces(tmp_path / "t", settings=SETTINGS | more))
    (write_pieces(tmp_path / "u") / "added_tokens.json").write_text('{"<extra>": 50}')
    with pytest.raises(TokenizerError, match="<extra>"):
        BankTokenizer(tmp_path / "u")


def test_vocabulary_and_merges_are_enough(tmp_path: Path) -> None:
    plain = byte_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False))
    folder = tmp_path / "t"
    folder.mkdir()
    plain.model.save(str(folder))
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    assert not list(folder.glob("tokenizer*"))
    texts = [text for text in TEXTS if text]
    assert BankTokenizer(folder).encode(texts) == [plain.encode(text).ids for text in texts]
    with create_bank(tmp_path / "bank", folder) as bank:
        assert bank.tokenizer.encode(texts) == [plain.encode(text).ids for text in texts]


CODE = "import pathlib\npathlib.Path({ran!r}).write_text('ran')\nclass Own:\n    pass\n"


@pytest.mark.parametrize(
    ("file", "auto_map"),
    [
        ("tokenizer_config.json", {"AutoTokenizer": ["own.Own", None]}),
        ("tokenizer_config.json", {"AutoTokenizer": [None, "own.Own"]}),
        ("tokenizer_config.json", ["own.Own", None]),
        ("config.json", {"AutoConfig": "own.Own"}),
    ],
)
@pytest.mark.parametrize("with_file", [True, False])
def test_code_of_a_folder_is_never_run_and_nobody_is_asked(
    tmp_path: Path, file: str, auto_map: Any, with_file: bool
) -> None:
    plain = byte_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False))
    folder = write(tmp_path / "t", plain, tokenizer_class="Own")
    ran = tmp_path / "ran"
    (folder / "own.py").write_text(CODE.format(ran=str(ran)))
    settings = json.loads((folder / "tokenizer_config.json").read_text()) if file.startswith("tok") else {}
    (folder / file).write_text(json.dumps({"model_type": "own"} | settings | {"auto_map": auto_map}))
    if not with_file:
        (folder / "tokenizer.json").rename(folder / "vocab.json")
    arguments = ["init", "--bank", str(tmp_path / "bank"), "--base-model", "x", "--tokenizer", str(folder)]
    result = CliRunner().invoke(cli, arguments, input="y\n" * 5)
    assert not ran.exists()
    assert "[y/N]" not in result.output
    if with_file and file == "config.json":  # the model has code of its own, its tokenizer has none
        assert result.exit_code == 0
        return
    assert result.exit_code == 1
    assert not (tmp_path / "bank").exists()
    if with_file:
        assert "never run" in result.stderr
        # The advice: a folder with tokenizer.json and nothing else.
        (tmp_path / "alone").mkdir()
        shutil.copy(folder / "tokenizer.json", tmp_path / "alone")
        assert BankTokenizer(tmp_path / "alone").encode(TEXTS) == [plain.encode(text).ids for text in TEXTS]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("./nowhere", "no such folder"),
        ("/nowhere/at/all", "no such folder"),
        ("a/b/c", "no such folder"),
        ("../up", "no such folder"),
        ("~/nowhere/tok", "no such folder"),
    ],
)
def test_a_folder_that_is_not_there_is_called_one(source: str, message: str) -> None:
    with pytest.raises(TokenizerError, match=message) as caught:
        tokenizer_files(source)
    assert str(caught.value).startswith(source)


def test_a_file_is_not_taken_for_its_folder(tmp_path: Path) -> None:
    folder = write(tmp_path / "t", byte_tokenizer(pre_tokenizers.ByteLevel()))
    with pytest.raises(TokenizerError, match="is a file; pass the folder"):
        BankTokenizer(folder / "tokenizer.json")


def test_ids_without_bound_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "t", byte_tokenizer(pre_tokenizers.ByteLevel()))
    found = json.loads((folder / "tokenizer.json").read_text())
    found["model"]["vocab"]["far"] = 2**32 - 1
    (folder / "tokenizer.json").write_text(json.dumps(found))
    with pytest.raises(TokenizerError, match=r"4,294,967,296 ids.*tokenizer\.json"):
        BankTokenizer(folder)


def test_a_regular_expression_that_takes_for_ever_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose every match is just below the limit of steps that the library has of its own."""
    folder = tmp_path / "slow"
    folder.mkdir()
    byte_tokenizer(pre_tokenizers.Split(Regex("(a+)+$"), "isolated")).save(str(folder / "tokenizer.json"))
    tokenizer = BankTokenizer(folder)
    texts = ["a" * 19 + "!"] * 60  # some seconds
    monkeypatch.setattr(encoders, "_LEAST_SECONDS", 0.2)
    for _ in range(2):  # nor is it begun a second time
        start = time.monotonic()
        with pytest.raises(TokenizerError, match="took more than 0 s for 1,200 characters") as caught:
            tokenizer.count(texts, "data")
        assert time.monotonic() - start < 2
        assert str(folder) in str(caught.value)
    assert tokenizer._encoder in encoders._BUSY
    other = BankTokenizer(write_pieces(tmp_path / "other"))
    assert other.encode(["a cat"])
