"""What a training run of a learning curve found out, and what that is kept under."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bankdb.arrays.durable import write_whole
from bankdb.bank import AdapterBank
from bankdb.errors import BankFormatError, one_line
from bankdb.records import GenerationKey
from bankdb.strict_json import parse_object

FOLDER = "curves"
# Raised when a change of the code changes what is trained.
_VERSION = 2


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """What determines training beside the start and the examples: see `FinetuneOptions`.

    Attributes
    ----------
    model, tokenizer
        Hashes of the base model and of the tokenizer.
    dtype
        Of the base model while it is trained on.
    """

    model: str
    tokenizer: str
    dtype: str
    learning_rate: float
    batch_size: int
    seed: int

    def run_sha256(self, start: str, examples: str) -> str:
        """Hash of all that determines a run, however long."""
        return _sha256(["curve", _VERSION, asdict(self), start, examples])


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """What a run found out, beside its answers.

    Attributes
    ----------
    key
        See `TrainingSettings.run_sha256`.
    losses
        Of each step, on its batch, before it; nats a token of the answers.
    held_out
        Loss on the examples held out, by the number of steps done.
    seconds
        Of all steps, held-out losses apart.
    """

    key: str
    losses: tuple[float, ...]
    held_out: dict[str, float]
    seconds: float

    @property
    def steps(self) -> int:
        """Steps done."""
        return len(self.losses)

    def best(self, steps: int) -> int:
        """Return the number of steps, up to `steps`, at which the held-out loss was lowest; the fewest of equal."""
        return min((loss, int(step)) for step, loss in self.held_out.items() if int(step) <= steps)[1]


def answer_key(run: str, start: str, step: int, test: str, settings: str) -> GenerationKey:
    """What the answers after a number of steps are kept under; those of the start as any evaluation keeps them."""
    return GenerationKey(start if step == 0 else _sha256([run, step]), test, settings)


def run_path(bank: AdapterBank, key: str) -> Path:
    """Return the file that a run is kept in."""
    return bank.path / FOLDER / f"{key[:32]}.json"


def store_run(bank: AdapterBank, run: TrainingRun) -> None:
    """Keep a run in the bank's folder, with a hash of what it says."""
    path = run_path(bank, run.key)
    path.parent.mkdir(exist_ok=True)
    content = asdict(run)
    write_whole(path, json.dumps({**content, "sha256": _sha256(content)}, allow_nan=False))


def stored_run(bank: AdapterBank, key: str) -> TrainingRun | None:
    """Return a run that is kept, or None. Raises BankFormatError if it is damaged."""
    path = run_path(bank, key)
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = parse_object(path.read_text(encoding="utf-8"))
        stated = content.pop("sha256")
        if stated != _sha256(content) or content["key"] != key:
            raise ValueError("its checksum is another")
        return TrainingRun(**content | {"losses": tuple(content["losses"])})
    except (ValueError, KeyError, TypeError) as error:
        raise BankFormatError(
            f"{path}: expected a training run, found something else ({one_line(error)}); delete the file, and run the "
            "command again"
        ) from error


def _sha256(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
