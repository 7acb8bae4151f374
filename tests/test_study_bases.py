"""The nodes of a base in the graph: a pretrained one has no random model, no pre-training and its own prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mteb  # noqa: F401  (while it is imported it draws from torch's global generator)
import pytest
import yaml
from conftest import bert_folder

from boom_utils.artifacts import Artifact, Workspace, write_json
from boom_utils.config import PROFILES, Profile
from boom_utils.data.examples import TrainingExample, write_examples, write_jsonl
from boom_utils.data.tokens import open_tokens
from boom_utils.errors import ConfigError
from boom_utils.model_folder import read_spec
from boom_utils.study.graph import NOTEBOOKS, Study
from boom_utils.study.stages import stated_prompts

DATASETS = ("summary_to_description", "parameter_question", "exception_class", "parameter_overlap_sts")


def study_of(folder: Path, base: dict[str, Any], evaluation: dict[str, Any] | None = None) -> Study:
    """Smoke on another base."""
    content = yaml.safe_load((PROFILES / "smoke.yaml").read_text(encoding="utf-8"))
    content["base_model"] = {"kind": "pretrained", "max_seq_length": 48, **base}
    content["training"]["per_device_train_batch_size"] = 4
    content["evaluation"] |= evaluation or {}
    return Study(Profile.model_validate(content), Workspace(folder / "workspace"))


def test_a_study_of_a_pretrained_base_has_no_random_model(tmp_path: Path) -> None:
    study = study_of(tmp_path, {"name": "someone/model", "pooling": "mean"})
    assert "random" not in study.nodes
    assert not [name for name in study.nodes if name.startswith("scores/random/")]
    assert study.profile.model_names[0] == "base"
    assert dict(study.nodes["base"].inputs) == {}
    assert set(study.nodes["tokens"].inputs) == {"examples", "base"}
    for notebook in NOTEBOOKS:
        made = study.nodes_of(notebook)
        assert made
        assert "random" not in made


def test_a_tiny_base_begins_at_a_random_model() -> None:
    content = yaml.safe_load((PROFILES / "smoke.yaml").read_text(encoding="utf-8"))
    study = Study(Profile.model_validate(content))
    assert study.nodes["base"].inputs["random"] is study.nodes["random"]
    assert set(study.nodes["tokens"].inputs) == {"examples", "random"}


def test_everything_is_made_anew_when_the_base_or_its_prompts_change(tmp_path: Path) -> None:
    model = {"name": str(bert_folder(tmp_path / "model"))}
    first = study_of(tmp_path, model).nodes["base"].config
    assert study_of(tmp_path, model).nodes["base"].config == first
    assert study_of(tmp_path, {**model, "prompts": "none"}).nodes["base"].config != first
    assert study_of(tmp_path, {**model, "max_seq_length": 40}).nodes["base"].config != first
    counts = {"parameters": 1e6, "embedding_parameters": 1e5}
    assert study_of(tmp_path, {**model, **counts}).nodes["base"].config == first


def test_a_base_without_instructions_gets_none_in_training_and_evaluation(tmp_path: Path) -> None:
    study = study_of(tmp_path, {"name": "someone/model", "pooling": "mean", "prompts": "none"})
    assert set(study.nodes["base"].config["prompts"].values()) == {""}
    assert {prompt for prompt, _ in study.nodes["tokens"].config["prompts"].values()} == {""}
    assert study.nodes["scores/base/parameter_question"].config["prompt"] == ""
    instructed = study_of(tmp_path, {"name": "someone/model", "pooling": "mean"})
    assert instructed.nodes["scores/base/parameter_question"].config["prompt"].startswith("Instruct: ")


def test_a_base_says_its_stated_prompts_or_the_profile_does(tmp_path: Path) -> None:
    folder, facts = bert_folder(tmp_path / "model"), {"name": str(tmp_path / "model")}
    with pytest.raises(ConfigError, match="no prompts of its own"):
        _ = study_of(tmp_path, {**facts, "prompts": "own"}).nodes
    stated = {"query": "query: ", "document": "passage: "}
    general = json.loads((folder / "config_sentence_transformers.json").read_text()) | {"prompts": stated}
    write_json(folder / "config_sentence_transformers.json", general)
    stated_prompts.cache_clear()
    own = study_of(tmp_path, {**facts, "prompts": "own"}).nodes
    explicit = {"prompts": "none", "query_prompt": "query: ", "passage_prompt": "passage: "}
    for nodes in (own, study_of(tmp_path, {**facts, **explicit}).nodes):
        prompts = nodes["base"].config["prompts"]
        assert set(prompts.values()) == {"query: ", "passage: "}
        assert {name: prompts[name] for name in stated} == stated
        assert {prompt for prompt, _ in nodes["tokens"].config["prompts"].values()} == {"query: "}
        assert nodes["tokens"].config["passage_prompt"] == "passage: "
        score = nodes["scores/base/parameter_question"].config
        assert (score["prompt"], score["passage_prompt"]) == ("query: ", "passage: ")
    instructed = study_of(tmp_path, {**facts, "passage_prompt": "passage: "}).nodes["tokens"].config
    assert {prompt.partition(" ")[0] for prompt, _ in instructed["prompts"].values()} == {"Instruct:"}
    assert instructed["passage_prompt"] == "passage: "


def test_a_member_and_its_scores_are_made_from_a_pretrained_base_with_its_prompts(tmp_path: Path) -> None:
    base_model = {"name": str(bert_folder(tmp_path / "model")), "prompts": "none", "passage_prompt": "file "}
    study = study_of(tmp_path, base_model)

    def examples(out: Path, _: Any) -> dict[str, Any]:
        for dataset in DATASETS:
            rows = [TrainingExample(f"words {n}", (f"return words {n}",), (f"a file {n}",)) for n in range(20)]
            write_examples(out / "train" / f"{dataset}.jsonl", rows)
        task = out / "evaluation" / "parameter_question"
        write_jsonl(task / "corpus.jsonl", [{"id": str(n), "text": f"return words {n}"} for n in range(5)])
        write_jsonl(task / "queries.jsonl", [{"id": "q", "text": "words 3"}])
        write_jsonl(task / "qrels.jsonl", [{"query": "q", "document": "3"}])
        write_json(out / "summary.json", {})
        return {"rows": {}}

    object.__setattr__(study.nodes["examples"], "make", examples)
    base = study.build("base")
    assert base.facts["kind"] == "folder"
    assert read_spec(base.path).prompts["parameter_question"] == ""
    scores: Artifact = study.build("scores/s60/parameter_question")
    assert 0 < scores.facts["main_score"] <= 1
    member = study.build("member/s60")
    assert member.facts["steps"] > 0
    assert read_spec(member.path).own_prompts == ("", "file ")
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(member.path)
    table = open_tokens(study.build("tokens").path)["parameter_question"]
    assert words.decode(table.positive(0, 0)).startswith("[CLS] file return")


def test_a_base_that_is_not_there_is_an_error_only_when_it_is_wanted(tmp_path: Path) -> None:
    study = study_of(tmp_path, {"name": str(tmp_path / "nowhere")})
    with pytest.raises(ConfigError, match="no folder of that base"):
        study.build("base")
