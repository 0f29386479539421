"""Shapes, rank and scaling of an adapter combined in delta space, told without reading one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bankdb.bank import AdapterBank
from bankdb.errors import BankError, ParameterError
from bankdb.peft.config import scaling as scaling_of
from bankdb.peft.layout import AdapterLayout, layout_of_rank, modules_of
from bankdb.records import AdapterRecord
from compute.approaches.options import FULL, check_rank
from compute.merge_methods.method import SUM, MergeMethod

Float64 = NDArray[np.float64]


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


def delta_form(
    bank: AdapterBank,
    adapters: Sequence[AdapterRecord],
    weights: NDArray[np.floating],
    rank: int | str | None = None,
    method: MergeMethod = SUM,
) -> DeltaForm:
    """Return shapes and scaling of what `delta_adapter` makes of the same arguments, reading no adapter."""
    return form_of(bank, used_sources(adapters, weights)[0], rank, method)


def form_of(
    bank: AdapterBank, used: Sequence[AdapterRecord], rank: int | str | None, method: MergeMethod
) -> DeltaForm:
    """Return what a combination of the sources that are used has."""
    stacked = len(used) * bank.layout.rank
    if not method.is_linear and len(used) > 1:
        # What is left of a product after values were dropped may have any rank.
        stacked = max(max(module.d_out, module.d_in) for module in modules_of(bank.layout))
    return _form(bank, stacked, rank)


def used_sources(
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
