"""Adapters on a user's own test examples, against PEFT; what is kept, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compute
from bankdb.bank import AdapterBank
from bankdb.datasets.held_out import HeldOut
from bankdb.datasets.tokenizer import BankTokenizer
from bankdb.errors import AdapterError, DatasetError, ParameterError
from compute.assessment.assess import check_test
from compute.assessment.measured import add_measured
from compute.assessment.records import Assessment
from compute.generation.adapters import distinct_names, read_given, stated_base_model
from compute.generation.prompts import encode_prompts
from tests.support.banks.recorded_progress import RecordedProgress
from tests.support.banks.tiny_bank import BASE, NAMES, TINY, copy_pairs, make_bank

NEW = TINY / "new" / "lists_ends"
FEW = compute.AssessmentOptions(
    model=BASE, max_examples=12, resamples=200, machine=compute.Machine(device="cpu")
)
OWN = TINY / "bank" / "adapters" / NAMES[0]
OTHER = TINY / "bank" / "adapters" / "lists_first"


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[AdapterBank]:
    with make_bank(tmp_path / "bank", copy_pairs(tmp_path / "pairs")) as bank:
        yield bank


def other_adapter(folder: Path, rank: int, modules: list[str]) -> Path:
    """One that PEFT itself makes: of another rank, other modules and rank-stabilised scaling."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    config = LoraConfig(r=rank, lora_alpha=6, target_modules=modules, use_rslora=True, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(folder)
    return folder


