import errno
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bankdb.datasets.tokenizer import BankTokenizer
from bankdb.errors import AdapterError, DatasetError, SourceError, TokenizerError
from bankdb.records import PairReference
from bankdb.sources.downloads.cache import content_of
from bankdb.sources.hub import fetch, parse_reference, pin, references_from_arguments
from bankdb.sources.hub_client import HubReference, PinnedRepository
from bankdb.sources.pairs import resolve
from tests.support.banks.small_bank import write_tokenizer
from tests.support.servers.hub_server import HubServer

ADAPTER = "owner/Tiny-7B-4b-r16-task039"
DATASET = "owner/task039_find_overlapping_words"
CARD = f"---\nlicense: mit\ndatasets:\n- {DATASET}\n---\n# An adapter\n"
CONFIG = json.dumps({"peft_type": "LORA", "r": 16})
WEIGHTS = bytes(range(256)) * 40
EXAMPLES = '{"id": "a", "input": "Say yes. ", "output": ["Yes", "yes"]}\n'


@pytest.fixture
def hub(tmp_path, monkeypatch):
    from huggingface_hub import constants

    with HubServer() as server:
        for name, value in server.environment(tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        # The client has read its environment when it was imported; the cache is looked up at each call.
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
        yield server


def publish_pair(hub, *, card=CARD):
    adapter = hub.publish(
        "model",
        ADAPTER,
        {
            "adapter_config.json": CONFIG,
            "adapter_model.safetensors": WEIGHTS,
            "README.md": card,
            "training_args.bin": b"pickle",
            "checkpoint-1/adapter_model.safetensors": b"older",
        },
    )
    dataset = hub.publish(
        "dataset",
        DATASET,
        {
            "README.md": "# Data",
            "train.jsonl": EXAMPLES,
            "test.jsonl": EXAMPLES,
            "valid.jsonl": EXAMPLES,
        },
    )
    return adapter, dataset


def reference(adapter=f"hub:{ADAPTER}", dataset=f"hub:{DATASET}", **more):
    return PairReference("task039", adapter, dataset, **more)


def is_one_line(error):
    text = str(error.value)
    return "\n" not in text and len(text) < 500


def test_a_pair_is_pinned_to_full_commits_and_fetched_whole(hub):
    adapter, dataset = publish_pair(hub)
    pair = fetch(pin(reference()))
    assert (pair.adapter_revision, pair.dataset_revision) == (adapter, dataset)
    assert (pair.adapter_source, pair.dataset_source) == (f"hub:{ADAPTER}", f"hub:{DATASET}")
    assert pair.licence == "mit"
    assert (pair.adapter / "adapter_model.safetensors").read_bytes() == WEIGHTS
    assert (pair.adapter / "adapter_config.json").read_text() == CONFIG
    assert [path.name for path in pair.dataset] == ["train.jsonl"]
    assert pair.dataset[0].read_text() == EXAMPLES


def test_pinning_is_one_request_a_side_and_downloads_nothing(hub):
    publish_pair(hub)
    pin(reference())
    assert hub.requests == {
        f"GET /api/models/{ADAPTER}/revision/main": 1,
        f"GET /api/datasets/{DATASET}/revision/main": 1,
    }


def test_only_what_is_read_is_downloaded(hub):
    publish_pair(hub)
    fetch(pin(reference()))
    asked = " ".join(hub.downloads())
    for name in ("adapter_config.json", "README.md", "train.jsonl"):
        assert name in asked
    for name in ("test.jsonl", "valid.jsonl", "training_args.bin", "checkpoint-1"):
        assert name not in asked
    assert sum(path.startswith("/blobs/") for path in hub.downloads()) == 1


def test_the_second_fetch_asks_the_hub_nothing(hub):
    publish_pair(hub)
    pinned = pin(reference())
    first = fetch(pinned)
    before = hub.requests.total()
    assert fetch(pinned) == first
    assert hub.requests.total() == before


def test_a_moved_branch_gives_the_new_commit_and_a_pinned_one_stays(hub):
    old, _ = publish_pair(hub)
    new = hub.publish(
        "model",
        ADAPTER,
        {"adapter_config.json": CONFIG, "adapter_model.safetensors": b"new", "README.md": CARD},
    )
    assert new != old
    moved = fetch(pin(reference()))
    stayed = fetch(pin(reference(adapter=f"hub:{ADAPTER}@{old}")))
    assert (moved.adapter_revision, stayed.adapter_revision) == (new, old)
    assert (moved.adapter / "adapter_model.safetensors").read_bytes() == b"new"
    assert (stayed.adapter / "adapter_model.safetensors").read_bytes() == WEIGHTS


def test_a_branch_that_moves_between_pin_and_fetch_changes_nothing(hub):
    old, _ = publish_pair(hub)
    pinned = pin(reference())
    hub.publish("model", ADAPTER, {"adapter_config.json": CONFIG, "adapter_model.safetensors": b"new"})
    pair = fetch(pinned)
    assert pair.adapter_revision == old
    assert (pair.adapter / "adapter_model.safetensors").read_bytes() == WEIGHTS


def test_a_branch_with_a_slash_can_be_named(hub):
    publish_pair(hub)
    sha = hub.publish("dataset", DATASET, {"train.jsonl": EXAMPLES}, branch="refs/pr/1")
    assert pin(reference(dataset=f"hub:{DATASET}@refs/pr/1")).dataset_revision == sha


def test_all_shards_in_data_are_taken(hub):
    publish_pair(hub)
    shards = {f"data/train-0000{k}-of-00002.parquet": b"shard %d" % k for k in range(2)}
    hub.publish("dataset", DATASET, {**shards, "data/test-00000-of-00001.parquet": b"held out"})
    pair = fetch(pin(reference()))
    assert [path.name for path in pair.dataset] == [name.removeprefix("data/") for name in shards]
    assert [path.read_bytes() for path in pair.dataset] == list(shards.values())
    assert sum(path.startswith("/blobs/") for path in hub.downloads()) == 3


def test_a_missing_shard_is_refused_before_any_download(hub):
    publish_pair(hub)
    hub.publish("dataset", DATASET, {"data/train-00000-of-00002.parquet": b"a"})
    with pytest.raises(DatasetError, match=rf"dataset {DATASET}: 1 shards .* 2 are expected"):
        pin(reference())
    assert hub.downloads() == []


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt"])
def test_pickled_weights_are_refused_before_any_download(hub, name):
    publish_pair(hub)
    hub.publish("model", ADAPTER, {"adapter_config.json": CONFIG, name: b"pickle"})
    with pytest.raises(AdapterError, match=rf"{ADAPTER}: {name} is not read, safetensors only") as error:
        pin(reference())
    assert is_one_line(error)
    assert hub.downloads() == []


def test_a_repository_that_is_no_adapter_is_refused(hub):
    publish_pair(hub)
    hub.publish("model", ADAPTER, {"config.json": "{}", "model.safetensors": b"x"})
    with pytest.raises(AdapterError, match=r"no adapter_config\.json"):
        pin(reference())


def test_an_adapter_below_is_fetched_where_it_is_certainly_meant(hub):
    publish_pair(hub)
    steps = (100, 20, 900)
    files = {
        f"checkpoint-{step}/{name}": f"{name} {step}".encode()
        for step in steps
        for name in ("adapter_config.json", "adapter_model.safetensors", "optimizer.pt")
    }
    adapter = hub.publish("model", ADAPTER, {"README.md": CARD, **files})
    pair = fetch(pin(reference()))
    assert (pair.adapter_source, pair.adapter_revision) == (f"hub:{ADAPTER}", adapter)
    assert pair.notes == ("the adapter is in checkpoint-900, the newest of 3 checkpoints",)
    assert (pair.adapter / "adapter_model.safetensors").read_bytes() == b"adapter_model.safetensors 900"
    assert pair.licence == "mit"
    asked = " ".join(hub.downloads())
    assert "checkpoint-20" not in asked
    assert "optimizer" not in asked
    hub.publish("model", ADAPTER, {"README.md": CARD, **files, "final/adapter_config.json": b"{}"})
    with pytest.raises(AdapterError, match="adapters in folders below"):
        pin(reference())


def test_the_dataset_is_taken_from_the_model_card(hub):
    _, dataset = publish_pair(hub)
    (argument,) = references_from_arguments([ADAPTER])
    pair = fetch(pin(argument))
    assert pair.name == "Tiny-7B-4b-r16-task039"
    assert (pair.dataset_source, pair.dataset_revision) == (f"hub:{DATASET}", dataset)


@pytest.mark.parametrize(
    ("card", "found"),
    [
        ("# No front matter", "found none"),
        ("---\nlicense: mit\n---\n", "found none"),
        ("---\ndatasets: [a/b, c/d]\n---\n", "found 'a/b', 'c/d'"),
        ("---\ndatasets: squad\n---\n", "'squad' is no hub reference"),
    ],
)
def test_a_card_without_one_dataset_is_refused(hub, card, found):
    publish_pair(hub, card=card)
    with pytest.raises(SourceError, match=found) as error:
        pin(reference(dataset=""))
    assert is_one_line(error)


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: apache-2.0\n---\n", "apache-2.0"),
        ("---\nlicense: other\nlicense_name: my-own\n---\n", "my-own"),
        ("---\nlicense: [mit, cc0-1.0]\n---\n", "mit, cc0-1.0"),
        ("# none", None),
    ],
)
def test_the_licence_is_the_cards_unless_the_reference_states_one(hub, card, licence):
    publish_pair(hub, card=card)
    assert pin(reference()).licence == licence
    assert pin(reference(licence="mine", group="g")).licence == "mine"


