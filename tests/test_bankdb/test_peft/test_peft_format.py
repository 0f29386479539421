from __future__ import annotations

import hashlib
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from bankdb.errors import AdapterError, BankFormatError
from bankdb.peft.header import DTYPES, numpy_dtype
from bankdb.peft.layout import AdapterLayout
from bankdb.peft.weights import (
    load_adapter,
    read_layout,
    safetensors_start,
    source_file,
    write_safetensors,
)
from tests.support.banks.malformed_adapters import (
    BASE_MODEL,
    CONFIG,
    FIRST,
    HIDDEN,
    MALFORMED,
    RANK,
    WEIGHTS,
    MalformedAdapter,
    read_weights,
    tensor_names,
    write_good_adapter,
    write_weights,
)

DTYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def round_trips(folder: Path) -> None:
    adapter = load_adapter(folder)
    raw = (folder / WEIGHTS).read_bytes()
    assert adapter.sha256 == hashlib.sha256(raw).hexdigest()
    assert source_file(adapter.vector, adapter.layout, adapter.header) == raw


# Reading what is good.


@pytest.mark.parametrize("dtype", DTYPE_NAMES)
def test_a_good_adapter_is_read_exactly_and_written_again_bit_for_bit(tmp_path: Path, dtype: str) -> None:
    folder = write_good_adapter(tmp_path / "good", dtype=dtype)
    adapter = load_adapter(folder, base_models=["other/name", BASE_MODEL])
    assert adapter.dtype == DTYPE_NAMES[dtype]
    assert adapter.vector.dtype == np.float32
    assert [spec.name for spec in adapter.layout.tensors] == sorted(tensor_names())
    assert adapter.layout.target_modules == ("q_proj", "v_proj")
    header, data = read_weights(folder)
    for name, tensor in adapter.layout.unflatten(adapter.vector).items():
        start, stop = header[name]["data_offsets"]
        for value, bits in zip(tensor.ravel().tolist(), _decoded(data[start:stop], dtype), strict=True):
            assert value == bits
    round_trips(folder)
    assert read_layout(folder) == adapter.layout


def _decoded(data: bytes, dtype: str) -> list[float]:
    """Decode with the struct module alone: a bfloat16 is the upper half of a float32."""
    if dtype == "BF16":
        data = b"".join(b"\0\0" + data[i : i + 2] for i in range(0, len(data), 2))
    code = {"F32": "f", "F16": "e", "BF16": "f"}[dtype]
    return [float(np.float32(value)) for (value,) in struct.iter_unpack(f"<{code}", data)]


def test_linked_files_are_read_as_hub_caches_have_them(tmp_path: Path) -> None:
    blobs = write_good_adapter(tmp_path / "blobs")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for name in (CONFIG, WEIGHTS):
        (snapshot / name).symlink_to(blobs / name)
    assert (load_adapter(snapshot).vector == load_adapter(blobs).vector).all()


@st.composite
def safetensors_files(draw: st.DrawFn) -> tuple[bytes, bytes, list[str]]:
    """A random well-formed header and its data: order, dtypes, metadata, padding, spacing and values."""
    names = draw(st.permutations(tensor_names()))
    order = draw(st.permutations(names))
    dtypes = {name: draw(st.sampled_from(list(DTYPE_NAMES))) for name in names}
    metadata = draw(st.none() | st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    where: dict[str, list[int]] = {}
    data = b""
    for name in order:
        piece = _random_bits(rng, dtypes[name], RANK * HIDDEN)
        where[name] = [len(data), len(data) + len(piece)]
        data += piece
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    for name in names:
        shape = [RANK, HIDDEN] if ".lora_A." in name else [HIDDEN, RANK]
        header[name] = {"dtype": dtypes[name], "shape": shape, "data_offsets": where[name]}
    text = json.dumps(header, indent=draw(st.none() | st.just(1)), ensure_ascii=draw(st.booleans()))
    return text.encode() + b" " * draw(st.integers(0, 20)), data, sorted(set(dtypes.values()))


def _random_bits(rng: np.random.Generator, dtype: str, count: int) -> bytes:
    """Random bits with every finite kind of value: zeros of both signs, subnormals, the largest."""
    width, exponent = {"F32": (32, 0x7F800000), "F16": (16, 0x7C00), "BF16": (16, 0x7F80)}[dtype]
    bits = rng.integers(0, 2**width, size=count, dtype=np.uint64)
    bits[: count // 4] &= ~np.uint64(exponent)  # zeros and subnormals
    bits[0] = 1 << (width - 1)
    bits[1] = exponent - 1
    finite = (bits & np.uint64(exponent)) != exponent
    return np.where(finite, bits, 1).astype(f"<u{width // 8}").tobytes()


@settings(max_examples=60, deadline=None)
@given(safetensors_files())
def test_any_order_dtypes_metadata_and_padding_come_back_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory, file: tuple[bytes, bytes, list[str]]
) -> None:
    header, data, dtypes = file
    folder = write_good_adapter(tmp_path_factory.mktemp("adapters") / "one")
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header + data)
    round_trips(folder)
    adapter = load_adapter(folder)
    assert adapter.dtype == (DTYPE_NAMES[dtypes[0]] if len(dtypes) == 1 else "mixed")
    assert adapter.header == header
    with safe_open(folder / WEIGHTS, "np") as oracle:
        assert sorted(oracle.keys()) == [spec.name for spec in adapter.layout.tensors]


