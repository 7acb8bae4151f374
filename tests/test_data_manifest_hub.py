"""Manifests of ready-made rows: what is refused, what is included, and the facts of the paper's two corpora."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import plain_smoke, raw_hub_corpus

from boom_utils.config import Profile
from boom_utils.data.fetching import chosen_datasets
from boom_utils.data.manifest import MANIFESTS, Manifest, load_manifest
from boom_utils.errors import DataError, ManifestError


@pytest.fixture(scope="module")
def eng_text() -> Manifest:
    return load_manifest("eng_text")


@pytest.fixture(scope="module")
def general_text() -> Manifest:
    return load_manifest("general_text")


def save(raw: dict[str, Any], folder: Path, name: str = "tiny") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


def hub_of(raw: dict[str, Any]) -> dict[str, Any]:
    found = raw["datasets"][0]["hub"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda raw: hub_of(raw).update(repo="data"), "datasets.0.hub.repo"),
        (lambda raw: hub_of(raw).update(repo="../x/y"), "datasets.0.hub.repo"),
        (lambda raw: hub_of(raw).update(revision="main"), "datasets.0.hub.revision"),
        (lambda raw: hub_of(raw).update(revision="e" * 40), "owner/data is named with two revisions"),
        (lambda raw: hub_of(raw).update(files=[]), "datasets.0.hub.files"),
        (lambda raw: hub_of(raw).update(files=["../x.parquet"]), "../x.parquet leaves the repository"),
        (lambda raw: hub_of(raw).update(files=["/etc/passwd"]), "datasets.0.hub.files.0.path"),
        (lambda raw: hub_of(raw).update(files=["a.parquet", "a.parquet"]), "file 'a.parquet' is named twice"),
        (lambda raw: hub_of(raw).update(files=["lines.jsonl.gz"]), "'owner/data: lines.jsonl.gz' is named twice"),
        (lambda raw: hub_of(raw).update(files=[{"path": "a-*", "rows": 3}]), "a-* is a pattern"),
        (lambda raw: hub_of(raw).update(rows={"value": 3}), "null exactly where its source is unknown"),
        (lambda raw: hub_of(raw).update(rows={"source": "stated"}), "null exactly where its source is unknown"),
        (lambda raw: hub_of(raw).update(rows={"value": 3, "source": "guessed"}), "datasets.0.hub.rows.source"),
        (lambda raw: hub_of(raw).update(licnce="MIT"), "did you mean 'licence'"),
        (lambda raw: raw["datasets"][0].pop("hub"), "dataset 'nq' has no hub: it lists no files"),
        (lambda raw: raw["datasets"][0].update(local={"files": ["a.jsonl"]}), "dataset 'nq' has local, but"),
        (lambda raw: raw["datasets"][0].update(role="evaluation"), "dataset 'nq' is only evaluated"),
        (lambda raw: raw.pop("benchmarks"), "nothing to evaluate with"),
        (lambda raw: raw.update(excluded=[{"id": "nq", "reason": "left out"}]), "'nq' is excluded, and a dataset"),
        (
            lambda raw: raw.update(variants=[{"name": "v", "without": ["nqq"], "reason": "sources differ"}]),
            "variant 'v' leaves out 'nqq'",
        ),
        (
            lambda raw: raw.update(tasks=[{"id": "nq", "dataset": "nq", "family": "retrieval", "held_out": False}]),
            "task 'nq': its dataset has no held_out share",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, change: Callable[[dict[str, Any]], object], said: str) -> None:
    raw = raw_hub_corpus()
    change(raw)
    with pytest.raises(ManifestError) as caught:
        load_manifest(save(raw, tmp_path))
    assert said in str(caught.value)


def test_a_manifest_includes_the_datasets_exclusions_and_notes_of_another_one_beside_it(tmp_path: Path) -> None:
    below = raw_hub_corpus()
    below |= {"name": "below", "notes": ["A note."], "excluded": [{"id": "gone", "reason": "left out"}]}
    save(below, tmp_path, "below")
    raw = raw_hub_corpus("owner/more")
    raw["datasets"] = [{**raw["datasets"][0], "id": "more"}]
    raw |= {"includes": ["below"], "variants": [{"name": "few", "without": ["nq"], "reason": "sources differ"}]}
    manifest = load_manifest(save(raw, tmp_path))
    assert [dataset.id for dataset in manifest.datasets] == ["nq", "lines", "more"]
    assert [one.id for one in manifest.excluded] == ["gone"]
    assert manifest.notes == ("A note.",)
    assert [dataset.id for dataset in manifest.without("few")] == ["lines", "more"]
    assert manifest.folder == tmp_path.resolve()
    with pytest.raises(ManifestError, match="did you mean 'few'"):
        manifest.without("fwe")
    raw["datasets"][0]["id"] = "nq"
    raw["variants"][0]["without"] = ["nothing"]
    with pytest.raises(ManifestError, match="dataset 'nq' is named twice"):
        load_manifest(save(raw, tmp_path))
    raw["datasets"][0]["id"] = "more"
    with pytest.raises(ManifestError, match="leaves out 'nothing'"):
        load_manifest(save(raw, tmp_path))


def test_manifests_that_include_each_other_or_another_kind_are_refused(tmp_path: Path) -> None:
    raw = raw_hub_corpus()
    save({**raw, "name": "a", "includes": ["b"]}, tmp_path, "a")
    save({**raw, "name": "b", "includes": ["a"]}, tmp_path, "b")
    with pytest.raises(ManifestError, match="a -> b -> a"):
        load_manifest(tmp_path / "a.yaml")
    with pytest.raises(ManifestError, match="its source is another one"):
        load_manifest(save({**raw, "includes": ["python_docs"]}, tmp_path))
    with pytest.raises(ManifestError, match="did you mean 'eng_text'"):
        load_manifest(save({**raw, "includes": ["eng_txt"]}, tmp_path))


def test_where_the_manifest_lies_is_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    one, two = (
        load_manifest(save(raw_hub_corpus(), tmp_path)),
        load_manifest(save(raw_hub_corpus(), tmp_path / "other")),
    )
    assert (one.folder, two.folder) == (tmp_path.resolve(), (tmp_path / "other").resolve())
    assert one.model_dump_json() == two.model_dump_json()
    assert load_manifest("eng_text").folder == MANIFESTS.resolve()


# --- the paper's corpora ----------------------------------------------------------------------------------------------


def test_the_english_corpus_is_the_repository_s_splits_but_three(eng_text: Manifest) -> None:
    families = [dataset.family for dataset in eng_text.datasets]
    counts = {family: families.count(family) for family in dict.fromkeys(families)}
    assert counts == {"retrieval": 10, "reranking": 1, "sts": 1, "classification": 8, "clustering": 11}
    assert [one.id for one in eng_text.excluded] == ["quora", "scidocsrr", "arguana"]
    for dataset_id, hub in eng_text.hubs.items():
        assert hub.revision == "78f5c99b534a52824ab26bd24edda592eaed4c7a"
        assert hub.licence == "undeclared"
        assert str(hub.split).lower().replace("p2p", "_p2p").replace("__", "_") == dataset_id
        assert [file.path for file in hub.files] == [f"data/{hub.split}-*.parquet"]
    assert sum(hub.rows.value or 0 for hub in eng_text.hubs.values() if hub.rows.source == "stated") == 151_226
    assert eng_text.hubs["nli"].rows.value is None


def test_semantics_follow_the_families_of_the_authors_folders(general_text: Manifest) -> None:
    alone = {dataset.id for dataset in general_text.datasets if not dataset.in_batch_negatives}
    assert alone == {one.id for one in general_text.datasets if one.family in ("classification", "clustering")}
    types = {dataset.family: dataset.example_type for dataset in general_text.datasets if dataset.id != "nli"}
    assert types["classification"] == "symmetric_class"
    assert types["clustering"] == "symmetric_clustering"
    assert (types["retrieval"], types["code"]) == ("normal", "normal")
    assert general_text.dataset("nli").group_size == "one_negative"


def test_only_prompts_seen_in_rows_are_said_to_be_known(general_text: Manifest) -> None:
    stated = {name for name, hub in general_text.hubs.items() if hub.known.prompt == "stated"}
    assert stated == {
        *("msmarco_passage", "nq", "nli", "sts", "amazon_reviews_classification", "banking_classification"),
        *("arxiv_title", "biorxiv_title"),
    }


def test_the_general_corpus_adds_sixteen_and_eleven_languages_and_six_of_code(
    eng_text: Manifest, general_text: Manifest
) -> None:
    assert general_text.datasets[:31] == eng_text.datasets
    own = general_text.datasets[31:]
    for prefix, count in (("miracl_", 16), ("mr_tydi_", 11), ("cornstack_", 6)):
        assert len({dataset.id for dataset in own if dataset.id.startswith(prefix)}) == count
    assert len(own) == 2 + 16 + 11 + 6
    assert {dataset.role for dataset in own} == {"new_data"}
    code = [dataset.hub for dataset in own if dataset.family == "code"]
    assert {hub.select.rows for hub in code if hub and hub.select} == {100_000}
    assert {hub.select.rule_source for hub in code if hub and hub.select} == {"ours"}
    assert {hub.revision for hub in code if hub} == {None}
    assert len(general_text.without("five_code_languages")) == 65


def test_a_profile_of_the_paper_fetches_its_datasets_and_needs_no_local_task(general_text: Manifest) -> None:
    raw = plain_smoke()
    raw["corpus"] |= {"manifest": "general_text", "datasets": ["nq", "sts"], "new_datasets": ["cornstack_go"]}
    raw["evaluation"] |= {"in_domain": ["sts12"], "out_of_domain": ["cosqa"]}
    chosen = chosen_datasets(general_text, Profile.model_validate(raw))
    assert [dataset.id for dataset in chosen] == ["nq", "sts", "cornstack_go"]
    with pytest.raises(DataError, match="made of files to download"):
        _ = general_text.installed
