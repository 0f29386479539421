"""Runs commands as a user who may read a bank and not write it.

Run as a script, as root, with a JSON object: `warm`, arguments of commands on a bank of its own, with which
everything is imported; then root is given up, and `commands` are run. Prints what each gave, as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
NOBODY = 65534


def run_as_reader(
    warm: list[list[str]], commands: list[list[str]], temporary: Path
) -> list[tuple[int, str, str]]:
    """Return the exit status, the output and the messages of each command."""
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps({"warm": warm, "commands": commands}),
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "TMPDIR": str(temporary), "NUMBA_CACHE_DIR": str(temporary)},
        timeout=300,
    )
    return [(status, out, err) for status, out, err in json.loads(done.stdout.splitlines()[-1])]


def _main(asked: dict[str, Any]) -> None:
    from click.testing import CliRunner

    from cli.main import cli

    def run(arguments: list[str]) -> tuple[int, str, str]:
        result = CliRunner().invoke(cli, arguments)
        return result.exit_code, result.stdout, result.stderr

    for arguments in asked["warm"]:
        status, _, message = run(arguments)
        assert status == 0, message
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    print(json.dumps([run(arguments) for arguments in asked["commands"]]))


if __name__ == "__main__":
    _main(json.load(sys.stdin))
