"""Licences of adapters and datasets: which forbid that something made of them is passed on, and which is the strictest.

Classes from the freest to the strictest, as Creative Commons (creativecommons.org/share-your-work/cclicenses) and the
Open Source Initiative describe them. Identifiers are the hub's. This orders names; it is no legal advice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

UNKNOWN = "not known"
CLASSES: tuple[tuple[str, str], ...] = (
    ("public domain", r"cc0-1\.0|unlicense|pddl|wtfpl|0bsd"),
    (
        "permissive",
        r"mit|bsd.*|apache-2\.0|isc|zlib|bsl-1\.0|ncsa|postgresql|afl-3\.0|artistic-2\.0|ecl-2\.0|ms-pl|"
        r"cdla-permissive-.*",
    ),
    ("attribution", r"cc-by-\d\.\d|odc-by|etalab-2\.0"),
    (
        "share alike",
        r"cc-by-sa-.*|odbl|gfdl|gpl.*|agpl.*|lgpl.*|mpl-2\.0|epl-.*|eupl-.*|osl-3\.0|cdla-sharing-.*",
    ),
    (
        "restricted use",
        r".*openrail.*|llama.*|gemma|bigcode-.*|bigscience-.*|deepfloyd-.*|apple-a.*|h-research|intel-research|"
        r"open-mdw|c-uda",
    ),
    ("noncommercial", r"cc-by-nc-\d\.\d|.*non-?commercial.*|fair-noncommercial.*"),
    ("noncommercial, share alike", r"cc-by-nc-sa-.*"),
    (
        "forbids derivatives",
        r"cc-by-nd-.*|cc-by-nc-nd-.*|.*no-?derivatives?.*|.*proprietary.*|.*all-rights-reserved.*|.*confidential.*|"
        r".*no-?redistribution.*",
    ),
)
"""Name and pattern of each class; what none matches is not known."""
_FORBIDS = len(CLASSES) - 1
_SHARE_ALIKE = {3, 6}
_NAMELESS = {"", "other", "unknown", "none", "n/a", "not-known", "unlicensed"}
HUB_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def _stated(licence: str | None) -> list[str]:
    """Return the licences that a statement names: some datasets have several."""
    parts = [part.strip().lower() for part in re.split(r"[,;]", licence or "")]
    # As people write them too: `CC BY-NC 4.0`, `MIT License`.
    names = [re.sub(r"[\s_]+", "-", part).replace("-license", "").replace("-licence", "") for part in parts]
    return [name for name in names if name not in _NAMELESS]


def class_of(licence: str | None) -> int | None:
    """Return the number of its class in CLASSES, of several stated together the strictest; None where not known."""
    found = [_class(one) for one in _stated(licence)]
    known = [one for one in found if one is not None]
    # One that forbids forbids beside whatever else; else one that is not known makes all not known.
    if _FORBIDS in known:
        return _FORBIDS
    return max(known) if known and len(known) == len(found) else None


def _class(licence: str) -> int | None:
    # From the strictest on: one that is called noncommercial may begin as a freer one does.
    for number, (_, pattern) in reversed(list(enumerate(CLASSES))):
        if re.fullmatch(pattern, licence):
            return number
    return None


def forbids(licence: str | None) -> bool:
    """Whether a licence forbids that an adapter made under it is passed on."""
    return class_of(licence) == _FORBIDS


def is_stated(licence: str | None) -> bool:
    """Whether any licence is named; a name that is not known here is one too."""
    return bool(_stated(licence))


@dataclass(frozen=True, slots=True)
class Strictest:
    """The licence of what is made from several sources: the hub's identifier, and why it is that in a sentence."""

    identifier: str
    why: str


def strictest(licences: Iterable[str | None]) -> Strictest:
    """Return the strictest of the sources' licences; `other` where one does not cover all, or one is not known."""
    every = list(licences)
    unknown = sum(class_of(one) is None for one in every)
    names = sorted({name for one in every for name in _stated(one)})
    listed = ", ".join(names) or "none"
    if unknown or not every:
        return Strictest(
            "other",
            f"of {len(every)} sources {unknown} state no licence that is known; stated are: {listed}. Look at each "
            "before you use it",
        )
    ranks = {name: _class(name) for name in names}
    top = max(rank for rank in ranks.values() if rank is not None)
    strict = [name for name, rank in ranks.items() if rank == top]
    alike = [name for name, rank in ranks.items() if rank in _SHARE_ALIKE]
    if len(alike) > 1 or (alike and top not in _SHARE_ALIKE):
        return Strictest(
            "other",
            f"no single one of the sources' licences covers the others, which ask for their own: {listed}",
        )
    chosen = strict[-1]
    return Strictest(
        chosen if HUB_IDENTIFIER.fullmatch(chosen) else "other",
        f"the strictest of the sources' licences ({CLASSES[top][0]}), which are: {listed}",
    )
