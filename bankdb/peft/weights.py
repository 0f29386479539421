"""Adapters as PEFT stores them: a folder with `adapter_config.json` and `adapter_model.safetensors`.

Read into a flat float32 vector, exactly; written again bit for bit, or as a new adapter.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from bankdb.errors import AdapterError, BankFormatError, one_line
from bankdb.peft.config import CONFIG_NAME, AdapterConfig, read_config
from bankdb.peft.conversion.conversion import Conversion, conversion_to
from bankdb.peft.conversion.source_layout import SourceLayout, check_idle, source_layout
from bankdb.peft.header import (
    DTYPES,
    TensorEntry,
    check_data_bytes,
    numpy_dtype,
    parse_header,
    read_header,
    renamed_header,
)
from bankdb.peft.layout import AdapterLayout, TensorSpec
from bankdb.peft.names import tensor_names
from bankdb.peft.opened import FreedVectors, check_folder, check_weights_file, opened, read_exactly, read_into
from bankdb.records import AS_BEFORE, AS_IT_COMES, Taking

WEIGHTS_NAME = "adapter_model.safetensors"
_DTYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_PIECE = 16 * 2**20


@dataclass(frozen=True, slots=True, eq=False)
class SourceAdapter:
    """One adapter, read.

    Attributes
    ----------
    config, layout
        What it is, and where its tensors lie in `vector`.
    dtype
        'float32', 'float16', 'bfloat16', or 'mixed'.
    header
        The bytes of the file's header, with their padding, without the 8 bytes of their length; of an adapter that
        was brought to another layout, of the file that it would be now.
    sha256
        Of the whole `adapter_model.safetensors`, in hexadecimal.
    vector
        The weights; float32, shape (p,).
    notes
        What was left out, assumed or converted, a line each.
    is_cut
        Whether the weights were computed, so that another machine's last bits may be others.
    """

    config: AdapterConfig
    layout: AdapterLayout
    dtype: str
    header: bytes
    sha256: str
    vector: NDArray[np.float32]
    notes: tuple[str, ...] = ()
    is_cut: bool = False


@dataclass(frozen=True, slots=True)
class _Described:
    """What configuration and header say of an adapter."""

    config: AdapterConfig
    entries: tuple[TensorEntry, ...]
    source: SourceLayout
    conversion: Conversion
    header: bytes


def load_adapter(
    folder: Path,
    *,
    expected: AdapterLayout | None = None,
    base_models: Sequence[str] | None = None,
    taking: Taking = AS_IT_COMES,
    sha256: str | None = None,
    freed: FreedVectors | None = None,
) -> SourceAdapter:
    """Read an adapter folder; its data only if everything else about it is as expected.

    The file is read once, a tensor at a time: in memory are the vector and the largest tensor.

    Parameters
    ----------
    folder
        As PEFT's `save_pretrained` writes it.
    expected
        The bank's layout; None takes any.
    base_models
        Names under which the bank's base model is accepted, its own first; None takes any.
    taking
        What may be assumed of it, or done to it.
    sha256
        Of the file, where it was found to be that a moment ago, as of a download; else it is hashed while it is read.
    freed
        Memory that may be used again.

    Raises
    ------
    AdapterError
        The folder is refused; the message names the file, what was expected and what was found.
    """
    config, path = _open_folder(folder, base_models[0] if base_models and taking.assume_base_model else None)
    if base_models is not None:
        check_base_model(folder, config.base_model, base_models)
    with opened(path) as (file, file_bytes):
        found = _described(file, file_bytes, config, expected, taking, path)
        check_data_bytes(found.entries, file_bytes - 8 - len(found.header), path)
        digest = None if sha256 else hashlib.sha256(struct.pack("<Q", len(found.header)) + found.header)
        vector = _read_tensors(file, found, path, digest, freed or FreedVectors())
    vector, converted = found.conversion.vector(vector)
    notes = (*found.source.notes(), *converted)
    header = found.conversion.header(found.header, found.entries, found.source, notes)
    return SourceAdapter(
        config=found.conversion.config(config),
        layout=found.conversion.stored,
        dtype=dtype_of(parse_header(header, path)),
        header=header,
        sha256=digest.hexdigest() if digest else str(sha256),
        vector=vector,
        notes=(*config.notes, *notes),
        is_cut=found.conversion.is_cut,
    )


def taken_config(folder: Path, expected: AdapterLayout, base_model: str) -> str:
    """Return the configuration that a bank would store of an adapter, by its header and configuration alone.

    Raises
    ------
    AdapterError
        It would be refused, whatever may be assumed of it or done to it.
    """
    config, path = _open_folder(folder, base_model)
    with opened(path) as (file, file_bytes):
        found = _described(file, file_bytes, config, expected, AS_BEFORE, path)
    return found.conversion.config(config).text


def _described(
    file: BinaryIO,
    file_bytes: int,
    config: AdapterConfig,
    expected: AdapterLayout | None,
    taking: Taking,
    path: Path,
) -> _Described:
    """Read the header, and find what brings the adapter to the expected layout; leaves the file at its data."""
    header = read_header(file, file_bytes, path)
    entries = parse_header(header, path)
    source = source_layout(entries, config, path)
    if expected is None:
        check_idle(source, path)
    try:
        conversion = conversion_to(expected, source, taking, path)
    except AdapterError:
        check_idle(source, path)  # then that may be the reason
        raise
    return _Described(config, entries, source, conversion, header)


def check_base_model(folder: Path, found: str, base_models: Sequence[str]) -> None:
    """Check what an adapter's configuration states. Raises AdapterError where it is none of the names."""
    if not is_base_model(found, base_models):
        raise AdapterError(
            f"{folder / CONFIG_NAME}: base model {' or '.join(map(repr, base_models))} was expected, "
            f"{one_line(repr(found), 160)} found; adapters of another base model cannot be combined with the bank's; "
            f"if it is the same under another name, let it in by `bank alias add {shlex.quote(one_line(found))}`"
        )


