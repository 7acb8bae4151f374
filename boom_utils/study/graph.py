"""The artifacts a profile needs, as one graph: what each is made from, and by which function.

A `Study` knows every node by name (``member/s40``, ``scores/boom/sts``), which of them each notebook makes, and builds
them through the workspace. Heavy libraries are imported inside the functions that need them, so that asking what is
up to date, and drawing tables and figures, stays light.
"""

from __future__ import annotations

import logging
import re
import textwrap
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from pydantic import create_model

from boom_utils.artifacts import Artifact, Node, Workspace
from boom_utils.config import MemberConfig, MergeConfig, Profile, TinyBase, load_profile
from boom_utils.data.files import downloads_folder
from boom_utils.data.manifest import HttpsFiles, Manifest, load_manifest
from boom_utils.errors import ConfigError, MergeError, bullet_list, nearest, some_of
from boom_utils.machine import warn_of_emulation
from boom_utils.merging.recipe import make_recipe
from boom_utils.progress import WORTH_SAYING, log_to_stdout, progress, rough, watched
from boom_utils.reporting.results import Results, run_name
from boom_utils.study import gathering, models, scoring, stages
from boom_utils.study.seeds import parts_of, seeds_of, with_seeds
from boom_utils.training.schedules import schedule_stages
from boom_utils.yaml_files import Frozen, parse

log = logging.getLogger(__name__)

NOTEBOOKS: Mapping[str, str] = {
    "01_data": "examples subset/{subsets}",
    "02_finetune_subsets": (
        "random base tokens plan/{sampled} member/{sampled} scores/random/ scores/base/ scores/{sampled}/"
    ),
    "03_merge": "merge/{averages} geometry scores/{averages}/",
    "04_incremental_updates": (
        "subset/{new_subsets} tokens/new plan/{incremental} member/{incremental} merge/{incremental} "
        "scores/{incremental:seeds}/"
    ),
    "05_scheduling_ablations": "plan/{schedules} member/{schedules} scores/{schedules:seeds}/",
    "06_merging_ablations": (
        "interaction/ interaction plan/{restricted} member/{restricted} scores/{restricted}/ geometry/compared "
        "merge/{comparisons} scores/{sampled:seeds}/ scores/{averages:seeds}/ scores/{comparisons:seeds}/ "
        "scores/{ensembles:seeds}/"
    ),
    "07_tables_and_figures": "plan/{rest} member/{rest} scores/{rest:seeds}/ geometry/regime results report",
    "08_your_own_data": "",  # its own study has nodes of its own
}
"""Which nodes each notebook makes or loads: a name, all names under a folder (``scores/base/``), or one for every name
of a group of `Study.group` (``plan/{sampled}``), with all its seeds where it says so (``scores/{averages:seeds}/``).
"""


class _Parameters(Frozen, strict=True):
    """Of a notebook: a text is no number there."""


