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
WORTH_SAYING = 10.0
"""Seconds from which on work says how long it takes."""


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
    # What is imported later heeds the environment, transformers that of the hub; the rest has to be told.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    transformers = sys.modules.get("transformers.utils.logging")
    if transformers and os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1":
        transformers.disable_progress_bar()


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


def progress(items: Iterable[Item], total: int, label: str, every_seconds: float = WORTH_SAYING) -> Iterator[Item]:
    """Yield ``items`` while showing how far they are; headless, one log line at most every ``every_seconds``."""
    if watched() and total:
        yield from tqdm(items, total=total, desc=label, leave=False)
        return
    began = said = time.monotonic()
    for number, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - said >= every_seconds and number < total:
            left = (now - began) / number * (total - number)
            log.info("%s: %d of %d, about %s to go", label, number, total, rough(left))
            said = now


def rough(seconds: float) -> str:
    """A time as people say it.

    >>> rough(42.4), rough(200), rough(9000)
    ('42 s', '3 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
