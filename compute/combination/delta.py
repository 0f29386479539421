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
from bankdb.errors import BankError, BankFormatError, ParameterError, PlanError
from bankdb.peft.config import scaling as scaling_of
from bankdb.peft.conversion.low_rank import (
    LowRank,
    is_stacked,
    matrix_bytes,
    product_bytes,
    truncate_matrix,
    truncate_product,
)
from bankdb.peft.layout import AdapterLayout, Module, TensorSpec, layout_of_rank, modules_of
from bankdb.progress import Progress, SilentProgress
from bankdb.records import AdapterRecord
from bankdb.scaled_rows import Sources, sources_of
from compute.approaches.options import FULL, check_rank
from compute.cluster.blas import bounded_blas
from compute.cluster.machine import core_count, memory_budget

Float64 = NDArray[np.float64]

# Columns read at once: chunks are shared by modules, and each is decoded as often as it is read.
_PANEL = 1 << 19


@dataclass(frozen=True, slots=True)
class DeltaForm:
    """Shapes and scaling of an adapter combined in delta space: what its `adapter_config.json` says.

    Attributes
    ----------
    layout
        The bank's modules at the rank asked for; at the bank's own rank, the bank's layout.
    alpha, use_rslora
        lora_alpha and use_rslora; at the bank's own rank, the bank's.
    """

    layout: AdapterLayout
    alpha: float
    use_rslora: bool

    @property
    def scaling(self) -> float:
        """Factor of B @ A."""
        return scaling_of(self.alpha, self.layout.rank, self.use_rslora)


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
    """What is summed, wherever that is done.

    Attributes
    ----------
    stored
        The N rows that are used.
    factors
        float64, shape (N,): weight times scaling of each.
    layout, form
        Of the rows, and of the result.
    """

    stored: Sources
    factors: Float64
    layout: AdapterLayout
    form: DeltaForm


@dataclass(frozen=True, slots=True, eq=False)
class _Sources:
    """Sources that are used, and the weight times the scaling of each."""

    store: AdapterStore
    stored: Sources
    factors: Float64
    rank: int

    @property
    def stacked(self) -> int:
        """Sum of their ranks, R."""
        return len(self) * self.rank

    def __len__(self) -> int:
        return len(self.stored.rows)


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
    memory: int | None = None,
    progress: Progress | None = None,
) -> DeltaAdapter:
    """Combine adapters in delta space: `sum_j w_j s_j B_j A_j` for each module, cut to one rank.

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
    return delta_sum(delta_parts(bank, adapters, weights, rank, progress), bank.store, memory, progress)


def delta_parts(
    bank: AdapterBank,
    adapters: Sequence[AdapterRecord],
    weights: NDArray[np.floating],
    rank: int | str | None,
    progress: Progress,
) -> DeltaParts:
    """Return what is summed, without reading it; raises what `delta_adapter` does of its arguments."""
    used, single = _used(adapters, weights)
    scaled = single * [record.scaling for record in used]
    form = _form(bank, len(used) * bank.layout.rank, rank)
    return DeltaParts(sources_of(bank, used, progress), scaled, bank.layout, form)


def delta_sum(
    parts: DeltaParts, store: AdapterStore, memory: int | None, progress: Progress, threads: int | None = None
) -> DeltaAdapter:
    """Sum the parts, whose rows are in `store`, on so many threads, None for one a core: see `delta_adapter`."""
    form = parts.form
    sources = _Sources(store, parts.stored, parts.factors, parts.layout.rank)
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


def delta_form(
    bank: AdapterBank,
    adapters: Sequence[AdapterRecord],
    weights: NDArray[np.floating],
    rank: int | str | None = None,
) -> DeltaForm:
    """Return shapes and scaling of what `delta_adapter` makes of the same arguments, reading no adapter."""
    return _form(bank, len(_used(adapters, weights)[0]) * bank.layout.rank, rank)


def _used(
    adapters: Sequence[AdapterRecord], weights: NDArray[np.floating]
) -> tuple[list[AdapterRecord], Float64]:
    """Return the sources whose weight is not zero, and their weights in single precision, as double."""
    single = np.asarray(weights, dtype=np.float32)
    if single.shape != (len(adapters),) or not np.isfinite(single).all() or not single.any():
        raise ParameterError(
            f"weights: expected {len(adapters)} finite numbers, not all zero, found an array of shape "
            f"{single.shape}; give a coefficient for each adapter"
        )
    used = np.flatnonzero(single)
    return [adapters[index] for index in used.tolist()], single[used].astype(np.float64)


def check_rank_fits(bank: AdapterBank, rank: int | str | None) -> None:
    """Raise the ParameterError of a rank above what the bank's modules can have, before any work is done."""
    if rank is not None:
        _form(bank, bank.layout.rank, rank)