def is_base_model(name: str, base_models: Sequence[str]) -> bool:
    """Whether a name is one of a base model's. The hub ignores case in OWNER/NAME, paths do not."""
    on_hub = {known.casefold() for known in base_models if _is_hub_id(known)}
    return name in base_models or (_is_hub_id(name) and name.casefold() in on_hub)


def _is_hub_id(name: str) -> bool:
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name, re.ASCII) is not None


def dtype_of(entries: Sequence[TensorEntry]) -> str:
    """Return the dtype of a file's tensors, or 'mixed'."""
    dtypes = {_DTYPE_NAMES[entry.dtype] for entry in entries}
    return dtypes.pop() if len(dtypes) == 1 else "mixed"


def read_layout(folder: Path, assumed: str | None = None) -> AdapterLayout:
    """Read the layout of an adapter folder from its configuration and header alone.

    Target modules without tensors are taken as names that the base model has not.

    Parameters
    ----------
    assumed
        The base model of a configuration that names none; None refuses it.

    Raises
    ------
    AdapterError
        The configuration or the header is refused; the data is not looked at.
    """
    config, path = _open_folder(folder, assumed)
    with opened(path) as (file, file_bytes):
        return source_layout(parse_header(read_header(file, file_bytes, path), path), config, path).layout


def left_out_of_names(header: bytes) -> tuple[str, ...]:
    """Return what is left out of a stored header's tensor names where PEFT does not look for it; mostly nothing."""
    path = Path(WEIGHTS_NAME)
    return tensor_names([entry.name for entry in parse_header(header, path)], path).left_out


def source_pieces(vector: NDArray[np.float32], layout: AdapterLayout, header: bytes) -> Iterator[bytes]:
    """Yield the file that was ingested, from its header and its stored row, a tensor at a time.

    It is that file bit for bit, unless PEFT would not find its tensors: then these have the names that PEFT looks for.

    Parameters
    ----------
    vector
        The row as ingested; float32, shape (p,).
    layout
        Of the bank.
    header
        `SourceAdapter.header`: names, dtypes, order and metadata are taken from it.

    Raises
    ------
    BankFormatError
        The row or the header cannot be those of an ingested file.
    """
    entries = parse_header(header, Path(WEIGHTS_NAME))
    names = tensor_names([entry.name for entry in entries], Path(WEIGHTS_NAME))
    tensors = layout.unflatten(vector)
    if {names.clean(e.name): e.shape for e in entries} != {spec.name: spec.shape for spec in layout.tensors}:
        raise BankFormatError(
            "the stored header of an adapter is not of the bank's layout; run 'bank verify'"
        )
    if names.left_out:
        header = renamed_header(header, {entry.name: names.clean(entry.name) for entry in entries})
    yield struct.pack("<Q", len(header))
    yield header
    for entry in entries:
        tensor = tensors[names.clean(entry.name)]
        with np.errstate(over="ignore"):
            stored = tensor.astype(numpy_dtype(_DTYPE_NAMES[entry.dtype]))
        exact = stored.astype(np.float32).tobytes() == tensor.tobytes()
        if not exact or not np.isfinite(tensor).all():
            raise BankFormatError(
                f"{entry.name}: the stored row was expected to hold finite {_DTYPE_NAMES[entry.dtype]} values, as "
                "ingested, others found; run 'bank verify'"
            )
        yield stored.tobytes()


