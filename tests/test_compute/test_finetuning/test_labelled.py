"""Labelled examples and the loss on their answers, against a loop over examples with all logits in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bankdb.datasets.tokenizer import BankTokenizer
from bankdb.errors import DatasetError
from compute.generation.labelled import (
    AnswerLoss,
    LabelledExample,
    batches_by_length,
    check_labelled,
    encode_labelled,
)
from tests.support.banks.tiny_bank import BASE

ROWS = 50
# Names of configurations in transformers, with what makes a model of two small layers of each.
LIKE_LLAMA = {
    "vocab_size": ROWS,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"vocab_size": ROWS, "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "LlamaConfig": LIKE_LLAMA | {"tie_word_embeddings": True},
    # A window shorter than some examples.
    "MistralConfig": LIKE_LLAMA | {"sliding_window": 6},
    "Qwen2Config": LIKE_LLAMA,
    # Logits through tanh, scaled embeddings, layers in turn with a window.
    "Gemma2Config": LIKE_LLAMA | {"sliding_window": 6},
    "PhiConfig": LIKE_LLAMA | {"num_key_value_heads": 2},
    # Learned positions, and weights stored as (in, out).
    "GPT2Config": GPT2 | {"bos_token_id": 1, "eos_token_id": 2},
    # Positions by what is attended to, two further on.
    "OPTConfig": LIKE_LLAMA | {"ffn_dim": 24, "word_embed_proj_dim": 16},
    # No positions but a slope of attention.
    "BloomConfig": {"vocab_size": ROWS, "hidden_size": 16, "n_layer": 2, "n_head": 2},
    "GPTNeoXConfig": LIKE_LLAMA,
}


def model_of(name: str) -> Any:
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, name)(**ARCHITECTURES[name])
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        # Far from zero, so that nothing is hidden by small numbers.
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def loss_by_hand(model: Any, example: LabelledExample) -> Any:
    """One example alone, not padded, all logits."""
    import torch

    ids = torch.tensor([example.ids])
    logits = model(input_ids=ids, use_cache=False).logits[0].float()
    places = range(len(example.ids) - example.answer - 1, len(example.ids) - 1)
    return -sum(torch.log_softmax(logits[place], -1)[example.ids[place + 1]] for place in places)


EXAMPLES = [
    LabelledExample((1, 5, 9, 30, 31, 2), 3),
    LabelledExample((1, 7, 2), 1),
    LabelledExample((1, 8, 8, 8, 8, 8, 8, 8, 8, 8, 40, 2), 2),
    LabelledExample((44, 2), 1),
    LabelledExample((1, 6, 11, 12, 13, 14, 15, 16, 17, 2), 8),
]


@pytest.mark.torch
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_loss_is_that_of_each_example_alone_with_all_logits(name: str) -> None:
    import torch

    model = model_of(name)
    with torch.no_grad():
        expected = [float(loss_by_hand(model, example)) for example in EXAMPLES]
        loss = AnswerLoss(model)
        for examples in (EXAMPLES, EXAMPLES[:1], EXAMPLES[1:3], EXAMPLES[::-1]):
            wanted = sum(expected[EXAMPLES.index(example)] for example in examples)
            assert float(loss.total(examples)) == pytest.approx(wanted, rel=1e-4, abs=1e-4)
    answers = sum(example.answer for example in EXAMPLES)
    for size in (1, 2, 8):
        assert loss.mean(EXAMPLES, size) == pytest.approx(sum(expected) / answers, rel=1e-4, abs=1e-4)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["LlamaConfig", "GPT2Config", "BloomConfig"])
def test_gradients_are_those_of_the_loop(name: str) -> None:
    import torch

    model = model_of(name)
    parameters = list(model.parameters())
    total = torch.stack([loss_by_hand(model, example) for example in EXAMPLES]).sum()
    expected = torch.autograd.grad(total, parameters)
    found = torch.autograd.grad(AnswerLoss(model).total(EXAMPLES), parameters)
    for one, other in zip(expected, found, strict=True):
        scale = float(one.abs().max()) + 1e-3
        assert float((one - other).abs().max()) < 1e-3 * scale


@pytest.mark.torch
def test_only_logits_of_answers_are_computed() -> None:
    model = model_of("LlamaConfig")
    seen: list[tuple[int, ...]] = []
    model.lm_head.register_forward_hook(lambda module, given, out: seen.append(tuple(out.shape)))
    AnswerLoss(model).mean(EXAMPLES, 2)
    # Longest first, two at a time: the longest answers of these pairs have 8, 3 and 1 tokens.
    assert [shape[:2] for shape in seen] == [(2, 8), (2, 3), (1, 1)]


def test_batches_hold_each_example_once() -> None:
    batches = list(batches_by_length(EXAMPLES, 2))
    lengths = [len(example.ids) for batch in batches for example in batch]
    assert lengths == sorted(lengths, reverse=True)
    assert sorted(example.ids for batch in batches for example in batch) == sorted(e.ids for e in EXAMPLES)


# -- tokens --------------------------------------------------------------------------------------------


def word_tokenizer(folder: Path, template: str) -> BankTokenizer:
    """A token a word; what it adds is by the template, such as `<s> $A </s>`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    plain.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=plain, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    fast.save_pretrained(folder)
    return BankTokenizer(folder)


