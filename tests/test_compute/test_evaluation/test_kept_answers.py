"""Kept answers are those of the same model, tokens that end a text, tokenizer and dtype, and of no other."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from bankdb.bank import AdapterBank
from bankdb.errors import BankError
from bankdb.records import GenerationKey, GenerationRecord
from compute.evaluation.evaluate import EvaluationOptions, evaluate
from compute.evaluation.records import Evaluation
from compute.generation.base_model import earlier_fingerprint, end_ids, model_fingerprint
from tests.support.banks.recorded_progress import RecordedProgress
from tests.support.banks.tiny_bank import BASE, NAMES, copy_pairs, make_bank

TARGETS = NAMES[2:4]
# So much that of 64 samples of the file one at most is of the weights, and it is their end.
PAD = 2**26


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    make_bank(root / "bank", copy_pairs(root / "pairs")).close()
    return root


@pytest.fixture
def tiny(template: Path, tmp_path: Path) -> Iterator[AdapterBank]:
    shutil.copytree(template / "bank", tmp_path / "bank")
    with AdapterBank.open(tmp_path / "bank") as opened:
        yield opened


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BASE, tmp_path / "base"))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that a model answers."""
    from compute.generation.generate import Generator

    found: list[int] = []
    answer = Generator.answer

    def counted(self: Any, *arguments: Any) -> Any:
        found.append(1)
        return answer(self, *arguments)

    monkeypatch.setattr(Generator, "answer", counted)
    return found


def run(bank: AdapterBank, base: Path, progress: RecordedProgress | None = None) -> Evaluation:
    options = EvaluationOptions(model=str(base), max_examples=3, resamples=20, targets=TARGETS)
    return evaluate(bank, [], options, progress=progress)


