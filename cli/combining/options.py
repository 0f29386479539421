"""In which space sources are combined, and by which merge method."""

from __future__ import annotations

import click

from cli.options import number, together
from compute.merge_methods.method import DENSITY, LINEAR, MAJORITY_SIGNS, METHODS, WEIGHTS


def _rank(ctx: click.Context, param: click.Parameter, value: str | None) -> int | str | None:
    """Return the number, or `full`; anything else is wrong use."""
    if value is None or value == "full":
        return value
    if not value.isdecimal() or int(value) < 1:
        raise click.BadParameter(f"expected a whole number of at least 1, or full, found {value!r}")
    return int(value)


space_options = together(
    click.option(
        "--space",
        type=click.Choice(["factors", "delta"]),
        default="factors",
        show_default=True,
        help="What is averaged: the factors A and B apart, as in the paper, or their products, cut to a rank.",
    ),
    click.option(
        "--rank",
        callback=_rank,
        metavar="R|full",
        help="With --space delta: rank of the result, or 'full' for the exact sum; the bank's if not given.",
    ),
)
merge_option = click.option(
    "--merge",
    type=click.Choice(METHODS),
    default=LINEAR,
    show_default=True,
    help="How sources are combined by their coefficients: the weighted sum; TIES (the largest values, of the sign "
    "that is elected); DARE (values dropped at random, the rest made larger), summed or by TIES; or the sum of the "
    "largest values.",
)
merge_options = together(
    merge_option,
    click.option(
        "--density",
        type=click.FloatRange(0, 1, min_open=True),
        callback=number,
        help=f"Of --merge: share of the values of each tensor that is kept; {DENSITY} if not given.",
    ),
    click.option(
        "--majority-sign",
        type=click.Choice(MAJORITY_SIGNS),
        help="Of ties and dare-ties: what elects a sign, the total of the values or the frequency of their signs; the "
        "total if not given.",
    ),
    click.option(
        "--merge-weights",
        type=click.Choice(WEIGHTS),
        help="Of --merge: 'convex' takes coefficients as they are, and means as of weights; 'peft' takes them as the "
        "weights of PEFT's add_weighted_adapter. 'convex' if not given.",
    ),
    click.option(
        "--merge-seed",
        type=click.IntRange(0, 2**63 - 1),
        help="Of dare-linear and dare-ties; 0 if not given.",
    ),
)
MERGING = ("merge", "density", "majority_sign", "merge_weights", "merge_seed")
"""Their parameters."""