@pytest.mark.parametrize(
    ("template", "begin"), [("$A", ()), ("<s> $A", (1,)), ("$A </s>", ()), ("<s> $A </s>", (1,))]
)
def test_a_prompt_begins_as_it_does_when_it_is_answered_and_an_answer_ends_once(
    tmp_path: Path, template: str, begin: tuple[int, ...]
) -> None:
    tokenizer = word_tokenizer(tmp_path, template)
    found = encode_labelled(tokenizer, ["a a ", "b "], ["b", ""], 2, "x")
    assert found == (LabelledExample((*begin, 3, 3, 4, 2), 2), LabelledExample((*begin, 4, 2), 1))


@pytest.mark.parametrize(("written", "ids"), [
    ("b </s>", (4, 2)),
    ("b </s> <s>", (4, 2)),  # what comes after the end, where it is no text
    ("</s> b", (2, 4, 2)),
    ("a </s> b </s>", (3, 2, 4, 2)),
])  # fmt: skip
def test_an_answer_that_is_ended_already_is_not_ended_again(
    tmp_path: Path, written: str, ids: tuple[int, ...]
) -> None:
    """As chat templates end answers: the model stops at the end, and what would follow is no part of the loss."""
    tokenizer = word_tokenizer(tmp_path, "<s> $A")
    assert encode_labelled(tokenizer, ["a"], [f" {written}"], 2, "x") == (
        LabelledExample((1, 3, *ids), len(ids)),
    )


def test_where_one_text_has_other_tokens_the_answer_is_apart(tmp_path: Path) -> None:
    """`a` and `b` are words, `ab` none: what the model reads as the prompt is what it will be given."""
    tokenizer = word_tokenizer(tmp_path, "<s> $A")
    assert tokenizer.encode(["ab"]) == [[1, 0]]
    assert encode_labelled(tokenizer, ["a"], ["b"], 2, "x") == (LabelledExample((1, 3, 4, 2), 2),)


def test_the_tokens_of_the_example_bank_are_those_of_the_whole_text() -> None:
    tokenizer = BankTokenizer(BASE)
    texts = [("records for Oslo:", " filed"), ("two lists\n", "a b"), ("x", " y")]
    found = encode_labelled(tokenizer, [one for one, _ in texts], [other for _, other in texts], 2, "x")
    for (text, output), example in zip(texts, found, strict=True):
        (prompt,), (whole,) = tokenizer.encode([text]), tokenizer.encode([text + output])
        assert list(example.ids[: -example.answer]) == prompt
        assert tokenizer.decode(example.ids[:-1]) == tokenizer.decode(whole)


def test_an_input_without_tokens_is_refused(tmp_path: Path) -> None:
    tokenizer = word_tokenizer(tmp_path, "$A")
    with pytest.raises(DatasetError, match="mine: example 2 has an input without tokens"):
        encode_labelled(tokenizer, ["a", ""], ["b", "b"], 2, "mine")


@pytest.mark.torch
@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, ROWS, 2], f"token id {ROWS}, the base model has {ROWS} rows of token ids; .*--model"),
        ([1] * 65, "the longest example has 65 tokens with its answer, the base model has 64 positions"),
    ],
)
def test_what_the_model_cannot_read_is_refused(ids: Sequence[int], message: str) -> None:
    model = model_of("LlamaConfig")
    check_labelled(model, EXAMPLES, "mine")
    with pytest.raises(DatasetError, match=f"mine: .*{message}"):
        check_labelled(model, [*EXAMPLES, LabelledExample(tuple(ids), 1)], "mine")
