"""Answers to a user's own prompts: streamed, many at once, drawn, and in a chat template."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bankdb.datasets.held_out import read_prompts
from bankdb.datasets.tokenizer import BankTokenizer
from bankdb.errors import DatasetError, ParameterError
from compute.generation.text import Sampling, TextGenerator, generate
from tests.support.banks.tiny_bank import BASE, TINY

ADAPTER = TINY / "bank" / "adapters" / "records_city"
PROMPTS = [json.loads(line)["input"] for line in (TINY / "bank/datasets/records_city/test.jsonl").open()][:6]


@pytest.fixture(scope="module")
def answering() -> TextGenerator:
    return TextGenerator(ADAPTER, BASE, device="cpu")


def of_transformers(prompt: str, most: int) -> str:
    """What transformers and PEFT answer to one prompt."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval(), ADAPTER
    )
    tokenizer = BankTokenizer(BASE)
    ids = torch.tensor(tokenizer.encode([prompt]))
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False
    )
    return tokenizer.decode(out[0, ids.shape[1] :].tolist())


@pytest.mark.torch
def test_a_stream_is_the_answer_in_pieces(answering: TextGenerator) -> None:
    answers = list(answering.answers(PROMPTS, 12))
    assert answers[:2] == [of_transformers(prompt, 12) for prompt in PROMPTS[:2]]
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        pieces = list(answering.stream(prompt, 12))
        assert "".join(pieces) == answer
        assert len(pieces) > 1
    assert len(list(answering.stream(PROMPTS[0], 1))) <= 1


@pytest.mark.torch
def test_the_first_piece_comes_before_the_last_token_is_made(
    answering: TextGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = answering._generator
    steps: list[int] = []
    forward = generator._forward
    monkeypatch.setattr(generator, "_forward", lambda *a: (steps.append(1), forward(*a))[1])
    pieces = answering.stream(PROMPTS[0], 12)
    next(pieces)
    after_first = len(steps)
    list(pieces)
    assert after_first < len(steps)


@pytest.mark.torch
def test_characters_of_several_tokens_are_not_cut(
    answering: TextGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder that shows half a character as U+FFFD, as byte-level ones do."""
    text = "é🙂x"
    raw = text.encode()
    monkeypatch.setattr(answering._tokenizer, "decode", lambda ids: bytes(ids).decode("utf-8", "replace"))
    monkeypatch.setattr(answering._generator, "tokens", lambda *a: iter(raw))
    assert list(answering.stream("a")) == ["é", "🙂", "x"]
    monkeypatch.setattr(answering._generator, "tokens", lambda *a: iter(raw[:3]))
    assert list(answering.stream("a")) == ["é", "\ufffd"]


@pytest.mark.torch
def test_drawing_is_seeded_and_cold_is_greedy(answering: TextGenerator) -> None:
    def drawn(temperature: float, seed: int) -> list[str]:
        return list(answering.answers(PROMPTS, 12, Sampling(temperature, seed)))

    assert drawn(1.5, 1) == drawn(1.5, 1)
    assert drawn(1.5, 1) != drawn(1.5, 2)
    assert drawn(1e-4, 3) == list(answering.answers(PROMPTS, 12))
    with pytest.raises(ParameterError, match="temperature"):
        Sampling(-1.0)


@pytest.mark.torch
def test_what_cannot_be_answered(answering: TextGenerator) -> None:
    long = " ".join(PROMPTS * 400)
    with pytest.raises(DatasetError, match="positions; shorten it"):
        next(answering.stream(long))
    with pytest.raises(ParameterError, match="max-tokens"):
        next(answering.stream("a", 0))
    with pytest.raises(ParameterError, match="no chat template; leave out --chat"):
        TextGenerator(ADAPTER, BASE, chat=True)
    with pytest.raises(ParameterError, match="pass --model"):
        TextGenerator()
    assert generate(PROMPTS[0], ADAPTER, BASE, most_tokens=12, device="cpu") == list(
        answering.answers(PROMPTS[:1], 12)
    )


@pytest.mark.torch
def test_a_chat_template_is_used_if_asked_for(tmp_path: Path) -> None:
    base = shutil.copytree(BASE, tmp_path / "base")
    template = "{{ bos_token }}{% for turn in messages %}Q: {{ turn['content'] }}\n{% endfor %}A:"
    (base / "chat_template.jinja").write_text(template)
    plain, chat = (TextGenerator(None, base, chat=chat, device="cpu") for chat in (False, True))
    assert list(chat.stream("hello", 6)) == list(plain.stream("Q: hello\nA:", 6))
    (base / "chat_template.jinja").write_text("{{ raise_exception('no') }}")
    with pytest.raises(Exception, match="its chat template fails on a prompt"):
        next(TextGenerator(None, base, chat=True, device="cpu").stream("hello", 6))


def test_prompts_alone_need_no_answers(tmp_path: Path) -> None:
    rows = [{"input": "a"}, {"input": "b", "output": 3}]
    lines = tmp_path / "x.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_prompts(lines) == ("a", "b")
    cells = tmp_path / "x.csv"
    cells.write_text("text,other\n['a'],1\nb,2\n")
    assert read_prompts(cells, "text") == ("['a']", "b")
    with pytest.raises(
        DatasetError, match="no column 'input'; the columns are 'text', 'other'; name the right"
    ):
        read_prompts(cells)
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"input": ["a", "b"], "n": [1, 2]}), tmp_path / "x.parquet")
    assert read_prompts(tmp_path / "x.parquet") == ("a", "b")
    for row, message in (
        ({"input": ""}, "is empty"),
        ({"input": None}, "null"),
        ({"input": "\ud800"}, "surrogate"),
    ):
        lines.write_text(json.dumps(row) + "\n")
        with pytest.raises(DatasetError, match=message):
            read_prompts(lines)
