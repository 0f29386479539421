"""What an adapter has to be to be of a bank, and whether it is the one that the bank has."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bankdb.errors import AdapterError
from bankdb.records import AdapterRecord, Pair, Taking
from bankdb.storage.stored_bank import StoredBank

if TYPE_CHECKING:
    from bankdb.peft.layout import AdapterLayout
    from bankdb.peft.opened import FreedVectors
    from bankdb.peft.weights import SourceAdapter


@dataclass(frozen=True, slots=True)
class Expected:
    """What an adapter has to be; without a layout, none of those to come can be read."""

    base_models: tuple[str, ...]
    layout: AdapterLayout | None
    revision: str | None

    def load(
        self,
        folder: Path,
        taking: Taking,
        sha256: str | None = None,
        freed: FreedVectors | None = None,
    ) -> SourceAdapter:
        """Read an adapter that is this, or becomes it; `sha256` is that of its file, where that is known.

        Raises
        ------
        AdapterError
            It is refused: see `bankdb.peft.weights.load_adapter`; or of another revision of the base model.
        """
        from bankdb.peft.weights import load_adapter

        found = load_adapter(
            folder,
            expected=self.layout,
            base_models=self.base_models,
            taking=taking,
            sha256=sha256,
            freed=freed,
        )
        self._check_revision(folder, found.config.revision)
        return found

    def check_configuration(self, folder: Path, taking: Taking) -> None:
        """Check what an adapter's configuration says alone, before its weights are there.

        Raises
        ------
        AdapterError
            It is refused, or of another base model, or of another revision of it.
        """
        from bankdb.peft.config import CONFIG_NAME, read_config
        from bankdb.peft.weights import check_base_model

        config = read_config(folder / CONFIG_NAME, self.base_models[0] if taking.assume_base_model else None)
        check_base_model(folder, config.base_model, self.base_models)
        self._check_revision(folder, config.revision)

    def _check_revision(self, folder: Path, found: str | None) -> None:
        from bankdb.peft.checks import other_revision
        from bankdb.peft.config import CONFIG_NAME

        if self.layout is not None and found != self.revision:
            raise AdapterError(other_revision(str(folder / CONFIG_NAME), self.revision, found))


def expected_of(bank: StoredBank, pairs: Sequence[Pair], taking: Taking) -> Expected:
    """Return what the bank's adapters are; for an empty bank, what most of the adapters to come are."""
    from bankdb.peft.config import CONFIG_NAME, read_config
    from bankdb.peft.weights import is_base_model, read_layout

    record = bank.record
    base_models = (record.base_model, *record.base_model_aliases)
    if record.layout is not None:
        return Expected(base_models, bank.layout, record.base_model_revision)
    assumed = record.base_model if taking.assume_base_model else None
    votes: Counter[tuple[AdapterLayout, str | None]] = Counter()
    for pair in pairs:
        try:
            config = read_config(pair.adapter / CONFIG_NAME, assumed)
            if is_base_model(config.base_model, base_models):
                votes[read_layout(pair.adapter, assumed), config.revision] += 1
        except AdapterError:
            continue  # refused with its reason when its turn comes
    layout, revision = votes.most_common(1)[0][0] if votes else (None, None)
    return Expected(base_models, layout, revision)


def is_unchanged(bank: StoredBank, present: AdapterRecord, pair: Pair, content_sha256: str) -> bool:
    """Whether a pair's three hashes are those in the bank; the configuration holds the scaling."""
    from bankdb.peft.config import CONFIG_NAME
    from bankdb.peft.weights import WEIGHTS_NAME, taken_config

    if present.content_sha256 != content_sha256:
        return False
    if _file_sha256(pair.adapter / WEIGHTS_NAME) != present.source_sha256:
        return False
    if _file_sha256(pair.adapter / CONFIG_NAME) == present.config_sha256:
        return True
    try:  # of one that was brought to the bank's layout, the configuration that it has there
        text = taken_config(pair.adapter, bank.layout, bank.record.base_model)
    except AdapterError:
        return False
    return hashlib.sha256(text.encode()).hexdigest() == present.config_sha256


def _file_sha256(path: Path) -> str:
    if not path.is_file():  # to open a named pipe would wait for ever
        raise AdapterError(f"{path}: a file was expected, as ingested before; put it back")
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise AdapterError(
            f"{path}: cannot be read ({error.strerror}); "
            "expected the file that was ingested before, or one to replace it"
        ) from error
