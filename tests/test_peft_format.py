from __future__ import annotations

import hashlib
import json
import shutil
import struct
import threading
import warnings
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from malformed_adapters import (
    BASE_MODEL,
    CONFIG,
    FIRST,
    HIDDEN,
    MALFORMED,
    RANK,
    WEIGHTS,
    MalformedAdapter,
    good_config,
    read_weights,
    tensor_names,
    write_good_adapter,
    write_weights,
)
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from bankdb.errors import AdapterError, BankFormatError, ConflictError
from bankdb.layout import AdapterLayout
from bankdb.peft_config import read_config, render_config
from bankdb.peft_format import (
    DTYPES,
    load_adapter,
    model_card,
    source_file,
    write_adapter_folder,
    write_safetensors,
    write_source_file,
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
        with pytest.raises(BankFormatError, match="float16"):
            source_file(changed, adapter.layout, adapter.header)


def test_a_header_of_another_layout_is_damage(tmp_path: Path) -> None:
    adapter = load_adapter(write_good_adapter(tmp_path / "one"))
    other = load_adapter(write_good_adapter(tmp_path / "two", target_modules=["q_proj"]))
    with pytest.raises(BankFormatError, match="not of the bank's layout"):
        source_file(adapter.vector, adapter.layout, other.header)


def test_the_source_file_is_written_and_hashed(tmp_path: Path) -> None:
    adapter = load_adapter(write_good_adapter(tmp_path / "one", dtype="BF16"))
    found = write_source_file(tmp_path / "copy", adapter.vector, adapter.layout, adapter.header)
    assert found == adapter.sha256
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "one" / WEIGHTS).read_bytes()


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


# Folders.


def test_a_folder_is_written_whole(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "er" / "adapter"
    write_adapter_folder(
        folder, files={"a.json": b"{}", "b.bin": lambda path: path.write_bytes(b"b") and None}
    )
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"a.json": b"{}", "b.bin": b"b"}
    assert [path.name for path in folder.parent.iterdir()] == ["adapter"]
    assert folder.stat().st_mode & 0o055 == folder.parent.stat().st_mode & 0o055


