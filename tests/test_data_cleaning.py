"""Cleaning steps: what each does to a text."""

from __future__ import annotations

import pytest

from boom_utils.data.cleaning import Cut, clean, undo_ptb


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ("it has `` one '' ( and a half ) .", 'it has "one" (and a half).'),
        ("-lrb- 1990 -rrb- , -LSB- sic -RSB-", "(1990), [sic]"),
        ("they do n't know what 's new , we 'll see", "they don't know what's new, we'll see"),
        ("the judges ' panel costs $ 5 , 10 % more", "the judges' panel costs $5, 10% more"),
        ("what is 5 - 3 ?", "what is 5 - 3?"),
        ("already written, as it is (here).", "already written, as it is (here)."),
    ],
)
def test_treebank_tokens_become_written_text(tokens: str, text: str) -> None:
    assert undo_ptb(tokens) == text


def test_undoing_treebank_tokens_twice_changes_nothing_more() -> None:
    once = undo_ptb("he said `` it 's -lrb- not -rrb- so '' , did n't he ?")
    assert undo_ptb(once) == once


def test_steps_are_applied_in_the_order_given() -> None:
    assert clean("  A &amp;\n B ", ["collapse", "unescape_html", "lower"]) == "a & b"
    assert clean("a &amp; b", [Cut(cut=4), "unescape_html"]) == "a &a"
    assert clean("a &amp; b", ["unescape_html", Cut(cut=4)]) == "a & "
    assert clean("\u3000x\n", ["strip"]) == "x"
    assert clean(" x ", []) == " x "