class Study:
    """A profile, its manifest, and the nodes they imply.

    Args:
        profile: What to do.
        workspace: Where the artifacts are.
        execution: On how many devices members are trained.
    """

    def __init__(
        self, profile: Profile, workspace: Workspace | None = None, execution: models.Execution | None = None
    ) -> None:
        self.profile, self.seeds, self.whole = profile, seeds_of(profile), with_seeds(profile)
        self.manifest = load_manifest(profile.manifest)
        self.workspace = workspace or Workspace()
        _check_against_manifest(profile, self.manifest)
        _check_merges(profile)
        downloads = downloads_folder(self.workspace.root)
        self.nodes = _nodes(profile, self.manifest, downloads, execution or models.Execution())

    @cached_property
    def inputs(self) -> dict[str, list[str]]:
        """Name of every node -> names of the nodes it is made from."""
        names = {id(node): name for name, node in self.nodes.items()}
        return {name: sorted({names[id(one)] for one in node.inputs.values()}) for name, node in self.nodes.items()}

    def node(self, name: str) -> Node:
        """The node of that name.

        Raises:
            ConfigError: The study has none.
        """
        if name not in self.nodes:
            what = f"profile '{self.profile.name}' has no '{name}'{nearest(name, self.nodes)}"
            fix = f"boom plan --jobs jobs.json --profile {self.profile.name} writes the names of all"
            raise ConfigError(what, fix=fix)
        return self.nodes[name]

    def build(self, name: str) -> Artifact:
        """The artifact of that name, made now if need be."""
        node = self.node(name)
        self._say_how_long([name], node.label)
        return self.workspace.build(node)

    def _say_how_long(self, names: Sequence[str], label: str) -> None:
        """Say, where somebody watches, how long this machine needs for some nodes and what is behind them."""
        from boom_utils.study.plan import seconds_to_make

        if watched() and (seconds := seconds_to_make(self, names)) >= WORTH_SAYING:
            log.info("%s: about %s on this machine", label, rough(seconds))

    def model_folder(self, model: str) -> tuple[Path, Artifact | None]:
        """Folder of a model: one of the study's with its artifact, or any folder.

        Raises:
            ConfigError: It is neither, or the study has not made it yet.
        """
        places, folder = stages.model_nodes(self.whole), Path(model).expanduser()
        if model not in places and folder.is_dir():
            return folder, None
        if model not in places:
            what = f"'{model}' is neither a folder nor a model of profile '{self.profile.name}'{nearest(model, places)}"
            raise ConfigError(what, expected=f"a model folder, or one of {some_of(places)}")
        found = self.workspace.find(self.node(places[model]))
        if found is None:
            what, fix = f"model '{model}' of profile '{self.profile.name}' is not made yet", "boom run --profile"
            raise ConfigError(what, where=self.workspace.root, fix=f"{fix} {self.profile.name}")
        return found.path, found

    def build_all(
        self, prefix: str, only: Sequence[str] | None = None, label: str | None = None
    ) -> dict[str, Artifact]:
        """Every artifact whose name starts with ``prefix``, by the rest of its name; or ``only`` some of them."""
        names = [name for name in self.nodes if name.startswith(prefix)]
        if not names:
            raise ConfigError(f"this study has no '{prefix}…'{nearest(prefix, self.nodes)}")
        if only is not None:
            names = [f"{prefix}{name}" for name in only]
        ready = self.workspace.find_all({name: self.node(name) for name in names})
        label, began = label or prefix.rstrip("/"), time.monotonic()
        if ready:
            log.info("%s: %d of %d up to date", label, len(ready), len(names))
        missing = [name for name in names if name not in ready]
        self._say_how_long(missing, label)
        made = {name: self.workspace.build(self.node(name)) for name in progress(missing, len(missing), label)}
        if many := sum(self.node(name).one_of_many for name in missing):
            log.info("%s: %d made, done in %.1f s", label, many, time.monotonic() - began)
        return {name.removeprefix(prefix): made.get(name) or ready[name] for name in names}

    def scores_of(self, models: Iterable[str]) -> dict[str, dict[str, Artifact]]:
        """Scores of those of some models that are scored, on every task: model -> task -> artifact."""
        names = {model: [name for name in self.nodes if name.startswith(f"scores/{model}/")] for model in models}
        made = self.build_all("", [name for some in names.values() for name in some], "scores")
        return {model: {name.split("/")[2]: made[name] for name in some} for model, some in names.items() if some}

    def all_seeds(self, models: Iterable[str]) -> list[str]:
        """Some models with every seed they are made with."""
        return [name for model in models for name in self.seeds.get(model, [model])]

    def of_seed(self, models: Iterable[str], seed: int) -> list[str]:
        """Those of some models that the profile makes with a seed of that number, by the name they then have.

        Args:
            models: Names in the profile.
            seed: 1 for the seed of the profile's own lines, which all models have.

        Raises:
            ConfigError: None of them is made with that seed.
        """
        places, wanted = stages.model_nodes(self.whole), [*models]
        named = wanted if seed == 1 else [name for model in wanted if (name := run_name(model, seed)) in places]
        if wanted and not named:
            most = max((len(names) for names in self.seeds.values()), default=1)
            what = f"profile '{self.profile.name}' makes none of {', '.join(wanted)} with this seed"
            raise ConfigError(what, expected=f"1 to {most}", found=seed, fix="set the parameter `seed`")
        return named

    def results_behind(self, models: Collection[str]) -> list[str]:
        """Names of the nodes that results of some models are read from: what they are trained as, and their scores."""
        behind = {name for model in models for name in self.whole.trained_members(model)}
        members = [member.name for member in self.whole.members if member.name in behind]
        trained = [f"{kind}/{name}" for kind in ("plan", "member") for name in members]
        scores = [name for name in self.nodes if name.startswith("scores/") and name.split("/")[1] in models]
        return ["base", "examples", *trained, *scores]

    def results_of(self, models: Sequence[str]) -> Results:
        """Results of the base and some models before all are gathered: read where they are, made now if need be.

        Models that the profile asks to make with several seeds are: all of them are scored.
        """
        found = self.build_all("", self.results_behind(self.all_seeds(models)), "models and scores")
        facts = gathering.study_facts(self.profile, self.manifest, found)
        return Results(self.workspace.root, facts, gathering.numbers_of(found))

    def write_finished(self, out: Path) -> list[str]:
        """Write results of the models that are scored on every task so far; the others are named in study.json.

        Returns:
            The models that are not finished, every seed of each by its own name.

        Raises:
            ConfigError: No model is scored on every task yet.
        """
        wanted = self.nodes["results"].inputs
        made = self.workspace.find_all(wanted)
        left = {name.split("/")[1] for name in wanted if name.startswith("scores/") and name not in made}
        finished = [name for name in self.whole.scored_models if name not in left]
        if not finished:
            what, fix = f"no model of '{self.profile.name}' is scored on every task yet", "boom run --profile"
            raise ConfigError(what, where=self.workspace.root, fix=f"{fix} {self.profile.name}")
        places = stages.model_nodes(self.whole)
        behind = [*self.results_behind(finished), *(places[name] for name in finished if name in places)]
        kept = {*behind, "geometry", "interaction"} & {*made}
        found = {name: made[name] for name in kept}
        if "geometry/regime" in wanted:
            arms = {name: self.nodes[name] for name in behind if name in self.nodes}
            found["geometry/regime"] = self.workspace.build(models.regime(self.profile, arms))
        missing = [name for name in self.whole.scored_models if name in left]
        out.mkdir(parents=True, exist_ok=True)
        gathering.write_results(self.profile, self.manifest, found, out, missing)
        return missing

    def group(self, name: str) -> list[str]:
        """Names of the models or subsets of a group, as `boom_utils.experiments.Experiments` declares them.

        ``sampled``, ``schedules`` (the one they are compared with comes first) and ``incremental``. ``averages``:
        merges of ``sampled``; ``comparisons``: all other merges of old data; ``ensembles``; ``restricted``: the
        members behind these two that are not ``sampled``; ``rest``: members in none of these. ``subsets`` and
        ``new_subsets``: subsets without and with new data.
        """
        profile, found = self.profile, self.profile.experiments
        compared, updated = found.scheduling, found.incremental.models
        averages, members = [*found.averages], [member.name for member in profile.members]
        merged = [merge.name for merge in profile.merges if merge.name not in (*averages, *updated)]
        together = [one.name for one in profile.ensembles]
        behind = {member for one in (*merged, *together) for member in profile.trained_members(one)} - {*found.sampled}
        groups = {
            "sampled": [*found.sampled],
            "schedules": [compared.baseline, *compared.models] if compared.baseline else [],
            "incremental": [*updated],
            "averages": averages,
            "comparisons": merged,
            "ensembles": together,
            "restricted": [name for name in members if name in behind],
        }
        groups["rest"] = [name for name in members if not any(name in group for group in groups.values())]
        groups["subsets"] = [subset.name for subset in profile.subsets if subset.new_data is None]
        groups["new_subsets"] = [subset.name for subset in profile.subsets if subset.new_data is not None]
        return groups[name]

    def nodes_of(self, notebook: str) -> dict[str, Node]:
        """The nodes that ``notebook`` makes or loads, by name."""
        wanted: list[str] = []
        for pattern in NOTEBOOKS[notebook].split():
            group = re.search(r"\{(\w+)(:seeds)?\}", pattern)
            models = self.group(group[1]) if group else []
            models = self.all_seeds(models) if group and group[2] else models
            wanted += [pattern.replace(group[0], model) for model in models] if group else [pattern]
        folders = tuple(name for name in wanted if name.endswith("/"))
        return {name: node for name, node in self.nodes.items() if name in wanted or name.startswith(folders)}


