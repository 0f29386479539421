"""TIES, DARE and magnitude pruning against PEFT's `add_weighted_adapter`, in factors and in delta space."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from bankdb.peft.layout import AdapterLayout
from bankdb.records import AdapterRecord
from compute.combination.delta import delta_adapter
from compute.combination.tensors import combined_vector
from compute.merge_methods.method import METHODS, MergeMethod, merge_method
from tests.support.banks.synthetic_bank import SyntheticBank, create_synthetic, draw_tokens, draw_vector
from tests.test_compute.test_merge_methods.peft_model import (
    PREFIX,
    given_masks,
    masks_of_factors,
    masks_of_products,
    peft_merged,
)

pytestmark = pytest.mark.torch

RANK = 3
SHAPES = {"model.layers.0.q": (14, 9), "model.layers.0.k": (4, 9), "model.layers.1.up": (10, 17)}
# lora_alpha of each source: scalings of 2, 1 and 5 thirds; the first is the bank's.
ALPHAS = {"s0": 6.0, "s1": 3.0, "s2": 5.0, "s3": 6.0}
MERGES = METHODS[1:]
SIGNS = [
    (name, sign) for name in MERGES for sign in (("total", "frequency") if "ties" in name else ("total",))
]


def layout() -> AdapterLayout:
    tensors = {}
    for module, (d_out, d_in) in SHAPES.items():
        tensors[f"{PREFIX}{module}.lora_A.weight"] = (RANK, d_in)
        tensors[f"{PREFIX}{module}.lora_B.weight"] = (d_out, RANK)
    return AdapterLayout.from_shapes(tensors, RANK, {module.split(".")[-1] for module in SHAPES})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Iterator[SyntheticBank]:
    found = create_synthetic(tmp_path_factory.mktemp("merged") / "bank", tokenizer_folder, layout())
    for seed, (name, alpha) in enumerate(ALPHAS.items()):
        found.add(name, draw_tokens(seed), draw_vector(seed, found.layout.size), alpha=alpha)
    yield found
    found.bank.close()


def by_name(made: SyntheticBank) -> list[AdapterRecord]:
    return sorted(made.bank.adapters(), key=lambda record: record.name)


def scalings(names: Sequence[str]) -> list[float]:
    return [ALPHAS[name] / RANK for name in names]


def products(tensors: dict[str, np.ndarray], scaling: float) -> dict[str, np.ndarray]:
    return {
        module: scaling
        * (
            tensors[f"{PREFIX}{module}.lora_B.weight"].astype(np.float64)
            @ tensors[f"{PREFIX}{module}.lora_A.weight"].astype(np.float64)
        )
        for module in SHAPES
    }


def with_pefts_weights(name: str, density: float, sign: str, seed: int) -> MergeMethod:
    """Return a method that reads what it has a use for."""
    elects, drops = "ties" in name, name.startswith("dare")
    return merge_method(name, density, sign if elects else None, "peft", seed if drops else None)


def merged_by_peft(
    made: SyntheticBank, weights: list[float], name: str, density: float, sign: str, rank: int | None = None
) -> tuple[dict[str, np.ndarray], float]:
    """All sources, each with its own scaling."""
    names = list(ALPHAS)
    kind = name.replace("-", "_")
    return peft_merged(
        made, names, weights, kind, scalings=scalings(names), density=density, majority_sign=sign, rank=rank
    )


@pytest.mark.parametrize("density", [0.3, 1.0])
@pytest.mark.parametrize(("name", "sign"), SIGNS)
@pytest.mark.parametrize("weights", [[0.5, 0.2, 0.1, 0.2], [0.7, -0.3, 0.4, 0.2]], ids=["convex", "signed"])
def test_factors_with_pefts_weights_are_what_peft_makes(
    made: SyntheticBank,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    sign: str,
    density: float,
    weights: list[float],
) -> None:
    """Sources of other scaling too: A and B of the very values, but for the scaling that is written."""
    names = list(ALPHAS)
    drops = name.startswith("dare")
    method = with_pefts_weights(name, density, sign, 7)
    found = combined_vector(made.bank, by_name(made), np.asarray(weights, np.float32), method=method)
    masks = masks_of_factors(made, names, 7, density) if drops and density < 1 else iter(())
    with given_masks(monkeypatch, masks):
        expected, scaling = merged_by_peft(made, weights, name, density, sign)
    assert scaling == 1
    root = np.sqrt(made.bank.record.scaling or 0)
    for tensor, values in made.layout.unflatten(found).items():
        np.testing.assert_allclose(values * root, expected[tensor], rtol=2e-5, atol=1e-6, err_msg=tensor)


@pytest.mark.parametrize("name", ["dare-linear", "magnitude-prune"])
def test_convex_weights_are_those_of_peft_squared(
    made: SyntheticBank, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Of sources of the bank's scaling s: PEFT's weight `w^2 / s` gives each factor the weight w."""
    names, weights = ["s0", "s3"], np.asarray([0.75, 0.25], np.float32)
    records = [record for record in by_name(made) if record.name in names]
    method = merge_method(name, 0.4)
    found = combined_vector(made.bank, records, weights, method=method)
    drops = name.startswith("dare")
    with given_masks(monkeypatch, masks_of_factors(made, names, 0, 0.4) if drops else iter(())):
        expected, _ = peft_merged(
            made,
            names,
            (weights.astype(float) ** 2 / 2).tolist(),
            name.replace("-", "_"),
            scalings=scalings(names),
            density=0.4,
        )
    for tensor, values in made.layout.unflatten(found).items():
        np.testing.assert_allclose(values, expected[tensor], rtol=2e-5, atol=1e-6, err_msg=tensor)


