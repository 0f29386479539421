"""The products `s B A` of one module's sources, merged: a matrix, which is cut to a rank afterwards."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from bankdb.errors import ComputeError
from compute.merge_methods.disjoint_mean import PLACE_BYTES, DisjointMean
from compute.merge_methods.dropping import Key, drop
from compute.merge_methods.method import MergeMethod
from compute.merge_methods.trimming import border_of, trim

Float32 = NDArray[np.float32]


def merged_bytes(d_out: int, d_in: int) -> int:
    """Return the bytes that `merge_products` takes beside its result in double precision."""
    return (4 * 4 + PLACE_BYTES) * d_out * d_in


def merge_products(
    products: Iterable[tuple[Float32, np.float32, Key]],
    shape: tuple[int, int],
    method: MergeMethod,
    name: str,
) -> NDArray[np.float64]:
    """Merge the products of a module, in single precision as PEFT does; float64, shape (d_out, d_in).

    Parameters
    ----------
    products
        Of each source that has a coefficient: `s B A`, shape (d_out, d_in), which is overwritten, its coefficient, and
        the key of what is dropped.
    name
        Of the module, for messages.

    Raises
    ------
    ComputeError
        A product, or the result, overflows float32.
    """
    size = shape[0] * shape[1]
    mean = DisjointMean(size, method.majority_sign or "", method.weights == "peft") if method.elects else None
    total = np.zeros(0 if method.elects else size, dtype=np.float32)
    density = method.density
    assert density is not None, "every method but the weighted sum has one"
    for product, weight, key in products:
        values = product.reshape(-1)
        _check(values, name)
        if method.drops:
            drop(values, key, 0, density, method.rescales)
        else:
            trim(values, border_of(values, density))
        if mean is None:
            values *= weight
            total += values
        else:
            mean.add(values, weight)
    merged = total if mean is None else mean.mean()
    _check(merged, name)
    return merged.astype(np.float64).reshape(shape)


def _check(values: Float32, name: str) -> None:
    if not np.isfinite(values).all():
        raise ComputeError(
            f"{name}: products of its factors overflowed float32; check the scalings of the adapters in the bank"
        )