def test_one_side_may_be_local(hub, tmp_path):
    adapter, dataset = publish_pair(hub)
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(CONFIG)
    (folder / "adapter_model.safetensors").write_bytes(WEIGHTS)
    data = tmp_path / "mine.jsonl"
    data.write_text(EXAMPLES)
    left = fetch(pin(reference(adapter=str(folder))))
    assert (left.adapter, left.adapter_source, left.adapter_revision) == (folder, str(folder), None)
    assert left.dataset_revision == dataset
    right = fetch(pin(reference(dataset=str(data))))
    assert (right.dataset, right.dataset_source, right.dataset_revision) == ((data,), str(data), None)
    assert right.adapter_revision == adapter


def test_the_token_goes_to_the_hub_and_to_no_other_host(hub, monkeypatch):
    publish_pair(hub)
    hub.publish(
        "model",
        ADAPTER,
        {"adapter_config.json": CONFIG, "adapter_model.safetensors": WEIGHTS},
        token="hf_secret",
    )
    with pytest.raises(SourceError, match=r"not found on http.*HF_TOKEN"):
        pin(reference())
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch(pin(reference()))
    assert hub.authorised == {f"127.0.0.1:{hub.port} Bearer hf_secret"}


def test_what_the_hub_refuses_is_one_line(hub):
    publish_pair(hub)
    hub.publish("model", "owner/gated", {"adapter_config.json": CONFIG}, gated=True)
    cases = {
        "hub:owner/nothing": r"^adapter owner/nothing: not found on http://127.0.0.1:\d+; check OWNER/NAME",
        f"hub:{ADAPTER}@nobranch": rf"^adapter {ADAPTER}: has no revision 'nobranch'",
        f"hub:{ADAPTER}@{'0' * 40}": rf"^adapter {ADAPTER}: has no revision '{'0' * 40}'",
        "hub:owner/gated": r"^adapter owner/gated: is gated; accept its terms at .*/owner/gated and set HF_TOKEN",
    }
    for adapter, pattern in cases.items():
        with pytest.raises(SourceError, match=pattern) as error:
            pin(reference(adapter=adapter))
        assert is_one_line(error)
    with pytest.raises(SourceError, match="dataset owner/nothing: not found"):
        pin(reference(dataset="hub:owner/nothing"))


