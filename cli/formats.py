"""Options of commands that write an adapter: in which files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bankdb.errors import ParameterError
from cli.display import tell
from cli.options import together

if TYPE_CHECKING:
    from bankdb.bank import AdapterBank
    from bankdb.gguf.export import GgufExport

format_options = together(
    click.option(
        "--format",
        "file_format",
        type=click.Choice(["peft", "gguf", "both"]),
        default="peft",
        show_default=True,
        help="What is written: PEFT's two files, adapter.gguf for llama.cpp with a Modelfile for Ollama, or both. gguf "
        "needs the extra gguf, and the base model's config.json in the bank, or --base-gguf.",
    ),
    click.option(
        "--base-gguf",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="The base model's GGUF: heads are read from it, and names and shapes of the adapter held against it.",
    ),
)


def gguf_of(bank: AdapterBank, other: Mapping[str, Any], model: str | None = None) -> GgufExport | None:
    """Return how to write for llama.cpp, if that was asked for; raise what would end it before any work is done.

    Parameters
    ----------
    other
        What `format_options` gave a command; what else is among it is left alone.
    model
        A folder with the base model's config.json, where the bank has kept none.
    """
    if other["file_format"] == "peft":
        return None
    if other["file_format"] == "gguf" and other.get("test") is not None:
        raise ParameterError(
            "--test: answers come from PEFT's files, of which --format gguf writes none; use --format both"
        )
    found = bank.gguf(other["base_gguf"], model=model, alone=other["file_format"] == "gguf")
    found.check(bank.layout)
    return found


def what_loads(file_format: str) -> str:
    """Say what loads the files that were written."""
    peft, gguf = "PEFT and vLLM", "llama.cpp and Ollama"
    return {"peft": f"which {peft} load", "gguf": f"which {gguf} load"}.get(
        file_format, f"which {peft}, {gguf} load"
    )


def tell_gguf(gguf: GgufExport | None) -> None:
    """Say in one line what a GGUF was made by, if there is one."""
    if gguf is not None:
        base = gguf.base
        order = "in llama.cpp's order" if base.architecture.neighbours else "as they are"
        tell(f"GGUF of architecture {base.architecture.name}, by {base.source}: rows of q and k {order}")
