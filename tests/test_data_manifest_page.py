"""The page about the corpora says what the manifests say."""

from __future__ import annotations

import pytest
from manifest_pages import CARDS, PAGE, data_cards, manifests_page

from boom_utils.data.manifest import load_manifest, manifest_names


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


def test_the_page_has_one_row_for_every_dataset_and_a_cell_for_every_column() -> None:
    lines = manifests_page().splitlines()
    for name in manifest_names():
        for dataset in load_manifest(name).datasets:
            rows = [line for line in lines if line.startswith(f"| {dataset.id} | ")]
            assert len(rows) == 1, dataset.id
            assert rows[0].replace("\\|", "").count("|") == (9 if dataset.origin or dataset.hub else 5)
    assert "--regenerate-golden" in manifests_page()
