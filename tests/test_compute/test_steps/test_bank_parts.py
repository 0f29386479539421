"""What many adapters are combined from is what each would be combined from on its own."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from bankdb.bank import AdapterBank
from bankdb.scaled_rows import sources_of
from compute.combination.tensors import BankParts, FactorParts, combined_tensors, tensors_of


@pytest.mark.parametrize("space", ["factors", "delta"])
def test_parts_do_not_depend_on_what_was_asked_before(bank: AdapterBank, space: str) -> None:
    rng = np.random.default_rng(3)
    adapters, parts = bank.adapters(), BankParts(bank)
    for _ in range(6):
        some = [
            adapters[place] for place in rng.permutation(len(adapters))[: rng.integers(1, len(adapters) + 1)]
        ]
        weights = rng.dirichlet(np.ones(len(some))).astype(np.float32)
        found = parts.of(some, weights, space, None)
        tensors, scaling = tensors_of(found, bank.store)
        expected, expected_scaling = combined_tensors(bank, some, weights, space, None)
        assert scaling == expected_scaling
        assert tensors.keys() == expected.keys()
        for name, values in tensors.items():
            assert_array_equal(values, expected[name])
        if isinstance(found, FactorParts):
            own = sources_of(bank, some)
            for field in dataclasses.fields(own):
                assert_array_equal(getattr(found.sources, field.name), getattr(own, field.name))


def test_adapters_of_other_scalings_keep_theirs(bank: AdapterBank) -> None:
    adapters = bank.adapters()
    doubled = [dataclasses.replace(adapters[1], scaling=2 * adapters[1].scaling, alpha=2 * adapters[1].alpha)]
    parts, one = BankParts(bank), np.ones(1, dtype=np.float32)
    plain = parts.of(adapters[:1], one, "factors", None)
    other = parts.of(doubled, one, "factors", None)
    assert isinstance(plain, FactorParts)
    assert isinstance(other, FactorParts)
    assert_array_equal(plain.sources.ratios, [1])
    assert_array_equal(other.sources.ratios, [2])
