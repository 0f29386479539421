"""The `bank` command: its group, and how errors end it."""

from __future__ import annotations

import errno
import gc
import importlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import IO, Any

import click

from bankdb.errors import BankError, ParameterError, one_line, printable
from cli.help_sections import HelpContext


class _Failure(click.ClickException):
    """One line on standard error, and exit status 1."""

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message."""
        click.echo(f"bank: error: {printable(self.message)}", file=file, err=file is None)


class _WrongUse(_Failure):
    """The same, with exit status 2."""

    exit_code = 2


class _Interrupted(_Failure):
    """The same, with the exit status that shells give to what SIGINT ended."""

    exit_code = 128 + signal.SIGINT

    def __init__(self) -> None:
        super().__init__("interrupted; what was done is kept, run the same command again to go on")

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message, over the `^C` that a terminal shows."""
        start = "\r" if sys.stderr.isatty() else ""
        click.echo(f"{start}bank: {printable(self.message)}", file=file, err=file is None)


# Which module of `cli.commands` has each command.
_PLACES = {
    **dict.fromkeys(("init", "alias", "ingest", "list", "show", "verify", "group", "remove"), "bank"),
    **dict.fromkeys(("distances", "coefficients"), "matrices"),
    **dict.fromkeys(("backup", "restore"), "keeping.backup"),
    **dict.fromkeys(("push", "pull"), "sharing.banks"),
    **{
        name: name
        for name in ("predict", "export", "finetune", "evaluate", "generate", "report", "plan", "clean")
    },
}


class _Commands(MutableMapping[str, click.Command]):
    """The commands by name; a module is imported when one of its commands is asked for."""

    def __init__(self) -> None:
        self._places = dict(_PLACES)
        self._loaded: dict[str, click.Command] = {}

    def __getitem__(self, name: str) -> click.Command:
        if name not in self._loaded and name in self._places:
            module = importlib.import_module(f"cli.commands.{self._places[name]}")
            self._loaded |= {command.name: command for command in module.COMMANDS}
        return self._loaded[name]

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        if name not in self:
            raise KeyError(name)
        self._places.pop(name, None)
        self._loaded.pop(name, None)

    def __contains__(self, name: object) -> bool:
        return name in self._places or name in self._loaded

    def __iter__(self) -> Iterator[str]:
        return iter({**self._places, **self._loaded})

    def __len__(self) -> int:
        return len({**self._places, **self._loaded})


class BankGroup(click.Group):
    """Turns every error into one line and an exit status, unless a traceback was asked for."""

    context_class = HelpContext

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            error.message = printable(error.message, keep="\n")  # type: ignore[misc]
            raise
        except click.Abort as error:
            if isinstance(error.__context__, KeyboardInterrupt):  # where an answer was waited for
                raise _Interrupted from error
            raise
        except KeyboardInterrupt as error:
            if _debugging(ctx):
                traceback.print_exc()
            raise _Interrupted from error
        except click.exceptions.Exit:
            raise
        except Exception as error:
            if _debugging(ctx):
                raise
            raise _failure(error) from error


def _debugging(ctx: click.Context) -> bool:
    return bool(ctx.params.get("debug") or os.environ.get("BANK_DEBUG"))


def _failure(error: Exception) -> Exception:
    failure = _shown_failure(error)
    if (logs := sys.modules.get("cli.logs.json_lines")) is not None:
        logs.log_failure(str(failure))
    return failure


def _shown_failure(error: Exception) -> Exception:
    if isinstance(error, BankError):
        message = " ".join(str(error).split())
        return _WrongUse(message) if isinstance(error, ParameterError) else _Failure(message)
    if isinstance(error, OSError):
        if error.errno == errno.EPIPE:
            return error  # click ends quietly when the reader of a pipe has gone
        advice = {
            errno.ENOSPC: "free some space",
            errno.EROFS: "it is read-only",
            errno.EACCES: "check permissions",
            errno.EBADF: "it is closed",
        }
        hint = advice.get(error.errno or 0, "check the path and the disk")
        return _Failure(f"{error.filename or 'disk'}: {error.strerror or error}; {hint}")
    return _Failure(
        f"internal error ({type(error).__name__}: {one_line(error)}); run it again as `bank --debug ...` and report it"
    )


@click.group(
    cls=BankGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""
\b
A first run:
  bank init --base-model HuggingFaceTB/SmolLM2-135M-Instruct \\
      --tokenizer ./smollm2
  bank ingest ./lots-of-loras
  bank predict my-data.jsonl --out my-adapter
""",
)
@click.version_option(package_name="lora-bank")
@click.option("--debug", is_flag=True, help="Show a traceback when something fails.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="Log from this level on, as lines of JSON; to standard error without --log-file.",
)
@click.option(
    "--log-file",
    type=click.Path(path_type=Path),
    help="Log at the end of this file; from level info if no other is given.",
)
@click.pass_context
def cli(ctx: click.Context, debug: bool, log_level: str | None, log_file: Path | None) -> None:
    """Make LoRA adapters for new datasets from a bank of trained ones, without a GPU.

    Exit status: 0 all done, 1 something failed, 2 wrong use, 130 interrupted by Ctrl-C.
    """
    if log_level is not None or log_file is not None:
        from cli.logs.json_lines import logging_to

        ctx.with_resource(logging_to(log_level, log_file))


cli.commands = _Commands()


def main() -> None:
    """Run the command line."""
    # Modules make many objects and hardly any garbage, for which they are searched too often by default.
    gc.set_threshold(50_000, 20, 50)
    _open_streams()
    try:
        cli(prog_name="bank")
    except KeyboardInterrupt:  # before a command begins, or when it has ended
        _leave_interrupts()
        interrupted = _Interrupted()
        interrupted.show()
        sys.exit(interrupted.exit_code)
    except OSError as error:  # of what is printed before a command begins, such as its help
        failure = _failure(error)
        if os.environ.get("BANK_DEBUG") or not isinstance(failure, _Failure):
            raise
        failure.show()
        sys.exit(failure.exit_code)
    finally:
        _leave_interrupts()


def _leave_interrupts() -> None:
    """Let an interrupt end the process as it is: nothing is left to do that a traceback could tell of."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class _Closed(io.TextIOBase):
    """In place of a standard output that is closed."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        """Refuse."""
        raise OSError(errno.EBADF, os.strerror(errno.EBADF), "standard output")


def _open_streams() -> None:
    """Have the three standard streams, and have them take any text.

    One that is closed (`2>&-`) would give its number to the next file that is opened, which might be the database.
    What cannot be encoded, such as in an ASCII terminal, is escaped. Messages of a closed standard error are lost;
    what a closed standard output should get is an error.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            descriptor = os.open(os.devnull, os.O_WRONLY if name == "stderr" else os.O_RDONLY)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            # Not closed: it lasts as long as the process.
            files = {"stdin": "r", "stderr": "w"}
            stream = open(number, files[name], closefd=False) if name in files else _Closed()  # noqa: SIM115
            setattr(sys, name, stream)
        if name != "stdin" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    main()
