"""The last stages: results gathered into plain files, and the tables and figures drawn from them."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from boom_utils.artifacts import RECORD, Node, sha256_file, write_json
from boom_utils.config import MemberConfig, Profile, load_profile
from boom_utils.data.manifest import Manifest
from boom_utils.evaluation.benchmarks import Benchmarks
from boom_utils.reporting.lineage import LINEAGE, workspace_sources, write_lineage
from boom_utils.reporting.published import PUBLISHED, PUBLISHED_FILES
from boom_utils.study.deviations import PAPER_PROFILE, deviations
from boom_utils.study.scoring import profile_benchmarks, task_facts
from boom_utils.study.seeds import seeds_of
from boom_utils.study.stages import VERSION, Inputs, Nodes
from boom_utils.training.watched_losses import WATCHED_LOSSES

_MEMBER_CONFIG = {
    "subset",
    "seed",
    "schedule",
    "order",
    "stages",
    "learning_rate_stages",
    "datasets",
    "cluster",
    "start",
    "training",
}
_MEMBER_FACTS = ("steps", "examples", "tokens", "mean_loss_last_tenth")


def results(profile: Profile, manifest: Manifest, nodes: Nodes) -> Node:
    """Everything tables and figures are drawn from, gathered into plain files."""
    wanted = {name: node for name, node in nodes.items() if name.startswith(("scores/", "member/", "plan/"))}
    wanted |= {name: nodes[name] for name in ("examples", "geometry", "base", "interaction") if name in nodes}
    described = {
        "profile": profile.model_dump(mode="json"),
        "families": {task.id: task.family for task in manifest.tasks},
        "paper": load_profile(PAPER_PROFILE).model_dump(mode="json"),
    }

    def make(out: Path, found: Inputs) -> None:
        write_json(out / "study.json", study_facts(profile, manifest, found))
        root = found["examples"].path.parent.parent
        write_lineage(out / LINEAGE, workspace_sources(root, [artifact.record for artifact in found.values()]))
        for name, folder in result_places(found).items():
            for pattern in ("*.json",) if name.startswith("scores/") else ("training_log.jsonl", WATCHED_LOSSES):
                _copy(folder, out / name, pattern)
        _copy(found["examples"].path, out / "corpus", "summary.json")
        for name in ("geometry", "interaction"):
            if name in found:
                _copy(found[name].path, out, f"{name}.json")

    return Node("results", VERSION["results"], "results", described, make, wanted)


def report(nodes: Nodes) -> Node:
    """Tables, figures and their page, from the results and what others published."""
    published = [PUBLISHED / name for name in PUBLISHED_FILES]
    described = {"published": {path.name: sha256_file(path) for path in published if path.is_file()}}

    def make(out: Path, found: Inputs) -> Mapping[str, Any]:
        from boom_utils.reporting.report import write_report

        return write_report(found["results"].path, out)

    return Node("report", VERSION["report"], "tables and figures", described, make, {"results": nodes["results"]})


def result_places(found: Inputs) -> dict[str, Path]:
    """Folder in the results -> where the scores or the training log in it come from."""
    places = {name: artifact.path for name, artifact in found.items() if name.startswith("scores/")}
    trained = {name: artifact for name, artifact in found.items() if name == "base" or name.startswith("member/")}
    return places | {f"training/{name.removeprefix('member/')}": artifact.path for name, artifact in trained.items()}


def study_facts(profile: Profile, manifest: Manifest, found: Inputs) -> dict[str, Any]:
    """The content of study.json: what was studied, restricted to the models that are among the artifacts ``found``."""
    benchmarks = profile_benchmarks(profile)
    scored = {name.split("/")[1] for name in found if name.startswith("scores/")}
    members = [member for member in profile.members if f"member/{member.name}" in found]
    trained_on = {member.name: found[f"plan/{member.name}"].facts["datasets"] for member in members}
    rows, used = found["examples"].facts["rows"], (*profile.corpus.datasets, *profile.corpus.new_datasets)
    return {
        "profile": profile.name,
        "models": [name for name in profile.model_names if name in scored],
        "members": {
            member.name: {
                "ratio": profile.member_ratio(member.name),
                "new_data": profile.member_subset(member.name).new_data,
                "passes": passes(profile, member, rows, trained_on[member.name]),
                "trained_on": trained_on[member.name],
                **member.model_dump(mode="json", include=_MEMBER_CONFIG),
                **{key: found[f"member/{member.name}"].facts[key] for key in _MEMBER_FACTS},
            }
            for member in members
        },
        "seeds": _pooled(profile, scored),
        "merges": {
            merge.name: {**merge.model_dump(mode="json"), "weights": profile.merge_weights(merge)}
            for merge in profile.merges
            if {*profile.trained_members(merge.name)} <= {*trained_on}
        },
        "tasks": task_facts(profile, manifest, benchmarks),
        **_benchmark_facts(benchmarks),
        "evaluation": profile.evaluation.model_dump(mode="json"),
        "families": {name: manifest.dataset(name).family for name in used},
        "deviations": deviations(profile, load_profile(PAPER_PROFILE)),
        "sources": {name: [artifact.record["stage"], artifact.key] for name, artifact in found.items()},
        "environment": {**found["base"].record["environment"], "device": _devices(found, members)},
    }


def _benchmark_facts(benchmarks: Benchmarks) -> dict[str, Any]:
    """What each benchmark asks for, and what of it is not scored, with the reason; nothing where there is none."""
    facts = {
        name: {"tasks": list(tasks), "left_out": dict(benchmarks.left_out[name])}
        for name, tasks in benchmarks.members.items()
    }
    return {"benchmarks": facts} if facts else {}


def _pooled(profile: Profile, scored: Collection[str]) -> dict[str, list[str]]:
    """Every model with several seeds -> its names, one a seed, as far as they are scored."""
    found = {model: [name for name in names if name in scored] for model, names in seeds_of(profile).items()}
    return {model: names for model, names in found.items() if len(names) > 1 and names[0] == model}


def _devices(found: Inputs, members: Sequence[MemberConfig]) -> str | None:
    """What members were trained on: every kind of device there was, with the most that one member used."""
    counts: dict[str, int] = {}
    for facts in (found[f"member/{member.name}"].facts for member in members):
        if name := facts.get("device"):
            counts[name] = max(counts.get(name, 1), facts.get("processes", 1))
    return "; ".join(f"{count} x {name}" if count > 1 else name for name, count in sorted(counts.items())) or None


def passes(profile: Profile, member: MemberConfig, rows: Mapping[str, int], datasets: Collection[str]) -> float:
    """Rows that a member is trained on, those of some datasets, every time; in units of the old corpus: its cost."""
    corpus, subset = profile.corpus, profile.subset(member.subset)
    epochs = member.training.of(profile.training).num_train_epochs
    whole = sum(rows[f"train/{name}"] for name in corpus.datasets)
    old, new = (
        sum(rows[f"train/{name}"] for name in names if name in datasets)
        for names in (corpus.datasets, corpus.new_datasets)
    )
    return epochs * (profile.ratio(subset) * old + (subset.new_data or 0.0) * new) / whole


def _copy(source: Path, folder: Path, pattern: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.glob(pattern)):
        if path.name != RECORD:
            shutil.copyfile(path, folder / path.name)
