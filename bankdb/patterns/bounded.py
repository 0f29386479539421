"""Regular expressions that may take for ever, or all memory: evaluated in a process of its own, with limits on both.

Python's `re` cannot be interrupted, and others' files and users' options hold patterns that nobody has tried.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from typing import Literal

from bankdb.errors import one_line

_LONGEST_PATTERN = 65_536
_CPU_SECONDS, _WALL_SECONDS, _MEMORY = 2, 8, 512 * 2**20
_PROGRAM = f"""
import json, re, resource, sys
resource.setrlimit(resource.RLIMIT_CPU, ({_CPU_SECONDS}, {_CPU_SECONDS}))
resource.setrlimit(resource.RLIMIT_AS, ({_MEMORY}, {_MEMORY}))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
pattern, way, group, names = json.load(sys.stdin)
try:
    compiled = re.compile(pattern)
    tried = getattr(compiled, way)
    found = [tried(name) for name in names]
    value = (lambda m: m.group(1) or "") if group == 1 else (lambda m: m.groupdict().get(group, ""))
    answer = [match and value(match) for match in found] if group != 1 or compiled.groups else "no group"
except Exception as error:
    answer = f"{{type(error).__name__}}: {{error}}"[:200]
json.dump(answer, sys.stdout)
"""


@functools.lru_cache(maxsize=128)  # the adapters of a bank mostly share a pattern
def matches(
    pattern: str,
    way: Literal["match", "fullmatch", "search"],
    group: str | Literal[1],
    names: tuple[str, ...],
) -> list[str | None] | str:
    """Match a pattern with names.

    Parameters
    ----------
    group
        What of a match is returned: the group of that name, '' where the pattern has none; or the first group, which
        it has to have.

    Returns
    -------
    The group of each name, or None where it does not match; or, as text, what is wrong with the pattern.
    """
    if len(pattern) > _LONGEST_PATTERN:
        return f"is no regular expression of at most {_LONGEST_PATTERN} characters"
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _PROGRAM],
            input=json.dumps([pattern, way, group, names]),
            capture_output=True,
            text=True,
            timeout=_WALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"is a regular expression that took more than {_WALL_SECONDS} s"
    except OSError as error:
        return f"is a regular expression, for which no process could be started ({error.strerror})"
    if done.returncode != 0:
        return f"is a regular expression that took more than {_CPU_SECONDS} s or {_MEMORY >> 20} MiB"
    found: list[str | None] | str = json.loads(done.stdout)
    if found == "no group":
        return "has no parentheses; put them around the part that is the group"
    return f"is no regular expression: {one_line(found)}" if isinstance(found, str) else found
