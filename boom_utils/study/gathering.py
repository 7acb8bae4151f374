"""The last stages: results gathered into a few tables and documents, and the tables and figures drawn from them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from boom_utils.artifacts import Artifact, Node, canonical_json, sha256_file, write_json
from boom_utils.config import MemberConfig, Profile, load_profile
from boom_utils.data.examples import read_jsonl
from boom_utils.data.manifest import Manifest
from boom_utils.reporting.published import PUBLISHED, SCORES
from boom_utils.reporting.results import PAGE, Numbers, read_samples, run_of, write_numbers
from boom_utils.reporting.trace import KEY_LETTERS, lineage_of
from boom_utils.study.deviations import PAPER_PROFILE, deviations
from boom_utils.study.models import passes
from boom_utils.study.scoring import profile_benchmarks, task_facts
from boom_utils.study.seeds import seeds_of
from boom_utils.study.stages import Inputs, Nodes
from boom_utils.training.batch_losses import WATCHED_LOSSES, read_points

LOG = "training_log.jsonl"
TIMED = ("tables/costs.csv", "tables/costs.md", PAGE)
"""What of a report says how long something took."""
_MEMBER_FACTS = ("steps", "examples", "tokens", "mean_loss_last_tenth")


def results(profile: Profile, manifest: Manifest, nodes: Nodes) -> Node:
    """Everything tables and figures are drawn from, gathered into a few tables and documents."""
    wanted = {name: node for name, node in nodes.items() if name.startswith(("scores/", "member/", "plan/"))}
    more = ("examples", "geometry", "base", "interaction", "geometry/regime")
    wanted |= {name: nodes[name] for name in more if name in nodes}
    described = {
        "profile": profile.model_dump(mode="json"),
        "families": {task.id: task.family for task in manifest.tasks},
        "paper": load_profile(PAPER_PROFILE).model_dump(mode="json"),
    }

    def make(out: Path, found: Inputs) -> None:
        write_results(profile, manifest, found, out)

    return Node("results", 12, "results", described, make, wanted, observations=("training.parquet",))


def write_results(profile: Profile, manifest: Manifest, found: Inputs, out: Path, missing: Sequence[str] = ()) -> None:
    """Write the content of a results folder.

    Args:
        profile: What was studied.
        manifest: Its corpus.
        found: Artifacts by the names of their nodes; of models, those that are scored on every task.
        out: Where it goes.
        missing: Models of the study that are not among them.
    """
    root = found["examples"].path.parent.parent
    lineage = lineage_of(root, [artifact.record for artifact in found.values()])
    unfinished = {"unfinished": list(missing)} if missing else {}
    write_json(out / "study.json", {**study_facts(profile, manifest, found), **unfinished, "lineage": lineage})
    write_numbers(out, numbers_of(found))
    (out / "corpus").mkdir(exist_ok=True)
    shutil.copyfile(found["examples"].path / "summary.json", out / "corpus" / "summary.json")
    for name in {"geometry", "interaction", "geometry/regime"} & {*found}:
        file = f"{Path(name).name}.json"
        shutil.copyfile(found[name].path / file, out / file)


def report(nodes: Nodes) -> Node:
    """Tables, figures and their page, from the results and what others published."""
    published = PUBLISHED / SCORES
    described = {"published": {SCORES: sha256_file(published)} if published.is_file() else {}}

    def make(out: Path, found: Inputs) -> Mapping[str, Any]:
        from boom_utils.reporting.report import write_report

        return write_report(found["results"].path, out)

    inputs = {"results": nodes["results"]}
    return Node("report", 12, "tables and figures", described, make, inputs, observations=TIMED)


def numbers_of(found: Inputs) -> Numbers:
    """Values, scores, training logs and watched losses of all scored and trained models among some artifacts."""
    samples, scores, training, losses = {}, [], [], []
    for name, artifact in found.items():
        kind, _, rest = name.partition("/")
        if kind == "scores":
            model, _, task = rest.partition("/")
            samples[model, task] = read_samples(artifact.path)
            scores.append({**run_of(model), "task": task, **_score(artifact, task)})
        elif kind in ("member", "base"):
            run = run_of(rest or name)
            if (artifact.path / LOG).is_file():
                training += [{**run, **line} for line in read_jsonl(artifact.path / LOG)]
            if (artifact.path / WATCHED_LOSSES).is_file():
                losses += [{**run, **line} for line in _watched(artifact.path)]
    frames = {"scores": scores, "training": training, "losses": losses}
    return Numbers(samples, **{name: pd.DataFrame(rows) for name, rows in frames.items() if rows})


def _score(artifact: Artifact, task: str) -> dict[str, Any]:
    """A score, what it was made with, and mteb's own result as compact JSON."""
    facts, inputs, path = dict(artifact.facts), artifact.record["inputs"], artifact.path / f"{task}.json"
    known = {name: facts.pop(name, None) for name in ("metric", "main_score", "mteb_version", "revision", "prompt")}
    result = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {
        "metric": known.pop("metric"),
        "value": known.pop("main_score"),
        **known,
        "made_with": canonical_json(facts),
        "key": artifact.key[:KEY_LETTERS],
        "sha256": artifact.digest,
        "made_from": " ".join(one["key"][:KEY_LETTERS] for role, one in inputs.items() if role != "examples"),
        "result": json.dumps(result, separators=(",", ":"), ensure_ascii=False) if result else None,
    }


