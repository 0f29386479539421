"""Adapters combined in delta space: for each module the exact `sum_j w_j s_j B_j A_j`, cut to one rank.

s_j is the source's own scaling, `lora_alpha / r` or rsLoRA's `lora_alpha / sqrt(r)`: mixed ones are exact.
One module of the sources that are used is in memory at a time, or as many as there are cores and fit the budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.adapter_store import AdapterStore
from bankdb.bank import AdapterBank
from bankdb.errors import BankFormatError, PlanError
from bankdb.peft.conversion.low_rank import (
    LowRank,
    is_stacked,
    matrix_bytes,
    product_bytes,
    truncate_matrix,
    truncate_product,
)
from bankdb.peft.layout import AdapterLayout, Module, TensorSpec, modules_of
from bankdb.progress import Progress, SilentProgress
from bankdb.records import AdapterRecord
from bankdb.scaled_rows import Sources, sources_of
from compute.cluster.blas import bounded_blas
from compute.cluster.machine import core_count, memory_budget
from compute.combination.delta_shapes import DeltaForm, form_of, used_sources
from compute.combination.merged.products import merge_products, merged_bytes
from compute.merge_methods.dropping import Key, drop_key
from compute.merge_methods.method import SUM, MergeMethod

Float64 = NDArray[np.float64]

# Columns read at once: chunks are shared by modules, and each is decoded as often as it is read.
_PANEL = 1 << 19


@dataclass(frozen=True, slots=True, eq=False)
class DeltaAdapter:
    """An adapter combined in delta space.

    Attributes
    ----------
    vector
        float32, shape (q,), in the form's layout: factors of the same norms, such that the form's scaling
        times `B @ A` is the sum, cut to the form's rank.
    form
        Its layout and scaling.
    retained
        By module: sum of the squared singular values that are kept over the sum of all, in [0, 1].
    """

    vector: NDArray[np.float32]
    form: DeltaForm
    retained: Mapping[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class DeltaParts:
    """What is combined, wherever that is done.

    Attributes
    ----------
    stored
        The N rows that are used.
    weights, scalings
        float64, shape (N,).
    method
        How they are merged.
    row_sha256
        Of each row.
    layout
        Of the rows.
    form
        Of the result.
    """

    stored: Sources
    weights: Float64
    scalings: Float64
    method: MergeMethod
    row_sha256: Sequence[str]
    layout: AdapterLayout
    form: DeltaForm


@dataclass(frozen=True, slots=True, eq=False)
class _Sources:
    """The parts, and where their rows are."""

    store: AdapterStore
    parts: DeltaParts

    @property
    def stacked(self) -> int:
        """Sum of their ranks, R."""
        return len(self) * self.parts.layout.rank

    def __len__(self) -> int:
        return len(self.parts.stored.rows)


@dataclass(frozen=True, slots=True, eq=False)
class _Panel:
    """Columns of all sources from `start` on, float32, shape (sources, width)."""

    start: int
    values: NDArray[np.float32]


def delta_adapter(
    bank: AdapterBank,
    adapters: Sequence[AdapterRecord],
    weights: NDArray[np.floating],
    rank: int | str | None = None,
    *,
    method: MergeMethod = SUM,
    memory: int | None = None,
    progress: Progress | None = None,
) -> DeltaAdapter:
    """Combine adapters in delta space: `sum_j w_j s_j B_j A_j` for each module, cut to one rank.

    By a merge method the products `s_j B_j A_j` are what is merged, each a tensor; one source alone is itself.

    Parameters
    ----------
    adapters
        N sources.
    weights
        Shape (N,), used in single precision as everywhere; a source of weight zero is not read.
    rank
        Of the result; None is the bank's, `full` the smallest at which no module is cut.
    memory
        Bytes that may be used; default: half of the machine's memory.

    Raises
    ------
    ParameterError
        The weights are not finite or all zero, or the rank is out of range.
    PlanError
        A module of the sources does not fit the memory budget.
    BankFormatError
        A row that is needed is damaged.
    """
    progress = progress or SilentProgress()
    return delta_sum(
        delta_parts(bank, adapters, weights, rank, progress, method), bank.store, memory, progress
    )


def delta_parts(
    bank: AdapterBank,
    adapters: Sequence[AdapterRecord],
    weights: NDArray[np.floating],
    rank: int | str | None,
    progress: Progress,
    method: MergeMethod = SUM,
) -> DeltaParts:
    """Return what is combined, without reading it; raises what `delta_adapter` does of its arguments."""
    used, single = used_sources(adapters, weights)
    return DeltaParts(
        sources_of(bank, used, progress),
        single,
        np.asarray([record.scaling for record in used]),
        method if len(used) > 1 else SUM,
        [record.row_sha256 for record in used],
        bank.layout,
        form_of(bank, used, rank, method),
    )


def delta_sum(
    parts: DeltaParts, store: AdapterStore, memory: int | None, progress: Progress, threads: int | None = None
) -> DeltaAdapter:
    """Combine the parts, whose rows are in `store`, on so many threads, None for one a core: see `delta_adapter`."""
    form = parts.form
    sources = _Sources(store, parts)
    budget = max(memory_budget(memory) - 8 * form.layout.size, 0)
    root = np.sqrt(form.scaling)
    modules = modules_of(parts.layout)
    tensors, retained = {}, {}
    progress.begin("delta space", len(modules))
    for module, factors in _combined(sources, modules, form.layout.rank, budget, threads or core_count()):
        tensors[module.a.name] = (factors.a / root).astype(np.float32)
        tensors[module.b.name] = (factors.b / root).astype(np.float32)
        retained[module.name] = factors.retained
        progress.advance()
    progress.end()
    return DeltaAdapter(form.layout.flatten(tensors), form, retained)


def _combined(
    sources: _Sources, modules: Sequence[Module], rank: int, budget: int, most: int
) -> Iterator[tuple[Module, LowRank]]:
    """Yield each module's sum, cut to the rank: on at most so many threads where memory allows, a module a thread.

    LAPACK on one thread each: on two, matrices of a few hundred rows take three times as long.
    """
    largest = _check_budget(sources, modules, budget)
    # Half of the memory is for what is read at once.
    threads = max(1, min(most, budget // (2 * largest)))
    left = budget - threads * largest
    with bounded_blas(1), ThreadPoolExecutor(threads, thread_name_prefix="delta") as pool:
        for group in _groups(modules, min(_PANEL, left // (4 * len(sources)))):
            panel = _read_panel(sources, group, left)
            share = (budget - (0 if panel is None else panel.values.nbytes)) // threads
            combine = partial(_combine_module, sources, panel=panel, rank=rank, budget=share)
            yield from zip(group, pool.map(combine, group), strict=True)


def _needed(sources: _Sources, module: Module) -> tuple[int, int]:
    """Return the bytes that a module takes whatever is read at once, and those for each source read."""
    shape = sources.stacked, module.d_out, module.d_in
    if not sources.parts.method.is_linear:
        fixed = matrix_bytes(*shape[1:]) + merged_bytes(*shape[1:])
    else:
        fixed = product_bytes(*shape) if is_stacked(*shape) else matrix_bytes(*shape[1:])
    # As it is read, and in double precision twice.
    return fixed, 20 * (module.a.size + module.b.size)


def _check_budget(sources: _Sources, modules: Sequence[Module], budget: int) -> int:
    """Return the bytes that the largest module needs; raise PlanError, before anything is read, if too many."""
    needed = {module.name: sum(_needed(sources, module)) for module in modules}
    largest = max(needed, key=lambda name: needed[name])
    if needed[largest] > budget:
        raise PlanError(
            f"delta space: {largest} of {len(sources)} sources needs {needed[largest] / 2**20:.1f} MiB "
            f"beside the result, {budget / 2**20:.1f} MiB found; raise --memory, or use fewer sources (--top-k)"
        )
    return needed[largest]


def _groups(modules: Sequence[Module], widest: int) -> Iterator[list[Module]]:
    """Cut the modules, in the order of the layout, into groups of at most `widest` columns, or of one module."""
    group: list[Module] = []
    for module in modules:
        if group and module.stop - group[0].start > widest:
            yield group
            group = []
        group.append(module)
    yield group


def _read_panel(sources: _Sources, group: Sequence[Module], left: int) -> _Panel | None:
    """Read the columns of some modules of all sources at once, if they fit what is left of the budget."""
    start, stop = group[0].start, max(module.stop for module in group)
    if 4 * len(sources) * (stop - start) > left:
        return None
    return _Panel(start, _read(sources, range(len(sources)), start, stop))


def _combine_module(
    sources: _Sources, module: Module, panel: _Panel | None, rank: int, budget: int
) -> LowRank:
    """Combine one module in so many bytes, beside the panel."""
    if not sources.parts.method.is_linear:
        shape = module.d_out, module.d_in
        merged = merge_products(_products(sources, module, panel), shape, sources.parts.method, module.name)
        return truncate_matrix(merged, rank)
    fixed, each = _needed(sources, module)
    batch = max(1, (budget - fixed) // each)
    pieces = _factors(sources, module, panel, batch)
    if not is_stacked(sources.stacked, module.d_out, module.d_in):
        matrix = np.zeros((module.d_out, module.d_in))
        for b_transposed, a, _ in pieces:
            matrix += b_transposed.T @ a
        return truncate_matrix(matrix, rank)
    all_b, all_a = np.empty((sources.stacked, module.d_out)), np.empty((sources.stacked, module.d_in))
    for b_transposed, a, place in pieces:
        all_b[place], all_a[place] = b_transposed, a
    return truncate_product(all_b, all_a, rank)


def _factors(
    sources: _Sources, module: Module, panel: _Panel | None, batch: int
) -> Iterator[tuple[Float64, Float64, slice]]:
    """Yield the factors of some sources below each other: w s B transposed, A, and their place in all."""
    for first in range(0, len(sources), batch):
        some = slice(first, min(first + batch, len(sources)))
        weights = (sources.parts.weights * sources.parts.scalings)[some, None, None]
        b = _tensor(sources, some, module.b, panel).reshape(-1, *module.b.shape)
        weighted = b.transpose(0, 2, 1) * weights
        a = _tensor(sources, some, module.a, panel).reshape(-1, module.d_in).astype(np.float64)
        start = first * sources.parts.layout.rank
        yield weighted.reshape(-1, module.d_out), a, slice(start, start + len(a))


def _products(
    sources: _Sources, module: Module, panel: _Panel | None
) -> Iterator[tuple[NDArray[np.float32], np.float32, Key]]:
    """Yield of each source `s B A` in single precision, its weight, and the key of what is dropped."""
    for index, sha256 in enumerate(sources.parts.row_sha256):
        some = slice(index, index + 1)
        b = _tensor(sources, some, module.b, panel).reshape(module.b.shape)
        a = _tensor(sources, some, module.a, panel).reshape(module.a.shape)
        with np.errstate(over="ignore", invalid="ignore"):  # whoever merges looks at it
            product = (b @ a) * np.float32(sources.parts.scalings[index])
        key = drop_key(sources.parts.method.seed or 0, sha256, module.name)
        yield product, np.float32(sources.parts.weights[index]), key


def _tensor(sources: _Sources, some: slice, tensor: TensorSpec, panel: _Panel | None) -> NDArray[np.float32]:
    start, stop = tensor.columns.start, tensor.columns.stop
    if panel is None:
        return _read(sources, range(len(sources))[some], start, stop)
    return panel.values[some, start - panel.start : stop - panel.start]


def _read(sources: _Sources, which: Sequence[int], start: int, stop: int) -> NDArray[np.float32]:
    panel = np.empty((len(which), stop - start), dtype=np.float32)
    sources.parts.stored.read_into(panel, sources.store, which, start, stop)
    for row, values in zip(sources.parts.stored.rows[list(which)].tolist(), panel, strict=True):
        if not np.isfinite(values).all():
            raise BankFormatError(
                f"{sources.store.file(row)}: row {row} holds values that are not finite numbers; "
                "`bank verify --repair` restores it from its source"
            )
    return panel
