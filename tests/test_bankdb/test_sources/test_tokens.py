"""Token counts against a Counter over single encodings; a fingerprint that tells tokenizers apart."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bankdb.datasets.tokenizer import BankTokenizer, TokenHistogram
from bankdb.errors import DatasetError, TokenizerError
from tests.support.banks.small_bank import WORDS

TEXT = "The quick brown fox jumps over the lazy dog. It's 3.14159 o'clock, ÀÉÎ ﬁ ½ 汉字 🙂 <s> and\n\ttabs."


@pytest.fixture(scope="module")
def bpe_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer, as most base models have, with special tokens on both sides."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT, " ".join(WORDS)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    folder = tmp_path_factory.mktemp("bpe")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def bpe(bpe_folder: Path) -> BankTokenizer:
    return BankTokenizer(bpe_folder)


def brute_force(folder: Path, texts: list[str]) -> Counter[int]:
    """One text after another, by transformers alone."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    return Counter(index for text in texts for index in tokenizer(text)["input_ids"])


def as_counter(histogram: TokenHistogram) -> Counter[int]:
    assert histogram.ids.dtype == histogram.counts.dtype == np.uint32
    assert (np.diff(histogram.ids.astype(np.int64)) > 0).all()
    assert (histogram.counts > 0).all()
    return Counter(dict(zip(histogram.ids.tolist(), histogram.counts.tolist(), strict=True)))


# -- counts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["tokenizer_folder", "bpe_folder"])
@pytest.mark.parametrize("examples", [1, 511, 512, 513, 1200])
def test_counts_equal_those_of_single_texts(
    request: pytest.FixtureRequest, which: str, examples: int
) -> None:
    folder = request.getfixturevalue(which)
    rng = random.Random(examples)
    texts = [" ".join(rng.choices([*WORDS, *TEXT.split(" ")], k=rng.randint(0, 9))) for _ in range(examples)]
    histogram = BankTokenizer(folder).count(texts, "data")
    expected = brute_force(folder, texts)
    assert as_counter(histogram) == expected
    assert histogram.tokens == expected.total()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), min_size=1, max_size=8))
def test_any_text_is_counted(bpe: BankTokenizer, bpe_folder: Path, texts: list[str]) -> None:
    assert as_counter(bpe.count(texts, "data")) == brute_force(bpe_folder, texts)


def test_special_tokens_are_counted_as_the_tokenizer_adds_them(
    tokenizer_folder: Path, bpe: BankTokenizer
) -> None:
    words = as_counter(BankTokenizer(tokenizer_folder).count(["w3 w3 other", "w4"], "data"))
    assert words == {0: 2, 1: 1, 5: 2, 6: 1}  # <s> for each text, <unk> for the other word
    counted = as_counter(bpe.count(["", "a", "b"], "data"))
    assert (counted[0], counted[1]) == (3, 3)


def test_nothing_is_cut_off_or_padded(bpe_folder: Path, tmp_path: Path) -> None:
    """Whatever the tokenizer's files say of truncation and padding: all of a text counts, and no more."""
    shutil.copytree(bpe_folder, tmp_path / "t")
    edit(tmp_path / "t", truncate)
    texts = [" ".join(WORDS), "short"]
    histogram = BankTokenizer(tmp_path / "t").count(texts, "data")
    assert as_counter(histogram) == brute_force(bpe_folder, texts)
    assert histogram.tokens > 200


def test_threads_may_share_a_tokenizer(bpe_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(bpe_folder, tmp_path / "t")
    edit(tmp_path / "t", truncate)
    shared = BankTokenizer(tmp_path / "t")
    texts = [[" ".join(WORDS[start:])] * 200 for start in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda part: as_counter(shared.count(part, "data")), texts))
    assert found == [as_counter(shared.count(part, "data")) for part in texts]


