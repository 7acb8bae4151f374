"""A reader's own rows and model: the study of them as two files, the model that comes out of it, and its updates.

The files are an ordinary manifest and profile, so a study that was stopped goes on where it was. The model is a folder
of sentence-transformers, in which `FIT` says what it was made of: an update finds the old rows by it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pandas as pd
import yaml

from boom_utils.artifacts import PROJECT_ROOT, RECORD, Artifact, Node, Workspace, sha256_file, write_json, write_text
from boom_utils.cards import CARD
from boom_utils.config import MergeConfig, PretrainedBase, load_profile
from boom_utils.data.examples import Kind, hash_share
from boom_utils.data.files import downloads_folder
from boom_utils.data.own import Checked, check_files, local_path, own_datasets
from boom_utils.errors import ConfigError, DataError, bullet_list
from boom_utils.evaluation.statistics import TaskSamples
from boom_utils.model_folder import (
    FIT,
    NO_LIMIT,
    RUN_FILES,
    content_hash,
    is_sentence_transformer,
    length_limits,
    read_mapping,
    read_spec,
    whole_folder,
)
from boom_utils.progress import rough
from boom_utils.reporting.model_cards import scored_card
from boom_utils.reporting.results import Results
from boom_utils.reporting.tables import beside, compare, markdown
from boom_utils.study.graph import Study
from boom_utils.study.models import merge
from boom_utils.study.plan import plan_study, total
from boom_utils.study.scoring import score_nodes
from boom_utils.study.stages import model_nodes
from boom_utils.training.base_source import fetch_base, source_kind

log = logging.getLogger(__name__)

PROFILE, MANIFEST = "profile.yaml", "manifest.yaml"
HELD_OUT = 0.2
_CORE = 0.4  # share of the old rows that an update meets again, as in the paper
_LONGEST = 256  # most tokens of a text in training
_UNSTATED = 512  # most tokens of a text of a model that states no limit, and of a language model
_MANY = 1000  # rows of a dataset from which on batches are larger
_HEAD = "# Written by the kit for your own data; edit it, and give the path of {profile} as profile.\n"
_NO_PROMPT = "Not used: no instruction was given."
_SEMANTICS: dict[Kind, tuple[Any, ...]] = {
    "examples": ("retrieval", True, False, False, "train_group_size", "normal"),
    "graded": ("sts", True, True, True, "train_group_size", "symmetric_sts"),
    "labelled": ("classification", False, True, False, "first_row", "symmetric_class"),
}
_FIELDS = ("family", "in_batch_negatives", "halve_batch", "instruction_on_passages", "group_size", "example_type")
_TUNED = "ours: the best of four for MiniLM, an encoder tuned for embeddings (results/controls-validation)"
_RAW = "paper: its rate for a language model of 0.6 B parameters"
_BATCHES = f"ours: 64, or 16 where a dataset has less than {_MANY} rows; paper: 32 a device"
_GROUPS = {"old": "held-out rows", "new": "held-out new rows"}
_READING = "results/README.md#is-boom-more-than-interpolation-and-does-sampling-matter"


@dataclass(frozen=True)
class Fit:
    """What a reader brings, and what is to become of it.

    Args:
        datasets: Dataset -> its files, as `boom_utils.data.own.own_datasets` gives them.
        base: Hub repository, folder, or distribution of the model to start from.
        method: ``boom``: members on samples, merged by Multi-SLERP. ``interpolate``: one run on all rows, drawn back
            toward its base. ``soup``: the mean of three runs on all rows.
        prompt: Instruction of the queries; None: what the base itself puts before texts, if anything.
        held_out: Share of the queries that is evaluated and not trained on; None: none.
        ratios: Shares of every dataset that the members of ``boom`` are trained on; 1.0 is the reference.
        most_rows: Most rows of a dataset; None takes all.
        new: Datasets that came after ``update`` was made; one member is trained on these and a core of the others.
        update: Folder of the model that this member is merged into.
    """

    datasets: Mapping[str, Sequence[str]]
    base: str
    method: Literal["boom", "interpolate", "soup"] = "boom"
    prompt: str | None = None
    held_out: float | None = None
    ratios: Sequence[float] = (0.2, 0.4, 0.6, 0.8, 1.0)
    most_rows: int | None = None
    new: Mapping[str, Sequence[str]] = field(default_factory=dict)
    update: Path | None = None

    @property
    def files(self) -> dict[str, Sequence[str]]:
        """The files of all datasets, old ones first, by the names that these have in the study.

        Raises:
            ConfigError: Two get one name.
        """
        every = [*self.datasets.items(), *self.new.items()]
        names = [re.sub(r"[^a-z0-9_.-]+", "_", name.lower()).strip("_.-") or "data" for name, _ in every]
        if len({*names}) < len(names):
            raise ConfigError("two datasets get one name", found=[name for name, _ in every], fix="rename one of them")
        return dict(zip(names, (files for _, files in every), strict=True))

    @property
    def model(self) -> str:
        """Name in the study of the model that comes out; an interpolation has a name for each share."""
        return "updated" if self.update else self.method

    @property
    def folder(self) -> Path | None:
        """Where the base is, if it was given as a folder."""
        place = Path(self.base).expanduser()
        return place if source_kind(self.base) == "folder" or place.is_dir() else None


# --- the study as files -----------------------------------------------------------------------------------------------


def write_study(fit: Fit, folder: Path) -> Path:
    """Write a manifest and a profile, with paths relative to them; what was written there before is replaced.

    Returns:
        The path of the profile. Its ``sources`` say why settings are what they are.

    Raises:
        ConfigError: Names, ratios or rows do not do, or there is no such model.
        DataError: A dataset has no row that can be read.
        DownloadError: The model is on the hub and cannot be had.
    """
    files, ratios = fit.files, fit.ratios
    if 1.0 not in ratios or len({*ratios}) != len(ratios):
        raise ConfigError("the ratios need a 1.0 (--ratios 100), and none twice", found=[*ratios])
    checked = {name: check_files(some, _MANY) for name, some in files.items()}
    profile = _profile(fit, _batch(fit, checked), folder)
    entries = [_dataset(fit, name, one.kind, folder) for name, one in checked.items()]
    held = entries if fit.held_out else []
    tasks = [{"id": one["id"], "dataset": one["id"], "family": one["family"], "held_out": False} for one in held]
    manifest: dict[str, Any] = {"name": "own_data", "description": "Rows of a reader's own."}
    manifest |= {"source": {"kind": "local_files"}, "datasets": entries, "tasks": tasks}
    folder.mkdir(parents=True, exist_ok=True)
    head = _HEAD.format(profile=PROFILE)
    write_text(folder / MANIFEST, head + _yaml(manifest))
    write_text(folder / PROFILE, head + _yaml(profile))
    return folder / PROFILE


def _batch(fit: Fit, checked: Mapping[str, Checked]) -> int:
    """Queries of a batch: few where rows are few, so that the smallest sample fills some.

    Raises:
        ConfigError: It fills none.
    """
    rows = {name: min(one.rows, fit.most_rows or one.rows) for name, one in checked.items()}
    batch = 64 if min(rows.values()) >= _MANY else 16
    share = (1 - (fit.held_out or 0)) * (min(fit.ratios) if fit.method == "boom" and not fit.new else 1)
    needed = {name: batch // (1 if one.kind == "examples" else 2) for name, one in checked.items()}
    few = [name for name, count in rows.items() if count < _MANY and count * share < needed[name]]
    if few:
        found = bullet_list([f"{name}: {rows[name] * share:.0f} of {rows[name]}" for name in few])
        what, fix = "rows are too few: the smallest sample fills no batch", "give more rows, or larger --ratios"
        raise ConfigError(what, expected=f"{batch} rows in it", found=found, fix=fix)
    return batch


def _dataset(fit: Fit, name: str, kind: Kind, folder: Path) -> dict[str, Any]:
    """An entry of the manifest."""
    files = fit.files[name]
    shown = ", ".join(Path(file).name for file in files[:3])
    return {
        "id": name,
        "role": "train" if [*fit.files].index(name) < len(fit.datasets) else "new_data",
        "prompt": fit.prompt or _NO_PROMPT,
        **dict(zip(_FIELDS, _SEMANTICS[kind], strict=True)),
        "description": f"The rows of {shown}{' and others' if len(files) > 3 else ''}.",
        "local": {"files": [_relative(file, folder) for file in files], "held_out": fit.held_out},
    }


def _profile(fit: Fit, batch: int, folder: Path) -> dict[str, Any]:
    names, (base, tuned) = [*fit.files], _base(fit, folder)
    old, new, models = names[: len(fit.datasets)], names[len(fit.datasets) :], _models(fit)
    corpus = {"manifest": MANIFEST, "datasets": old, "new_datasets": new, "train_rows": fit.most_rows}
    scored = {"in_domain": old, "out_of_domain": new} if fit.held_out else {}
    if not scored:
        models |= {kind: [{**one, "scored": False} for one in models[kind]] for kind in ("members", "merges")}
    longest = min(base["max_seq_length"], _LONGEST)
    return {
        "name": "own",
        "description": f"{', '.join(names)}: {'an update' if fit.update else fit.method}.",
        "corpus": {**corpus, "evaluation_queries": 500, "evaluation_documents": 5000, "hard_negatives": 3},
        "base_model": base,
        "training": {
            "learning_rate": 1e-4 if tuned else 5e-5,
            "per_device_train_batch_size": batch,
            "temperature": 0.02,
            "train_group_size": 4,
            "query_max_len": longest,
            "passage_max_len": longest,
            "precision": "auto",
            "tokens_per_micro_batch": "auto",
            "tokens_in_memory": "auto",
            "save_steps": 50,
        },
        **models,
        "evaluation": {**scored, "reference": models["members"][-1]["name"] if scored else "base", "precision": "auto"},
        "sources": {
            "training.learning_rate": _TUNED if tuned else _RAW,
            "training.per_device_train_batch_size": _BATCHES,
            "training.passage_max_len": f"ours: the limit of the model, {base['max_seq_length']}, at most {_LONGEST}",
        },
    }


def _models(fit: Fit) -> dict[str, Any]:
    """Subsets, members and merges, and which of them is which; the member that others are compared with is the last."""
    if fit.new:
        subsets = [{"name": "update", "ratio": _CORE, "new_data": 1.0}]
        return {"subsets": subsets, "members": [{"name": "update", "subset": "update", "seed": 100}], "merges": []}
    percents = sorted(round(100 * ratio) for ratio in fit.ratios) if fit.method == "boom" else [100]
    members = {f"s{one}" if one < 100 else "full": (f"p{one}", one) for one in percents}
    more: dict[str, Any] = {}
    merges: list[dict[str, Any]]
    if fit.method == "boom":
        merges = [{"name": "boom", "method": "multislerp", "members": [*members], "weights": "ratio"}]
        more = {"boom": "boom", "variants": ["boom"]}
    elif fit.method == "soup":
        members = {"full-b": ("p100", 200), "full-c": ("p100", 300), **members}
        merges = [{"name": "soup", "method": "linear", "members": [*members], "weights": "equal"}]
    else:
        line: dict[str, Any] = {"method": "task_arithmetic", "members": ["full"]}
        merges = [{"name": f"interp-{tenth}0", **line, "weights": [tenth / 10]} for tenth in range(1, 10)]
        more = {"interpolation": {"of": "full", "models": [one["name"] for one in merges]}}
    trained = [
        {"name": name, "subset": subset, "seed": seed, "scored": name == "full"}
        for name, (subset, seed) in members.items()
    ]
    subsets = [{"name": f"p{one}", "ratio": one / 100} for one in percents]
    experiments = {"full": "full", "sampled": [*members], **more}
    return {"subsets": subsets, "members": trained, "merges": merges, "experiments": experiments}


def _base(fit: Fit, folder: Path) -> tuple[dict[str, Any], bool]:
    """The base of the profile, and whether it was tuned for embeddings."""
    place = fit.folder
    files = fetch_base(PretrainedBase(kind="pretrained", name=str(place.resolve()) if place else fit.base))
    base: dict[str, Any] = {"kind": "pretrained", "prompts": "instruct" if fit.prompt else "none"}
    base["name"] = f"./{_relative(place, folder)}" if place else fit.base
    base["revision"] = files.facts.get("revision")
    if files.gguf:
        return {**base, "max_seq_length": _UNSTATED, "pooling": "lasttoken"}, False
    with whole_folder(files.folder) as whole:
        if not is_sentence_transformer(whole):
            causal = "CausalLM" in str(read_mapping(whole / "config.json").get("architectures"))
            limit = min((_UNSTATED, *(one for one in length_limits(whole) if one)))
            return {**base, "max_seq_length": limit, "pooling": "lasttoken" if causal else "mean"}, False
        spec = read_spec(whole)
    query, passage = spec.own_prompts
    if not query and not passage:  # instructions, which are filled templates
        filled = {text for text in spec.prompts.values() if text}
        query = spec.prompts.get("query") or (filled.pop() if len(filled) == 1 else "")
    if not fit.prompt and (query or passage):
        base |= {"prompts": "own", "query_prompt": query, "passage_prompt": passage}
    return {**base, "max_seq_length": _UNSTATED if spec.max_seq_length == NO_LIMIT else spec.max_seq_length}, True


def _relative(path: str | Path, folder: Path) -> str:
    on_hub = str(path).startswith("hf://")
    return str(path) if on_hub else Path(os.path.relpath(Path(path).resolve(), folder.resolve())).as_posix()


def _yaml(content: dict[str, Any]) -> str:
    plain = json.loads(json.dumps(content))  # no list is named twice, so none is an anchor
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=110)


# --- what comes out ---------------------------------------------------------------------------------------------------


def open_fit(fit: Fit, folder: Path, workspace: Workspace | None = None) -> Study:
    """Write the study of a reader's rows and open it.

    Args:
        fit: The reader's rows and model, and what is wanted.
        folder: Gets manifest.yaml and profile.yaml; what was written there before is replaced.
        workspace: Where the artifacts are.

    Returns:
        The study; that of an update knows the model that is updated, and the merged one, too.

    Raises:
        ConfigError: Names, ratios or rows do not do, or there is no such model.
        DataError: A dataset has no row that can be read.
        DownloadError: The model is on the hub and cannot be had.

    >>> from boom_utils.data.examples import write_jsonl
    >>> from boom_utils.study.graph import open_study
    >>> _ = write_jsonl(Path("faq.jsonl"), [{"anchor": f"question {n}", "positive": f"{n}"} for n in range(100)])
    >>> study = open_fit(
    ...     Fit({"faq": ["faq.jsonl"]}, str(open_study("smoke").build("base").path), "soup"), Path("own")
    ... )  # doctest: +ELLIPSIS
    profile smoke: ...
    >>> study.profile.training.learning_rate, [name for name in study.nodes if name.startswith("merge/")]
    (0.0001, ['merge/soup'])
    """
    study = Study(load_profile(write_study(fit, folder)), workspace)
    if (before := fit.update) is None:
        return study

    def keep(out: Path, found: Mapping[str, Artifact]) -> Mapping[str, Any]:
        shutil.copytree(before, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(FIT))
        prompts = "config_sentence_transformers.json"  # those of the new datasets are added
        shutil.copyfile(found["base"].path / prompts, out / prompts)
        return {"trained": read_fit(before)["trained"]}

    config, inputs = {"content": content_hash(before)}, {"base": study.node("base")}
    study.nodes["before"] = Node("updated", 1, "the model to update", config, keep, inputs)
    line = MergeConfig(name="updated", method="multislerp", members=("before", "update"), weights="equal")
    study.nodes["merge/updated"] = merge(study.profile, study.manifest, line, study.nodes)
    models = {"before": [study.node("before")], "updated": [study.node("merge/updated")]}
    downloads = downloads_folder(study.workspace.root)
    study.nodes |= score_nodes(study.profile, study.manifest, models, study.node("examples"), downloads)
    return study


def compared(study: Study, fit: Fit) -> tuple[str, Results]:
    """The model that a study is made for, and results of it and of what it is compared with; made now if need be.

    Of an interpolation one half of the held-out queries chooses the share, and the results are those of the other half.

    Args:
        study: Of `open_fit`.
        fit: What it was opened with.

    Returns:
        Name of the model; results of its base, of the full run and of it, in this order (of an update: of the model
        before, of the update alone and of the merged one).

    >>> from boom_utils.study.graph import open_study
    >>> name, results = compared(open_study("smoke"), Fit({}, "base"))  # doctest: +ELLIPSIS
    profile smoke: ...
    >>> name, results.models
    ('boom', ['base', 'full', 'boom'])
    """
    name = fit.model
    models = ["before", "update", name] if fit.update else ["base", "full", name]
    if name == "interpolate":
        every = study.results_of(study.profile.scored_models)
        tasks, (choosing, results) = every.tasks("in-domain"), (_half(every, first) for first in (True, False))
        name = max((one for _, one in every.interpolation[1:]), key=lambda one: choosing.run_mean(one, tasks))
        models = [*dict.fromkeys(("base", "full", name))]
    else:
        results = study.results_of(models)
    return name, replace(results, study={**results.study, "models": models})


def _half(results: Results, first: bool) -> Results:
    """Results on one half of the queries, pairs or rows of every task."""

    def of(one: TaskSamples) -> TaskSamples:
        kept = [(hash_share(name) < 0.5) == first for name in one.ids]
        ids = tuple(name for name, keep in zip(one.ids, kept, strict=True) if keep)
        return TaskSamples(one.metric, ids, {name: values[kept] for name, values in one.columns.items()})

    samples = {place: of(one) for place, one in results.numbers.samples.items()}
    return replace(results, numbers=replace(results.numbers, samples=samples))


def comparison_text(model: str, results: Results) -> str:
    """What the held-out rows say of a model; that it is below what it was made from is said first.

    Args:
        model: Its name.
        results: As `compared` gives them.

    Returns:
        Markdown: the means of all models, and how far the others are from this one, with intervals and verdicts.

    >>> from boom_utils.reporting.results import read_results
    >>> results = read_results(Path("results/smoke"))  # after `boom run --profile smoke`
    >>> "| full |" in comparison_text("boom", results)
    True
    """
    groups = {_GROUPS.get(name, name): tasks for name, tasks in results.task_groups.items()}
    origin, lines = results.models[0], list[str]()
    for group, tasks in groups.items():
        if (gap := results.difference(model, origin, tasks)).value < 0:
            said = f"{100 * gap.value:+.1f} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"
            lines.append(f"**BELOW WHAT IT WAS MADE FROM**: {model} minus {origin} on {group}: {said}\n")
    if lines:
        lines.append("More rows, a lower learning_rate in the profile, or --method interpolate may help.\n")
    note = f"{100 * results.confidence:g} % intervals over queries; every model was trained once."
    table = beside([{"model": name} for name in results.models], compare(results, results.models, groups, model))
    return "\n".join([*lines, markdown(table), note])


def methods_text() -> str:
    """Which of the methods the kit's own study supports, as its committed table says."""
    table = PROJECT_ROOT / "results" / "controls" / "tables" / "hypotheses.csv"
    rows = pd.read_csv(table).to_dict("records") if table.is_file() else []
    said = [
        f"{one['model']} {one['verdict']} than {one['against']} {one['domain']}"
        for one in rows
        if one["rank"] == "primary" and one["verdict"] != "inconclusive"
    ]
    found = "; ".join(said) or "the kit's study has not decided between them yet"
    return f"boom, interpolate or soup: {found} ({_READING})"


