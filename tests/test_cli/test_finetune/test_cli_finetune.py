"""`bank finetune`: what it writes and says, that PEFT loads it and answers alike, and what it refuses."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import pytest

import bankdb
import compute
from bankdb.datasets.held_out import HeldOut
from bankdb.peft.weights import load_adapter
from cli.main import cli
from tests.support.banks.stored_files import digests
from tests.support.banks.tiny_bank import BASE, NAMES, TINY, copy_pairs, make_bank

pytestmark = pytest.mark.torch

DATA = TINY / "new" / "lists_ends"
FIXED = ("--threads", "1", "--train-dtype", "float32", "--steps", "2")


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Commands here write nothing into it."""
    root = tmp_path_factory.mktemp("tiny")
    make_bank(root / "bank", copy_pairs(root / "pairs")).close()
    return root / "bank"


def run(bank: Path, data: Path, *arguments: str | Path, model: Path = BASE) -> click.testing.Result:
    words = ["finetune", "--bank", bank, data, "--model", model, *FIXED, *arguments]
    return click.testing.CliRunner().invoke(cli, [str(word) for word in words])


def record_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "provenance.json").read_text())
    return found


@pytest.fixture(scope="module")
def trained(bank: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A folder that was written from a prediction, and what was said."""
    out = tmp_path_factory.mktemp("trained") / "out"
    done = run(bank, DATA, "--steps", "5", "--out", out)
    assert done.exit_code == 0, done.output
    return out, done.stdout, done.stderr


def test_what_is_said(trained: tuple[Path, str, str]) -> None:
    out, said, told = trained
    losses = record_of(out)["finetuned"]["held_out_losses"]
    kept = record_of(out)["finetuned"]["step_kept"]
    assert kept == int(min(losses, key=lambda step: losses[step])) > 0
    assert (
        f"step {kept} is kept: held-out loss {losses['0']:.4g} -> {losses[str(kept)]:.4g} (6 examples)"
        in said
    )
    assert f"wrote {out}/, which PEFT and vLLM load" in said
    assert re.search(
        r"trains from the predicted adapter on 26 examples, with 6 held out; base model in float32", told
    )
    assert re.search(r"about [\d.]+ GiB of memory needed, [\d.]+ GiB there", told)
    assert re.search(
        r"a step takes about [\d.]+ m?s and memory is [\d.]+ GiB; about .* left for 4 steps", told
    )
    assert sorted(item.name for item in out.parent.iterdir()) == ["out"]


def test_what_is_written_down(bank: Path, trained: tuple[Path, str, str], tmp_path: Path) -> None:
    """All of the prediction's record, and what was trained; nothing of the machine or the time."""
    out = trained[0]
    record = record_of(out)
    found = record.pop("finetuned")
    with bankdb.open(bank) as opened:
        compute.predict(opened, DATA).save(tmp_path / "predicted")
    assert record == record_of(tmp_path / "predicted")
    rows = [json.loads(line) for line in (DATA / "train.jsonl").read_text().splitlines()]
    assert found["steps"] == len(found["losses"]) == 5
    assert list(found["held_out_losses"]) == ["0", "1", "2", "4", "5"]
    places = [*found["examples"]["training"], *found["examples"]["held_out"]]
    assert len(set(places)) == 32
    assert max(places) < len(rows)
    assert (found["seed"], found["batch_size"], found["threads"]) == (0, 8, 1)
    assert found["optimizer"]["learning_rate"] == compute.FinetuneOptions().learning_rate
    assert found["base_model"]["dtype"] == "float32"
    assert found["start"]["kind"] == "predicted"
    assert str(tmp_path.parent) not in (out / "provenance.json").read_text()
    card = (out / "README.md").read_text()
    assert f"Of 5 steps on 26 of its examples, step {found['step_kept']} is kept" in card
    assert "was not trained" not in card


def test_the_same_command_writes_the_same_bytes(
    bank: Path, trained: tuple[Path, str, str], tmp_path: Path
) -> None:
    assert run(bank, DATA, "--steps", "5", "--out", tmp_path / "out").exit_code == 0
    assert digests(tmp_path / "out") == digests(trained[0])
    assert run(bank, DATA, "--steps", "5", "--seed", "1", "--out", tmp_path / "other").exit_code == 0
    assert (
        record_of(tmp_path / "other")["finetuned"]["losses"] != record_of(trained[0])["finetuned"]["losses"]
    )


def test_peft_loads_it_whole_and_answers_as_our_evaluation(
    bank: Path, trained: tuple[Path, str, str]
) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from peft.utils import load_peft_weights, set_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    from compute.generation.generate import load_generator
    from compute.generation.prompts import encode_prompts

    out = trained[0]
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig.from_pretrained(out)).eval()
    loaded = set_peft_model_state_dict(model, load_peft_weights(str(out)))
    assert loaded.unexpected_keys == []
    assert [key for key in loaded.missing_keys if "lora" in key] == []
    adapter = load_adapter(out)
    rows = [json.loads(line) for line in (DATA / "train.jsonl").read_text().splitlines()][:8]
    split = HeldOut.of([row["input"] for row in rows], [row["output"] for row in rows])
    with bankdb.open(bank) as opened:
        tokenizer = opened.tokenizer
        prompts = encode_prompts(tokenizer, split, "x")
        generator = load_generator(BASE, adapter.layout, tokenizer, device="cpu")
    ours = generator.answer(prompts, adapter.layout.unflatten(adapter.vector), adapter.config.scaling).texts
    theirs = []
    for ids in prompts.ids:
        given = torch.tensor([ids])
        with torch.no_grad():
            answer = model.generate(
                input_ids=given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=prompts.new_tokens,
                do_sample=False,
            )
        theirs.append(tokenizer.decode(answer[0, len(ids) :].tolist()))
    assert list(ours) == theirs
    assert list(ours) != list(generator.answer(prompts).texts)


