"""The adapter that training begins with: predicted, one of the bank, one of a folder, or one that changes nothing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bankdb.bank import AdapterBank, ready_adapters
from bankdb.datasets.read import Dataset
from bankdb.errors import BankError, ParameterError, listed
from bankdb.peft.config import plain_alpha
from bankdb.peft.weights import load_adapter
from bankdb.progress import Progress
from bankdb.records import AdapterRecord, library_versions, published
from compute.approaches.options import PredictionOptions
from compute.cluster.options import ClusterLike
from compute.combination.delta_shapes import DeltaForm
from compute.combination.tensors import combined_vector
from compute.finetuning.options import PREDICTED, ZERO
from compute.finetuning.trainer import Vector, untrained
from compute.generation.machine import Machine
from compute.prediction.predict import predict
from compute.prediction.prediction import Prediction
from compute.prediction.provenance import source_record


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """What training begins with.

    Attributes
    ----------
    vector
        float32, shape (p,), in the form's layout and scaling.
    form
        Modules, rank and scaling.
    dtype
        What `source` means for it: `float32`, `float16` or `bfloat16`.
    origin
        What it is, as the provenance has it.
    prediction
        Where it is predicted: how.
    sources
        Where it is one adapter: that of the bank, as provenance has sources; else none.
    """

    vector: Vector
    form: DeltaForm
    dtype: str
    origin: dict[str, Any]
    prediction: Prediction | None = None
    sources: tuple[dict[str, Any], ...] = ()

    @property
    def sha256(self) -> str:
        """Hash of its weights, modules and scaling."""
        form = self.form
        digest = hashlib.sha256(f"{form.layout.to_json()} {form.alpha} {form.use_rslora}\n".encode())
        digest.update(np.ascontiguousarray(self.vector, dtype="<f4").tobytes())
        return digest.hexdigest()

    def told(self) -> str:
        """What it is, in a few words."""
        kind = str(self.origin["kind"])
        if self.prediction is not None:
            return "the predicted adapter"
        return "an adapter that changes nothing" if kind == ZERO else f"the adapter {self.origin['name']}"


def bank_form(bank: AdapterBank) -> DeltaForm:
    """Modules, rank and scaling of the bank's own adapters. Raises BankError for a bank without scaling."""
    about, layout = bank.record, bank.layout
    if about.alpha is None:
        raise BankError(f"{bank.path}: has adapters but no scaling; restore the database from a copy")
    return DeltaForm(layout, about.alpha, bool(about.use_rslora))


def start_of(
    bank: AdapterBank,
    asked: str,
    dataset: Dataset,
    name: str,
    seed: int,
    *,
    way: PredictionOptions | None,
    include_same: bool,
    machine: Machine,
    cluster: ClusterLike,
    memory: int | None,
    progress: Progress,
) -> Start:
    """Make or find the adapter that training begins with.

    Parameters
    ----------
    asked
        See `FinetuneOptions.start`; a name of the bank comes before a folder of that name.

    Raises
    ------
    ParameterError
        It is none of these.
    AdapterError
        The folder is no adapter of the bank's base model.
    """
    if asked == PREDICTED:
        made = predict(
            bank,
            dataset,
            way,
            name=name,
            include_same=include_same,
            machine=machine,
            cluster=cluster,
            memory=memory,
            progress=progress,
        )
        form = bank_form(bank) if made.delta is None else made.delta.form
        return Start(made.vector, form, made.provenance()["dtype"], {"kind": PREDICTED}, made)
    for note in (*bank.tokenizer.notes, *dataset.notes):
        progress.note(note)
    if asked == ZERO:
        form, dtype = bank_form(bank), bank.record.dtype
        return Start(untrained(form.layout, seed), form, _one_dtype(dtype), {"kind": ZERO, "seed": seed})
    found = next((record for record in ready_adapters(bank) if record.name == asked), None)
    return _of_bank(bank, found, progress) if found is not None else _of_folder(bank, asked)


def _of_bank(bank: AdapterBank, record: AdapterRecord, progress: Progress) -> Start:
    form = bank_form(bank)
    vector = combined_vector(bank, [record], np.ones(1, dtype=np.float32), progress=progress)
    origin = {"kind": "adapter", "name": record.name}
    return Start(vector, form, _one_dtype(record.dtype), origin, None, (source_record(record, 1.0),))


def _of_folder(bank: AdapterBank, asked: str) -> Start:
    folder = Path(asked)
    if not folder.is_dir():
        names = listed([record.name for record in ready_adapters(bank)], 3)
        raise ParameterError(
            f"start: expected {PREDICTED}, {ZERO}, an adapter of the bank ({names}) or an adapter's folder, found "
            f"{asked!r}, which is neither; `bank list` lists the adapters"
        )
    about = bank.record
    found = load_adapter(folder, base_models=(about.base_model, *about.base_model_aliases))
    form = DeltaForm(found.layout, found.config.alpha, found.config.use_rslora)
    origin = {"kind": "folder", "name": published(str(folder.absolute())), "sha256": found.sha256}
    return Start(found.vector, form, _one_dtype(found.dtype), origin)


def _one_dtype(dtype: str | None) -> str:
    """The dtype that holds all values of a file of several."""
    return "float32" if dtype in (None, "mixed") else str(dtype)


def start_record(bank: AdapterBank, start: Start, dataset: Dataset, name: str) -> dict[str, Any]:
    """Return what determines the start, as a prediction's provenance has it; of no prediction without coefficients."""
    if start.prediction is not None:
        return start.prediction.provenance()
    about, form = bank.export_record(), start.form
    return {
        "name": name,
        "base_model": about.base_model,
        "base_model_revision": about.base_model_revision,
        "tokenizer": {"name": published(about.tokenizer_name), "fingerprint": about.tokenizer_fingerprint},
        "text_rule": about.text_rule,
        "metric": "none",
        "approach": "none",
        "parameters": {},
        "rank": form.layout.rank,
        "alpha": plain_alpha(form.scaling, form.layout.rank),
        "use_rslora": False,
        "scaling": form.scaling,
        "dtype": start.dtype,
        "versions": library_versions(),
        "sources": list(start.sources),
        "dataset": {
            "content_sha256": dataset.sha256,
            "examples": len(dataset),
            **({} if dataset.rule is None else {"text_rule": dataset.rule.as_text}),
        },
    }