def test_a_folder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fails(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    for overwrite in (False, True):
        with pytest.raises(AdapterError, match="No space left on device"):
            write_adapter_folder(tmp_path / "adapter", files={"a": b"a", "b": fails}, overwrite=overwrite)
        assert list(tmp_path.iterdir()) == []


def test_a_folder_is_replaced_only_when_asked_and_only_an_adapter(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()  # empty: nothing to lose
    write_adapter_folder(folder, files={CONFIG: b"1", "old": b"1"})
    with pytest.raises(ConflictError, match="already there"):
        write_adapter_folder(folder, files={CONFIG: b"2"})
    assert (folder / CONFIG).read_bytes() == b"1"
    write_adapter_folder(folder, files={CONFIG: b"2"}, overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {CONFIG: b"2"}
    (folder / "checkpoint-10").mkdir()
    with pytest.raises(ConflictError, match="the folder 'checkpoint-10' found"):
        write_adapter_folder(folder, files={CONFIG: b"3"}, overwrite=True)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years")
    with pytest.raises(ConflictError, match=f"no {CONFIG} found"):
        write_adapter_folder(tmp_path / "home", files={CONFIG: b"3"}, overwrite=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConflictError, match="a file found"):
        write_adapter_folder(tmp_path / "file", files={CONFIG: b"3"}, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "file", "home"]


def test_replacing_a_link_leaves_what_it_points_to(tmp_path: Path) -> None:
    write_adapter_folder(tmp_path / "real", files={CONFIG: b"1"})
    (tmp_path / "link").symlink_to("real")
    write_adapter_folder(tmp_path / "link", files={CONFIG: b"2"}, overwrite=True)
    assert (tmp_path / "link" / CONFIG).read_bytes() == b"2"
    assert (tmp_path / "real" / CONFIG).read_bytes() == b"1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_of_two_writers_at_once_one_wins_whole(tmp_path: Path) -> None:
    barrier = threading.Barrier(2)
    results: list[str] = []

    def write(text: bytes) -> None:
        def meet(path: Path) -> None:
            path.write_bytes(text)
            barrier.wait()

        try:
            write_adapter_folder(tmp_path / "adapter", files={CONFIG: meet, "same": text})
            results.append("written")
        except ConflictError:
            results.append("conflict")

    threads = [threading.Thread(target=write, args=(text,)) for text in (b"1", b"2")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["conflict", "written"]
    assert (tmp_path / "adapter" / CONFIG).read_bytes() == (tmp_path / "adapter" / "same").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_failed_replacement_puts_the_old_adapter_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "adapter"
    write_adapter_folder(folder, files={CONFIG: b"1"})
    real = Path.rename

    def fails(path: Path, target: Path) -> Path:
        if ".partial-" in path.name:
            raise OSError(5, "Input/output error")
        return real(path, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(AdapterError, match="Input/output error"):
        write_adapter_folder(folder, files={CONFIG: b"2"}, overwrite=True)
    assert (folder / CONFIG).read_bytes() == b"1"
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


# The model card.


def provenance(**changes: Any) -> dict[str, Any]:
    record = {
        "name": "task_001",
        "base_model": BASE_MODEL,
        "metric": "jensen-shannon",
        "approach": "normalized",
        "rank": RANK,
        "sources": [
            {"name": f"source-{i:02}", "coefficient": 1 / 16, "licence": "Apache-2.0", "source": "hub:a/b"}
            for i in range(16)
        ],
    }
    return record | changes


def front_matter(card: str) -> dict[str, Any]:
    from huggingface_hub import ModelCard

    data: dict[str, Any] = ModelCard(card).data.to_dict()
    return data


def test_the_card_says_what_the_hub_and_the_reader_need() -> None:
    card = model_card(provenance())
    found = front_matter(card)
    assert found["base_model"] == BASE_MODEL
    assert found["library_name"] == "peft"
    assert found["license"] == "apache-2.0"
    assert "Effective number of sources: 16.00" in card
    assert "jensen-shannon" in card
    assert card.count("| source-") == 10
    assert "and 6 more" in card
    assert "--max-lora-rank" not in card  # 16 is vLLM's default
    assert "--max-lora-rank 32" in model_card(provenance(rank=20))


def test_a_licence_is_stated_only_if_all_sources_have_it() -> None:
    for licences, stated in (
        (["mit", "mit"], "mit"),
        (["MIT", "mit"], "mit"),
        (["mit", "apache-2.0"], None),
        (["mit", None], None),
        ([None, None], None),
        (["All rights reserved", "All rights reserved"], None),
    ):
        sources = [
            {"name": str(i), "coefficient": 0.5, "licence": licence} for i, licence in enumerate(licences)
        ]
        # One that took no part has no say.
        sources.append({"name": "idle", "coefficient": 0.0, "licence": "gpl-3.0"})
        assert front_matter(model_card(provenance(sources=sources))).get("license") == stated


@given(st.text(min_size=1, max_size=30), st.text(max_size=30))
@settings(max_examples=50, deadline=None)
def test_no_name_breaks_the_card(name: str, origin: str) -> None:
    sources = [{"name": name, "coefficient": 1.0, "licence": "mit", "source": origin}]
    card = model_card(provenance(name=name, sources=sources, parameters={"top_k": name}))
    assert front_matter(card)["base_model"] == BASE_MODEL
    row = card.split("|---|---|---|---|\n")[1].splitlines()[0]
    assert row.replace("\\\\", "").replace("\\|", "").count("|") == 5
    assert card.count("```") == 4


# PEFT itself.


@pytest.fixture(scope="module")
def base_model() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).eval()


def lora(base_model: Any, folder: Path, *, seed: int = 0, dtype: str = "float32", **options: Any) -> Any:
    """Make and save an adapter with PEFT; returns its model."""
    import copy

    import torch
    from peft import LoraConfig, get_peft_model

    arguments = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    model = get_peft_model(copy.deepcopy(base_model), LoraConfig(**(arguments | options)))
    model.peft_config["default"].base_model_name_or_path = BASE_MODEL
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator).to(getattr(torch, dtype)) / 4
    # Without looking the base model up on the hub.
    model.save_pretrained(folder, save_embedding_layers=False)
    return model.eval()


def logits(model: Any) -> np.ndarray:
    import torch

    with torch.no_grad():
        found: np.ndarray = model(torch.arange(40).reshape(2, 20)).logits.double().numpy()
    return found


def load_with_peft(base_model: Any, folder: Path) -> Any:
    import copy

    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as for keys that are missing or not used
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        return PeftModel.from_pretrained(copy.deepcopy(base_model), folder).eval()


@pytest.mark.torch
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_peft_saves_comes_back_byte_for_byte(tmp_path: Path, base_model: Any, dtype: str) -> None:
    import torch

    model = lora(base_model, tmp_path / "adapter", dtype=dtype)
    adapter = load_adapter(tmp_path / "adapter", base_models=[BASE_MODEL])
    round_trips(tmp_path / "adapter")
    assert adapter.dtype == dtype
    tensors = adapter.layout.unflatten(adapter.vector)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            saved = torch.from_numpy(tensors.pop(name.replace(".default", "")))
            assert torch.equal(saved, parameter.data.float())
    assert not tensors


@pytest.mark.torch
@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize(("rank", "alpha"), [(4, 8), (3, 7), (8, 1)])
def test_scaling_is_what_peft_multiplies_by(
    tmp_path: Path, base_model: Any, rank: int, alpha: int, use_rslora: bool
) -> None:
    model = lora(base_model, tmp_path / "adapter", r=rank, lora_alpha=alpha, use_rslora=use_rslora)
    config = load_adapter(tmp_path / "adapter").config
    layers = [module for module in model.modules() if hasattr(module, "scaling")]
    assert len(layers) == 4
    assert all(layer.scaling["default"] == config.scaling for layer in layers)


def export(folder: Path, vector: np.ndarray, layout: AdapterLayout, scaling: tuple[float, bool]) -> None:
    text = render_config(BASE_MODEL, layout, scaling, "CAUSAL_LM")
    write_adapter_folder(
        folder,
        files={
            CONFIG: text.encode(),
            WEIGHTS: lambda path: write_safetensors(path, vector, layout, "float32"),
        },
    )


@pytest.mark.torch
@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_predicted_adapter_does_in_peft_what_the_arithmetic_says(
    tmp_path: Path, base_model: Any, use_rslora: bool
) -> None:
    coefficients = [0.5, 0.2, 0.3]
    models = [lora(base_model, tmp_path / str(i), seed=i, use_rslora=use_rslora) for i in range(3)]
    adapters = [load_adapter(tmp_path / str(i)) for i in range(3)]
    layout = adapters[0].layout
    vector = sum(c * a.vector for c, a in zip(coefficients, adapters, strict=True)).astype(np.float32)
    export(tmp_path / "predicted", vector, layout, (adapters[0].config.alpha, use_rslora))
    # The combination by torch, in place.
    for parameters in zip(*[m.named_parameters() for m in models], strict=True):
        if ".lora_" in parameters[0][0]:
            total = sum(c * p.data for c, (_, p) in zip(coefficients, parameters, strict=True))
            parameters[0][1].data = total
    found = logits(load_with_peft(base_model, tmp_path / "predicted"))
    np.testing.assert_allclose(found, logits(models[0]), rtol=1e-5, atol=1e-6)
    assert np.abs(found - logits(base_model)).max() > 1e-2


@pytest.mark.torch
def test_an_adapter_is_brought_to_another_scaling_by_its_b_columns(tmp_path: Path, base_model: Any) -> None:
    model = lora(base_model, tmp_path / "source", lora_alpha=24, use_rslora=True)
    source = load_adapter(tmp_path / "source")
    vector = source.vector.copy()
    for start, stop in source.layout.b_segments():
        vector[start:stop] *= source.config.scaling / (8 / 4)
    export(tmp_path / "rescaled", vector, source.layout, (8.0, False))
    np.testing.assert_allclose(
        logits(load_with_peft(base_model, tmp_path / "rescaled")), logits(model), rtol=1e-4, atol=1e-5
    )


@pytest.mark.torch
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": r".*\.1\.self_attn\.(q|v)_proj"},
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]},
        {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["layers.0.self_attn.q_proj"]},
        {"target_modules": ["self_attn.q_proj", "model.layers.0.mlp.up_proj"]},
        {"target_modules": "all-linear"},
    ],
    ids=str,
)
def test_however_modules_were_selected_a_prediction_adapts_the_same_ones(
    tmp_path: Path, base_model: Any, options: dict[str, Any]
) -> None:
    model = lora(base_model, tmp_path / "source", **options)
    source = load_adapter(tmp_path / "source")
    export(tmp_path / "copy", source.vector, source.layout, (source.config.alpha, False))
    copy = load_with_peft(base_model, tmp_path / "copy")
    assert set(copy.targeted_module_names) == set(model.targeted_module_names)
    assert (logits(copy) == logits(model)).all()
    # A bank ingests its own predictions.
    again = load_adapter(tmp_path / "copy", expected=source.layout)
    assert again.layout == source.layout
    assert (again.vector == source.vector).all()


