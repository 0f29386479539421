from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bankdb.errors import AdapterError, BankFormatError
from bankdb.peft.layout import AdapterLayout, TensorSpec
from tests.support.banks.malformed_adapters import tensor_names

SHAPES = {name: (4, 6) if ".lora_A." in name else (10, 4) for name in tensor_names()}
LAYOUT = AdapterLayout.from_shapes(SHAPES, 4, ["v_proj", "q_proj"])

names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
shapes = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)


@st.composite
def layouts(draw: st.DrawFn) -> AdapterLayout:
    found = draw(st.dictionaries(names, shapes, min_size=1, max_size=8))
    modules = draw(st.lists(names, min_size=1, max_size=3))
    return AdapterLayout.from_shapes(found, draw(st.integers(1, 64)), modules, draw(st.booleans()))


@given(layouts(), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_flatten_and_unflatten_are_inverse(layout: AdapterLayout, seed: int) -> None:
    vector = np.random.default_rng(seed).normal(size=layout.size).astype(np.float32)
    tensors = layout.unflatten(vector)
    assert list(tensors) == sorted(tensors)
    assert all(np.shares_memory(tensor, vector) for tensor in tensors.values())
    # By the definition: the tensors one after another, each in C order.
    assert (np.concatenate([tensors[name].ravel() for name in sorted(tensors)]) == vector).all()
    shuffled = dict(reversed(tensors.items()))
    again = layout.flatten(shuffled)
    assert again.dtype == np.float32
    assert (again == vector).all()
    assert not np.shares_memory(again, vector)


@given(layouts())
def test_json_brings_the_layout_back(layout: AdapterLayout) -> None:
    again = AdapterLayout.from_json(layout.to_json())
    assert again == layout
    assert hash(again) == hash(layout)
    assert (again.target_modules, again.fan_in_fan_out) == (layout.target_modules, layout.fan_in_fan_out)
    assert again.to_json() == layout.to_json()
    assert layout.differences(again) == []
    assert layout.size == sum(math.prod(spec.shape) for spec in layout.tensors)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"rank":4,"target_modules":["q"],"fan_in_fan_out":false,"tensors":[]}',
        '{"rank":0,"target_modules":["q"],"fan_in_fan_out":false,"tensors":[["a",[1]]]}',
        '{"rank":4,"target_modules":["q"],"fan_in_fan_out":false,"tensors":[["b",[1]],["a",[1]]]}',
        '{"rank":4,"target_modules":["q"],"fan_in_fan_out":false,"tensors":[["a",[1]],["a",[1]]]}',
        '{"rank":4,"target_modules":["q"],"fan_in_fan_out":false,"tensors":[["a",[0]]]}',
        '{"rank":4,"target_modules":["q"],"fan_in_fan_out":false,"tensors":[["a",3]]}',
    ],
)
def test_a_damaged_layout_is_a_damaged_bank(text: str) -> None:
    with pytest.raises(BankFormatError, match="layout cannot be read"):
        AdapterLayout.from_json(text)


def test_offsets_may_not_leave_gaps() -> None:
    with pytest.raises(ValueError):
        AdapterLayout((TensorSpec("a", (2,), 0), TensorSpec("b", (2,), 3)), 1, ("a",), False)


def test_b_segments_cover_the_b_factors_alone() -> None:
    tensors = {name: np.full(shape, float(".lora_B." in name)) for name, shape in SHAPES.items()}
    mask = np.zeros(LAYOUT.size)
    segments = LAYOUT.b_segments()
    for start, stop in segments:
        assert (mask[start:stop] == 0).all()
        mask[start:stop] = 1
    assert (mask == LAYOUT.flatten(tensors)).all()
    assert list(segments) == sorted(segments)


def test_adjacent_b_factors_are_one_segment() -> None:
    layout = AdapterLayout.from_shapes(
        {"a.lora_B.weight": (3, 2), "b.lora_B.weight": (5, 2), "c.lora_A.weight": (2, 1)}, 2, ["a"]
    )
    assert layout.b_segments() == ((0, 16),)


def test_no_difference_means_no_lines() -> None:
    other = AdapterLayout.from_shapes(SHAPES, 4, ["model.layers.0.self_attn.q_proj"], fan_in_fan_out=True)
    # How the modules were named, and how the base model stores its weights, is not the adapter.
    assert LAYOUT.differences(other) == []
    assert other == LAYOUT


def test_differences_say_what_was_expected_and_what_was_found() -> None:
    first, *rest = tensor_names()
    fewer = AdapterLayout.from_shapes({name: SHAPES[name] for name in rest}, 4, ["q_proj"])
    assert LAYOUT.differences(fewer) == [f"missing tensors {first}"]
    assert fewer.differences(LAYOUT) == [f"unexpected tensors {first}"]
    wide = AdapterLayout.from_shapes(SHAPES | {first: (4, 7)}, 4, ["q_proj"])
    assert LAYOUT.differences(wide) == [f"shape of {first} (4, 6) expected, (4, 7) found"]
    assert wide != LAYOUT


def test_another_rank_is_one_line() -> None:
    double = {name: (8, 6) if ".lora_A." in name else (10, 8) for name in SHAPES}
    assert LAYOUT.differences(AdapterLayout.from_shapes(double, 8, ["q_proj"])) == [
        "rank 4 expected, 8 found"
    ]


def test_other_target_modules_come_first() -> None:
    other = {name.replace("v_proj", "o_proj"): shape for name, shape in SHAPES.items()}
    lines = LAYOUT.differences(AdapterLayout.from_shapes(other, 4, ["o_proj"]))
    assert lines[0] == "target modules q_proj, v_proj expected, o_proj, q_proj found"
    assert lines[1].endswith("and 1 more")
    assert len(lines) == 3


def test_tensors_and_vectors_that_do_not_fit_are_refused() -> None:
    tensors = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    name = next(iter(tensors))
    with pytest.raises(AdapterError, match="missing tensors"):
        LAYOUT.flatten({key: tensor for key, tensor in tensors.items() if key != name})
    with pytest.raises(AdapterError, match="unexpected tensors extra"):
        LAYOUT.flatten(tensors | {"extra": np.zeros(3)})
    with pytest.raises(AdapterError, match=r"\(4, 6\) expected, \(6, 4\) found"):
        LAYOUT.flatten(tensors | {name: tensors[name].T})
    for vector in (np.zeros(LAYOUT.size - 1), np.zeros((1, LAYOUT.size))):
        with pytest.raises(AdapterError, match=rf"\({LAYOUT.size},\) was expected"):
            LAYOUT.unflatten(vector)
