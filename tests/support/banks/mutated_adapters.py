"""Adapter folders with something changed at random, by a seed, as files from strangers may be."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.banks.malformed_adapters import (
    CONFIG,
    WEIGHTS,
    read_weights,
    write_good_adapter,
    write_weights,
)

WRAPPERS = (
    "_orig_mod",
    "module",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "base_model.model",
    "_x",
    "é",
)
PATTERNS = (
    r".*\.(q|v)_proj",
    r"(.*)*x",
    r"((a|.)+)+\.\1y",
    "(" * 5000 + ")" * 5000,
    "a{99999999999999999999}",
    "(" * 99 + "q" + "){1000}" * 99,
    "[",
    "(?P<idx>.)*",
    "all-linear",
    r"(?s:.)*_proj",
    "(.*){200}" * 20 + "!",
)
OPTIONS = (
    *(
        "alpha_pattern",
        "base_model_name_or_path",
        "bias",
        "exclude_modules",
        "fan_in_fan_out",
        "init_lora_weights",
    ),
    *(
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "modules_to_save",
        "peft_type",
        "r",
        "rank_pattern",
    ),
    *("revision", "target_modules", "task_type", "use_dora", "use_rslora", "auto_mapping", "anything"),
)


def value(rng: random.Random, depth: int = 0) -> Any:
    """A JSON value of any type and of any size."""
    kinds: list[Callable[[], Any]] = [
        lambda: None,
        lambda: rng.random() < 0.5,
        lambda: rng.choice([0, 1, -1, 4, 2**31, 2**63, 2**64, 10**400, -(10**30)]),
        lambda: rng.choice([0.0, 5e-324, 1e-30, 0.5, 1e308, -1e-5]),
        lambda: rng.choice(
            ["", "a\nb", "q_proj", "\x1b[2J", "x" * rng.choice([10, 10**4, 5 * 10**6]), "é" * 5]
        ),
        lambda: rng.choice(PATTERNS),
        lambda: [
            rng.choice(["q_proj", "v_proj", 0, 1, "layers", None])
            for _ in range(rng.choice([0, 1, 2, 10**5]))
        ],
        lambda: {f"k{index}": index for index in range(rng.choice([0, 1, 10**5]))},
    ]
    if depth < 3:
        kinds += [lambda: [value(rng, depth + 1)], lambda: {"a": value(rng, depth + 1)}]
    return rng.choice(kinds)()


def _flip(rng: random.Random, path: Path, most: int | None = None) -> None:
    raw = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 2, 8])):
        raw[rng.randrange(min(most or len(raw), len(raw)))] ^= 1 << rng.randrange(8)
    path.write_bytes(raw)


def _cut(rng: random.Random, path: Path) -> None:
    raw = path.read_bytes()
    at = rng.randrange(len(raw))
    path.write_bytes(
        rng.choice([raw[:at], raw[:at] + raw[at + 1 :], raw + raw[:at], raw[:at] + raw[at:][::-1], b""])
    )


def _config(rng: random.Random, folder: Path) -> None:
    path = folder / CONFIG
    config = json.loads(path.read_text())
    kind = rng.randrange(8)
    if kind == 0:
        return _flip(rng, path)
    if kind == 1:
        return _cut(rng, path)
    if kind == 2:
        del config[rng.choice(list(config))]
    elif kind == 3:
        config[rng.choice(["target_modules", "exclude_modules", "layers_pattern"])] = rng.choice(PATTERNS)
        config["layers_to_transform"] = rng.choice([None, 0, [0, 1], "a"])
    elif kind == 4:
        deep = rng.choice(["[", '{"a":']) * rng.choice([100, 10**5, 10**6])
        path.write_text(json.dumps(config)[:-1] + f', "x": {deep}')
        return None
    elif kind == 5:
        many = ", ".join(f'"key{n}": {n}' for n in range(rng.choice([100, 10**5])))
        path.write_text(json.dumps(config)[:-1] + f', {many}, "key7": 0}}')
        return None
    else:
        config[rng.choice(OPTIONS)] = value(rng)
    path.write_text(json.dumps(config))
    return None


def _length(rng: random.Random, folder: Path) -> None:
    raw = (folder / WEIGHTS).read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    other = rng.choice([0, 1, length - 1, length + 1, length + 8, len(raw), 2**31, 2**63, 2**64 - 1, 10**8])
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", other) + raw[8:])


def _entry(rng: random.Random, folder: Path) -> None:
    header, data = read_weights(folder)
    name = rng.choice([key for key in header if key != "__metadata__"])
    entry = header[name]
    kind = rng.randrange(5)
    if kind == 0:
        entry["data_offsets"] = [
            rng.choice([0, 256, 257, -1, 2**63, 2**70, 3.5, None, "0"]) for _ in range(2)
        ]
    elif kind == 1:
        entry["dtype"] = rng.choice(["F64", "BF16", "F16", "I32", "F8_E4M3", "", "x" * 5 * 10**6, None, 3])
    elif kind == 2:
        entry["shape"] = rng.choice(
            [[], [64], [4, 16, 1], [2**32, 2**32], [2**62] * 10**5, [1] * 10**6, "4", [4.0, 16]]
        )
    elif kind == 3:
        entry[rng.choice(["dtype", "shape", "data_offsets", "more"])] = value(rng)
    else:
        header[name] = value(rng)
    write_weights(folder, header, data)


def _name(rng: random.Random, folder: Path) -> None:
    """Rename tensors: one of them, or all alike."""
    header, data = read_weights(folder)
    names = [key for key in header if key != "__metadata__"]
    alike = rng.random() < 0.6
    old = rng.choice(
        [".self_attn", "base_model.model", ".weight", ".lora_A", ".layers.0", "model.model", ".q_proj"]
    )
    wrapped = [f"{old}.{rng.choice(WRAPPERS)}", f"{rng.choice(WRAPPERS)}.{old}", f"{old}.default"]
    new = rng.choice([*wrapped, "", ".", old.upper(), "\x1b", old + "x" * 5 * 10**6])
    some = set(names) if alike else {rng.choice(names)}
    renamed = {(key.replace(old, new, 1) if key in some else key): spec for key, spec in header.items()}
    write_weights(folder, renamed, data)


def _many(rng: random.Random, folder: Path) -> None:
    """Very many tensors, that are empty or that the file is far too short for."""
    number, size = rng.choice([1000, 10**5, 10**6]), rng.choice([0, 16])
    pieces = [
        f'"base_model.model.l.{n}.q_proj.lora_A.weight":{{"dtype":"F32","shape":[4,1],'
        f'"data_offsets":[{n * size},{(n + 1) * size}]}}'
        for n in range(number)
    ]
    write_weights(folder, ("{" + ",".join(pieces) + "}").encode(), b"")


def _sparse(rng: random.Random, folder: Path) -> None:
    """A file whose data are a hole of up to a terabyte, with the shapes that go with it."""
    header, _ = read_weights(folder)
    width, offset = rng.choice([2**20, 2**26, 2**33]), 0
    for name, entry in header.items():
        if name != "__metadata__":
            entry["shape"] = [4, width] if ".lora_A." in name else [width, 4]
            entry["data_offsets"] = [offset, offset + 16 * width]
            offset += 16 * width
    write_weights(folder, header, b"")
    with (folder / WEIGHTS).open("r+b") as file:
        file.truncate(file.seek(0, 2) + offset)


def _header_text(rng: random.Random, folder: Path) -> None:
    header, data = read_weights(folder)
    text = json.dumps(header)
    deep = rng.choice(["[", '{"a":']) * rng.choice([100, 10**5, 10**6])
    bad = [
        f'{text[:-1]}, "x": {deep}',
        text[:-1] + ", " + text[1:],
        text + " " * 10**6,
        "[]",
        "{}",
        '{"a": 1}',
    ]
    bad.append(text.replace("{", "{" + "[]," * rng.choice([1, 10**6]), 1))
    bad.append('{"__metadata__": ' + "{" + ",".join(f'"{n}": "x"' for n in range(10**5)) + "}}")
    write_weights(folder, rng.choice(bad).encode(), data)


def _values(rng: random.Random, folder: Path) -> None:
    """Weights that are not finite, tiny or huge."""
    header, data = read_weights(folder)
    bits = rng.choice([0x7F800000, 0x7FC00000, 0x00000001, 0x0DA24260, 0x7F7FFFFF, 0])
    where = rng.choice([slice(None), slice(0, 1), slice(64, 128)])
    numbers = list(struct.unpack(f"<{len(data) // 4}I", data))
    numbers[where] = [bits] * len(numbers[where])
    write_weights(folder, header, struct.pack(f"<{len(numbers)}I", *numbers))


KINDS: tuple[Callable[[random.Random, Path], None], ...] = (
    _config,
    _config,
    _config,
    lambda rng, folder: _flip(rng, folder / WEIGHTS, 2000),
    lambda rng, folder: _cut(rng, folder / WEIGHTS),
    _length,
    _entry,
    _entry,
    _name,
    _name,
    _many,
    _sparse,
    _header_text,
    _values,
)


def mutate(folder: Path, seed: int) -> None:
    """Change something of a good adapter in place."""
    rng = random.Random(seed)
    for _ in range(rng.choice([1, 1, 1, 2])):
        if (folder / WEIGHTS).stat().st_size > 10**8:
            return  # a hole: not to be read here
        try:
            rng.choice(KINDS)(rng, folder)
        except (ValueError, KeyError, TypeError, AttributeError, struct.error, IndexError, RecursionError):
            return  # what the first change left cannot be changed in that way once more


def write_mutated(folder: Path, seed: int) -> Path:
    """Write a good adapter, and change something of it."""
    write_good_adapter(folder, seed=seed, dtype=("F32", "F16", "BF16")[seed % 3])
    mutate(folder, seed)
    return folder
