"""When an option is read; and when those of merge methods are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from compute.merge_methods.method import LINEAR

Given = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Rule:
    """When some options of a command are read.

    Attributes
    ----------
    options
        Their parameters' names.
    read
        Whether they are, from the values of all parameters.
    goes_with
        What they go with, as the message says it.
    """

    options: tuple[str, ...]
    read: Callable[[Given], bool]
    goes_with: str


MERGING_RULES = (
    Rule(
        ("density", "merge_weights"),
        lambda given: given["merge"] != LINEAR,
        "--merge ties, dare-linear, dare-ties or magnitude-prune",
    ),
    Rule(
        ("majority_sign",),
        lambda given: given["merge"].endswith("ties"),
        "--merge ties, or --merge dare-ties",
    ),
    Rule(
        ("merge_seed",),
        lambda given: given["merge"].startswith("dare-"),
        "--merge dare-linear, or --merge dare-ties",
    ),
)
"""Of options that every method but the weighted sum reads, or some of them."""