# --- the command ------------------------------------------------------------------------------------------------------


def fit_of(asked: Mapping[str, Any]) -> Fit:
    """What a command line asks for.

    Args:
        asked: ``data``, ``compare``, ``update`` and fields of `Fit`, ratios in per cents; None where nothing is given.

    Raises:
        ConfigError: Parts that do not go together, no such rows, or a model to update that `fit_model` did not make.
        DataError: Rows that it was made of are not there any more, or are other ones; all are named.
    """
    given = {name: value for name, value in asked.items() if value is not None}
    data, compare, update = given.pop("data"), given.pop("compare"), given.pop("update", None)
    if update is not None:
        if others := sorted(given.keys() - {"most_rows"}):
            what, fix = "an update is made as the model was that it updates", "leave these out"
            raise ConfigError(what, found=", ".join(f"--{one.replace('_', '-')}" for one in others), fix=fix)
        return _update(update, data, compare, given)
    if "base" not in given:
        raise ConfigError("there is nothing to start from", fix="name a model with --base, or one to --update")
    if ratios := given.get("ratios"):
        given["ratios"] = [ratio / 100 for ratio in ratios]
        if given.get("method", "boom") != "boom":
            raise ConfigError("--ratios are of the members of boom", found=f"--method {given['method']}")
    if compare or given.get("method") == "interpolate":
        given.setdefault("held_out", HELD_OUT)
    return Fit(own_datasets(data), **given)


