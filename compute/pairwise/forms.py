"""Whether the datasets that are compared were read in one form; where not, that is said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from bankdb.bank import AdapterBank
from bankdb.datasets.forms.rules import Rule
from bankdb.records import AdapterRecord

_MOST = 4


def unlike_forms(
    bank: AdapterBank, adapters: Sequence[AdapterRecord], new: Rule | None = None, place: str = ""
) -> list[str]:
    """Say in which forms datasets were read that are compared, a line, or none where it is one form.

    Parameters
    ----------
    new
        Of a dataset that is not in the bank, which messages call `place`; without it the bank's own are compared.

    Raises
    ------
    BankFormatError
        A rule that is stored is not known to this version.
    """
    stored = bank.origins.text_rules([record.row for record in adapters])
    kinds: Counter[str] = Counter()
    for text, number in Counter(stored.values()).items():  # a few texts, of however many datasets
        kinds[Rule.of_text(text).kind] += number
    if new is not None:
        others = Counter({kind: number for kind, number in kinds.items() if kind != new.kind})
        if not others:
            return []
        return [
            f"{place} is read as {new.kind}, and of {len(adapters)} datasets of the bank {_listed(others)}: their "
            "distances also tell the forms apart"
        ]
    if len(kinds) < 2:
        return []
    return [f"of the bank's datasets {_listed(kinds)} were read: their distances also tell the forms apart"]


def _listed(kinds: Counter[str]) -> str:
    parts = [f"{number} as {kind}" for kind, number in kinds.most_common(_MOST)]
    more = len(kinds) - len(parts)
    return ", ".join(parts) + (f" and others in {more} more forms" if more > 0 else "")
