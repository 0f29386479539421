"""Which dataset an adapter was trained on, by what its card and the names say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bankdb.errors import listed, printable

How = Literal["card", "number", "name", "given"]
# As in Mistral-7B-Instruct-v0.2-4b-r16-task1391 and task1391_winogrande_easy_answer_generation.
_TASK = re.compile(r"(?<![a-z])task[-_ ]?([0-9]{1,9})(?![0-9])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Match:
    """The dataset of an adapter, and by what it was found."""

    dataset: str
    how: How


@dataclass(frozen=True, slots=True)
class Datasets:
    """Datasets that adapters may be matched with: by the number of their task, and by their name.

    `by_number` has of each number all datasets that carry it; `where` is what they are, as messages say it.
    """

    where: str
    by_number: Mapping[int, tuple[str, ...]]
    by_name: Mapping[str, str]

    @classmethod
    def of(cls, where: str, named: Iterable[tuple[str, str]]) -> Datasets:
        """Return those of pairs of a name and a dataset, such as its repository."""
        by_number: dict[int, tuple[str, ...]] = {}
        by_name: dict[str, str] = {}
        for name, dataset in named:
            by_name.setdefault(name.casefold(), dataset)
            for number in task_numbers(name):
                by_number[number] = (*by_number.get(number, ()), dataset)
        return cls(where, by_number, by_name)


def task_numbers(name: str) -> tuple[int, ...]:
    """Return the numbers of tasks that a name carries: 1391 of `...-r16-task1391`, 20 of `task020_mctaco`."""
    return tuple(sorted({int(number) for number in _TASK.findall(name)}))


def match(name: str, stated: Sequence[str], datasets: Datasets) -> Match | str:
    """Return the dataset of an adapter, or why there is none.

    The card comes first, if it names one dataset; then the number of the task that both names carry; then the very
    same name. Where a card names several, one of these has to be the number's.

    Parameters
    ----------
    name
        Of the adapter.
    stated
        The datasets that its card names.
    datasets
        Those that may be meant.
    """
    if len(stated) == 1:
        return Match(stated[0], "card")
    numbers = task_numbers(name)
    if len(numbers) > 1:
        return f"its name carries {len(numbers)} task numbers, {listed([str(one) for one in numbers])}; {_NAME_IT}"
    found = datasets.by_number.get(numbers[0], ()) if numbers else ()
    if stated:
        found = tuple(one for one in found if one in stated)
        if len(found) != 1:
            shown = listed([printable(one)[:100] for one in stated])
            return f"its model card names {len(stated)} datasets, {shown}; {_NAME_IT}"
    if len(found) == 1:
        return Match(found[0], "number")
    if found:
        return f"{len(found)} datasets carry its task number {numbers[0]}: {listed(found)}; {_NAME_IT}"
    same = datasets.by_name.get(name.casefold())
    if same is not None:
        return Match(same, "name")
    what = f"its task number {numbers[0]} or its name" if numbers else "its name, which has no task number"
    return f"no dataset: its model card names none, and none of {datasets.where} has {what}; {_NAME_IT}"


_NAME_IT = "name the dataset: ADAPTER=DATASET after --hub, or in a manifest (.csv)"