def open_study(profile: str, workspace: Path | None = None) -> Study:
    """Open a study from a notebook: logging to the notebook's output, one line an event, and the profile echoed.

    Args:
        profile: Name of a profile, or the path of a YAML file.
        workspace: Folder of the artifacts; None takes ``$BOOM_HOME``, else ``workspace/`` in the project.

    Returns:
        The study; nothing is built yet.

    Raises:
        ConfigError: As `boom_utils.config.load_profile`, or the profile asks for what its manifest lacks.

    >>> study = open_study("smoke")  # doctest: +ELLIPSIS
    profile smoke: ...
    >>> study.group("schedules")
    ['full', 'seq-datasets', 'two-stage']
    """
    log_to_stdout()
    loaded = load_profile(profile)
    log.info("%s", textwrap.fill(f"profile {loaded.name}: {loaded.description.strip()}", 100))
    say_precision(loaded)
    return Study(loaded, Workspace(workspace))


def checked_parameters(namespace: Mapping[str, Any], **kinds: Any) -> dict[str, Any]:
    """The parameters of a notebook, once they are what it can take.

    Args:
        namespace: The notebook's, ``globals()``.
        kinds: The type of every parameter.

    Returns:
        Name -> value, in the order of ``kinds``.

    Raises:
        ConfigError: A value of another type, all of them together.

    >>> checked_parameters({"rows_shown": 5, "profile": "smoke"}, profile=str, rows_shown=int)
    {'profile': 'smoke', 'rows_shown': 5}
    """
    fields: Any = {name: (kind, ...) for name, kind in kinds.items()}
    model = create_model("Parameters", __base__=_Parameters, **fields)
    given = {name: namespace[name] for name in kinds}
    parse(model, given, "the parameters of this notebook", ConfigError)
    return given


