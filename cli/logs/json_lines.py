"""A log of JSON, a line an event: what the project and its libraries log, warnings, and progress by stage.

There is none unless it is asked for. Secrets that may stand in what libraries log are left out.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from bankdb.errors import FileSystemError

if TYPE_CHECKING:
    from bankdb.progress import Progress

LEVELS = ("debug", "info", "warning", "error")
PROGRESS = "bank.progress"
_HIDDEN = "***"
# What these variables hold is nobody's business, wherever it is logged.
_SECRETS = ("PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_PATTERNS = (
    (re.compile(r"(://[^/\s:@]*:)[^\s@]+(?=@)"), rf"\1{_HIDDEN}"),  # of a URL with user and password
    (re.compile(r"\bhf_[A-Za-z0-9]{8,}"), _HIDDEN),
    # With what stands around a name and its value in headers, options, and how Python shows them.
    (
        re.compile(
            r"(?i)((?:password|passwd|secret[\w-]*|session[_-]?token|[\w-]*security-token|authorization|access[_-]?token)"
            r"['\"]?\s*[:=,]\s*b?['\"]?)[^'\"\n]+"
        ),
        rf"\1{_HIDDEN}",
    ),
)


def without_secrets(text: str) -> str:
    """Return a text with passwords, tokens and keys left out."""
    for name in _SECRETS:
        if (value := os.environ.get(name)) and len(value) > 3:
            text = text.replace(value, _HIDDEN)
    for pattern, shown in _PATTERNS:
        text = pattern.sub(shown, text)
    return text


class JsonLines(logging.Formatter):
    """A record as one line: time, level, logger, message, and of progress its event, stage, steps and total."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        values: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": without_secrets(record.getMessage()),
        }
        values |= getattr(record, "event_values", {})
        if record.exc_info:
            values["traceback"] = without_secrets(self.formatException(record.exc_info))
        return json.dumps(values)


@contextlib.contextmanager
def logging_to(level: str | None, file: Path | None) -> Iterator[None]:
    """Log into a file, at its end, or to standard error, from a level on; nothing if neither is given.

    Raises
    ------
    FileSystemError
        The file cannot be written.
    """
    if level is None and file is None:
        yield
        return
    try:
        handler = (
            logging.StreamHandler(sys.stderr) if file is None else logging.FileHandler(file, encoding="utf-8")
        )
    except OSError as error:
        raise FileSystemError(
            f"--log-file {file}: cannot be written ({error.strerror}); choose another file"
        ) from error
    handler.setFormatter(JsonLines())
    root, before = logging.getLogger(), logging.getLogger().level
    root.addHandler(handler)
    root.setLevel((level or "info").upper())
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        root.setLevel(before)
        handler.close()


class LoggedProgress:
    """Shows progress as another does, and logs when a stage begins and ends, its steps, and notes."""

    def __init__(self, shown: Progress) -> None:
        self._shown, self._log = shown, logging.getLogger(PROGRESS)
        self._stage, self._total, self._done = "", 0, 0

    def begin(self, stage: str, total: int) -> None:
        """Log and show that a stage begins."""
        self._stage, self._total, self._done = stage, total, 0
        self._tell(logging.INFO, "begin")
        self._shown.begin(stage, total)

    def advance(self, steps: int = 1) -> None:
        """Log, for whoever debugs, and show steps."""
        self._done += steps
        self._tell(logging.DEBUG, "advance")
        self._shown.advance(steps)

    def received(self, count: int, expected: int) -> None:
        """Log, for whoever debugs, and show bytes."""
        if self._log.isEnabledFor(logging.DEBUG):
            values = {"event": "received", "stage": self._stage, "bytes": count, "expected": expected}
            self._log.debug("%s: received", self._stage, extra={"event_values": values})
        self._shown.received(count, expected)

    def end(self) -> None:
        """Log and show that the stage has ended."""
        self._tell(logging.INFO, "end")
        self._shown.end()

    def note(self, text: str) -> None:
        """Log and show a line."""
        self._log.info("%s", text, extra={"event_values": {"event": "note"}})
        self._shown.note(text)

    def _tell(self, level: int, event: str) -> None:
        if self._log.isEnabledFor(level):
            values = {"event": event, "stage": self._stage, "steps": self._done, "total": self._total}
            self._log.log(level, "%s: %s", self._stage, event, extra={"event_values": values})


def logs_progress() -> bool:
    """Whether progress is logged: a log was asked for."""
    return any(isinstance(handler.formatter, JsonLines) for handler in logging.getLogger().handlers)


def log_failure(text: str) -> None:
    """Log what ends a command, where a log was asked for."""
    if logs_progress():
        logging.getLogger("bank").error("%s", text)
