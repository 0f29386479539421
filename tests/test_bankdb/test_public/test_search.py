"""What an owner, a collection or a library has for a bank, on the tests' hub by the real client."""

from __future__ import annotations

import dataclasses

import pytest

from bankdb.errors import ParameterError, SourceError
from bankdb.public.gathering import Wanting
from bankdb.public.known import known_banks
from bankdb.public.search import Search
from bankdb.public.selection import Selection
from bankdb.records import RefusedPair
from tests.support.servers.public_bank import OWNER, card, hub_here, publish_bank

BASE = "owner/base"
FILES = {"adapter_config.json": "{}", "adapter_model.safetensors": "w" * 10}
DATA = {"data/train-00000-of-00001.parquet": "p" * 5, "data/test-00000-of-00001.parquet": "t"}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with hub_here(tmp_path, monkeypatch) as server:
        yield server


def search(*base_models, **selection):
    return Search(Wanting(base_models or (BASE,), lambda name: None, Selection(**selection)))


def adapter(hub, name, *, owner="o", gated=False, token=None, files=None, **stated):
    text = card(stated.pop("base_model", BASE), **stated)
    return hub.publish(
        "model", f"{owner}/{name}", {**(files or FILES), "README.md": text}, gated=gated, token=token
    )


def dataset(hub, name, *, owner="o", gated=False):
    return hub.publish("dataset", f"{owner}/{name}", DATA, gated=gated)


def reasons(found):
    assert all("\n" not in one.reason for one in found.refused)
    return {one.name: one.reason for one in found.refused}


def test_502_pairs_take_a_listing_of_each_kind_and_no_request_a_pair(hub, tmp_path):
    publish_bank(hub, tmp_path / "files", 502, unmatched={3, 250, 502}, gated={77})
    found = Search(Wanting(("example/tiny-llama",), lambda name: None, Selection())).owner(OWNER)
    assert len(found.pairs) == 498
    assert found.by() == {"number": 498}
    assert found.adapters == 502
    assert sorted(reasons(found)) == [f"Tiny-4b-r4-task{number:03d}" for number in (3, 77, 250, 502)]
    assert "is gated; accept its terms at" in reasons(found)["Tiny-4b-r4-task077"]
    # A page has 500 entries: two of models, one of 499 datasets.
    assert hub.asked() == hub.listings() == 3
    first = found.references[0]
    commits = {repo_id: one.branches["main"] for (_, repo_id), one in hub.repositories.items()}
    assert first.adapter == f"hub:{OWNER}/{first.name}@{commits[f'{OWNER}/{first.name}']}"
    assert first.dataset == f"hub:{OWNER}/task001_source1_words@{commits[f'{OWNER}/task001_source1_words']}"
    assert found.size(lambda name: None)[1] == 0


def test_only_adapters_of_the_base_model_are_kept(hub):
    adapter(hub, "task1", base_model=["x/other", BASE.upper()])
    adapter(hub, "task2", base_model="x/quantised")
    adapter(hub, "task3", base_model=None)
    adapter(hub, "task4", base_model="/home/me/model")
    adapter(hub, "task5", base_model="x/quantised")
    hub.publish("model", "o/whole-model", {"model.safetensors": "w", "README.md": card(BASE)})
    for number in range(1, 6):
        dataset(hub, f"task{number}_data")
    found = search().owner("o")
    assert [one.name for one in found.references] == ["task1", "task3", "task4"]
    assert (found.adapters, found.unstated) == (5, 2)
    assert found.other_base_models == {"x/quantised": 2}
    assert [one.name for one in search(BASE, "x/quantised").owner("o").references] == [
        "task1", "task2", "task3", "task4", "task5"
    ]  # fmt: skip


def test_two_datasets_of_one_number_are_refused_by_name(hub):
    adapter(hub, "r16-task7")
    dataset(hub, "task7_a")
    dataset(hub, "task007_b")
    found = search().owner("o")
    assert not found.pairs
    assert "2 datasets carry its task number 7: o/task007_b@" in reasons(found)["r16-task7"]