def _update(folder: Path, data: str, compare: bool, given: Mapping[str, Any]) -> Fit:
    made, datasets, problems = read_fit(folder), dict[str, list[str]](), list[str]()
    if compare and not made["held_out"]:
        what, fix = "no rows were held out when the model was made: it has seen all", "leave --compare out"
        raise ConfigError(what, where=folder / FIT, fix=fix)
    for name, files in made["data"].items():
        datasets[name] = [one if "://" in one else os.path.relpath((folder / one).resolve()) for one in files]
        for path, known in zip(map(local_path, datasets[name]), files.values(), strict=True):
            found = sha256_file(path) if path.is_file() else None
            problems += [] if found == known else [f"{path}: {'changed' if found else 'not there'}"]
    if problems:
        what, fix = "rows that the model was made of are not as they were", "put them back, and new rows in other files"
        raise DataError(what, where=folder / FIT, found=bullet_list(problems), fix=fix)
    base = str((folder / made["base"]).resolve()) if source_kind(made["base"]) == "folder" else made["base"]
    kept = {name: made[name] for name in ("prompt", "held_out", "most_rows")} | {**given}
    return Fit(datasets, base, **kept, new=own_datasets(data), update=folder)


def read_fit(folder: Path) -> dict[str, Any]:
    """What a model folder was made of, as `fit_model` wrote it.

    Raises:
        ConfigError: It was not made by that.
    """
    if not (path := folder / FIT).is_file():
        raise ConfigError("this folder was not made by boom fit", where=folder, expected=f"a file {FIT} in it")
    return dict(json.loads(path.read_text(encoding="utf-8")))


