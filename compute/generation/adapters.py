"""Adapters from anywhere that a base model answers with: of any rank and modules, read and checked."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bankdb.errors import ParameterError, listed
from bankdb.peft.layout import AdapterLayout
from bankdb.peft.weights import is_base_model, load_adapter


@dataclass(frozen=True, slots=True, eq=False)
class GivenAdapter:
    """An adapter that need not be of a bank.

    Attributes
    ----------
    name
        How it is called beside others.
    base_model
        As its configuration states it.
    layout, vector, scaling
        Its tensors, float32 of shape (p,), and the factor on B A.
    about
        Where it is from, or how it was made.
    notes
        What was left out or assumed, a line each.
    """

    name: str
    base_model: str
    layout: AdapterLayout
    vector: NDArray[np.float32]
    scaling: float
    about: str = ""
    notes: tuple[str, ...] = ()

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return A and B of every module, by name."""
        return self.layout.unflatten(self.vector)

    @property
    def sha256(self) -> str:
        """Hash of all that its answers depend on, whatever file it is from."""
        digest = hashlib.sha256(b"adapter\n")
        for spec in self.layout.tensors:
            digest.update(f"{len(spec.name)} {spec.name} {spec.shape}\n".encode())
        digest.update(struct.pack("<d", self.scaling))
        digest.update(np.ascontiguousarray(self.vector, dtype="<f4").data)
        return digest.hexdigest()


def read_given(folder: str | Path, name: str | None = None) -> GivenAdapter:
    """Read an adapter's folder.

    Raises
    ------
    AdapterError
        It is no plain LoRA adapter: see `bankdb.peft.weights.load_adapter`.
    """
    path = Path(folder)
    found = load_adapter(path)
    return GivenAdapter(
        name or path.resolve().name,
        found.config.base_model,
        found.layout,
        found.vector,
        found.config.scaling,
        str(folder),
        found.notes,
    )


def distinct_names(folders: Sequence[str | Path], taken: Sequence[str] = ()) -> list[str]:
    """Return what to call adapters: the last names of their folders, or whole paths where these are not distinct.

    Parameters
    ----------
    taken
        Names that something else has.

    Raises
    ------
    ParameterError
        A folder is given twice.
    """
    whole = [Path(folder).resolve() for folder in folders]
    twice = sorted({str(folder) for folder in folders if whole.count(Path(folder).resolve()) > 1})
    if twice:
        raise ParameterError(f"adapter: {twice[0]} is given twice; give each once")
    last = [path.name for path in whole]
    return [
        name if last.count(name) == 1 and name not in taken else str(path)
        for name, path in zip(last, whole, strict=True)
    ]


def stated_base_model(adapters: Sequence[GivenAdapter]) -> str:
    """Return the base model that all adapters state.

    Raises
    ------
    ParameterError
        They state several, or there is no adapter.
    """
    if not adapters:
        raise ParameterError("model: expected the base model's folder or name, found none; pass --model")
    names = list(dict.fromkeys(adapter.base_model for adapter in adapters))
    if not all(is_base_model(name, names[:1]) for name in names):
        raise ParameterError(
            f"model: the adapters state several base models ({listed(names)}); pass the one that fits all with --model"
        )
    return names[0]
