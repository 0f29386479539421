from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.shared_bank import share


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, bank_template: Path) -> Path:
    """The six pairs as a shared folder; do not change it."""
    return share(bank_template, tmp_path_factory.mktemp("shared") / "six")
