"""Write the reference of every command from the commands themselves: `python -m cli.document`."""

from __future__ import annotations

from collections.abc import Iterator

import click

from cli.main import cli


def reference() -> str:
    """Return docs/commands.md: every command with its arguments, options and examples, as Markdown."""
    parts = [
        "# Commands",
        "Written by `python -m cli.document > docs/commands.md`; a test holds it to the program.",
        _paragraphs(cli.help or ""),
        "`bank --debug COMMAND ...` shows a traceback when something fails.",
    ]
    for name in sorted(cli.commands):
        parts += _section(name, cli.commands[name])
    return "\n\n".join(parts) + "\n"


def _section(name: str, command: click.Command) -> Iterator[str]:
    arguments = [item for item in command.params if isinstance(item, click.Argument)]
    usage = " ".join(["bank", name, *(_argument(item) for item in arguments), "[OPTIONS]"])
    yield f"## bank {name}"
    yield f"`{usage}`"
    yield _paragraphs(command.help or "")
    yield "\n".join(_option(item) for item in command.params if isinstance(item, click.Option))
    yield f"```sh\n{_examples(command.epilog or '')}\n```"


def _argument(item: click.Argument) -> str:
    shown = item.metavar or (item.name or "").upper()
    return shown if item.required else f"[{shown}]"


def _option(item: click.Option) -> str:
    kind = ""
    if isinstance(item.type, click.Choice):
        kind = " " + "\\|".join(item.type.choices)
    elif not item.is_flag:
        kind = f" {item.metavar or item.type.name.upper()}"
    facts = [item.help or ""]
    if item.required:
        facts.append("Required.")
    elif item.show_default and not item.is_flag:
        default = item.default if isinstance(item.default, list) else [item.default]
        facts.append(f"Default: {', '.join(map(str, default))}.")
    if isinstance(item.envvar, str):
        facts.append(f"Environment variable: {item.envvar}.")
    return f"- `{item.opts[0]}{kind}`".replace("\\|", "|") + f": {' '.join(facts)}"


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n") if part.strip())


def _examples(epilog: str) -> str:
    lines = (line.strip() for line in epilog.replace("\b", "").splitlines())
    return "\n".join(line for line in lines if line.startswith("bank "))


if __name__ == "__main__":
    print(reference(), end="")
