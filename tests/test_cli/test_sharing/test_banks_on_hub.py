"""`bank push` and `bank pull` by the hub: what is sent and taken, and what is said when it does not play along."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bankdb.bank import AdapterBank
from cli.main import cli
from tests.support.banks.bank_content import assert_nothing_else, content
from tests.support.servers.hub_uploads import UploadHub

REPOSITORY = "ada/six"
WEIGHTS = "adapters/task001/adapter_model.safetensors"


@pytest.fixture
def source(tmp_path: Path, bank_template: Path) -> Path:
    shutil.copytree(bank_template, tmp_path / "source")
    with AdapterBank.open(tmp_path / "source") as bank:
        for record in bank.adapters():
            bank.catalog.set_group(record.name, "g", "mit")
    return tmp_path / "source"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(one) for one in arguments])


def push(source: Path, *more: str, to: str = REPOSITORY) -> Result:
    return run("push", "--bank", source, to, *more)


def failed(result: Result, status: int = 1) -> str:
    """The one line of a command that failed."""
    assert result.exit_code == status, result.output
    lines = [line for line in result.stderr.splitlines() if "error" in line]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.output
    return lines[0]


def test_there_and_back(hub: UploadHub, source: Path, tmp_path: Path) -> None:
    result = push(source)
    assert result.exit_code == 0, result.output
    assert "made the private repository ada/six" in result.stderr
    assert "pushed 6 adapters to ada/six" in result.stdout
    assert hub.visibility["dataset", REPOSITORY] == "private"
    result = run("pull", REPOSITORY, "--bank", tmp_path / "back", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["made"], len(found["added"]), found["adapters"]) == (True, 6, 6)
    with AdapterBank.open(source) as before, AdapterBank.open(tmp_path / "back") as after:
        rows = [{name: one[1:] for name, one in content(bank).items()} for bank in (before, after)]
        assert rows[0] == rows[1]
        assert_nothing_else(after)
    assert run("verify", "--bank", tmp_path / "back").exit_code == 0
    hub.requests.clear()
    assert "0 added, 6 there already" in run("pull", REPOSITORY, "--bank", tmp_path / "back").stdout
    assert not [path for path in hub.requests if "/adapters/" in path]


def test_what_is_there_is_not_sent_again(hub: UploadHub, source: Path) -> None:
    assert push(source, "--public").exit_code == 0
    assert hub.visibility["dataset", REPOSITORY] == "public"
    commits = len(hub.repositories["dataset", REPOSITORY].commits)
    hub.uploads.clear()
    result = push(source)
    assert result.exit_code == 0, result.output
    assert not hub.uploads
    assert len(hub.repositories["dataset", REPOSITORY].commits) == commits
    with AdapterBank.open(source) as bank:
        bank.catalog.set_group("task001", "another", "mit")
    assert push(source).exit_code == 0
    assert not hub.uploads  # the catalogue is no large file
    assert b'"another"' in hub.files("dataset", REPOSITORY)["catalogue.jsonl"]


def test_changed_on_the_hub(hub: UploadHub, source: Path, tmp_path: Path) -> None:
    """A byte of one file, and another file that is missing."""
    assert push(source).exit_code == 0
    whole = dict(hub.files("dataset", REPOSITORY))
    files = dict(whole)
    files[WEIGHTS] = whole[WEIGHTS][:-1] + bytes([whole[WEIGHTS][-1] ^ 1])
    del files[WEIGHTS.replace("task001", "task002")]
    hub.publish("dataset", REPOSITORY, files)
    result = run("pull", REPOSITORY, "--bank", tmp_path / "back")
    assert result.exit_code == 1
    lines = [line for line in result.stderr.splitlines() if line.startswith("refused")]
    assert WEIGHTS in lines[0]
    assert WEIGHTS.replace("task001", "task002") in lines[1]
    assert "4 added, 0 there already, 2 refused" in result.stdout
    hub.publish("dataset", REPOSITORY, whole)
    assert "2 added, 4 there already" in run("pull", REPOSITORY, "--bank", tmp_path / "back").stdout


def test_a_connection_that_drops_while_it_sends(hub: UploadHub, source: Path, tmp_path: Path) -> None:
    hub.fail("/lfs/[0-7]", method="PUT", cut=100)
    line = failed(push(source))
    assert "failed" in line
    assert "run the same command again" in line
    assert len(failed(run("pull", REPOSITORY, "--bank", tmp_path / "back")).splitlines()) == 1
    came = dict(hub.uploads)
    hub.failures.clear()
    assert push(source).exit_code == 0
    assert came.items() <= hub.uploads.items()
    assert set(hub.uploads.values()) == {1}  # none twice
    assert run("pull", REPOSITORY, "--bank", tmp_path / "back").exit_code == 0


def test_a_connection_that_drops_once_is_tried_again(hub: UploadHub, source: Path, tmp_path: Path) -> None:
    hub.fail("/lfs/", method="PUT", cut=100, times=2)
    assert push(source).exit_code == 0
    hub.fail("/resolve/", method="GET", cut=50, times=2)
    hub.fail("/blobs/", method="GET", cut=100, times=2)
    assert run("pull", REPOSITORY, "--bank", tmp_path / "back").exit_code == 0


REFUSALS = [
    ("/repos/create", 403, "may not write there"),
    ("/preupload/", 403, "may not write there"),
    ("/preupload/", 401, "HF_TOKEN is not valid there"),
    ("/lfs/objects/batch", 403, "may not write there"),
    ("/commit/", 409, "changed by another meanwhile"),
    ("/commit/", 412, "changed by another meanwhile"),
    ("/commit/", 413, "too large"),
    ("/commit/", 429, "asks to wait"),
    ("/commit/", 500, "status 500"),
]


def test_what_the_hub_refuses(hub: UploadHub, source: Path) -> None:
    """One after another, until it takes it."""
    for pattern, status, said in REFUSALS:
        hub.fail(pattern, status=status)
        line = failed(push(source, "task000"))
        assert said in line
        assert REPOSITORY in line
        hub.failures.clear()
    assert push(source, "task000").exit_code == 0


def test_tokens(hub: UploadHub, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "may not write there; give it write access to bob" in failed(push(source, to="bob/six"))
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "HF_TOKEN is not valid there" in failed(push(source))
    monkeypatch.delenv("HF_TOKEN")
    assert "make one with write access at" in failed(push(source), 2)
    assert ("dataset", REPOSITORY) not in hub.repositories


def test_private_and_gated_and_none(hub: UploadHub, tmp_path: Path) -> None:
    hub.publish("dataset", "ada/gated", {"README.md": ""}, gated=True)
    hub.publish("dataset", "ada/private", {"README.md": ""}, token="another")
    for name, said in (("gated", "is gated; accept its terms"), ("private", "set HF_TOKEN if it is private"),
                       ("none", "not found")):  # fmt: skip
        assert said in failed(run("pull", f"ada/{name}", "--bank", tmp_path / "back"))
    hub.publish("dataset", "ada/data", {"train.jsonl": "{}"})
    assert "no shared bank is there" in failed(run("pull", "ada/data", "--bank", tmp_path / "back"))
    assert not (tmp_path / "back").exists()


def test_what_is_no_bank_stays_as_it_is(hub: UploadHub, source: Path) -> None:
    sha = hub.publish("dataset", REPOSITORY, {"train.jsonl": "{}", "README.md": "mine"})
    assert "holds 'train.jsonl' and no shared bank" in failed(push(source, "--replace"))
    assert hub.repositories["dataset", REPOSITORY].branches["main"] == sha


def test_adapters_that_would_be_lost(hub: UploadHub, source: Path, tmp_path: Path) -> None:
    assert push(source).exit_code == 0
    assert "would be lost: task001" in failed(push(source, "task000"))
    assert push(source, "task000", "--replace").exit_code == 0
    names = {path.split("/")[1] for path in hub.files("dataset", REPOSITORY) if path.startswith("adapters/")}
    assert names == {"task000"}
    assert "1 added" in run("pull", REPOSITORY, "--bank", tmp_path / "back").stdout


def test_of_some_adapters_only_their_files_are_fetched(hub: UploadHub, source: Path, tmp_path: Path) -> None:
    assert push(source).exit_code == 0
    hub.requests.clear()
    assert "2 added" in run("pull", REPOSITORY, "task00[24]", "--bank", tmp_path / "back").stdout
    fetched = {path.split("/adapters/")[1].split("/")[0] for path in hub.requests if "/adapters/" in path}
    assert fetched == {"task002", "task004"}
    assert len([path for path in hub.requests.elements() if path.startswith("GET ")]) <= 3 * 3 + 10


def test_a_revision_is_taken_as_it_was(hub: UploadHub, source: Path, tmp_path: Path) -> None:
    assert push(source).exit_code == 0
    sha = hub.repositories["dataset", REPOSITORY].branches["main"]
    assert push(source, "task000", "--replace").exit_code == 0
    assert "6 added" in run("pull", f"{REPOSITORY}@{sha}", "--bank", tmp_path / "back").stdout
    assert "main branch" in failed(push(source, to=f"{REPOSITORY}@{sha}"))


def test_offline(hub: UploadHub, source: Path, tmp_path: Path) -> None:
    """The client reads the variable when it is imported."""
    program = (
        "from click.testing import CliRunner; from cli.main import cli\n"
        f"for command, bank in (('push', {str(source)!r}), ('pull', {str(tmp_path / 'back')!r})):\n"
        f"    found = CliRunner().invoke(cli, [command, {REPOSITORY!r}, '--bank', bank])\n"
        "    print(found.exit_code, found.stderr.strip())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert [line[0] for line in lines] == ["2", "1"]
    assert all("HF_HUB_OFFLINE is set; unset it" in line for line in lines)
    assert not hub.requests
