"""The dashboard's page for a bank, `/bank`: what the terminal shows of each run, and which workers were lost.

The local cluster of a command has it. A scheduler that somebody else starts has it by
`dask scheduler --preload compute.cluster.bank_page`.
"""

from __future__ import annotations

import contextlib
import time
from html import escape
from typing import TYPE_CHECKING, Any

from distributed.http.utils import RequestHandler

from bankdb.progress import Progress, PublishedProgress
from compute.cluster.lost_workers import lost_workers

if TYPE_CHECKING:
    from distributed import Client, Scheduler

_KEY = "lora-bank"
# Seconds between two states that are sent while steps are counted.
_SECONDS = 0.5
# Runs on a page, the newest first, and lines of each.
_RUNS, _NOTES = 10, 12
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem;max-width:60rem}table{border-collapse:collapse}"
    "td,th{padding:.2rem 1rem .2rem 0;text-align:left}td+td,th+th{text-align:right}progress{width:12rem}"
    "p.lost{color:#a00}small{color:#666}"
)


def publish(progress: Progress, client: Client) -> None:
    """Let the client's scheduler know how far the runs of `progress` are, from now on; it waits for no answer.

    Nothing happens with a progress that keeps nothing: see `bankdb.progress.PublishedProgress`.
    """
    if not isinstance(progress, PublishedProgress):
        return
    sent = 0.0
    connected: Any = client  # Dask states None for what a client that runs has

    async def send(state: dict[str, Any]) -> None:
        # A scheduler that is gone is told by the tasks that do not come back.
        with contextlib.suppress(OSError):
            await connected.scheduler.set_metadata(keys=[_KEY, connected.id], value=state)

    def changed(whole: bool) -> None:
        nonlocal sent
        if connected.status == "running" and (whole or time.monotonic() - sent > _SECONDS):
            sent = time.monotonic()
            connected.loop.add_callback(send, progress.state())

    progress.tell(client.id, changed)  # of a client that several workflows are given, once


class BankPage(RequestHandler):
    """The page."""

    def get(self) -> None:
        """Answer with the state of now; the browser asks again every two seconds."""
        scheduler = self.server
        runs = scheduler.task_metadata.get(_KEY, {}).values()
        self.set_header("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
        lost = lost_workers(message for _, message in scheduler.get_events("all"))
        self.write(page(list(runs), len(scheduler.workers), lost))


routes: list[tuple[str, type, dict[str, Any]]] = [("/bank", BankPage, {})]


def dask_setup(scheduler: Scheduler) -> None:
    """Give a scheduler the page: what `--preload` calls."""
    scheduler.http_application.add_handlers(".*$", [("/bank", BankPage, {"dask_server": scheduler})])


def page(runs: list[dict[str, Any]], workers: int, lost: list[str]) -> str:
    """Return the page.

    Parameters
    ----------
    runs
        As `PublishedProgress` states them.
    workers
        How many the scheduler has.
    lost
        A line for each that is gone.
    """
    newest = sorted(runs, key=lambda run: float(run["changed"]), reverse=True)[:_RUNS]
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8><meta http-equiv=refresh content=2>",
        f"<title>lora-bank</title><style>{_STYLE}</style></head><body><h1>lora-bank</h1>",
        f"<p>{workers} workers. Tasks and memory: <a href=status>Dask's pages</a>.</p>",
        *(f"<p class=lost>{escape(line)}</p>" for line in lost),
        *map(_run, newest),
        "" if newest else "<p>No run has begun.</p>",
    ]
    return "".join([*parts, "</body></html>"])


def _run(run: dict[str, Any]) -> str:
    rows = "".join(map(_stage, run["stages"]))
    notes = "".join(f"<p><small>{escape(str(note))}</small></p>" for note in run["notes"][-_NOTES:])
    begun = time.strftime("%H:%M:%S", time.gmtime(run["begun"]))
    return f"<h2>Begun at {begun} UTC</h2><table><tr><th>step<th>done<th><th>bytes<th>seconds</tr>{rows}</table>{notes}"


def _stage(stage: dict[str, Any]) -> str:
    done, total = int(stage["done"]), int(stage["total"])
    count = f"{stage['bytes']:,}" if stage["bytes"] else ""
    return (
        f"<tr><td>{escape(str(stage['name']))}<td>{done:,} of {total:,}"
        f"<td><progress value={done} max={max(total, 1)}></progress><td>{count}<td>{stage['seconds']:.1f}</tr>"
    )
