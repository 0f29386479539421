"""The folder below that is certainly meant, and those of which none is."""

from __future__ import annotations

from pathlib import Path

import pytest

from bankdb.errors import AdapterError
from bankdb.sources.adapter_files import adapter_below, local_adapter, notes_of

FILES = ("adapter_config.json", "adapter_model.safetensors")


def whole(*folders: str) -> list[str]:
    return [f"{folder}/{file}" for folder in folders for file in FILES]


MEANT = [
    (whole("default"), "default"),
    (whole("checkpoint-900", "checkpoint-1000"), "checkpoint-1000"),
    (whole("checkpoint-9", "checkpoint-10", "checkpoint-100", "checkpoint-99"), "checkpoint-100"),
    (whole("my adapter, the second"), "my adapter, the second"),
    (whole("out/run/checkpoint-2", "out/run/checkpoint-10"), "out/run/checkpoint-10"),
    (
        [*whole("checkpoint-5"), "checkpoint-6/optimizer.pt", "runs/events", "trainer_state.json"],
        "checkpoint-5",
    ),
]
NOT_MEANT = [
    whole("a", "b"),
    whole("checkpoint-1", "final"),
    whole("a/checkpoint-1", "b/checkpoint-2"),
    # The newest has its weights as a pickle.
    [*whole("checkpoint-1"), "checkpoint-2/adapter_config.json", "checkpoint-2/adapter_model.bin"],
    # Something of an adapter lies above.
    [*whole("checkpoint-1"), "adapter_config.json"],
    [*whole("checkpoint-1"), "adapter_model.bin"],
    [*whole("checkpoint-1"), "adapters.safetensors"],
    ["a/adapter_config.json", "b/adapter_model.safetensors"],
]


@pytest.mark.parametrize(("files", "expected"), MEANT, ids=lambda one: one if isinstance(one, str) else "")
def test_one_below_is_meant(files: list[str], expected: str) -> None:
    below = adapter_below(files, "here")
    assert below == expected
    (note,) = notes_of(below, files)
    assert note.startswith(f"the adapter is in {expected}, ")
    assert ("the newest of" in note) == (sum(name.endswith(FILES[0]) for name in files) > 1)


@pytest.mark.parametrize("files", NOT_MEANT, ids=lambda one: one[-1])
def test_none_below_is_certainly_meant(files: list[str]) -> None:
    with pytest.raises(AdapterError, match="here: no "):
        adapter_below(files, "here")


@pytest.mark.parametrize("below", [None, "checkpoint-3", "run 1"])
def test_a_folder_on_disk(tmp_path: Path, below: str | None) -> None:
    place = tmp_path / below if below else tmp_path
    place.mkdir(exist_ok=True)
    for file in FILES:
        (place / file).touch()
    (tmp_path / "logs").mkdir()
    found = local_adapter(str(tmp_path))
    assert found.path == place
    assert bool(found.notes) == (below is not None)


def test_what_lies_above_comes_first(tmp_path: Path) -> None:
    for file in (*FILES, *whole("checkpoint-3")):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    assert local_adapter(str(tmp_path)) == local_adapter(f"{tmp_path}/.")
    assert local_adapter(str(tmp_path)).path == tmp_path