def test_cards_that_name_datasets_elsewhere_cost_a_listing_of_their_owner_or_a_request_each(hub):
    for number in range(4):
        adapter(hub, f"a{number}", datasets=[f"far/data{number}"])
        dataset(hub, f"data{number}", owner="far")
    adapter(hub, "b", datasets=["single/data"])
    dataset(hub, "data", owner="single")
    adapter(hub, "c", datasets=["single/none"])
    adapter(hub, "d", datasets=["../../etc"])
    found = search().owner("o")
    assert found.by() == {"card": 5}
    assert "not found" in reasons(found)["c"]
    assert "is no hub reference" in reasons(found)["d"]
    # Models and datasets of o, the datasets of far, and the two of single.
    assert hub.listings() == 3
    assert hub.asked() == 5
    assert all("@" in one.dataset for one in found.references)


def test_limit_include_and_exclude_choose_by_name(hub):
    for number in (2, 10, 100, 20):
        adapter(hub, f"r16-task{number}")
        dataset(hub, f"task{number}_data")
    assert [one.name for one in search(limit=3).owner("o").references] == [
        "r16-task2", "r16-task10", "r16-task20"
    ]  # fmt: skip
    found = search(include=("task1*", "*k2"), exclude=("*100*",)).owner("o")
    assert [one.name for one in found.references] == ["r16-task2", "r16-task10"]
    assert found.not_wanted == 2


def test_pickles_and_private_and_gated_repositories_are_named(hub, monkeypatch):
    adapter(hub, "task1", files={"adapter_config.json": "{}", "adapter_model.bin": "PK"})
    adapter(hub, "task2", gated=True)
    adapter(hub, "task3", token="secret")
    for number in (1, 2, 3, 4):
        dataset(hub, f"task{number}_data", gated=number == 4)
    adapter(hub, "task4")
    found = search().owner("o")
    assert not found.pairs
    assert "adapter_model.bin is not read, safetensors only" in reasons(found)["task1"]
    assert "adapter o/task2: is gated" in reasons(found)["task2"]
    assert "dataset o/task4_data: is gated" in reasons(found)["task4"]
    monkeypatch.setenv("HF_TOKEN", "secret")
    found = search().owner("o")
    # What is gated may be granted to the token: only a download tells.
    assert [one.name for one in found.references] == ["task2", "task3", "task4"]


def test_a_known_bank_has_its_names_groups_and_rank(hub, monkeypatch):
    known = dataclasses.replace(known_banks()["lots-of-loras"], owner="o", base_model=BASE)
    monkeypatch.setattr("bankdb.public.known.known_banks", lambda: {known.name: known})
    for rank in (8, 16):
        adapter(hub, f"base-r{rank}-task33")
    dataset(hub, "task033_winogrande_answer")
    found = search().owner("o")
    assert [one.name for one in found.references] == ["task033_winogrande_answer"]
    assert found.references[0].adapter.startswith("hub:o/base-r16-task33@")
    assert found.group_pattern == known.group_pattern
    assert found.notes[0].startswith(
        "o is lots-of-loras: adapters *-r16-task*, pairs are called as their datasets"
    )
    both = search(include=("*",)).owner("o")
    assert len(both.pairs) == 1
    assert "would be called 'task033_winogrande_answer' as o/base-r8-task33 is" in both.refused[0].reason or (
        "would be called 'task033_winogrande_answer' as o/base-r16-task33 is" in both.refused[0].reason
    )
    # Of a bank of another base model nothing is usual.
    assert search("x/other").owner("o").group_pattern is None


