"""Profiles: one YAML declares a whole study, checked completely before anything runs; frozen, no unknown keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from operator import not_
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr

from boom_utils.errors import ConfigError, nearest
from boom_utils.experiments import CURVE, Experiments
from boom_utils.hyperparameters import MachinePrecision, TrainingChanges, TrainingConfig
from boom_utils.yaml_files import Frozen, Name, file_of, joined, parse, read_yaml, repeated

PROFILES = Path(__file__).parent / "profiles"
QUERY_TEMPLATE = "Instruct: {instruction}\nQuery: "
"""What stands before a query in training (authors' 0.6B script), and when models are scored unless `query_template` is
another; the authors' evaluation leaves out the last space."""
SOURCES = ("paper", "authors' script", "model card", "third-party summary", "ours")
"""Where a value of a profile may come from; a note follows after a colon."""

Ratio = Annotated[float, Field(gt=0, le=1)]
Pooling = Literal["lasttoken", "mean", "cls"]


def query_prompt(instruction: str, template: str = QUERY_TEMPLATE) -> str:
    """The text put before a query: the template filled with a dataset's instruction."""
    return template.replace("{instruction}", instruction)


class CorpusConfig(Frozen):
    """Which corpus, and how much of it (rows and documents are drawn by seed; None takes all)."""

    # name of a data manifest, or path of a .yaml file, relative to the profile's
    manifest: Annotated[str, Field(pattern=r"^([a-z0-9][a-z0-9_.-]*|.+\.ya?ml)$", max_length=1000)]
    datasets: tuple[Name, ...]  # training datasets, in the order sequential schedules use
    new_datasets: tuple[Name, ...] = ()  # those that arrive later; role `new_data`
    train_rows: int | None = Field(default=None, gt=0)  # most training rows a dataset
    pretraining_pairs: int | None = Field(default=None, gt=0)  # pairs reserved for the tiny base
    evaluation_queries: int | None = Field(default=None, gt=0)  # most queries, pairs or test rows a task
    evaluation_documents: int | None = Field(default=None, gt=0)  # most documents a retrieval task
    # validation: other queries, pairs or test rows, to choose hyper-parameters by; files only
    evaluation_part: Literal["reported", "validation"] = "reported"
    hard_negatives: int = Field(default=7, ge=0)  # negatives mined for a row where a dataset brings none
    overlap: Literal["drop", "report"] = "drop"  # what becomes of training rows that hold a text of an evaluation set
    on_bad_line: Literal["error", "skip"] = "error"  # skip: leave it out, and list it
    seed: int = 0


class TinyBase(Frozen):
    """A tiny Qwen3 built on the spot: tokenizer and weak pre-training from the corpus' pre-training pairs."""

    kind: Literal["tiny_qwen3"]
    vocab_size: int = Field(default=8000, ge=512)
    hidden_size: int = 128
    intermediate_size: int = 384
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    max_seq_length: int = 128
    pretraining: TrainingConfig
    seed: int = 0


class PretrainedBase(Frozen):
    """A model that exists: on the hub, in a folder, or in an installed Python distribution that carries one."""

    kind: Literal["pretrained"]
    # hub repository (owner/name), path of a folder (./ starts at the profile's file), or distribution
    name: str = Field(min_length=1)
    revision: str | None = None  # commit of the hub, version of the distribution
    weights_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")  # of model.safetensors
    pooling: Pooling | None = None  # None: as the model's own folder says
    normalize: bool = True
    max_seq_length: int = Field(default=512, gt=0)  # most tokens of a text, here and in evaluation
    layers: int | None = Field(default=None, gt=0, exclude_if=not_)  # the first ones of the model; None: all of them
    # none: nothing is put before a text, for bases that never met instructions; own: what the base's folder says,
    # such as `query: ` and `passage: `
    prompts: Literal["instruct", "none", "own"] = "instruct"
    query_prompt: str | None = None  # put before every query in place of what `prompts` says
    passage_prompt: str | None = None  # put before every passage, likewise
    parameters: float | None = Field(default=None, gt=0)  # for `boom plan` where the model is not here
    embedding_parameters: float | None = Field(default=None, ge=0)  # of them in the token embedding
    _folder: Path = PrivateAttr(default=Path())

    @property
    def place(self) -> Path:
        """Where its name leads if it is a folder: relative ones start at the profile's file."""
        return self._folder / Path(self.name).expanduser()

    def problems(self) -> Iterator[str]:
        """Half a count."""
        if (self.parameters is None) != (self.embedding_parameters is None):
            yield "give both of `parameters` and `embedding_parameters`, or neither"


BaseModelConfig = Annotated[TinyBase | PretrainedBase, Field(discriminator="kind")]


class SubsetConfig(Frozen):
    """Rows drawn from every dataset: a ratio without replacement, or all rows another subset left.

    Without both, ``new_data`` alone: nothing of the old datasets.
    """

    name: Name
    ratio: Ratio | None = None
    new_data: Ratio | None = None  # share of every new dataset; None draws nothing of them
    complement_of: Name | None = None
    mode: Literal["independent", "nested"] = "independent"
    # nested only: rows that come before it in the nested order; blocks of one seed that follow each other share no row
    skip: float = Field(default=0.0, ge=0, lt=1, exclude_if=not_)
    seed: int = 0
    # (2, 3): of the second of three parts of every dataset's rows, which share no row
    part: tuple[int, int] | None = None

    def problems(self) -> Iterator[str]:
        """None or two of the rules."""
        given = [self.ratio is not None, self.complement_of is not None]
        if all(given) or (not any(given) and self.new_data is None):
            yield "give exactly one of `ratio` and `complement_of`, or `new_data` alone"
        if self.new_data is not None and self.complement_of is not None:
            yield "`new_data` goes with `ratio`, not with `complement_of`"
        if self.skip and (self.ratio is None or self.new_data is not None or self.mode != "nested"):
            yield "`skip` goes with `ratio` alone and `mode: nested`"
        if self.skip + (self.ratio or 0) > 1 + 1e-9:
            yield f"`skip` and `ratio` end at {self.skip + (self.ratio or 0):g} of the rows"

    def rule(self) -> dict[str, Any]:
        """The rule as JSON. It speaks of new data and parts only if there are some: they change no older subset."""
        return self.model_dump(mode="json", exclude={name for name in ("new_data", "part") if not getattr(self, name)})


class ScheduleConfig(Frozen):
    """A data scheduling strategy; see `boom_utils.training.schedules`."""

    schedule: Literal["batch_shuffled", "sequential_datasets", "sequential_families", "two_stage"] = "batch_shuffled"
    order: Literal["given", "reversed", "largest_first", "smallest_first"] = "given"
    stages: tuple[tuple[Name, ...], ...] = ()  # `two_stage` only: families of each stage
    # restarted: every stage warms up and decays by itself
    learning_rate_stages: Literal["continued", "restarted"] = "continued"

    def problems(self) -> Iterator[str]:
        """What the schedule has no use for, or lacks."""
        if (self.schedule == "two_stage") != (len(self.stages) == 2):
            yield "`stages` names two lists of families for two_stage, and is left out otherwise"
        if self.order != "given" and not self.schedule.startswith("sequential"):
            yield "`order` is for sequential schedules"
        if self.learning_rate_stages == "restarted" and self.schedule == "batch_shuffled":
            yield "batch_shuffled has one stage: there is nothing to restart"


class MemberConfig(ScheduleConfig):
    """One model fine-tuned on one subset, from the base unless it goes on from another model."""

    name: Name
    subset: Name
    seed: int = 0
    datasets: tuple[Name, ...] | None = Field(default=None, min_length=1)  # of its subset; None: all
    # the datasets of this cluster of the interaction analysis, from 1
    cluster: int | None = Field(default=None, gt=0)
    start: Name | None = None  # member or merge to go on from; None: the base
    training: TrainingChanges = TrainingChanges()  # what differs from the profile's
    scored: bool = True  # false: only merged

    def problems(self) -> Iterator[str]:
        """Those of its schedule, and two choices of datasets."""
        yield from super().problems()
        if self.datasets is not None and self.cluster is not None:
            yield "give `datasets` or `cluster`, not both"


_Averages = Literal["linear", "slerp", "nuslerp", "multislerp", "karcher"]
_TaskVectors = Literal["task_arithmetic", "ties", "sce"]
MergeMethod = Literal[_Averages, _TaskVectors, "model_stock", "linear_norm_matched"]


class MergeConfig(Frozen):
    """One merged model: a method, members, and their weights (by subset ratio, equal, or one number each)."""

    name: Name
    method: MergeMethod
    members: tuple[Name, ...] = Field(min_length=1)  # members, or merges declared before this one
    weights: Literal["ratio", "equal"] | tuple[float, ...] = "ratio"  # not read by methods that know none
    parameters: Mapping[str, float] = {}  # of the method, under mergekit's names
    task_vectors: bool = False  # merge differences to the base instead of the weights
    scored: bool = True  # false: only a part of another merge


class EnsembleConfig(Frozen):
    """Models that are scored by the mean of their embeddings: nothing is merged, and each encodes every text."""

    name: Name
    members: tuple[Name, ...] = Field(min_length=2)  # members or merges


class WatchConfig(Frozen):
    """Losses on the same few rows along the training of the members whose schedules are compared: what is forgotten."""

    subset: Name  # rows that are watched; they may be trained on too
    rows: int = Field(gt=0)  # of each dataset, the first ones of the subset
    points: int = Field(default=9, ge=2)  # evenly spaced over the steps, start and end among them
    seed: int = 0


class InteractionConfig(Frozen):
    """Joint-minus-separate loss of every pair of datasets, and clusters of datasets by it (paper, loss difference).

    Which loss, how long a training and which linkage the paper takes is not known: these are held-out loss, one pass
    over the subset, and average linkage.
    """

    subset: Name  # what models of one and of two datasets are trained on
    held_out: Name  # a subset that shares no row with it, whose loss is measured
    rows: int | None = Field(default=None, gt=0)  # most held-out rows of a dataset
    clusters: int = Field(default=2, gt=0)
    seed: int = 0


class SeedsConfig(Frozen):
    """Models that are made several times, with other seeds: differences between them are then tested over seeds too.

    Everything behind a model is made anew: subsets are drawn again, batches shuffled again, members trained again.
    """

    count: int = Field(ge=2, le=99)  # the first seed is that of the profile's own lines
    models: tuple[Name, ...] = Field(min_length=1)  # members, merges and ensembles
    # every seed has rows of its own, so that their spread is that of other training data too; `corpus.train_rows` is
    # then shared out among the seeds
    own_rows: bool = False
    fewer: Mapping[Name, int] = Field(default={}, exclude_if=not_)  # of the models, those with less seeds than `count`

    def problems(self) -> Iterator[str]:
        """Models with less seeds that are none of the models, or whose number is not less."""
        for name, number in self.fewer.items():
            if name not in self.models:
                yield f"`fewer`: '{name}' is none of `models`{nearest(name, self.models)}"
            if not 2 <= number < self.count:
                yield f"`fewer`: {number} seeds of '{name}', expected 2 to {self.count - 1}"

    def with_seed(self, number: int) -> tuple[str, ...]:
        """Those of the models that have a seed of that number, the first of which is 1."""
        return tuple(name for name in self.models if number <= self.fewer.get(name, self.count))


class EvaluationConfig(Frozen):
    """Tasks of the corpus and mteb benchmarks by domain, at least one of either, and how intervals are made."""

    in_domain: tuple[Name, ...] = ()
    out_of_domain: tuple[Name, ...] = ()
    in_domain_benchmarks: tuple[str, ...] = ()  # names of mteb benchmarks
    out_of_domain_benchmarks: tuple[str, ...] = ()  # names of mteb benchmarks
    # stands before a query when models are scored; as in training unless it says another
    query_template: str = Field(default=QUERY_TEMPLATE, pattern=r"^[^{}]*\{instruction\}[^{}]*$")
    precision: MachinePrecision = "fp32"  # of weights and passes in scoring
    reference: Name  # the model every other one is compared with
    confidence: float = Field(default=0.95, gt=0, lt=1)
    # of the tasks, those whose data the base was trained on
    seen_by_base: tuple[Name, ...] = Field(default=(), exclude_if=lambda names: not names)


class Profile(Frozen):
    """One study from corpus to claims."""

    name: Name
    description: str
    corpus: CorpusConfig
    base_model: BaseModelConfig
    training: TrainingConfig
    subsets: tuple[SubsetConfig, ...]
    members: tuple[MemberConfig, ...]
    merges: tuple[MergeConfig, ...]
    ensembles: tuple[EnsembleConfig, ...] = Field(default=(), exclude_if=not_)
    evaluation: EvaluationConfig
    interaction: InteractionConfig | None = None
    watch: WatchConfig | None = None
    seeds: SeedsConfig | None = None
    experiments: Experiments = Experiments()
    sources: Mapping[str, str] = {}  # dotted key -> where its value comes from (`SOURCES`), colon, note
    _folder: Path = PrivateAttr(default=PROFILES)

    def problems(self) -> Iterator[str]:
        """Names given twice or leading nowhere, and parts that do not fit together."""
        yield from (*_repeated(self), *_unresolved(self), *_misfits(self), *_unsourced(self))

    @property
    def manifest(self) -> str | Path:
        """The data manifest as `boom_utils.data.manifest.load_manifest` takes it."""
        named = self.corpus.manifest
        return self._folder / named if named.endswith((".yaml", ".yml")) else named

    def subset(self, name: str) -> SubsetConfig:
        """The subset of that name."""
        return next(subset for subset in self.subsets if subset.name == name)

    def ratio(self, subset: SubsetConfig) -> float:
        """Share of every (old) dataset's rows that ``subset`` holds; a complement holds what the other left."""
        if subset.complement_of is not None:
            return 1.0 - self.ratio(self.subset(subset.complement_of))
        return subset.ratio or 0.0

    def member_subset(self, name: str) -> SubsetConfig:
        """The subset that member ``name`` is trained on."""
        return self.subset(next(member.subset for member in self.members if member.name == name))

    def member_ratio(self, name: str) -> float:
        """Share of the (old) corpus that member ``name`` is trained on."""
        return self.ratio(self.member_subset(name))

    def new_datasets(self, subset: SubsetConfig) -> tuple[str, ...]:
        """New datasets that ``subset`` draws from: all, or none."""
        return self.corpus.new_datasets if subset.new_data is not None else ()

    def trained_members(self, model: str) -> list[str]:
        """The members behind a model; see `trained_members`."""
        return trained_members(model, {one.name: one.members for one in self.mixed})

    def encoding_models(self, model: str) -> tuple[str, ...]:
        """The models that encode where ``model`` is scored: those of an ensemble, else itself."""
        return {one.name: one.members for one in self.ensembles}.get(model, (model,))

    def merge_weights(self, merge: MergeConfig) -> list[float]:
        """One weight a member of ``merge``, in its order, not normalised."""
        if merge.weights == "equal":
            return [1.0] * len(merge.members)
        if merge.weights == "ratio":
            return [self.member_ratio(member) for member in merge.members]
        return [float(weight) for weight in merge.weights]

    @property
    def mixed(self) -> tuple[MergeConfig | EnsembleConfig, ...]:
        """The models that are made of others."""
        return (*self.merges, *self.ensembles)

    @property
    def model_names(self) -> list[str]:
        """Every model the study makes, in the order tables show them."""
        first = ["random", "base"] if isinstance(self.base_model, TinyBase) else ["base"]
        return [*first, *(member.name for member in self.members), *(one.name for one in self.mixed)]

    @property
    def scored_models(self) -> list[str]:
        """Those of `model_names` that are scored."""
        models: tuple[MemberConfig | MergeConfig, ...] = (*self.members, *self.merges)
        silent = {model.name for model in models if not model.scored}
        return [name for name in self.model_names if name not in silent]


def trained_members(model: str, merges: Mapping[str, Sequence[str]]) -> list[str]:
    """The members behind a model: itself, or those of a merge or ensemble and of the merges in it, each once.

    Args:
        model: Any name; one that is no merge stands for itself.
        merges: Name of every merge and ensemble -> what it is made of.
    """
    if model not in merges:
        return [model]
    return list(dict.fromkeys(name for part in merges[model] for name in trained_members(part, merges)))


def _repeated(profile: Profile) -> Iterator[str]:
    """Names that are given twice."""
    corpus, found = profile.corpus, profile.evaluation
    groups = {
        "dataset": [*corpus.datasets, *corpus.new_datasets],
        "subset": [subset.name for subset in profile.subsets],
        "model": profile.model_names,
        "task": [*found.in_domain, *found.out_of_domain],
        "benchmark": [*found.in_domain_benchmarks, *found.out_of_domain_benchmarks],
    }
    return repeated(groups)


def _unresolved(profile: Profile) -> Iterator[str]:
    """Names that lead nowhere."""
    subsets = [subset.name for subset in profile.subsets]
    members = [member.name for member in profile.members]
    models = [*members, *(merge.name for merge in profile.merges)]

    def uses() -> Iterator[tuple[str, str, Sequence[str | None], Sequence[str]]]:
        """Who, what kind of thing it names, the names, and those there are."""
        for number, subset in enumerate(profile.subsets):
            yield f"subset '{subset.name}'", "earlier subset", [subset.complement_of], subsets[:number]
        for member in profile.members:
            who = f"member '{member.name}'"
            yield who, "subset", [member.subset], subsets
            if member.subset in subsets:
                held = [*profile.corpus.datasets, *profile.new_datasets(profile.subset(member.subset))]
                yield who, "dataset", member.datasets or (), held
            yield who, "model to start from", [member.start], models
        for number, merge in enumerate(profile.merges):
            yield f"merge '{merge.name}'", "member or earlier merge", merge.members, models[: len(members) + number]
        for one in profile.ensembles:
            yield f"ensemble '{one.name}'", "member or merge", one.members, models
        yield "evaluation.reference", "scored model", [profile.evaluation.reference], profile.scored_models
        if profile.seeds is not None:
            known = [*models, *(one.name for one in profile.ensembles)]
            yield "seeds", "member or merge", profile.seeds.models, known
        scored = ("experiments.interpolation", "experiments.frontier", "experiments.hypotheses")
        for key, name in profile.experiments.names():
            kind, known = ("scored model", profile.scored_models) if key in scored else ("member or merge", models)
            yield key, kind, [name], known
        found = profile.evaluation
        yield "evaluation.seen_by_base", "task", found.seen_by_base, (*found.in_domain, *found.out_of_domain)
        if profile.watch is not None:
            yield "watch", "subset", [profile.watch.subset], subsets
        if profile.interaction is not None:
            yield "interaction", "subset", [profile.interaction.subset, profile.interaction.held_out], subsets

    for who, kind, names, known in uses():
        missing = [name for name in names if name is not None and name not in known]
        yield from (f"{who}: no {kind} '{name}'{nearest(name, known)}" for name in missing)


def _misfits(profile: Profile) -> Iterator[str]:
    """Weights, starting models, clusters, held-out rows and new data that do not fit together."""
    merges = {merge.name: merge for merge in profile.merges}
    for merge in profile.merges:
        if not isinstance(merge.weights, str) and len(merge.weights) != len(merge.members):
            yield f"merge '{merge.name}': {len(merge.weights)} weights for {len(merge.members)} members"
        if merge.weights == "ratio" and (inner := sorted({*merge.members} & {*merges})):
            yield f"merge '{merge.name}': '{inner[0]}' is a merge and has no ratio; give equal, or numbers"
    yield from _off_the_line(profile.experiments, merges)
    made_of = {name: merge.members for name, merge in merges.items()}
    made_of |= {member.name: (member.start,) for member in profile.members if member.start}
    circle: list[str] = []
    try:
        TopologicalSorter(made_of).prepare()
    except CycleError as error:
        circle = error.args[1]
    found, corpus = profile.interaction, profile.corpus
    for member in profile.members:
        if member.start and member.name in circle:
            yield f"member '{member.name}' goes on from '{member.start}', which is made of it"
        if member.cluster is not None and (found is None or member.cluster > found.clusters):
            known = "there is no `interaction`" if found is None else f"`interaction` makes {found.clusters}"
            yield f"member '{member.name}': cluster {member.cluster}, but {known}"
    if found is not None and found.clusters > len(corpus.datasets):
        yield f"interaction: {found.clusters} clusters of {len(corpus.datasets)} datasets"
    holding = [subset.name for subset in profile.subsets if subset.new_data is not None]
    if holding and not corpus.new_datasets:
        yield f"subset '{holding[0]}': there are no new data, corpus.new_datasets is empty"
    for subset in profile.subsets:
        if subset.complement_of in holding:
            yield f"subset '{subset.name}': '{subset.complement_of}' holds new data, a complement of it is not defined"
        if found is not None and subset.name == found.held_out and subset.complement_of != found.subset:
            yield f"interaction: '{subset.name}' is not `complement_of: {found.subset}`, it may share rows"
    scored = profile.evaluation
    tasks = (scored.in_domain, scored.in_domain_benchmarks, scored.out_of_domain, scored.out_of_domain_benchmarks)
    if not any(tasks) and {*profile.scored_models} - {"random", "base"}:
        yield "evaluation: name at least one task, in or out of domain, or a benchmark of mteb"


def _off_the_line(found: Experiments, merges: Mapping[str, MergeConfig]) -> Iterator[str]:
    """Models of the interpolation curve that are none, and hypotheses against a curve that is not there."""
    of, models = found.interpolation.of, found.interpolation.models
    if models and of is None:
        yield "experiments.interpolation: `of` names the trained model that the line leads to"
    for merge in (merges[name] for name in models if name in merges):
        made = (merge.method, merge.members, merge.parameters)
        if made != ("task_arithmetic", (of,), {}) or isinstance(merge.weights, str):
            yield f"experiments.interpolation: '{merge.name}' is no task_arithmetic of '{of}' alone with a weight"
    yield from (
        f"experiments.interpolation: '{name}' is no merge" for name in models if name != of and name not in merges
    )
    if not models and any(one.against == CURVE for one in (*found.hypotheses.primary, *found.hypotheses.secondary)):
        yield "experiments.hypotheses: one is against `interpolation`, and the experiments have none"


def _unsourced(profile: Profile) -> Iterator[str]:
    """Sources that no value of the profile has, or that are none."""
    values = profile.model_dump(mode="json")
    for key, text in profile.sources.items():
        source, place = text.partition(":")[0].strip(), values
        if source not in SOURCES:
            yield f"sources.{key}: no source '{source}'{nearest(source, SOURCES)}"
        for part in key.split("."):
            known = entries_of(place)
            if part not in known:
                yield f"sources.{key}: the profile has no '{part}'{nearest(part, known)}"
                break
            place = known[part]


def entries_of(value: Any) -> Mapping[str, Any]:
    """The parts of a piece of a profile by the names a dotted key uses: keys, or the names of a list's entries."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, list):
        return {str(entry["name"]): entry for entry in value if isinstance(entry, Mapping) and "name" in entry}
    return {}


def extended(raw: Any, path: Path) -> Any:
    """The content of a profile's file that ``extends`` another one: what that says, with this one's values in it.

    Raises:
        ConfigError: There is no such profile, it extends another one itself, or `joined` refuses.
    """
    if not isinstance(raw, dict) or "extends" not in raw:
        return raw
    other = str(raw["extends"])
    below = read_yaml(
        file_of(other, path.parent, PROFILES, "profile", ConfigError, f"extends: in {path.name}"), ConfigError
    )
    if isinstance(below, dict) and "extends" in below:
        raise ConfigError(f"'{other}' extends a profile itself", where=path.name, fix="extend that one directly")
    return joined(below, {key: value for key, value in raw.items() if key != "extends"}, ConfigError)


def profile_names() -> list[str]:
    """Names of the profiles that come with the kit."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def load_profile(name_or_path: str | Path) -> Profile:
    """Read a profile by name (``smoke``) or from a YAML file.

    Args:
        name_or_path: One of `boom_utils/profiles`, or a file of the same form.

    Returns:
        The profile, checked.

    Raises:
        ConfigError: No such profile, or any number of problems in it, listed together.

    >>> profile = load_profile("smoke")
    >>> profile.evaluation.reference, profile.subset("p20").ratio
    ('full', 0.2)
    """
    path = file_of(str(name_or_path), Path(), PROFILES, "profile", ConfigError)
    fix, raw = "correct the keys named above", read_yaml(path, ConfigError)
    if isinstance(raw, dict) and "extends" in raw:
        fix += "; a list takes the place of the one it extends, `members+` (subsets+, merges+) adds to it"
    profile = parse(Profile, extended(raw, path), path.name, ConfigError, fix)
    # Where the file is makes no other study: it is no field, so that no record names a place on one machine.
    profile._folder = path.resolve().parent
    if isinstance(profile.base_model, PretrainedBase):
        profile.base_model._folder = profile._folder
    return profile
