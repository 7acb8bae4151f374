"""Run one program and measure it from outside: wall time, CPU time and the peak of its own memory."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

INTERVAL = 0.02  # seconds between two looks at the memory


@dataclass(frozen=True)
class Measured:
    """What a run took.

    Attributes:
        wall_seconds: From its start to its end.
        cpu_seconds: User and system time of all its threads and of the children it waited for.
        anonymous_bytes: Peak of the memory that belongs to no file, of the program and its children; pages of mapped
            files are not counted, the system can drop those. None where the system does not say (no ``/proc``).
    """

    wall_seconds: float
    cpu_seconds: float
    anonymous_bytes: int | None


def measure(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> Measured:
    """Run a program in ``folder`` to its end.

    Raises:
        RuntimeError: It failed; its last lines are in the message.
    """
    with tempfile.TemporaryFile() as said:
        began = time.perf_counter()
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=said, stderr=subprocess.STDOUT)
        watch = MemoryWatch(process.pid)
        watch.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)  # it is waited for already
        watch.end()
        if process.returncode:
            said.seek(0)
            words = said.read().decode(errors="replace")[-2000:]
            raise RuntimeError(f"{' '.join(command[:4])} … failed:\n{words}")
    return Measured(wall, usage.ru_utime + usage.ru_stime, watch.peak)


class MemoryWatch(threading.Thread):
    """Looks at the anonymous memory of a process and its children every 20 ms.

    Args:
        process: Number of the process.
    """

    def __init__(self, process: int) -> None:
        super().__init__(daemon=True)
        self.peak: int | None = None
        self._process = process
        self._ended = threading.Event()

    def run(self) -> None:
        """Look until told to end."""
        while True:
            found = [size for number in family_of(self._process) if (size := anonymous_bytes(number)) is not None]
            if found:
                self.peak = max(self.peak or 0, sum(found))
            if self._ended.wait(INTERVAL):
                return

    def end(self) -> None:
        """Stop looking."""
        self._ended.set()
        self.join()


def anonymous_bytes(process: int) -> int | None:
    """Anonymous memory of one process now; None when it is gone or the system does not say."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return None
    found = (line.split()[1] for line in lines if line.startswith("RssAnon:"))
    kibibytes = next(found, None)  # a process that has ended and is not yet waited for has no such line
    return None if kibibytes is None else int(kibibytes) * 1024


def family_of(process: int) -> list[int]:
    """A process and all that descend from it."""
    members = [process]
    for member in members:  # grows while it is read
        for path in Path(f"/proc/{member}/task").glob("*/children"):
            try:
                members += [int(number) for number in path.read_text().split()]
            except OSError:  # the thread has just ended
                continue
    return members