def fit_model(fit: Fit, out: Path, compare: bool) -> None:
    """Make a model of a reader's rows and save it; what is finished stays, so the same call goes on after a stop.

    Args:
        fit: What is wanted.
        out: The new folder, which appears whole or not at all.
        compare: Compare the model with what it was made from, on held-out rows.

    Raises:
        ConfigError: ``out`` is another model or cannot be written, or there is too little space.
    """
    made = read_fit(out) if out.exists() else {}
    out.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(out.parent, os.W_OK):
        raise ConfigError("the folder cannot be written", where=out, fix="name another place with --out")
    study = open_fit(fit, Workspace().root / "fit" / out.resolve().name)
    facts = _facts(study, fit, out)
    if other := [name for name in facts if made and made.get(name) != facts[name]]:
        fix = "name another folder, or remove this one"
        raise ConfigError("the folder holds a model that was made otherwise", where=out, found=other, fix=fix)
    log.info("%s: %s", out, "up to date" if made else f"its study is {study.manifest.folder / PROFILE}")
    name, results = fit.model, None
    if not made:
        _prepare(study, scores=compare or name == "interpolate")
    if compare or (name == "interpolate" and not made):
        name, results = compared(study, fit)
    if not made:
        artifact = study.build({**model_nodes(study.profile), "updated": "merge/updated"}[name])
        card = (artifact.path / CARD).read_text(encoding="utf-8")
        card = card.replace("Made from:", f"Made by `boom fit` ({fit.method}), starting at `{facts['base']}`, from:")
        card = scored_card(card, results, name) if compare and results else card
        _save(artifact.path, out, {**facts, "model": name, "trained": artifact.facts.get("trained", {})}, card)
    unseen = "nobody looked whether it is better than its base: --compare keeps rows from training, and looks"
    log.info("\n%s\n%s", comparison_text(name, results) if compare and results else unseen, methods_text())
    log.info('the model (%s) is in %s: SentenceTransformer("%s")', name, out, out)


