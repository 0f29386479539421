from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_bank import create_bank, ingest_folder, write_pairs, write_tokenizer

from bankdb.bank import AdapterBank


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def pairs_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six good pairs, in all three dtypes; do not change them."""
    return write_pairs(tmp_path_factory.mktemp("pairs"), 6, dtypes=("F32", "F16", "BF16"))


@pytest.fixture(scope="session")
def bank_template(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path, pairs_folder: Path
) -> Path:
    """A bank with the six pairs, to be copied."""
    path = tmp_path_factory.mktemp("bank") / "bank"
    with create_bank(path, tokenizer_folder) as bank:
        ingest_folder(bank, pairs_folder)
    return path


@pytest.fixture
def empty_bank(tmp_path: Path, tokenizer_folder: Path) -> Iterator[AdapterBank]:
    with create_bank(tmp_path / "bank", tokenizer_folder) as bank:
        yield bank


@pytest.fixture
def bank(tmp_path: Path, bank_template: Path) -> Iterator[AdapterBank]:
    """An open bank with the six pairs, its own copy."""
    shutil.copytree(bank_template, tmp_path / "bank")
    with AdapterBank.open(tmp_path / "bank") as opened:
        yield opened