@settings(max_examples=150, deadline=None)
@given(position=st.integers(0, 10**6), byte=st.integers(0, 255))
def test_a_header_with_one_byte_changed_is_never_read_otherwise_than_the_library_reads_it(
    tmp_path_factory: pytest.TempPathFactory, position: int, byte: int
) -> None:
    folder = write_good_adapter(tmp_path_factory.mktemp("adapters") / "one")
    raw = bytearray((folder / WEIGHTS).read_bytes())
    raw[position % (8 + struct.unpack("<Q", raw[:8])[0])] = byte
    (folder / WEIGHTS).write_bytes(raw)
    try:
        adapter = load_adapter(folder)
    except AdapterError:
        return
    tensors = adapter.layout.unflatten(adapter.vector)
    oracle = load_file(folder / WEIGHTS)
    assert oracle.keys() == tensors.keys()
    assert all((oracle[name] == tensors[name]).all() for name in tensors)


# Refusing what is not.


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_good_adapter(tmp_path_factory.mktemp("good") / "adapter")


@pytest.mark.parametrize("case", MALFORMED, ids=lambda case: case.name)
def test_a_malformed_adapter_is_refused_by_name_in_one_line(
    tmp_path: Path, good: Path, case: MalformedAdapter
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(good, folder)
    case.damage(folder)
    with pytest.raises(AdapterError) as caught:
        load_adapter(folder)
    text = str(caught.value)
    assert case.message in text
    assert str(folder / case.file) in text
    assert "\n" not in text
    assert len(text) < 500
    if case.structural:
        # It is not ours alone to call these broken.
        with (
            pytest.raises((SafetensorError, ValueError, KeyError, TypeError)),
            safe_open(folder / WEIGHTS, "np"),
        ):
            pass


def test_every_kind_of_damage_is_another() -> None:
    names = [case.name for case in MALFORMED]
    assert len(names) == len(set(names)) >= 30


def test_another_base_model_is_refused(good: Path) -> None:
    with pytest.raises(AdapterError, match=r"'a/b' or 'c/d' was expected, 'example/tiny-llama' found"):
        load_adapter(good, base_models=["a/b", "c/d"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 8}, "rank 4 expected, 8 found"),
        ({"target_modules": ["q_proj"]}, "target modules q_proj, v_proj expected, q_proj found"),
        ({"target_modules": ["q_proj"]}, "missing tensors base_model.model.model.layers.0.self_attn.v_proj"),
        ({"target_modules": ["k_proj", "q_proj", "v_proj"]}, "unexpected tensors base_model.model.model"),
    ],
)
def test_another_layout_is_refused_before_the_data_is_looked_at(
    tmp_path: Path, good: Path, changes: dict[str, Any], message: str
) -> None:
    expected = load_adapter(good).layout
    folder = write_good_adapter(tmp_path / "other", **changes)
    header, data = read_weights(folder)
    write_weights(folder, header, data[:-4])  # truncated as well
    with pytest.raises(AdapterError) as caught:
        load_adapter(folder, expected=expected)
    assert read_layout(folder) != expected
    assert message in str(caught.value)
    assert "truncated" not in str(caught.value)


def test_another_shape_is_refused(tmp_path: Path, good: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(good, folder)
    header, data = read_weights(folder)
    # A B factor of 15 outputs, and an A factor that takes what is left.
    header[FIRST]["shape"] = [RANK, HIDDEN + 1]
    for spec in header.values():
        if "data_offsets" in spec and spec is not header[FIRST]:
            spec["data_offsets"] = [offset + 16 for offset in spec["data_offsets"]]
    header[FIRST]["data_offsets"][1] += 16
    write_weights(folder, header, bytes(16) + data)
    with pytest.raises(AdapterError) as caught:
        load_adapter(folder, expected=load_adapter(good).layout)
    assert f"shape of {FIRST} (4, 16) expected, (4, 17) found" in str(caught.value)


def test_a_folder_that_is_not_there_or_is_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="No such file"):
        load_adapter(tmp_path / "gone")
    (tmp_path / "file").write_text("x")
    with pytest.raises(AdapterError, match="a folder was expected, a file found"):
        load_adapter(tmp_path / "file")


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_file_that_may_not_be_read_is_refused(
    good: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # Permissions do not bind the superuser, so the refusal is put in by hand.
    real = Path.open

    def guarded(path: Path, *args: Any, **options: Any) -> Any:
        if path.name == name:
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **options)

    monkeypatch.setattr(Path, "open", guarded)
    monkeypatch.setattr(Path, "read_bytes", lambda path: guarded(path, "rb").read())
    with pytest.raises(AdapterError, match=rf"{name}: cannot be read: Permission denied"):
        load_adapter(good)