def say_precision(profile: Profile) -> None:
    """Warn where this machine only emulates a precision that the profile asks for, before anything starts."""
    base = profile.base_model
    asked = {profile.training.precision, profile.evaluation.precision}
    asked |= {base.pretraining.precision} if isinstance(base, TinyBase) else set()
    warn_of_emulation(asked)


def _check_against_manifest(profile: Profile, manifest: Manifest) -> None:
    corpus, evaluation = profile.corpus, profile.evaluation
    roles, tasks = {one.id: one.role for one in manifest.datasets}, {one.id: one for one in manifest.tasks}
    asked: list[tuple[str, Sequence[str], Collection[str]]] = [("corpus.datasets", corpus.datasets, roles)]
    asked += [("corpus.new_datasets", corpus.new_datasets, roles)]
    asked += [(f"evaluation.{key}", getattr(evaluation, key), tasks) for key in ("in_domain", "out_of_domain")]
    problems = [f"{key}: no '{n}'{nearest(n, known)}" for key, names, known in asked for n in names if n not in known]
    problems += [
        f"corpus.new_datasets: '{name}' has the role {roles[name]}, not new_data"
        for name in corpus.new_datasets
        if roles.get(name, "new_data") != "new_data"
    ]
    problems += [
        f"corpus.datasets: '{name}' is only evaluated, nobody may train on it"
        for name in corpus.datasets
        if roles.get(name) == "evaluation"
    ]
    problems += [
        f"{key}: '{name}' is {tasks[name].domain(corpus.datasets)} of what is trained on"
        for key, names, _ in asked[2:]
        for name in names
        if name in tasks and tasks[name].domain(corpus.datasets) != key.partition(".")[2].replace("_", "-")
    ]
    if corpus.evaluation_part == "validation":
        if not isinstance(manifest.source, HttpsFiles):
            problems.append("corpus.evaluation_part: validation is for corpora of files only")
        if corpus.evaluation_queries is None:
            problems.append("corpus.evaluation_part: validation is what evaluation_queries leaves, and that takes all")
    if problems:
        what = f"profile '{profile.name}' does not fit manifest '{manifest.name}'"
        raise ConfigError(what, found=bullet_list(problems))
    for member in profile.members:
        names = (*corpus.datasets, *profile.new_datasets(profile.subset(member.subset)))
        families = {name: manifest.dataset(name).family for name in names}
        schedule_stages(member, families, dict.fromkeys(families, 0))


