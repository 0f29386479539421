"""The folder of a predicted adapter: its weights as PEFT reads them, what they were made from, and a model card."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bankdb.errors import BankError, ConflictError, ParameterError
from bankdb.gguf.export import GGUF_NAME, MODELFILE_NAME, GgufExport, tensors_beside
from bankdb.peft.config import CONFIG_NAME, plain_alpha, render_config
from bankdb.peft.folder import Content, write_adapter_folder
from bankdb.peft.layout import AdapterLayout
from bankdb.peft.model_card import PROVENANCE_NAME, model_card
from bankdb.peft.weights import WEIGHTS_NAME, write_safetensors
from bankdb.records import AdapterRecord, BankRecord, library_versions, published
from bankdb.strict_json import parse_object
from compute.approaches.base import Fitted
from compute.approaches.options import PredictionOptions
from compute.combination.delta_shapes import DeltaForm

DTYPES = ("source", "float32", "float16", "bfloat16")
RETAINED = "retained_energy"
NOVELTY = "novelty"
"""How far the dataset is from all sources: see `compute.metrics.novelty`; of large banks told where it is known."""
MEASURED = "measured"
"""What `compute.assessment` adds: how the adapter answered test examples."""
GGUF = "gguf"
"""What is said of the file for llama.cpp, where there is one."""


def form_record(form: DeltaForm) -> dict[str, Any]:
    """Return the rank and the scaling of an adapter combined in delta space, as its provenance has them."""
    return {
        "rank": form.layout.rank,
        "alpha": plain_alpha(form.scaling, form.layout.rank),
        "use_rslora": False,
        "scaling": form.scaling,
    }


def already_there(
    folder: Path, record: Mapping[str, Any], overwrite: bool, gguf: GgufExport | None = None
) -> dict[str, Any] | None:
    """Return the record in the folder, if it holds this very prediction with all its files: a folder appears whole."""
    try:
        found = (folder / PROVENANCE_NAME).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    files = ([] if gguf is not None and gguf.alone else [WEIGHTS_NAME]) + (
        [] if gguf is None else [GGUF_NAME]
    )
    whole = all((folder / name).is_file() for name in files)
    same = _same_prediction(found, _with_gguf(record, gguf)) if whole else None
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
    more = {RETAINED, MEASURED, NOVELTY} | ({GGUF} - record.keys())
    given, asked = ({key: value for key, value in one.items() if key not in more} for one in (found, record))
    return found if _json(given) == _json(asked) else None


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
    used = sorted(
        np.flatnonzero(weights).tolist(), key=lambda index: (-abs(weights[index]), adapters[index].name)
    )
    double, rank = weights.astype(np.float64), adapters[0].rank
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
        "rank": rank,
        "alpha": None if bank.scaling is None else plain_alpha(bank.scaling, rank),
        "use_rslora": False,
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
    """Return it as JSON, a source a line: hundreds of them, in hundreds of folders, are slow to spread over more."""
    entries = (f"  {_encoded(key)}: {_value(value)}" for key, value in record.items())
    return "{\n" + ",\n".join(entries) + "\n}\n"


def _value(value: Any) -> str:
    if isinstance(value, list) and value and all(isinstance(entry, Mapping) for entry in value):
        return "[\n" + ",\n".join(f"    {_encoded(entry)}" for entry in value) + "\n  ]"
    return json.dumps(value, indent=2, ensure_ascii=False).replace("\n", "\n  ")


def _encoded(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _with_gguf(record: Mapping[str, Any], gguf: GgufExport | None) -> Mapping[str, Any]:
    """Return a record with what is said of the file for llama.cpp, if there is to be one."""
    return record if gguf is None else {**record, GGUF: gguf.facts(record["scaling"], record["rank"])}


def write_prediction(
    about: BankRecord,
    folder: Path,
    weights: NDArray[np.float32] | Callable[[Path], None],
    record: Mapping[str, Any],
    overwrite: bool,
    form: DeltaForm | None = None,
    gguf: GgufExport | None = None,
) -> None:
    """Write the folder of a prediction: weights, configuration, provenance and model card.

    Parameters
    ----------
    weights
        float32, shape (p,), in the bank's layout; in delta space in the form's. Or what writes the file.
    record
        What `provenance` returned, and more.
    gguf
        Write it for llama.cpp too, or alone: of the very numbers that PEFT's file holds.

    Raises
    ------
    ConflictError
        `folder` is there and is not to be replaced.
    AdapterError, GgufError
        It cannot be written, or not exactly; or a value is too large for the dtype.
    """
    if about.layout is None or about.scaling is None:
        raise BankError(
            f"bank {about.identity}: has adapters but no layout or scaling; restore the database from a copy"
        )
    layout, scaling = AdapterLayout.from_json(about.layout), about.scaling
    if form is not None:
        layout, scaling = form.layout, form.scaling
    config = render_config(
        about.base_model,
        layout,
        (plain_alpha(scaling, layout.rank), False),
        about.task_type,
        revision=about.base_model_revision,
    )
    record, dtype = _with_gguf(record, gguf), str(record["dtype"])
    to_file = weights if callable(weights) else partial(_to_file, weights, layout, dtype)
    files: dict[str, Content] = {CONFIG_NAME: config.encode(), WEIGHTS_NAME: to_file}
    if gguf is not None:
        names = {"name": str(record["name"]), "base_model": published(about.base_model)}
        write = gguf.writer(tensors_beside(layout, dtype), layout, scaling, names)
        if gguf.alone:
            files = {GGUF_NAME: partial(_by_weights, to_file, write)}
        else:
            files[GGUF_NAME] = write
        files[MODELFILE_NAME] = gguf.modelfile().encode()
    files |= {PROVENANCE_NAME: _json(record).encode(), "README.md": model_card(record).encode()}
    write_adapter_folder(folder, files=files, overwrite=overwrite)


def _to_file(vector: NDArray[np.float32], layout: AdapterLayout, dtype: str, path: Path) -> None:
    write_safetensors(path, vector, layout, dtype)


def _by_weights(to_file: Callable[[Path], None], write: Callable[[Path], None], path: Path) -> None:
    """Write what is made from PEFT's file, where that is not to stay."""
    weights = path.with_name(WEIGHTS_NAME)
    weights.touch()
    to_file(weights)
    write(path)
    weights.unlink()
