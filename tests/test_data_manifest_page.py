"""The page about the corpora says what the manifests say."""

from __future__ import annotations

import pytest

from boom_utils.data.manifest import load_manifest, manifest_names
from boom_utils.data.manifest_page import PAGE, manifests_page


def test_the_committed_page_is_what_the_manifests_give(pytestconfig: pytest.Config) -> None:
    """`pytest tests/test_data_manifest_page.py --regenerate-golden` writes it anew after a change of a manifest."""
    if pytestconfig.getoption("--regenerate-golden"):
        PAGE.write_text(manifests_page(), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == manifests_page(), "write the page anew; it says how"


def test_the_page_has_one_row_for_every_dataset_and_a_cell_for_every_column() -> None:
    lines = manifests_page().splitlines()
    for name in manifest_names():
        for dataset in load_manifest(name).datasets:
            rows = [line for line in lines if line.startswith(f"| {dataset.id} | ")]
            assert len(rows) == 1, dataset.id
            assert rows[0].replace("\\|", "").count("|") == (9 if dataset.origin else 5)
    assert "--regenerate-golden" in manifests_page()