@pytest.mark.parametrize(("status", "hint"), [(500, "try again later"), (403, "valid HF_TOKEN")])
def test_a_failing_hub_is_one_line(hub, status, hint):
    publish_pair(hub)
    hub.fail("/api/models", status=status)
    with pytest.raises(SourceError, match=rf"adapter {ADAPTER}: http.* status {status}; .*{hint}") as error:
        pin(reference())
    assert is_one_line(error)


def test_a_busy_hub_is_asked_again(hub):
    adapter, _ = publish_pair(hub)
    hub.fail("/api/models", status=429, headers={"Retry-After": "0"}, times=1)
    assert pin(reference()).adapter_revision == adapter
    assert hub.requests[f"GET /api/models/{ADAPTER}/revision/main"] == 2


@pytest.mark.parametrize(
    "body", [b"<html>Log in to the network</html>", b"[]", b'{"sha": "main", "siblings": []}']
)
def test_an_answer_that_is_no_hubs_is_refused(hub, body):
    publish_pair(hub)
    hub.fail("/api/models", body=body)
    with pytest.raises(SourceError, match="not a hub's; check HF_ENDPOINT") as error:
        pin(reference())
    assert is_one_line(error)


def test_no_network_is_one_line(hub, monkeypatch):
    with HubServer() as gone:
        endpoint = gone.endpoint
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(SourceError, match=rf"adapter {ADAPTER}: cannot reach {endpoint} \(Connect") as error:
        pin(reference())
    assert is_one_line(error)


