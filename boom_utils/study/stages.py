"""One function a stage, up to the base and the tokens: its node in the graph, and the call that does the work.

Members, merges and what is measured of them follow in `boom_utils.study.models`, scores and results in
`boom_utils.study.scoring` and `boom_utils.study.gathering`. The number after the name of a stage is its version: it is
raised when a change of code changes what the stage computes, and everything made from it is then made anew.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from boom_utils.artifacts import CHECKPOINTS, Artifact, Node
from boom_utils.config import QUERY_TEMPLATE, PretrainedBase, Profile, SubsetConfig, TinyBase, query_prompt
from boom_utils.data import convert, sampling
from boom_utils.data.examples import count_rows, iter_examples, read_examples
from boom_utils.data.fetching import used_datasets
from boom_utils.data.manifest import Manifest
from boom_utils.data.tokens import TextRules, write_tokens
from boom_utils.errors import ConfigError
from boom_utils.model_folder import is_sentence_transformer, read_spec, whole_folder
from boom_utils.training.base_source import describe_base, fetch_base

Nodes = Mapping[str, Node]
Inputs = Mapping[str, Artifact]


def model_nodes(profile: Profile) -> dict[str, str]:
    """Every model of the study -> name of the node that makes it.

    Args:
        profile: The study's.

    Returns:
        Model -> node, in the order they are shown.

    >>> from boom_utils.config import load_profile
    >>> model_nodes(load_profile("smoke"))["boom"]
    'merge/boom'
    """
    members = {member.name: f"member/{member.name}" for member in profile.members}
    merges = {merge.name: f"merge/{merge.name}" for merge in profile.merges}
    first = {"random": "random"} if isinstance(profile.base_model, TinyBase) else {}
    return {**first, "base": "base", **members, **merges}


def examples(profile: Profile, manifest: Manifest, downloads: Path) -> Node:
    """Training examples and evaluation sets from the manifest's source; keyed by what the study uses of it."""
    tasks, corpus = corpus_tasks(profile), profile.corpus

    def make(out: Path, _: Inputs) -> Mapping[str, Any]:
        return convert.make_examples(manifest, corpus, tasks, downloads, out)

    # Text for readers is no reason to make a corpus anew; what is installed is in "found".
    prose = {"description", "homepage", "licence", "licence_note", "notes", "split_rule", "differs", "version", "known"}
    datasets = used_datasets(manifest, corpus, tasks)
    config = {
        "source": _without(manifest.source.model_dump(mode="json"), prose),
        "datasets": _without({one.id: one.model_dump(mode="json", exclude_none=True) for one in datasets}, prose),
        "tasks": {name: manifest.task(name).model_dump(mode="json") for name in sorted(tasks)},
        "corpus": corpus.model_dump(mode="json", exclude=convert.unread_fields(manifest)),
        "found": convert.found_now(manifest, corpus),
    }
    return Node("examples", 3, f"examples of {manifest.name}", config, make)


def corpus_tasks(profile: Profile) -> tuple[str, ...]:
    """Names of the tasks of the corpus that models are scored on."""
    return (*profile.evaluation.in_domain, *profile.evaluation.out_of_domain)


def _without(value: Any, keys: set[str]) -> Any:
    """JSON without some keys, at any depth: text for readers is no reason to make a corpus anew."""
    if isinstance(value, dict):
        return {key: _without(part, keys) for key, part in value.items() if key not in keys}
    return [_without(part, keys) for part in value] if isinstance(value, list) else value


def subset(profile: Profile, config: SubsetConfig, nodes: Nodes) -> Node:
    """One subset: row ids of every training dataset, and of the new ones if it holds new data."""
    datasets, new = profile.corpus.datasets, profile.new_datasets(config)
    inputs = {"examples": nodes["examples"]}
    if config.complement_of is not None:
        inputs["complement_of"] = nodes[f"subset/{config.complement_of}"]

    def make(out: Path, found: Inputs) -> Mapping[str, Any]:
        train = found["examples"].path / "train"
        rows = {dataset: count_rows(train / f"{dataset}.jsonl") for dataset in (*datasets, *new)}
        other = sampling.load_subset(found["complement_of"].path) if "complement_of" in found else None
        return sampling.save_subset(out, sampling.make_subset(rows, config, other, new))

    described = {"subset": config.rule(), "datasets": sorted(datasets)}
    if new:
        described["new_datasets"] = sorted(new)
    return Node("subset", 1, f"subset {config.name}", described, make, inputs)


def fixed_prompts(profile: Profile) -> tuple[str | None, str]:
    """What stands before every query, None where each has the instruction of its dataset; and before every passage.

    Raises:
        ConfigError: The base shall have its own prompts, and there are none in its folder.
        DownloadError: Its folder has to be looked at and cannot be fetched.
    """
    base = profile.base_model
    if not isinstance(base, PretrainedBase):
        return None, ""
    query, passage = (None if base.prompts == "instruct" else ""), ""
    if base.prompts == "own" and None in (base.query_prompt, base.passage_prompt):
        query, passage = stated_prompts(folder := fetch_base(base).folder)
        if not query and not passage:
            raise ConfigError(
                "the base has no prompts of its own",
                where=folder / "config_sentence_transformers.json",
                expected="prompts: query and document, plain texts",
                fix="set base_model.query_prompt and passage_prompt, or base_model.prompts to none or instruct",
            )
    stated = base.query_prompt, base.passage_prompt
    return query if stated[0] is None else stated[0], passage if stated[1] is None else stated[1]


