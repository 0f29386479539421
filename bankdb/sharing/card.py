"""The card of a shared bank: what it is, of whom, under which licences, and how to take it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from bankdb.peft.layout import AdapterLayout
from bankdb.sharing.form import CATALOGUE, About, SharedAdapter
from bankdb.sharing.licences import HUB_IDENTIFIER, UNKNOWN, class_of

_LISTED = 30


def bank_card(
    title: str,
    pull: str,
    about: About,
    adapters: Sequence[SharedAdapter],
    left_out: Mapping[str, Sequence[str]],
) -> str:
    """Write the README.md of a shared bank, with the front matter of the hub's dataset cards.

    Parameters
    ----------
    title
        Its name.
    pull
        What `bank pull` is given to take it.
    left_out
        Names of adapters of the bank that are not here, by reason.
    """
    layout = AdapterLayout.from_json(about.layout)
    facts = {
        "Base model": about.base_model,
        "Revision of the base model": about.base_model_revision,
        "Adapters": f"{len(adapters):,}",
        "Parameters of an adapter": f"{about.parameters:,}",
        "Rank": layout.rank,
        "Modules": ", ".join(layout.target_modules),
        "Tokenizer": f"{about.tokenizer_name}, {about.vocabulary:,} ids",
        "Groups of datasets": len({one.group for one in adapters if one.group}) or None,
    }
    sections = (
        _front_matter(title, adapters),
        f"# {_plain(title)}\n",
        "A bank of LoRA adapters, each with the token counts of the dataset that it was trained on, as "
        "[lora-bank](https://arxiv.org/abs/2507.01806) predicts adapters for new datasets from.\n\n"
        + "".join(f"- {key}: {_plain(value)}\n" for key, value in facts.items() if value is not None),
        _how(pull),
        _licences(adapters, left_out),
        _names(adapters),
    )
    return "\n".join(sections)


def _front_matter(title: str, adapters: Sequence[SharedAdapter]) -> str:
    from huggingface_hub import DatasetCardData

    stated = {(one.licence or "").lower() for one in adapters}
    known = sorted(
        name for name in stated if class_of(name) is not None and HUB_IDENTIFIER.fullmatch(name) is not None
    )
    licences = [*known, *(["other"] if len(known) < len(stated) else [])]
    data = DatasetCardData(
        pretty_name=title,
        license=licences[0] if len(licences) == 1 else licences,
        tags=["lora", "peft", "adapters", "lora-bank"],
        configs=[{"config_name": "catalogue", "data_files": CATALOGUE}],
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _how(pull: str) -> str:
    return f"""## Use

```sh
bank pull {pull} --bank my-bank
bank predict my-data.jsonl --bank my-bank --out my-adapter
```

Each folder under `adapters/` is an adapter that PEFT loads by itself. `sha256sum -c SHA256SUMS` checks all files.

No text of the datasets is here. What is here of each is how often each token occurs in it, and the SHA-256 of its
content: who has the dataset can tell that it is the same, and counts tell which words it has.
"""


def _licences(adapters: Sequence[SharedAdapter], left_out: Mapping[str, Sequence[str]]) -> str:
    counts = Counter(one.licence or UNKNOWN for one in adapters)
    rows = ["| Licence, as the sources state it | Adapters |", "|---|---|"]
    rows += [f"| {_plain(name)} | {number} |" for name, number in sorted(counts.items(), key=_by_number)]
    gone = "".join(f"\nNot here, {reason}: {len(names)}.\n" for reason, names in left_out.items())
    return (
        "## Licences\n\nEach adapter has its own, in `catalogue.jsonl`.\n\n" + "\n".join(rows) + f"\n{gone}"
    )


def _by_number(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


def _names(adapters: Sequence[SharedAdapter]) -> str:
    rows = ["| Adapter | Group | Examples | Tokens | Licence |", "|---|---|---|---|---|"]
    for one in adapters[:_LISTED]:
        cells = (one.name, one.group or "", one.examples, one.tokens, one.licence or UNKNOWN)
        rows.append(f"| {' | '.join(_plain(cell) for cell in cells)} |")
    rest = len(adapters) - _LISTED
    more = f"\nand {rest} more, all in `catalogue.jsonl`.\n" if rest > 0 else ""
    return "## Adapters\n\n" + "\n".join(rows) + "\n" + more


def _plain(value: object) -> str:
    """Make any value one line of Markdown text that can stand in a table."""
    text = " ".join(str(value).split())
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", text)
