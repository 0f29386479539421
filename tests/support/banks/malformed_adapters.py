"""Adapter folders made by hand, without the code under test: good ones, and one bad one of each kind."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
BASE_MODEL = "example/tiny-llama"
HIDDEN, RANK, LAYERS, TARGETS = 16, 4, 2, ("q_proj", "v_proj")
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I8": 1, "F8_E4M3": 1}

Header = dict[str, Any]


def tensor_names(layers: int = LAYERS, targets: tuple[str, ...] = TARGETS) -> list[str]:
    return [
        f"base_model.model.model.layers.{layer}.self_attn.{target}.lora_{factor}.weight"
        for layer in range(layers)
        for target in targets
        for factor in "AB"
    ]


def good_config(**changes: Any) -> dict[str, Any]:
    config: dict[str, Any] = {
        "alpha_pattern": {},
        "base_model_name_or_path": BASE_MODEL,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "lora_alpha": 8,
        "lora_dropout": 0.05,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "peft_type": "LORA",
        "peft_version": "0.21.2",
        "qalora_group_size": 16,
        "r": RANK,
        "rank_pattern": {},
        "revision": None,
        "target_modules": list(TARGETS),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    return config | changes


def write_good_adapter(folder: Path, *, seed: int = 0, dtype: str = "F32", **config: Any) -> Path:
    """Write an adapter whose values are random; `config` replaces options."""
    folder.mkdir(parents=True)
    settings = good_config(**config)
    (folder / CONFIG).write_text(json.dumps(settings, indent=2))
    rng = np.random.default_rng(seed)
    rank = settings["r"]
    header: Header = {"__metadata__": {"format": "pt"}}
    data = b""
    for name in tensor_names(targets=tuple(settings["target_modules"])):
        shape = [rank, HIDDEN] if ".lora_A." in name else [HIDDEN, rank]
        piece = encode(rng.normal(size=shape).astype(np.float32), dtype)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(piece)]}
        data += piece
    write_weights(folder, header, data)
    return folder


def encode(values: np.ndarray, dtype: str) -> bytes:
    """The bytes of float32 values in a dtype; bfloat16 by cutting off the lower half."""
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    return values.astype({"F32": "<f4", "F16": "<f2", "F64": "<f8"}[dtype]).tobytes()


def write_weights(folder: Path, header: Header | bytes, data: bytes) -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(raw)) + raw + data)


def read_weights(folder: Path) -> tuple[Header, bytes]:
    raw = (folder / WEIGHTS).read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


@dataclass(frozen=True)
class MalformedAdapter:
    """One way to damage a good adapter folder in place.

    `file` is the name that the message must give, `message` a part of what it must say; `structural` says
    that the file is no safetensors file for anybody.
    """

    name: str
    damage: Callable[[Path], None]
    message: str
    file: str = WEIGHTS
    structural: bool = False


def _option(message: str, name: str = "", **changes: Any) -> MalformedAdapter:
    def damage(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(config | changes))

    key, value = next(iter(changes.items()))
    return MalformedAdapter(name or f"{key}={value!r:.30}", damage, message, CONFIG)


def _without(key: str, message: str) -> MalformedAdapter:
    def damage(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        del config[key]
        (folder / CONFIG).write_text(json.dumps(config))

    return MalformedAdapter(f"no {key}", damage, message, CONFIG)


def _config_bytes(name: str, content: bytes, message: str) -> MalformedAdapter:
    return MalformedAdapter(name, lambda folder: _write(folder / CONFIG, content), message, CONFIG)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _weights(
    name: str, edit: Callable[[bytes], bytes], message: str, structural: bool = True
) -> MalformedAdapter:
    def damage(folder: Path) -> None:
        path = folder / WEIGHTS
        path.write_bytes(edit(path.read_bytes()))

    return MalformedAdapter(name, damage, message, structural=structural)


def _header(
    name: str, edit: Callable[[Header], Any], message: str, structural: bool = False
) -> MalformedAdapter:
    """Damage by editing the header; the data is left as it is."""

    def damage(folder: Path) -> None:
        header, data = read_weights(folder)
        result = edit(header)
        write_weights(folder, header if result is None else result, data)

    return MalformedAdapter(name, damage, message, structural=structural)


def _rename(old: str, new: str) -> Callable[[Header], Header]:
    def edit(header: Header) -> Header:
        return {key.replace(old, new, 1): value for key, value in header.items()}

    return edit


def _tensors(
    name: str, edit: Callable[[dict[str, tuple[str, list[int], bytes]]], None], message: str
) -> MalformedAdapter:
    """Damage by editing named tensors; the result is a well-formed safetensors file."""

    def damage(folder: Path) -> None:
        header, data = read_weights(folder)
        metadata = header.pop("__metadata__")
        tensors = {
            key: (spec["dtype"], spec["shape"], data[slice(*spec["data_offsets"])])
            for key, spec in header.items()
        }
        edit(tensors)
        header = {"__metadata__": metadata}
        data = b""
        for key, (dtype, shape, piece) in tensors.items():
            header[key] = {
                "dtype": dtype,
                "shape": shape,
                "data_offsets": [len(data), len(data) + len(piece)],
            }
            data += piece
        write_weights(folder, header, data)

    return MalformedAdapter(name, damage, message)


FIRST, SECOND = tensor_names()[:2]


def _add(name: str, shape: list[int], dtype: str = "F32") -> Callable[[dict[str, Any]], None]:
    def edit(tensors: dict[str, Any]) -> None:
        count = int(np.prod(shape))
        tensors[name] = (dtype, shape, bytes(count * ITEM_BYTES[dtype]))

    return edit


def _drop(*names: str) -> Callable[[dict[str, Any]], None]:
    def edit(tensors: dict[str, Any]) -> None:
        for name in names:
            del tensors[name]

    return edit


def _value(bits: int, index: int = -1) -> Callable[[dict[str, Any]], None]:
    """Set one value of the last tensor, by its float32 bits."""

    def edit(tensors: dict[str, Any]) -> None:
        name = list(tensors)[-1]
        dtype, shape, piece = tensors[name]
        values = np.frombuffer(piece, "<u4").copy()
        values[index] = bits
        tensors[name] = (dtype, shape, values.tobytes())

    return edit


def _shape(name: str, shape: list[int]) -> Callable[[Header], None]:
    return lambda header: header[name].update(shape=shape)


def _offsets(name: str, start: int, stop: int) -> Callable[[Header], None]:
    """Move the ends of a tensor's data by so many bytes."""

    def edit(header: Header) -> None:
        old = header[name]["data_offsets"]
        header[name]["data_offsets"] = [old[0] + start, old[1] + stop]

    return edit


