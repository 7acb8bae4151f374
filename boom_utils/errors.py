"""One tree of errors. Every message says what is wrong, where, what was expected and found, and what to do.

The command line prints these without a traceback and exits with ``exit_code``: 1 when a stage failed, 2 when the
input (profile, recipe, parameter, checkpoint) has to be changed by the user.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BoomError(Exception):
    """Base of every error the kit raises on purpose.

    Args:
        what: One sentence: what is wrong.
        where: File, key, step or tensor it was seen at.
        expected: What would have been right.
        found: What was there instead.
        fix: What to do about it.
    """

    exit_code = 1

    def __init__(
        self, what: str, *, where: object = None, expected: object = None, found: object = None, fix: str | None = None
    ) -> None:
        self.what = what
        parts = {"where": where, "expected": expected, "found": found, "what to do": fix}
        self.parts = parts
        lines = [what] + [f"  {name}: {text}" for name, text in parts.items() if text is not None]
        super().__init__("\n".join(lines))


class UserError(BoomError):
    """Base of errors whose input has to be changed by the user."""

    exit_code = 2


class ConfigError(UserError):
    """A profile, parameter or command-line option is not valid."""


class ManifestError(UserError):
    """A data manifest is not valid."""


class DataError(BoomError):
    """Examples, subsets or a batch plan cannot be made from the data at hand."""


class DownloadError(BoomError):
    """A file of a corpus could not be downloaded, or what came is not the file the manifest names."""


class UnreachableError(DownloadError):
    """No server answers: other files would not come either."""


class UploadError(BoomError):
    """A model could not be put on the hub."""


class CheckpointError(UserError):
    """A model folder cannot be read, is unsafe to read, or is not complete."""


class TrainingError(BoomError):
    """Training cannot start or must stop."""


class MergeError(UserError):
    """The models of a recipe cannot be merged."""


class EvaluationError(BoomError):
    """A model could not be scored."""


class ResultsError(BoomError):
    """A results file is missing, malformed or from elsewhere."""


class WorkspaceError(BoomError):
    """The workspace is locked, full or damaged."""


class NotebookError(BoomError):
    """A notebook failed while it was executed."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name closest to ``name``, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


MOST_LISTED = 10
"""Most entries of a list that a person is shown; the rest is counted."""


def some_of(names: Iterable[object], most: int = MOST_LISTED) -> str:
    """The first of some names, and how many more there are.

    >>> some_of(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    found = [str(name) for name in names]
    more = len(found) - most
    return ", ".join(found[:most]) + (f" and {more} more" if more > 0 else "")


def bullet_list(problems: Iterable[str], most: int | None = MOST_LISTED) -> str:
    """Join problems, a line each, as one indented list that ends after ``most``; None lists all of them."""
    lines = list(problems)
    shown, more = lines[:most], len(lines) - len(lines[:most])
    return "".join(f"\n    - {line}" for line in [*shown, *([f"and {more} more"] if more else [])])
