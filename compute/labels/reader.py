"""The labels that ways of predicting read, with one base model for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bankdb.bank import AdapterBank
from bankdb.datasets.read import Dataset
from bankdb.progress import Progress
from bankdb.records import AdapterRecord
from compute.approaches.options import PredictionOptions
from compute.labels.answer_labels import AnsweringModel, AnswerLabels, LabelOptions
from compute.labels.examples import Examples, drawn_examples, readings_of, training_examples


class LabelReader:
    """Makes the labels of targets; the base model is loaded once, and only for losses that are not kept.

    The caller holds the compute lock while losses are asked for.
    """

    def __init__(self, bank: AdapterBank, options: LabelOptions | None, progress: Progress) -> None:
        self._bank, self._progress = bank, progress
        self.options = options or LabelOptions()
        self._models: dict[str | None, AnsweringModel] = {}

    def of_bank(
        self, way: PredictionOptions, adapters: Sequence[AdapterRecord]
    ) -> tuple[AnswerLabels, NDArray[np.bool_]]:
        """Return the labels of a bank's own datasets, and which of its N rows are asked for, shape (N,).

        Raises
        ------
        DatasetError
            Training examples of a target that is asked for cannot be read.
        BankError
            There is no such base model.
        """
        names = self.options.targets
        asked = np.asarray([names is None or record.name in names for record in adapters], dtype=np.bool_)
        rows = np.flatnonzero(asked).tolist()
        chosen = [adapters[row] for row in rows]
        readings = readings_of(self._bank, chosen)
        found = training_examples(chosen, way.examples, way.seed, self.options.data, readings)
        return self._labels(way, adapters, dict(zip(rows, found, strict=True))), asked

    def of_dataset(
        self, way: PredictionOptions, sources: Sequence[AdapterRecord], dataset: Dataset, name: str
    ) -> AnswerLabels:
        """Return the labels of one new dataset, as row 0."""
        return self._labels(way, sources, {0: drawn_examples(dataset, name, way.examples, way.seed)})

    def _labels(
        self, way: PredictionOptions, adapters: Sequence[AdapterRecord], examples: dict[int, Examples]
    ) -> AnswerLabels:
        if way.model not in self._models:
            self._models[way.model] = AnsweringModel(
                self._bank, way.model, self.options.machine, self._progress
            )
        model = self._models[way.model]
        return AnswerLabels(self._bank, adapters, examples, way, model, self._progress)
