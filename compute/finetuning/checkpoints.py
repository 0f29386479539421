"""What a killed run goes on from: one file, written whole, and checked when it is read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.durable import write_file
from bankdb.errors import BankFormatError, one_line
from bankdb.strict_json import parse_object
from compute.finetuning.trainer import TrainingState, Vector

_NAMES = ("vector", "average", "first", "second", "best")
_FILE = re.compile(r"[0-9a-f]{32}\.safetensors(\.[0-9a-f]{32}\.partial)?")
# Writing takes at most about this share of the time.
_SHARE = 0.03
_MOST_HEADER = 1 << 26


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """Training as it is after a step.

    Attributes
    ----------
    state
        What the trainer goes on from.
    best
        float32, shape (p,): the adapter with the lowest held-out loss so far.
    facts
        What was chosen and found out so far: text, numbers, lists and mappings of them.
    """

    state: TrainingState
    best: Vector
    facts: Mapping[str, Any]


class Checkpoints:
    """The checkpoint of one run, in a folder that is its own.

    Parameters
    ----------
    folder
        It is made when there is something to keep, and deleted by `discard`; None keeps nothing.
    key
        Hash of everything that changes a number of the run.
    """

    def __init__(self, folder: Path | None, key: str) -> None:
        self._folder, self._key = folder, key
        self._file = None if folder is None else folder / f"{key[:32]}.safetensors"
        self._written, self._took = 0.0, 0.0

    def read(self, parameters: int) -> Checkpoint | None:
        """Return what is kept of this run, or None.

        Parameters
        ----------
        parameters
            Of the adapter, p.

        Raises
        ------
        BankFormatError
            The file is damaged.
        """
        file = self._file
        if file is None or not file.is_file():
            return None
        try:
            if file.stat().st_size > 4 * len(_NAMES) * parameters + _MOST_HEADER:
                raise ValueError("it is larger than a checkpoint of this adapter")
            vectors, text = _load(file)
            facts = parse_object(text["facts"])
            if text["sha256"] != _sha256(self._key, text["facts"], vectors):
                raise ValueError("its checksum is another")
            if any(values.shape != (parameters,) for values in vectors.values()):
                raise ValueError("it is of another adapter")
        except (ValueError, KeyError, OSError) as error:
            raise BankFormatError(
                f"{file}: expected a checkpoint of this run, found something else ({one_line(error)}); delete it, and "
                "run the command again"
            ) from error
        step = int(facts["step"])
        state = TrainingState(step, int(facts["warmup"]), *(vectors[name] for name in _NAMES[:-1]))
        return Checkpoint(state, vectors["best"], facts)

    def is_due(self) -> bool:
        """Whether so much time has passed that writing one costs little of it."""
        return self._file is not None and time.monotonic() - self._written >= self._took / _SHARE

    def write(self, checkpoint: Checkpoint) -> None:
        """Keep it in place of the one before. Raises OSError where there is no space."""
        from safetensors.numpy import save

        if self._file is None:
            return
        started = time.monotonic()
        state = checkpoint.state
        vectors = dict(
            zip(
                _NAMES, (state.vector, state.average, state.first, state.second, checkpoint.best), strict=True
            )
        )
        facts = json.dumps({**checkpoint.facts, "step": state.step, "warmup": state.warmup}, allow_nan=False)
        text = {"facts": facts, "sha256": _sha256(self._key, facts, vectors)}
        write_file(self._file, save(vectors, metadata=text))
        self._written = time.monotonic()
        self._took = self._written - started

    def discard(self) -> None:
        """Delete the folder with every checkpoint in it, those of other options too; anything else stays."""
        if self._folder is None or self._folder.is_symlink() or not self._folder.is_dir():
            return
        for file in self._folder.iterdir():
            if _FILE.fullmatch(file.name):
                file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it holds something of somebody else
            self._folder.rmdir()


def _load(file: Path) -> tuple[dict[str, NDArray[np.float32]], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as opened:
            if sorted(opened.keys()) != sorted(_NAMES):
                raise ValueError("it has other arrays")
            found = {name: np.asarray(opened.get_tensor(name)) for name in _NAMES}
            text = dict(opened.metadata() or {})
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    if any(values.dtype != np.float32 for values in found.values()):
        raise ValueError("it is not in float32")
    return found, text


def _sha256(key: str, facts: str, vectors: Mapping[str, NDArray[np.float32]]) -> str:
    digest = hashlib.sha256(f"{key} {len(facts)} {facts}".encode())
    for name in _NAMES:
        digest.update(np.ascontiguousarray(vectors[name], dtype="<f4").tobytes())
    return digest.hexdigest()
