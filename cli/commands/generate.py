"""`bank generate`: use an adapter; an answer is on the screen as its tokens come."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.commands.assess import generating_options
from cli.display import json_line, shown_progress, tell, tell_piece, write_text
from cli.option_rules import CheckedCommand

if TYPE_CHECKING:
    from bankdb.progress import Progress
    from compute.generation.text import Sampling, TextGenerator

_INTERRUPTED = 130
_MOST_BYTES = 16 << 20


@click.command(
    cls=CheckedCommand,
    epilog="\b\nExamples:\n"
    '  bank generate --adapter my-adapter --prompt "Good or bad? It broke. Answer:"\n'
    "  bank generate --adapter my-adapter --input my-test.jsonl > answers.jsonl\n"
    "  bank generate --adapter my-adapter --model ./smollm2 < question.txt",
)
@click.option(
    "--adapter",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Adapter to answer with, whoever made it; the base model alone if not given.",
)
@click.option("--prompt", metavar="TEXT", help="What to answer.")
@click.option(
    "--input",
    "input_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Answer each example of a data file, a line of JSON each.",
)
@click.option(
    "--input-column", default="input", show_default=True, help="Column of --input with the prompts."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="File for the answers to --input; - is the screen, the default.",
)
@click.option(
    "--model", help="Folder or hub name of the base model; the one that the adapter states if not given."
)
@click.option(
    "--max-tokens",
    type=click.IntRange(1, 1_000_000),
    default=256,
    show_default=True,
    help="Limit on the tokens of an answer.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(0, 100),
    default=0.0,
    show_default=True,
    help="Draw tokens at this temperature; 0 takes the likeliest.",
)
@click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Of what is drawn."
)
@click.option(
    "--chat",
    is_flag=True,
    help="Put each prompt into the base model's chat template; the bank's tasks are plain text.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Of the base model, and of the weights after the adapter is merged.",
)
@generating_options
def generate(prompt: str | None, input_file: Path | None, out: Path | None, **other: Any) -> None:
    """Answer a prompt with an adapter, and show the answer as it comes; needs the extra torch.

    Without --prompt and --input prompts are read from standard input: all of it is one, but for one line break at its
    end; or on a terminal each line is. A prompt is taken as it stands, and each is answered by itself. It should end as
    the inputs of the task do: a line break more or less changes the answer, and a shell's $(...) takes them off.
    """
    if prompt is not None and input_file is not None:
        raise click.UsageError("give --prompt or --input, or neither to read standard input: not both")
    try:
        if input_file is not None:
            _answer_file(input_file, out, other)
        else:
            _answer_prompts(prompt, other)
    except KeyboardInterrupt:
        tell_piece("\n")
        tell("stopped", err=True)
        raise click.exceptions.Exit(_INTERRUPTED) from None


@contextlib.contextmanager
def _loaded(other: dict[str, Any], progress: Progress) -> Iterator[tuple[TextGenerator, Sampling]]:
    """Load the model and the adapter, and use as many cores as were asked for."""
    from compute.generation.generate import threads_of_torch
    from compute.generation.text import Sampling, TextGenerator

    sampling = Sampling(other["temperature"], other["seed"])
    names = ("chat", "device", "dtype", "batch_size")
    options = {name: other[name] for name in names}
    generator = TextGenerator(other["adapter"], other["model"], **options, progress=progress)
    with threads_of_torch(other["threads"]) if other["threads"] else contextlib.nullcontext():
        yield generator, sampling


def _answer_file(file: Path, out: Path | None, other: dict[str, Any]) -> None:
    from bankdb.datasets.held_out import read_prompts

    prompts = read_prompts(file, other["input_column"])
    to_screen = out is None or str(out) == "-"
    progress = shown_progress()
    lines = []
    with _loaded(other, progress) as (generator, sampling):
        progress.begin("generate, prompts", len(prompts))
        answers = generator.answers(prompts, other["max_tokens"], sampling, progress.advance)
        for prompt, answer in zip(prompts, answers, strict=True):
            line = json_line({"input": prompt, "output": answer}, to_file=not to_screen)
            if to_screen:
                tell(line)
            else:
                lines.append(line + "\n")
        progress.end()
    if out is not None and not to_screen:
        write_text(out, "".join(lines))
        tell(f"wrote {out}", err=True)


def _answer_prompts(prompt: str | None, other: dict[str, Any]) -> None:
    interactive = prompt is None and _at_a_terminal()
    if prompt is None and not interactive:
        prompt = _standard_input()
    if prompt == "":
        raise click.UsageError("expected a prompt, found an empty one; give --prompt TEXT or --input FILE")
    progress = shown_progress()
    with _loaded(other, progress) as (generator, sampling):
        for text in [prompt] if prompt is not None else _typed():
            _stream(generator, text, other["max_tokens"], sampling)


def _stream(generator: TextGenerator, prompt: str, most: int, sampling: Sampling) -> None:
    for piece in generator.stream(prompt, most, sampling):
        tell_piece(piece)
    tell_piece("\n")


def _at_a_terminal() -> bool:
    return sys.stdin.isatty()


def _standard_input() -> str:
    """Return all of standard input as one prompt, the line break at its end left out."""
    from bankdb.errors import DatasetError

    raw = sys.stdin.buffer.read(_MOST_BYTES + 1)
    if len(raw) > _MOST_BYTES:
        raise DatasetError(
            f"standard input: expected a prompt of at most {_MOST_BYTES >> 20} MiB, found more; use --input FILE"
        )
    try:
        return raw.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise DatasetError("standard input: expected UTF-8 text, found something else; convert it") from error


def _typed() -> Iterator[str]:
    """Yield each line that a person types, until the end of input."""
    tell("a prompt a line; Ctrl-D ends", err=True)
    while True:
        try:
            line = input("> ")
        except EOFError:
            tell_piece("\n")
            return
        if line:
            yield line


COMMANDS = (generate,)
