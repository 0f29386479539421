"""Runs a folder of inputs from the field, each with a `run.sh`, and prints a line a case.

    python -m tests.support.field_cases FOLDER [NAME ...]

A case is bad if it hangs, if it ends in a traceback or an internal error of ours, or if code that came with it ran (it
then leaves a file `ran`). Whether what else is said is right, its README tells; `--whole` prints all of it.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 600
# Lines that tell what came of it, among those that `set -x` and the commands print.
TOLD = re.compile(
    r"error|refused|note:|warning|wrote|added|Killed|exit [1-9]|lora_B|mismatch|equal", re.IGNORECASE
)

# A frame of a traceback that is in this project; a case's own scripts may have tracebacks of their own.
OURS = re.compile(rf'File "{re.escape(str(ROOT))}/(bankdb|compute|cli)/')


def run_case(case: Path, out: Path) -> tuple[str, float, str]:
    """Return the verdict, the seconds that it took, and all that was printed."""
    binaries = Path(sys.executable).parent
    environment = os.environ | {
        "BANK": str(binaries / "bank"),
        "PYTHON": sys.executable,
        "BASE": str(ROOT / "examples" / "tiny_bank" / "base"),
        "OUT": str(out),
        "PYTHONPATH": str(ROOT),
    }
    begin = time.monotonic()
    process = subprocess.Popen(
        ["bash", str(case / "run.sh")],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=SECONDS)
        verdict = "ok"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        printed, _ = process.communicate()
        verdict = "HANGS"
    text = printed.decode("utf-8", "replace")
    if "internal error" in text or OURS.search(text):
        verdict = "BREAKS"
    if (out / "ran").exists():
        verdict = "RUNS FOREIGN CODE"
    return verdict, time.monotonic() - begin, text


def main(arguments: list[str]) -> int:
    """Run the cases; the exit status is 1 if one is bad."""
    whole = "--whole" in arguments
    folder, *names = (item for item in arguments if item != "--whole")
    bad = 0
    for case in sorted(path.parent for path in Path(folder).glob("*/run.sh")):
        if names and case.name not in names:
            continue
        with tempfile.TemporaryDirectory(prefix="case-") as out:
            verdict, seconds, text = run_case(case.resolve(), Path(out))
        bad += verdict != "ok"
        told = [line.strip() for line in text.splitlines() if TOLD.search(line) and not line.startswith("+")]
        print(f"{case.name:28} {verdict} {seconds:4.0f} s  {' | '.join(told)[:400]}", flush=True)
        if whole:
            print(text)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