@pytest.mark.torch
@pytest.mark.parametrize("init", [True, False, "gaussian", "eva", "orthogonal", "mica"])
def test_accepted_initialisations_leave_the_base_model_alone(
    tmp_path: Path, base_model: Any, init: bool | str
) -> None:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # eva wants data
        model = lora(base_model, tmp_path / "adapter", init_lora_weights=init)
    weights = model.get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight
    assert torch.equal(weights, base_model.model.layers[0].self_attn.q_proj.weight)
    round_trips(tmp_path / "adapter")


@pytest.mark.torch
@pytest.mark.parametrize("init", ["pissa", "pissa_niter_2", "olora"])
def test_refused_initialisations_change_it_and_the_conversion_we_name_is_accepted(
    tmp_path: Path, base_model: Any, init: str
) -> None:
    import copy

    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], init_lora_weights=init)
    model = get_peft_model(copy.deepcopy(base_model), config)
    model.peft_config["default"].base_model_name_or_path = BASE_MODEL
    weights = model.get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight
    assert not torch.allclose(weights, base_model.model.layers[0].self_attn.q_proj.weight, atol=1e-4)
    model.save_pretrained(tmp_path / "plain", save_embedding_layers=False)
    with pytest.raises(AdapterError, match="path_initial_model_for_weight_conversion"):
        load_adapter(tmp_path / "plain")
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "initial", save_embedding_layers=False)
    model.peft_config["default"].init_lora_weights = init
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data += torch.randn_like(parameter) / 8
    model.save_pretrained(
        tmp_path / "converted",
        path_initial_model_for_weight_conversion=str(tmp_path / "initial"),
        save_embedding_layers=False,
    )
    adapter = load_adapter(tmp_path / "converted")
    assert adapter.config.rank == 8
    np.testing.assert_allclose(
        logits(load_with_peft(base_model, tmp_path / "converted")), logits(model.eval()), rtol=1e-3, atol=1e-4
    )


