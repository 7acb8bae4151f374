"""The page about the corpora says what the manifests say."""

from __future__ import annotations

import pytest
from manifest_pages import CARDS, PAGE, data_cards, manifests_page


def test_the_committed_page_is_what_the_manifests_give(pytestconfig: pytest.Config) -> None:
    """`pytest tests/test_data_manifest_page.py --regenerate-golden` writes it anew after a change of a manifest."""
    if pytestconfig.getoption("--regenerate-golden"):
        PAGE.write_text(manifests_page(), encoding="utf-8")
        CARDS.mkdir(exist_ok=True)
        for name, card in data_cards().items():
            (CARDS / f"{name}.md").write_text(card, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == manifests_page(), "write the page anew; it says how"
    cards = {path.stem: path.read_text(encoding="utf-8") for path in CARDS.glob("*.md")}
    assert cards == data_cards(), "write the cards anew; the page says how"
