"""An adapter's GGUF and what goes with it: its facts for provenance and card, and Ollama's Modelfile."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bankdb.errors import AdapterError, BankFormatError, one_line
from bankdb.gguf.base_model import BaseModel
from bankdb.gguf.placement import Placed, placed_modules
from bankdb.peft.header import numpy_dtype
from bankdb.peft.layout import AdapterLayout
from bankdb.peft.weights import WEIGHTS_NAME, safetensors_start

GGUF_NAME, MODELFILE_NAME = "adapter.gguf", "Modelfile"
_FLOAT32 = np.dtype("<f4")


@dataclass(frozen=True, slots=True)
class GgufExport:
    """How adapters of a bank are written for llama.cpp: `AdapterBank.gguf` makes one.

    Attributes
    ----------
    base
        What is known of the base model.
    alone
        Whether PEFT's two files are left out.
    """

    base: BaseModel
    alone: bool = False

    def check(self, layout: AdapterLayout) -> None:
        """Raise the GgufError or ParameterError that writing an adapter of this layout would."""
        placed_modules(layout, self.base)

    def facts(self, scaling: float, rank: int) -> dict[str, Any]:
        """Return what provenance says of the file."""
        base = self.base
        turned = base.architecture.neighbours
        return {
            "architecture": base.architecture.name,
            "alpha": float(np.float32(scaling * rank)),
            "dtype": "float32",
            **({"heads": base.heads, "key_value_heads": base.key_value_heads} if turned else {}),
            "base": base.gguf or "config.json",
            "alone": self.alone,
        }

    def modelfile(self) -> str:
        """Return a Modelfile for `ollama create`, which stands beside the adapter."""
        return (
            "# The base model: its GGUF beside this file, or the name of a model that Ollama has of the same weights.\n"
            f"FROM ./{one_line(self.base.gguf or 'base.gguf', 255)}\n"
            f"ADAPTER ./{GGUF_NAME}\n"
            "# A prompt is the input as it stands, without a chat template.\n"
            'TEMPLATE """{{ .Prompt }}"""\n'
            "PARAMETER temperature 0\n"
        )

    def writer(
        self,
        tensors: Callable[[Path], Mapping[str, NDArray[Any]]],
        layout: AdapterLayout,
        scaling: float,
        names: Mapping[str, str],
    ) -> Callable[[Path], None]:
        """Return what writes the GGUF at a path, for `write_adapter_folder`.

        Parameters
        ----------
        tensors
            Gives the layout's tensors, called with the GGUF's path when that is written.
        names
            `name` and `base_model`, for its metadata.
        """

        def write(path: Path) -> None:
            placed = placed_modules(layout, self.base)
            _write(path, placed, tensors(path), self.base, scaling * layout.rank, names)

        return write


def tensors_beside(layout: AdapterLayout, dtype: str) -> Callable[[Path], dict[str, NDArray[Any]]]:
    """Return what reads the tensors of the `adapter_model.safetensors` beside a path, as they were written there."""

    def read(path: Path) -> dict[str, NDArray[Any]]:
        weights = path.with_name(WEIGHTS_NAME)
        start, kind = safetensors_start(layout, dtype), numpy_dtype(dtype)
        with weights.open("rb") as file:
            if (
                file.read(len(start)) != start
                or os.fstat(file.fileno()).st_size != len(start) + kind.itemsize * layout.size
            ):
                raise BankFormatError(f"{weights}: not what was written; run the same command again")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        vector = np.frombuffer(data, dtype=kind, offset=len(start))
        return layout.unflatten(vector)

    return read


def _write(
    path: Path,
    placed: list[Placed],
    tensors: Mapping[str, NDArray[Any]],
    base: BaseModel,
    alpha: float,
    names: Mapping[str, str],
) -> None:
    """Write a GGUF, a tensor at a time, in float32, as llama.cpp's converter does unless told otherwise.

    llama.cpp's factor of B @ A is alpha / rank. It rounds what it multiplies by a matrix to the matrix's own dtype, so
    that factors in 16 bits would cost more than their own digits.
    """
    import gguf

    writer = gguf.GGUFWriter(None, base.architecture.name)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    writer.add_name(names["name"])
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, names["base_model"])
    parts = [(one, factor) for one in placed for factor in "ab"]
    for one, factor in parts:
        rank = one.module.a.shape[0]
        shape = (rank, one.module.d_in) if factor == "a" else (one.d_out, rank)
        size = _FLOAT32.itemsize * shape[0] * shape[1]
        writer.add_tensor_info(f"{one.tensor}.lora_{factor}", shape, _FLOAT32, size)
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for one, factor in parts:
            writer.write_tensor_data(_content(one, factor, tensors))
    finally:
        writer.close()


def _content(one: Placed, factor: str, tensors: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    spec = one.module.a if factor == "a" else one.module.b
    values = tensors[spec.name]
    if factor == "b" and one.rows is not None:
        values = values[one.rows]
    stored = np.ascontiguousarray(values, dtype=_FLOAT32)
    if not np.isfinite(stored).all():
        raise AdapterError(f"{spec.name}: has values that are not finite; it is not written")
    return stored
