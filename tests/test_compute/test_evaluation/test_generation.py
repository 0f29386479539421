"""Answers of a merged adapter, batched, against PEFT and against `generate` of transformers, one by one."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bankdb.datasets.held_out import HeldOut
from bankdb.datasets.tokenizer import BankTokenizer
from bankdb.errors import AdapterError, BankError, DatasetError, ParameterError
from bankdb.peft.layout import AdapterLayout
from bankdb.peft.weights import load_adapter
from compute.generation.base_model import end_ids, model_fingerprint, model_folder
from compute.generation.prompts import MARGIN, encode_prompts, plan_batches, shared_tokens

TINY = Path(__file__).resolve().parents[3] / "examples" / "tiny_bank"
NAMES = ("records_city", "lists_first", "numbers_larger")
SCALING = 2.0


@pytest.fixture(scope="module")
def tokenizer() -> BankTokenizer:
    return BankTokenizer(TINY / "base")


@pytest.fixture(scope="module")
def layout() -> AdapterLayout:
    return load_adapter(TINY / "bank" / "adapters" / NAMES[0]).layout


@pytest.fixture(scope="module")
def loaded(layout: AdapterLayout, tokenizer: BankTokenizer) -> Any:
    from compute.generation.generate import load_generator

    return load_generator(TINY / "base", layout, tokenizer, device="cpu")


@pytest.fixture
def generator(loaded: Any) -> Any:
    loaded.adapted.restore()
    return loaded


def tensors(name: str) -> dict[str, np.ndarray]:
    adapter = load_adapter(TINY / "bank" / "adapters" / name)
    return adapter.layout.unflatten(adapter.vector)


def split(name: str, most: int = 12) -> HeldOut:
    lines = (TINY / "bank" / "datasets" / name / "test.jsonl").read_text().splitlines()[:most]
    rows = [json.loads(line) for line in lines]
    return HeldOut.of([row["input"] for row in rows], [row["output"] for row in rows])


def base_model() -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(TINY / "base", dtype=torch.float32).eval()


def generated(model: Any, tokenizer: BankTokenizer, text: str, new_tokens: int) -> str:
    """What transformers itself answers to one text, with no batch and no padding."""
    import torch

    ids = torch.tensor(tokenizer.encode([text]))
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False
    )
    return tokenizer.decode(out[0, ids.shape[1] :].tolist())


# -- what is asked for without torch -------------------------------------------------------------------


def test_shared_tokens_leave_one_of_each_prompt() -> None:
    assert shared_tokens([(1, 2, 3), (1, 2, 4)]) == 2
    assert shared_tokens([(1, 2), (1, 2, 4)]) == 1
    assert shared_tokens([(1,), (1, 2)]) == 0
    assert shared_tokens([(5, 1), (6, 1)]) == 0
    assert shared_tokens([(1, 2, 3)] * 3) == 2


@given(st.lists(st.integers(1, 200), min_size=1, max_size=40), st.none() | st.integers(1, 9))
def test_batches_hold_each_prompt_once_and_alike_ones_together(lengths: list[int], rows: int | None) -> None:
    batches = plan_batches(lengths, rows)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    flat = [lengths[index] for batch in batches for index in batch]
    assert flat == sorted(lengths, reverse=True)
    if rows is not None:
        assert all(len(batch) <= rows for batch in batches)


def cost(batches: list[list[int]], lengths: list[int]) -> int:
    return sum(len(batch) * max(lengths[index] for index in batch) + 128 for batch in batches)


def cuts(order: list[int]) -> list[list[list[int]]]:
    found = []
    for bits in range(2 ** (len(order) - 1)):
        batches = [[order[0]]]
        for position, index in enumerate(order[1:]):
            if bits >> position & 1:
                batches.append([])
            batches[-1].append(index)
        found.append(batches)
    return found


@given(st.lists(st.integers(1, 500), min_size=1, max_size=7))
def test_no_other_cut_costs_less(lengths: list[int]) -> None:
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    best = min(cost(batches, lengths) for batches in cuts(order))
    assert cost(plan_batches(lengths), lengths) == best


def test_a_batch_is_bounded() -> None:
    assert max(map(len, plan_batches([10] * 1000))) <= 64
    assert all(len(batch) * 3000 <= 4096 for batch in plan_batches([3000] * 5))
    assert plan_batches([9000, 9000]) == [[0], [1]]


def test_prompts_are_tokenized_as_they_are_counted(tokenizer: BankTokenizer) -> None:
    found = split("records_city")
    prompts = encode_prompts(tokenizer, found, "records_city")
    assert [list(ids) for ids in prompts.ids] == tokenizer.encode(found.inputs)
    histogram = tokenizer.count(list(found.inputs), "records_city")
    assert sum(map(len, prompts.ids)) == histogram.tokens


def test_the_limit_comes_from_the_longest_reference(tokenizer: BankTokenizer) -> None:
    found = HeldOut.of(["a", "b"], [["yes"], ["no", "the city of Oslo"]])
    (longest,) = tokenizer.encode(["the city of Oslo"])
    assert encode_prompts(tokenizer, found, "x").new_tokens == len(longest) - 1 + MARGIN


def test_an_empty_prompt_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>").save_pretrained(tmp_path)
    with pytest.raises(DatasetError, match="test example 2 has an input without tokens"):
        encode_prompts(BankTokenizer(tmp_path), HeldOut.of(["a", ""], [["b"], ["c"]]), "x")


def test_an_end_of_sequence_behind_each_text_is_taken_off(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "</s>": 2}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    plain.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    fast = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>", eos_token="</s>")
    fast.save_pretrained(tmp_path)
    prompts = encode_prompts(BankTokenizer(tmp_path), HeldOut.of(["a a", "a"], [["a"], ["a a"]]), "x")
    assert (prompts.ids, prompts.new_tokens) == (((1, 1), (1,)), 2 + MARGIN)


def test_the_fingerprint_is_of_the_weights(tmp_path: Path) -> None:
    assert model_fingerprint(TINY / "base") == model_fingerprint(model_folder(TINY / "base"))
    data = bytearray(random.Random(0).randbytes(10_000_000))
    (tmp_path / "config.json").write_text("{}")
    found = set()
    for position in (None, 0, 65_000, len(data) - 1):
        if position is not None:
            data[position] ^= 1
        (tmp_path / "model.safetensors").write_bytes(data)
        found.add(model_fingerprint(tmp_path))
    (tmp_path / "config.json").write_text("{ }")
    found.add(model_fingerprint(tmp_path))
    assert len(found) == 5


def test_a_folder_without_a_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BankError, match=r"expected a base model with config\.json"):
        model_folder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BankError, match=r"expected weights in \*\.safetensors, found config\.json"):
        model_folder(tmp_path)
    with pytest.raises(BankError, match=r"base model no/such-model: .*pass --model PATH"):
        model_folder("no/such-model")
    with pytest.raises(BankError, match="pass --model PATH"):
        model_folder(tmp_path / "nothing" / "here")


# -- merging -------------------------------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.parametrize("name", NAMES[:2])
def test_merged_logits_are_those_of_peft(generator: Any, tokenizer: BankTokenizer, name: str) -> None:
    import torch
    from peft import PeftModel

    model = PeftModel.from_pretrained(base_model(), TINY / "bank" / "adapters" / name).eval()
    generator.adapted.apply(tensors(name), SCALING)
    with torch.no_grad():
        for text in split(name, 4).inputs:
            ids = torch.tensor(tokenizer.encode([text]))
            difference = (model(ids).logits - generator.adapted.model(ids).logits).abs().max()
            assert difference < 1e-4
            assert (model(ids).logits - base_model()(ids).logits).abs().max() > 0.1


@pytest.mark.torch
def test_restoring_gives_the_base_weights_bit_for_bit(generator: Any) -> None:
    import torch

    before = copy.deepcopy(generator.adapted.model.state_dict())
    for name in NAMES:
        generator.adapted.apply(tensors(name), SCALING)
    changed = [
        key
        for key, value in generator.adapted.model.state_dict().items()
        if not torch.equal(value, before[key])
    ]
    assert len(changed) == len(tensors(NAMES[0])) // 2
    generator.adapted.restore()
    after = generator.adapted.model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.torch
def test_one_adapter_after_another_leaves_no_trace(generator: Any, tokenizer: BankTokenizer) -> None:
    prompts = encode_prompts(tokenizer, split(NAMES[0]), NAMES[0])
    alone = generator.answer(prompts, tensors(NAMES[0]), SCALING)
    base = generator.answer(prompts)
    generator.answer(prompts, tensors(NAMES[1]), SCALING)
    assert generator.answer(prompts, tensors(NAMES[0]), SCALING).texts == alone.texts
    assert generator.answer(prompts).texts == base.texts
    assert base.texts != alone.texts


@pytest.mark.torch
def test_replicas_share_all_but_the_adapted_weights(generator: Any) -> None:
    import torch

    other = generator.replica().adapted
    first, second = (dict(one.model.named_parameters()) for one in (generator.adapted, other))
    own = {key for key in first if first[key].data_ptr() != second[key].data_ptr()}
    assert own == {
        key.removeprefix("base_model.model.").replace("lora_A.", "")
        for key in tensors(NAMES[0])
        if "lora_A" in key
    }
    generator.adapted.apply(tensors(NAMES[0]), SCALING)
    assert all(torch.equal(value, base_model().state_dict()[key]) for key, value in second.items())
    other.apply(tensors(NAMES[0]), SCALING)
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.torch
def test_another_rank_is_merged_too(generator: Any) -> None:
    """As a sum in delta space has it."""
    import torch

    found = tensors(NAMES[0])
    generator.adapted.apply(found, SCALING)
    once = copy.deepcopy(generator.adapted.model.state_dict())
    stacked = {
        key: np.concatenate([value, value], axis=0 if "lora_A" in key else 1) for key, value in found.items()
    }
    generator.adapted.apply(stacked, SCALING / 2)
    twice = generator.adapted.model.state_dict()
    assert all(torch.allclose(once[key], twice[key], atol=1e-6) for key in once)


@pytest.mark.torch
def test_wrong_tensors_are_refused_and_nothing_changes(generator: Any) -> None:
    import torch

    generator.adapted.apply(tensors(NAMES[0]), SCALING)
    before = copy.deepcopy(generator.adapted.model.state_dict())
    name = next(iter(tensors(NAMES[1])))
    values = tensors(NAMES[1])
    cases = {
        r"missing .*lora_A": {key: value for key, value in values.items() if key != name},
        r"not used .*renamed": values | {name.replace("k_proj", "renamed"): values[name]},
        r"missing .*lora_A.*not used": {
            key.replace("lora_A.weight", "lora_A.default.weight"): value for key, value in values.items()
        },
        r"expected A of \(r, 96\)": values | {name: values[name][:, :-1]},
        r"and B of \(96, r\)": values | {name: values[name][:-1]},
    }
    for message, wrong in cases.items():
        with pytest.raises(AdapterError, match=message):
            generator.adapted.apply(wrong, SCALING)
    after = generator.adapted.model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    with pytest.raises(AdapterError, match="not finite"):
        generator.adapted.apply(values | {name: values[name] * np.nan}, SCALING)


def changed_layout(layout: AdapterLayout, old: str, new: str) -> AdapterLayout:
    shapes = {spec.name.replace(old, new): spec.shape for spec in layout.tensors}
    return AdapterLayout.from_shapes(shapes, layout.rank, layout.target_modules)


@pytest.mark.torch
def test_a_base_model_that_does_not_fit_is_refused(
    layout: AdapterLayout, tokenizer: BankTokenizer, tmp_path: Path
) -> None:
    from compute.generation.generate import load_generator

    for old, new, message in (
        ("q_proj", "query", "has no such module"),
        ("self_attn.q_proj", "input_layernorm", "expected a linear layer, found LlamaRMSNorm"),
        ("self_attn.q_proj", "mlp.gate_proj", "fit a weight of"),
    ):
        with pytest.raises(AdapterError, match=message):
            load_generator(TINY / "base", changed_layout(layout, old, new), tokenizer)
    half = AdapterLayout.from_shapes(
        {spec.name: spec.shape for spec in layout.tensors[1:]}, layout.rank, layout.target_modules
    )
    with pytest.raises(AdapterError, match="expected both A and B, found one of them"):
        load_generator(TINY / "base", half, tokenizer)


@pytest.mark.torch
def test_a_damaged_base_model_is_refused(
    layout: AdapterLayout, tokenizer: BankTokenizer, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    from compute.generation.generate import load_generator

    (tmp_path / "config.json").write_bytes((TINY / "base" / "config.json").read_bytes())
    weights = load_file(TINY / "base" / "model.safetensors")
    lacking = {key: value for key, value in weights.items() if "layers.1.mlp.up_proj" not in key}
    save_file(lacking, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BankError, match=r"lacks weights for .*layers\.1\.mlp\.up_proj"):
        load_generator(tmp_path, layout, tokenizer)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(BankError, match="cannot be loaded"):
        load_generator(tmp_path, layout, tokenizer)


@pytest.mark.torch
def test_unknown_device_and_dtype(layout: AdapterLayout, tokenizer: BankTokenizer) -> None:
    import torch

    from compute.generation.generate import load_generator

    with pytest.raises(ParameterError, match="device: expected one of"):
        load_generator(TINY / "base", layout, tokenizer, device="tpu")
    with pytest.raises(ParameterError, match="dtype: expected one of"):
        load_generator(TINY / "base", layout, tokenizer, dtype="int8")
    if not torch.cuda.is_available():
        with pytest.raises(ParameterError, match="torch finds no GPU"):
            load_generator(TINY / "base", layout, tokenizer, device="cuda")


@pytest.mark.torch
def test_a_weight_stored_as_in_by_out_is_merged_transposed() -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from compute.generation.adapted_model import AdaptedModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=16, n_embd=8, n_layer=1, n_head=2))
    module = "base_model.model.transformer.h.0.attn.c_attn"
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 8)).astype(np.float32), rng.normal(size=(24, 2)).astype(np.float32)
    names = {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    layout = AdapterLayout.from_shapes({key: value.shape for key, value in names.items()}, 2, ["c_attn"])
    before = model.transformer.h[0].attn.c_attn.weight.detach().clone()
    AdaptedModel(model, layout).apply(names, 0.5)
    after = model.transformer.h[0].attn.c_attn.weight.detach()
    assert torch.allclose(after, before + 0.5 * torch.from_numpy(b @ a).T, atol=1e-6)


@pytest.mark.torch
def test_an_adapter_of_a_tied_output_layer_leaves_the_embedding(tokenizer: BankTokenizer) -> None:
    import torch

    from compute.generation.adapted_model import AdaptedModel

    model = base_model()
    rows, hidden = model.lm_head.weight.shape
    names = {
        "base_model.model.lm_head.lora_A.weight": np.ones((1, hidden), dtype=np.float32),
        "base_model.model.lm_head.lora_B.weight": np.ones((rows, 1), dtype=np.float32),
    }
    layout = AdapterLayout.from_shapes({key: value.shape for key, value in names.items()}, 1, ["lm_head"])
    before = model.get_input_embeddings().weight.detach().clone()
    AdaptedModel(model, layout).apply(names, 3.0)
    assert torch.equal(model.get_input_embeddings().weight, before)
    assert torch.allclose(model.lm_head.weight, before + 3, atol=1e-5)


# -- answers -------------------------------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_of_generate_one_by_one(
    generator: Any, tokenizer: BankTokenizer, name: str
) -> None:
    from peft import PeftModel

    from compute.generation.generate import Generator

    found = split(name)
    prompts = encode_prompts(tokenizer, found, name)
    assert prompts.shared > 0
    model = PeftModel.from_pretrained(base_model(), TINY / "bank" / "adapters" / name).eval()
    expected = [generated(model, tokenizer, text, prompts.new_tokens) for text in found.inputs]
    for batch_size in (None, 1, 5):
        one = Generator(generator.adapted, tokenizer, end_ids(TINY / "base"), batch_size)
        answers = one.answer(prompts, tensors(name), SCALING)
        assert list(answers.texts) == expected


@pytest.mark.torch
def test_base_answers_to_mixed_prompts(generator: Any, tokenizer: BankTokenizer) -> None:
    """Of three datasets: they share little, and differ much in length."""
    parts = [split(name, 4) for name in NAMES]
    texts = [text for part in parts for text in part.inputs] + ["a", "Oslo\n"]
    mixed = HeldOut.of(texts, [["x" * 10]] * len(texts))
    prompts = encode_prompts(tokenizer, mixed, "mixed")
    model = base_model()
    expected = [generated(model, tokenizer, text, prompts.new_tokens) for text in texts]
    assert list(generator.answer(prompts).texts) == expected


@pytest.mark.torch
def test_a_row_that_has_ended_is_left_out(
    generator: Any, tokenizer: BankTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    forward = generator.adapted.model.forward

    def counted(*args: Any, **options: Any) -> Any:
        rows.append(len(options["input_ids"]))
        return forward(*args, **options)

    monkeypatch.setattr(generator.adapted.model, "forward", counted)
    prompts = encode_prompts(tokenizer, split(NAMES[0], 8), NAMES[0])
    answers = generator.answer(prompts, tensors(NAMES[0]), SCALING)
    assert rows[:2] == [1, 8]
    assert rows[2:] == sorted(rows[2:], reverse=True)
    # Each token but the last of an answer that reached the limit was read to find the next.
    assert sum(rows[2:]) <= answers.tokens


@pytest.mark.torch
def test_answers_stop_at_the_limit(generator: Any, tokenizer: BankTokenizer) -> None:
    import dataclasses

    prompts = dataclasses.replace(encode_prompts(tokenizer, split("lists_copy", 6), "x"), new_tokens=2)
    answers = generator.answer(prompts)
    assert all(len(tokenizer.encode([text])[0]) - 1 <= 2 for text in answers.texts)
    assert answers.tokens <= 12


@pytest.mark.torch
def test_too_long_for_the_model_is_refused(generator: Any, tokenizer: BankTokenizer) -> None:
    prompts = encode_prompts(tokenizer, HeldOut.of(["a " * 300], [["b"]]), "long")
    with pytest.raises(DatasetError, match=r"long: the longest prompt with its answer has .* 256 positions"):
        generator.check_prompts(prompts, "long")


@pytest.mark.torch
def test_a_token_that_the_model_has_no_row_for_is_refused_where_it_is_used(
    tmp_path: Path, layout: AdapterLayout, tokenizer: BankTokenizer
) -> None:
    import shutil

    from tokenizers import Tokenizer

    from compute.generation.generate import load_generator

    shutil.copytree(TINY / "base", tmp_path / "base")
    more = Tokenizer.from_file(str(TINY / "base" / "tokenizer.json"))
    more.add_tokens(["<more>", "<most>"])
    more.save(str(tmp_path / "base" / "tokenizer.json"))
    larger = BankTokenizer(tmp_path / "base")
    assert larger.vocabulary == tokenizer.vocabulary + 2
    generator = load_generator(TINY / "base", layout, larger, device="cpu")
    unused = encode_prompts(larger, HeldOut.of(["a b"], [["b"]]), "x")
    generator.check_prompts(unused, "x")
    assert len(generator.answer(unused).texts) == 1
    used = encode_prompts(larger, HeldOut.of(["a b", "a <more>"], [["b"], ["b"]]), "x")
    with pytest.raises(DatasetError, match=rf"x: a prompt has token id {tokenizer.vocabulary}, .*--model"):
        generator.check_prompts(used, "x")


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    from compute.generation.generate import check_extra

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ParameterError, match=r"expected the extra torch: pip install 'lora-bank\[torch\]'"):
        check_extra()
