"""Matrices of a random bank whose adapters depend on their datasets."""

from __future__ import annotations

import numpy as np

from compute.approaches.groups import units_of

Banked = tuple[np.ndarray, np.ndarray, np.ndarray]


def draw_bank(seed: int, number: int = 9, groups: int | None = None) -> Banked:
    """Distances, adapters that depend on the datasets, and units."""
    rng = np.random.default_rng(seed)
    place = rng.normal(size=(number, 3))
    distances = ((place[:, None] - place) ** 2).sum(axis=2)
    theta = place @ rng.normal(size=(3, 12)) + 0.3 * rng.normal(size=(number, 12)) + 2.0
    names = [None] * number if groups is None else [str(k) for k in rng.integers(0, groups, number)]
    return distances, theta, units_of(names, "group")
