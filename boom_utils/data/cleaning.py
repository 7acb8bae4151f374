"""Named steps that clean a text; a manifest says which ones apply to which column, in which order."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from boom_utils.config import Frozen


class Cut(Frozen):
    """Keep the first ``cut`` characters."""

    cut: int = Field(gt=0)


StepName = Literal["strip", "collapse", "lower", "undo_ptb", "unescape_html"]
Step = Annotated[
    Annotated[StepName, Tag("name")] | Annotated[Cut, Tag("cut")],
    Discriminator(lambda step: "name" if isinstance(step, str) else "cut"),
]

_PTB_BRACKETS = {"lrb": "(", "rrb": ")", "lsb": "[", "rsb": "]", "lcb": "{", "rcb": "}"}
_PTB_BRACKET = re.compile(r"-([lr][rsc]b)-", re.IGNORECASE)
_PTB_OPENING_QUOTE = re.compile(r"``\s*")
_PTB_CLOSING_QUOTE = re.compile(r"\s*''")
_PLURAL_POSSESSIVE = re.compile(r"(?<=s)\s+'(?=\s)", re.IGNORECASE)
_BLANK_BEFORE = re.compile(r"\s+(?=[.,;:!?%)\]}]|n't\b|'(?:s|re|ve|ll|d|m)\b)", re.IGNORECASE)
_BLANK_AFTER = re.compile(r"(?<=[(\[{$])\s+")


def collapse(text: str) -> str:
    """Every run of white space as one blank, none at the ends."""
    return " ".join(text.split())


def undo_ptb(text: str) -> str:
    """Text as it is written, from the tokens of the Penn Treebank (``-lrb-``, blanks before commas, split ``n't``)."""
    text = _PTB_BRACKET.sub(lambda found: _PTB_BRACKETS[found[1].lower()], text)
    text = _PTB_CLOSING_QUOTE.sub('"', _PTB_OPENING_QUOTE.sub('"', text))
    text = _PLURAL_POSSESSIVE.sub("'", text)
    return _BLANK_AFTER.sub("", _BLANK_BEFORE.sub("", text))


_STEPS: dict[StepName, Callable[[str], str]] = {
    "strip": str.strip,
    "collapse": collapse,
    "lower": str.lower,
    "undo_ptb": undo_ptb,
    "unescape_html": html.unescape,
}


def clean(text: str, steps: Iterable[Step]) -> str:
    """Apply steps in order."""
    for step in steps:
        text = text[: step.cut] if isinstance(step, Cut) else _STEPS[step](text)
    return text
