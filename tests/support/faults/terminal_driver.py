"""A server that forks `bank` commands which have a terminal of their own, and stop at a moment for somebody to type.

The moment is the n-th file that the command opens, or the n-th call of a function: there the command writes `here` into
a file and goes on when it is interrupted. Counted is what its main thread does, which is the one that Ctrl-C reaches.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import pty
import select
import signal
import sys
import termios
import threading
import time
from pathlib import Path
from typing import Any

from tests.support.faults.fault_driver import PRELOADED, run_command
from tests.support.faults.fork_server import ForkServer, serve

CTRL_C = b"\x03"


class Terminal:
    """A command in a terminal, as the one who types sees it."""

    def __init__(self, server: TerminalServer, words: list[str], moment: str, folder: Path) -> None:
        self._master, slave = pty.openpty()
        self._server = server
        self._mark = folder / f"moment-{time.monotonic_ns()}"
        request = {
            "start": [str(word) for word in words],
            "log": os.devnull,
            "terminal": os.ttyname(slave),
            "moment": moment,
            "mark": str(self._mark),
        }
        self.pid = int(server.ask(request))
        self._opened_elsewhere(slave)
        self.seen = b""

    def _opened_elsewhere(self, slave: int) -> None:
        """Keep the terminal until the command has opened it: a master without a slave reads as ended."""
        while not os.path.exists(f"{self._mark}.open"):
            time.sleep(0.002)
        os.close(slave)

    def interrupt(self) -> tuple[int, str, list[int]]:
        """Type Ctrl-C when the moment has come; return the exit status, what was printed, and processes that are left.

        A command may end before its moment.
        """
        typed = False
        end = time.monotonic() + 300
        while self._read():
            assert time.monotonic() < end, self.seen.decode(errors="replace")
            if not typed and self._mark.exists():
                os.write(self._master, CTRL_C)
                typed = True
        status = self._server.wait(self.pid)
        os.close(self._master)
        return status, self.seen.decode(errors="replace"), _of_session(self.pid)

    def _read(self) -> bool:
        """Read what is there; return whether the terminal is still open."""
        ready, _, _ = select.select([self._master], [], [], 0.01)
        if not ready:
            return True
        try:
            part = os.read(self._master, 1 << 16)
        except OSError:  # EIO: nobody has the terminal open any more
            return False
        self.seen += part
        return bool(part)


def _of_session(leader: int, seconds: float = 10) -> list[int]:
    """Processes that the leader of a session left, after some time to end."""
    end = time.monotonic() + seconds
    while True:
        left = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit() and folder.name != str(leader):
                try:
                    fields = (folder / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                if fields[3] == str(leader) and fields[0] != "Z":
                    left.append(int(folder.name))
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.05)


class TerminalServer(ForkServer):
    """The server's other end, for tests."""

    script = __file__


def _run(request: Any) -> int:
    """Be the command, the leader of a session whose terminal is the one that was made for it."""
    os.setsid()
    terminal = os.open(request["terminal"], os.O_RDWR)
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    for descriptor in (0, 1, 2):
        os.dup2(terminal, descriptor)
    if terminal > 2:
        os.close(terminal)
    Path(request["mark"] + ".open").touch()
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, closefd=False)  # noqa: SIM115
        for number, mode in ((0, "r"), (1, "w"), (2, "w"))
    )
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _arm(request["moment"], Path(request["mark"]))
    return run_command(request | {"at": {}})


def _arm(moment: str, mark: Path) -> None:
    what, _, number = moment.rpartition(" ")
    left = int(number)

    def come() -> None:
        nonlocal left
        if threading.current_thread() is not threading.main_thread():
            return
        left -= 1
        if left == 0:
            mark.touch()
            end = time.monotonic() + 60
            while time.monotonic() < end:
                time.sleep(0.005)

    if what == "open":
        sys.addaudithook(lambda event, _: come() if event == "open" else None)
        return
    module, _, path = what.partition(" ")
    # Workers start however little there is to do.
    importlib.import_module("compute.cluster.tasks").__dict__["worth_workers"] = lambda _slots: 0.0
    owner = importlib.import_module(module)
    *within, name = path.split(".")
    for part in within:
        owner = getattr(owner, part)
    function = getattr(owner, name)

    def armed(*arguments: Any, **options: Any) -> Any:
        come()
        return function(*arguments, **options)

    setattr(owner, name, armed)


if __name__ == "__main__":
    serve(PRELOADED, _run)