@pytest.mark.parametrize("density", [0.62])
@pytest.mark.parametrize(("name", "sign"), SIGNS)
@pytest.mark.parametrize("weights", [[0.5, 0.2, 0.1, 0.2], [0.7, -0.3, 0.4, 0.2]], ids=["convex", "signed"])
def test_delta_space_is_what_peft_makes_by_svd(
    made: SyntheticBank,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    sign: str,
    density: float,
    weights: list[float],
) -> None:
    names = list(ALPHAS)
    drops = name.startswith("dare")
    method = with_pefts_weights(name, density, sign, 3)
    found = delta_adapter(made.bank, by_name(made), np.asarray(weights), 4, method=method)
    with given_masks(monkeypatch, masks_of_products(made, names, 3, density) if drops else iter(())):
        expected, scaling = merged_by_peft(made, weights, f"{name}-svd", density, sign, rank=4)
    ours = products(found.form.layout.unflatten(found.vector), found.form.scaling)
    for module, values in products(expected, scaling).items():
        np.testing.assert_allclose(ours[module], values, rtol=2e-4, atol=2e-5, err_msg=module)


@pytest.mark.parametrize("space", ["factors", "delta"])
def test_one_source_is_itself_as_with_peft(made: SyntheticBank, space: str) -> None:
    """`add_weighted_adapter` combines one adapter linearly, whatever it is asked for."""
    weights, method = np.asarray([0, 1, 0, 0], np.float32), merge_method("ties", 0.3)
    expected, scaling = peft_merged(made, ["s1"], [1.0], "ties", scalings=scalings(["s1"]), density=0.3)
    if space == "factors":
        vector = combined_vector(made.bank, by_name(made), weights, method=method)
        ours = products(made.layout.unflatten(vector), made.bank.record.scaling or 0)
    else:
        found = delta_adapter(made.bank, by_name(made), weights, method=method)
        ours = products(found.form.layout.unflatten(found.vector), found.form.scaling)
    for module, values in products(expected, scaling).items():
        np.testing.assert_allclose(ours[module], values, rtol=1e-5, atol=1e-6, err_msg=module)