def source_file(vector: NDArray[np.float32], layout: AdapterLayout, header: bytes) -> bytes:
    """Return the file that was ingested, bit for bit; `source_pieces` does it in pieces."""
    return b"".join(source_pieces(vector, layout, header))


def safetensors_start(layout: AdapterLayout, dtype: str) -> bytes:
    """Return what an `adapter_model.safetensors` begins with; after it comes the vector itself, in this dtype.

    Byte for byte what safetensors writes for these tensors with PEFT's metadata: a header of JSON with its length
    before it, filled up to 8 bytes. Tensors of one dtype lie there by name, as in the layout.

    Raises
    ------
    AdapterError
        It is no dtype of an adapter.
    """
    code = {name: code for code, name in _DTYPE_NAMES.items()}[_checked(dtype)]
    size = DTYPES[dtype]
    content: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for spec in layout.tensors:
        offsets = [size * spec.columns.start, size * spec.columns.stop]
        content[spec.name] = {"dtype": code, "shape": list(spec.shape), "data_offsets": offsets}
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    header = text + b" " * (-len(text) % 8)
    return struct.pack("<Q", len(header)) + header


def _checked(dtype: str) -> str:
    if dtype not in DTYPES:
        raise AdapterError(f"dtype {', '.join(DTYPES)} was expected, {dtype!r} found; choose one of them")
    return dtype


def write_safetensors(path: Path, vector: NDArray[np.float32], layout: AdapterLayout, dtype: str) -> None:
    """Write a vector as an `adapter_model.safetensors` that PEFT and vLLM load.

    Parameters
    ----------
    path
        The file to write.
    vector
        float32, shape (p,).
    layout
        Names and shapes.
    dtype
        'float32', 'float16' or 'bfloat16'; values are rounded to the nearest, ties to even.

    Raises
    ------
    AdapterError
        A value is not finite, or too large for the dtype.
    """
    from safetensors.numpy import save_file

    tensors, kind = layout.unflatten(vector), numpy_dtype(_checked(dtype))
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise AdapterError(f"{path}: {name} has values that are not finite; it is not written")
        with np.errstate(over="ignore"):
            tensors[name] = np.ascontiguousarray(tensor, dtype=kind)
        if not np.isfinite(tensors[name]).all():
            largest = float(np.abs(tensor).max())
            raise AdapterError(
                f"{path}: {name} has values up to {largest:.6g}, too large for {dtype}; use --dtype float32"
            )
    save_file(tensors, path, metadata={"format": "pt"})


def _open_folder(folder: Path, assumed: str | None = None) -> tuple[AdapterConfig, Path]:
    """Read the configuration of an adapter folder, and find its weights."""
    check_folder(folder)
    config, path = read_config(folder / CONFIG_NAME, assumed), folder / WEIGHTS_NAME
    check_weights_file(path)
    return config, path


def _read_tensors(
    file: BinaryIO, found: _Described, path: Path, digest: Any, freed: FreedVectors
) -> NDArray[np.float32]:
    """Return the vector in the file's own layout; what is a copy of the base model's is read for the hash alone."""
    layout, names = found.source.layout, found.source.names
    vector = freed.taken(layout.size, path)
    specs: dict[str, TensorSpec] = {spec.name: spec for spec in layout.tensors}
    for entry in found.entries:
        if entry.name in names.copies:
            for start in range(entry.start, entry.stop, _PIECE):
                piece = read_exactly(file, min(_PIECE, entry.stop - start), entry.name, path)
                if digest is not None:
                    digest.update(piece)
            continue
        part = vector[specs[names.clean(entry.name)].columns]
        data = _read_tensor(file, entry, part, path)
        if digest is not None:
            digest.update(data)
        finite = np.isfinite(part)
        if not finite.all():
            raise AdapterError(
                f"{path}: {entry.name} was expected to have finite values, "
                f"{finite.size - np.count_nonzero(finite)} NaN or Inf of {finite.size} found; train it again"
            )
    return vector


def _read_tensor(
    file: BinaryIO, entry: TensorEntry, part: NDArray[np.float32], path: Path
) -> bytes | memoryview:
    """Read a tensor into its part of the vector; return its bytes as they are in the file."""
    dtype = numpy_dtype(_DTYPE_NAMES[entry.dtype])
    if dtype != part.dtype:
        data = read_exactly(file, entry.stop - entry.start, entry.name, path)
        part[:] = np.frombuffer(data, dtype=dtype)
        return data
    view = part.view(np.uint8).data
    read_into(file, view, entry.name, path)
    return view
