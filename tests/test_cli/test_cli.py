"""Every command through its runner: exit status, message, and what is stored afterwards."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from scipy.stats import wasserstein_distance

from bankdb.bank import AdapterBank
from cli.main import cli
from tests.support.banks.malformed_adapters import BASE_MODEL, write_good_adapter
from tests.support.banks.small_bank import write_dataset, write_pairs

LOCAL = ["--workers", "1"]


def run(*arguments: str | Path, status: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == status, (result.output, result.stderr, result.exception)
    if status:
        assert "Traceback" not in result.output
    return result


def error_line(result: Result) -> str:
    lines = [line for line in result.stderr.splitlines() if line.startswith("bank: error: ")]
    assert len(lines) == 1, result.stderr
    return lines[0]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def shared_bank(tmp_path_factory: pytest.TempPathFactory, bank_template: Path) -> Path:
    """The six pairs, for tests that only add derived arrays."""
    path = tmp_path_factory.mktemp("cli") / "bank"
    shutil.copytree(bank_template, path)
    return path


# -- init ------------------------------------------------------------------------------------------------


def test_init_makes_a_bank(tmp_path: Path, tokenizer_folder: Path) -> None:
    result = run(
        "init", "--bank", tmp_path / "b", "--base-model", BASE_MODEL, "--tokenizer", tokenizer_folder
    )
    assert BASE_MODEL in result.stdout
    with AdapterBank.open(tmp_path / "b") as bank:
        assert bank.record.base_model == BASE_MODEL
        assert bank.record.vocabulary == 202
        assert len(bank) == 0


def test_init_refuses_a_second_time(tmp_path: Path, tokenizer_folder: Path) -> None:
    arguments = (
        "init",
        "--bank",
        tmp_path / "b",
        "--base-model",
        BASE_MODEL,
        "--tokenizer",
        tokenizer_folder,
    )
    run(*arguments)
    assert "already here" in error_line(run(*arguments, status=1))


def test_init_refuses_a_tokenizer_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    arguments = ("--base-model", BASE_MODEL, "--tokenizer", tmp_path / "empty")
    assert "tokenizer" in error_line(run("init", "--bank", tmp_path / "b", *arguments, status=1))
    assert not (tmp_path / "b").exists()


def test_commands_without_a_bank_say_so(tmp_path: Path) -> None:
    for command in (
        ["list"],
        ["show"],
        ["verify"],
        ["export", "x", "--out", "y"],
        ["distances"],
        ["remove", "x"],
    ):
        line = error_line(run(*command, "--bank", tmp_path / "none", status=1))
        assert "bank init" in line


def test_the_bank_is_found_by_environment_variable(shared_bank: Path) -> None:
    result = CliRunner(env={"BANK_PATH": str(shared_bank)}).invoke(cli, ["list", "--json"])
    assert len(json.loads(result.stdout)) == 6


# -- ingest, list, show, remove, export, verify ------------------------------------------------------------


def test_ingest_twice_adds_then_skips(tmp_path: Path, tokenizer_folder: Path, pairs_folder: Path) -> None:
    bank = ("--bank", tmp_path / "b")
    run("init", *bank, "--base-model", BASE_MODEL, "--tokenizer", tokenizer_folder)
    first = json.loads(run("ingest", *bank, pairs_folder, "--json").stdout)
    second = json.loads(run("ingest", *bank, pairs_folder, "--json").stdout)
    names = [f"task{index:03d}" for index in range(6)]
    assert (sorted(first["added"]), first["refused"], first["adapters"]) == (names, [], 6)
    assert (second["added"], sorted(second["skipped"]), second["adapters"]) == ([], names, 6)


def test_ingest_tells_what_it_refused_and_stores_the_rest(tmp_path: Path, tokenizer_folder: Path) -> None:
    folder = write_pairs(tmp_path / "pairs", 3)
    (folder / "adapters" / "task001" / "adapter_model.safetensors").write_bytes(b"")
    bank = ("--bank", tmp_path / "b")
    run("init", *bank, "--base-model", BASE_MODEL, "--tokenizer", tokenizer_folder)
    result = run("ingest", *bank, folder, status=1)
    refusals = [line for line in result.stderr.splitlines() if line.startswith("refused ")]
    assert len(refusals) == 1
    assert refusals[0].startswith("refused task001: ")
    assert "2 added, 0 there already, 1 refused" in result.stdout
    listed = json.loads(run("list", *bank, "--json").stdout)
    assert [record["name"] for record in listed] == ["task000", "task002"]
    run("verify", *bank)


def test_ingest_a_manifest_with_groups_and_licences(
    tmp_path: Path, tokenizer_folder: Path, pairs_folder: Path
) -> None:
    manifest = tmp_path / "manifest.csv"
    with manifest.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "adapter", "dataset", "group", "licence"])
        for index in range(2):
            name = f"task{index:03d}"
            writer.writerow(
                [f"m{index}", pairs_folder / "adapters" / name, pairs_folder / "datasets" / name, "g", "mit"]
            )
    bank = ("--bank", tmp_path / "b")
    run("init", *bank, "--base-model", BASE_MODEL, "--tokenizer", tokenizer_folder)
    run("ingest", *bank, manifest)
    shown = json.loads(run("show", *bank, "m1", "--json").stdout)
    assert (shown["group"], shown["licence"], shown["row"]) == ("g", "mit", 1)


def test_ingest_replaces_only_when_asked(tmp_path: Path, tokenizer_folder: Path) -> None:
    folder = write_pairs(tmp_path / "pairs", 2)
    bank = ("--bank", tmp_path / "b")
    run("init", *bank, "--base-model", BASE_MODEL, "--tokenizer", tokenizer_folder)
    run("ingest", *bank, folder)
    before = json.loads(run("show", *bank, "task001", "--json").stdout)
    shutil.rmtree(folder / "adapters" / "task001")
    write_good_adapter(folder / "adapters" / "task001", seed=99)
    refused = run("ingest", *bank, folder, status=1)
    assert "--replace" in refused.stderr
    assert json.loads(run("show", *bank, "task001", "--json").stdout) == before
    assert "1 replaced" in run("ingest", *bank, folder, "--replace").stdout
    after = json.loads(run("show", *bank, "task001", "--json").stdout)
    assert after["row"] == 2
    assert after["source_sha256"] == sha256(folder / "adapters" / "task001" / "adapter_model.safetensors")
    run("verify", *bank)


def test_same_name_in_two_sources_is_refused_once(tmp_path: Path, tokenizer_folder: Path) -> None:
    one, two = write_pairs(tmp_path / "one", 1), write_pairs(tmp_path / "two", 2)
    bank = ("--bank", tmp_path / "b")
    run("init", *bank, "--base-model", BASE_MODEL, "--tokenizer", tokenizer_folder)
    result = json.loads(run("ingest", *bank, one, two, "--json", status=1).stdout)
    assert sorted(result["added"]) == ["task000", "task001"]
    assert [item["name"] for item in result["refused"]] == ["task000"]


def test_list_and_show_are_readable(shared_bank: Path) -> None:
    listed = run("list", "--bank", shared_bank).stdout
    assert all(f"task{index:03d}" in listed for index in range(6))
    shown = run("show", "--bank", shared_bank, "task003").stdout
    assert "task003" in shown
    assert "sha256" in shown
    assert BASE_MODEL in run("show", "--bank", shared_bank).stdout
    assert "no such adapter" in error_line(run("show", "--bank", shared_bank, "nothing", status=1))


def test_remove_is_all_or_nothing(bank: AdapterBank) -> None:
    where = ("--bank", bank.path)
    assert "nothing" in error_line(run("remove", *where, "task000", "nothing", status=1))
    assert len(bank) == 6
    run("remove", *where, "task000", "task005")
    assert [record.name for record in bank.adapters()] == ["task001", "task002", "task003", "task004"]
    assert not bank.store.file(0).exists()
    run("verify", *where)


@pytest.mark.parametrize(
    ("name", "dtype"), [("task000", "float32"), ("task001", "float16"), ("task002", "bfloat16")]
)
def test_export_is_bit_for_bit(
    shared_bank: Path, pairs_folder: Path, tmp_path: Path, name: str, dtype: str
) -> None:
    assert json.loads(run("show", "--bank", shared_bank, name, "--json").stdout)["dtype"] == dtype
    run("export", "--bank", shared_bank, name, "--out", tmp_path / "out")
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert sha256(tmp_path / "out" / file) == sha256(pairs_folder / "adapters" / name / file)


def test_export_does_not_overwrite_unasked(shared_bank: Path, tmp_path: Path) -> None:
    arguments = ("export", "--bank", shared_bank, "task000", "--out", tmp_path / "out")
    run(*arguments)
    before = sha256(tmp_path / "out" / "adapter_model.safetensors")
    assert "already there" in error_line(run(*arguments, status=1))
    run("export", "--bank", shared_bank, "task001", "--out", tmp_path / "out", "--overwrite")
    assert sha256(tmp_path / "out" / "adapter_model.safetensors") != before


def test_verify_names_a_damaged_row_and_repairs_it(bank: AdapterBank) -> None:
    where = ("--bank", bank.path)
    assert "clean" in run("verify", *where).stdout
    file = bank.store.file(2)
    file.write_bytes(file.read_bytes()[:-100])
    result = run("verify", *where, status=1)
    assert "task002" in result.stderr
    assert "task002" in run("verify", *where, "--repair").stdout
    assert json.loads(run("verify", *where, "--json").stdout)["clean"] is True


# -- distances and coefficients ----------------------------------------------------------------------------


def tokens_of(bank: AdapterBank, row: int) -> np.ndarray:
    ((ids, counts),) = bank.catalog.token_counts([row])
    return np.repeat(ids, counts)


def test_distances_csv_is_labelled_and_exact(shared_bank: Path, tmp_path: Path) -> None:
    run("distances", "--bank", shared_bank, "--metric", "wd", "--csv", tmp_path / "d.csv", *LOCAL)
    rows = list(csv.reader((tmp_path / "d.csv").open()))
    assert rows[0] == ["target", *(f"task{index:03d}" for index in range(6))]
    with AdapterBank.open(shared_bank) as bank:
        expected = wasserstein_distance(tokens_of(bank, 1), tokens_of(bank, 4))
    assert rows[2][0] == "task001"
    assert float(rows[2][5]) == pytest.approx(expected, rel=1e-9)
    assert float(rows[2][2]) == 0.0


def test_distances_of_all_metrics_in_one_csv(shared_bank: Path) -> None:
    result = run("distances", "--bank", shared_bank, "--metric", "all", "--csv", "-", *LOCAL)
    rows = list(csv.reader(io.StringIO(result.stdout)))
    assert rows[0][:2] == ["metric", "target"]
    keys = {row[0] for row in rows[1:]}
    assert keys == {"wasserstein", "kullback-leibler", "jensen-shannon", "mmd-multiscale"}
    assert len(rows) == 1 + 4 * 6


def test_a_matrix_as_zarr_has_all_digits_and_is_not_put_over_another(
    shared_bank: Path, tmp_path: Path
) -> None:
    import zarr

    out = tmp_path / "d.zarr"
    for command in ("distances", "coefficients"):
        result = run(command, "--bank", shared_bank, "--zarr", out, "--csv", tmp_path / "d.csv", *LOCAL)
        assert f"wrote {out}" in result.stdout
        group = zarr.open_group(out, mode="r")
        ((_, array),) = group.arrays()
        head, *rows = csv.reader((tmp_path / "d.csv").open())
        assert (array.attrs["names"], head[1:]) == ([row[0] for row in rows], [row[0] for row in rows])
        assert np.asarray(array[:]).tolist() == [[float(cell) for cell in row[1:]] for row in rows]
        again = run(command, "--bank", shared_bank, "--zarr", out, *LOCAL, status=1)
        assert "already there; delete it, or choose another path" in again.output
        shutil.rmtree(out)


def test_progress_is_shown_and_a_dashboard_where_workers_start(bank_template: Path, tmp_path: Path) -> None:
    """Six datasets are compared in less time than workers take to start; stored distances need none at all."""
    shutil.copytree(bank_template, tmp_path / "bank")
    first, again = (run("distances", "--bank", tmp_path / "bank", *LOCAL) for _ in range(2))
    assert "distances jensen-shannon: 1/1" in first.stderr
    assert "dashboard" not in first.stderr
    assert again.stderr == ""
    assert first.stdout == again.stdout
    assert "jensen-shannon" in first.stdout
    predicted = run(
        "predict", "--bank", tmp_path / "bank", "--all", "--approach", "uniform", "--store", *LOCAL
    )
    assert "dashboard: http://127.0.0.1:" in predicted.stderr


def test_coefficients_rows_sum_to_one_and_leave_self_out(shared_bank: Path, tmp_path: Path) -> None:
    run(
        "coefficients",
        "--bank",
        shared_bank,
        "--approach",
        "all",
        "--json",
        "--csv",
        tmp_path / "c.csv",
        *LOCAL,
    )
    rows = list(csv.DictReader((tmp_path / "c.csv").open()))
    assert {row["approach"] for row in rows} == {"attentional", "normalized", "uniform", "nearest"}
    for row in rows:
        weights = {name: float(value) for name, value in row.items() if name.startswith("task")}
        assert sum(weights.values()) == pytest.approx(1, abs=1e-12)
        assert weights[row["target"]] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", "0"], "temperature"),
        (["--temperature", "nan"], "temperature"),
        (["--top-k", "0"], "top-k"),
        (["--memory", "lots"], "memory"),
        (["--metric", "mmd", "--mmd-kernel", "gaussian", "--sigma", "-1"], "sigma"),
        (["--scheduler", "tcp://127.0.0.1:1", "--scheduler-file", "x"], "scheduler"),
    ],
)
def test_wrong_values_are_wrong_use(shared_bank: Path, arguments: list[str], message: str) -> None:
    local = [] if "--scheduler" in arguments else LOCAL
    assert message in error_line(run("coefficients", "--bank", shared_bank, *arguments, *local, status=2))


def test_a_scheduler_that_is_not_there(shared_bank: Path, tmp_path: Path) -> None:
    result = run("distances", "--bank", shared_bank, "--scheduler-file", tmp_path / "no.json", status=2)
    assert "scheduler" in error_line(result)


# -- predict ------------------------------------------------------------------------------------------------


def test_predict_all_exports_every_adapter(shared_bank: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    where = ("--bank", shared_bank, "--all", "--metric", "js", "--approach", "normalized", "--export", out)
    result = json.loads(run("predict", *where, "--weight-error", "--json", *LOCAL).stdout)
    (made,) = result["predictions"]
    assert made["metric"] == "jensen-shannon"
    assert 1 < made["effective_sources"] <= 5
    assert 0 < made["relative_error"] < 2
    assert sorted(item.name for item in out.iterdir()) == [f"task{index:03d}" for index in range(6)]
    record = json.loads((out / "task004" / "provenance.json").read_text())
    assert record["approach"] == "normalized"
    assert "task004" not in [source["name"] for source in record["sources"]]
    again = {item.name: sha256(item / "adapter_model.safetensors") for item in out.iterdir()}
    run("predict", *where, *LOCAL)
    assert again == {item.name: sha256(item / "adapter_model.safetensors") for item in out.iterdir()}


def test_predict_all_nearest_is_the_source_itself(
    shared_bank: Path, pairs_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run("predict", "--bank", shared_bank, "--all", "--approach", "nearest", "--export", out, *LOCAL)
    for item in out.iterdir():
        record = json.loads((item / "provenance.json").read_text())
        ((source, weight),) = [(entry["name"], entry["coefficient"]) for entry in record["sources"]]
        assert weight == 1.0
        from safetensors import safe_open

        names = None
        for folder in (item, pairs_folder / "adapters" / source):
            with safe_open(folder / "adapter_model.safetensors", framework="numpy") as file:
                names = names or sorted(file.keys())
                assert sorted(file.keys()) == names
        # Same tensors and dtype; only the order in the file may differ.
        stored = tmp_path / f"stored-{item.name}"
        run("export", "--bank", shared_bank, source, "--out", stored)
        from safetensors.numpy import load_file

        if record["dtype"] != "bfloat16":
            ours, theirs = (
                load_file(item / "adapter_model.safetensors"),
                load_file(stored / "adapter_model.safetensors"),
            )
            assert all(
                np.array_equal(ours[name].view(np.uint8), theirs[name].view(np.uint8)) for name in theirs
            )


def test_predict_new_dataset_writes_an_adapter(shared_bank: Path, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "mine", seed=77)
    arguments = ("predict", "--bank", shared_bank, data, "--out", tmp_path / "out")
    result = json.loads(run(*arguments, "--json").stdout)
    assert result["name"] == "mine"
    assert sum(result["sources"].values()) == pytest.approx(1, abs=1e-9)
    assert {"adapter_config.json", "adapter_model.safetensors", "provenance.json", "README.md"} == {
        item.name for item in (tmp_path / "out").iterdir()
    }
    assert "effective number of sources" in run(*arguments, "--overwrite").stdout
    assert "already there" in error_line(run(*arguments, status=1))


def test_predict_says_that_the_data_is_in_the_bank(
    shared_bank: Path, pairs_folder: Path, tmp_path: Path
) -> None:
    data = pairs_folder / "datasets" / "task002"
    result = run("predict", "--bank", shared_bank, data, "--out", tmp_path / "out", "--json")
    assert "task002" in result.stderr
    assert json.loads(result.stdout)["left_out"] == ["task002"]
    assert "task002" not in json.loads(result.stdout)["sources"]
    # Neither counted among the sources there are, nor kept back from who reads the card.
    effective = json.loads(result.stdout)["effective_sources"]
    told = run("predict", "--bank", shared_bank, data, "--out", tmp_path / "out", "--overwrite").stdout
    assert f"effective number of sources: {effective:.2f} of 5" in told
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"Effective number of sources: {effective:.2f}\n" in card
    assert "Left out of the bank, as adapters of the very same data: `task002`." in card
    assert "| task002 |" not in card
    kept = run("predict", "--bank", shared_bank, data, "--out", tmp_path / "kept", "--json", "--include-same")
    assert "task002" in json.loads(kept.stdout)["sources"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--all", "data.jsonl"],
        ["data.jsonl"],
        ["data.jsonl", "--out", "x", "--metric", "all"],
        ["data.jsonl", "--out", "x", "--weight-error"],
        ["--all", "--out", "x"],
        ["--all", "--metric", "all", "--export", "x"],
        ["--all", "--approach", "magic"],
        ["--all", "--metric", "euclid"],
        ["--all", "--workers", "0"],
        ["data.jsonl", "--out", "x", "--dtype", "int8"],
    ],
)
def test_wrong_use_of_predict(shared_bank: Path, arguments: list[str]) -> None:
    result = CliRunner().invoke(cli, ["predict", "--bank", str(shared_bank), *arguments])
    assert result.exit_code == 2
    assert "Error: " in result.stderr


def test_predict_refuses_what_cannot_be_predicted(
    shared_bank: Path, tmp_path: Path, tokenizer_folder: Path
) -> None:
    out = ("--out", tmp_path / "out")
    missing = run("predict", "--bank", shared_bank, tmp_path / "none.jsonl", *out, status=1)
    assert "none.jsonl" in error_line(missing)
    oracle = run(
        "predict",
        "--bank",
        shared_bank,
        write_dataset(tmp_path / "d", 1),
        *out,
        "--approach",
        "oracle",
        status=2,
    )
    assert "oracle" in error_line(oracle)
    run("init", "--bank", tmp_path / "b", "--base-model", BASE_MODEL, "--tokenizer", tokenizer_folder)
    empty = run("predict", "--bank", tmp_path / "b", tmp_path / "d", *out, status=1)
    assert "has no adapters" in error_line(empty)
    assert not (tmp_path / "out").exists()


# -- the program itself -------------------------------------------------------------------------------------


def test_help_of_every_command_has_an_example() -> None:
    for name, command in cli.commands.items():
        text = run(name, "--help").stdout
        assert "Example" in text, name
        assert f"bank {name}" in text, name
        assert command.help, name


def test_unexpected_errors_are_one_line(monkeypatch: pytest.MonkeyPatch, shared_bank: Path) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("something\nunforeseen")

    monkeypatch.setattr(AdapterBank, "adapters", broken)
    assert "internal error" in error_line(run("list", "--bank", shared_bank, status=1))
    result = CliRunner().invoke(cli, ["--debug", "list", "--bank", str(shared_bank)])
    assert isinstance(result.exception, RuntimeError)


def test_a_list_can_be_read_a_page_at_a_time(shared_bank: Path) -> None:
    page = json.loads(run("list", "--bank", shared_bank, "--json", "--limit", "2", "--offset", "3").stdout)
    assert [record["name"] for record in page] == ["task003", "task004"]
    text = run("list", "--bank", shared_bank, "--limit", "1", "--offset", "5").stdout
    assert "task005" in text
    assert "task004" not in text
    assert "1 of 6 adapters, from number 6 on" in text
    assert "6 adapters" not in run("list", "--bank", shared_bank).stdout
    assert "0 of 6 adapters" in run("list", "--bank", shared_bank, "--offset", "9").stdout
