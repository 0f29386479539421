"""Adapters as trainers write them, through `bank ingest`: taken and said in one line, checked, repaired, exported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bankdb.bank import AdapterBank
from bankdb.peft.weights import load_adapter
from bankdb.records import Taking
from tests.support.banks.malformed_adapters import BASE_MODEL, CONFIG, HIDDEN, WEIGHTS, write_good_adapter
from tests.support.banks.small_bank import ingest_folder, write_dataset
from tests.test_bankdb.test_adapter_kinds import add, reasons, run
from tests.test_bankdb.test_peft.test_advice import renamed

ADAPT = Taking(adapt_rank=True)


def configured(folder: Path, **changes: Any) -> None:
    """Change options of an adapter's configuration; None removes one."""
    config = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(
        json.dumps({k: v for k, v in config.items() if v is not None or k not in changes})
    )


def with_head(folder: Path, **shapes: Any) -> None:
    """Put a head among the targets, with the copy of the base model's that PEFT saves along."""
    rng = np.random.default_rng(9)
    head = "base_model.model.lm_head"
    sizes = {
        "lora_A.weight": (4, HIDDEN),
        "lora_B.weight": (32, 4),
        "base_layer.weight": (32, HIDDEN),
    } | shapes
    more = {f"{head}.{name}": rng.normal(size=size).astype(np.float32) for name, size in sizes.items()}
    save_file(load_file(folder / WEIGHTS) | more, folder / WEIGHTS, metadata={"format": "pt"})
    configured(folder, target_modules=["q_proj", "v_proj", "lm_head"])


def test_all_kinds_in_one_ingest(tmp_path: Path, empty_bank: AdapterBank) -> None:
    pairs = tmp_path / "pairs"
    for index, name in enumerate(("a", "b", "c", "d")):
        add(pairs, name, index)
    configured(add(pairs, "patterns"), rank_pattern={"q_proj": 4}, alpha_pattern={"v_proj": 8})
    configured(add(pairs, "nameless"), base_model_name_or_path=None)
    add(pairs, "small", r=2)
    add(pairs, "large", r=8)
    write_dataset(pairs / "datasets" / "names", 5)
    write_good_adapter(tmp_path / "plain")
    renamed(
        tmp_path / "plain", pairs / "adapters" / "names", ".model.layers.", ".model.language_model.layers."
    )
    write_dataset(pairs / "datasets" / "run", 6)
    for step in (90, 1000, 200):
        write_good_adapter(pairs / "adapters" / "run" / f"checkpoint-{step}", seed=step)
    result = run(empty_bank, "ingest", pairs, "--assume-base-model", "--adapt-rank")
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("note: ")]
    for said in (
        "note: run: the adapter is in checkpoint-1000, the newest of 3 checkpoints",
        "note: patterns: alpha_pattern and rank_pattern: give every module what it has without",
        f"note: nameless: no base model is named: taken for one of {BASE_MODEL}, as --assume-base-model says",
        "note: small: rank 2 padded with zeros to 4: the same product",
        "note: large: rank 8 cut to 4 in delta space: ",
        "note: names: modules renamed as transformers renamed them",
    ):
        assert len([line for line in lines if line.startswith(said)]) == 1, (said, lines)
    assert "10 added, 0 there already; the bank has 10 adapters" in result.output
    # The same again, without the options: they are there.
    again = run(empty_bank, "ingest", pairs)
    assert "0 added, 10 there already" in again.output, again.output
    assert "clean" in run(empty_bank, "verify").output
    record = empty_bank.catalog.adapter("run")
    assert record.source.endswith("adapters/run/checkpoint-1000")
    assert "stored as" in run(empty_bank, "show", "large").output
    assert "stored_as" not in run(empty_bank, "show", "a", "--json").output


def test_without_the_options_they_are_refused_by_name(tmp_path: Path, empty_bank: AdapterBank) -> None:
    for index, name in enumerate(("a", "b")):
        add(tmp_path, name, index)
    configured(add(tmp_path, "nameless"), base_model_name_or_path=None)
    add(tmp_path, "small", r=2)
    report = ingest_folder(empty_bank, tmp_path)
    assert report.added == ["a", "b"]
    assert "pass --assume-base-model" in reasons(report)["nameless"]
    assert "--adapt-rank it is taken, padded with zeros" in reasons(report)["small"]


