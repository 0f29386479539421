"""The headers of GGUF files of strangers: read as llama.cpp's package reads them, and in bounded time and memory."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bankdb.errors import GgufError
from bankdb.gguf.header import read_gguf
from tests.support.gguf_cases import write_base_gguf

PROJECT = "LlamaForCausalLM"


@pytest.fixture(scope="module")
def base_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base_gguf(tmp_path_factory.mktemp("gguf") / "base.gguf", PROJECT)


def is_read(path: Path) -> bool:
    """Whether a header is read; whatever else happens is one line that names the file."""
    found = None
    try:
        read_gguf(path)
    except GgufError as error:
        found = str(error)
    assert found is None or (found.startswith(f"{path}: ") and "\n" not in found)
    return found is None


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def header(
    keys: bytes = b"", tensors: bytes = b"", counts: tuple[int, int] = (0, 0), version: int = 3
) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, counts[1], counts[0]) + keys + tensors


def test_it_is_what_llama_cpps_package_reads(base_gguf: Path) -> None:
    import gguf

    theirs, ours = gguf.GGUFReader(base_gguf), read_gguf(base_gguf)
    assert ours.shapes == {one.name: tuple(int(n) for n in reversed(one.shape)) for one in theirs.tensors}
    read = {key: one.contents() for key, one in theirs.fields.items() if not key.startswith("GGUF.")}
    left_out = {"tokenizer.ggml.tokens", "tokenizer.ggml.wide", "tokenizer.chat_template"}
    assert read.keys() - ours.values.keys() == left_out - {"tokenizer.chat_template"}
    assert {key: value for key, value in ours.values.items() if key not in left_out} == {
        key: value for key, value in read.items() if key not in left_out
    }


def test_a_file_that_ends_anywhere_in_its_header_is_refused(base_gguf: Path, tmp_path: Path) -> None:
    whole = base_gguf.read_bytes()
    end = len(whole)
    # Where the header ends is where the first cut that is read lies.
    lengths = sorted({*range(400), *range(400, end, 997)})
    outcomes = []
    for length in lengths:
        cut = tmp_path / "cut.gguf"
        cut.write_bytes(whole[:length])
        outcomes.append(is_read(cut))
    assert outcomes[:400] == [False] * 400
    assert outcomes == sorted(outcomes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a GGUF file was expected, one that begins with b'' found"),
        (b"PK\3\4zip", "a GGUF file was expected, one that begins with b'PK"),
        (header(version=1), "version 2 or 3 of GGUF was expected, with the lowest byte first, 1 found"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version 2 or 3 of GGUF was expected"),
        (header(counts=(1 << 40, 0)), "at most 65,536 keys were expected"),
        (header(counts=(0, 1 << 63)), "at most 65,536 tensors were expected"),
        (header(text(b"k" * 2000), counts=(1, 0)), "a name of at most 1024 bytes was expected, one of 2000"),
        (header(struct.pack("<Q", 1 << 62), counts=(1, 0)), "a name of at most 1024 bytes was expected"),
        (
            header(text(b"k") + struct.pack("<I", 13), counts=(1, 0)),
            "a kind of value that GGUF has was expected, 13",
        ),
        (header(text(b"k") + struct.pack("<IIQ", 9, 9, 4), counts=(1, 0)), "one of kind 9 found"),
        (header(text(b"k") + struct.pack("<IIQ", 9, 8, 1 << 60), counts=(1, 0)), "at most 4,000,000 texts"),
        (header(text(b"k") + struct.pack("<IIQ", 9, 12, 1 << 61), counts=(1, 0)), "it ends in its header"),
        (header(text(b"k") + struct.pack("<IQ", 8, 1 << 61), counts=(1, 0)), "it ends in its header"),
        (header(b"", text(b"t") + struct.pack("<I", 9), counts=(0, 1)), "1 to 4 dimensions were expected"),
        (header(b"", text(b"t") + struct.pack("<I", 0), counts=(0, 1)), "1 to 4 dimensions were expected"),
    ],
    ids=lambda one: one[:40] if isinstance(one, str) else "",
)
def test_what_is_no_model_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "base.gguf"
    path.write_bytes(content)
    with pytest.raises(GgufError, match=r"base\.gguf: .*copy the file again") as raised:
        read_gguf(path)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(GgufError, match="No such file or directory; check the path"):
        read_gguf(tmp_path / "none.gguf")
    with pytest.raises(GgufError, match="cannot be read: Is a directory"):
        read_gguf(tmp_path)


@given(st.data())
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_change_of_a_byte_is_any_other_error(base_gguf: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(base_gguf.read_bytes()[:6000])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "changed.gguf"
    path.write_bytes(bytes(content))
    is_read(path)
