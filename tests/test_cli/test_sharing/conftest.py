from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.servers.hub_uploads import UploadHub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[UploadHub]:
    """A hub that this process uses, with its token, and without waiting between tries."""
    with UploadHub("ada") as running:
        for name, value in running.environment(tmp_path / "hf").items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        hurried = SimpleNamespace(**vars(time) | {"sleep": lambda seconds: None})
        monkeypatch.setattr("huggingface_hub.utils._http.time", hurried)
        yield running