@functools.lru_cache(maxsize=8)
def stated_prompts(folder: Path) -> tuple[str, str]:
    """What a model folder itself puts before queries and before documents; empty where it says nothing.

    Raises:
        CheckpointError: The folder is no encoder.
    """
    with whole_folder(folder) as place:
        return read_spec(place).own_prompts if is_sentence_transformer(place) else ("", "")


def prompts_of(profile: Profile, manifest: Manifest, template: str = QUERY_TEMPLATE) -> dict[str, str]:
    """Dataset -> text before its queries; with the template of training unless another is given."""
    fixed = fixed_prompts(profile)[0]
    asked = {manifest.task(name).dataset for name in corpus_tasks(profile)}
    used = {*profile.corpus.datasets, *profile.corpus.new_datasets, *asked}
    # What a study does not use is left out: a manifest that grows changes no tokenizer and no model.
    return {
        one.id: query_prompt(one.prompt, template) if fixed is None else fixed
        for one in manifest.datasets
        if one.id in used
    }


def base_nodes(profile: Profile, manifest: Manifest, nodes: Nodes) -> dict[str, Node]:
    """The nodes up to the model every member starts from; only a tiny base begins at a random model.

    A pretrained base is keyed by the files it is made from, as far as they are known.
    """
    config, prompts = profile.base_model, prompts_of(profile, manifest)
    if isinstance(config, PretrainedBase):
        query, passage = fixed_prompts(profile)  # an encoder folder keeps those of all queries and documents too
        fixed = {name: text for name, text in (("query", query), ("document", passage)) if text}
        return {"base": _pretrained_base(config, {**prompts, **fixed})}

    def make_random(out: Path, found: Inputs) -> None:
        from boom_utils.training.base_model import random_encoder

        pairs = read_examples(found["examples"].path / "pretraining.jsonl")
        texts = [text for pair in pairs for text in (pair.query, *pair.pos)]
        random_encoder([*texts, *prompts.values()], config, prompts).save(out)

    def make_base(out: Path, found: Inputs) -> Mapping[str, Any]:
        from boom_utils.training.base_model import pretrain

        pairs = read_examples(found["examples"].path / "pretraining.jsonl")
        return pretrain(found["random"].path, pairs, prompt, config, out)

    prompt, inputs = prompts[profile.corpus.datasets[0]], {"examples": nodes["examples"]}
    start = {"base_model": config.model_dump(mode="json", exclude={"pretraining"}), "prompts": prompts}
    random = Node("random", 1, "random initialisation", start, make_random, inputs)
    described = {"base_model": config.model_dump(mode="json"), "prompt": prompt}
    base = Node("base", 3, "base model", described, make_base, {"random": random, **inputs})
    return {"random": random, "base": replace(base, kept=(CHECKPOINTS,), observations=("training_log.jsonl",))}


def _pretrained_base(config: PretrainedBase, prompts: dict[str, str]) -> Node:
    def make(out: Path, _: Inputs) -> Mapping[str, Any]:
        from boom_utils.training.pretrained_base import prepare_base

        return prepare_base(config, prompts, out)

    described = {"base_model": describe_base(config), "prompts": prompts}
    return Node("base", 3, "base model", described, make)


def tokens(profile: Profile, manifest: Manifest, nodes: Nodes, *, new: bool = False) -> Node:
    """Token tables of all training datasets, or of all new ones: apart, so that these make nothing old anew."""
    training, prompts, passage_prompt = profile.training, prompts_of(profile, manifest), fixed_prompts(profile)[1]
    tokenizer = "random" if "random" in nodes else "base"
    names = profile.corpus.new_datasets if new else profile.corpus.datasets
    datasets = [manifest.dataset(name) for name in names]

    def make(out: Path, found: Inputs) -> Mapping[str, Any]:
        from boom_utils.models import Encoder

        encoder, counts = Encoder.load(found[tokenizer].path), {}
        for dataset in datasets:
            rows = iter_examples(found["examples"].path / "train" / f"{dataset.id}.jsonl")
            second = prompts[dataset.id] if dataset.instruction_on_passages else passage_prompt
            rules = TextRules(prompts[dataset.id], second, training.query_max_len, training.passage_max_len)
            counts[dataset.id] = write_tokens(out / f"{dataset.id}.arrow", rows, rules, encoder.tokenize)
        return {"rows": counts}

    described: dict[str, Any] = {
        "prompts": {dataset.id: [prompts[dataset.id], dataset.instruction_on_passages] for dataset in datasets},
        "lengths": [training.query_max_len, training.passage_max_len],
    }
    if passage_prompt:
        described["passage_prompt"] = passage_prompt
    inputs = {"examples": nodes["examples"], tokenizer: nodes[tokenizer]}
    label = "tokens of the new examples" if new else "tokens of the training examples"
    return Node("tokens", 2, label, described, make, inputs)
