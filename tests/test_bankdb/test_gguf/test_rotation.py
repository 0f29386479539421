"""What the order of rows is for: attention as llama.cpp computes it, of its own tensors, is that of transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from bankdb.gguf.order import neighbours, split_groups
from tests.support.gguf_cases import (
    HEADS,
    HIDDEN,
    RANK,
    SHARED,
    SIZE,
    base_of,
    layout_for,
    numbers_for,
    read_tensors,
    read_values,
    write_gguf,
)

Float64 = NDArray[np.float64]
SCALING, THETA, POSITIONS = 1.75, 10000.0, 7


def turned_halves(x: Float64, position: int) -> Float64:
    """Rotary embedding as transformers has it: element j of a head is turned with element j + d/2."""
    found = x.copy()
    half = SIZE // 2
    for head in range(len(x) // SIZE):
        for j in range(half):
            angle, first, second = (
                position * THETA ** (-2 * j / SIZE),
                head * SIZE + j,
                head * SIZE + j + half,
            )
            found[first] = x[first] * np.cos(angle) - x[second] * np.sin(angle)
            found[second] = x[second] * np.cos(angle) + x[first] * np.sin(angle)
    return found


def turned_neighbours(x: Float64, position: int) -> Float64:
    """The same as ggml has it in its normal mode: element 2j is turned with element 2j + 1."""
    found = x.copy()
    for head in range(len(x) // SIZE):
        for j in range(SIZE // 2):
            angle, first = position * THETA ** (-2 * j / SIZE), head * SIZE + 2 * j
            found[first] = x[first] * np.cos(angle) - x[first + 1] * np.sin(angle)
            found[first + 1] = x[first + 1] * np.cos(angle) + x[first] * np.sin(angle)
    return found


def scores(q: list[Float64], k: list[Float64]) -> Float64:
    """Of each query head with its key head, for each pair of positions."""
    each = HEADS // SHARED
    return np.asarray(
        [
            [
                [
                    q[i][h * SIZE : (h + 1) * SIZE] @ k[j][h // each * SIZE : (h // each + 1) * SIZE]
                    for j in range(POSITIONS)
                ]
                for i in range(POSITIONS)
            ]
            for h in range(HEADS)
        ]
    )


@pytest.mark.parametrize(
    ("name", "is_normal"),
    [("LlamaForCausalLM", True), ("Qwen2ForCausalLM", False), ("GemmaForCausalLM", False)],
)
def test_attention_of_the_file_is_that_of_transformers(tmp_path: Path, name: str, is_normal: bool) -> None:
    rng = np.random.default_rng(3)
    weights = {"q": rng.normal(size=(HEADS * SIZE, HIDDEN)), "k": rng.normal(size=(SHARED * SIZE, HIDDEN))}
    layout = layout_for(
        {f"model.layers.0.self_attn.{which}_proj": (len(one), HIDDEN) for which, one in weights.items()}
    )
    vector = rng.normal(size=layout.size).astype(np.float32)
    factors = layout.unflatten(vector.astype(np.float64))
    path = write_gguf(tmp_path / "adapter.gguf", base_of(name), layout, vector, SCALING)
    tensors, alpha = read_tensors(path), read_values(path)["adapter.lora.alpha"]
    inputs = rng.normal(size=(POSITIONS, HIDDEN))

    ours, theirs, unordered = {}, {}, {}
    turn = turned_neighbours if is_normal else turned_halves
    for which, weight in weights.items():
        module = f"base_model.model.model.layers.0.self_attn.{which}_proj"
        delta = SCALING * factors[f"{module}.lora_B.weight"] @ factors[f"{module}.lora_A.weight"]
        ours[which] = [turned_halves((weight + delta) @ x, i) for i, x in enumerate(inputs)]
        # The base model's matrix in ggml's order, row by row.
        base = weight.copy()
        if is_normal:
            for row in range(len(weight)):
                head, place = divmod(row, SIZE)
                base[head * SIZE + 2 * (place % (SIZE // 2)) + place // (SIZE // 2)] = weight[row]
        a, b = tensors[f"blk.0.attn_{which}.weight.lora_a"], tensors[f"blk.0.attn_{which}.weight.lora_b"]
        assert b.shape[1] == RANK
        product = alpha / b.shape[1] * b.astype(np.float64) @ a.astype(np.float64)
        theirs[which] = [turn((base + product) @ x, i) for i, x in enumerate(inputs)]
        unordered[which] = [turn((base + delta) @ x, i) for i, x in enumerate(inputs)]
    expected = scores(ours["q"], ours["k"])
    np.testing.assert_allclose(scores(theirs["q"], theirs["k"]), expected, rtol=1e-5, atol=1e-4)
    # The rows as they are would be another model: the test sees it.
    assert np.allclose(scores(unordered["q"], unordered["k"]), expected, rtol=1e-2) != is_normal


@given(st.integers(1, 9), st.integers(1, 8))
def test_pairs_become_neighbours(heads: int, half: int) -> None:
    rows = heads * 2 * half
    order = neighbours(heads, rows).tolist()
    assert sorted(order) == list(range(rows))
    for head in range(heads):
        for j in range(half):
            start = head * 2 * half
            assert order[start + 2 * j : start + 2 * j + 2] == [start + j, start + j + half]


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_groups_are_taken_apart(shared: int, each: int, half: int) -> None:
    size, heads = 2 * half, shared * each
    rows = [("qkv"[max(0, head - each + 1)], group, head if head < each else 0, i)
            for group in range(shared) for head in range(each + 2) for i in range(size)]  # fmt: skip
    q, k, v = ([rows[index] for index in part.tolist()] for part in split_groups(heads, shared, len(rows)))
    turn = neighbours(1, size).tolist()
    assert q == [("q", g, h, i) for g in range(shared) for h in range(each) for i in turn]
    assert k == [("k", g, 0, i) for g in range(shared) for i in turn]
    assert v == [("v", g, 0, i) for g in range(shared) for i in range(size)]


@pytest.mark.parametrize("use_float16", [False, True])
def test_numbers_are_those_of_the_adapter(tmp_path: Path, use_float16: bool) -> None:
    layout = layout_for({"model.layers.1.mlp.down_proj": (HIDDEN, 40)})
    vector = numbers_for(layout).astype(np.float16 if use_float16 else np.float32)
    found = read_tensors(write_gguf(tmp_path / "one.gguf", base_of("LlamaForCausalLM"), layout, vector))
    tensors = layout.unflatten(vector)
    for factor in "AB":
        stored = found[f"blk.1.ffn_down.weight.lora_{factor.lower()}"]
        assert stored.dtype == np.float32
        assert np.array_equal(
            stored, tensors[f"base_model.model.model.layers.1.mlp.down_proj.lora_{factor}.weight"]
        )
