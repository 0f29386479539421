"""The dashboard's page for a bank: what a run's progress says, while it runs and after, and which workers were lost."""

from __future__ import annotations

import os
import signal
import time
import urllib.request
from collections.abc import Callable

import pytest

from bankdb.bank import AdapterBank
from bankdb.progress import PublishedProgress
from compute.approaches.options import PredictionOptions
from compute.cluster.bank_page import page
from compute.cluster.local import local_client
from compute.cluster.options import ClusterOptions
from compute.prediction.predict_all import predict_all
from tests.support.banks.recorded_progress import RecordedProgress

RUN = {
    "begun": 0.0,
    "changed": 1.0,
    "notes": ["3 of 9 tiles were there", "<script>alert(1)</script>"],
    "stages": [{"name": "gram & more", "done": 3, "total": 9, "bytes": 2_500_000, "seconds": 1.25}],
}


def test_a_page_says_what_the_terminal_does() -> None:
    text = page([RUN], 2, ["worker tls://x was lost: 1 task runs again"])
    for part in (
        "gram &amp; more",
        "3 of 9",
        "2,500,000",
        "1.2",
        "3 of 9 tiles were there",
        "2 workers",
        "worker tls://x",
    ):
        assert part in text
    assert "<script>" not in text
    assert "No run has begun" in page([], 0, [])


def test_the_newest_run_is_first() -> None:
    runs = [RUN | {"changed": float(number), "notes": [f"run {number}"]} for number in range(30)]
    text = page(runs, 1, [])
    assert text.index("run 29") < text.index("run 28")
    assert "run 3<" not in text


def test_a_state_is_what_was_shown() -> None:
    shown = RecordedProgress()
    progress, told = PublishedProgress(shown), list[bool]()
    progress.tell("one", lambda whole: told.append(not whole))
    progress.tell("one", told.append)
    progress.begin("gram", 3)
    progress.advance(2)
    progress.received(10, 20)
    progress.note("a line")
    progress.begin("distances", 1)
    progress.end()
    state = progress.state()
    assert [(one["name"], one["done"], one["total"], one["bytes"]) for one in state["stages"]] == [
        ("gram", 2, 3, 10),
        ("distances", 0, 1, 0),
    ]
    assert state["notes"] == ["a line"]
    assert told == [False, True, True, False, False, True, True, True]
    assert list(shown.stages) == ["gram", "distances"]


def asked(address: str, until: Callable[[str], bool]) -> str:
    text, ends = "", time.monotonic() + 30
    while time.monotonic() < ends:
        with urllib.request.urlopen(address, timeout=10) as answer:
            text = answer.read().decode()
        if until(text):
            return text
        time.sleep(0.1)
    raise AssertionError(text)


@pytest.mark.faults
def test_a_run_on_processes_is_shown_and_a_worker_that_is_lost(bank: AdapterBank) -> None:
    progress = PublishedProgress(RecordedProgress())
    with local_client(ClusterOptions(workers=2)) as client:
        address = client.dashboard_link.replace("/status", "/bank")
        assert "No run has begun" in asked(address, lambda text: True)
        predict_all(bank, PredictionOptions(metric="js"), cluster=client, progress=progress)
        stages = {one["name"] for one in progress.state()["stages"]}
        assert stages
        text = asked(address, lambda text: all(f"<td>{name}" in text for name in stages))
        assert "2 workers" in text
        os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)
        assert "was lost" in asked(address, lambda text: "was lost" in text)
