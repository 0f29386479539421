"""Adapters as PEFT stores them: a folder with `adapter_config.json` and `adapter_model.safetensors`.

Read into a flat float32 vector, exactly; written again bit for bit, or as a new adapter.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from bankdb.errors import AdapterError, BankFormatError, listed
from bankdb.peft.config import CONFIG_NAME, AdapterConfig, read_config
from bankdb.peft.header import TensorEntry, check_data_bytes, parse_header, read_header
from bankdb.peft.layout import A_SUFFIX, B_SUFFIX, PREFIX, AdapterLayout, TensorSpec

WEIGHTS_NAME = "adapter_model.safetensors"
DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
_DTYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_FACTOR = re.compile(r"base_model\.model\.(?P<module>[\w-]+(?:\.[\w-]+)*)\.lora_(?P<factor>[AB])\.weight")
_PICKLES = ("adapter_model.bin", "adapter_model.pt", "pytorch_model.bin", "adapter_model.pth")


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
        The bytes of the file's header, with their padding, without the 8 bytes of their length.
    sha256
        Of the whole `adapter_model.safetensors`, in hexadecimal.
    vector
        The weights; float32, shape (p,).
    """

    config: AdapterConfig
    layout: AdapterLayout
    dtype: str
    header: bytes
    sha256: str
    vector: NDArray[np.float32]


