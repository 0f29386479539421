"""Conversations as input and output: the turns before the last answer, and that answer.

By a chat template the text of both together is what trainers make of the whole conversation with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bankdb.datasets.forms.values import is_turns, kind_of, shown
from bankdb.errors import DatasetError, one_line
from bankdb.templates.sandbox import ChatTemplate, Renderer

# ShareGPT's names of roles, as chat templates call them.
_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bot", "model"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
    "system": "system",
}
_LONGEST_ROLE = 40
_READ = ("role", "from", "content", "value")
Turn = dict[str, Any]


class Chat:
    """Writes conversations as a template says, or as lines of role and text; `close` ends the template's process.

    Parameters
    ----------
    bare
        Whether outputs are the answers alone, to compare others with, rather than what the model is trained to write.

    Attributes
    ----------
    trailing, unlike
        How many conversations had turns after their last answer, which are left out; and of how many the text before
        the answer is not how the whole begins.
    """

    def __init__(self, template: ChatTemplate | None, bare: bool) -> None:
        self._renderer = None if template is None else Renderer(template)
        self._bare = bare
        self.trailing = self.unlike = 0

    @property
    def dated(self) -> bool:
        """Whether the template asked for the date."""
        return self._renderer is not None and self._renderer.dated

    def close(self) -> None:
        """End the template's process."""
        if self._renderer is not None:
            self._renderer.close()

    def of_turns(self, value: Any, column: str, place: object) -> tuple[str, str]:
        """Return input and output of a whole conversation.

        Raises
        ------
        DatasetError
            It is none, has no answer, or the template refuses it.
        """
        turns = turns_of(value, column, place)
        answers = [number for number, turn in enumerate(turns) if turn["role"] == "assistant"]
        if not answers:
            roles = ", ".join(dict.fromkeys(turn["role"] for turn in turns))
            raise DatasetError(
                f"{place}: {shown(column)} has no answer, only turns of {roles}; expected one of assistant or gpt"
            )
        self.trailing += answers[-1] + 1 < len(turns)
        return self._written(turns[: answers[-1] + 1], answers[-1], place)

    def of_pair(self, values: Sequence[Any], columns: Sequence[str], place: object) -> tuple[str, str]:
        """Return the same of turns in two columns, a prompt and its completion."""
        asked, answered = (turns_of(value, name, place) for value, name in zip(values, columns, strict=True))
        return self._written([*asked, *answered], len(asked), place)

    def _written(self, turns: Sequence[Turn], before: int, place: object) -> tuple[str, str]:
        answer = "\n".join(turn["content"] for turn in turns[before:])
        if self._renderer is None:
            lines = [f"{turn['role']}: {turn['content']}" for turn in turns[:before]]
            return "\n".join([*lines, "assistant:"]), answer if self._bare else f" {answer}"
        try:
            first, whole = self._renderer.render(turns, before)
        except DatasetError as error:
            raise DatasetError(f"{place}: {error}") from error
        if not self._bare and not whole.startswith(first):
            # As TRL does: what both have in common is the input.
            self.unlike += 1
            pairs = enumerate(zip(first, whole, strict=False))
            first = whole[: next((place for place, (one, other) in pairs if one != other), len(whole))]
        return first, answer if self._bare else whole[len(first) :]

    def notes(self) -> list[str]:
        """Say, when all was read, what is not as it may seem."""
        found = []
        if self.trailing:
            found.append(f"{self.trailing:,} conversations go on after their last answer; that is left out")
        if self.unlike:
            found.append(
                f"of {self.unlike:,} conversations the chat template writes the turns before the answer otherwise with "
                "the answer than without; the input is what both have in common"
            )
        if self.dated:
            found.append(
                "the tokenizer's chat template writes today's date; 26 July 2024 stands in its place, that the same "
                "rows are the same text tomorrow"
            )
        return found


def turns_of(value: Any, column: str, place: object) -> list[Turn]:
    """Return the turns of a conversation with their roles as chat templates call them.

    Raises
    ------
    DatasetError
        It is no list of turns with a known role and a text.
    """
    if not is_turns(value):
        found = "an empty list" if value == [] else kind_of(value)
        raise DatasetError(
            f"{place}: {shown(column)} is {found}; expected a list of turns, each with role and content, or from and "
            "value"
        )
    return [_turn(item, f"{place}: turn {number} in {shown(column)}") for number, item in enumerate(value, 1)]


def _turn(item: Mapping[str, Any], place: str) -> Turn:
    if item.get("tool_calls") or item.get("function_call"):
        raise DatasetError(f"{place}: has calls of tools, which are not read; leave this conversation out")
    content = item["content"] if item.get("content") is not None else item.get("value")
    if isinstance(content, list):
        content = _text_of_parts(content, place)
    if not isinstance(content, str):
        raise DatasetError(f"{place}: its content is {kind_of(content)}; expected a string")
    # Some templates read more of a turn, such as what a model thought.
    others = {key: value for key, value in item.items() if key not in _READ and _is_plain(value)}
    return {"role": _role(item, place), "content": content, **others}


def _role(item: Mapping[str, Any], place: str) -> str:
    role, stated = item.get("role"), item.get("from")
    name = stated if role is None else role
    found = _ROLES.get(name.lower()) if isinstance(name, str) else None
    if found is None and isinstance(role, str) and 0 < len(role) <= _LONGEST_ROLE:
        found = role  # a template may know it
    if found is None:
        what = one_line(repr(name), _LONGEST_ROLE) if isinstance(name, str) else kind_of(name)
        raise DatasetError(
            f"{place}: its role is {what}; expected user, assistant, system or tool, or ShareGPT's human and gpt"
        )
    return found


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def _text_of_parts(parts: Sequence[Any], place: str) -> str:
    texts = []
    for part in parts:
        text = part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else None
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, dict) else kind_of(part)
            raise DatasetError(f"{place}: has a part {one_line(repr(kind), 40)}; expected text alone")
        texts.append(text)
    return "".join(texts)
