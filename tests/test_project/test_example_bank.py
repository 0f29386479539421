"""The example bank that ships with the project is whole, small, and what its generator makes."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from collections import defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TINY = EXAMPLES / "tiny_bank"
BANK = TINY / "bank"
LIMIT = 6_000_000


def manifest() -> list[dict[str, str]]:
    with (BANK / "manifest.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def adapter_folders() -> list[Path]:
    return [BANK / row["adapter"] for row in manifest()] + sorted(TINY.glob("new/*/adapter"))


def dataset_folders() -> list[Path]:
    return [BANK / row["dataset"] for row in manifest()] + sorted(p for p in TINY.glob("new/*") if p.is_dir())


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    with safe_open(folder / "adapter_model.safetensors", framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return config


@pytest.fixture(scope="module")
def tasks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tiny_bank_tasks", EXAMPLES / "tiny_bank_tasks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name while the class is made.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TINY / "base", local_files_only=True)


def test_artifacts_are_under_six_megabytes() -> None:
    assert 0 < sum(path.stat().st_size for path in TINY.rglob("*") if path.is_file()) < LIMIT


def test_manifest_names_enough_tasks_and_families() -> None:
    rows = manifest()
    assert len(rows) >= 24
    assert len({row["group"] for row in rows}) >= 6
    assert len({row["name"] for row in rows}) == len(rows)
    assert {row["licence"] for row in rows} == {"Apache-2.0"}
    assert all(row["name"].startswith(row["group"] + "_") for row in rows)


def test_manifest_and_folders_agree() -> None:
    rows = manifest()
    for kind in ("adapter", "dataset"):
        on_disk = {f"{kind}s/{path.name}" for path in (BANK / f"{kind}s").iterdir()}
        assert on_disk == {row[kind] for row in rows}


def test_nothing_but_the_files_that_belong_there() -> None:
    for row in manifest():
        assert {p.name for p in (BANK / row["adapter"]).iterdir()} == {
            "adapter_config.json",
            "adapter_model.safetensors",
        }
        assert {p.name for p in (BANK / row["dataset"]).iterdir()} == {"train.jsonl", "test.jsonl"}


def test_adapters_share_shapes_dtype_and_configuration() -> None:
    folders = adapter_folders()
    layouts = [{name: (t.shape, str(t.dtype)) for name, t in tensors_of(f).items()} for f in folders]
    assert all(layout == layouts[0] for layout in layouts)
    assert {dtype for _, dtype in layouts[0].values()} == {"float16"}
    configs = [config_of(folder) for folder in folders]
    assert all(config == configs[0] for config in configs)
    assert configs[0]["base_model_name_or_path"] == "tiny-bank/base"


def test_adapter_shapes_follow_from_rank_and_base_model() -> None:
    base = json.loads((TINY / "base" / "config.json").read_text(encoding="utf-8"))
    config = config_of(adapter_folders()[0])
    tensors = tensors_of(adapter_folders()[0])
    modules = base["num_hidden_layers"] * len(config["target_modules"])
    assert len(tensors) == 2 * modules
    for name, tensor in tensors.items():
        rank_axis = 0 if ".lora_A." in name else 1
        assert tensor.shape[rank_axis] == config["r"]
        assert tensor.shape[1 - rank_axis] == base["hidden_size"]


def test_adapters_are_finite_and_differ() -> None:
    vectors = [
        np.concatenate([t.ravel() for _, t in sorted(tensors_of(f).items())]) for f in adapter_folders()
    ]
    assert all(np.isfinite(vector).all() for vector in vectors)
    assert len({vector.tobytes() for vector in vectors}) == len(vectors)


def test_datasets_parse() -> None:
    for folder in dataset_folders():
        train, test = rows_of(folder / "train.jsonl"), rows_of(folder / "test.jsonl")
        assert len(train) >= 150
        assert len(test) >= 30
        for row in train + test:
            assert set(row) == {"id", "input", "output"}
            assert row["input"].startswith("Definition: ")
            assert row["input"].endswith("\nOutput:\n")
            assert len(row["output"]) == 1
            assert row["output"][0].strip()


def test_no_test_input_is_in_any_training_split() -> None:
    seen = defaultdict(list)
    for folder in dataset_folders():
        for row in rows_of(folder / "train.jsonl"):
            seen[row["input"]].append(folder.name)
    for folder in dataset_folders():
        for row in rows_of(folder / "test.jsonl"):
            assert row["input"] not in seen, f"{folder.name}: {row['id']}"


def test_new_datasets_are_not_in_the_bank_but_of_its_families() -> None:
    rows = manifest()
    new = [path.name for path in (TINY / "new").iterdir()]
    assert new
    assert not set(new) & {row["name"] for row in rows}
    assert {name.split("_")[0] for name in new} <= {row["group"] for row in rows}


def test_generator_makes_the_committed_datasets(tasks: ModuleType, tmp_path: Path) -> None:
    seed = json.loads((TINY / "scores.json").read_text(encoding="utf-8"))["settings"]["seed"]
    tasks.write_datasets(tmp_path, seed)
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.jsonl")}
    committed = {path.relative_to(TINY): path.read_bytes() for path in TINY.rglob("*.jsonl")}
    assert made == committed


def test_generator_follows_its_seed(tasks: ModuleType) -> None:
    task = tasks.TASKS[0]
    assert tasks.split(task, 1) == tasks.split(task, 1)
    assert tasks.split(task, 1) != tasks.split(task, 2)


def test_answers_are_right(tasks: ModuleType) -> None:
    """A few tasks solved independently from the committed text."""

    def solved(name: str) -> list[tuple[str, str]]:
        rows = rows_of(BANK / "datasets" / name / "test.jsonl")
        return [
            (row["input"].split("Input: ")[1].removesuffix("\nOutput:\n"), row["output"][0]) for row in rows
        ]

    for text, answer in solved("lists_reverse"):
        assert answer == "[ " + " ".join(reversed(text.split())) + " ]"
    for text, answer in solved("numbers_sum"):
        assert answer == f"= {sum(int(word) for word in text.split(' and '))} ."
    for text, answer in solved("counting_kinds"):
        assert answer == f"n = {len(set(text) - {' '})} in row"
    for text, answer in solved("records_upper"):
        assert answer == f"<v> {text.split(', ')[1].upper()} </v>"


def test_tokenizer_loads_offline_and_is_the_saved_one(tokenizer: Any) -> None:
    from tokenizers import Tokenizer

    saved = Tokenizer.from_file(str(TINY / "base" / "tokenizer.json"))
    vocabulary = json.loads((TINY / "base" / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    assert len(tokenizer) == vocabulary
    row = rows_of(dataset_folders()[0] / "train.jsonl")[0]
    text = row["input"] + row["output"][0]
    ids = tokenizer(text)["input_ids"]
    assert ids == saved.encode(text).ids
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_scores_cover_every_task() -> None:
    scores = json.loads((TINY / "scores.json").read_text(encoding="utf-8"))
    assert set(scores["scores"]) == {folder.name for folder in dataset_folders()}
    in_bank = [scores["scores"][row["name"]] for row in manifest()]
    for key, mean in scores["mean_over_bank"].items():
        assert mean == pytest.approx(sum(row[key] for row in in_bank) / len(in_bank), abs=1e-4)
    assert scores["mean_over_bank"]["own"] > scores["mean_over_bank"]["base"] + 0.2


@pytest.mark.torch
def test_own_adapter_beats_the_base_model(tokenizer: Any) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def exact_match(model: Any, rows: list[dict[str, Any]]) -> float:
        batch = tokenizer([row["input"] for row in rows], padding=True, return_tensors="pt")
        with torch.no_grad():
            out = model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=24,
                do_sample=False,
            )
        answers = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        return float(np.mean([a.strip() == row["output"][0] for a, row in zip(answers, rows, strict=True)]))

    scores = json.loads((TINY / "scores.json").read_text(encoding="utf-8"))["scores"]
    # from_pretrained leaves both models in evaluation mode.
    base = AutoModelForCausalLM.from_pretrained(TINY / "base", dtype=torch.float32)
    for name in ("records_city", "counting_length", "lumi_phrase"):
        rows = rows_of(BANK / "datasets" / name / "test.jsonl")
        before = exact_match(base, rows)
        adapted = PeftModel.from_pretrained(base, BANK / "adapters" / name)
        own = exact_match(adapted, rows)
        base = adapted.unload()
        assert own > before + 0.2
        # Other processors sum in another order, so an answer or two may differ from the published score.
        assert before == pytest.approx(scores[name]["base"], abs=0.051)
        assert own == pytest.approx(scores[name]["own"], abs=0.051)
