"""The folder of a predicted adapter: its weights as PEFT reads them, what they were made from, and a model card."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bankdb.errors import BankError, ConflictError, ParameterError
from bankdb.peft.config import render_config
from bankdb.peft.folder import write_adapter_folder
from bankdb.peft.layout import AdapterLayout
from bankdb.peft.model_card import PROVENANCE_NAME, model_card
from bankdb.peft.weights import write_safetensors
from bankdb.records import AdapterRecord, BankRecord, library_versions, published
from bankdb.strict_json import parse_object
from compute.approaches.base import Fitted
from compute.approaches.options import PredictionOptions
from compute.combination.delta import DeltaForm

DTYPES = ("source", "float32", "float16", "bfloat16")
RETAINED = "retained_energy"
MEASURED = "measured"
"""What `compute.assessment` adds: how the adapter answered test examples."""


def form_record(form: DeltaForm) -> dict[str, Any]:
    """Return the rank and the scaling of an adapter combined in delta space, as its provenance has them."""
    return {
        "rank": form.layout.rank,
        "alpha": form.alpha,
        "use_rslora": form.use_rslora,
        "scaling": form.scaling,
    }


def already_there(folder: Path, record: Mapping[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """Return the record in the folder, if it holds this very prediction: a folder appears whole."""
    try:
        found = (folder / PROVENANCE_NAME).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    same = _same_prediction(found, record) if (folder / "adapter_model.safetensors").is_file() else None
    if same is None and not overwrite:
        raise ConflictError(
            f"{folder}: holds an adapter from another prediction; choose another folder, or pass --overwrite"
        )
    return same


def _same_prediction(text: bytes, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the record that is written, if it is this one but for what the making of it found out."""
    try:
        found = parse_object(text.decode())
    except ValueError:
        return None
    given = {key: value for key, value in found.items() if key not in (RETAINED, MEASURED)}
    return found if _json(given) == _json(record) else None


def chosen_dtype(asked: str, adapters: Sequence[AdapterRecord], weights: NDArray[np.float32]) -> str:
    """Return the dtype of the written weights; `source` is that of the adapters combined, float32 if they differ."""
    if asked not in DTYPES:
        raise ParameterError(f"dtype: expected one of {', '.join(DTYPES)}, found {asked!r}")
    if asked != "source":
        return asked
    used = {adapters[index].dtype for index in np.flatnonzero(weights).tolist()}
    only = used.pop()
    # A file of several dtypes, or sources of several: the one that holds them all.
    return "float32" if used or only == "mixed" else only


def provenance(
    bank: BankRecord,
    name: str,
    metric: str,
    options: PredictionOptions,
    adapters: Sequence[AdapterRecord],
    weights: NDArray[np.float32],
    dtype: str,
) -> dict[str, Any]:
    """Return everything that determines a prediction. Depends on that alone: no time, no machine."""
    used = sorted(np.flatnonzero(weights).tolist(), key=lambda index: (-weights[index], adapters[index].name))
    double = weights.astype(np.float64)
    return {
        "name": name,
        "base_model": bank.base_model,
        "base_model_revision": bank.base_model_revision,
        "tokenizer": {"name": published(bank.tokenizer_name), "fingerprint": bank.tokenizer_fingerprint},
        "text_rule": bank.text_rule,
        "metric": metric,
        "approach": options.approach,
        "parameters": options.parameters(),
        "effective_sources": float(1 / np.sum(double**2)),
        "rank": adapters[0].rank,
        "alpha": bank.alpha,
        "use_rslora": bank.use_rslora,
        "scaling": bank.scaling,
        "dtype": dtype,
        "versions": library_versions(),
        "sources": [source_record(adapters[index], float(weights[index])) for index in used],
    }


def leave_one_out(target: AdapterRecord, fitted: Fitted | None) -> dict[str, Any]:
    """Return what provenance says more of a prediction for a dataset of the bank, in the order of its file."""
    dataset = {"content_sha256": target.content_sha256, "examples": target.examples, "tokens": target.tokens}
    chosen = {} if fitted is None else {"fitted": fitted}
    return {"leave_one_out": True, **chosen, "dataset": dataset}


def source_record(adapter: AdapterRecord, coefficient: float) -> dict[str, Any]:
    """Return what a provenance record tells of one of the adapters combined."""
    return {
        "name": adapter.name,
        "coefficient": coefficient,
        "source": published(adapter.source),
        "revision": adapter.revision,
        "sha256": adapter.source_sha256,
        "scaling": adapter.scaling,
        "licence": adapter.licence,
        "group": adapter.group,
        "dataset_source": published(adapter.dataset_source),
        "dataset_revision": adapter.dataset_revision,
        "dataset_sha256": adapter.content_sha256,
    }


def _json(record: Mapping[str, Any]) -> str:
    return json.dumps(record, indent=2, ensure_ascii=False) + "\n"


def write_prediction(
    about: BankRecord,
    folder: Path,
    weights: NDArray[np.float32] | Callable[[Path], None],
    record: Mapping[str, Any],
    overwrite: bool,
    form: DeltaForm | None = None,
) -> None:
    """Write the folder of a prediction: weights, configuration, provenance and model card.

    Parameters
    ----------
    weights
        float32, shape (p,), in the bank's layout; in delta space in the form's. Or what writes the file.
    record
        What `provenance` returned, and more.

    Raises
    ------
    ConflictError
        `folder` is there and is not to be replaced.
    AdapterError
        It cannot be written, or a value is too large for the dtype.
    """
    if about.layout is None or about.alpha is None or about.use_rslora is None:
        raise BankError(
            f"bank {about.identity}: has adapters but no layout or scaling; restore the database from a copy"
        )
    layout, dtype = AdapterLayout.from_json(about.layout), str(record["dtype"])
    scaling = about.alpha, about.use_rslora
    if form is not None:
        layout, scaling = form.layout, (form.alpha, form.use_rslora)
    config = render_config(
        about.base_model,
        layout,
        scaling,
        about.task_type,
        revision=about.base_model_revision,
    )
    write_adapter_folder(
        folder,
        files={
            "adapter_config.json": config.encode(),
            "adapter_model.safetensors": weights
            if callable(weights)
            else lambda path: write_safetensors(path, weights, layout, dtype),
            PROVENANCE_NAME: _json(record).encode(),
            "README.md": model_card(record).encode(),
        },
        overwrite=overwrite,
    )
