"""The page about the corpora says what the manifests say."""

from __future__ import annotations

from pathlib import Path

import pytest
from manifest_pages import CARDS, EXAMPLE, PAGE, data_cards, manifests_page

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


def test_the_page_and_the_card_of_the_paper_s_corpus_say_what_is_known_left_out_and_chosen_by_us() -> None:
    page, cards = manifests_page(), data_cards()
    assert "| msmarco_passage | msmarco_passage | retrieval | train | eng | 485,823 | third party |" in page
    assert "| arxiv_abstract | arXiv_abstract | clustering |" in page
    assert "| nli | nli | retrieval | train | eng |  | unknown |" in page
    for name in ("eng_text", "general_text"):
        for part in ("undeclared", "| quora |", "| scidocsrr |", "| arguana |", "MTEB(eng, v2)", "78f5c99b534a5282"):
            assert part in cards[name], part
    assert "not chosen yet" in cards["general_text"]
    assert "without cornstack_go" in cards["general_text"]
    assert "| instruction | 8 |  | 1 | 22 |  |" in cards["eng_text"]


def test_the_manifest_that_the_page_shows_for_own_data_is_a_right_one(tmp_path: Path) -> None:
    path = tmp_path / "my_data.yaml"
    path.write_text(EXAMPLE, encoding="utf-8")
    manifest = load_manifest(path)
    assert manifest.locals["help_desk"].held_out == 0.1
    assert [task.dataset for task in manifest.tasks] == ["help_desk"]
