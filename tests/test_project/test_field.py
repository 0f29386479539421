"""docs/field.md: each of its rows is written, ingested, and becomes what the page says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner, Result

from cli.main import cli
from tests.support.banks.malformed_adapters import BASE_MODEL, write_good_adapter
from tests.support.banks.small_bank import write_dataset, write_pairs, write_tokenizer
from tests.support.field_inputs import ADAPTERS, DATASETS

PAGE = Path(__file__).parents[2] / "docs" / "field.md"
TEMPLATE = (
    "{% for m in messages %}w1 {{ m.content }} w2 {% endfor %}{% if add_generation_prompt %}w1 {% endif %}"
)


class Row(NamedTuple):
    """A row of the page: which input, whether it is taken, with which options, and words that are said."""

    name: str
    taken: bool
    options: list[str]
    said: str


def page_rows() -> Iterator[Row]:
    for line in PAGE.read_text().splitlines():
        if not re.match(r"\| [a-z]", line):
            continue
        name, _, outcome, said = (cell.strip() for cell in line.strip("|").split(" | "))
        options = re.search(r"taken with `(.+)`", outcome)
        assert outcome in ("taken", "refused") or outcome.startswith("refused; taken with"), outcome
        yield Row(
            name,
            outcome == "taken",
            options.group(1).split() if options else [],
            re.sub(r"^(`+)(.*)\1$", r"\2", said),
        )


ROWS = list(page_rows())


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("field")
    tokenizer = write_tokenizer(folder / "tokenizer")
    (tokenizer / "chat_template.jinja").write_text(TEMPLATE)
    run("init", "--bank", folder / "bank", "--base-model", BASE_MODEL, "--tokenizer", tokenizer)
    run("ingest", "--bank", folder / "bank", write_pairs(folder / "pairs", 2))
    return folder / "bank"


def run(*arguments: str | Path, status: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == status, (result.output, result.exception)
    return result


def test_the_page_and_the_inputs_are_the_same() -> None:
    assert [row.name for row in ROWS] == [*DATASETS, *ADAPTERS]
    text = PAGE.read_text()
    assert f"{len(DATASETS)} forms of data and {len(ADAPTERS)} of adapters" in text


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_each_becomes_what_the_page_says(bank: Path, tmp_path: Path, row: Row) -> None:
    pairs, place = tmp_path / "pairs", len(ROWS) + ROWS.index(row)
    data, adapter = (pairs / kind / row.name for kind in ("datasets", "adapters"))
    if row.name in DATASETS:
        data.mkdir(parents=True)
        DATASETS[row.name](data)
        write_good_adapter(adapter, seed=place)
    else:
        write_dataset(data, place)
        adapter.parent.mkdir()
        ADAPTERS[row.name](adapter)
    result = run("ingest", "--bank", bank, pairs, status=int(not row.taken))
    about = [line for line in result.output.splitlines() if not line.startswith(("find ", "ingest:"))]
    assert any(row.said in line for line in about), about
    assert (f"refused {row.name}: " in result.output) == (not row.taken)
    if not row.said:
        assert not [line for line in about if line.startswith(f"note: {row.name}")], about
    if row.options:
        run("ingest", "--bank", bank, pairs, *row.options)
    shown = CliRunner().invoke(cli, ["show", "--bank", str(bank), row.name])
    assert (shown.exit_code == 0) == (row.taken or bool(row.options))
