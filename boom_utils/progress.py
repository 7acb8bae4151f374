"""Progress of long work: a bar where somebody watches, sparse log lines where nobody does."""

from __future__ import annotations

import io
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm.auto import tqdm

log = logging.getLogger(__name__)
Item = TypeVar("Item")


def log_to_stdout(level: int = logging.INFO) -> None:
    """Show what the kit logs on stdout, one line an event, and warnings of libraries; their own bars are off.

    A terminal that cannot show a character (``LC_ALL=C``, ``PYTHONIOENCODING=ascii``) gets its escape sequence.

    Args:
        level: Of the kit's lines.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout, force=True)
    logging.getLogger("boom_utils").setLevel(level)
    # Before these libraries are imported; transformers heeds the first one too.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


def quick_processes() -> None:
    """Set what makes processes started from here quick; numbers stay the same. What the user has set stays.

    GNU OpenMP threads wait by spinning. A member of smoke took 12 s on two cores, beside two busy processes 159 s, with
    this short spin 18 s, which costs nothing alone (measured). And glibc gives freed memory back at once: every tensor
    of a forward pass is then made of fresh pages, 4 to 10 % of the time of scoring a small model (measured). The limits
    here are those that glibc itself goes up to when a program frees blocks of 32 MB.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(32 * 1024**2))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(64 * 1024**2))


def watched() -> bool:
    """Whether a person is likely to see a bar: a terminal, or a kernel that a Jupyter server started for a document."""
    return sys.stderr.isatty() or "JPY_SESSION_NAME" in os.environ


def progress(items: Iterable[Item], total: int, label: str, every_seconds: float = 10.0) -> Iterator[Item]:
    """Yield ``items`` while showing how far they are; headless, one log line at most every ``every_seconds``."""
    if watched():
        yield from tqdm(items, total=total, desc=label, leave=False)
        return
    began = said = time.monotonic()
    for number, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - said >= every_seconds and number < total:
            left = (now - began) / number * (total - number)
            log.info("%s: %d of %d, about %.0f s to go", label, number, total, left)
            said = now
