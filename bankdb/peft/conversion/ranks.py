"""Another rank for an adapter: padded with zeros upward, which is exact, or cut in delta space downward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bankdb.peft.conversion.low_rank import is_stacked, truncate_matrix, truncate_product
from bankdb.peft.layout import AdapterLayout, Module, modules_of

Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class LostEnergy:
    """What cutting `B @ A` to a rank loses, as a share of the sum of the squared entries of the product.

    Attributes
    ----------
    share
        Of all modules together, in [0, 1].
    module, most
        The module that loses the largest share of its own, and that.
    """

    share: float
    module: str
    most: float


def padded(tensors: Tensors, layout: AdapterLayout) -> dict[str, NDArray[Any]]:
    """Return factors with rows of zeros below A and columns of zeros beside B: the product is the same.

    Parameters
    ----------
    tensors
        Under the layout's names; their rank is smaller than the layout's.
    """
    made = {}
    for module in modules_of(layout):
        a, b = tensors[module.a.name], tensors[module.b.name]
        missing = layout.rank - len(a)
        made[module.a.name] = np.pad(a, ((0, missing), (0, 0)))
        made[module.b.name] = np.pad(b, ((0, 0), (0, missing)))
    return made


def cut(tensors: Tensors, layout: AdapterLayout) -> tuple[dict[str, NDArray[np.float32]], LostEnergy]:
    """Return the factors of the nearest products of the layout's rank (Eckart and Young), and what is lost.

    A module at a time, in double precision; both factors get the same norm.

    Parameters
    ----------
    tensors
        Under the layout's names; their rank is larger than the layout's.
    """
    made: dict[str, NDArray[np.float32]] = {}
    total = lost = most = 0.0
    worst = ""
    for module in modules_of(layout):
        a, b = (tensors[spec.name].astype(np.float64) for spec in (module.a, module.b))
        # The squared norm of B A, without forming it: the trace of (B^T B)(A A^T).
        energy = float(np.vdot(b.T @ b, a @ a.T))
        retained = _cut_module(module, a, b, layout.rank, made)
        total, lost = total + energy, lost + energy * (1 - retained)
        if not worst or 1 - retained > most:
            worst, most = module.name, 1 - retained
    return made, LostEnergy(lost / total if total > 0 else 0.0, worst, most)


def _cut_module(
    module: Module,
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    rank: int,
    made: dict[str, NDArray[np.float32]],
) -> float:
    if is_stacked(len(a), module.d_out, module.d_in):
        found = truncate_product(b.T.copy(), a, rank)
    else:
        found = truncate_matrix(b @ a, rank)
    made[module.a.name] = found.a.astype(np.float32)
    made[module.b.name] = found.b.astype(np.float32)
    return found.retained
