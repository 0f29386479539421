"""Which merge method, and its parameters, checked once; loads no NumPy.

TIES trims each tensor to its largest values, elects a sign for each place, and averages the values of that sign (Yadav
et al., 2023, TIES-Merging, arXiv 2306.01708). DARE drops values at random and divides the rest by the density (Yu et
al., 2024, arXiv 2311.03099). Magnitude pruning trims alone. All are as PEFT's `add_weighted_adapter` has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bankdb.errors import ParameterError

LINEAR = "linear"
METHODS = (LINEAR, "ties", "dare-linear", "dare-ties", "magnitude-prune")
MAJORITY_SIGNS = ("total", "frequency")
WEIGHTS = ("convex", "peft")
DENSITY = 0.5
"""Share of the values of a tensor that is kept by default."""


@dataclass(frozen=True, slots=True)
class MergeMethod:
    """A merge method with its parameters; those that it does not read are None.

    Attributes
    ----------
    name
        One of `METHODS`.
    density
        Share of the values of each tensor that is kept, above 0, at most 1.
    majority_sign
        What elects the sign of a place: the `total` of the values, or the `frequency` of their signs.
    weights
        How coefficients enter. `convex`: as they are, and a mean of some sources is divided by the sum of theirs, so
        that nothing is made larger or smaller by how many there are. `peft`: as the weights of
        `add_weighted_adapter`, whose factors get square roots, and which divides by the number of sources.
    seed
        Of what is dropped at random.
    """

    name: str = LINEAR
    density: float | None = None
    majority_sign: str | None = None
    weights: str | None = None
    seed: int | None = None

    @property
    def is_linear(self) -> bool:
        """Whether it is the weighted sum, of which nothing here has a part."""
        return self.name == LINEAR

    @property
    def trims(self) -> bool:
        """Whether the largest values of each tensor are kept."""
        return self.name in ("ties", "magnitude-prune")

    @property
    def drops(self) -> bool:
        """Whether values are dropped at random."""
        return self.name.startswith("dare-")

    @property
    def rescales(self) -> bool:
        """Whether what is not dropped is divided by the density: not where it is averaged over those that are kept."""
        return self.drops and not (self.elects and self.weights == "convex")

    @property
    def elects(self) -> bool:
        """Whether a sign is elected, and values of that sign are averaged."""
        return self.name.endswith("ties")

    def parameters(self) -> Mapping[str, Any]:
        """Return what it is, as options and keys name it; nothing for `linear`."""
        if self.is_linear:
            return {}
        found = {
            "merge": self.name,
            "density": self.density,
            "majority_sign": self.majority_sign,
            "merge_weights": self.weights,
            "merge_seed": self.seed,
        }
        return {name: value for name, value in found.items() if value is not None}


SUM = MergeMethod()
"""The weighted sum."""


def merge_method(
    name: str = LINEAR,
    density: float | None = None,
    majority_sign: str | None = None,
    weights: str | None = None,
    seed: int | None = None,
) -> MergeMethod:
    """Return a method, with the defaults of what it reads for None.

    Raises
    ------
    ParameterError
        There is no such method, a parameter is out of its range, or is of a method that does not read it.
    """
    if name not in METHODS:
        raise ParameterError(f"merge: expected one of {', '.join(METHODS)}, found {name!r}; use one of them")
    bare = MergeMethod(name)
    _refuse_unread(bare, density, majority_sign, weights, seed)
    if bare.is_linear:
        return bare
    found = MergeMethod(
        name,
        DENSITY if density is None else density,
        (majority_sign or MAJORITY_SIGNS[0]) if bare.elects else None,
        weights or WEIGHTS[0],
        (seed or 0) if bare.drops else None,
    )
    _check(found)
    return found


def _refuse_unread(
    bare: MergeMethod, density: float | None, majority_sign: str | None, weights: str | None, seed: int | None
) -> None:
    unread = {
        "density": density is not None and bare.is_linear,
        "merge-weights": weights is not None and bare.is_linear,
        "majority-sign": majority_sign is not None and not bare.elects,
        "merge-seed": seed is not None and not bare.drops,
    }
    given = [option for option, is_unread in unread.items() if is_unread]
    if given:
        raise ParameterError(
            f"{', '.join(given)}: not for merge {bare.name}, which does not read it; leave it out"
        )


def _check(method: MergeMethod) -> None:
    density, seed = method.density, method.seed
    if isinstance(density, bool) or not isinstance(density, int | float) or not 0 < density <= 1:
        raise ParameterError(
            f"density: expected a number above 0, at most 1, found {density!r}; {DENSITY} is the default"
        )
    if method.majority_sign is not None and method.majority_sign not in MAJORITY_SIGNS:
        raise ParameterError(
            f"majority-sign: expected {' or '.join(MAJORITY_SIGNS)}, found {method.majority_sign!r}; use one of them"
        )
    if method.weights not in WEIGHTS:
        raise ParameterError(
            f"merge-weights: expected {' or '.join(WEIGHTS)}, found {method.weights!r}; use one of them"
        )
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63):
        raise ParameterError(
            f"merge-seed: expected a whole number from 0 on, found {seed!r}; 0 is the default"
        )
