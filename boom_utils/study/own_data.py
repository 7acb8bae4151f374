"""A study of a reader's own rows and model: a manifest and a profile, written as files that can be edited and kept.

What comes out are ordinary YAML files; nothing of the kit treats such a study differently from its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from boom_utils.artifacts import write_text
from boom_utils.config import Profile
from boom_utils.data.examples import Kind
from boom_utils.data.own import check_files
from boom_utils.errors import ConfigError
from boom_utils.training.base_source import source_kind

PROFILE, MANIFEST = "profile.yaml", "manifest.yaml"
_HEAD = "# Written by the kit for your own data; edit it, and give the path of {profile} as profile.\n"
_NO_PROMPT = "Not used: the model takes no instruction."
_SEMANTICS: dict[Kind, tuple[Any, ...]] = {
    "examples": ("retrieval", True, False, False, "train_group_size", "normal"),
    "graded": ("sts", True, True, True, "train_group_size", "symmetric_sts"),
    "labelled": ("classification", False, True, False, "first_row", "symmetric_class"),
}
_FIELDS = ("family", "in_batch_negatives", "halve_batch", "instruction_on_passages", "group_size", "example_type")


@dataclass(frozen=True)
class OwnData:
    """What a reader brings.

    Args:
        datasets: Dataset -> its files, as `boom_utils.data.own.own_datasets` gives them.
        model: Hub repository, folder, or distribution of the model to start from.
        prompt: Instruction of the queries; empty for a model that takes none.
        held_out: Share of the rows that is evaluated and not trained on.
        ratios: Shares of every dataset that the members to merge are trained on; 1.0 is the reference.
        train_rows: Most rows of a dataset; None takes all.
    """

    datasets: Mapping[str, Sequence[str]]
    model: str
    prompt: str
    held_out: float = 0.2
    ratios: Sequence[float] = (0.4, 0.7, 1.0)
    train_rows: int | None = None


def write_own_study(own: OwnData, like: Profile, folder: Path) -> Path:
    """Write a manifest and a profile; what was written there before is replaced.

    Args:
        own: The reader's rows and model.
        like: Its training settings are taken.
        folder: Gets manifest.yaml and profile.yaml, with paths relative to it.

    Returns:
        The path of the profile.

    Raises:
        ConfigError: Two datasets get one name, or the ratios hold no 1.0.
        DataError: A dataset has no row that can be read.

    >>> from boom_utils.config import load_profile
    >>> from boom_utils.data.examples import write_jsonl
    >>> _ = write_jsonl(Path("faq.jsonl"), [{"anchor": "a question", "positive": "its answer"}])
    >>> own = OwnData({"faq": ["faq.jsonl"]}, "sentence-transformers/all-MiniLM-L6-v2", "Find the answer.")
    >>> path = write_own_study(own, load_profile("smoke"), Path("own"))
    >>> path.name, [merge.name for merge in load_profile(path).merges]
    ('profile.yaml', ['plain-mean', 'boom'])
    """
    names = {name: re.sub(r"[^a-z0-9_.-]+", "_", name.lower()).strip("_.-") or "data" for name in own.datasets}
    if len(set(names.values())) < len(names):
        raise ConfigError("two datasets get one name", found=names, fix="rename one of them")
    if 1.0 not in own.ratios or len(set(own.ratios)) != len(own.ratios):
        what = "the ratios need a 1.0, the model that every other one is compared with, and no ratio twice"
        raise ConfigError(what, found=list(own.ratios))
    entries = [_dataset(names[name], files, own, folder) for name, files in own.datasets.items()]
    tasks = [{"id": one["id"], "dataset": one["id"], "family": one["family"], "held_out": False} for one in entries]
    manifest: dict[str, Any] = {"name": "own_data", "description": "Rows of a reader's own."}
    manifest |= {"source": {"kind": "local_files"}, "datasets": entries, "tasks": tasks}
    folder.mkdir(parents=True, exist_ok=True)
    head = _HEAD.format(profile=PROFILE)
    write_text(folder / MANIFEST, head + _yaml(manifest))
    write_text(folder / PROFILE, head + _yaml(_profile(own, like, [one["id"] for one in entries], folder)))
    return folder / PROFILE


def _dataset(name: str, files: Sequence[str], own: OwnData, folder: Path) -> dict[str, Any]:
    """An entry of the manifest; which kind of rows it has is known from the first of them."""
    semantics = dict(zip(_FIELDS, _SEMANTICS[check_files(files, 1).kind], strict=True))
    shown = ", ".join(Path(file).name for file in files[:3])
    return {
        "id": name,
        "role": "train",
        "prompt": own.prompt or _NO_PROMPT,
        **semantics,
        "description": f"The rows of {shown}{' and others' if len(files) > 3 else ''}.",
        "local": {"files": [_relative(file, folder) for file in files], "held_out": own.held_out},
    }


def _profile(own: OwnData, like: Profile, datasets: list[str], folder: Path) -> dict[str, Any]:
    members = {ratio: "full" if ratio == 1.0 else f"s{round(100 * ratio)}" for ratio in sorted(own.ratios)}
    corpus = {"manifest": MANIFEST, "datasets": datasets, "train_rows": own.train_rows, "evaluation_queries": 300}
    seeds, every = {ratio: round(100 * ratio) for ratio in members}, [*members.values()]
    experiments = {"full": "full", "boom": "boom", "sampled": [*every], "variants": ["boom"]}
    merges = {"plain-mean": ("linear", "equal"), "boom": ("multislerp", "ratio")}
    return {
        "name": "own",
        "description": f"{', '.join(datasets)}, with the training settings of {like.name}.",
        "corpus": {**corpus, "hard_negatives": like.corpus.hard_negatives, "seed": like.corpus.seed},
        "base_model": _base(own, like, folder),
        "training": like.training.model_dump(mode="json", exclude_defaults=True),
        "subsets": [{"name": f"p{seed}", "ratio": ratio} for ratio, seed in seeds.items()],
        "members": [{"name": members[ratio], "subset": f"p{seed}", "seed": seed} for ratio, seed in seeds.items()],
        "merges": [
            {"name": name, "method": method, "members": [*every], "weights": weights}
            for name, (method, weights) in merges.items()
        ],
        "experiments": {**experiments, "controls": ["plain-mean"], "methods": [["plain-mean", "boom"]]},
        "evaluation": {"in_domain": [*datasets], "reference": "full"},
    }


def _base(own: OwnData, like: Profile, folder: Path) -> dict[str, Any]:
    place = Path(own.model).expanduser()
    is_folder = source_kind(own.model) == "folder" or place.is_dir()
    longest = max(like.training.query_max_len, like.training.passage_max_len)
    name = f"./{_relative(place, folder)}" if is_folder else own.model
    style = "instruct" if own.prompt else "none"
    return {"kind": "pretrained", "name": name, "max_seq_length": longest, "prompts": style}


def _relative(path: str | Path, folder: Path) -> str:
    on_hub = str(path).startswith("hf://")
    return str(path) if on_hub else Path(os.path.relpath(Path(path).resolve(), folder.resolve())).as_posix()


def _yaml(content: dict[str, Any]) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110)
