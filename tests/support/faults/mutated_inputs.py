"""Reads thousands of damaged inputs, each in a process of its own with little time and memory.

`python -m tests.support.faults.mutated_inputs KIND COUNT SEED FOLDER` prints a JSON object: how many were taken,
how many refused, and each that was neither, with its seed.
"""

from __future__ import annotations

import csv
import importlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODULES = ("bankdb.datasets.read", "bankdb.datasets.tokenizer", "bankdb.sources.pairs")
PARQUET_MODULES = ("pyarrow", "pyarrow.compute", "pyarrow.parquet", "bankdb.datasets.parquet")
TOKENIZER_MODULES = ("sentencepiece", "tokenizers", "transformers.models.auto.tokenization_auto")
SECONDS, BYTES = 10, 1 << 30
LONGEST_MESSAGE = 2000
ROWS = [
    {"id": f"task-{k}", "input": f"what is {k} — “naïve” 🎈?\n", "output": [f"answer {k % 7}", "x"]}
    for k in range(12)
]
PAIRS = [
    {
        "name": f"task{k}",
        "adapter": f"adapters/{k}",
        "dataset": f"datasets/{k}.jsonl",
        "group": "g",
        "licence": "MIT",
    }
    for k in range(6)
]
INTERESTING = [
    b"\x00", b"\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\xff" * 8, b"\x80" * 5, b"\xff\xff\xff\xff\x0f",
    b'"', b"\\", b"{", b"}", b"[" * 3000, b"]", b",", b"\n", b"\r", b"null", b"true", b"1e999", b"NaN", b"-",
    b"\\ud800", b"9" * 5000, b"'", b"['a']", b";", b"\xef\xbb\xbf", b"instruction", b"~", b"\t", b"\xe2\x80\xa8",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, 0, -1, 2**31, 2**32 - 1, 2**63, 1.5, "", "x", "input", [], {}, [[]], {"a": "b"}, ["a", None], "é" * 50,
    "[" * 50, "(a+)+$", 10**30,
]  # fmt: skip


def encoded(kind: str, rng: random.Random) -> bytes:
    """A good input of a kind."""
    if kind in ("jsonl", "manifest-jsonl"):
        return "".join(
            json.dumps(row, ensure_ascii=False) + "\n" for row in (ROWS if kind == "jsonl" else PAIRS)
        ).encode()
    if kind == "json":
        return json.dumps(
            ROWS if rng.random() < 0.5 else {"data": ROWS}, ensure_ascii=False, indent=1
        ).encode()
    if kind in ("csv", "manifest-csv"):
        rows = [{**row, "output": row["output"][0]} for row in ROWS] if kind == "csv" else PAIRS
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()
    return parquet(rng)


def parquet(rng: random.Random) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = (
        ROWS if rng.random() < 0.5 else [{**r, "output": str(r["output"][0])} for r in ROWS]
    )
    options: dict[str, Any] = {"compression": rng.choice(["snappy", "zstd", "none", "gzip"])}
    flat = isinstance(rows[0]["output"], str)
    if rng.random() < 0.4:
        leaf = "output" if flat else "output.list.element"
        options |= {
            "use_dictionary": False,
            "column_encoding": {"input": "DELTA_LENGTH_BYTE_ARRAY", leaf: "DELTA_BYTE_ARRAY"},
        }
    options["data_page_version"] = rng.choice(["1.0", "2.0"])
    options["row_group_size"] = rng.choice([3, 100])
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, **options)
    return sink.getvalue()


