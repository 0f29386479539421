"""One combination by a merge method, of factors: each source is read once, a few tensors at a time.

What is trimmed is a tensor, A or B of one module, so that whole tensors are read; of one source at a time, whatever
their number: memory does not grow with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.adapter_store import AdapterStore
from bankdb.arrays.shard_format import Float32
from bankdb.errors import PlanError
from bankdb.peft.layout import B_SUFFIX, AdapterLayout, TensorSpec
from bankdb.scaled_rows import Sources, read_scaled_into
from compute.budget import mebibytes
from compute.cluster.machine import core_count
from compute.combination.combine import check_finite
from compute.combination.merged.panels import check_source
from compute.merge_methods.disjoint_mean import PLACE_BYTES, DisjointMean
from compute.merge_methods.dropping import Key, drop, drop_key
from compute.merge_methods.method import MergeMethod
from compute.merge_methods.trimming import border_of, trim

# Columns read at once, where tensors are smaller: they share chunks, and each is decoded as often as it is read.
_WIDTH = 1 << 18
# Of a column: the source as it is read, its magnitudes twice, masks; and the sums.
_COLUMN_BYTES = 4 * 4 + PLACE_BYTES


@dataclass(frozen=True, slots=True, eq=False)
class MergedSources:
    """The sources of one combination that have a coefficient, and how they enter it.

    Attributes
    ----------
    stored
        Their rows, as they are read.
    a, b
        float32, shape (K,): weights of their A and B factors.
    keys
        Of each: of what is dropped.
    """

    stored: Sources
    a: Float32
    b: Float32
    keys: tuple[Key, ...]


def merged_sources(
    sources: Sources, weights: Float32, row_sha256: Sequence[str], method: MergeMethod
) -> MergedSources:
    """Return how sources enter a combination.

    By `convex` weights both factors have the coefficient, as a weighted sum of factors has it. By those of PEFT,
    `add_weighted_adapter` gives each of the two `sqrt(|w| s)`, and A the sign; here of the scaling over the bank's,
    since what is written has the bank's scaling, and PEFT's has 1.

    Parameters
    ----------
    weights
        float32, shape (N,).
    row_sha256
        Of each source: what tells it from others.
    """
    used = np.flatnonzero(weights)
    some = replace(
        sources,
        rows=sources.rows[used],
        ratios=sources.ratios[used],
        checksums=None if sources.checksums is None else sources.checksums[used],
    )
    keys = tuple(drop_key(method.seed or 0, row_sha256[index]) for index in used.tolist())
    chosen = weights[used]
    if method.weights == "convex":
        return MergedSources(some, chosen, chosen, keys)
    root = np.sqrt(np.abs(chosen.astype(np.float64)) * some.ratios)
    signed = np.where(chosen < 0, -root, root)
    plain = replace(some, ratios=np.ones_like(some.ratios))
    return MergedSources(plain, signed.astype(np.float32), root.astype(np.float32), keys)


def merge_one(
    store: AdapterStore,
    sources: MergedSources,
    layout: AdapterLayout,
    method: MergeMethod,
    *,
    budget: int,
    threads: int | None = None,
) -> Float32:
    """Combine one vector, shape (p,), by a merge method. The result does not depend on threads and budget.

    About 30 operations a value of each source, most of them to find the largest; bound by memory.

    Parameters
    ----------
    budget
        Bytes that may be used beside the result.
    threads
        At the most; None for the number of cores.

    Raises
    ------
    PlanError
        The largest tensor does not fit the budget.
    BankFormatError
        A source row is damaged.
    ComputeError
        The result overflows float32.
    """
    largest = max(tensor.size for tensor in layout.tensors)
    if _COLUMN_BYTES * largest > budget:
        raise PlanError(
            f"merge {method.name}: a tensor of {largest} values needs {mebibytes(_COLUMN_BYTES * largest)}, "
            f"{mebibytes(budget)} found; raise --memory"
        )
    width = max(largest, _WIDTH)
    count = max(1, min(core_count() if threads is None else threads, budget // (_COLUMN_BYTES * width)))
    out = np.empty(layout.size, dtype=np.float32)
    groups = list(tensor_groups(layout.tensors, min(width, budget // _COLUMN_BYTES)))
    with ThreadPoolExecutor(count, thread_name_prefix="merge") as pool:
        futures = [pool.submit(_merge_group, out, store, sources, group, method) for group in groups]
        try:
            for future in futures:
                future.result()
        finally:
            for future in futures:  # after an error the others need not go on
                future.cancel()
    check_finite(out[None, :], store, sources.stored, sources.a[None, :], 0, len(out))
    return out


def tensor_groups(tensors: Sequence[TensorSpec], widest: int) -> Iterator[list[TensorSpec]]:
    """Cut tensors, in the order of the layout, into groups of at most `widest` columns, or of one tensor."""
    group: list[TensorSpec] = []
    for tensor in tensors:
        if group and tensor.columns.stop - group[0].offset > widest:
            yield group
            group = []
        group.append(tensor)
    yield group


def _merge_group(
    out: Float32,
    store: AdapterStore,
    sources: MergedSources,
    group: Sequence[TensorSpec],
    method: MergeMethod,
) -> None:
    """Combine the columns of some tensors that follow each other."""
    start, stop = group[0].offset, group[-1].columns.stop
    row = np.empty((1, stop - start), dtype=np.float32)
    part = out[start:stop]
    part[:] = 0
    by_number = method.weights == "peft"
    mean = DisjointMean(stop - start, method.majority_sign or "", by_number) if method.elects else None
    is_b = _is_b(group) if by_number else None
    for source, (a, b) in enumerate(zip(sources.a, sources.b, strict=True)):
        read_scaled_into(row, store, sources.stored, [source], start, stop)
        check_source(row[0], store, int(sources.stored.rows[source]))
        prune(row[0], group, sources.keys[source], method)
        weights = a if is_b is None else np.where(is_b, b, a)
        if mean is None:
            part += row[0] * weights
        else:
            mean.add(row[0], weights)
    if mean is not None:
        part[:] = mean.mean()


def prune(values: Float32, group: Sequence[TensorSpec], key: Key, method: MergeMethod) -> None:
    """Trim or drop values of a source, in place: the tensors of a group, which follow each other."""
    assert method.density is not None, "every method but the weighted sum has one"
    start = group[0].offset
    if method.drops:
        drop(values, key, start, method.density, method.rescales)
        return
    for tensor in group:
        one = values[tensor.offset - start : tensor.columns.stop - start]
        trim(one, border_of(one, method.density))


def _is_b(group: Sequence[TensorSpec]) -> NDArray[np.bool_]:
    return np.concatenate([np.full(tensor.size, tensor.name.endswith(B_SUFFIX)) for tensor in group])
