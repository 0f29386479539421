"""`bank export`: a stored adapter, or one that a run predicts, as files that other programs load."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.commands.sharing.adapters import push_options, push_written, repository_of
from cli.completion import complete_adapters
from cli.display import shown_progress, tell
from cli.formats import format_options, gguf_of, tell_gguf, what_loads
from cli.option_rules import CheckedCommand
from cli.options import bank_option, dtype_option, memory_option, opened, overwrite_option

if TYPE_CHECKING:
    from bankdb.bank import AdapterBank
    from bankdb.gguf.export import GgufExport
    from bankdb.sharing.adapters import Repository


@click.command(
    cls=CheckedCommand,
    epilog="\b\nExamples:\n"
    "  bank export task1391 --out ./task1391                 as it was ingested\n"
    "  bank export task1391 --prediction 3 --out ./predicted as run 3 predicts it\n"
    "  bank export task1391 --out ./task1391 --format gguf   for llama.cpp, Ollama\n"
    "  bank export task1391 --out ./merged --merge --model ./smollm2\n"
    "  bank export --adapter ./my-adapter --out ./merged --merge --model ./smollm2\n"
    "  bank export --adapter ./my-adapter --push-to ada/my-adapter",
)
@bank_option
@click.argument("name", required=False, shell_complete=complete_adapters)
@click.option(
    "--adapter",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="With --merge, in place of NAME: an adapter's folder, whoever made it; no bank is read. With --push-to one "
    "that was made here.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder to write; needed unless the adapter is pushed alone.",
)
@click.option(
    "--prediction",
    "run",
    type=click.IntRange(1),
    metavar="RUN",
    help="Write what a run of bank predict --all predicts for it; made now, in one read of the adapters combined.",
)
@format_options
@click.option(
    "--merge",
    is_flag=True,
    help="Write the base model with the adapter merged into its weights, for transformers; needs the extra torch.",
)
@click.option(
    "--model",
    help="With --merge: folder or hub name of the base model; the bank's, or what --adapter states, if not given.",
)
@dtype_option
@memory_option
@push_options
@overwrite_option
def export(bank_path: Path, name: str | None, adapter: Path | None, **other: Any) -> None:
    """Write a stored adapter as the PEFT folder it came from, bit for bit; or with --prediction a predicted one.

    Where a wrapper left segments in the tensors' names, which PEFT would not find, they are written without these; one
    that was brought to the bank's layout is written as it is there.
    """
    if (name is None) == (adapter is None):
        raise click.UsageError(
            "give NAME, of an adapter of the bank, or --adapter FOLDER with --merge or --push-to"
        )
    if other["out"] is None and other["push_to"] is None:
        raise click.UsageError("--out FOLDER is needed, where it is written")
    to = repository_of(other)
    if name is None:
        assert adapter is not None
        if to is None:
            _merge_folder(adapter, other)
        else:
            push_written(to, adapter, other, kept=False)
        return
    if other["out"] is None:
        with tempfile.TemporaryDirectory(prefix="bank-export-") as folder:
            _export(bank_path, name, Path(folder) / name, other, to)
        return
    _export(bank_path, name, other["out"], other, to)


def _export(bank_path: Path, name: str, out: Path, other: dict[str, Any], to: Repository | None) -> None:
    from bankdb.sharing.adapters import stored_record

    with opened(bank_path) as bank:
        gguf = gguf_of(bank, other)
        write = _written(bank, name, other, gguf)
        if other["merge"]:
            _merge(bank, name, write, other)
            return
        folder = write(out)
        _tell_left_out(bank, name, other)
        stored = None
        if other["run"] is None and to is not None:
            record = bank.catalog.adapter(name)
            rule = bank.origins.text_rules([record.row]).get(record.row, "")
            stored = stored_record(record, bank.record.base_model, rule)
    if other["out"] is not None:
        _tell_written(folder, other)
    tell_gguf(gguf)
    push_written(to, folder, other, stored, kept=other["out"] is not None)


def _tell_written(folder: Path, other: dict[str, Any]) -> None:
    loads = (
        ""
        if other["file_format"] == "peft" and other["run"] is None
        else f", {what_loads(other['file_format'])}"
    )
    tell(f"wrote {folder}{os.sep}{loads}")


def _written(
    bank: AdapterBank, name: str, other: dict[str, Any], gguf: GgufExport | None
) -> Callable[[Path], Path]:
    """Return what writes the adapter's folder."""
    overwrite = other["overwrite"]
    if other["run"] is None:
        bank.catalog.adapter(name)
        return lambda out: bank.export(name, out, overwrite=overwrite, gguf=gguf)

    import compute

    return lambda out: compute.export_prediction(
        bank,
        other["run"],
        name,
        out,
        dtype=other["dtype"],
        overwrite=overwrite,
        gguf=gguf,
        memory=_memory(other),
        progress=shown_progress(),
    )


def _memory(other: dict[str, Any]) -> int | None:
    from compute.cluster.machine import parse_memory

    return None if other["memory"] is None else parse_memory(other["memory"])


def _tell_left_out(bank: AdapterBank, name: str, other: dict[str, Any]) -> None:
    from bankdb.peft.header import stored_as
    from bankdb.peft.weights import left_out_of_names

    if other["run"] is not None:
        return
    header = bank.catalog.blob(bank.catalog.adapter(name).header_sha256)
    if converted := stored_as(header):
        tell(f"note: written as the bank has it, {converted}")
    if other["file_format"] != "gguf" and (left_out := left_out_of_names(header)):
        tell(f"note: tensor names are not those of the source, but without {', '.join(left_out)}")


def _merge(bank: AdapterBank, name: str, write: Callable[[Path], Path], other: dict[str, Any]) -> None:
    from compute.merging.merge import merge

    model = other["model"] or bank.record.base_model
    dtype = merge(write, model, other["out"], name=name, memory=_memory(other), progress=shown_progress())
    _tell_merged(other["out"], dtype)


def _merge_folder(adapter: Path, other: dict[str, Any]) -> None:
    from compute.merging.merge import merge_folder

    dtype = merge_folder(
        adapter, other["model"], other["out"], memory=_memory(other), progress=shown_progress()
    )
    _tell_merged(other["out"], dtype)


def _tell_merged(out: Path, dtype: str) -> None:
    tell(f"wrote {out}{os.sep}, a whole model in {dtype} which transformers loads")
    tell("its README.md has the one command of llama.cpp that makes a GGUF of it")


COMMANDS = (export,)