def test_what_was_taken_comes_back_from_its_source(tmp_path: Path, empty_bank: AdapterBank) -> None:
    pairs = tmp_path / "pairs"
    add(pairs, "a", 1)
    add(pairs, "b", 2)
    add(pairs, "large", r=9)
    add(pairs, "small", r=1)
    configured(pairs / "adapters" / "small", base_model_name_or_path="")
    ingest_folder(empty_bank, pairs, taking=Taking(assume_base_model=True, adapt_rank=True))
    before = {
        name: empty_bank.store.read(empty_bank.catalog.adapter(name).row) for name in ("large", "small")
    }
    for name, vector in before.items():
        empty_bank.store.delete(empty_bank.catalog.adapter(name).row)
        assert f"repaired: {name}" in run(empty_bank, "verify", "--repair").output
        assert empty_bank.store.read(empty_bank.catalog.adapter(name).row).tobytes() == vector.tobytes()
    assert "NOT" not in run(empty_bank, "verify").output
    # A source that has changed is no source, though it is of another rank.
    write_good_adapter(tmp_path / "other", seed=7, r=9)
    shutil.copy(tmp_path / "other" / WEIGHTS, pairs / "adapters" / "large" / WEIGHTS)
    empty_bank.store.delete(empty_bank.catalog.adapter("large").row)
    assert "has changed since" in run(empty_bank, "verify", "--repair").output


def test_an_export_is_what_the_bank_has_and_says_so(tmp_path: Path, empty_bank: AdapterBank) -> None:
    add(tmp_path / "pairs", "a", 1)
    add(tmp_path / "pairs", "b", 2)
    add(tmp_path / "pairs", "large", r=9)
    configured(add(tmp_path / "pairs", "patterns"), rank_pattern={"q_proj": 4})
    ingest_folder(empty_bank, tmp_path / "pairs", taking=ADAPT)
    output = run(empty_bank, "export", "large", "--out", tmp_path / "large").output
    assert "note: written as the bank has it, rank 9 cut to 4 in delta space" in output
    vector = empty_bank.store.read(empty_bank.catalog.adapter("large").row)
    written = load_adapter(tmp_path / "large", expected=empty_bank.layout)
    assert written.vector.tobytes() == vector.tobytes()
    assert written.config.scaling == empty_bank.catalog.adapter("large").scaling
    # One that was taken as it is comes back bit for bit, patterns and all.
    assert "note" not in run(empty_bank, "export", "patterns", "--out", tmp_path / "patterns").output
    for file in (CONFIG, WEIGHTS):
        source = tmp_path / "pairs" / "adapters" / "patterns" / file
        assert (tmp_path / "patterns" / file).read_bytes() == source.read_bytes()


def test_a_bank_whose_first_adapter_is_adapted(tmp_path: Path, empty_bank: AdapterBank) -> None:
    """The rank is that of most, whatever comes first; predictions are of it."""
    add(tmp_path / "pairs", "a", r=9)
    add(tmp_path / "pairs", "b", 1)
    add(tmp_path / "pairs", "c", 2)
    assert ingest_folder(empty_bank, tmp_path / "pairs", taking=ADAPT).added == ["a", "b", "c"]
    assert empty_bank.layout.rank == 4
    new = write_dataset(tmp_path / "new", 77)
    out = tmp_path / "out"
    assert run(empty_bank, "predict", new, "--approach", "uniform", "--out", out).exit_code == 0
    deltas = []
    for name in ("a", "b", "c"):
        record = empty_bank.catalog.adapter(name)
        tensors = empty_bank.layout.unflatten(empty_bank.store.read(record.row))
        deltas.append((record.scaling, tensors))
    predicted = load_adapter(out)
    found = predicted.layout.unflatten(predicted.vector)
    bank_scaling = empty_bank.record.scaling
    assert bank_scaling is not None
    for name, tensor in found.items():
        share = [t[name] * (s / bank_scaling if ".lora_B." in name else 1) for s, t in deltas]
        np.testing.assert_allclose(tensor, np.mean(share, axis=0), rtol=1e-4, atol=1e-5)


def test_a_changed_configuration_is_another_pair(tmp_path: Path, empty_bank: AdapterBank) -> None:
    add(tmp_path, "a", 1)
    add(tmp_path, "b", 2)
    folder = add(tmp_path, "small", r=2)
    ingest_folder(empty_bank, tmp_path, taking=ADAPT)
    configured(folder, lora_alpha=16)
    report = ingest_folder(empty_bank, tmp_path, taking=ADAPT)
    assert report.skipped == ["a", "b"]
    assert "already in the bank with another adapter" in reasons(report)["small"]
    assert ingest_folder(empty_bank, tmp_path, taking=ADAPT, replace=True).replaced == ["small"]
    assert empty_bank.catalog.adapter("small").scaling == 8.0


# Heads.