@pytest.mark.parametrize(
    "endpoint", ["hub.local", "http://", "http://[bad", "ftp://hub.local", "http://a:port"]
)
def test_a_malformed_endpoint_is_refused(hub, monkeypatch, endpoint):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(SourceError, match="HF_ENDPOINT is"):
        pin(reference())


def test_a_file_shorter_than_announced_is_not_accepted(hub):
    publish_pair(hub)
    pinned = pin(reference())
    hub.fail("/blobs/", short=0)
    with pytest.raises(SourceError, match=rf"adapter {ADAPTER}: .*10240 bytes.* 0 bytes came") as error:
        fetch(pinned)
    assert is_one_line(error)
    hub.failures.clear()
    hub.fail("/blobs/", short=4000)  # each answer is short, and the next goes on where it ended
    assert (fetch(pinned).adapter / "adapter_model.safetensors").read_bytes() == WEIGHTS


def test_a_broken_connection_is_resumed(hub):
    publish_pair(hub)
    hub.fail("/blobs/", cut=5000, times=1)
    pair = fetch(pin(reference()))
    assert (pair.adapter / "adapter_model.safetensors").read_bytes() == WEIGHTS
    assert sum(path.startswith("/blobs/") for path in hub.downloads()) == 2


def test_other_content_of_the_same_length_is_not_accepted(hub):
    publish_pair(hub)
    pinned = pin(reference())
    hub.fail("/blobs/", body=b"x" * len(WEIGHTS))
    with pytest.raises(SourceError, match="not the file that the hub describes") as error:
        fetch(pinned)
    assert is_one_line(error)