def test_the_largest_header_is_not_read(tmp_path: Path, good: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(good, folder)
    with (folder / WEIGHTS).open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001) + b"{")
        file.truncate(200_000_000)  # sparse
    with pytest.raises(AdapterError, match="at most 100000000 bytes was expected, one of 100000001 found"):
        load_adapter(folder)


# Writing.


def test_a_row_that_does_not_fit_its_source_dtype_is_damage(tmp_path: Path) -> None:
    adapter = load_adapter(write_good_adapter(tmp_path / "half", dtype="F16"))
    for value in (np.float32(1.0000001), np.float32(1e6), np.float32("nan")):
        changed = adapter.vector.copy()
        changed[7] = value
        with pytest.raises(BankFormatError, match="was expected to hold finite float16 values"):
            source_file(changed, adapter.layout, adapter.header)


def test_a_header_of_another_layout_is_damage(tmp_path: Path) -> None:
    adapter = load_adapter(write_good_adapter(tmp_path / "one"))
    other = load_adapter(write_good_adapter(tmp_path / "two", target_modules=["q_proj"]))
    with pytest.raises(BankFormatError, match="not of the bank's layout"):
        source_file(adapter.vector, adapter.layout, other.header)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_predicted_file_is_what_the_library_writes_of_the_rounded_tensors(
    tmp_path: Path, dtype: str
) -> None:
    source = load_adapter(write_good_adapter(tmp_path / "one"))
    write_safetensors(tmp_path / WEIGHTS, source.vector, source.layout, dtype)
    if dtype == "bfloat16":
        # Round to nearest, ties to even, on the bits.
        bits = source.vector.view(np.uint32)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).view(ml_dtypes.bfloat16)
    else:
        rounded = source.vector.astype(dtype)
    tensors = {
        spec.name: rounded[spec.offset : spec.offset + spec.size].reshape(spec.shape)
        for spec in source.layout.tensors
    }
    assert (tmp_path / WEIGHTS).read_bytes() == save(tensors, {"format": "pt"})


def test_values_that_a_dtype_cannot_hold_are_refused(tmp_path: Path) -> None:
    source = load_adapter(write_good_adapter(tmp_path / "one"))
    path = tmp_path / WEIGHTS
    for value, dtype, message in (
        (70000.0, "float16", r"values up to 70000, too large for float16; use --dtype float32"),
        (3.4028235e38, "bfloat16", r"too large for bfloat16"),
        (np.nan, "float32", "not finite"),
        (-np.inf, "bfloat16", "not finite"),
    ):
        changed = source.vector.copy()
        changed[0] = value
        with pytest.raises(AdapterError, match=message) as caught:
            write_safetensors(path, changed, source.layout, dtype)
        assert source.layout.tensors[0].name in str(caught.value)
        assert not path.exists()
    with pytest.raises(AdapterError, match="'int8' found"):
        write_safetensors(path, source.vector, source.layout, "int8")


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_file_is_its_start_and_the_vector(tmp_path: Path, dtype: str) -> None:
    """Which others rely on that write the vector piece by piece; the start is as safetensors makes it."""
    source = load_adapter(write_good_adapter(tmp_path / "one"))
    # Names that JSON escapes, and that are no ASCII: file and layout have them in the same order.
    odd = {
        spec.name.replace("self_attn", "\u00e9" * (index % 2) + '"\\\U0001f40d'): spec.shape
        for index, spec in enumerate(source.layout.tensors)
    }
    for shapes in ({spec.name: spec.shape for spec in source.layout.tensors}, odd):
        layout = AdapterLayout.from_shapes(shapes, source.layout.rank, ("q_proj",), False)
        write_safetensors(tmp_path / WEIGHTS, source.vector, layout, dtype)
        values = source.vector.astype(numpy_dtype(dtype)).tobytes()
        assert safetensors_start(layout, dtype) + values == (tmp_path / WEIGHTS).read_bytes()
    with pytest.raises(AdapterError, match="'int8' found"):
        safetensors_start(source.layout, "int8")