def _facts(study: Study, fit: Fit, out: Path) -> dict[str, Any]:
    """What `FIT` says of a model: all that it depends on, with paths relative to its folder."""
    digests = study.node("examples").config["found"]
    data = {
        name: dict(zip((_relative(file, out) for file in files), digests[name].values(), strict=True))
        for name, files in fit.files.items()
    }
    asked = {name: getattr(fit, name) for name in ("method", "prompt", "held_out", "most_rows")}
    asked |= {"ratios": [*fit.ratios], "base": f"./{_relative(fit.folder, out)}" if fit.folder else fit.base}
    before = {} if fit.update is None else {"update_of": content_hash(fit.update)}
    return {**asked, **before, "data": data, "training": study.profile.training.model_dump(mode="json")}


def _prepare(study: Study, *, scores: bool) -> None:
    """Make what is known before training, say what training costs here, and train.

    Raises:
        ConfigError: The disk has no room for it.
    """
    for key, why in study.profile.sources.items():
        name = key.partition(".")[2]
        log.info("  %s: %s (%s)", name, getattr(study.profile.training, name), why)
    for name in ("base", "examples", *(one for one in study.nodes if one.startswith("tokens"))):
        study.build(name)
    costs = plan_study(study).costs
    left = costs[~costs["up_to_date"] & ((costs["kind"] != "scores") | scores)]
    sums, free = total(left), shutil.disk_usage(study.workspace.root).free
    needed = sums["model_bytes"] + costs["model_bytes"].max() + costs["checkpoint_bytes"].max()
    if needed > free:
        parts = {"expected": f"{needed / 1e9:.1f} GB", "found": f"{free / 1e9:.1f} GB"}
        raise ConfigError("no space left on the disk", where=study.workspace.root, **parts, fix="set BOOM_HOME")
    runs, known = (left["kind"] == "member").sum(), sums["seconds"] == sums["seconds"]
    took = rough(sums["seconds"]) if known else "an unknown time"
    examples, steps = (f"{sums[name]:,.0f}" for name in ("examples", "steps"))
    said = "to do: %d runs, %s examples in %s steps: about %s on this machine; %.1f GB of disk"
    log.info(said, runs, examples, steps, took, needed / 1e9)
    study.build_all("member/")


def _save(folder: Path, out: Path, facts: Mapping[str, Any], card: str) -> None:
    """Copy a finished model into a new folder that appears at once."""
    left = shutil.ignore_patterns(RECORD, *RUN_FILES, "mergekit_config.yaml")
    with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as place:
        made = Path(place, out.name)
        shutil.copytree(folder, made, ignore=left)
        write_text(made / CARD, card)
        write_json(made / FIT, facts)
        made.rename(out)
