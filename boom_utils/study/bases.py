"""The nodes of the base model: a tiny one that is made on the spot, or a pretrained one that is fetched."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from boom_utils.artifacts import CHECKPOINTS, Node
from boom_utils.config import PretrainedBase, Profile, TinyBase
from boom_utils.data.manifest import Manifest
from boom_utils.study.stages import VERSION, Inputs, Nodes, named_prompts, prompts_of


def base_nodes(profile: Profile, manifest: Manifest, nodes: Nodes) -> dict[str, Node]:
    """The nodes up to the model every member starts from; only a tiny base begins at a random model."""
    config = profile.base_model
    if isinstance(config, PretrainedBase):
        return {"base": pretrained_model(config, named_prompts(profile, manifest))}
    random = random_model(config, prompts_of(profile, manifest), nodes)
    return {"random": random, "base": tiny_model(profile, config, manifest, {**nodes, "random": random})}


def random_model(config: TinyBase, prompts: dict[str, str], nodes: Nodes) -> Node:
    """The tiny Qwen3 with random weights, and its tokenizer."""

    def make(out: Path, found: Inputs) -> None:
        from boom_utils.data.examples import read_examples
        from boom_utils.training.base_model import random_encoder

        pairs = read_examples(found["examples"].path / "pretraining.jsonl")
        texts = [text for pair in pairs for text in (pair.query, *pair.pos)]
        random_encoder([*texts, *prompts.values()], config, prompts).save(out)

    described = {"base_model": config.model_dump(mode="json", exclude={"pretraining"}), "prompts": prompts}
    inputs = {"examples": nodes["examples"]}
    return Node("random", VERSION["random"], "random initialisation", described, make, inputs)


def tiny_model(profile: Profile, config: TinyBase, manifest: Manifest, nodes: Nodes) -> Node:
    """The tiny base: the random model, weakly pre-trained."""
    prompt = prompts_of(profile, manifest)[profile.corpus.datasets[0]]

    def make(out: Path, found: Inputs) -> Mapping[str, Any]:
        from boom_utils.data.examples import read_examples
        from boom_utils.training.base_model import pretrain

        pairs = read_examples(found["examples"].path / "pretraining.jsonl")
        return pretrain(found["random"].path, pairs, prompt, config, out)

    described = {"base_model": config.model_dump(mode="json"), "prompt": prompt}
    inputs = {"random": nodes["random"], "examples": nodes["examples"]}
    log_file = ("training_log.jsonl",)
    return Node(
        "base", VERSION["base"], "base model", described, make, inputs, kept=(CHECKPOINTS,), observations=log_file
    )


def pretrained_model(config: PretrainedBase, prompts: dict[str, str]) -> Node:
    """The pretrained base in the kit's layout; keyed by the files it is made from, as far as they are known."""
    from boom_utils.training.base_source import describe_base

    def make(out: Path, _: Inputs) -> Mapping[str, Any]:
        from boom_utils.training.pretrained_base import prepare_base

        return prepare_base(config, prompts, out)

    described = {"base_model": describe_base(config), "prompts": prompts}
    return Node("base", VERSION["base"], "base model", described, make)
