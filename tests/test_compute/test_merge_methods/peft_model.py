"""PEFT's own merging of a bank's adapters, as the oracle: a tiny model with these, and what it makes of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from compute.merge_methods.dropping import drop_key, kept
from tests.support.banks.synthetic_bank import SyntheticBank

PREFIX = "base_model.model."
Tensors = dict[str, NDArray[np.float32]]
Masks = Callable[[str, str, tuple[int, ...]], NDArray[np.bool_]]


def peft_merged(
    made: SyntheticBank,
    names: Sequence[str],
    weights: Sequence[float],
    kind: str,
    *,
    scalings: Sequence[float],
    density: float | None = None,
    majority_sign: str = "total",
    rank: int | None = None,
) -> tuple[Tensors, float]:
    """A and B of what `add_weighted_adapter` makes of adapters of one rank, by name, and their scaling."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model

    modules = sorted({re.sub(r"\.lora_[AB]\.weight$", "", spec.name) for spec in made.layout.tensors})
    base = torch.nn.Module()
    for module in modules:
        spec = {one.name: one.shape for one in made.layout.tensors}
        d_in = spec[f"{module}.lora_A.weight"][1]
        d_out = spec[f"{module}.lora_B.weight"][0]
        _place(base, module.removeprefix(PREFIX), torch.nn.Linear(d_in, d_out, bias=False))
    own = made.layout.rank
    leaves = sorted({module.rsplit(".", 1)[-1] for module in modules})

    def config(scaling: float) -> LoraConfig:
        return LoraConfig(r=own, lora_alpha=scaling * own, target_modules=leaves)

    model: Any = get_peft_model(base, config(scalings[0]), adapter_name=names[0])
    assert isinstance(model, PeftModel)
    for name, scaling in zip(names[1:], scalings[1:], strict=True):
        model.add_adapter(name, config(scaling))
    for name in names:
        for tensor, values in made.layout.unflatten(made.vectors[name]).items():
            _parameter(model, tensor, name).data = torch.from_numpy(values.copy())
    options = {} if density is None else {"density": density, "majority_sign_method": majority_sign}
    model.add_weighted_adapter(
        list(names), list(weights), "merged", combination_type=kind, svd_rank=rank, **options
    )
    found = {
        spec.name: _parameter(model, spec.name, "merged").detach().numpy() for spec in made.layout.tensors
    }
    first = model.get_submodule(modules[0])
    return found, float(first.scaling["merged"])


def _place(root: Any, path: str, module: Any) -> None:
    import torch

    *parents, leaf = path.split(".")
    for part in parents:
        if not hasattr(root, part):
            root.add_module(part, torch.nn.Module())
        root = getattr(root, part)
    root.add_module(leaf, module)


def _parameter(model: Any, tensor: str, adapter: str) -> Any:
    path, factor = re.fullmatch(r"(.*)\.(lora_[AB])\.weight", tensor).groups()  # type: ignore[union-attr]
    return getattr(model.get_submodule(path), factor)[adapter].weight


@contextmanager
def given_masks(monkeypatch: pytest.MonkeyPatch, masks: Iterator[NDArray[np.bool_]]) -> Iterator[None]:
    """Have PEFT drop what these masks say, one after another, in place of what torch draws."""
    import torch

    def bernoulli(probabilities: Any) -> Any:
        mask = torch.from_numpy(next(masks).astype(np.float32))
        return mask.reshape(probabilities.shape)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "bernoulli", bernoulli)
        yield
    assert next(masks, None) is None


def masks_of_factors(
    made: SyntheticBank, names: Sequence[str], seed: int, density: float
) -> Iterator[NDArray[np.bool_]]:
    """Ours, in the order in which PEFT asks for them: by module, of all adapters' A and then of all B."""
    records = {record.name: record for record in made.bank.adapters()}
    for spec in made.layout.tensors:
        for name in names:
            yield kept(drop_key(seed, records[name].row_sha256), spec.offset, spec.size, density)


def masks_of_products(
    made: SyntheticBank, names: Sequence[str], seed: int, density: float
) -> Iterator[NDArray[np.bool_]]:
    """Ours, likewise: of each module, of all adapters."""
    records = {record.name: record for record in made.bank.adapters()}
    shapes = {one.name: one.shape for one in made.layout.tensors}
    for tensor, shape in shapes.items():
        if not tensor.endswith(".lora_A.weight"):
            continue
        module = tensor.removesuffix(".lora_A.weight")
        d_out = shapes[f"{module}.lora_B.weight"][0]
        for name in names:
            key = drop_key(seed, records[name].row_sha256, module.removeprefix(PREFIX))
            yield kept(key, 0, d_out * shape[1], density)
