"""What a person sees: progress on standard error, tables and JSON on standard output.

Whatever is printed goes through here, and what a terminal would obey is escaped on the way: names, groups, licences,
answers and messages may hold what strangers wrote.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bankdb.errors import printable
from bankdb.shown import size_text

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from bankdb.progress import Progress

# Seconds between two lines about one stage where there is no terminal to draw a bar on.
_LINE_SECONDS = 5.0


def tell(text: str, *, err: bool = False) -> None:
    """Print one line."""
    click.echo(printable(text), err=err)


def tell_piece(text: str) -> None:
    """Print a piece of an answer as it comes; line breaks and tabs stay."""
    click.echo(printable(text, keep="\n\t"), nl=False)
    sys.stdout.flush()


def shown_progress() -> Progress:
    """Return bars on a terminal, and plain lines anywhere else; logged too, where a log was asked for.

    A scheduler with a dashboard shows it as well.
    """
    from bankdb.progress import PublishedProgress
    from cli.logs.json_lines import LoggedProgress, logs_progress

    shown = _on_screen()
    return PublishedProgress(LoggedProgress(shown) if logs_progress() else shown)


def _on_screen() -> Progress:
    if not sys.stderr.isatty():
        return LineProgress()
    bars = BarProgress()
    # However the command ends, the terminal has its cursor back.
    click.get_current_context().call_on_close(bars.stop)
    return bars


def _bytes(count: int, expected: int) -> str:
    """Return how many bytes came, of how many where more are announced."""
    text = size_text(count)
    return f"{text} of {size_text(expected)}" if expected > count else text


class LineProgress:
    """A line when a stage begins, one every few seconds, and one when it ends."""

    def __init__(self) -> None:
        self._stage = ""
        self._total = self._done = 0
        self._started = self._told = 0.0
        self._received = ""
        self._lock = threading.Lock()

    def begin(self, stage: str, total: int) -> None:
        """Tell the stage and its number of steps."""
        self._stage, self._total, self._done = stage, total, 0
        self._started = self._told = time.monotonic()
        self._received = ""
        tell(f"{stage}: 0/{total}", err=True)

    def advance(self, steps: int = 1) -> None:
        """Count steps; tell of them now and then."""
        with self._lock:
            self._done += steps
        self._tell()

    def received(self, count: int, expected: int) -> None:
        """Tell of bytes with the steps, and now and then while none is done."""
        self._received = f", {_bytes(count, expected)}"
        self._tell()

    def _tell(self) -> None:
        with self._lock:
            now = time.monotonic()
            if now - self._told < _LINE_SECONDS:
                return
            self._told = now
            text = f"{self._stage}: {self._done}/{self._total}{self._received}"
            if self._done:
                left = (now - self._started) / self._done * (self._total - self._done)
                text += f", about {left:.0f} s left"
        tell(text, err=True)

    def end(self) -> None:
        """Tell how long the stage took."""
        seconds = time.monotonic() - self._started
        tell(f"{self._stage}: {self._total}/{self._total}{self._received} in {seconds:.1f} s", err=True)

    def note(self, text: str) -> None:
        """Print a line."""
        tell(text, err=True)


class BarProgress:
    """A bar for the stage that runs, with the time left; it stays as a line when the stage ends."""

    def __init__(self) -> None:
        self._bars: RichProgress | None = None
        self._task: TaskID | None = None

    def begin(self, stage: str, total: int) -> None:
        """Draw a bar."""
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.stop()
        self._bars = Progress(
            TextColumn("{task.description:<28}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[received]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._bars.start()
        self._task = self._bars.add_task(printable(stage), total=total, received="")

    def advance(self, steps: int = 1) -> None:
        """Move the bar."""
        if self._bars is not None and self._task is not None:
            self._bars.advance(self._task, steps)

    def received(self, count: int, expected: int) -> None:
        """Show bytes beside the steps."""
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, received=_bytes(count, expected))

    def end(self) -> None:
        """Leave the bar full, also of a stage whose steps nobody counts."""
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=self._bars.tasks[self._task].total)
        self.stop()

    def stop(self) -> None:
        """Leave the bar as it is: the stage was broken off."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        if self._bars is not None:
            self._bars.console.print(printable(text), highlight=False, markup=False)
        else:
            tell(text, err=True)


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    click.echo(json_text(value))


def print_part(text: str) -> None:
    """Print a part of what is printable already, such as JSON, without ending the line."""
    click.echo(text, nl=False)


def json_text(value: Any) -> str:
    """Return a value as JSON that can be printed."""
    return _escaped(json.dumps(value, indent=2, ensure_ascii=not _unicode_output(), allow_nan=False))


def json_line(value: Any, *, to_file: bool = False) -> str:
    """Return a value as JSON on one line, for standard output or a file."""
    return _escaped(json.dumps(value, ensure_ascii=not (to_file or _unicode_output()), allow_nan=False))


def _escaped(text: str) -> str:
    # Such characters stand in strings alone, where JSON has escapes for them.
    return re.sub(r"[^\n -~]+", _escaped_in_json, text)


def _escaped_in_json(found: re.Match[str]) -> str:
    return "".join(one if printable(one) == one else json.dumps(one)[1:-1] for one in found[0])


def _unicode_output() -> bool:
    return (getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")


def print_table(
    headings: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    title: str | None = None,
    same: bool = False,
) -> None:
    """Print a table; numbers to the right, text to the left.

    Parameters
    ----------
    same
        On a terminal that is too narrow, say below it what a column says in each row alike.
    """
    from cli.tables import table_lines, without_same

    terminal = sys.stdout.isatty()
    width, said = shutil.get_terminal_size().columns if terminal else None, ""
    if same:
        headings, rows, said = without_same(headings, list(rows), width)
    lines = table_lines(
        headings,
        rows,
        title=title,
        width=width,
        bold=terminal and "NO_COLOR" not in os.environ,
        ascii_only=not _unicode_output(),
    )
    click.echo("\n".join(lines))
    if said:
        tell(f"each of them: {said}")


def write_csv(path: Path, parts: str | Iterable[str]) -> None:
    """Write a table as `write_text` does, with what a terminal would obey escaped in a file too."""
    parts = (parts,) if isinstance(parts, str) else parts
    write_text(path, (printable(part, keep="\n\t") for part in parts))


def write_text(path: Path, text: str | Iterable[str]) -> None:
    """Write text of several lines, whole or in parts, into a file; `-` is standard output.

    A file appears whole or not at all; see `bankdb.arrays.durable.write_whole`.
    """
    if str(path) == "-":
        for part in (text,) if isinstance(text, str) else text:
            click.echo(printable(part, keep="\n\t"), nl=False)
    else:
        from bankdb.arrays.durable import write_whole

        write_whole(path, text)
