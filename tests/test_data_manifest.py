"""The manifest of the embedded corpus, and what a wrong one is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from boom_utils.data.manifest import MANIFESTS, Manifest, load_manifest, manifest_names
from boom_utils.errors import ManifestError


def raw_manifest() -> dict[str, Any]:
    raw = yaml.safe_load((MANIFESTS / "python_docs.yaml").read_text(encoding="utf-8"))
    assert isinstance(raw, dict)
    return raw


def save(raw: object, folder: Path) -> Path:
    path = folder / "corpus.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


def problems_of(raw: object, folder: Path) -> str:
    with pytest.raises(ManifestError) as caught:
        load_manifest(save(raw, folder))
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_the_embedded_corpus_covers_the_families_and_holds_packages_out() -> None:
    manifest = load_manifest("python_docs")
    assert "python_docs" in manifest_names()
    families = {"retrieval", "reranking", "classification", "clustering", "sts", "code"}
    assert {dataset.family for dataset in manifest.datasets} == families
    assert [dataset.id for dataset in manifest.datasets if dataset.role == "new_data"] == ["docstring_to_code"]
    held_out = [d.name for d in manifest.source.distributions if d.held_out]
    assert 2 <= len(held_out) <= 3
    assert len(manifest.source.distributions) <= 12
    assert manifest.dataset("exception_class").in_batch_negatives is False
    assert {task.dataset for task in manifest.tasks if not task.held_out} == {d.id for d in manifest.datasets}


@pytest.mark.promise(5)
def test_all_unknown_keys_are_listed_at_once_with_the_nearest_name(tmp_path: Path) -> None:
    raw = raw_manifest()
    raw["sources"] = raw["source"]
    raw["datasets"][0]["familly"] = "retrieval"
    raw["datasets"][1]["prompt"] = "short"
    raw["source"]["distributions"][0]["version"] = "latest"
    message = problems_of(raw, tmp_path)
    assert "4 problem(s) in corpus.yaml" in message
    for part in ("did you mean 'source'", "did you mean 'family'", "datasets.1.prompt", "distributions.0.version"):
        assert part in message


@pytest.mark.parametrize("name", ["../x", "/etc/x", "C:\\x", "\\\\host\\s", "a/../../b", "a\0b", "A", "x" * 65, ""])
@pytest.mark.promise(5)
def test_names_that_could_leave_the_folder_are_refused(name: str) -> None:
    raw = raw_manifest()
    raw["datasets"][0]["id"] = name
    with pytest.raises(ValueError, match=r"datasets\.0\.id"):
        Manifest.model_validate(raw)


@pytest.mark.parametrize(
    ("key", "value"), [("halve_batch", False), ("instruction_on_passages", True), ("group_size", "train_group_size")]
)
def test_a_flag_that_contradicts_the_type_is_refused(key: str, value: object, tmp_path: Path) -> None:
    raw = raw_manifest()
    raw["datasets"][2][key] = value
    assert f"{key} is {value}, but type symmetric_class means" in problems_of(raw, tmp_path)


def test_references_and_repetitions_are_all_reported(tmp_path: Path) -> None:
    raw = raw_manifest()
    raw["datasets"].append(raw["datasets"][0])
    raw["tasks"][0]["dataset"] = "sumary_to_description"
    raw["tasks"][1]["family"] = "sts"
    for distribution in raw["source"]["distributions"]:
        distribution["held_out"] = False
    message = problems_of(raw, tmp_path)
    assert "dataset 'summary_to_description' is named twice" in message
    assert "did you mean 'summary_to_description'" in message
    assert "task 'parameter_question' is sts, its dataset is retrieval" in message
    assert "needs held-out distributions" in message


def test_a_distribution_named_twice_in_other_case_is_refused(tmp_path: Path) -> None:
    raw = raw_manifest()
    raw["source"]["distributions"][1]["name"] = raw["source"]["distributions"][0]["name"].upper()
    assert "is named twice" in problems_of(raw, tmp_path)


def test_a_misspelt_manifest_dataset_or_task_names_the_nearest() -> None:
    with pytest.raises(ManifestError, match="did you mean 'python_docs'"):
        load_manifest("python_doc")
    manifest = load_manifest("python_docs")
    assert manifest.task("exception_class").dataset == "exception_class"
    with pytest.raises(ManifestError, match="did you mean 'exception_class'"):
        manifest.dataset("exeption_class")
    with pytest.raises(ManifestError, match="did you mean 'exception_class'"):
        manifest.task("exeption_class")


def test_broken_yaml_is_reported_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("name: a\nname: b\n", encoding="utf-8")
    with pytest.raises(ManifestError, match="given twice"):
        load_manifest(path)
