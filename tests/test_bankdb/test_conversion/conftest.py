from __future__ import annotations

from tests.test_bankdb.test_peft.conftest import base_model

__all__ = ["base_model"]