# -- starts --------------------------------------------------------------------------------------------


def test_from_zero_from_the_bank_and_from_a_folder(bank: Path, tmp_path: Path) -> None:
    losses = {}
    for start in ("zero", "records_city", TINY / "bank" / "adapters" / "records_city"):
        out = tmp_path / f"out-{Path(start).parent.name}-{Path(start).name}"
        done = run(bank, DATA, "--start", start, "--dtype", "float32", "--out", out)
        assert done.exit_code == 0, done.output
        record = record_of(out)
        assert record["dtype"] == "float32"
        losses[str(start)] = record["finetuned"]["losses"]
    # The same adapter, by its name and by its folder.
    assert losses["records_city"] == losses[str(TINY / "bank" / "adapters" / "records_city")]
    assert losses["zero"] != losses["records_city"]
    kinds = {record_of(folder)["finetuned"]["start"]["kind"] for folder in tmp_path.iterdir()}
    assert kinds == {"zero", "adapter", "folder"}
    named = record_of(tmp_path / "out--records_city")["sources"]
    assert [(source["name"], source["coefficient"]) for source in named] == [("records_city", 1.0)]


def test_from_what_was_trained_before(bank: Path, trained: tuple[Path, str, str], tmp_path: Path) -> None:
    done = run(bank, DATA, "--start", trained[0], "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    first, then = (record_of(folder)["finetuned"] for folder in (trained[0], tmp_path / "out"))
    kept = first["held_out_losses"][str(first["step_kept"])]
    # But for what writing it in float16 rounded.
    assert then["held_out_losses"]["0"] == pytest.approx(kept, rel=1e-2)


def test_a_start_in_delta_space_has_its_own_rank(bank: Path, tmp_path: Path) -> None:
    done = run(bank, DATA, "--space", "delta", "--rank", "3", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    adapter = load_adapter(tmp_path / "out")
    assert adapter.layout.rank == adapter.config.rank == record_of(tmp_path / "out")["rank"] == 3
    assert "retained_energy" in record_of(tmp_path / "out")


def test_a_start_that_is_not_beaten_is_kept(bank: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    start = ["--start", "records_city", "--dtype", "float32"]
    done = run(bank, DATA, *start, "--learning-rate", "5", "--out", out)
    assert done.exit_code == 0, done.output
    assert "the start is kept: held-out loss" in done.stdout
    np.testing.assert_array_equal(
        load_adapter(out).vector, load_adapter(TINY / "bank" / "adapters" / "records_city").vector
    )
    assert "this is the start as it was" in (out / "README.md").read_text()


def test_a_budget_is_told_in_steps(bank: Path, tmp_path: Path) -> None:
    words = [
        "finetune",
        "--bank",
        bank,
        DATA,
        "--model",
        BASE,
        "--budget",
        "2s",
        "--out",
        tmp_path / "out",
        "--json",
    ]
    done = click.testing.CliRunner().invoke(cli, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["steps"] == len(told["losses"]) >= 1
    assert told["step_kept"] in map(int, told["held_out_losses"])
    assert told["train_dtype"] in ("float32", "bfloat16")


def test_a_test_at_the_end(bank: Path, tmp_path: Path) -> None:
    test = ["--test", DATA / "test.jsonl", "--max-examples", "4"]
    done = run(bank, DATA, *test, "--json", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["step_kept"] in (0, 1, 2)
    assert told["assessment"]
    assert record_of(tmp_path / "out")["measured"]["test"]["examples"] == 4
    card = (tmp_path / "out" / "README.md").read_text()
    assert "## Measured" in card
    assert "of its examples" in card
    done = run(bank, DATA, "--test", tmp_path / "nothing.jsonl", "--out", tmp_path / "other")
    assert done.exit_code == 1
    assert not (tmp_path / "other").exists()


def test_steps_in_parts_where_memory_asks(
    bank: Path, trained: tuple[Path, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compute.finetuning import finetune, resources

    size = resources.model_size(BASE)
    adapter = load_adapter(trained[0]).layout.size
    longest = record_of(trained[0])["finetuned"]["examples"]["longest_tokens"]
    fixed = size.parameters * 4 + 36 * adapter + resources._BESIDE
    room = fixed + int(3.5 * size.example_bytes(longest, longest, "float32"))
    monkeypatch.setattr(finetune, "usable_memory", lambda asked, device: room)
    done = run(bank, DATA, "--steps", "5", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    parts, whole = (record_of(folder)["finetuned"] for folder in (tmp_path / "out", trained[0]))
    assert 1 <= parts["examples_at_once"] < whole["examples_at_once"] == 8
    assert f", {parts['examples_at_once']} examples at a time, " in done.stderr
    assert parts["losses"] == pytest.approx(whole["losses"], rel=1e-2)


def test_from_python(bank: Path, trained: tuple[Path, str, str], tmp_path: Path) -> None:
    options = compute.FinetuneOptions(steps=5, threads=1, train_dtype="float32", model=str(BASE))
    with bankdb.open(bank) as opened:
        made = compute.finetune(opened, DATA, options)
    assert made.sentence() in repr(made)
    assert "held-out loss" in made._repr_html_()
    made.save(tmp_path / "out")
    assert digests(tmp_path / "out") == digests(trained[0])


# -- what is refused -----------------------------------------------------------------------------------


def written(folder: Path, rows: list[dict[str, object]]) -> Path:
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def copied_model(folder: Path, change: Callable[[Path], object]) -> Path:
    shutil.copytree(BASE, folder)
    change(folder)
    return folder


def spoilt_weights(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "mlp.up_proj" in name)
    weights[name] = weights[name].copy()
    weights[name][0, 0] = np.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def other_shapes(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = json.loads((BASE / "config.json").read_text())
    small = LlamaConfig(**{**config, "hidden_size": 32, "head_dim": 8, "intermediate_size": 48})
    model = AutoModelForCausalLM.from_config(small, dtype=torch.float32)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder)


def other_tokenizer(folder: Path) -> None:
    found = json.loads((folder / "tokenizer.json").read_text())
    text = json.dumps(found)
    vocabulary = found["model"]["vocab"]
    words = [word for word in vocabulary if word.isalpha()]
    swapped = {**vocabulary, **dict(zip(words, [vocabulary[word] for word in reversed(words)], strict=True))}
    found["model"]["vocab"] = swapped
    assert json.dumps(found) != text
    (folder / "tokenizer.json").write_text(json.dumps(found))


def pickled(folder: Path) -> Path:
    shutil.copytree(TINY / "bank" / "adapters" / "records_city", folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    return folder


def of_another_model(folder: Path) -> Path:
    shutil.copytree(TINY / "bank" / "adapters" / "records_city", folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": "some/other"})
    )
    return folder


GOOD = [{"input": f"say {i}: ", "output": "yes"} for i in range(12)]
# What is wrong: arguments in place of the usual ones, and what the one line says.
REFUSED: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "no answers": (
        lambda at: {"data": written(at / "d", [{"input": f"a{i}", "output": ""} for i in range(9)])},
        "expected answers to learn from, found none",
    ),
    "one example": (
        lambda at: {"data": written(at / "d", GOOD[:1])},
        "expected at least 5 different examples",
    ),
    "one example many times": (lambda at: {"data": written(at / "d", GOOD[:1] * 20)}, "different examples"),
    "answers longer than the context": (
        lambda at: {"data": written(at / "d", [*GOOD[:9], {"input": "x", "output": "word " * 300}])},
        "the base model has 256 positions",
    ),
    "another column": (lambda at: {"more": ["--output-column", "answer"]}, "answer"),
    "no data": (lambda at: {"data": at / "nothing.jsonl"}, "nothing.jsonl"),
    "no model": (lambda at: {"model": at}, "expected a base model with config.json"),
    "a model of other shapes": (
        lambda at: {"model": copied_model(at / "m", other_shapes)},
        "by the bank's adapters",
    ),
    "a damaged model": (
        lambda at: {
            "model": copied_model(at / "m", lambda m: (m / "model.safetensors").write_bytes(b"x" * 99))
        },
        "expected weights in safetensors",
    ),
    "another tokenizer": (
        lambda at: {"model": copied_model(at / "m", other_tokenizer)},
        "expected the bank's tokenizer, found one that gives the examples other token ids",
    ),
    "losses that are no numbers": (
        lambda at: {"model": copied_model(at / "m", spoilt_weights)},
        "the loss on held-out examples is nan after step 0",
    ),
    "no memory": (lambda at: {"more": ["--memory", "300MiB"]}, "GiB may be used"),
    "an unknown start": (lambda at: {"more": ["--start", "nobody"]}, "expected predicted, zero, an adapter"),
    "a start in a pickle": (lambda at: {"more": ["--start", pickled(at / "p")]}, "a pickle found"),
    "a start of another model": (
        lambda at: {"more": ["--start", of_another_model(at / "p")]},
        "'some/other' found",
    ),
    "too few asked for": (lambda at: {"more": ["--examples", "3"]}, "examples: expected at least 5"),
    "no time": (lambda at: {"more": ["--budget", "soon"], "steps": False}, "budget: expected a time such as"),
    "a rate that is none": (lambda at: {"more": ["--learning-rate", "nan"]}, "learning_rate"),
    "a rank without delta": (lambda at: {"more": ["--rank", "3"]}, "rank: goes with space delta"),
    "no GPU": (lambda at: {"more": ["--device", "cuda"]}, "torch finds no GPU"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_is_one_line_and_nothing_is_written(bank: Path, tmp_path: Path, what: str) -> None:
    make, message = REFUSED[what]
    (tmp_path / "given").mkdir()
    (tmp_path / "work").mkdir()
    given = make(tmp_path / "given")
    words = ["finetune", "--bank", bank, given.get("data", DATA), "--model", given.get("model", BASE)]
    words += [*(FIXED if given.get("steps", True) else FIXED[:-2]), *given.get("more", [])]
    done = click.testing.CliRunner().invoke(cli, [*map(str, words), "--out", str(tmp_path / "work" / "out")])
    assert done.exit_code in (1, 2), done.output
    errors = [line for line in done.stderr.splitlines() if line.startswith("bank: error:")]
    assert len(errors) == 1, done.output
    assert message in errors[0]
    assert "internal error" not in errors[0]
    assert list((tmp_path / "work").iterdir()) == []


def test_a_folder_that_is_there_is_refused_before_anything_is_done(bank: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    done = run(bank, DATA, "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert "already there" in done.stderr
    assert "tokenize" not in done.stderr
    assert (tmp_path / "out" / "mine").read_text() == "x"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--budget", "1m"], "--budget is in place of --steps"),
        (["--metric", "all"], "NEWDATA takes one --metric and one --approach"),
        (["--approach", "uniform", "--approach", "nearest"], "NEWDATA takes one --metric and one --approach"),
        (["--examples", "some"], "--examples"),
        (["--steps", "0"], "--steps"),
    ],
)
def test_wrong_use(bank: Path, tmp_path: Path, more: list[str], message: str) -> None:
    done = run(bank, DATA, *more, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_what_was_kept_before(
    bank: Path, trained: tuple[Path, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full when the first checkpoint is flushed; with room again, the same command ends well."""
    from bankdb.arrays import durable

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(durable.os, "fsync", full)
        done = run(bank, DATA, "--steps", "5", "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert "No space left on device; free some space" in done.stderr
    assert not (tmp_path / "out").exists()
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []
    assert run(bank, DATA, "--steps", "5", "--out", tmp_path / "out").exit_code == 0
    assert digests(tmp_path / "out") == digests(trained[0])


def interrupted(bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stop a run by Ctrl-C in its third step; return its checkpoint."""
    from compute.finetuning.trainer import Trainer

    step = Trainer.step

    def third(self: Trainer, *arguments: Any) -> float:
        if self.steps == 2:
            raise KeyboardInterrupt
        return step(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", third)
        done = run(bank, DATA, "--steps", "5", "--out", tmp_path / "out")
    assert done.exit_code != 0
    (file,) = (tmp_path / ".out.checkpoint").iterdir()
    return file


def test_other_options_begin_anew(bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(bank, tmp_path, monkeypatch)
    for more in (["--seed", "7"], ["--batch-size", "4"], ["--metric", "tf-idf"]):
        out = tmp_path / f"out{more[1]}"
        shutil.copytree(tmp_path / ".out.checkpoint", tmp_path / f".{out.name}.checkpoint")
        done = run(bank, DATA, "--steps", "5", *more, "--out", out)
        assert done.exit_code == 0, done.output
        assert "goes on from step" not in done.stderr
        assert not (tmp_path / f".{out.name}.checkpoint").exists()
    done = run(bank, DATA, "--steps", "5", "--out", tmp_path / "out")
    assert "goes on from step" in done.stderr


@pytest.mark.parametrize("damage", ["cut", "changed", "emptied"])
def test_a_damaged_checkpoint_is_an_error(
    bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    file = interrupted(bank, tmp_path, monkeypatch)
    content = bytearray(file.read_bytes())
    if damage == "changed":
        content[-5] ^= 1
    file.write_bytes({"cut": content[:-100], "changed": content, "emptied": b""}[damage])
    done = run(bank, DATA, "--steps", "5", "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert f"{file}: expected a checkpoint of this run, found something else" in done.stderr
    assert "delete it, and run the command again" in done.stderr
    assert not (tmp_path / "out").exists()


def test_what_others_left_beside_stays(bank: Path, tmp_path: Path) -> None:
    hidden = tmp_path / ".out.checkpoint"
    hidden.mkdir()
    (hidden / "mine").write_text("x")
    assert run(bank, DATA, "--out", tmp_path / "out").exit_code == 0
    assert (hidden / "mine").read_text() == "x"


def test_names_of_the_bank_are_those_that_are_listed(bank: Path, tmp_path: Path) -> None:
    done = run(bank, DATA, "--start", "nobody", "--out", tmp_path / "out")
    assert NAMES[0] in done.stderr