def test_a_dataset_without_tokens_is_refused(bpe_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(bpe_folder, tmp_path / "t")
    edit(tmp_path / "t", lambda found: found.update(post_processor=None))
    plain = BankTokenizer(tmp_path / "t")
    assert plain.count(["", "a"], "data").tokens == 1
    for texts in ([], ["", ""]):
        with pytest.raises(DatasetError, match=rf"^data: its {len(texts)} examples have no tokens"):
            plain.count(texts, "data")


def test_ids_outside_the_vocabulary_are_refused(bpe: BankTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe, "vocabulary", 100)
    with pytest.raises(DatasetError, match=r"^data: .* outside its vocabulary of 100"):
        bpe.count([TEXT], "data")


def test_more_than_uint32_holds_is_refused(bpe: BankTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    huge = np.zeros(bpe.vocabulary, dtype=np.int64)
    huge[7] = 2**32 - 1
    for more, refused in ((0, False), (1, True)):
        monkeypatch.setattr(np, "bincount", lambda ids, minlength, more=more: huge + more * (huge > 0))
        if refused:
            with pytest.raises(DatasetError, match="more than"):
                bpe.count(["a"], "data")
        else:
            histogram = bpe.count(["a"], "data")
            assert (histogram.counts.tolist(), histogram.tokens) == ([2**32 - 1], 2**32 - 1)


def test_the_vocabulary_has_room_for_added_tokens(
    bpe: BankTokenizer, bpe_folder: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(bpe_folder))
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(str(tmp_path / "t"))
    more = BankTokenizer(tmp_path / "t")
    assert more.vocabulary == bpe.vocabulary + 1
    assert as_counter(more.count(["<extra>"], "data"))[bpe.vocabulary] == 1


# -- fingerprint ------------------------------------------------------------------------------------

Edit = Callable[[dict[str, Any]], None]


def edit(folder: Path, change: Edit) -> None:
    """Change a tokenizer's own file, as somebody might by hand."""
    found = json.loads((folder / "tokenizer.json").read_text())
    change(found)
    (folder / "tokenizer.json").write_text(json.dumps(found))


def truncate(found: dict[str, Any]) -> None:
    found["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    found["padding"] = {
        "strategy": {"Fixed": 50},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<s>",
    }


def swap(one: str, other: str) -> Edit:
    def change(found: dict[str, Any]) -> None:
        vocabulary = found["model"]["vocab"]
        vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]

    return change


@pytest.mark.parametrize("which", ["tokenizer_folder", "bpe_folder"])
def test_the_fingerprint_is_stable(request: pytest.FixtureRequest, tmp_path: Path, which: str) -> None:
    first = BankTokenizer(request.getfixturevalue(which))
    first.save(tmp_path / "once")
    once = BankTokenizer(tmp_path / "once")
    once.save(tmp_path / "twice")
    twice = BankTokenizer(tmp_path / "twice")
    assert first.fingerprint == once.fingerprint == twice.fingerprint
    assert first.vocabulary == twice.vocabulary
    assert len(first.fingerprint) == 64
    # It does not depend on what has no part in tokenizing.
    edit(tmp_path / "twice", truncate)
    assert BankTokenizer(tmp_path / "twice").fingerprint == first.fingerprint


WORD_CHANGES: dict[str, Edit] = {
    "two words swapped": swap("w10", "w11"),
    "a word renamed": lambda found: found["model"]["vocab"].update(zzz=found["model"]["vocab"].pop("w150")),
    "a word more": lambda found: found["model"]["vocab"].update(zzz=202),
    "lower case": lambda found: found.update(normalizer={"type": "Lowercase"}),
    "punctuation apart": lambda found: found.update(pre_tokenizer={"type": "Whitespace"}),
    "not split": lambda found: found.update(pre_tokenizer=None),
    "nothing in front": lambda found: found.update(post_processor=None),
    "behind instead": lambda found: found["post_processor"]["single"].reverse(),
    "another unknown": lambda found: found["model"].update(unk_token="<s>"),
}
BPE_CHANGES: dict[str, Edit] = {
    "two tokens swapped": swap("a", "b"),
    "a merge less": lambda found: found["model"]["merges"].pop(),
    "merges in another order": lambda found: found["model"]["merges"].reverse(),
    "lower case": lambda found: found.update(normalizer={"type": "Lowercase"}),
    "compatible characters": lambda found: found.update(normalizer={"type": "NFKC"}),
    "composed characters": lambda found: found.update(normalizer={"type": "NFC"}),
    "space in front": lambda found: found["pre_tokenizer"].update(add_prefix_space=True),
    "digits apart": lambda found: found.update(
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, found["pre_tokenizer"]],
        }
    ),
    "nothing behind": lambda found: found["post_processor"]["single"].pop(),
}


@pytest.mark.parametrize("name", WORD_CHANGES)
def test_changed_word_tokenizers_have_other_fingerprints(
    tokenizer_folder: Path, tmp_path: Path, name: str
) -> None:
    differs(tokenizer_folder, tmp_path / "t", WORD_CHANGES[name])


@pytest.mark.parametrize("name", BPE_CHANGES)
def test_changed_bpe_tokenizers_have_other_fingerprints(bpe_folder: Path, tmp_path: Path, name: str) -> None:
    differs(bpe_folder, tmp_path / "t", BPE_CHANGES[name])


def differs(folder: Path, changed: Path, change: Edit) -> None:
    shutil.copytree(folder, changed)
    edit(changed, change)
    assert BankTokenizer(changed).fingerprint != BankTokenizer(folder).fingerprint


# -- loading ----------------------------------------------------------------------------------------


def test_what_is_no_tokenizer_is_refused(tmp_path: Path, tokenizer_folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("cut", "rubbish"):
        shutil.copytree(tokenizer_folder, tmp_path / name)
    whole = (tokenizer_folder / "tokenizer.json").read_bytes()
    (tmp_path / "cut" / "tokenizer.json").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "rubbish" / "tokenizer.json").write_bytes(b"[]")
    for name in ("empty", "cut", "rubbish", "not there"):
        with pytest.raises(TokenizerError) as caught:
            BankTokenizer(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "tokenizer.json" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_sentencepiece_model_alone_is_enough(tmp_path: Path) -> None:
    """Many base models come with `tokenizer.model` and no `tokenizer.json`."""
    import json

    import sentencepiece

    text = tmp_path / "text.txt"
    text.write_text(
        "".join(f"the {a} sees the {b}\n" for a in ("cat", "dog", "bird") for b in ("tree", "house"))
    )
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=40,
        model_type="bpe",
        minloglevel=2,
    )
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = BankTokenizer(folder)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    expected = processor.encode("the cat sees")
    found = tokenizer.count(["the cat sees"], "text")
    assert set(expected) <= set(found.ids.tolist())
    assert found.tokens - len(expected) in (0, 1)  # with <s> or without, as the class adds it
