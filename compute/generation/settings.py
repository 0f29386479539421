"""What determines answers besides the adapter and the test examples."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from bankdb.progress import Progress, SilentProgress
from compute.generation.base_model import earlier_fingerprint, end_ids, hash_of_files, model_fingerprint
from compute.generation.prompts import MARGIN

# Part of what answers are found again by: raised when a change of the code changes answers.
_VERSION = 2


@dataclass(frozen=True, slots=True)
class AnswerSettings:
    """What answers are kept under, beside the adapter and the test examples.

    Batches, threads and the device only change how sums are rounded, and are left out.

    Attributes
    ----------
    model
        Hash of the base model: see `model_fingerprint`.
    ends
        Token ids that end an answer, beside the tokenizer's.
    tokenizer, tokenizer_files
        The tokenizer's fingerprint, and a hash of its files: it also turns answers into text, and ends them.
    dtype
        Of the base model, and what merged weights are rounded to.
    margin
        Tokens that an answer may have beyond the longest reference.
    """

    model: str
    ends: tuple[int, ...]
    tokenizer: str
    tokenizer_files: str
    dtype: str
    margin: int = MARGIN

    @property
    def sha256(self) -> str:
        """Hash of all of it."""
        return _sha256(
            {
                "generation": _VERSION,
                "model": self.model,
                "ends": self.ends,
                "tokenizer": self.tokenizer,
                "tokenizer files": self.tokenizer_files,
                "dtype": self.dtype,
                "margin": self.margin,
            }
        )


def answer_settings(
    folder: Path, tokenizer: str, tokenizer_folder: Path, dtype: str, progress: Progress
) -> AnswerSettings:
    """Return the settings of answers, without loading anything: every byte of the base model is read.

    Parameters
    ----------
    folder
        Of the base model.
    tokenizer, tokenizer_folder
        Its fingerprint, and its files.

    Raises
    ------
    BankError
        A file cannot be read.
    """
    names = sorted(
        str(file.relative_to(tokenizer_folder)) for file in tokenizer_folder.rglob("*") if file.is_file()
    )
    files = hash_of_files(tokenizer_folder, names, SilentProgress())
    ends = tuple(sorted(end_ids(folder)))
    return AnswerSettings(model_fingerprint(folder, progress), ends, tokenizer, files, dtype)


def earlier_settings(folder: Path, settings: AnswerSettings) -> tuple[str, bool]:
    """Return what version 0.1.0 kept answers of this model under, and whether they are certainly of it."""
    model, certain = earlier_fingerprint(folder)
    key = {
        "generation": 1,
        "model": model,
        "tokenizer": settings.tokenizer,
        "dtype": settings.dtype,
        "margin": settings.margin,
    }
    return _sha256(key), certain


def _sha256(content: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