def test_a_collection_has_its_own_datasets_or_those_of_the_owners(hub):
    for number in range(1, 5):
        adapter(hub, f"task{number}", owner="p" if number == 4 else "o")
        dataset(hub, f"task{number}_data", owner="p" if number == 4 else "o")
    models = [("model", "o/task1"), ("model", "o/task2"), ("model", "o/task3"), ("model", "p/task4")]
    hub.collect("o/mine-1a2b", [*models, ("dataset", "o/task1_data"), ("paper", "2507.01806")])
    hub.collect("o/bare-1a2b", [*models, ("model", "o/gone")])
    found = search().collection("o/mine-1a2b")
    assert [one.name for one in found.references] == ["task1"]
    assert set(reasons(found)) == {"task2", "task3", "task4"}
    bare = search().collection("o/bare-1a2b")
    assert [one.name for one in bare.references] == ["task1", "task2", "task3", "task4"]
    assert "adapter o/gone: not found" in reasons(bare)["gone"]


@pytest.mark.parametrize(
    ("slug", "message"),
    [
        ("o", "'o' is no collection; expected OWNER/TITLE-HASH"),
        ("../../x", "is no collection"),
        ("o/none-1", "collection o/none-1: not found on http"),
        ("o/empty-1", "expected adapters that PEFT has saved, found 0 models"),
    ],
)
def test_a_collection_that_cannot_be_had(hub, slug, message):
    hub.collect("o/empty-1", [("dataset", "o/d")])
    with pytest.raises(SourceError) as error:
        search().collection(slug)
    assert message in str(error.value)


def library(hub, names, **stated):
    files = {f"experts/{name}/{file}": text for name in names for file, text in FILES.items()}
    return hub.publish("model", "o/library", {**files, "README.md": card(BASE, **stated)})


def test_a_library_has_an_adapter_a_folder_and_its_datasets_in_one_repository(hub):
    sha = library(hub, ["boolq", "rte", "task5", "none"], datasets=["o/flat"])
    files = {"boolq.jsonl": "{}", "rte/train.jsonl": "{}", "rte/test.jsonl": "{}",
             "task005_x/data/train.parquet": "p", "README.md": ""}  # fmt: skip
    data = hub.publish("dataset", "o/flat", files)
    found = search().repository("o/library")
    assert found is not None
    assert {one.name: one.dataset for one in found.references} == {
        "boolq": f"hub:o/flat/boolq.jsonl@{data}",
        "rte": f"hub:o/flat/rte@{data}",
        "task5": f"hub:o/flat/task005_x@{data}",
    }
    assert found.references[0].adapter == f"hub:o/library/experts/boolq@{sha}"
    assert "none of the folders and files of dataset o/flat has its name" in reasons(found)["none"]
    assert hub.asked() == 2
    given = search().repository("o/library/experts", "o/flat/rte")
    assert given is not None
    assert not given.pairs  # one dataset is not that of four adapters


def test_a_library_whose_datasets_are_repositories(hub):
    library(hub, ["boolq", "task5"])
    for name in ("boolq", "task5_words"):
        dataset(hub, name)
    found = search().repository("o/library")
    assert found is not None
    assert found.by() == {"name": 1, "number": 1}
    # An owner's listing has the adapters of a library too.
    assert len(search().owner("o").pairs) == 2


def test_a_repository_with_one_adapter_is_no_library(hub):
    adapter(hub, "one")
    hub.publish(
        "model",
        "o/run",
        {f"checkpoint-{step}/{file}": text for step in (9, 10) for file, text in FILES.items()},
    )
    assert search().repository("o/one") is None
    assert search().repository("o/run") is None


def test_the_verb_takes_what_was_found(hub, empty_bank):
    with pytest.raises(
        SourceError, match=r"o: expected adapters that PEFT has saved .* found no model repository"
    ):
        empty_bank.search_hub("o")
    adapter(hub, "one", base_model="example/tiny-llama")
    with pytest.raises(ParameterError, match="o/one: is one adapter"):
        empty_bank.search_hub("o/one")
    found = empty_bank.search_hub("o")
    assert found.refused == (RefusedPair("one", found.refused[0].reason),)
    assert "FoundPairs: o" in repr(found)
    report = empty_bank.ingest(found)
    assert [one.name for one in report.refused] == ["one"]