def change_settings(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def pad(base: Path, size: int) -> None:
    """Write the model's weights again behind so many bytes of padding."""
    file = base / "model.safetensors"
    save_file(load_file(file), file, metadata={"format": "pt", "pad": "x" * size})


def zero(base: Path) -> None:
    """Make nothing of two layers of four, where they stand."""
    with (base / "model.safetensors").open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        for name, about in json.loads(file.read(length)).items():
            if "layers.1." in name or "layers.2." in name:
                start, stop = about["data_offsets"]
                file.seek(8 + length + start)
                file.write(bytes(stop - start))


# -- what the model is ---------------------------------------------------------------------------------


@given(position=st.integers(0, 3_000_000 - 1), bit=st.integers(0, 7), part=st.sampled_from(["a", "sub/b"]))
def test_every_bit_of_every_weight_file_tells(
    tmp_path_factory: pytest.TempPathFactory, position: int, bit: int, part: str
) -> None:
    """Also where the index names a file in a folder below."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "sub").mkdir()
    (folder / "config.json").write_text("{}")
    index = {"weight_map": {"x": "a.safetensors", "y": "sub/b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("a", "sub/b"):
        (folder / f"{name}.safetensors").write_bytes(bytes(3_000_000))
    before = model_fingerprint(folder)
    with (folder / f"{part}.safetensors").open("r+b") as file:
        file.seek(position)
        file.write(bytes([1 << bit]))
    assert model_fingerprint(folder) != before
    shutil.rmtree(folder)


def test_what_loads_the_weights_tells_too(base: Path) -> None:
    found = {model_fingerprint(base)}
    change_settings(base / "config.json", rms_norm_eps=1e-5)
    found.add(model_fingerprint(base))
    (base / "adapter_config.json").write_text("{}")
    found.add(model_fingerprint(base))
    shutil.copy(base / "model.safetensors", base / "other.safetensors")
    found.add(model_fingerprint(base))
    for part in ("model", "other"):
        index = {"weight_map": {"x": f"{part}.safetensors"}}
        (base / "model.safetensors.index.json").write_text(json.dumps(index))
        found.add(model_fingerprint(base))
    assert len(found) == 6


@pytest.mark.parametrize("index", ["[]", "{", '{"weight_map": 3}', '{"weight_map": {"x": 3}}', "{}"])
def test_an_index_that_is_none_is_refused(base: Path, index: str) -> None:
    (base / "model.safetensors.index.json").write_text(index)
    with pytest.raises(BankError, match=r"index\.json: expected .*copy the model again"):
        model_fingerprint(base)


def test_a_part_that_is_not_there_is_named(base: Path) -> None:
    index = {"weight_map": {"x": "model-2.safetensors"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BankError, match=r"model-2\.safetensors: expected a file of the base model"):
        model_fingerprint(base)


@pytest.mark.torch
@pytest.mark.parametrize(
    "settings", [{"eos_token_id": 5}, {"eos_token_id": [2, 5]}, {"bos_token_id": 1}, None]
)
@pytest.mark.parametrize("config", [2, 7, None])
def test_ends_are_those_that_transformers_finds(base: Path, settings: Any, config: int | None) -> None:
    from transformers import AutoModelForCausalLM

    change_settings(base / "config.json", eos_token_id=config)
    if settings is None:
        (base / "generation_config.json").unlink()
    else:
        (base / "generation_config.json").write_text(json.dumps(settings))
    found = AutoModelForCausalLM.from_pretrained(base).generation_config.eos_token_id
    assert end_ids(base) == set(found if isinstance(found, list) else [found]) - {None}


@pytest.mark.parametrize("stated", ["</s>", [2, "x"], {"a": 2}, True, 2.5])
def test_ends_that_are_no_ids_are_refused(base: Path, stated: Any) -> None:
    change_settings(base / "generation_config.json", eos_token_id=stated)
    with pytest.raises(BankError, match=r"generation_config\.json: expected token ids as eos_token_id"):
        end_ids(base)


# -- what is generated anew ----------------------------------------------------------------------------


def ends_elsewhere(base: Path) -> None:
    change_settings(base / "generation_config.json", eos_token_id=[2, 300])


def changes_sampling(base: Path) -> None:
    change_settings(base / "generation_config.json", temperature=0.3)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("change", "anew"),
    [
        (ends_elsewhere, True),
        (zero, True),
        (lambda base: change_settings(base / "config.json", rms_norm_eps=0.1), True),
        (lambda base: pad(base, 1), True),
        (changes_sampling, False),
        (lambda base: (base / "README.md").write_text("a model"), False),
        (lambda base: (base / "model.safetensors").touch(), False),
    ],
)
def test_another_model_answers_itself(
    tiny: AdapterBank, base: Path, calls: list[int], change: Callable[[Path], None], anew: bool
) -> None:
    first = run(tiny, base)
    asked = len(calls)
    assert asked == 4
    change(base)
    second = run(tiny, base)
    assert len(calls) == asked * (2 if anew else 1)
    assert (second.identity != first.identity) == anew


@pytest.mark.torch
def test_zeroed_layers_show(tiny: AdapterBank, base: Path) -> None:
    """With a file so large that samples of it saw nothing."""
    pad(base, PAD)
    before = earlier_fingerprint(base)
    first = run(tiny, base)
    zero(base)
    assert earlier_fingerprint(base) == before
    second = run(tiny, base)
    scores = [[one.rouge for one in found.outcomes if one.system == "own"] for found in (first, second)]
    assert np.mean(scores[0]) > np.mean(scores[1]) + 0.3


@pytest.mark.torch
def test_the_tokenizer_that_ends_an_answer_tells(tiny: AdapterBank, base: Path, calls: list[int]) -> None:
    run(tiny, base)
    path = tiny.path
    change_settings(path / "tokenizer" / "tokenizer_config.json", eos_token="<pad>")
    with AdapterBank.open(path) as again:
        run(again, base)
    assert len(calls) == 8


# -- what version 0.1.0 kept ---------------------------------------------------------------------------


def earlier_key(bank: AdapterBank, base: Path) -> str:
    """What version 0.1.0 wrote."""
    digest = hashlib.sha256((base / "config.json").read_bytes())
    content = (base / "model.safetensors").read_bytes()
    digest.update(f"model.safetensors {len(content)}\n".encode())
    if len(content) <= 2**22:
        digest.update(content)
    else:
        for index in range(64):
            start = (len(content) - 2**16) * index // 63
            digest.update(content[start : start + 2**16])
    settings = {
        "generation": 1,
        "model": digest.hexdigest(),
        "tokenizer": bank.record.tokenizer_fingerprint,
        "dtype": "float32",
        "margin": 8,
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def of_0_1(progress: RecordedProgress) -> list[str]:
    return [note for note in progress.notes if "0.1.0" in note]


def as_version_0_1(bank: AdapterBank, base: Path) -> None:
    """Keep the answers that are there as version 0.1.0 would have."""
    with contextlib.closing(sqlite3.connect(bank.path / "bank.db")) as database, database:
        database.execute("UPDATE generation SET settings_sha256 = ?", (earlier_key(bank, base),))


@pytest.mark.torch
def test_answers_that_are_certainly_of_the_model_are_used(
    tiny: AdapterBank, base: Path, calls: list[int]
) -> None:
    first = run(tiny, base)
    as_version_0_1(tiny, base)
    calls.clear()
    progress = RecordedProgress()
    second = run(tiny, base, progress)
    assert calls == []
    assert of_0_1(progress) == [
        "4 answered splits that version 0.1.0 kept are used: the model and its settings are the same, byte for byte"
    ]
    assert second == dataclasses.replace(first, created=second.created)
    assert tiny.generations.count() == 8
    progress = RecordedProgress()
    assert run(tiny, base, progress).identity == first.identity
    assert (of_0_1(progress), tiny.generations.count()) == ([], 8)


@pytest.mark.torch
@pytest.mark.parametrize("change", [lambda base: pad(base, PAD), ends_elsewhere])
def test_answers_that_may_be_of_the_model_are_tried(
    tiny: AdapterBank, base: Path, calls: list[int], change: Callable[[Path], None]
) -> None:
    change(base)
    first = run(tiny, base)
    as_version_0_1(tiny, base)
    calls.clear()
    progress = RecordedProgress()
    second = run(tiny, base, progress)
    assert len(calls) == 3  # the base model and each of two adapters, on one split
    (note,) = of_0_1(progress)
    assert note.startswith(
        "4 answered splits that version 0.1.0 kept are used: of 3 that were answered again"
    )
    assert second == dataclasses.replace(first, created=second.created)


@pytest.mark.torch
def test_answers_of_another_model_are_generated_anew(tiny: AdapterBank, base: Path, calls: list[int]) -> None:
    pad(base, PAD)
    first = run(tiny, base)
    as_version_0_1(tiny, base)
    zero(base)
    calls.clear()
    progress = RecordedProgress()
    second = run(tiny, base, progress)
    assert len(calls) == 1 + 4
    (note,) = of_0_1(progress)
    assert (
        "are not used, all are generated anew: of 1 answered splits of them one comes out otherwise" in note
    )
    assert [one.rouge for one in second.outcomes] != [one.rouge for one in first.outcomes]


def test_adopting_leaves_what_is_there(bank: AdapterBank) -> None:
    def key(adapter: str, settings: str) -> GenerationKey:
        return GenerationKey(adapter * 64, "t" * 64, settings * 64)

    for one in (key("a", "1"), key("b", "1"), key("b", "2"), key("c", "3")):
        bank.generations.keep(GenerationRecord(one, (one.settings_sha256,), 3, 1.5, "then"))
    assert [bank.generations.adopt("1" * 64, "2" * 64) for _ in range(2)] == [2, 2]
    assert bank.generations.count() == 5
    expected = GenerationRecord(key("a", "2"), ("1" * 64,), 3, 1.5, "then")
    assert bank.generations.find(key("a", "2")) == expected
    found = bank.generations.find(key("b", "2"))
    assert found is not None
    assert found.texts == ("2" * 64,)
    assert bank.generations.find(key("c", "2")) is None