def _watched(folder: Path) -> Iterator[dict[str, Any]]:
    """One row a batch that was watched at one point of a training."""
    for point in read_points(folder):
        for dataset, found in point.losses.items():
            for batch, loss in enumerate(found.values):
                yield {"step": point.step, "share": point.share, "dataset": dataset, "batch": batch, "loss": loss}


def study_facts(profile: Profile, manifest: Manifest, found: Inputs) -> dict[str, Any]:
    """The content of study.json: what was studied, restricted to the models that are among the artifacts ``found``."""
    benchmarks = profile_benchmarks(profile)
    scored = {name.split("/")[1] for name in found if name.startswith("scores/")}
    seeds = {model: [n for n in names if n in scored] for model, names in seeds_of(profile).items() if model in scored}
    members = [member for member in profile.members if f"member/{member.name}" in found]
    trained_on = {member.name: found[f"plan/{member.name}"].facts["datasets"] for member in members}
    ensembles = {one.name: {"members": [*one.members]} for one in profile.ensembles if one.name in scored}
    used = (*profile.corpus.datasets, *profile.corpus.new_datasets)
    rows = {name: found["examples"].facts["rows"].get(f"train/{name}", 0) for name in used}
    return {
        "profile": profile.name,
        "models": [name for name in profile.model_names if name in scored],
        "members": {
            member.name: {
                "ratio": profile.member_ratio(member.name),
                "new_data": profile.member_subset(member.name).new_data,
                "passes": passes(profile, member, rows, trained_on[member.name]),
                "trained_on": trained_on[member.name],
                **member.model_dump(mode="json", exclude={"name", "scored"}),
                **{key: found[f"member/{member.name}"].facts[key] for key in _MEMBER_FACTS},
            }
            for member in members
        },
        "seeds": {model: names for model, names in seeds.items() if len(names) > 1},
        **({"own_rows": True} if profile.seeds and profile.seeds.own_rows else {}),
        "merges": {
            merge.name: {**merge.model_dump(mode="json"), "weights": profile.merge_weights(merge)}
            for merge in profile.merges
            if {*profile.trained_members(merge.name)} <= {*trained_on}
        },
        **({"ensembles": ensembles} if ensembles else {}),
        "tasks": task_facts(profile, manifest, benchmarks),
        "evaluation": profile.evaluation.model_dump(mode="json"),
        "experiments": profile.experiments.model_dump(mode="json", exclude_defaults=True),
        "families": {name: manifest.dataset(name).family for name in used},
        "deviations": deviations(profile, load_profile(PAPER_PROFILE)),
        "environment": {**found["base"].record["environment"], "device": _devices(found, members)},
    }


def _devices(found: Inputs, members: Sequence[MemberConfig]) -> str | None:
    """What members were trained on: every kind of device there was, with the most that one member used."""
    counts: dict[str, int] = {}
    for facts in (found[f"member/{member.name}"].facts for member in members):
        if name := facts.get("device"):
            counts[name] = max(counts.get(name, 1), facts.get("processes", 1))
    return "; ".join(f"{count} x {name}" if count > 1 else name for name, count in sorted(counts.items())) or None
