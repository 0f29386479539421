"""The labelled examples that are read of a dataset: drawn by a seed, whatever file and order they came in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from bankdb.bank import AdapterBank
from bankdb.datasets.forms.rules import TEXT_RULE, Reading, Rule
from bankdb.datasets.held_out import HeldOut
from bankdb.datasets.read import Dataset, read_dataset, training_files
from bankdb.errors import DatasetError, listed
from bankdb.records import AdapterRecord, is_hub_reference


@dataclass(frozen=True, slots=True)
class Examples:
    """Labelled examples of one dataset.

    Attributes
    ----------
    name
        The dataset's.
    inputs, outputs
        Of each example.
    sha256
        Hash of both, in their order.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    sha256: str

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.inputs)


def drawn_examples(dataset: Dataset, name: str, number: int | None, seed: int) -> Examples:
    """Draw examples without replacement, all for None or where there are no more, in whatever order they come."""
    ordered = sorted(zip(dataset.inputs, dataset.outputs, strict=True))
    if number is not None and number < len(ordered):
        chosen = np.random.default_rng(seed).choice(len(ordered), size=number, replace=False)
        ordered = [ordered[index] for index in np.sort(chosen).tolist()]
    inputs, outputs = zip(*ordered, strict=True)
    return Examples(name, inputs, outputs, HeldOut.of(inputs, [(text,) for text in outputs]).sha256)


def readings_of(bank: AdapterBank, adapters: Sequence[AdapterRecord]) -> dict[str, Reading]:
    """Return how the dataset of each adapter was read when it was ingested, by its name.

    Raises
    ------
    BankFormatError
        A rule that is stored is not known to this version.
    """
    rules = bank.origins.text_rules([record.row for record in adapters])
    return {
        record.name: Reading.again(
            Rule.of_text(rules.get(record.row, TEXT_RULE)), lambda: bank.tokenizer.chat_template
        )
        for record in adapters
    }


def training_examples(
    targets: Sequence[AdapterRecord],
    number: int | None,
    seed: int,
    data: Path | None = None,
    readings: Mapping[str, Reading] = MappingProxyType({}),
) -> list[Examples]:
    """Draw examples of the training split of each target, as it was ingested; never of another split.

    Parameters
    ----------
    data
        Folder with `NAME/train.jsonl`, which goes before the place that a target was ingested from.
    readings
        How datasets were read, as `readings_of` returns it.

    Raises
    ------
    DatasetError
        Training splits are not there any more, or are others than those that were ingested; every target is named.
    """
    found, failed = [], {}
    for record in targets:
        try:
            split = training_split(record, data, readings.get(record.name))
            found.append(drawn_examples(split, record.name, number, seed))
        except DatasetError as error:
            failed[record.name] = str(error)
    if failed:
        raise DatasetError(
            f"labels: the training examples of {len(failed)} of {len(targets)} targets cannot be read: "
            f"{listed(list(failed))} ({next(iter(failed.values()))}); put them back, or leave these targets out: "
            "`bank evaluate` has --targets, and --data FOLDER with FOLDER/NAME/train.jsonl"
        )
    return found


def training_split(
    record: AdapterRecord, data: Path | None = None, reading: Reading | None = None
) -> Dataset:
    """Read again the training split that an adapter's dataset was ingested from, or what lies in `data` for it.

    Raises
    ------
    DatasetError
        It is on the hub, gone, or not what was ingested.
    """
    place, reading = record.dataset_source, reading or Reading()
    if data is not None and (data / record.name).is_dir() and _has_training(data / record.name):
        place, reading = str(data / record.name), reading.elsewhere
    elif is_hub_reference(place):
        raise DatasetError(f"{record.name} is from {place}, which is not downloaded again")
    found = read_dataset(training_files(Path(place)), reading)
    if found.sha256 != record.content_sha256:
        raise DatasetError(
            f"{record.name}: expected in {place} what was ingested, which holds other examples than those that were "
            "ingested; put them back, or ingest the pair again with --replace"
        )
    return found


def _has_training(folder: Path) -> bool:
    """Whether there is a training split beside the test split that the folder may be there for."""
    return any(part.is_file() for where in (folder, folder / "data") for part in where.glob("train[-_.]*"))