def _form(bank: AdapterBank, stacked: int, rank: int | str | None) -> DeltaForm:
    layout = bank.layout
    shapes = [(module.d_out, module.d_in) for module in modules_of(layout)]
    chosen = chosen_rank(rank, layout.rank, stacked, shapes)
    return DeltaForm(
        layout if chosen == layout.rank else layout_of_rank(layout, chosen), *_alpha(bank, chosen)
    )


def _alpha(bank: AdapterBank, rank: int) -> tuple[float, bool]:
    """Return lora_alpha and use_rslora at a rank: whole, and near the bank's scaling.

    vLLM and PEFT declare lora_alpha a whole number; the factors take up what the scaling lacks.
    """
    about, own = bank.record, bank.layout.rank
    if about.alpha is None or about.use_rslora is None:
        raise BankError(
            f"{bank.path}: the bank has a layout but no scaling; restore the database from a copy"
        )
    if rank == own:
        return about.alpha, about.use_rslora
    ratio = rank / own
    same = about.alpha * (ratio**0.5 if about.use_rslora else ratio)
    return float(max(1, round(same))), about.use_rslora


def _needed(sources: _Sources, module: Module) -> tuple[int, int]:
    """Return the bytes that a module takes whatever is read at once, and those for each source read."""
    shape = sources.stacked, module.d_out, module.d_in
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
        weights = sources.factors[some, None, None]
        b = _tensor(sources, some, module.b, panel).reshape(-1, *module.b.shape)
        weighted = b.transpose(0, 2, 1) * weights
        a = _tensor(sources, some, module.a, panel).reshape(-1, module.d_in).astype(np.float64)
        start = first * sources.rank
        yield weighted.reshape(-1, module.d_out), a, slice(start, start + len(a))


def _tensor(sources: _Sources, some: slice, tensor: TensorSpec, panel: _Panel | None) -> NDArray[np.float32]:
    start, stop = tensor.columns.start, tensor.columns.stop
    if panel is None:
        return _read(sources, range(len(sources))[some], start, stop)
    return panel.values[some, start - panel.start : stop - panel.start]


def _read(sources: _Sources, which: Sequence[int], start: int, stop: int) -> NDArray[np.float32]:
    panel = np.empty((len(which), stop - start), dtype=np.float32)
    sources.stored.read_into(panel, sources.store, which, start, stop)
    for row, values in zip(sources.stored.rows[list(which)].tolist(), panel, strict=True):
        if not np.isfinite(values).all():
            raise BankFormatError(
                f"{sources.store.file(row)}: row {row} holds values that are not finite numbers; "
                "`bank verify --repair` restores it from its source"
            )
    return panel


def exact_rank(stacked: int, d_out: int, d_in: int) -> int:
    """Return the smallest rank that holds every sum of products whose ranks add up to `stacked`."""
    return min(stacked, d_out, d_in)


def chosen_rank(asked: int | str | None, own: int, stacked: int, shapes: Sequence[tuple[int, int]]) -> int:
    """Return the one rank that all modules of a combined adapter get.

    Parameters
    ----------
    asked
        A whole number; `full` for the smallest that cuts nothing in any module; None for `own`.
    own
        Rank of the sources.
    stacked
        Sum of the ranks of the sources that are used.
    shapes
        (d_out, d_in) of each module.

    Raises
    ------
    ParameterError
        Not a rank, or above what any module of these shapes can have.
    """
    check_rank(asked)
    if asked == FULL:
        return max(exact_rank(stacked, *shape) for shape in shapes)
    if asked is None:
        return own
    largest = max(min(shape) for shape in shapes)
    if int(asked) > max(largest, own):
        raise ParameterError(
            f"rank: expected at most {max(largest, own)}, the largest rank of any module, found {asked}; "
            f"{FULL!r} is the smallest that cuts nothing"
        )
    return int(asked)
