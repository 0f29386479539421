"""Adapters swapped in place: `W = W0 + scaling B A` in the base model's own weights, every name checked.

Merged, a model generates as fast as the base model; W0 is kept, so that restoring it is exact.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bankdb.errors import AdapterError, listed
from bankdb.peft.layout import A_SUFFIX, B_SUFFIX, PREFIX, AdapterLayout

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, eq=False)
class _Slot:
    """One adapted module: its weight, the original of it, and whether it is stored as (in, out)."""

    weight: torch.nn.Parameter
    original: torch.Tensor
    transposed: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Its (out, in)."""
        first, second = self.original.shape
        return (second, first) if self.transposed else (first, second)


class AdaptedModel:
    """A base model whose adapted modules are exchanged in place.

    Parameters
    ----------
    model
        The base model; its adapted weights change.
    layout
        Of the adapters: it says which modules are adapted. None adapts none.

    Raises
    ------
    AdapterError
        A module of the layout is not in the model, or is no plain linear layer of that shape.
    """

    def __init__(self, model: Any, layout: AdapterLayout | None) -> None:
        self.model = model
        shapes = {} if layout is None else {spec.name: spec.shape for spec in layout.tensors}
        self._names = module_names(shapes)
        self._slots = {name: _slot(model, name) for name in self._names}
        for name, slot in self._slots.items():
            d_out, d_in = shapes[name + B_SUFFIX][0], shapes[name + A_SUFFIX][1]
            if slot.shape != (d_out, d_in):
                raise AdapterError(
                    f"{name}: the adapters fit a weight of {(d_out, d_in)}, the base model's is of "
                    f"{slot.shape}; pass the base model that they were trained on with --model"
                )

    @property
    def adapted_bytes(self) -> int:
        """Bytes of the weights that are exchanged."""
        return sum(slot.original.nbytes for slot in self._slots.values())

    def apply(self, tensors: Mapping[str, NDArray[Any]], scaling: float) -> None:
        """Put one adapter in: `W0 + scaling B A`, computed in float32 and rounded to the weight's dtype.

        Nothing is changed unless every tensor fits.

        Parameters
        ----------
        tensors
            A of shape (r, in) and B of shape (out, r) of every adapted module, by their names in PEFT's files.

        Raises
        ------
        AdapterError
            A tensor is missing, not used, or of another shape, or the merged weights are not finite.
        """
        import torch

        _check(tensors, {name: slot.shape for name, slot in self._slots.items()})
        for name, slot in self._slots.items():
            a, b = (_torch(tensors[name + suffix], slot.weight.device) for suffix in (A_SUFFIX, B_SUFFIX))
            delta = (b @ a).mul_(scaling)
            merged = slot.original.float() + (delta.T if slot.transposed else delta)
            if not torch.isfinite(merged).all():
                raise AdapterError(f"{name}: merged weights are not finite; check the adapter's scaling")
            slot.weight.data.copy_(merged)

    def exchange(self, tensors: Mapping[str, NDArray[Any]] | None, scaling: float = 1.0) -> None:
        """Put an adapter in, as `apply` does, or for None the base model's own weights."""
        if tensors is None:
            self.restore()
        else:
            self.apply(tensors, scaling)

    def restore(self) -> None:
        """Put the base model's own weights back, bit for bit."""
        for slot in self._slots.values():
            slot.weight.data.copy_(slot.original)

    def replica(self) -> AdaptedModel:
        """Return another one that shares every weight but the adapted ones, for another thread."""
        own = {id(slot.weight) for slot in self._slots.values()}
        shared = [*self.model.parameters(), *self.model.buffers()]
        memo = {id(tensor): tensor for tensor in shared if id(tensor) not in own}
        other = copy.copy(self)
        other.model = copy.deepcopy(self.model, memo)
        other._slots = {
            name: _Slot(other.model.get_submodule(_local(name)).weight, slot.original, slot.transposed)
            for name, slot in self._slots.items()
        }
        return other


def module_names(names: Any) -> list[str]:
    """Return the modules that tensors belong to; raises AdapterError for one that is neither A nor B."""
    modules: dict[str, set[str]] = {}
    for name in names:
        suffix = next((end for end in (A_SUFFIX, B_SUFFIX) if name.endswith(end)), None)
        if suffix is None:
            raise AdapterError(f"{name}: expected a name that ends in {A_SUFFIX} or {B_SUFFIX}")
        modules.setdefault(name.removesuffix(suffix), set()).add(suffix)
    half = sorted(name for name, suffixes in modules.items() if len(suffixes) < 2)
    if half:
        raise AdapterError(f"{listed(half, 3)}: expected both A and B, found one of them")
    return sorted(modules)


def _local(name: str) -> str:
    return name.removeprefix(PREFIX)


def _slot(model: Any, name: str) -> _Slot:
    import torch
    from transformers.pytorch_utils import Conv1D

    try:
        module = model.get_submodule(_local(name))
    except AttributeError as error:
        raise AdapterError(
            f"{name}: the adapters change it, the base model has no such module; "
            "pass the base model that they were trained on with --model"
        ) from error
    transposed = type(module) is Conv1D
    if not transposed and type(module) is not torch.nn.Linear:
        raise AdapterError(f"{name}: expected a linear layer, found {type(module).__name__}; not supported")
    if sum(parameter is module.weight for parameter in _occurrences(model)) > 1:
        # Tied, as an output layer may be to the embedding: an adapter changes this module alone.
        module.weight = torch.nn.Parameter(module.weight.detach().clone(), requires_grad=False)
    return _Slot(module.weight, module.weight.detach().clone(), transposed)


def _occurrences(model: Any) -> list[Any]:
    return [parameter for _, parameter in model.named_parameters(remove_duplicate=False)]


def _torch(values: NDArray[Any], device: Any) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(device)


def _check(tensors: Mapping[str, NDArray[Any]], shapes: Mapping[str, tuple[int, int]]) -> None:
    expected = {name + suffix for name in shapes for suffix in (A_SUFFIX, B_SUFFIX)}
    missing, unused = sorted(expected - tensors.keys()), sorted(tensors.keys() - expected)
    if missing or unused:
        what = [f"missing {listed(missing, 3)}"] * bool(missing) + [f"not used {listed(unused, 3)}"] * bool(
            unused
        )
        raise AdapterError(
            f"the adapter's tensors are not those of the base model's modules: {'; '.join(what)}"
        )
    for name, (d_out, d_in) in shapes.items():
        a, b = tensors[name + A_SUFFIX].shape, tensors[name + B_SUFFIX].shape
        if len(a) != 2 or a != (b[-1], d_in) or b != (d_out, a[0]):
            raise AdapterError(f"{name}: expected A of (r, {d_in}) and B of ({d_out}, r), found {a} and {b}")
