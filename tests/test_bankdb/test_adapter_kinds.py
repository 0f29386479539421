"""Adapters as people have them, through ingest: what is stored, what is said, and what predictions are written as."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from bankdb.bank import AdapterBank
from bankdb.peft.weights import load_adapter
from cli.main import cli
from tests.support.banks.malformed_adapters import (
    BASE_MODEL,
    CONFIG,
    WEIGHTS,
    read_weights,
    write_good_adapter,
    write_weights,
)
from tests.support.banks.small_bank import ingest_folder, write_dataset
from tests.support.banks.tiny_bank import BASE, NAMES, copy_pairs, make_bank


def add(folder: Path, name: str, seed: int = 0, **options: Any) -> Path:
    write_dataset(folder / "datasets" / name, len(name) + seed, examples=4)
    return write_good_adapter(folder / "adapters" / name, seed=seed, **options)


def run(bank: AdapterBank, command: str, *arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [command, "--bank", str(bank.path), *map(str, arguments)])


def reasons(report: Any) -> dict[str, str]:
    return {item.name: item.reason for item in report.refused}


def wrap(folder: Path, segment: str = "_orig_mod") -> None:
    header, data = read_weights(folder)
    old = "base_model.model."
    write_weights(
        folder, {key.replace(old, f"{old}{segment}.", 1): value for key, value in header.items()}, data
    )


# Names.


def test_wrapped_adapters_are_stored_and_exported_under_clean_names(
    tmp_path: Path, empty_bank: AdapterBank
) -> None:
    for index, name in enumerate("abc"):
        folder = add(tmp_path / "pairs", name, index)
        if name != "b":
            wrap(folder)
    output = run(empty_bank, "ingest", tmp_path / "pairs").output
    assert (
        "note: a, c: left out of tensor names, since PEFT looks for none of it: _orig_mod (torch.compile)"
        in output
    )
    assert "3 added" in output
    output = run(empty_bank, "export", "a", "--out", tmp_path / "a").output
    assert "note: tensor names are not those of the source, but without _orig_mod (torch.compile)" in output
    source = tmp_path / "pairs" / "adapters"
    assert (load_adapter(tmp_path / "a").vector == load_adapter(source / "a").vector).all()
    assert "note" not in run(empty_bank, "export", "b", "--out", tmp_path / "b").output
    assert (tmp_path / "b" / WEIGHTS).read_bytes() == (source / "b" / WEIGHTS).read_bytes()
    assert "3 there already" in run(empty_bank, "ingest", tmp_path / "pairs").output
    assert "clean" in run(empty_bank, "verify").output
    # A damaged row comes back from a source with such names too.
    row = empty_bank.catalog.adapter("a").row
    empty_bank.store.delete(row)
    assert "repaired: a" in run(empty_bank, "verify", "--repair").output
    assert "NOT" not in run(empty_bank, "verify").output


# The task type.


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        (["SEQ_2_SEQ_LM", "CAUSAL_LM", "CAUSAL_LM"], "CAUSAL_LM"),
        (["SEQ_2_SEQ_LM", "CAUSAL_LM"], "CAUSAL_LM"),
        (["SEQ_2_SEQ_LM", "SEQ_2_SEQ_LM", "CAUSAL_LM"], "SEQ_2_SEQ_LM"),
        ([None, None, "CAUSAL_LM"], "CAUSAL_LM"),
        ([None, None], "CAUSAL_LM"),
        (["TOKEN_CLS", "FEATURE_EXTRACTION", None], "TOKEN_CLS"),
    ],
    ids=str,
)
@pytest.mark.parametrize("at_once", [True, False])
def test_the_task_type_of_a_prediction_is_what_most_adapters_state(
    tmp_path: Path, empty_bank: AdapterBank, stated: list[str | None], expected: str | None, at_once: bool
) -> None:
    output = ""
    for index, task_type in enumerate(stated):
        add(tmp_path / ("pairs" if at_once else f"pairs{index}"), f"p{index}", index, task_type=task_type)
        if not at_once:
            output = run(empty_bank, "ingest", tmp_path / f"pairs{index}").output
    if at_once:
        output = run(empty_bank, "ingest", tmp_path / "pairs").output
    assert ("note: task_type" in output) == (set(stated) != {expected})
    assert empty_bank.origins.task_type() == expected
    new = write_dataset(tmp_path / "new", 9)
    out = tmp_path / "out"
    assert run(empty_bank, "predict", new, "--approach", "uniform", "--out", out).exit_code == 0
    assert json.loads((out / CONFIG).read_text())["task_type"] == expected


@pytest.mark.torch
@pytest.mark.parametrize(
    "stated", [["SEQ_2_SEQ_LM", "CAUSAL_LM"], [None, None], [None, "CAUSAL_LM"]], ids=str
)
def test_autopeft_loads_a_prediction(tmp_path: Path, stated: list[str | None]) -> None:
    from peft import AutoPeftModelForCausalLM

    manifest = copy_pairs(tmp_path / "pairs", NAMES[:2])
    for name, task_type in zip(NAMES, stated, strict=False):
        path = tmp_path / "pairs" / "adapters" / name / CONFIG
        path.write_text(json.dumps(json.loads(path.read_text()) | {"task_type": task_type}))
    out = tmp_path / "out"
    with make_bank(tmp_path / "bank", manifest) as bank:
        new = tmp_path / "pairs" / "datasets" / NAMES[0]
        assert run(bank, "predict", new, "--approach", "uniform", "--out", out).exit_code == 0
    config = json.loads((out / CONFIG).read_text()) | {"base_model_name_or_path": str(BASE)}
    (out / CONFIG).write_text(json.dumps(config))
    model = AutoPeftModelForCausalLM.from_pretrained(out)
    assert all(bool(p.abs().sum() > 0) for name, p in model.named_parameters() if "lora_B" in name)


def test_the_task_type_changes_with_what_is_in_the_bank(tmp_path: Path, empty_bank: AdapterBank) -> None:
    for index, task_type in enumerate(["SEQ_CLS", "SEQ_CLS", "CAUSAL_LM"]):
        add(tmp_path, f"p{index}", index, task_type=task_type)
    ingest_folder(empty_bank, tmp_path)
    assert empty_bank.origins.task_type() == "SEQ_CLS"
    empty_bank.remove("p0")
    assert empty_bank.origins.task_type() == "CAUSAL_LM"


# Patterns.


def test_a_pattern_that_hangs_does_not_hold_up_the_others(tmp_path: Path, empty_bank: AdapterBank) -> None:
    patterns = {
        "hangs": r"(.*)*x(.+)+\.(.*)*y",
        "overflows": "a{99999999999999999999}",
        "nests": "(" * 5000 + ")" * 5000,
        "fits": r".*\.self_attn\.(q|v)_proj",
    }
    for name, pattern in patterns.items():
        folder = add(tmp_path, name)
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(config | {"target_modules": pattern}))
    add(tmp_path, "plain")
    start = time.monotonic()
    report = ingest_folder(empty_bank, tmp_path)
    assert time.monotonic() - start < 40
    assert report.added == ["fits", "plain"]
    assert all("regular expression" in reason for reason in reasons(report).values())
    assert len(report.refused) == 3


# Ranges.


@pytest.mark.parametrize("alpha", [1e-300, 5e-324, 1e-5, 1e6, 1e18])
def test_scalings_that_float32_cannot_hold_are_refused(
    tmp_path: Path, empty_bank: AdapterBank, alpha: float
) -> None:
    add(tmp_path, "extreme", lora_alpha=alpha)
    report = ingest_folder(empty_bank, tmp_path)
    assert "a scaling (lora_alpha / r) from 0.0001 to 10000 was expected" in reasons(report)["extreme"]
    assert len(empty_bank) == 0


@pytest.mark.parametrize("alpha", [4e-4, 4e4, 1, 512])
def test_scalings_within_the_range_are_stored(tmp_path: Path, empty_bank: AdapterBank, alpha: float) -> None:
    add(tmp_path, "one", lora_alpha=alpha)
    assert ingest_folder(empty_bank, tmp_path).added == ["one"]


def scaled(folder: Path, factor: float, which: str = ".lora_") -> None:
    header, data = read_weights(folder)
    values = np.frombuffer(data, "<f4").copy()
    for name, entry in header.items():
        if which in name:
            start, stop = (offset // 4 for offset in entry["data_offsets"])
            values[start:stop] *= np.float32(factor)
    write_weights(folder, header, values.tobytes())


@pytest.mark.parametrize("factor", [0.0, 1e-30, 1e-44, 1e-12, 1e8, 1e30])
def test_weights_that_float32_cannot_square_are_refused(
    tmp_path: Path, empty_bank: AdapterBank, factor: float
) -> None:
    scaled(add(tmp_path, "extreme"), factor)
    report = ingest_folder(empty_bank, tmp_path)
    assert "weights whose largest is from 1e-10 to 1e+06 were expected" in reasons(report)["extreme"]


def test_extremes_within_the_range_have_errors_that_are_numbers(
    tmp_path: Path, empty_bank: AdapterBank
) -> None:
    """The smallest weights and the largest scaling ratio at once: squares stay in float32."""
    for index, (factor, alpha) in enumerate([(1.0, 4e4), (1e-9, 4e-4), (1e5, 4e-4), (1e5, 4e4), (1.0, 8)]):
        scaled(add(tmp_path, f"p{index}", index, lora_alpha=alpha), factor)
    assert len(ingest_folder(empty_bank, tmp_path).added) == 5
    result = run(empty_bank, "evaluate", "--weights-only", "--approach", "uniform", "--json")
    assert result.exit_code == 0, result.output
    assert "NaN" not in result.stdout


def test_an_adapter_that_does_nothing_is_said(tmp_path: Path, empty_bank: AdapterBank) -> None:
    scaled(add(tmp_path, "untrained"), 0.0, ".lora_B.")
    assert (
        "note: untrained: every lora_B is zero: the adapter does nothing"
        in run(empty_bank, "ingest", tmp_path).output
    )


# What PEFT takes for the same.


def test_idle_targets_are_stored_where_the_layout_is_the_same(
    tmp_path: Path, empty_bank: AdapterBank
) -> None:
    for index, names in enumerate([[], ["ff_out"], ["attn_out", "ff_proj"]]):
        folder = add(tmp_path, f"p{index}", index)
        config = json.loads((folder / CONFIG).read_text())
        config["target_modules"] += names
        (folder / CONFIG).write_text(json.dumps(config))
    report = ingest_folder(empty_bank, tmp_path)
    assert report.added == ["p0", "p1", "p2"]
    assert len(report.notes) == 2
    assert empty_bank.layout.target_modules == ("q_proj", "v_proj")


def test_idle_targets_in_all_of_them(tmp_path: Path, empty_bank: AdapterBank) -> None:
    for index in range(2):
        folder = add(tmp_path, f"p{index}", index)
        config = json.loads((folder / CONFIG).read_text())
        config["target_modules"] += ["attn_out"]
        (folder / CONFIG).write_text(json.dumps(config))
    assert ingest_folder(empty_bank, tmp_path).added == ["p0", "p1"]
    assert empty_bank.layout.target_modules == ("q_proj", "v_proj")


def test_the_hubs_default_revision_is_none(tmp_path: Path, empty_bank: AdapterBank) -> None:
    for index, revision in enumerate([None, "main", "", "0a1b"]):
        add(tmp_path, f"p{index}", index, revision=revision)
    report = ingest_folder(empty_bank, tmp_path)
    assert report.added == ["p0", "p1", "p2"]
    assert "revision '0a1b'" in reasons(report)["p3"]


@pytest.mark.parametrize(
    ("name", "taken"), [(BASE_MODEL.upper(), True), ("Example/Tiny-LLAMA", True), ("tiny", False)]
)
def test_hub_names_ignore_case(tmp_path: Path, empty_bank: AdapterBank, name: str, taken: bool) -> None:
    add(tmp_path, "one", base_model_name_or_path=name)
    assert bool(ingest_folder(empty_bank, tmp_path).added) == taken


def test_paths_do_not_ignore_case(tmp_path: Path, empty_bank: AdapterBank) -> None:
    empty_bank.origins.add_aliases(["/models/Tiny"])
    for index, name in enumerate(["/models/Tiny", "/models/tiny"]):
        add(tmp_path, f"p{index}", index, base_model_name_or_path=name)
    assert ingest_folder(empty_bank, tmp_path).added == ["p0"]
