"""The labels of a bank's targets: their examples, the base model, and the losses that are kept."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bankdb.bank import AdapterBank
from bankdb.derived import digest_of, row_of, space_of
from bankdb.errors import ComputeError
from bankdb.progress import Progress
from bankdb.records import AdapterRecord, published
from compute.approaches.options import PredictionOptions
from compute.cluster.machine import core_count
from compute.combination.tensors import combined_tensors
from compute.generation.adapted_model import AdaptedModel
from compute.generation.base_model import model_folder
from compute.generation.generate import load_generator, threads_of_torch
from compute.generation.labelled import (
    AnswerLoss,
    LabelledExample,
    answer_end,
    check_labelled,
    encode_labelled,
)
from compute.generation.machine import Machine
from compute.generation.settings import answer_settings
from compute.labels.examples import Examples
from compute.labels.kept_losses import KeptLosses
from compute.types import FloatArray

# Part of what losses are kept under: raised when a change of the code changes them.
_VERSION = 1
_BATCH = 8


@dataclass(frozen=True, slots=True)
class LabelOptions:
    """Where labels are read, and of which targets; all of it but the machine's `dtype` changes no number.

    Attributes
    ----------
    machine
        Where the base model computes.
    data
        Folder with `NAME/train.jsonl`, in place of where the bank's datasets were ingested from.
    targets
        Names of the targets that are asked for; None is all.
    """

    machine: Machine = field(default_factory=Machine)
    data: Path | None = None
    targets: tuple[str, ...] | None = None


class AnsweringModel:
    """The base model of a bank, loaded when the first loss is asked for that is not kept.

    Parameters
    ----------
    model
        Its folder or its name on the hub; None is the name that the bank has.
    """

    def __init__(self, bank: AdapterBank, model: str | None, machine: Machine, progress: Progress) -> None:
        self._bank, self._machine = bank, machine
        self.name = model or bank.record.base_model
        self.folder = model_folder(self.name)
        self.settings = answer_settings(
            self.folder,
            bank.record.tokenizer_fingerprint,
            bank.path / "tokenizer",
            machine.dtype,
            progress,
        )
        self._encoded: dict[str, tuple[LabelledExample, ...]] = {}

    @functools.cached_property
    def end(self) -> int:
        """The token that ends an answer: see `answer_end`."""
        return answer_end(self._bank.tokenizer, self.settings.ends, self.folder)

    def key(self) -> dict[str, Any]:
        """Return all that a loss depends on beside the adapter and the examples."""
        return {
            "version": _VERSION,
            "model": self.settings.model,
            "tokenizer": self.settings.tokenizer,
            "tokenizer_files": self.settings.tokenizer_files,
            "dtype": self.settings.dtype,
            "end": self.end,
        }

    def loss(self, tensors: Mapping[str, NDArray[Any]], scaling: float, examples: Examples) -> float:
        """Return the mean loss of all tokens of the answers with an adapter, in nats."""
        adapted, machine = self._adapted, self._machine
        encoded = self._encoded.get(examples.sha256)
        if encoded is None:
            encoded = encode_labelled(
                self._bank.tokenizer, examples.inputs, examples.outputs, self.end, examples.name
            )
            check_labelled(adapted.model, encoded, examples.name)
            self._encoded = {examples.sha256: encoded}
        adapted.apply(tensors, scaling)
        with threads_of_torch(machine.threads or core_count()):
            loss = AnswerLoss(adapted.model).mean(encoded, machine.batch_size or _BATCH)
        if not (np.isfinite(loss) and loss >= 0):
            raise ComputeError(
                f"{examples.name}: expected a finite loss of the base model on its examples, found {loss} with dtype "
                f"{machine.dtype}; check the model, or use float32"
            )
        return loss

    @functools.cached_property
    def _adapted(self) -> AdaptedModel:
        machine = self._machine
        return load_generator(
            self.folder,
            self._bank.layout,
            self._bank.tokenizer,
            device=machine.device,
            dtype=machine.dtype,
        ).adapted


class AnswerLabels:
    """What an approach reads of the labels of some targets: see `compute.approaches.base.Labels`.

    Parameters
    ----------
    adapters
        The sources, in the order of the coefficients.
    examples
        Of each target, by its row.
    way
        How it is predicted: in which space sources are combined.
    """

    def __init__(
        self,
        bank: AdapterBank,
        adapters: Sequence[AdapterRecord],
        examples: Mapping[int, Examples],
        way: PredictionOptions,
        model: AnsweringModel,
        progress: Progress,
    ) -> None:
        self._bank, self._adapters, self._examples = bank, adapters, examples
        self._way, self._model, self._progress = way, model, progress
        self._kept: dict[int, KeptLosses] = {}

    def loss(self, target: int, weights: FloatArray) -> float:
        """Return the loss of one combination on the examples of a target, kept or computed now."""
        single = weights.astype(np.float32)
        used = np.flatnonzero(single)
        sources, single = [self._adapters[index] for index in used.tolist()], single[used]
        if target not in self._kept:
            self._kept[target] = KeptLosses(self._bank, self._made_from(target), self._progress)
            self._progress.advance()
        kept, adapter = self._kept[target], self._adapter(sources, single)
        found = kept.find(adapter)
        if found is None:
            way = self._way
            tensors = combined_tensors(self._bank, sources, single, way.space, way.rank, way.merge_method)
            found = self._model.loss(*tensors, self._examples[target])
            kept.keep(adapter, found)
        return found

    def about(self, target: int) -> dict[str, Any]:
        """Return what the losses of a target were made from, for its record."""
        examples, key = self._examples[target], self._model.key()
        return {
            "examples": len(examples),
            "examples_sha256": examples.sha256,
            "seed": self._way.seed,
            "model": published(self._model.name),
            "model_sha256": key["model"],
            "dtype": key["dtype"],
        }

    def sha256(self) -> str:
        """Return a hash of all targets' examples and of the model, for what is stored under the choice."""
        return digest_of(
            model=self._model.key(),
            examples=[[target, self._examples[target].sha256] for target in sorted(self._examples)],
        )

    def _made_from(self, target: int) -> str:
        return digest_of(kind="losses", model=self._model.key(), examples=self._examples[target].sha256)

    def _adapter(self, sources: Sequence[AdapterRecord], weights: NDArray[np.float32]) -> str:
        """Hash of all that determines the weights of a combination."""
        rows = sorted(
            (row_of(source), float(weight).hex()) for source, weight in zip(sources, weights, strict=True)
        )
        way = self._way
        merged = way.merge_method.parameters()
        return digest_of(rows=rows, space=way.space, rank=way.rank, **merged, **space_of(self._bank))