def flipped(data: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, overwritten, cut, repeated or put in."""
    damaged = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 8])):
        at = rng.randrange(len(damaged) + 1)
        if rng.random() < 0.3:
            at = max(0, len(damaged) - rng.randrange(1, 400))  # where a Parquet file says what is in it
        way = rng.randrange(3 if data.startswith(b"PAR1") else 6)
        piece = rng.choice(INTERESTING)
        if way == 0 and at < len(damaged):
            damaged[at] ^= 1 << rng.randrange(8)
        elif way == 1 and at < len(damaged):
            damaged[at] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
        elif way == 2:
            damaged[at : at + len(piece)] = piece
        elif way == 3:
            damaged[at:at] = piece
        elif way == 4:
            del damaged[at : at + rng.choice([1, 2, 8, 100])]
        else:
            damaged[at:at] = damaged[at : at + rng.choice([1, 8, 200])] * rng.choice([1, 2, 50])
    return bytes(damaged)


def changed(value: Any, rng: random.Random) -> Any:
    """A JSON value with one part of it replaced, renamed, removed or nested."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        way = rng.randrange(8)
        if way == 0:
            return {("x" if k == key else k): v for k, v in value.items()}
        if way == 1:
            return {k: v for k, v in value.items() if k != key}
        if way == 2:
            return {**value, rng.choice(["instruction", "messages", "text", "data", "x"]): rng.choice(VALUES)}
        return {**value, key: changed(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = rng.randrange(len(value))
        way = rng.randrange(8)
        if way == 0:
            return value[:at] + value[at + 1 :]
        if way == 1:
            return [*value[:at], value[at], *value[at:]]
        return [*value[:at], changed(value[at], rng), *value[at + 1 :]]
    replaced = rng.choice(VALUES)
    for _ in range(rng.choice([0, 0, 0, 1, 200])):
        replaced = [replaced] if rng.random() < 0.5 else {"a": replaced}
    return replaced


def mutated(kind: str, rng: random.Random) -> bytes:
    """A damaged input."""
    data = encoded(kind, rng)
    if kind in ("json", "jsonl", "manifest-jsonl") and rng.random() < 0.5:
        if kind == "json":
            return json.dumps(changed(json.loads(data), rng)).encode()
        lines = data.decode().splitlines()
        at = rng.randrange(len(lines))
        lines[at] = json.dumps(changed(json.loads(lines[at]), rng))
        return "\n".join(lines).encode()
    return flipped(data, rng)


# -- one input, in its own process ------------------------------------------------------------------


def read_data(path: Path, base: Path) -> str:
    from bankdb.datasets.read import read_dataset

    dataset = read_dataset([path], memory=BYTES // 2)
    expected = [
        (as_text(text), as_text(output[0] if isinstance(output, list) else output))
        for text, output in plainly(path)
    ]
    assert list(zip(dataset.inputs, dataset.outputs, strict=True)) == expected, (
        "other examples than are there"
    )
    return "taken"


def as_text(value: Any) -> Any:
    """Numbers and booleans as JSON writes them; anything else as it is, so that it is no text."""
    return json.dumps(value) if isinstance(value, bool | int | float) else value


def plainly(path: Path) -> list[tuple[Any, Any]]:
    """Inputs and outputs, read by the plainest means."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        found = pq.read_table(path, columns=["input", "output"], use_threads=False).to_pylist()
    elif path.suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as stream:
            found = list(csv.DictReader(stream, strict=True))
    else:
        text = path.read_bytes().decode("utf-8-sig")
        try:
            found = json.loads(text)
        except ValueError:
            found = [json.loads(line) for line in text.split("\n") if line.strip()]
        if isinstance(found, dict):
            found = found["data"] if "input" not in found else [found]
    return [(row["input"], row["output"]) for row in found]


def read_manifest(path: Path, base: Path) -> str:
    from bankdb.sources.pairs import find_references

    references, refused = find_references(path)
    for pair in refused:
        check_message(pair.reason, path if "line" in pair.reason else None)
    if path.suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as stream:
            # Empty lines before the header are no header.
            text = io.StringIO(stream.read().lstrip("\r\n"), newline="")
            rows: list[Any] = [
                {str(key).strip(): value for key, value in row.items()} for row in csv.DictReader(text)
            ]
    else:
        rows = []
        for line in path.read_bytes().decode("utf-8-sig").split("\n"):
            try:
                rows.append(json.loads(line))
            except (ValueError, RecursionError):
                continue
    for reference in references:
        named = [row for row in rows if isinstance(row, dict) and row.get("name") == reference.name]
        for side in ("adapter", "dataset"):
            stated = [str(row.get(side)).strip() for row in named]
            paths = {os.path.abspath(path.parent / text) for text in stated} | {
                *map(os.path.expanduser, stated)
            }
            assert getattr(reference, side) in paths, f"another {side}"
    return "taken" if references else "refused"


def read_tokenizer(path: Path, base: Path) -> str:
    from tokenizers import Tokenizer

    from bankdb.datasets.tokenizer import BankTokenizer

    tokenizer = BankTokenizer(path)
    texts = [row["input"] for row in ROWS]
    found = tokenizer.encode(texts)
    if (path / "tokenizer.json").exists():
        plain = Tokenizer.from_file(str(path / "tokenizer.json"))
        plain.no_truncation()
        plain.no_padding()
        assert found == [plain.encode(text).ids for text in texts], "other ids than the file's"
    else:
        import sentencepiece

        pieces = sentencepiece.SentencePieceProcessor(model_file=str(path / "tokenizer.model"))
        assert [
            ids[-len(own) :] if own else [] for ids, own in zip(found, map(pieces.encode, texts), strict=True)
        ] == [pieces.encode(text) for text in texts], "other ids than the model's"
    tokenizer.count(texts, str(path), BYTES // 2)
    return "taken"


def check_message(message: str, path: Path | None) -> None:
    assert "\n" not in message, "several lines"
    assert len(message) <= LONGEST_MESSAGE, f"a message of {len(message)} characters"
    assert path is None or str(path) in message, f"does not name the file: {message[:100]}"


READERS: dict[str, tuple[str, Callable[[Path, Path], str]]] = {
    "jsonl": ("train.jsonl", read_data),
    "json": ("train.json", read_data),
    "csv": ("train.csv", read_data),
    "parquet": ("train.parquet", read_data),
    "manifest-csv": ("m.csv", read_manifest),
    "manifest-jsonl": ("m.jsonl", read_manifest),
    "tokenizer": ("tokenizer", read_tokenizer),
    "tokenizer-pieces": ("tokenizer", read_tokenizer),
}


def write_mutated(kind: str, seed: int, path: Path, base: Path) -> None:
    rng = random.Random(f"{kind} {seed}")
    if not kind.startswith("tokenizer"):
        path.write_bytes(mutated(kind, rng))
        return
    shutil.copytree(base, path)
    names = sorted(file.name for file in path.iterdir())
    file = path / rng.choice(
        [name for name in names for _ in range(3 if name.startswith("tokenizer.") else 1)]
    )
    data = file.read_bytes()
    if file.suffix == ".json" and rng.random() < 0.7:
        value = json.loads(data)
        for _ in range(rng.choice([1, 1, 2, 3])):
            value = changed(value, rng)
        file.write_text(json.dumps(value))
    else:
        file.write_bytes(flipped(data, rng))


def outcome(kind: str, path: Path, base: Path) -> str:
    """What comes of one input; runs in a process of its own."""
    from bankdb.errors import BankError

    # Beside what the libraries' code and the threads' stacks reserve, and never use.
    reserved = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (reserved + BYTES, reserved + BYTES))
    signal.alarm(SECONDS)
    try:
        return READERS[kind][1](path, base)
    except BankError as error:
        try:
            check_message(str(error), path)
        except AssertionError as wrong:
            return f"a bad message: {wrong}"
        return "refused"
    except AssertionError as error:
        return f"wrong: {error}"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]}"


def forked(kind: str, path: Path, base: Path) -> str:
    reader, writer = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if not child:
        os.close(reader)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        found = outcome(kind, path, base)
        os.write(writer, found.encode("utf-8", "replace")[:4000])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        found = stream.read().decode()
    _, status, usage = os.wait4(child, 0)
    if status:
        return f"ended with status {status} after {time.monotonic() - started:.1f} s"
    if usage.ru_maxrss * 1024 > BYTES:
        return f"took {usage.ru_maxrss >> 10} MiB"
    return found


def load(kind: str) -> None:
    """Import what reading needs, before any thread is there."""
    more = {"parquet": PARQUET_MODULES, "tokenizer": TOKENIZER_MODULES}.get(kind.split("-")[0], ())
    for name in (*MODULES, *more):
        importlib.import_module(name)
    if kind == "parquet":
        sys.modules["pyarrow"].set_io_thread_count(1)


def main(kind: str, count: int, seed: int, folder: Path, base: Path) -> dict[str, Any]:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    load(kind)
    path = folder / READERS[kind][0]
    found: Counter[str] = Counter()
    others: dict[str, str] = {}
    for number in range(seed, seed + count):
        write_mutated(kind, number, path, base)
        result = forked(kind, path, base)
        found[result if result in ("taken", "refused") else "other"] += 1
        if result not in ("taken", "refused"):
            others[str(number)] = result
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return {"found": found, "others": others}


if __name__ == "__main__":
    kind, count, seed, folder, base = sys.argv[1:]
    print(json.dumps(main(kind, int(count), int(seed), Path(folder), Path(base))))