def test_a_head_is_stored_without_the_copy(tmp_path: Path, empty_bank: AdapterBank) -> None:
    for index, name in enumerate("ab"):
        with_head(add(tmp_path, name, index))
    output = run(empty_bank, "ingest", tmp_path).output
    assert (
        "note: a, b: left out: the base model's own lm_head, which PEFT saves along with a target" in output
    )
    assert not any("base_layer" in spec.name for spec in empty_bank.layout.tensors)
    assert "2 there already" in run(empty_bank, "ingest", tmp_path).output
    assert "clean" in run(empty_bank, "verify").output
    run(empty_bank, "export", "a", "--out", tmp_path / "out")
    written, source = (
        load_file(folder / WEIGHTS) for folder in (tmp_path / "out", tmp_path / "adapters" / "a")
    )
    assert source.keys() - written.keys() == {"base_model.model.lm_head.base_layer.weight"}
    assert all(np.array_equal(tensor, source[name]) for name, tensor in written.items())


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"base_layer.weight": (33, HIDDEN)}, "was expected to have the shape"),
        ({"lora_A.weight": (3, HIDDEN)}, "expected to have rank 4"),
    ],
    ids=str,
)
def test_a_copy_of_another_shape_is_refused(
    tmp_path: Path, empty_bank: AdapterBank, shapes: dict[str, Any], message: str
) -> None:
    with_head(add(tmp_path, "one"), **shapes)
    assert message in reasons(ingest_folder(empty_bank, tmp_path))["one"]


def test_a_head_that_is_no_target_is_refused(tmp_path: Path, empty_bank: AdapterBank) -> None:
    folder = add(tmp_path, "one")
    head = {"base_model.model.lm_head.base_layer.weight": np.ones((32, HIDDEN), dtype=np.float32)}
    save_file(load_file(folder / WEIGHTS) | head, folder / WEIGHTS)
    assert "save_embedding_layers=False" in reasons(ingest_folder(empty_bank, tmp_path))["one"]


# Patterns.


@pytest.mark.parametrize(
    "options",
    [
        {"rank_pattern": {"q_proj": 8}},
        {"rank_pattern": {"q_proj": 4, "v_proj": 8}},
        {"alpha_pattern": {"q_proj": 16}},
        {"alpha_pattern": {"q_proj": True}, "lora_alpha": 1},
        {"alpha_pattern": {"q_proj": "8"}},
        {"rank_pattern": [4]},
    ],
    ids=str,
)
def test_a_pattern_that_says_something_is_refused(
    tmp_path: Path, empty_bank: AdapterBank, options: dict[str, Any]
) -> None:
    configured(add(tmp_path, "one"), **options)
    assert "_pattern was expected to be unset" in reasons(ingest_folder(empty_bank, tmp_path))["one"]


# Names of the base model.


def test_aliases_are_added_listed_and_removed(tmp_path: Path, empty_bank: AdapterBank) -> None:
    add(tmp_path, "one", base_model_name_or_path="/models/tiny")
    output = " ".join(run(empty_bank, "ingest", tmp_path).output.split())
    assert "let it in by `bank alias add /models/tiny`" in output
    assert "/models/tiny, other" in run(empty_bank, "alias", "add", "/models/tiny", "other", "other").output
    assert "1 added" in run(empty_bank, "ingest", tmp_path).output
    listed = json.loads(run(empty_bank, "alias", "list", "--json").output)
    assert listed == {"base_model": BASE_MODEL, "aliases": ["/models/tiny", "other"]}
    assert run(empty_bank, "alias", "remove", "other").exit_code == 0
    refused = run(empty_bank, "alias", "remove", "/models/tiny")
    assert refused.exit_code == 1
    assert "/models/tiny: 1 of the bank's adapters state the base model so" in refused.output
    assert "clean" in run(empty_bank, "verify").output
    run(empty_bank, "remove", "one")
    assert run(empty_bank, "alias", "remove", "/models/tiny").exit_code == 0
    assert empty_bank.record.base_model_aliases == ()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["add"], 2, "alias add: a name was expected, none found"),
        (["remove"], 2, "alias remove: a name was expected, none found"),
        (["list", "x"], 2, "alias list: no names were expected, 1 found"),
        (["remove", "x"], 1, "x: no such alias of the bank, which has none"),
        (["add", "a\nb"], 2, "expected a name of the base model in one line"),
        (["add", " "], 2, "expected a name of the base model in one line"),
        (["rename", "x"], 2, "'rename' is not one of"),
    ],
    ids=str,
)
def test_what_is_wrong_with_an_alias_is_said(
    empty_bank: AdapterBank, arguments: list[str], status: int, message: str
) -> None:
    result = run(empty_bank, "alias", *arguments)
    assert (result.exit_code, message in result.output) == (status, True), result.output


def test_the_base_model_itself_is_no_alias(empty_bank: AdapterBank) -> None:
    assert run(empty_bank, "alias", "add", BASE_MODEL).exit_code == 0
    assert empty_bank.record.base_model_aliases == ()
