"""A study of a reader's own rows and model: a manifest and a profile, written as files that can be edited and kept.

What comes out are ordinary YAML files; nothing of the kit treats such a study differently from its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from boom_utils.artifacts import write_text
from boom_utils.config import Profile
from boom_utils.errors import ConfigError, bullet_list, nearest
from boom_utils.training.base_source import source_kind

PROFILE, MANIFEST = "profile.yaml", "manifest.yaml"
_HEAD = "# Written by the kit for your own data; edit it, and give the path of {profile} as profile.\n"
_NO_PROMPT = "Not used: the model takes no instruction."


@dataclass(frozen=True)
class OwnData:
    """What a reader brings.

    Args:
        files: JSONL files, one a dataset.
        model: Hub repository, folder, or distribution of the model to start from.
        prompt: Instruction of the queries; empty for a model that takes none.
        held_out: Share of the queries that is evaluated and not trained on.
        ratios: Shares of every dataset that the members to merge are trained on; 1.0 is the reference.
        train_rows: Most rows of a dataset; None takes all.
    """

    files: Sequence[Path]
    model: str
    prompt: str
    held_out: float = 0.2
    ratios: Sequence[float] = (0.4, 0.7, 1.0)
    train_rows: int | None = None


def own_files(place: str | Path, names: Sequence[str] | None = None) -> list[Path]:
    """The JSONL files of a place.

    Args:
        place: A file, or a folder.
        names: Of a folder, only the files of these names (without ``.jsonl``); None takes all.

    Returns:
        Their paths, by name.

    Raises:
        ConfigError: There is none, or one of the named ones is missing.

    >>> from boom_utils.data.examples import write_jsonl
    >>> for name in ("code", "faq"):
    ...     _ = write_jsonl(Path(f"{name}.jsonl"), [{"query": "a question", "pos": ["its answer"]}])
    >>> [path.name for path in own_files(".")], [path.name for path in own_files(".", ["faq"])]
    (['code.jsonl', 'faq.jsonl'], ['faq.jsonl'])
    """
    path = Path(place).expanduser()
    if path.is_file():
        return [path]
    found = {file.name.split(".jsonl")[0]: file for file in sorted(path.glob("*.jsonl*"))}
    if missing := [f"no {name}.jsonl{nearest(name, found)}" for name in names or () if name not in found]:
        raise ConfigError(f"files are missing in {path.name}", found=bullet_list(missing))
    if not found:
        raise ConfigError(
            "there are no training files",
            where=path,
            expected="a .jsonl file, or a folder of them",
            found="an empty folder" if path.is_dir() else "nothing",
        )
    return list(found.values()) if names is None else [found[name] for name in names]


def write_own_study(own: OwnData, like: Profile, folder: Path) -> Path:
    """Write a manifest and a profile; what was written there before is replaced.

    Args:
        own: The reader's rows and model.
        like: Its training settings are taken.
        folder: Gets manifest.yaml and profile.yaml, with paths relative to it.

    Returns:
        The path of the profile.

    Raises:
        ConfigError: Two files give one dataset name, or the ratios hold no 1.0.

    >>> from boom_utils.config import load_profile
    >>> own = OwnData([Path("faq.jsonl")], "sentence-transformers/all-MiniLM-L6-v2", "Find the answer.")
    >>> path = write_own_study(own, load_profile("smoke"), Path("own"))
    >>> path.name, [merge.name for merge in load_profile(path).merges]
    ('profile.yaml', ['plain-mean', 'boom'])
    """
    datasets = _dataset_names(own.files)
    if 1.0 not in own.ratios or len(set(own.ratios)) != len(own.ratios):
        raise ConfigError(
            "the ratios need a 1.0, the model that every other one is compared with, and no ratio twice",
            found=list(own.ratios),
        )
    folder.mkdir(parents=True, exist_ok=True)
    head = _HEAD.format(profile=PROFILE)
    files = {name: _relative(file, folder) for name, file in datasets.items()}
    write_text(folder / MANIFEST, head + _yaml(_manifest(own, files)))
    write_text(folder / PROFILE, head + _yaml(_profile(own, like, list(datasets), folder)))
    return folder / PROFILE


def _dataset_names(files: Sequence[Path]) -> dict[str, Path]:
    named: dict[str, list[Path]] = {}
    for file in files:
        name = re.sub(r"[^a-z0-9_.-]+", "_", file.name.split(".jsonl")[0].lower()).strip("_.-")
        named.setdefault(name or "data", []).append(file)
    if twice := [
        f"{name}: {', '.join(file.name for file in found)}" for name, found in named.items() if len(found) > 1
    ]:
        raise ConfigError("files that give one dataset name", found=bullet_list(twice), fix="rename one of them")
    return {name: found[0] for name, found in named.items()}


def _manifest(own: OwnData, files: dict[str, str]) -> dict[str, Any]:
    return {
        "name": "own_data",
        "description": "Rows of a reader's own, one file a dataset.",
        "source": {"kind": "local_files"},
        "datasets": [
            {
                "id": name,
                "family": "retrieval",
                "role": "train",
                "prompt": own.prompt or _NO_PROMPT,
                "in_batch_negatives": True,
                "halve_batch": False,
                "instruction_on_passages": False,
                "group_size": "train_group_size",
                "example_type": "normal",
                "description": f"The rows of {Path(file).name}.",
                "local": {"files": [file], "held_out": own.held_out},
            }
            for name, file in files.items()
        ],
        "tasks": [{"id": name, "dataset": name, "family": "retrieval", "held_out": False} for name in files],
    }


def _profile(own: OwnData, like: Profile, datasets: list[str], folder: Path) -> dict[str, Any]:
    members = {ratio: "full" if ratio == 1.0 else f"s{round(100 * ratio)}" for ratio in sorted(own.ratios)}
    corpus = {"manifest": MANIFEST, "datasets": datasets, "train_rows": own.train_rows, "evaluation_queries": 300}
    subsets = {ratio: f"p{round(100 * ratio)}" for ratio in members}
    return {
        "name": "own",
        "description": f"{', '.join(datasets)}, with the training settings of {like.name}.",
        "corpus": {**corpus, "seed": like.corpus.seed},
        "base_model": _base(own, like, folder),
        "training": like.training.model_dump(mode="json", exclude_defaults=True),
        "subsets": [{"name": subset, "ratio": ratio} for ratio, subset in subsets.items()],
        "members": [
            {"name": name, "subset": subsets[ratio], "seed": round(100 * ratio)} for ratio, name in members.items()
        ],
        "merges": [
            {"name": "plain-mean", "method": "linear", "members": [*members.values()], "weights": "equal"},
            {"name": "boom", "method": "multislerp", "members": [*members.values()], "weights": "ratio"},
        ],
        "evaluation": {"in_domain": [*datasets], "reference": "full"},
    }


def _base(own: OwnData, like: Profile, folder: Path) -> dict[str, Any]:
    place = Path(own.model).expanduser()
    is_folder = source_kind(own.model) == "folder" or place.is_dir()
    longest = max(like.training.query_max_len, like.training.passage_max_len)
    name = f"./{_relative(place, folder)}" if is_folder else own.model
    style = "instruct" if own.prompt else "none"
    return {"kind": "pretrained", "name": name, "max_seq_length": longest, "prompts": style}


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def _yaml(content: dict[str, Any]) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110)