def _pickle_only(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / name).write_bytes(b"PK\x03\x04 pickle")

    return damage


def _folder_instead(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


def _dangling(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(folder / "gone.safetensors")


def _fifo(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


def _duplicate_tensor(header: Header) -> bytes:
    text = json.dumps(header)
    return (text[:-1] + f", {json.dumps(FIRST)}: {json.dumps(header[FIRST])}}}").encode()


def _every_shape_swapped(header: Header) -> None:
    for name, spec in header.items():
        if name != "__metadata__":
            spec["shape"] = spec["shape"][::-1]


def _double_rank(tensors: dict[str, Any]) -> None:
    for name, (dtype, shape, piece) in tensors.items():
        position = 0 if ".lora_A." in name else 1
        tensors[name] = (dtype, [n * (2 if i == position else 1) for i, n in enumerate(shape)], piece * 2)


def _swap_dtype(dtype: str) -> Callable[[dict[str, Any]], None]:
    def edit(tensors: dict[str, Any]) -> None:
        _, shape, _ = tensors[FIRST]
        tensors[FIRST] = (dtype, shape, bytes(int(np.prod(shape)) * ITEM_BYTES[dtype]))

    return edit


def _move_module(tensors: dict[str, Any]) -> None:
    for name in (FIRST, SECOND):
        tensors[name.replace("q_proj", "k_proj")] = tensors.pop(name)


MODULE = FIRST.removesuffix(".lora_A.weight")

CONFIG_FILES = (
    MalformedAdapter("no config", lambda folder: (folder / CONFIG).unlink(), "no such file", CONFIG),
    MalformedAdapter("config is a folder", _folder_instead(CONFIG), "a file was expected", CONFIG),
    _config_bytes("config is empty", b"", "not a JSON object"),
    _config_bytes("config is cut off", b'{"peft_type": "LORA", "r": ', "not a JSON object"),
    _config_bytes("config is an array", b'["LORA"]', "an object was expected, an array found"),
    _config_bytes("config is not UTF-8", b'{"peft_type": "\xff\xfe"}', "not UTF-8"),
    _config_bytes("config has a byte order mark", b'\xef\xbb\xbf{"peft_type": "LORA"}', "not a JSON object"),
    _config_bytes("key twice", b'{"peft_type": "LORA", "r": 4, "r": 8}', "'r' is given twice"),
    _config_bytes("NaN in config", b'{"peft_type": "LORA", "lora_alpha": NaN}', "NaN is no JSON value"),
    _config_bytes("deeply nested", b'{"a": ' + b"[" * 100_000, "nested too deeply"),
    _config_bytes("surrogate", b'{"peft_type": "LORA", "task_type": "\\ud800"}', "no Unicode text"),
)

CONFIG_OPTIONS = (
    _without("peft_type", "peft_type 'LORA' was expected, nothing found"),
    _option("'LORA' was expected, \"ADALORA\" found", peft_type="ADALORA"),
    _option("'LORA' was expected", peft_type="IA3"),
    _without("r", "r was expected to be a positive integer, nothing found"),
    _option("r was expected to be a positive integer, 0 found", r=0),
    _option("r was expected to be a positive integer, -4 found", r=-4),
    _option("r was expected to be a positive integer, true found", r=True),
    _option("r was expected to be a positive integer, 4.0 found", r=4.0),
    _option('r was expected to be a positive integer, "4" found', r="4"),
    _without("lora_alpha", "lora_alpha was expected to be a positive finite number, nothing found"),
    _option("lora_alpha was expected to be a positive finite number, 0 found", lora_alpha=0),
    _option("lora_alpha was expected", lora_alpha=-8),
    _option("lora_alpha was expected", lora_alpha=True),
    _option("lora_alpha was expected", lora_alpha=10**400),
    _config_bytes(
        "infinite lora_alpha",
        json.dumps(good_config()).replace('"lora_alpha": 8', '"lora_alpha": 1e999').encode(),
        "lora_alpha was expected",
    ),
    _without("target_modules", "target_modules was expected to be a list"),
    _option("target_modules was expected to be a list", target_modules=None),
    _option("target_modules was expected to be a list", target_modules=[]),
    _option("target_modules was expected to be a list", target_modules=["q_proj", 3]),
    _option("no regular expression", target_modules="(q_proj"),
    _without("base_model_name_or_path", "base_model_name_or_path was expected to name the base model"),
    _option("base_model_name_or_path was expected", base_model_name_or_path=None),
    _option("base_model_name_or_path was expected", base_model_name_or_path=""),
    _option("base_model_name_or_path was expected to be one line", base_model_name_or_path="a\nb"),
    _option("base_model_name_or_path was expected to be one line", base_model_name_or_path=7),
    _option("revision was expected to be one line", revision=3),
    _option("task_type was expected", task_type="POETRY"),
    _option("use_rslora was expected to be true or false", use_rslora="no"),
    _option("fan_in_fan_out was expected to be true or false", fan_in_fan_out=1),
    _option("bias 'none' was expected, \"all\" found", bias="all"),
    _option("bias 'none' was expected", bias="lora_only"),
    _option("DoRA", use_dora=True),
    _option("modules_to_save was expected to be unset", modules_to_save=["lm_head"]),
    _option("lora_bias was expected to be unset", lora_bias=True),
    _option("rank_pattern was expected to be unset", rank_pattern={"q_proj": 8}),
    _option("alpha_pattern was expected to be unset", alpha_pattern={"q_proj": 16}),
    _option("layer_replication was expected to be unset", layer_replication=[[0, 2], [1, 2]]),
    _option("target_parameters was expected to be unset", target_parameters=["experts.up"]),
    _option("trainable_token_indices was expected to be unset", trainable_token_indices=[0, 1]),
    _option("alora_invocation_tokens was expected to be unset", alora_invocation_tokens=[5]),
    _option("use_qalora was expected to be unset", use_qalora=True),
    _option("use_bdlora was expected to be unset", use_bdlora={"nblocks": 2}),
    _option("velora_config was expected to be unset", velora_config={"num_groups": 4}),
    _option("kasa_config was expected to be unset", kasa_config={"beta": 1e-4}),
    _option("arrow_config was expected to be unset", arrow_config={"top_k": 3}),
    _option("monteclora_config was expected to be unset", monteclora_config={"num_samples": 2}),
    _option("megatron_config was expected to be unset", megatron_config={"hidden_size": 4}),
    _option("enable_lora was expected to be unset", enable_lora=[True, False, True]),
    _option("path_initial_model_for_weight_conversion", init_lora_weights="pissa"),
    _option("path_initial_model_for_weight_conversion", init_lora_weights="pissa_niter_16"),
    _option("path_initial_model_for_weight_conversion", init_lora_weights="olora"),
    _option("path_initial_model_for_weight_conversion", init_lora_weights="corda"),
    _option("path_initial_model_for_weight_conversion", init_lora_weights="lora_ga"),
    _option("quantised the base model", init_lora_weights="loftq", loftq_config={"loftq_bits": 4}),
    _option("init_lora_weights 'magic' is not known", init_lora_weights="magic"),
    _option("init_lora_weights 1 is not known", init_lora_weights=1),
    _option("unknown options are set (lora_whitening: true)", lora_whitening=True),
    _option("unknown options are set (lora_gain: 0)", lora_gain=0),
)

FILES = (
    MalformedAdapter("no weights", lambda folder: (folder / WEIGHTS).unlink(), "no such file"),
    MalformedAdapter("pickle .bin", _pickle_only("adapter_model.bin"), "pickle", "adapter_model.bin"),
    MalformedAdapter("pickle .pt", _pickle_only("adapter_model.pt"), "pickle", "adapter_model.pt"),
    MalformedAdapter("pytorch_model.bin", _pickle_only("pytorch_model.bin"), "pickle", "pytorch_model.bin"),
    MalformedAdapter("weights are a folder", _folder_instead(WEIGHTS), "a file was expected"),
    MalformedAdapter("dangling link", _dangling, "a link to a file that is not there"),
    MalformedAdapter("named pipe", _fifo, "a file was expected"),
    _weights("empty file", lambda raw: b"", "empty file"),
    _weights("seven bytes", lambda raw: raw[:7], "truncated"),
    _weights("cut in the header", lambda raw: raw[:100], "truncated"),
    _weights("cut in the data", lambda raw: raw[:-1], "truncated"),
    _weights("no data", lambda raw: raw[: 8 + struct.unpack("<Q", raw[:8])[0]], "truncated"),
    _weights("bytes after the data", lambda raw: raw + b"\0", "longer than its tensors"),
    _weights("zip under this name", lambda raw: b"PK\x03\x04" + bytes(3000), "pickle", structural=True),
    _weights("pickle under this name", lambda raw: b"\x80\x02}q\x00X\x05\x00\x00" + bytes(300), "a pickle"),
    _weights(
        "Git LFS pointer",
        lambda raw: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "git lfs pull",
    ),
    _weights("zero-length header", lambda raw: bytes(8) + raw[8:], "does not begin with"),
    _weights("random bytes", lambda raw: np.random.default_rng(1).bytes(4000), "truncated"),
)

HEADERS = (
    _header("header is not JSON", lambda h: b"{not json at all}", "malformed safetensors header", True),
    _header("header is an array", lambda h: b"[1, 2, 3, 4, 5, 6]", "does not begin with", True),
    _header("header begins with a space", lambda h: b" " + json.dumps(h).encode(), "does not begin with"),
    _header("header is not UTF-8", lambda h: b'{"\xff": 1}', "malformed safetensors header", True),
    _header("tensor twice", _duplicate_tensor, "given twice"),
    _header("no tensors", lambda h: {"__metadata__": {"format": "pt"}}, "holds no tensors", True),
    _header("metadata is no map of text", lambda h: h.update(__metadata__={"a": 1}), "__metadata__", True),
    _header("no dtype", lambda h: h[FIRST].pop("dtype") and None, "was expected to have dtype", True),
    _header("shape is text", _shape(FIRST, "4x16"), "are not what they should be", True),  # type: ignore[arg-type]
    _header("negative shape", _shape(FIRST, [-4, -16]), "are not what they should be", True),
    _header("boolean shape", _shape(FIRST, [True, 64]), "are not what they should be", True),
    _header("one offset", lambda h: h[FIRST].update(data_offsets=[0]), "are not what they should be", True),
    _header("shape does not fill the data", _shape(FIRST, [4, 15]), "was expected to have 240 bytes", True),
    _header("huge shape", _shape(FIRST, [2**62, 2**62]), "was expected to have", True),
    _header("overlap", _offsets(SECOND, -4, -4), "overlaps", True),
    _header("gap", _offsets(FIRST, 4, 4), "leaves a gap", True),
    _header("reversed offsets", lambda h: h[FIRST].update(data_offsets=[256, 0]), "was expected", True),
    _header("unknown dtype", lambda h: h[FIRST].update(dtype="F31"), "'F31' found", True),
)

TENSORS = (
    _tensors("line break in a name", _add("a\nb", [4, 16], "F64"), "was expected to be printable"),
    _tensors("float64", _swap_dtype("F64"), "'F64' found"),
    _tensors("int8", _swap_dtype("I8"), "'I8' found"),
    _tensors("float8", _swap_dtype("F8_E4M3"), "'F8_E4M3' found"),
    _tensors("empty tensor", _add(f"{MODULE}_2.lora_A.weight", [0, 16]), "empty tensors"),
    _tensors("no lora_B", _drop(SECOND), f"missing tensor {SECOND}"),
    _tensors("no lora_A", _drop(FIRST), f"missing tensor {FIRST}"),
    _tensors("no v_proj", _drop(*[n for n in tensor_names() if "v_proj" in n]), "missing tensors for v_proj"),
    _tensors("DoRA magnitude", _add(f"{MODULE}.lora_magnitude_vector", [16]), "a magnitude of DoRA"),
    _tensors("bias", _add(f"{MODULE}.lora_B.bias", [16]), "a bias"),
    _tensors(
        "embedding LoRA",
        _add("base_model.model.model.embed_tokens.lora_embedding_A", [4, 32]),
        "embeddings are adapted",
    ),
    _tensors("saved head", _add("base_model.model.lm_head.weight", [32, 16]), "a weight of the model itself"),
    _tensors("KaSA diagonal", _add(f"{MODULE}.lora_diag", [4]), "a variant of LoRA"),
    _tensors("module not targeted", _move_module, "target_modules"),
    _header("no prefix", _rename("base_model.model.model", "model"), "does not begin with base_model.model."),
    _header("adapter name in names", _rename(".lora_A.weight", ".lora_A.default.weight"), "adapter's name"),
    _header("factors swapped", _every_shape_swapped, "was expected to have rank 4"),
    _header("factor is a cube", _shape(FIRST, [4, 4, 4]), "was expected to be a matrix"),
    _header("convolution", _shape(FIRST, [4, 16, 1, 1]), "was expected to be a matrix"),
    _header("vector", _shape(FIRST, [64]), "was expected to be a matrix"),
    _tensors("rank is not r", _double_rank, "was expected to have rank 4"),
    _tensors("NaN", _value(0x7FC00000), "1 NaN or Inf of 64 found"),
    _tensors("Inf", _value(0x7F800000), "1 NaN or Inf of 64 found"),
    _tensors("-Inf first", _value(0xFF800000, 0), "1 NaN or Inf of 64 found"),
    _tensors("signalling NaN", _value(0x7F800001), "1 NaN or Inf of 64 found"),
)

MALFORMED = (*CONFIG_FILES, *CONFIG_OPTIONS, *FILES, *HEADERS, *TENSORS)
