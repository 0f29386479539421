"""Chat templates are programs in Jinja that come with a tokenizer: rendered in a process of their own, with limits.

Jinja's sandbox keeps a template from Python's objects. What it does not keep it from, loops without end and texts
without end, the kernel does: see `bankdb.templates.child`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bankdb.errors import DatasetError, TokenizerError, one_line
from bankdb.templates.child import EXPANSION, LEAST_TEXT, MEMORY, SECONDS

_WALL_SECONDS = 60
_LONGEST_TEMPLATE = 1 << 20
_CHILD = Path(__file__).with_name("child.py")


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """How a tokenizer's model is spoken to.

    Attributes
    ----------
    name
        The tokenizer's, for messages.
    text
        The template, in Jinja.
    tokens
        What special tokens are called in it, and what they are, in order of their names.
    begins
        The token that the tokenizer puts before each text by itself, which the template's text is not to repeat.
    """

    name: str
    text: str
    tokens: tuple[tuple[str, str], ...] = ()
    begins: str | None = None

    @property
    def sha256(self) -> str:
        """Hash of all that makes its texts."""
        parts = json.dumps([self.text, self.tokens, self.begins])
        return hashlib.sha256(parts.encode("utf-8", "surrogatepass")).hexdigest()


@functools.cache
def _places() -> list[str]:
    """Folders that hold Jinja and what it needs; nothing else of this process is handed on."""
    specs = [importlib.util.find_spec(name) for name in ("jinja2", "markupsafe")]
    found = [str(Path(spec.origin).parents[1]) for spec in specs if spec is not None and spec.origin]
    return list(dict.fromkeys(found))


class Renderer:
    """Renders conversations by a template; a process is started for the first, and ended by `close`.

    Attributes
    ----------
    dated
        Whether the template asked for the date, for which a fixed day stands.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self._template, self.dated = template, False
        self._process: subprocess.Popen[bytes] | None = None

    def render(self, turns: Sequence[Mapping[str, Any]], before: int) -> tuple[str, str]:
        """Return the text of the turns before number `before`, ready for an answer, and that of all.

        Raises
        ------
        DatasetError
            The template refuses the conversation; the message names no place.
        TokenizerError
            It is no template, or takes more time or memory than it may.
        """
        process = self._process or self._started()
        asked = json.dumps({"turns": list(turns), "before": before}).encode() + b"\n"
        found = self._exchange(process, asked, LEAST_TEXT * 8 + 8 * EXPANSION * len(asked))
        self.dated = self.dated or bool(found.get("dated"))
        if "error" in found:
            raise DatasetError(f"the tokenizer's chat template refuses it ({one_line(found['error'])})")
        begins = self._template.begins
        first, whole = str(found["before"]), str(found["whole"])
        return (first.removeprefix(begins), whole.removeprefix(begins)) if begins else (first, whole)

    def close(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with contextlib.suppress(OSError):
                process.communicate()

    def _started(self) -> subprocess.Popen[bytes]:
        if len(self._template.text) > _LONGEST_TEMPLATE:
            raise self._failed(f"has {len(self._template.text):,} characters")
        try:
            self._process = process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_CHILD), json.dumps(_places())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            raise self._failed(f"needs a process, which could not be started ({error.strerror})") from error
        first = json.dumps({"template": self._template.text, "tokens": dict(self._template.tokens)})
        found = self._exchange(process, first.encode() + b"\n", 1 << 16)
        if "error" in found:
            raise self._failed(f"is none ({one_line(found['error'])})")
        return process

    def _exchange(self, process: subprocess.Popen[bytes], asked: bytes, most: int) -> dict[str, Any]:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(asked)
            process.stdin.flush()
            line = self._line(process.stdout.fileno(), most)
            found: dict[str, Any] = json.loads(line)
        except (OSError, ValueError):
            self.close()
            raise self._failed(
                f"takes more than {SECONDS} s or {MEMORY >> 20} MiB for a conversation"
            ) from None
        return found

    def _line(self, stream: int, most: int) -> bytes:
        """Read one line, of at most so many bytes, in time. Raises OSError or ValueError."""
        until = time.monotonic() + _WALL_SECONDS
        waiting = select.poll()  # `select` takes no stream of a number above 1,023
        waiting.register(stream, select.POLLIN | select.POLLHUP)
        parts: list[bytes] = []
        size = 0
        while True:
            ready = waiting.poll(max(0.0, until - time.monotonic()) * 1000)
            part = os.read(stream, 1 << 20) if ready else b""
            if not part:
                raise OSError("no answer")
            parts.append(part)
            size += len(part)
            if size > most:
                raise ValueError("too long an answer")
            if part.endswith(b"\n"):
                return b"".join(parts)

    def _failed(self, why: str) -> TokenizerError:
        self.close()
        return TokenizerError(
            f"{self._template.name}: its chat template {why}; name two columns with --input-column and "
            "--output-column, or use a tokenizer without it"
        )