def load_adapter(
    folder: Path, *, expected: AdapterLayout | None = None, base_models: Sequence[str] | None = None
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
        Names under which the bank's base model is accepted; None takes any.

    Raises
    ------
    AdapterError
        The folder is refused; the message names the file, what was expected and what was found.
    """
    config, path = _open_folder(folder)
    if base_models is not None and config.base_model not in base_models:
        raise AdapterError(
            f"{folder / CONFIG_NAME}: base model {' or '.join(map(repr, base_models))} was expected, "
            f"{config.base_model!r} found; adapters of another base model cannot be combined with the bank's"
        )
    with _opened(path) as (file, file_bytes):
        header = read_header(file, file_bytes, path)
        entries = parse_header(header, path)
        layout = _layout(entries, config, path)
        _check_layout(layout, expected, path)
        check_data_bytes(entries, file_bytes - 8 - len(header), path)
        digest = hashlib.sha256(struct.pack("<Q", len(header)) + header)
        vector = _read_tensors(file, entries, layout, path, digest)
    dtypes = {_DTYPE_NAMES[entry.dtype] for entry in entries}
    return SourceAdapter(
        config=config,
        layout=layout,
        dtype=dtypes.pop() if len(dtypes) == 1 else "mixed",
        header=header,
        sha256=digest.hexdigest(),
        vector=vector,
    )


def read_layout(folder: Path) -> AdapterLayout:
    """Read the layout of an adapter folder from its configuration and header alone.

    Raises
    ------
    AdapterError
        The configuration or the header is refused; the data is not looked at.
    """
    config, path = _open_folder(folder)
    with _opened(path) as (file, file_bytes):
        return _layout(parse_header(read_header(file, file_bytes, path), path), config, path)


def source_pieces(vector: NDArray[np.float32], layout: AdapterLayout, header: bytes) -> Iterator[bytes]:
    """Yield the file that was ingested, from its header and its stored row, a tensor at a time.

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
    tensors = layout.unflatten(vector)
    if {entry.name: entry.shape for entry in entries} != {spec.name: spec.shape for spec in layout.tensors}:
        raise BankFormatError(
            "the stored header of an adapter is not of the bank's layout; run 'bank verify'"
        )
    yield struct.pack("<Q", len(header))
    yield header
    for entry in entries:
        tensor = tensors[entry.name]
        with np.errstate(over="ignore"):
            stored = tensor.astype(DTYPES[_DTYPE_NAMES[entry.dtype]])
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

    if dtype not in DTYPES:
        raise AdapterError(f"dtype {', '.join(DTYPES)} was expected, {dtype!r} found; choose one of them")
    tensors = layout.unflatten(vector)
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise AdapterError(f"{path}: {name} has values that are not finite; it is not written")
        with np.errstate(over="ignore"):
            tensors[name] = np.ascontiguousarray(tensor, dtype=DTYPES[dtype])
        if not np.isfinite(tensors[name]).all():
            largest = float(np.abs(tensor).max())
            raise AdapterError(
                f"{path}: {name} has values up to {largest:.6g}, too large for {dtype}; use --dtype float32"
            )
    save_file(tensors, path, metadata={"format": "pt"})


def _open_folder(folder: Path) -> tuple[AdapterConfig, Path]:
    """Read the configuration of an adapter folder, and find its weights."""
    try:
        found = folder.stat()
    except OSError as error:
        raise AdapterError(
            f"{folder}: {error.strerror}; an adapter is a folder that PEFT's save_pretrained wrote"
        ) from None
    if not stat.S_ISDIR(found.st_mode):
        raise AdapterError(f"{folder}: a folder was expected, a file found; give the folder that holds it")
    config = read_config(folder / CONFIG_NAME)
    return config, _weights_file(folder)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a file for reading, with its size; whatever the disk says becomes an AdapterError."""
    try:
        with path.open("rb") as file:
            yield file, os.fstat(file.fileno()).st_size
    except OSError as error:
        raise AdapterError(
            f"{path}: cannot be read: {error.strerror}; check its permissions and the disk"
        ) from error


def _weights_file(folder: Path) -> Path:
    path = folder / WEIGHTS_NAME
    try:
        found = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise AdapterError(
                f"{path}: a link to a file that is not there; download the adapter again"
            ) from None
        pickles = [name for name in _PICKLES if (folder / name).exists()]
        if pickles:
            raise AdapterError(
                f"{folder / pickles[0]}: {WEIGHTS_NAME} was expected, a pickle found, which can run any code; "
                "load the adapter with PEFT where you trust it and save it again"
            ) from None
        raise AdapterError(
            f"{path}: no such file; save the adapter again with PEFT's save_pretrained"
        ) from None
    except OSError as error:
        raise AdapterError(f"{path}: cannot be read: {error.strerror}; check its permissions") from error
    if not stat.S_ISREG(found.st_mode):
        raise AdapterError(f"{path}: a file was expected, a folder or device found; give PEFT's own file")
    return path


def _check_layout(found: AdapterLayout, expected: AdapterLayout | None, path: Path) -> None:
    differences = [] if expected is None else expected.differences(found)
    if differences:
        raise AdapterError(
            f"{path}: not of the bank's layout: {'; '.join(differences)}; train it like the others, or put it in "
            "a bank of its own"
        )


def _read_tensors(
    file: BinaryIO, entries: Sequence[TensorEntry], layout: AdapterLayout, path: Path, digest: Any
) -> NDArray[np.float32]:
    vector = np.empty(layout.size, dtype=np.float32)
    specs: dict[str, TensorSpec] = {spec.name: spec for spec in layout.tensors}
    for entry in entries:
        data = file.read(entry.stop - entry.start)
        if len(data) != entry.stop - entry.start:
            raise AdapterError(f"{path}: ended while {entry.name} was read; copy the file again")
        digest.update(data)
        columns = specs[entry.name].columns
        vector[columns] = np.frombuffer(data, dtype=DTYPES[_DTYPE_NAMES[entry.dtype]])
        finite = np.isfinite(vector[columns])
        if not finite.all():
            raise AdapterError(
                f"{path}: {entry.name} was expected to have finite values, "
                f"{finite.size - np.count_nonzero(finite)} NaN or Inf of {finite.size} found; train it again"
            )
    return vector


def _layout(entries: Sequence[TensorEntry], config: AdapterConfig, path: Path) -> AdapterLayout:
    """Check names and shapes against the configuration, and lay the tensors out."""
    factors: dict[str, dict[str, tuple[int, ...]]] = {}
    for entry in entries:
        match = _FACTOR.fullmatch(entry.name)
        if match is None:
            raise AdapterError(
                f"{path}: LoRA factors ({PREFIX}MODULE{A_SUFFIX}, {B_SUFFIX}) alone were expected, "
                f"{entry.name!r} found: {_foreign_tensor(entry.name)}"
            )
        factors.setdefault(match["module"], {})[match["factor"]] = entry.shape
    _check_pairs(factors, config.rank, path)
    modules = _check_targets(sorted(factors), config, path)
    shapes = {entry.name: entry.shape for entry in entries}
    return AdapterLayout.from_shapes(shapes, config.rank, modules, config.fan_in_fan_out)


def _foreign_tensor(name: str) -> str:
    """Say what a tensor that is no LoRA factor seems to be, and what to do."""
    if "lora_magnitude_vector" in name:
        return "a magnitude of DoRA; train a plain LoRA"
    if "lora_embedding_" in name or "embed_tokens" in name:
        return "embeddings are adapted or saved whole; target linear modules alone"
    if name.endswith(".bias"):
        return "a bias; train with bias 'none' and without lora_bias"
    if re.search(r"\.lora_[AB]\.[^.]+\.weight$", name):
        return "the adapter's name is in the tensor's; save it with PEFT's save_pretrained"
    if ".lora_" in name and not name.startswith(PREFIX):
        return f"it does not begin with {PREFIX}; save it with PEFT's save_pretrained"
    if ".lora_" in name:
        return "a variant of LoRA; train a plain LoRA"
    return "a weight of the model itself; save the adapter alone, without modules_to_save"


def _check_pairs(factors: dict[str, dict[str, tuple[int, ...]]], rank: int, path: Path) -> None:
    for module, shapes in factors.items():
        if len(shapes) != 2:
            missing = "A" if "B" in shapes else "B"
            raise AdapterError(
                f"{path}: missing tensor {PREFIX}{module}.lora_{missing}.weight: each module was expected to "
                "have both factors; save the adapter again with PEFT"
            )
        for factor, position in (("A", 0), ("B", 1)):
            shape = shapes[factor]
            if len(shape) != 2:
                raise AdapterError(
                    f"{path}: {PREFIX}{module}.lora_{factor}.weight was expected to be a matrix, shape {shape} "
                    "found; target linear modules alone"
                )
            if shape[position] != rank:
                raise AdapterError(
                    f"{path}: {PREFIX}{module}.lora_{factor}.weight was expected to have rank {rank} (r in "
                    f"{CONFIG_NAME}), shape {shape} found; train every module with one rank"
                )


def _check_targets(modules: Sequence[str], config: AdapterConfig, path: Path) -> Sequence[str]:
    """Return what selects exactly these modules as `target_modules`.

    PEFT drops tensors of modules that the configuration does not target, without a word: such a file
    does not do what it seems to.
    """
    other = [module for module in modules if not config.targets(module)]
    if other:
        raise AdapterError(
            f"{path}: unexpected tensors for {listed(other)}, which target_modules in {CONFIG_NAME} does not "
            "select; give the configuration that the adapter was trained with"
        )
    names = config.target_modules
    if isinstance(names, str):
        return modules
    idle = [name for name in names if not any(m == name or m.endswith(f".{name}") for m in modules)]
    if idle:
        raise AdapterError(
            f"{path}: missing tensors for {listed(idle)}, target modules in {CONFIG_NAME}; if the base model "
            "has no such module, remove it there, otherwise save the adapter again"
        )
    return modules if config.restricted else names