@pytest.mark.torch
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"lora_bias": True, "target_modules": ["q_proj"]}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, "embeddings are adapted"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    ],
    ids=str,
)
def test_what_peft_saves_of_other_kinds_is_refused(
    tmp_path: Path, base_model: Any, options: dict[str, Any], message: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lora(base_model, tmp_path / "adapter", **options)
    with pytest.raises(AdapterError, match=message):
        load_adapter(tmp_path / "adapter")


@pytest.mark.torch
def test_peft_itself_refuses_or_ignores_what_we_refuse_in_a_config(tmp_path: Path) -> None:
    """The written configuration is read by PEFT as it was meant."""
    from peft import PeftConfig

    layout = AdapterLayout.from_shapes(dict.fromkeys(tensor_names(), (4, 4)), 4, ["q_proj", "v_proj"])
    (tmp_path / CONFIG).write_text(render_config(BASE_MODEL, layout, (12.5, True), None, revision="abc"))
    config = PeftConfig.from_pretrained(tmp_path)
    assert (config.r, config.lora_alpha, config.use_rslora) == (4, 12.5, True)
    assert config.target_modules == {"q_proj", "v_proj"}
    assert (config.base_model_name_or_path, config.revision, config.task_type) == (BASE_MODEL, "abc", None)
    assert read_config(tmp_path / CONFIG).scaling == 12.5 / 2
    assert good_config()["peft_type"] == config.peft_type
