"""Options that say how rows of datasets are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from cli.options import together

column_options = together(
    click.option("--input-column", help="Column with the input text; recognised if neither is given."),
    click.option("--output-column", help="Column with the output(s); recognised if neither is given."),
    click.option("--text-column", help="Read this one column alone, as the whole text."),
    click.option(
        "--skip-bad-rows",
        is_flag=True,
        help="Skip rows that are no examples, and say how many; else an error.",
    ),
)


def rows_of(other: Mapping[str, Any]) -> dict[str, Any]:
    """Return how rows of datasets are read, as every verb that reads some takes it."""
    return {name: other[name] for name in ("input_column", "output_column", "text_column", "skip_bad_rows")}