def test_a_damaged_cache_is_downloaded_again(hub):
    publish_pair(hub)
    pinned = pin(reference())
    weights = fetch(pinned).adapter / "adapter_model.safetensors"
    weights.resolve().write_bytes(WEIGHTS[:-1])
    assert (fetch(pinned).adapter / "adapter_model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("stated", [True, False], ids=["of the listing", "of the answer"])
def test_the_hash_that_weights_were_held_against_is_handed_on(hub, stated):
    """So that they are hashed once; it is known from the answer too where a listing states none."""
    publish_pair(hub)
    pinned = pin(reference())
    if not stated:
        bare = [replace(file, sha256=None, git_hash=None, size=None) for file in pinned.adapter.files]
        pinned = replace(pinned, adapter=replace(pinned.adapter, files=tuple(bare)))
    for _ in range(2):  # downloaded, and found in the cache
        assert fetch(pinned).weights_sha256 == hashlib.sha256(WEIGHTS).hexdigest()


def test_weights_that_were_held_against_no_sha256_have_none(hub, monkeypatch):
    """A disk without links holds the file itself, which says nothing of what it is; nor does git's hash."""

    def no_links(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")

    publish_pair(hub)
    pinned = pin(reference())
    bare = [replace(file, sha256=None, git_hash=None, size=None) for file in pinned.adapter.files]
    monkeypatch.setattr(os, "symlink", no_links)
    pair = fetch(replace(pinned, adapter=replace(pinned.adapter, files=tuple(bare))))
    assert (pair.adapter / "adapter_model.safetensors").read_bytes() == WEIGHTS
    assert pair.weights_sha256 is None
    assert content_of("0" * 40, 3).sha256 is None


def test_references_are_parsed():
    assert parse_reference("hub:a/b") == HubReference("a/b", None)
    assert parse_reference("a/b@refs/pr/1") == HubReference("a/b", "refs/pr/1")
    assert str(parse_reference("a/b.c-d_e@v1.0")) == "hub:a/b.c-d_e@v1.0"
    assert parse_reference("hub:a/b/experts/one two@v1") == HubReference("a/b", "v1", "experts/one two")
    assert str(parse_reference("a/b/experts/one@v1")) == "hub:a/b/experts/one@v1"


@pytest.mark.parametrize(
    "text",
    ["", "hub:", "b", "a/", "/b", "a/b/", "a/b//c",
     "a/b/../c", "a/b/c\\d", "a/b/c\n", "a/b@", "a/b@x y", "a/b@x\ny", "a/b\n", "../b", "a/..", "a/b--c", "-a/b",
     "https://huggingface.co/a/b", "a/" + "b" * 97, "ä/b"],
)  # fmt: skip
def test_what_is_no_reference_is_refused(text):
    with pytest.raises(SourceError, match="expected OWNER/NAME or OWNER/NAME@REVISION") as error:
        parse_reference(text)
    assert is_one_line(error)


def test_arguments_name_pairs():
    found = references_from_arguments(["o/one@v1=d/data@v2", "o/two"])
    assert found == [
        PairReference("one", "hub:o/one@v1", "hub:d/data@v2"),
        PairReference("two", "hub:o/two", ""),
    ]
    with pytest.raises(SourceError, match="o/one and p/ONE would both be called 'ONE'"):
        references_from_arguments(["o/one", "p/ONE"])
    with pytest.raises(SourceError, match="is no hub reference"):
        references_from_arguments(["o/one="])


FETCH = """
import sys
from bankdb.errors import BankError
from bankdb.sources.hub import fetch, pin, references_from_arguments
try:
    pair = fetch(pin(references_from_arguments(sys.argv[1:])[0]))
except BankError as error:
    sys.exit(str(error))
print(pair.adapter_revision, pair.dataset_revision, pair.licence, pair.adapter, sep="\\n")
"""


def run(hub, home, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", FETCH, *arguments],
        env=os.environ | hub.environment(home) | environment,
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_clients_environment_variables_are_honoured(hub, tmp_path):
    adapter, dataset = publish_pair(hub)
    home = tmp_path / "other"
    offline = run(hub, home, ADAPTER, HF_HUB_OFFLINE="1")
    assert offline.returncode == 1
    assert "HF_HUB_OFFLINE is set" in offline.stderr
    assert hub.requests.total() == 0

    online = run(hub, home, ADAPTER)
    assert online.stdout.splitlines()[:3] == [adapter, dataset, "mit"], online.stderr
    assert Path(online.stdout.splitlines()[3]).is_relative_to(home)

    before = hub.requests.total()
    again = run(hub, home, f"{ADAPTER}@{adapter}={DATASET}@{dataset}", HF_HUB_OFFLINE="1")
    assert again.stdout == online.stdout, again.stderr
    assert hub.requests.total() == before


def test_offline_finds_what_the_client_downloaded_by_branch(hub, tmp_path):
    adapter, dataset = publish_pair(hub)
    home = tmp_path / "other"
    code = (
        "from huggingface_hub import snapshot_download as get\n"
        f"get({ADAPTER!r}); get({DATASET!r}, repo_type='dataset')"
    )
    subprocess.run(
        [sys.executable, "-c", code], env=os.environ | hub.environment(home), check=True, timeout=60
    )
    found = run(hub, home, ADAPTER, HF_HUB_OFFLINE="1")
    assert found.stdout.splitlines()[:3] == [adapter, dataset, "mit"], found.stderr


def test_nothing_heavy_is_imported_with_the_module():
    code = (
        "import sys, bankdb.sources.hub, bankdb.datasets.read;"
        "print({'huggingface_hub', 'pyarrow', 'yaml'} & set(sys.modules))"
    )
    root = Path(__file__).parents[3]
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_pinned_sides_say_what_will_be_downloaded(hub):
    publish_pair(hub)
    pinned = pin(reference())
    assert isinstance(pinned.adapter, PinnedRepository)
    names = [file.path for file in pinned.adapter.files]
    assert names == ["adapter_config.json", "adapter_model.safetensors", "README.md"]
    assert [file.size for file in pinned.adapter.files] == [len(CONFIG), len(WEIGHTS), len(CARD)]


@pytest.mark.parametrize("kind", ["repositories", "files", "local"])
def test_what_is_wrong_with_both_sides_is_said_at_once(hub, tmp_path, kind):
    adapter, dataset = "hub:owner/a", "hub:owner/d"
    if kind == "files":
        hub.publish("model", "owner/a", {"adapter_model.bin": b"x", "adapter_config.json": CONFIG})
        hub.publish("dataset", "owner/d", {"test.jsonl": EXAMPLES})
    elif kind == "local":
        (tmp_path / "a").mkdir()
        (tmp_path / "d").mkdir()
        adapter, dataset = str(tmp_path / "a"), str(tmp_path / "d")
    locate = resolve if kind == "local" else pin
    with pytest.raises((SourceError, AdapterError, DatasetError)) as error:
        locate(reference(adapter, dataset))
    assert is_one_line(error)
    both = str(error.value).split("; and ")
    assert len(both) == 2
    for side, text in zip((adapter, dataset), both, strict=True):
        assert side.removeprefix("hub:") in text
    # Each as if it were wrong alone.
    publish_pair(hub)
    with pytest.raises((SourceError, AdapterError, DatasetError)) as alone:
        pin(reference(adapter))
    assert str(alone.value) == both[0]
    with pytest.raises((SourceError, AdapterError, DatasetError)) as alone:
        pin(reference(dataset=dataset))
    assert str(alone.value) == both[1]


@pytest.mark.parametrize(
    "found", [{}, {"README.md": "# no tokenizer"}, {"tokenizer.json": "{"}, {"tokenizer.json": "[1]"}]
)
def test_a_hub_tokenizer_that_cannot_be_had_says_what_would_do(hub, found):
    if found:
        hub.publish("model", "owner/base", found)
    with pytest.raises(TokenizerError) as error:
        BankTokenizer("owner/base")
    assert is_one_line(error)
    text = str(error.value)
    assert text.startswith("owner/base: ")
    assert "tokenizer.json" in text
    assert ("could be had from the hub" in text) == (not found)
    if not found:
        assert "a name on the hub, such as HuggingFaceTB/SmolLM2-135M-Instruct" in text


def test_a_tokenizer_comes_from_the_hub(hub, tmp_path):
    folder = write_tokenizer(tmp_path / "tokenizer")
    hub.publish("model", "owner/base", {item.name: item.read_bytes() for item in folder.iterdir()})
    assert BankTokenizer("owner/base").fingerprint == BankTokenizer(folder).fingerprint


def test_a_gated_tokenizer_says_what_to_do(hub):
    hub.publish("model", "owner/base", {"tokenizer.json": "{}"}, gated=True)
    with pytest.raises(
        TokenizerError, match=r"^owner/base: is gated; accept its terms .* set HF_TOKEN"
    ) as error:
        BankTokenizer("owner/base")
    assert is_one_line(error)