def answers_of_peft(folder: Path, found: Assessment) -> list[str]:
    """What transformers and PEFT answer, one by one."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()
    model: Any = PeftModel.from_pretrained(base, folder)
    tokenizer = BankTokenizer(BASE)
    most = encode_prompts(tokenizer, HeldOut.of(found.inputs, found.references), "test").new_tokens
    answers = []
    for ids in (torch.tensor([ids]) for ids in tokenizer.encode(found.inputs)):
        mask = torch.ones_like(ids)
        out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=most, do_sample=False)
        answers.append(tokenizer.decode(out[0, ids.shape[1] :].tolist()))
    return answers


@pytest.mark.torch
def test_anybodys_adapter_answers_as_in_peft(tmp_path: Path) -> None:
    """Of another rank and other modules beside one of the bank's: each from the base model's own weights."""
    foreign = other_adapter(tmp_path / "foreign", 3, ["o_proj", "down_proj"])
    found = compute.assess([foreign, NEW / "adapter"], NEW / "test.jsonl", FEW)
    assert [one.name for one in found.systems] == ["base model", "foreign", "adapter"]
    for folder, one in zip([foreign, NEW / "adapter"], found.systems[1:], strict=True):
        assert list(one.answers) == answers_of_peft(folder, found)
        assert len(set(one.answers)) > 1
    alone = compute.assess(NEW / "adapter", NEW / "test.jsonl", FEW)
    assert alone.systems[1].answers == found.systems[2].answers
    assert alone.systems[0].answers == found.systems[0].answers
    assert alone.systems[1].rouge > alone.systems[0].rouge + 0.2
    assert "yes, +" in alone.sentences()[0]


@pytest.mark.torch
def test_one_after_another_answers_as_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [OWN, NEW / "adapter"]
    together = compute.assess(folders, NEW / "test.jsonl", FEW)
    monkeypatch.setattr("compute.assessment.answers._COPIES_BYTES", 0)
    apart = compute.assess(folders, NEW / "test.jsonl", FEW)
    assert [one.answers for one in apart.systems] == [one.answers for one in together.systems]


@pytest.mark.torch
def test_a_bank_keeps_the_answers_and_is_compared_with(
    bank: AdapterBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = RecordedProgress()
    found = compute.assess(
        NEW / "adapter",
        NEW / "test.jsonl",
        FEW,
        bank=bank,
        compare=["uniform", "nearest"],
        data=NEW / "train.jsonl",
        progress=told,
    )
    assert [one.name for one in found.systems] == ["base model", "adapter", "uniform", "nearest"]
    assert bank.generations.count() == 4
    nearest = compute.predict(bank, NEW / "train.jsonl", compute.PredictionOptions(approach="nearest"))
    (source,) = nearest.sources()
    assert found.system("nearest").about.startswith(f"{source[0]}, of distance ")
    assert "uniform: the mean of 5 adapters of the bank" in found.notes
    # The same adapter as a folder: its answers are those that are kept under its weights.
    monkeypatch.setattr("compute.assessment.answers.answering_model", None)
    source_folder = TINY / "bank" / "adapters" / source[0]
    again = compute.assess(source_folder, NEW / "test.jsonl", FEW, bank=bank)
    assert again.systems[1].answers == found.system("nearest").answers
    assert again.systems[0].answers == found.systems[0].answers


@pytest.mark.torch
def test_without_training_examples_the_inputs_say_what_is_nearest(bank: AdapterBank) -> None:
    found = compute.assess(NEW / "adapter", NEW / "test.jsonl", FEW, bank=bank, compare=["nearest"])
    assert any("by the inputs of the 12 test examples alone" in note for note in found.notes)
    # The very data of an entry is not compared with itself.
    own = TINY / "bank" / "datasets" / NAMES[0]
    found = compute.assess(OWN, own / "test.jsonl", FEW, bank=bank, compare=["nearest"], data=own)
    assert f"{NAMES[0]} left out" in found.system("nearest").about


@pytest.mark.torch
def test_figures_go_into_the_folder(bank: AdapterBank, tmp_path: Path) -> None:
    folder = compute.predict(bank, NEW / "train.jsonl").save(tmp_path / "made")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert b"It has not been evaluated" in before["README.md"]
    found = compute.assess(folder, NEW / "test.jsonl", FEW, bank=bank, compare=["uniform"])
    add_measured(folder, found, "made")
    record = json.loads((folder / "provenance.json").read_text())
    assert record.pop("measured") == found.measured("made")
    assert record == json.loads(before["provenance.json"])
    card = (folder / "README.md").read_text()
    assert "It has not been evaluated" not in card
    assert f"| this adapter | {found.system('made').rouge:.3f} |" in card
    assert "On 12 test examples of `test.jsonl`" in card
    assert {path.name for path in folder.iterdir()} == before.keys()
    assert (folder / "adapter_model.safetensors").read_bytes() == before["adapter_model.safetensors"]
    with pytest.raises(AdapterError, match="expected the record of a predicted adapter"):
        add_measured(OWN, found, "made")


@pytest.mark.torch
def test_what_the_card_says_of_transformers_is_so(
    bank: AdapterBank, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = compute.predict(bank, NEW / "train.jsonl").save(tmp_path / "made")
    found = compute.assess(folder, NEW / "test.jsonl", FEW)
    for code in re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL):
        code = code.replace('"tiny-bank/base"', repr(str(BASE))).replace("FOLDER", str(folder))
        code = code.replace('"PROMPT"', repr(found.inputs[0]))
        capsys.readouterr()
        exec(compile(code, "README.md", "exec"), {})
        if "generate" in code:
            assert found.systems[1].answers[0].strip() in capsys.readouterr().out


@pytest.mark.torch
def test_what_is_no_question_is_refused(bank: AdapterBank, tmp_path: Path) -> None:
    test = NEW / "test.jsonl"
    with pytest.raises(ParameterError, match="none is there; pass --bank"):
        compute.assess(OWN, test, FEW, compare=["uniform"])
    with pytest.raises(ParameterError, match="expected uniform or nearest, found 'oracle'"):
        compute.assess(OWN, test, FEW, bank=bank, compare=["oracle"])
    with pytest.raises(ParameterError, match="goes with compare"):
        compute.assess(OWN, test, FEW, bank=bank, data=NEW / "train.jsonl")
    with pytest.raises(ParameterError, match="at least one folder"):
        compute.assess([], test, FEW)
    with pytest.raises(ParameterError, match="given twice"):
        compute.assess([OWN, OWN / "." / ".." / OWN.name], test, FEW)
    with pytest.raises(AdapterError, match="no such file"):
        compute.assess(tmp_path, test, FEW)
    with pytest.raises(DatasetError, match="not found"):
        compute.assess(OWN, tmp_path / "none.jsonl", FEW)
    narrow = shutil.copytree(OWN, tmp_path / "narrow")
    config = json.loads((narrow / "adapter_config.json").read_text())
    (narrow / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "a/b"}))
    with pytest.raises(ParameterError, match=r"narrow states base model 'a/b', the bank is of"):
        compute.assess(narrow, test, FEW, bank=bank, compare=["uniform"])
    told = RecordedProgress()
    assert len(compute.assess(narrow, test, FEW, bank=bank, progress=told)) == 12
    assert any("is not used: narrow states base model" in note for note in told.notes)
    assert bank.generations.count() == 0


@pytest.mark.torch
def test_an_adapter_that_does_not_fit_is_named_before_anything_is_generated(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    wide = shutil.copytree(OWN, tmp_path / "wide")
    tensors = load_file(wide / "adapter_model.safetensors")
    wider = {
        name: np.concatenate([one, one], axis=1) if "lora_A" in name else one for name, one in tensors.items()
    }
    save_file(wider, wide / "adapter_model.safetensors")
    told = RecordedProgress()
    with pytest.raises(AdapterError, match=r"^wide: .*the adapters fit a weight of .*pass the base model"):
        compute.assess([OWN, wide], NEW / "test.jsonl", FEW, progress=told)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"input": "a", "output": ""}, {"input": "b", "output": [" "]}],
            "expected answers in column 'output'",
        ),
        ([{"input": "a", "output": "x\0"}], "NUL"),
        ([{"input": "a", "label": "x"}], "no column 'output'"),
        ([{"input": "a", "output": {"a": "x"}}] * 2, "'output' is an object"),
    ],
)
def test_test_examples_that_are_refused(tmp_path: Path, rows: list[dict[str, object]], message: str) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DatasetError, match=message):
        check_test(file)


@pytest.mark.torch
def test_test_examples_are_read_no_further_than_needed(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text('{"input": "a", "output": "b", "why": "some text"}\n' * 3 + "no JSON\n")
    split = check_test(file, compute.AssessmentOptions(max_examples=3))
    assert len(split) == 3
    assert "text in 'why' is not used" in split.notes[0]
    with pytest.raises(DatasetError, match="line 4: invalid JSON"):
        check_test(file, compute.AssessmentOptions(max_examples=None))
    with pytest.raises(ParameterError, match="lower --resamples"):
        check_test(file, compute.AssessmentOptions(max_examples=3, resamples=10**9))


def test_names_and_hashes(tmp_path: Path) -> None:
    folders = [tmp_path / "a" / "x", tmp_path / "b" / "x", tmp_path / "y", tmp_path / "uniform"]
    for folder in folders:
        shutil.copytree(OWN, folder)
    names = distinct_names(folders, ("uniform",))
    assert names == [str(folders[0]), str(folders[1]), "y", str(folders[3])]
    first, second = read_given(folders[0]), read_given(folders[1])
    assert first.sha256 == second.sha256 != read_given(OTHER).sha256
    config = json.loads((folders[2] / "adapter_config.json").read_text())
    (folders[2] / "adapter_config.json").write_text(
        json.dumps(config | {"lora_alpha": config["lora_alpha"] + 1, "base_model_name_or_path": "other/one"})
    )
    third = read_given(folders[2])
    assert third.sha256 != first.sha256
    assert stated_base_model([first, second]) == first.base_model
    with pytest.raises(ParameterError, match="several base models"):
        stated_base_model([first, third])
