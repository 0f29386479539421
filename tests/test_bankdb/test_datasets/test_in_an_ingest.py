"""What manifests and datasets that are not what they should be look like at the end of an ingest or a prediction."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bankdb.bank import AdapterBank
from bankdb.errors import SourceError
from bankdb.sources.pairs import find_references
from cli.main import cli
from tests.support.banks.malformed_adapters import write_good_adapter
from tests.support.banks.small_bank import create_bank, write_dataset, write_pairs


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture
def empty(tmp_path: Path, tokenizer_folder: Path) -> Path:
    create_bank(tmp_path / "bank", tokenizer_folder).close()
    return tmp_path / "bank"


def names(bank: Path) -> list[str]:
    with AdapterBank.open(bank) as opened:
        return [record.name for record in opened.adapters()]


def write_rows(folder: Path, rows: list[dict[str, object]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_notes_are_told_once_a_pair_and_at_most_ten(tmp_path: Path, empty: Path) -> None:
    for number in range(12):
        name = f"task{number:02d}"
        write_rows(
            tmp_path / "pairs" / "datasets" / name,
            [{"input": f"w{number} w1 ", "output": "w2", "context": "some words"}] * 3,
        )
        write_good_adapter(tmp_path / "pairs" / "adapters" / name, seed=number)
    result = run("ingest", "--bank", empty, tmp_path / "pairs")
    assert result.exit_code == 0
    notes = [line for line in result.stderr.splitlines() if line.startswith("note: ")]
    assert len(notes) == 10
    assert notes[0].startswith("note: task00: ")
    assert "text in 'context' is not used" in notes[0]
    assert "3 more" in notes[-1]
    predicted = run(
        "predict", "--bank", empty, tmp_path / "pairs" / "datasets" / "task03", "--out", tmp_path / "o"
    )
    assert predicted.exit_code == 0
    assert "text in 'context' is not used" in predicted.stderr


def test_two_tasks_over_the_same_texts_are_not_one(tmp_path: Path, empty: Path) -> None:
    for name, task in (("plural", "Write the plural."), ("reverse", "Write it backwards.")):
        write_rows(
            tmp_path / "p" / "datasets" / name, [{"instruction": task, "input": "w1", "output": "w2"}] * 4
        )
        write_good_adapter(tmp_path / "p" / "adapters" / name, seed=1)
    assert run("ingest", "--bank", empty, tmp_path / "p").exit_code == 0
    assert sorted(names(empty)) == ["plural", "reverse"]
    with AdapterBank.open(empty) as opened:
        assert len({record.content_sha256 for record in opened.adapters()}) == 2


@pytest.mark.parametrize("extension", [".jsonl", ".csv"])
def test_a_dataset_given_as_a_manifest_is_one_line(tmp_path: Path, empty: Path, extension: str) -> None:
    path = tmp_path / f"data{extension}"
    rows = [{"id": str(k), "input": f"w{k}", "output": "w1"} for k in range(200)]
    with path.open("w", newline="") as stream:
        if extension == ".jsonl":
            stream.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    result = run("ingest", "--bank", empty, path)
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if "data" in line]
    for part in ("'id', 'input', 'output'", "name", "adapter", "dataset"):
        assert part in line


def test_lines_that_name_nothing_are_told_in_ten(tmp_path: Path) -> None:
    lines = [json.dumps({"name": "good", "adapter": "a", "dataset": "d"}), *(["{nonsense"] * 200)]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    references, refused = find_references(tmp_path / "m.jsonl")
    assert [reference.name for reference in references] == ["good"]
    assert len(refused) <= 10
    assert refused[-1].name == "192 more lines"


def test_all_that_lacks_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("name,group\na,b\n")
    with pytest.raises(SourceError, match="no column 'adapter' and no column 'dataset'"):
        find_references(tmp_path / "m.csv")
    (tmp_path / "m.csv").write_text("name,adapter,dataset\na,,\nb,x,y\n")
    _, refused = find_references(tmp_path / "m.csv")
    assert "'adapter', 'dataset' are missing" in refused[0].reason


@pytest.mark.parametrize("mark", [";", "\t"])
def test_other_separators_are_named(tmp_path: Path, mark: str) -> None:
    (tmp_path / "m.csv").write_text(f"name{mark}adapter{mark}dataset\na{mark}x{mark}y\n")
    with pytest.raises(SourceError, match="separate the cells by commas"):
        find_references(tmp_path / "m.csv")
    text = (tmp_path / "m.csv").read_text().replace(mark, ",")  # the advice
    (tmp_path / "m.csv").write_text(text)
    assert len(find_references(tmp_path / "m.csv")[0]) == 1


def test_home_is_expanded_as_a_shell_would(
    tmp_path: Path, empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write_pairs(tmp_path / "home" / "pairs", 1)
    (tmp_path / "m.csv").write_text(
        "name,adapter,dataset\na,~/pairs/adapters/task000,~/pairs/datasets/task000\n"
    )
    assert run("ingest", "--bank", empty, tmp_path / "m.csv").exit_code == 0
    assert names(empty) == ["a"]
    with AdapterBank.open(empty) as opened:
        assert opened.adapters()[0].source == str(tmp_path / "home/pairs/adapters/task000")


@pytest.mark.parametrize(
    ("written", "message", "right"),
    [
        ("pairs\\adapters\\task000", "put / between folders", "pairs/adapters/task000"),
        ("$PAIRS/adapters/task000", "write the path out", "pairs/adapters/task000"),
        ("~nobody/adapters/task000", "write the path out", "pairs/adapters/task000"),
    ],
)
def test_paths_of_other_shells_say_what_to_write(
    tmp_path: Path, empty: Path, written: str, message: str, right: str
) -> None:
    write_pairs(tmp_path / "pairs", 1)
    manifest = tmp_path / "m.csv"
    for adapter, status in ((written, 1), (right, 0)):
        manifest.write_text(f"name,adapter,dataset\na,{adapter},pairs/datasets/task000\n")
        result = run("ingest", "--bank", empty, manifest)
        assert result.exit_code == status
        assert (message in result.stderr) == bool(status)


def test_a_folder_that_is_really_called_so_is_taken(tmp_path: Path, empty: Path) -> None:
    write_pairs(tmp_path / "~", 1)
    (tmp_path / "m.csv").write_text("name,adapter,dataset\na,~/adapters/task000,~/datasets/task000\n")
    assert run("ingest", "--bank", empty, tmp_path / "m.csv").exit_code == 0
    assert names(empty) == ["a"]


def test_names_that_differ_in_case_are_refused_in_a_second_ingest_too(tmp_path: Path, empty: Path) -> None:
    write_pairs(tmp_path / "one", 1, prefix="task")
    assert run("ingest", "--bank", empty, tmp_path / "one").exit_code == 0
    write_dataset(tmp_path / "two" / "datasets" / "TASK000", 5)
    write_good_adapter(tmp_path / "two" / "adapters" / "TASK000", seed=5)
    result = run("ingest", "--bank", empty, tmp_path / "two")
    assert result.exit_code == 1
    assert "refused TASK000: the name differs from 'task000' in the bank only in case" in result.stderr
    assert names(empty) == ["task000"]
    assert run("ingest", "--bank", empty, tmp_path / "one").exit_code == 0
    for part in ("datasets", "adapters"):  # the advice
        shutil.move(tmp_path / "two" / part / "TASK000", tmp_path / "two" / part / "other")
    assert run("ingest", "--bank", empty, tmp_path / "two").exit_code == 0
    assert names(empty) == ["task000", "other"]


@pytest.mark.parametrize("extension", [".csv", ".jsonl"])
def test_a_name_of_megabytes_is_cut(tmp_path: Path, empty: Path, extension: str) -> None:
    write_pairs(tmp_path / "pairs", 1)
    long = "n" * (100_000 if extension == ".csv" else 5_000_000)
    rows = [("good", "task000"), (long, "task000")]
    path = tmp_path / f"m{extension}"
    with path.open("w") as stream:
        if extension == ".csv":
            stream.write("name,adapter,dataset\n")
        for name, pair in rows:
            places = (f"pairs/adapters/{pair}", f"pairs/datasets/{pair}")
            row = dict(zip(("name", "adapter", "dataset"), (name, *places), strict=True))
            stream.write(",".join((name, *places)) + "\n" if extension == ".csv" else json.dumps(row) + "\n")
    result = run("ingest", "--bank", empty, path)
    assert result.exit_code == 1
    assert len(result.output) < 3000
    assert names(empty) == ["good"]


def test_memory_bounds_an_ingest_and_more_of_it_helps(tmp_path: Path, empty: Path) -> None:
    write_pairs(tmp_path / "pairs", 1)
    write_rows(tmp_path / "pairs" / "datasets" / "long", [{"input": "w1 " * 200_000, "output": "w2"}])
    write_good_adapter(tmp_path / "pairs" / "adapters" / "long", seed=3)
    small = run("ingest", "--bank", empty, tmp_path / "pairs", "--memory", "128MiB")
    assert small.exit_code == 1
    assert "refused long: " in small.stderr
    assert "--memory" in small.stderr
    assert names(empty) == ["task000"]  # one bad pair does not end the others
    assert run("ingest", "--bank", empty, tmp_path / "pairs", "--memory", "2GiB").exit_code == 0
    assert names(empty) == ["task000", "long"]
    assert os.path.isdir(empty)
