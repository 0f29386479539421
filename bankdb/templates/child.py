"""The process that renders a stranger's chat template: Jinja's sandbox, and limits of the kernel around it.

It is run as a file by `bankdb.templates.sandbox`, and imports nothing of ours. A line of JSON in is a line of JSON out.
"""

from __future__ import annotations

import datetime
import json
import math
import resource
import sys
from typing import Any

# Of one conversation: seconds of processor time, and characters that its text may have for each of the request.
SECONDS, EXPANSION, LEAST_TEXT = 5, 64, 1 << 20
MEMORY = 512 << 20
# What a template that writes the date is given, always: the same rows are the same text on any day.
DAY = datetime.datetime(2024, 7, 26)


class _Dates:
    """Notes whether the template asked for the date."""

    asked = False

    def now(self, form: str) -> str:
        self.asked = True
        return DAY.strftime(form)


def _environment(dates: _Dates) -> Any:
    """Return what chat templates are written for: blocks on lines of their own leave none, loops can be left."""
    from jinja2 import nodes
    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """Mark, for trainers, which part of the text is an answer; the text is the same."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

        def _body(self, caller: Any) -> Any:
            return caller()

    def raise_exception(message: object) -> None:
        raise TemplateError(str(message))

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    made.filters["tojson"] = tojson
    made.globals |= {"raise_exception": raise_exception, "strftime_now": dates.now}
    return made


def _limit(kind: int, wanted: int) -> None:
    """Lower a limit; one that is lower already stays."""
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _begin_turn() -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    _limit(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime) + SECONDS)


def _answer(template: Any, tokens: dict[str, str], line: str) -> dict[str, Any]:
    asked = json.loads(line)
    turns, before = asked["turns"], asked["before"]
    given = {**tokens, "tools": None, "documents": None}
    whole = template.render(messages=turns, add_generation_prompt=False, **given)
    first = template.render(messages=turns[:before], add_generation_prompt=True, **given)
    most = LEAST_TEXT + EXPANSION * len(line)
    if len(whole) + len(first) > most:
        return {"error": f"it makes more than {most:,} characters of a conversation of {len(line):,}"}
    return {"before": first, "whole": whole}


def _write(found: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Compile the template of the first line, and render the conversation of each that follows."""
    for kind, most in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
        _limit(kind, most)
    sys.path += json.loads(sys.argv[1])
    _begin_turn()
    dates = _Dates()
    first = json.loads(sys.stdin.readline())
    try:
        template = _environment(dates).from_string(first["template"])
    except Exception as error:
        _write({"error": f"{type(error).__name__}: {error}"[:300]})
        return
    _write({"ready": True})
    for line in sys.stdin:
        _begin_turn()
        try:
            found = _answer(template, first["tokens"], line)
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"[:300]}
        _write({**found, "dated": dates.asked})


if __name__ == "__main__":
    main()
