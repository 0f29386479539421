"""Types that kernels and workflows share."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float64]
Compatible: TypeAlias = Literal["correct", "published"]
"""Whether to compute what the paper describes, or what its code does where that differs."""
COMPATIBLE: tuple[str, ...] = get_args(Compatible)