def _check_merges(profile: Profile) -> None:
    """Refuse merges that no recipe can say, all of them together."""
    problems = []
    for merge in profile.merges:
        places = {name: f"/{name}" for name in (*merge.members, "base")}
        try:
            make_recipe(models.recipe_of(merge, profile.merge_weights(merge), places))
        except MergeError as error:
            problems += [
                f"merge '{merge.name}': {line.strip(' -')}" for line in str(error).splitlines() if "- " in line
            ]
    if problems:
        raise ConfigError(f"profile '{profile.name}' asks for merges that cannot be made", found=bullet_list(problems))


def _nodes(profile: Profile, manifest: Manifest, downloads: Path, execution: models.Execution) -> dict[str, Node]:
    """All nodes of a study, inputs before what is made from them."""
    nodes: dict[str, Node] = {"examples": stages.examples(profile, manifest, downloads)}
    whole = with_seeds(profile)
    for subset in whole.subsets:
        nodes[f"subset/{subset.name}"] = stages.subset(whole, subset, nodes)
    nodes |= stages.base_nodes(profile, manifest, nodes)
    nodes["tokens"] = stages.tokens(profile, manifest, nodes)
    if profile.corpus.new_datasets:
        nodes["tokens/new"] = stages.tokens(profile, manifest, nodes, new=True)
    nodes |= models.interaction_nodes(profile, manifest, nodes, execution)
    nodes |= _model_nodes(whole, manifest, nodes, execution)
    nodes |= models.geometry_nodes(profile, nodes)
    places = stages.model_nodes(whole)
    scored = {model: [nodes[places[one]] for one in whole.encoding_models(model)] for model in whole.scored_models}
    nodes |= scoring.score_nodes(whole, manifest, scored, nodes["examples"], downloads)
    nodes["results"] = gathering.results(profile, manifest, nodes)
    nodes["report"] = gathering.report(nodes)
    return nodes


def _model_nodes(
    profile: Profile, manifest: Manifest, known: Mapping[str, Node], execution: models.Execution
) -> dict[str, Node]:
    """Plans, members and merges, in an order in which each comes after what it is made from."""
    nodes, places = dict(known), stages.model_nodes(profile)
    lines: dict[str, MemberConfig | MergeConfig] = {member.name: member for member in profile.members}
    lines |= {merge.name: merge for merge in profile.merges}
    for name in (one for one in TopologicalSorter(parts_of(profile)).static_order() if one in lines):
        if isinstance(line := lines[name], MergeConfig):
            nodes[places[name]] = models.merge(profile, manifest, line, nodes)
        else:
            nodes[f"plan/{name}"] = models.plan(profile, manifest, line, nodes)
            nodes[places[name]] = models.member(profile, manifest, line, nodes, execution)
    return nodes
