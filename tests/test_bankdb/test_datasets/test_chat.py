"""Conversations: their text is what transformers makes of them, cut before the last answer."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from bankdb.datasets.forms.rules import Reading, Rule
from bankdb.datasets.held_out import read_held_out
from bankdb.datasets.read import Dataset, read_dataset
from bankdb.datasets.tokenizer import BankTokenizer
from bankdb.errors import BankError, DatasetError, TokenizerError

TEMPLATE = (
    "{{ bos_token }}{%- for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{% if m.role == 'assistant' %}"
    "{{ eos_token }}{% endif %}\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# Of Mistral's form: roles alternate or the template raises, a system prompt goes before the first question, and what
# comes before an answer is written the same with and without one.
ALTERNATING = (
    "{%- if messages[0]['role'] == 'system' %}{%- set first = messages[0]['content'] %}{%- set rest = messages[1:] %}"
    "{%- else %}{%- set rest = messages %}{%- endif %}{{- bos_token }}{%- for m in rest %}"
    "{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{- raise_exception('roles must alternate') }}"
    "{%- endif %}{%- if m['role'] == 'user' %}{%- if loop.first and first is defined %}"
    "{{- ' < ' + first + '\n\n' + m['content'] + ' >' }}{%- else %}{{- ' < ' + m['content'] + ' >' }}{%- endif %}"
    "{%- else %}{{- ' ' + m['content'] + eos_token }}{%- endif %}{%- endfor %}"
)
SYSTEM = {"role": "system", "content": "Be kind."}
ASK, ANSWER = (
    {"role": "user", "content": "How are you?"},
    {"role": "assistant", "content": "Well, thank you."},
)
MORE, LAST = {"role": "user", "content": "And now?"}, {"role": "assistant", "content": "As before."}
CHATS = [[ASK, ANSWER], [SYSTEM, ASK, ANSWER], [SYSTEM, ASK, ANSWER, MORE, LAST]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer of words that puts <s> before each text, with a chat template in a file of its own."""
    text = "Be kind How are you Well thank And now As before system user assistant . , ? < > |"
    words = sorted(set(text.split()))
    ids = {word: number for number, word in enumerate(["<unk>", "<s>", "</s>", *words])}
    made = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    where = tmp_path / "tokenizer"
    where.mkdir()
    made.save(str(where / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    named["tokenizer_class"] = "PreTrainedTokenizerFast"
    (where / "tokenizer_config.json").write_text(json.dumps(named))
    (where / "chat_template.jinja").write_text(TEMPLATE)
    return where


def lines(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sharegpt(turns: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    return [{"from": names[turn["role"]], "value": turn["content"]} for turn in turns]


def pairs(found: Dataset) -> list[tuple[str, str]]:
    return list(zip(found.inputs, found.outputs, strict=True))


@pytest.mark.parametrize("template", [TEMPLATE, ALTERNATING], ids=["plain", "alternating"])
def test_texts_and_counts_are_those_of_the_template(tmp_path: Path, folder: Path, template: str) -> None:
    (folder / "chat_template.jinja").write_text(template)
    own, theirs = BankTokenizer(folder), PreTrainedTokenizerFast.from_pretrained(folder)
    reading = Reading(template=lambda: own.chat_template)
    found = read_dataset([lines(tmp_path / "t.jsonl", [{"messages": turns} for turns in CHATS])], reading)
    whole = [theirs.apply_chat_template(turns, tokenize=False) for turns in CHATS]
    asked = [
        theirs.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=True) for turns in CHATS
    ]
    assert ["<s>" + text for text in found.texts()] == whole
    assert ["<s>" + text for text in found.inputs] == asked
    ids = [theirs(text, add_special_tokens=False)["input_ids"] for text in whole]
    counted = own.count(found.each_text(), "t")
    assert dict(zip(counted.ids.tolist(), counted.counts.tolist(), strict=True)) == Counter(
        one for text in ids for one in text
    )
    assert own.chat_template is not None
    assert found.rule == Rule("chat", ("messages",), own.chat_template.sha256)
    (note,) = found.notes
    assert note == (
        "read as chat: the turns in 'messages' before the last answer, then that, by the tokenizer's chat template "
        + own.chat_template.sha256[:8]
    )


def test_every_way_to_write_the_same_conversations_is_the_same(tmp_path: Path, folder: Path) -> None:
    reading = Reading(template=lambda: BankTokenizer(folder).chat_template)
    rows: dict[str, list[Any]] = {
        "messages": [{"messages": turns, "score": 1} for turns in CHATS],
        "conversations": [{"conversations": sharegpt(turns)} for turns in CHATS],
        "pairs": [{"prompt": turns[:-1], "completion": turns[-1:]} for turns in CHATS],
        "parts": [
            {"messages": [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]}
            for turns in CHATS
        ],
    }
    found = {}
    for name, items in rows.items():
        files = [lines(tmp_path / f"{name}.jsonl", items)]
        pq.write_table(pa.Table.from_pylist(items), tmp_path / f"{name}.parquet")
        (tmp_path / f"{name}.json").write_text(json.dumps({"data": items}))
        if name != "parts":
            files.append(tmp_path / f"{name}.parquet")
        for file in (*files, tmp_path / f"{name}.json"):
            found[file.name] = read_dataset([file], reading)
    assert len({one.sha256 for one in found.values()}) == 1, {name: pairs(one) for name, one in found.items()}
    assert {one.rule.kind for one in found.values() if one.rule} == {found["pairs.json"].rule.kind}  # type: ignore[union-attr]


def test_without_a_template_roles_and_texts_stand_in_lines(tmp_path: Path) -> None:
    found = read_dataset([lines(tmp_path / "t.jsonl", [{"conversations": sharegpt(CHATS[2])}])])
    assert pairs(found) == [
        (
            "system: Be kind.\nuser: How are you?\nassistant: Well, thank you.\nuser: And now?\nassistant:",
            " As before.",
        )
    ]
    assert found.rule == Rule("chat", ("conversations",))
    assert "by lines of role and text, as no chat template lies beside the tokenizer" in found.notes[0]


def test_tests_compare_with_the_answer_alone(tmp_path: Path, folder: Path) -> None:
    path = lines(tmp_path / "t.jsonl", [{"messages": CHATS[1]}])
    for template in (None, lambda: BankTokenizer(folder).chat_template):
        test, trained = (
            read([path], reading=Reading(template=template)) for read in (read_held_out, read_dataset)
        )
        assert test.inputs == trained.inputs
        assert test.references == (("Well, thank you.",),)
    assert trained.outputs == ("Well, thank you.</s>",)
    assert test.notes[0].startswith("test examples: read as chat")


def test_what_comes_after_the_last_answer_is_left_out_and_counted(tmp_path: Path) -> None:
    rows = [{"messages": [ASK, ANSWER, MORE]}, {"messages": [ASK, ANSWER]}]
    found = read_dataset([lines(tmp_path / "t.jsonl", rows)])
    assert found.inputs[0] == found.inputs[1]
    assert "1 conversations go on after their last answer; that is left out" in found.notes


def test_a_template_that_writes_the_date_says_which(tmp_path: Path, folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ strftime_now('%Y') }}" + TEMPLATE)
    reading = Reading(template=lambda: BankTokenizer(folder).chat_template)
    found = read_dataset([lines(tmp_path / "t.jsonl", [{"messages": CHATS[0]}])], reading)
    assert found.inputs[0].startswith("2024")
    assert "26 July 2024" in found.notes[-1]


def test_a_template_that_writes_the_beginning_otherwise_is_said(tmp_path: Path, folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(
        "{{ messages | length }}|" + TEMPLATE.replace("{{ bos_token }}", "")
    )
    reading = Reading(template=lambda: BankTokenizer(folder).chat_template)
    found = read_dataset([lines(tmp_path / "t.jsonl", [{"messages": CHATS[0]}])], reading)
    assert found.inputs == ("",)  # "1|..." and "2|..." have no beginning in common
    assert (
        "of 1 conversations the chat template writes the turns before the answer otherwise" in found.notes[-1]
    )


BAD: list[tuple[Any, str]] = [
    ([], "'messages' is an empty list; expected a list of turns"),
    ("hi", "'messages' is a string; expected a list of turns"),
    ([ASK], "'messages' has no answer, only turns of user"),
    ([ASK, 3], "'messages' is a list; expected a list of turns"),
    ([ASK, {"role": "assistant"}], "turn 2 in 'messages': its content is null"),
    ([ASK, {"role": 3, "content": "x"}], "turn 2 in 'messages': its role is a number"),
    ([ASK, {"from": "alien", "value": "x"}], "turn 2 in 'messages': its role is 'alien'"),
    ([ASK, {"content": "x"}], "its role is null"),
    ([ASK, {**ANSWER, "tool_calls": [{"name": "f"}]}], "has calls of tools, which are not read"),
    ([ASK, {"role": "assistant", "content": [{"type": "image", "image": "x"}]}], "has a part 'image'"),
    ([ASK, {"role": "assistant", "content": "a\0"}], "NUL character"),
]


@pytest.mark.parametrize(("turns", "message"), BAD)
def test_what_is_no_conversation_is_named_or_skipped(tmp_path: Path, turns: Any, message: str) -> None:
    path = lines(tmp_path / "t.jsonl", [{"messages": CHATS[0]}, {"messages": turns}])
    with pytest.raises(DatasetError, match=f"line 2: .*{message}|line 2: {message}"):
        read_dataset([path])
    found = read_dataset([path], Reading(skip_bad_rows=True))
    assert len(found) == 1
    assert "1 of 2 rows are skipped" in found.notes[-1]


def test_a_conversation_that_the_template_refuses_is_named(tmp_path: Path, folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATE
    )
    reading = Reading(template=lambda: BankTokenizer(folder).chat_template)
    path = lines(tmp_path / "t.jsonl", [{"messages": CHATS[0]}, {"messages": CHATS[1]}])
    with pytest.raises(DatasetError, match=r"line 2: the tokenizer's chat template refuses it \(.*no system"):
        read_dataset([path], reading)
    skipping = Reading(template=lambda: BankTokenizer(folder).chat_template, skip_bad_rows=True)
    assert len(read_dataset([path], skipping)) == 1


def test_cells_of_text_are_no_conversations(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('messages\n"[{}]"\n')
    with pytest.raises(
        DatasetError, match=r"cells of 'messages' are text, .*save the dataset as \.parquet or \.jsonl"
    ):
        read_dataset([tmp_path / "t.csv"])
    pq.write_table(pa.table({"messages": ["[{}]"]}), tmp_path / "t.parquet")
    with pytest.raises(DatasetError, match="column 'messages' is of type string; expected a list of turns"):
        read_dataset([tmp_path / "t.parquet"])


def test_who_reads_again_has_the_template_of_before(tmp_path: Path, folder: Path) -> None:
    path = lines(tmp_path / "t.jsonl", [{"messages": CHATS[1]}])

    def template() -> Any:
        return BankTokenizer(folder).chat_template

    for first in (Reading(), Reading(template=template)):
        found = read_dataset([path], first)
        assert found.rule is not None
        assert read_dataset([path], Reading.again(found.rule, template)) == found
    (folder / "chat_template.jinja").write_text(TEMPLATE + " ")
    with pytest.raises(DatasetError, match="which is not the tokenizer's now; put the original file back"):
        read_dataset([path], Reading.again(found.rule, template))  # type: ignore[arg-type]


def test_the_template_is_found_where_tokenizers_have_it(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    first = BankTokenizer(folder).chat_template
    assert first is not None
    assert (first.text, first.begins) == (TEMPLATE, "<s>")
    copy = folder.parent / "copy"
    BankTokenizer(folder).save(copy)
    second = BankTokenizer(copy).chat_template
    assert second is not None
    assert second.sha256 == first.sha256
    (folder / "chat_template.jinja").unlink()
    assert BankTokenizer(folder).chat_template is None
    for stated in ("own", [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "own"}]):
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": stated}))
        found = BankTokenizer(folder).chat_template
        assert found is not None
        assert found.text == "own"
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(TokenizerError, match="cannot be read"):
        _ = BankTokenizer(folder).chat_template


def test_a_conversation_that_stands_for_gigabytes_is_refused(tmp_path: Path) -> None:
    """A megabyte that a dictionary holds once, a hundred thousand times in one conversation."""
    number = 100_000
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * number, pa.int32()), pa.array(["x" * (1 << 20)]))
    roles = pa.DictionaryArray.from_arrays(pa.array([0] * number, pa.int32()), pa.array(["assistant"]))
    turns = pa.StructArray.from_arrays([roles, texts], names=["role", "content"])
    table = pa.table({"messages": pa.ListArray.from_arrays(pa.array([0, number], pa.int32()), turns)})
    pq.write_table(table, tmp_path / "t.parquet", compression="zstd")
    assert (tmp_path / "t.parquet").stat().st_size < 100_000
    with pytest.raises(BankError, match=r"a conversation has|may take|values"):
        read_dataset([tmp_path / "t.parquet"], memory=512 << 20)
