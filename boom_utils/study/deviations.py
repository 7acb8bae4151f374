"""How a profile differs from what is known of the paper: every value, the paper's, and where that is known from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from boom_utils.config import Profile, entries_of

PAPER_PROFILE = "paper-0.6b"
"""The profile whose sources say what the paper's values are."""
_LEFT_OUT = ("name", "description", "experiments", "sources")
_OURS = "ours"


def deviations(profile: Profile, paper: Profile) -> list[dict[str, str | None]]:
    """One entry a value of ``profile``, for `boom_utils.reporting.published.settings_table`.

    Args:
        profile: The study's.
        paper: The one whose ``sources`` say what the paper's values are.

    Returns:
        ``key`` (dotted; a subset, member or merge is one value), ``value``, ``paper`` (None where it is not known, or
        where the paper has no such thing), ``source`` (of the paper's value; ``ours`` where it is not known), ``note``.
        A value that ``profile`` itself takes from a source counts as the paper's.
    """
    theirs, found = dict(_values(_dumped(paper))), list[dict[str, str | None]]()
    for key, value in _values(_dumped(profile)):
        source, note = source_of(profile.sources, key)
        known: str | None = value
        if source == _OURS:
            source, papers = source_of(paper.sources, key)
            known = theirs.get(key) if source != _OURS else None
            source, note = (_OURS, note) if known is None else (source, note or papers)
        found.append({"key": key, "value": value, "paper": known, "source": source, "note": note})
    return found


def source_of(sources: Mapping[str, str], key: str) -> tuple[str, str]:
    """Source and note of a dotted key: its own, or those of the nearest key above it; ``ours`` where there are none.

    >>> source_of({"training": "ours", "training.seed": "model card: of v1"}, "training.seed")
    ('model card', 'of v1')
    """
    places = (key.rsplit(".", parts)[0] for parts in range(key.count(".") + 1))
    source, _, note = next((sources[place] for place in places if place in sources), _OURS).partition(":")
    return source.strip(), note.strip()


def _dumped(profile: Profile) -> dict[str, Any]:
    """The profile as plain values; of subsets, members and merges only what is not a default."""
    whole, short = profile.model_dump(mode="json"), profile.model_dump(mode="json", exclude_defaults=True)
    named = {key: short.get(key, []) for key, value in whole.items() if entries_of(value) and isinstance(value, list)}
    return {key: value for key, value in {**whole, **named}.items() if key not in _LEFT_OUT}


def _values(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys with their values as text, in the profile's order."""
    if isinstance(value, list) and entries_of(value):
        for name, entry in entries_of(value).items():
            yield f"{key}.{name}", _text({part: found for part, found in entry.items() if part != "name"})
    elif isinstance(value, Mapping) and value:
        for name, found in value.items():
            yield from _values(found, f"{key}.{name}" if key else str(name))
    else:
        yield key, _text(value)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {_text(found)}" for name, found in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(f"[{_text(part)}]" if isinstance(part, list) else _text(part) for part in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if value is None:
        return "not set"
    text = str(value).replace("\n", "\\n")
    return f"'{text}'" if text != text.strip() or not text else text  # spaces at the ends would not be seen
