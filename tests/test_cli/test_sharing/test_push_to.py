"""`--push-to`: an adapter in a repository of its own, with a card that says what it is and of nobody's machine."""

from __future__ import annotations

import json
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from bankdb.bank import AdapterBank
from bankdb.peft.weights import load_adapter
from cli.main import cli
from tests.support.banks.malformed_adapters import BASE_MODEL
from tests.support.banks.small_bank import create_bank, ingest_folder, write_dataset, write_pairs
from tests.support.banks.stored_files import digests
from tests.support.banks.tiny_bank import BASE, NAMES, TINY, copy_pairs, make_bank
from tests.support.servers.hub_uploads import UploadHub

SECRET = "ada-lovelace"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A folder whose name is a secret, with a bank of four pairs and a dataset; do not change it."""
    home = tmp_path_factory.mktemp("machine") / SECRET
    with create_bank(home / "bank", tokenizer_folder) as bank:
        ingest_folder(bank, write_pairs(home / "pairs", 4))
    write_dataset(home / "new", 50)
    return home


@pytest.fixture
def place(home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(home, tmp_path / SECRET))


def run(place: Path, *arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(one) for one in arguments], env={"BANK_PATH": str(place / "bank")})


def license_all(place: Path, *licences: str | None) -> None:
    with AdapterBank.open(place / "bank") as bank:
        for record, licence in zip(bank.adapters(), licences, strict=True):
            bank.catalog.set_group(record.name, None, licence)


def card_of(hub: UploadHub, repo_id: str) -> tuple[dict[str, Any], str]:
    text = hub.files("model", repo_id)["README.md"].decode()
    parts = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    assert parts is not None
    return yaml.safe_load(parts[1]), text


def assert_tells_nothing(hub: UploadHub, repo_id: str, place: Path) -> None:
    for name, data in hub.files("model", repo_id).items():
        for word in (SECRET, str(place), str(Path.home()) + "/", socket.gethostname()):
            assert word.encode() not in data, (name, word)


def test_a_prediction(hub: UploadHub, place: Path) -> None:
    license_all(place, "mit", "cc-by-4.0", "mit", "apache-2.0")
    result = run(place, "predict", place / "new", "--out", place / "made", "--push-to", "ada/new")
    assert result.exit_code == 0, result.output
    assert (
        "pushed to ada/new (private); licence cc-by-4.0: the strictest of the sources' licences"
        in result.stdout
    )
    front, text = card_of(hub, "ada/new")
    assert front["license"] == "cc-by-4.0"
    assert (front["base_model"], front["library_name"], front["pipeline_tag"]) == (
        BASE_MODEL,
        "peft",
        "text-generation",
    )
    assert {"lora", "lora-bank"} <= set(front["tags"])
    assert (
        "the strictest of the sources' licences (attribution), which are: apache-2.0, cc-by-4.0, mit" in text
    )
    assert "hf download ada/new" in text
    assert_tells_nothing(hub, "ada/new", place)
    assert set(hub.files("model", "ada/new")) - {".gitattributes"} == {
        path.name for path in (place / "made").iterdir()
    }
    # What is there is what PEFT would load.
    folder = place / "fetched"
    folder.mkdir()
    for name, data in hub.files("model", "ada/new").items():
        (folder / name).write_bytes(data)
    assert load_adapter(folder).sha256 == load_adapter(place / "made").sha256


def test_hub_sources_are_named_and_paths_are_not(hub: UploadHub, place: Path, tokenizer_folder: Path) -> None:
    """The base model is a folder of this machine, the datasets came from the hub."""
    shutil.rmtree(place / "bank")
    data = (place / "pairs" / "datasets" / "task000" / "train.jsonl").read_bytes()
    hub.publish("dataset", "tasks/one", {"train.jsonl": data, "README.md": "---\nlicense: mit\n---\n"})
    for folder in (place / "pairs" / "adapters").iterdir():
        config = json.loads((folder / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = str(place / "models" / "base")
        (folder / "adapter_config.json").write_text(json.dumps(config))
    base = str(place / "models" / "base")
    with AdapterBank.create(place / "bank", base_model=base, tokenizer=tokenizer_folder) as bank:
        assert not bank.ingest((str(place / "pairs" / "adapters" / "task000"), "hub:tasks/one")).refused
    result = run(place, "predict", place / "new", "--out", place / "made", "--push-to", "ada/new", "--public")
    assert result.exit_code == 0, result.output
    front, _ = card_of(hub, "ada/new")
    assert (front["datasets"], front["base_model"]) == (["tasks/one"], "base")
    assert hub.visibility["model", "ada/new"] == "public"
    assert_tells_nothing(hub, "ada/new", place)
    result = run(place, "export", "task000", "--push-to", "ada/stored")
    assert result.exit_code == 0, result.output
    assert_tells_nothing(hub, "ada/stored", place)
    assert card_of(hub, "ada/stored")[0]["datasets"] == ["tasks/one"]


def test_a_stored_adapter_alone(hub: UploadHub, place: Path) -> None:
    license_all(place, "mit", None, "cc-by-nd-4.0", None)
    result = run(place, "export", "task000", "--push-to", "ada/task000")
    assert result.exit_code == 0, result.output
    files = hub.files("model", "ada/task000")
    original = place / "pairs" / "adapters" / "task000"
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert files[name] == (original / name).read_bytes()
    assert card_of(hub, "ada/task000")[0]["license"] == "mit"
    result = run(place, "export", "task001", "--push-to", "ada/task001")
    assert "licence other: of 1 sources 1 state no licence that is known" in result.stdout
    result = run(place, "export", "task002", "--push-to", "ada/task002")
    assert result.exit_code == 1
    assert "task002 (cc-by-nd-4.0): the licence forbids" in result.stderr
    assert ("model", "ada/task002") not in hub.repositories
    assert run(place, "export", "task000").exit_code == 2


def test_one_of_all_predictions(hub: UploadHub, place: Path) -> None:
    assert run(place, "predict", "--all", "--workers", "1").exit_code == 0
    result = run(
        place, "export", "task001", "--prediction", "2", "--push-to", "ada/two", "--out", place / "two"
    )
    if "no run" in result.stderr or result.exit_code:
        result = run(
            place, "export", "task001", "--prediction", "1", "--push-to", "ada/two", "--out", place / "two"
        )
    assert result.exit_code == 0, result.output
    assert "The bank's own adapter for this dataset was left out." in card_of(hub, "ada/two")[1]
    result = run(place, "predict", "--all", "--push-to", "ada/all")
    assert result.exit_code == 2
    assert "bank export NAME --prediction RUN --push-to" in result.stderr


def test_an_adapter_that_is_there_is_replaced_when_asked(hub: UploadHub, place: Path) -> None:
    arguments = ("predict", place / "new", "--push-to", "ada/new")
    assert run(place, *arguments, "--out", place / "one").exit_code == 0
    result = run(place, *arguments, "--out", place / "two")
    assert result.exit_code == 1
    assert "there is an adapter already" in result.stderr
    assert not (place / "two").exists()  # known before any work
    assert run(place, *arguments, "--out", place / "two", "--overwrite").exit_code == 0
    sha = hub.publish("model", "ada/other", {"model.safetensors": b"x"})
    result = run(
        place, "predict", place / "new", "--push-to", "ada/other", "--out", place / "three", "--overwrite"
    )
    assert "holds 'model.safetensors' and no adapter" in result.stderr
    assert hub.repositories["model", "ada/other"].branches["main"] == sha


def test_what_ends_it_is_known_before_any_work(
    hub: UploadHub, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, said in (("no name", "is no hub reference"), ("ada/x@v1", "main branch")):
        result = run(place, "predict", place / "new", "--out", place / "made", "--push-to", name)
        assert result.exit_code == 2, result.output
        assert said in result.stderr
    monkeypatch.delenv("HF_TOKEN")
    result = run(place, "predict", place / "new", "--out", place / "made", "--push-to", "ada/new")
    assert result.exit_code == 2
    assert "make one with write access at" in result.stderr
    assert not (place / "made").exists()


def test_a_push_that_fails_leaves_the_adapter_and_says_how_to_go_on(hub: UploadHub, place: Path) -> None:
    hub.fail("/commit/", status=500)
    made = place / "made"
    result = run(place, "predict", place / "new", "--out", made, "--push-to", "ada/new")
    assert result.exit_code == 1
    (line,) = (line for line in result.stderr.splitlines() if "error" in line)
    assert f"bank export --adapter {made} --push-to ada/new" in line
    before = digests(made)
    hub.failures.clear()
    sent = dict(hub.uploads)
    result = run(place, "export", "--adapter", made, "--push-to", "ada/new")
    assert result.exit_code == 0, result.output
    assert dict(hub.uploads) == sent
    assert digests(made) == before
    assert "adapter_model.safetensors" in hub.files("model", "ada/new")


def test_json_says_where(hub: UploadHub, place: Path) -> None:
    result = run(place, "predict", place / "new", "--out", place / "made", "--push-to", "ada/new", "--json")
    assert json.loads(result.stdout)["pushed_to"] == "ada/new"


def test_a_folder_of_somebody_else_is_not_pushed(hub: UploadHub, place: Path) -> None:
    other = place / "pairs" / "adapters" / "task000"
    result = run(place, "export", "--adapter", other, "--push-to", "ada/other")
    assert result.exit_code == 2
    assert "expected the record of an adapter that was made here" in result.stderr
    assert ("model", "ada/other") not in hub.repositories


@pytest.mark.torch
def test_a_trained_one_with_its_figures(hub: UploadHub, tmp_path: Path) -> None:
    """Its base model is a folder of this machine, and the figures of its test go along."""
    data, home = TINY / "new" / "lists_ends", tmp_path / SECRET
    make_bank(home / "bank", copy_pairs(home / "pairs", NAMES[:2])).close()
    result = run(
        home, "finetune", data, "--out", home / "made", "--model", BASE, "--steps", "1", "--examples", "8",
        "--train-dtype", "float32", "--threads", "1", "--test", data / "test.jsonl", "--max-examples", "2",
        "--push-to", "ada/tuned",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    front, text = card_of(hub, "ada/tuned")
    measured = json.loads((home / "made" / "provenance.json").read_text())["measured"]
    metrics = {
        one["type"]: one["value"] for found in front["model-index"][0]["results"] for one in found["metrics"]
    }
    assert metrics == {"rouge": measured["rouge_l"], "exact_match": measured["exact_match"]}
    assert front["license"] == "other"
    assert "of 2 sources 2 state no licence that is known" in text
    assert_tells_nothing(hub, "ada/tuned", home)
    for name, content in hub.files("model", "ada/tuned").items():
        assert str(TINY).encode() not in content, name
