"""Templates of strangers: the text that transformers makes, and limits for those that mean harm or never end."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from bankdb.errors import DatasetError, TokenizerError
from bankdb.templates import sandbox
from bankdb.templates.sandbox import ChatTemplate, Renderer

TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
CHATML = (
    "{%- for m in messages %}\n"
    "    {{- '<|im_start|>' + m.role + '\\n' + (m.content | trim) + '<|im_end|>\\n' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TEMPLATES = [
    CHATML,
    "{{ bos_token }}{% for m in messages %}\n  {% if loop.first and m.role == 'system' %}{% continue %}{% endif %}\n"
    "[{{ m['role'] | upper }}] {{ m['content'] | tojson }}{{ eos_token }}\n{% endfor %}\n",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ ns.n }}:{{ m.content }}"
    "{% if ns.n == 3 %}{% break %}{% endif %}{% endfor %}{% if tools %}T{% endif %}",
    "{% macro say(m) %}<{{ m.role }}>{{ m.content }}</>{% endmacro %}{% for m in messages %}{{ say(m) }}{% endfor %}",
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}{{ messages | length }}{% endfor %}",
]
turn = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system"]), "content": st.text(max_size=9)}
)


def rendered(template: str, turns: list[dict[str, str]], prompt: bool) -> str:
    """What transformers makes of it."""
    found, _ = render_jinja_template(
        [turns], chat_template=template, add_generation_prompt=prompt, bos_token="<s>", eos_token="</s>"
    )
    return str(found[0])


@pytest.mark.parametrize("template", TEMPLATES)
def test_texts_are_those_of_transformers(template: str) -> None:
    renderer = Renderer(ChatTemplate("x", template, (("bos_token", "<s>"), ("eos_token", "</s>"))))

    @settings(max_examples=25, deadline=None)
    @given(st.lists(turn, min_size=1, max_size=5), st.integers(0, 4))
    def check(turns: list[dict[str, str]], before: int) -> None:
        before = min(before, len(turns) - 1)
        first, whole = renderer.render(turns, before)
        assert whole == rendered(template, turns, False)
        assert first == rendered(template, turns[:before], True)

    check()
    renderer.close()


def test_the_token_that_the_tokenizer_adds_is_not_written_twice() -> None:
    text = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    template = ChatTemplate("x", text, (("bos_token", "<s>"),))
    for begins, expected in (("<s>", ("hi", "hiyo")), (None, ("<s>hi", "<s>hiyo"))):
        renderer = Renderer(ChatTemplate("x", template.text, template.tokens, begins))
        assert renderer.render(TURNS, 1) == expected
        renderer.close()


def test_the_date_is_one_day_for_ever() -> None:
    renderer = Renderer(ChatTemplate("x", "{{ strftime_now('%d %b %Y') }}"))
    assert not renderer.dated
    assert renderer.render(TURNS, 1) == ("26 Jul 2024",) * 2
    assert renderer.dated
    renderer.close()


# What each tries, and what is said of it; `MARK` is a file that none may make.
HARM = [
    ("{{ ''.__class__.__mro__ }}", DatasetError, "unsafe"),
    ("{{ cycler.__init__.__globals__.os.system('touch MARK') }}", DatasetError, "unsafe"),
    ("{{ messages.append(1) }}", DatasetError, "unsafe|safe"),
    ("{% include '/etc/passwd' %}", DatasetError, "no loader"),
    ("{{ raise_exception('roles must alternate') }}", DatasetError, "roles must alternate"),
    ("{{ 'a' * 10 ** 10 }}", DatasetError, "MemoryError"),
    ("{{ 'a' * (2 * 10 ** 7) }}", DatasetError, "more than 1,0.* characters"),
    ("{{ messages[9].content.x }}", DatasetError, "UndefinedError"),
    ("{% for", TokenizerError, "is none"),
    ("{{ unknown_function( }}", TokenizerError, "is none"),
    ("x" * (2 << 20), TokenizerError, "2,097,152 characters"),
]


@pytest.mark.parametrize(("text", "kind", "message"), HARM, ids=range(len(HARM)))
def test_harm_is_an_error(tmp_path: Path, text: str, kind: type[Exception], message: str) -> None:
    mark = tmp_path / "mark"
    renderer = Renderer(ChatTemplate("x", text.replace("MARK", str(mark))))
    with pytest.raises(kind, match=message) as caught:
        renderer.render(TURNS, 1)
    assert "\n" not in str(caught.value)
    assert not mark.exists()
    if kind is DatasetError:  # whoever comes next is served
        with pytest.raises(DatasetError):
            renderer.render(TURNS, 1)
    renderer.close()


LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def test_a_template_without_end_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The kernel ends it, by the limit that the process set itself; a second instead of five, to wait less."""
    text = (Path(sandbox.__file__).with_name("child.py")).read_text()
    child = tmp_path / "child.py"
    child.write_text(
        text.replace("SECONDS, EXPANSION, LEAST_TEXT = 5,", "SECONDS, EXPANSION, LEAST_TEXT = 1,")
    )
    assert child.read_text() != text
    monkeypatch.setattr(sandbox, "_CHILD", child)
    renderer = Renderer(ChatTemplate("x", LOOP))
    with pytest.raises(TokenizerError, match="takes more than 5 s or 512 MiB"):
        renderer.render(TURNS, 1)
    assert renderer._process is None


def test_a_process_that_does_not_answer_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    child = tmp_path / "child.py"
    child.write_text("import time\nprint('{\"ready\": true}', flush=True)\ntime.sleep(600)\n")
    monkeypatch.setattr(sandbox, "_CHILD", child)
    monkeypatch.setattr(sandbox, "_WALL_SECONDS", 2)
    renderer, begun = Renderer(ChatTemplate("x", CHATML)), time.monotonic()
    with pytest.raises(TokenizerError, match="takes more than"):
        renderer.render(TURNS, 1)
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize("answer", ["", "no json", '{"ready": true}\\n' + "x" * 100])
def test_nonsense_of_the_process_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: str
) -> None:
    child = tmp_path / "child.py"
    child.write_text(f"print('{answer}', flush=True)\n")
    monkeypatch.setattr(sandbox, "_CHILD", child)
    with pytest.raises(TokenizerError):
        Renderer(ChatTemplate("x", CHATML)).render(TURNS, 1)


def test_nothing_of_this_process_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its environment nor its paths decide what is run."""
    started: list[Any] = []
    popen = subprocess.Popen

    def watched(command: list[str], **options: Any) -> Any:
        started.append(command)
        return popen(command, **options)

    monkeypatch.setattr(subprocess, "Popen", watched)
    monkeypatch.setenv("PYTHONPATH", os.devnull)
    renderer = Renderer(ChatTemplate("x", CHATML))
    renderer.render(TURNS, 1)
    renderer.render(TURNS, 1)
    renderer.close()
    (command,) = started
    assert command[1:3] == ["-I", "-S"]
