"""Units that are left out together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from bankdb.errors import ParameterError
from compute.approaches.groups import excluded_sources, same_unit, units_of

some_groups = st.lists(st.sampled_from([None, "a", "b", "c"]), min_size=1, max_size=9)


@given(groups=some_groups)
def test_a_group_is_a_unit_and_so_is_a_dataset_without_one(groups: list[str | None]) -> None:
    n = len(groups)
    together = [
        [i == j or (groups[i] is not None and groups[i] == groups[j]) for j in range(n)] for i in range(n)
    ]
    units = units_of(groups, "group")
    assert_array_equal(same_unit(units), together)
    assert_array_equal(np.unique(units), np.arange(units.max() + 1))
    assert_array_equal(same_unit(units_of(groups, "adapter")), np.eye(n, dtype=bool))


@given(groups=some_groups)
def test_a_group_that_is_the_whole_bank_is_an_error_that_names_the_target(groups: list[str | None]) -> None:
    names = [f"task{index}" for index in range(len(groups))]
    alone = len(groups) == 1 or (groups[0] is not None and len(set(groups)) == 1)
    if alone:
        with pytest.raises(ParameterError, match="task0"):
            excluded_sources(names, groups, "group")
    else:
        units, excluded = excluded_sources(names, groups, "group")
        assert_array_equal(excluded, same_unit(units))
        assert not excluded.all(axis=1).any()


def test_another_word_is_refused() -> None:
    with pytest.raises(ParameterError, match="adapter or group"):
        units_of(["a"], "family")
