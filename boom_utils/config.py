"""Profiles: one YAML declares a whole study, checked completely before anything runs; frozen, no unknown keys."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from boom_utils.config_checks import repeated, unresolved
from boom_utils.errors import ConfigError, nearest
from boom_utils.machine import Precision, on_this_machine
from boom_utils.yaml_files import parse, read_yaml

PROFILES = Path(__file__).parent / "profiles"
QUERY_TEMPLATE = "Instruct: {instruction}\nQuery: "
"""What stands before a query in training (authors' 0.6B script), and when models are scored unless `query_template` is
another; the authors' evaluation leaves out the last space."""

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$", max_length=64)]
Ratio = Annotated[float, Field(gt=0, le=1)]
Pooling = Literal["lasttoken", "mean", "cls"]
MachinePrecision = Annotated[Precision, AfterValidator(on_this_machine)]
"""``auto`` is bf16 where this machine has it, else fp32: a study is keyed and recorded by what it is here."""


def query_prompt(instruction: str, template: str = QUERY_TEMPLATE) -> str:
    """The text put before a query: the template filled with a dataset's instruction."""
    return template.replace("{instruction}", instruction)


class Frozen(BaseModel):
    """Base of every config: immutable, unknown keys refused, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class CorpusConfig(Frozen):
    """Which corpus, and how much of it (rows and documents are drawn by seed; None takes all)."""

    manifest: Annotated[str, Field(pattern=r"^([a-z0-9][a-z0-9_.-]*|.+\.ya?ml)$", max_length=1000)] = Field(
        description="name of a data manifest, or path of a .yaml file, relative to the profile's"
    )
    datasets: tuple[Name, ...] = Field(description="training datasets, in the order sequential schedules use")
    new_datasets: tuple[Name, ...] = Field(default=(), description="those that arrive later; role `new_data`")
    train_rows: int | None = Field(default=None, gt=0, description="most training rows a dataset")
    pretraining_pairs: int | None = Field(default=None, gt=0, description="pairs reserved for the tiny base")
    evaluation_queries: int | None = Field(default=None, gt=0, description="most queries, pairs or test rows a task")
    evaluation_documents: int | None = Field(default=None, gt=0, description="most documents a retrieval task")
    evaluation_part: Literal["reported", "validation"] = Field(
        default="reported",
        description="validation: other queries, pairs or test rows, to choose hyper-parameters by; files only",
    )
    hard_negatives: int = Field(default=7, ge=0, description="negatives mined for a row where a dataset brings none")
    overlap: Literal["drop", "report"] = Field(
        default="drop", description="what becomes of training rows that hold a text of an evaluation set"
    )
    on_bad_line: Literal["error", "skip"] = Field(default="error", description="skip: leave it out, and list it")
    seed: int = 0


class LoraConfig(Frozen):
    """Low-rank adapters instead of all weights; defaults are those of the authors' script for Qwen3-4B."""

    r: int = Field(default=32, gt=0)
    lora_alpha: int = Field(default=32, gt=0)
    lora_dropout: float = Field(default=0.1, ge=0, lt=1)
    target_modules: tuple[str, ...] = Field(
        default=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "up_proj"), min_length=1
    )


class TrainingConfig(Frozen):
    """Hyper-parameters of contrastive training, under FlagEmbedding's names; profiles name the paper's values."""

    learning_rate: float = Field(gt=0)
    per_device_train_batch_size: int = Field(gt=0, description="queries a step; halved for `halve_batch` datasets")
    processes: int = Field(default=1, gt=0, description="devices of the global batch, however many really run")
    num_train_epochs: int = Field(default=1, gt=0)
    warmup_ratio: float = Field(default=0.1, ge=0, lt=1)
    temperature: float = Field(default=0.02, gt=0)
    train_group_size: int = Field(default=8, ge=2, description="1 positive + negatives a query")
    query_max_len: int = Field(default=512, gt=0, description="tokens, prompt included")
    passage_max_len: int = Field(default=512, gt=0, description="tokens")
    max_grad_norm: float = Field(default=1.0, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    negatives_cross_device: bool = Field(default=True, description="in-batch negatives of all `processes`, not of one")
    mask_false_negatives: bool = Field(default=False, description="leave out negatives identical to the positive")
    lora: LoraConfig | None = Field(default=None, description="None trains all weights")
    precision: MachinePrecision = Field(default="fp32", description="of the passes; weights stay fp32")
    gradient_checkpointing: bool = Field(default=False, description="less memory, more time, the same gradient")
    torch_compile: bool = Field(default=False, description="pays off on long runs")
    packing: bool | None = Field(default=None, description="no padding; None: on CPU where it is exact")
    tokens_per_micro_batch: int = Field(default=8192, gt=0, description="memory only; does not change the gradient")
    tokens_in_memory: int | None = Field(
        default=None, gt=0, description="most tokens whose activations are kept; more are computed twice, exactly"
    )
    save_steps: int = Field(default=1000, gt=0, description="steps between checkpoints of a run")


class TrainingChanges(Frozen):
    """Hyper-parameters of one member that differ from the profile's; what is not given does not."""

    learning_rate: float | None = Field(default=None, gt=0)
    per_device_train_batch_size: int | None = Field(default=None, gt=0)
    num_train_epochs: int | None = Field(default=None, gt=0)
    warmup_ratio: float | None = Field(default=None, ge=0, lt=1)
    temperature: float | None = Field(default=None, gt=0)
    weight_decay: float | None = Field(default=None, ge=0)

    def of(self, training: TrainingConfig) -> TrainingConfig:
        """The profile's hyper-parameters with these in place of theirs."""
        return training.model_copy(update=self.model_dump(exclude_none=True))


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
    name: str = Field(
        min_length=1,
        description="hub repository (owner/name), path of a folder (./ starts at the profile's file), or distribution",
    )
    revision: str | None = Field(default=None, description="commit of the hub, version of the distribution")
    weights_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$", description="of model.safetensors")
    pooling: Pooling | None = Field(default=None, description="None: as the model's own folder says")
    normalize: bool = True
    max_seq_length: int = Field(default=512, gt=0, description="most tokens of a text, here and in evaluation")
    prompts: Literal["instruct", "none", "own"] = Field(
        default="instruct",
        description="none: nothing is put before a text, for bases that never met instructions; own: what the base's "
        "folder says, such as `query: ` and `passage: `",
    )
    query_prompt: str | None = Field(default=None, description="put before every query in place of what `prompts` says")
    passage_prompt: str | None = Field(default=None, description="put before every passage, likewise")
    parameters: float | None = Field(default=None, gt=0, description="for `boom plan` where the model is not here")
    embedding_parameters: float | None = Field(default=None, ge=0, description="of them in the token embedding")
    _folder: Path = PrivateAttr(default=Path())

    @property
    def place(self) -> Path:
        """Where its name leads if it is a folder: relative ones start at the profile's file."""
        return self._folder / Path(self.name).expanduser()

    @model_validator(mode="after")
    def _counts_fit(self) -> PretrainedBase:
        if (self.parameters is None) != (self.embedding_parameters is None):
            raise ValueError("give both of `parameters` and `embedding_parameters`, or neither")
        return self


BaseModelConfig = Annotated[TinyBase | PretrainedBase, Field(discriminator="kind")]


class SubsetConfig(Frozen):
    """Rows drawn from every dataset: a ratio without replacement, or all rows another subset left.

    Without both, ``new_data`` alone: nothing of the old datasets.
    """

    name: Name
    ratio: Ratio | None = None
    new_data: Ratio | None = Field(default=None, description="share of every new dataset; None draws nothing of them")
    complement_of: Name | None = None
    mode: Literal["independent", "nested"] = "independent"
    seed: int = 0
    part: tuple[int, int] | None = Field(
        default=None, description="(2, 3): of the second of three parts of every dataset's rows, which share no row"
    )

    @model_validator(mode="after")
    def _one_rule(self) -> SubsetConfig:
        given = [self.ratio is not None, self.complement_of is not None]
        if all(given) or (not any(given) and self.new_data is None):
            raise ValueError("give exactly one of `ratio` and `complement_of`, or `new_data` alone")
        if self.new_data is not None and self.complement_of is not None:
            raise ValueError("`new_data` goes with `ratio`, not with `complement_of`")
        return self

    def rule(self) -> dict[str, Any]:
        """The rule as JSON. It speaks of new data and parts only if there are some: they change no older subset."""
        return self.model_dump(mode="json", exclude={name for name in ("new_data", "part") if not getattr(self, name)})


class ScheduleConfig(Frozen):
    """A data scheduling strategy; see `boom_utils.training.schedules`."""

    schedule: Literal["batch_shuffled", "sequential_datasets", "sequential_families", "two_stage"] = "batch_shuffled"
    order: Literal["given", "reversed", "largest_first", "smallest_first"] = "given"
    stages: tuple[tuple[Name, ...], ...] = Field(default=(), description="`two_stage` only: families of each stage")
    learning_rate_stages: Literal["continued", "restarted"] = Field(
        default="continued", description="restarted: every stage warms up and decays by itself"
    )

    @model_validator(mode="after")
    def _fits(self) -> ScheduleConfig:
        if (self.schedule == "two_stage") != (len(self.stages) == 2):
            raise ValueError("`stages` names two lists of families for two_stage, and is left out otherwise")
        if self.order != "given" and not self.schedule.startswith("sequential"):
            raise ValueError("`order` is for sequential schedules")
        if self.learning_rate_stages == "restarted" and self.schedule == "batch_shuffled":
            raise ValueError("batch_shuffled has one stage: there is nothing to restart")
        return self


class MemberConfig(ScheduleConfig):
    """One model fine-tuned on one subset, from the base unless it goes on from another model."""

    name: Name
    subset: Name
    seed: int = 0
    datasets: tuple[Name, ...] | None = Field(default=None, min_length=1, description="of its subset; None: all")
    cluster: int | None = Field(
        default=None, gt=0, description="the datasets of this cluster of the interaction analysis, from 1"
    )
    start: Name | None = Field(default=None, description="member or merge to go on from; None: the base")
    training: TrainingChanges = Field(default=TrainingChanges(), description="what differs from the profile's")
    scored: bool = Field(default=True, description="false: only merged")

    @model_validator(mode="after")
    def _one_choice(self) -> MemberConfig:
        if self.datasets is not None and self.cluster is not None:
            raise ValueError("give `datasets` or `cluster`, not both")
        return self


MergeMethod = Literal[
    "linear",
    "slerp",
    "nuslerp",
    "multislerp",
    "karcher",
    "task_arithmetic",
    "ties",
    "sce",
    "model_stock",
    "linear_norm_matched",
]


class MergeConfig(Frozen):
    """One merged model: a method, members, and their weights (by subset ratio, equal, or one number each)."""

    name: Name
    method: MergeMethod
    members: tuple[Name, ...] = Field(min_length=1, description="members, or merges declared before this one")
    weights: Literal["ratio", "equal"] | tuple[float, ...] = Field(
        default="ratio", description="not read by methods that know none"
    )
    parameters: Mapping[str, float] = Field(default={}, description="of the method, under mergekit's names")
    task_vectors: bool = Field(default=False, description="merge differences to the base instead of the weights")
    scored: bool = Field(default=True, description="false: only a part of another merge")


class WatchConfig(Frozen):
    """Losses on the same few rows along the training of the members whose schedules are compared: what is forgotten."""

    subset: Name = Field(description="rows that are watched; they may be trained on too")
    rows: int = Field(gt=0, description="of each dataset, the first ones of the subset")
    points: int = Field(default=9, ge=2, description="evenly spaced over the steps, start and end among them")
    seed: int = 0


class InteractionConfig(Frozen):
    """Joint-minus-separate loss of every pair of datasets, and clusters of datasets by it (paper, loss difference).

    Which loss, how long a training and which linkage the paper takes is not known: these are held-out loss, one pass
    over the subset, and average linkage.
    """

    subset: Name = Field(description="what models of one and of two datasets are trained on")
    held_out: Name = Field(description="a subset that shares no row with it, whose loss is measured")
    rows: int | None = Field(default=None, gt=0, description="most held-out rows of a dataset")
    clusters: int = Field(default=2, gt=0)
    seed: int = 0


class SeedsConfig(Frozen):
    """Models that are made several times, with other seeds: differences between them are then tested over seeds too.

    Everything behind a model is made anew: subsets are drawn again, batches shuffled again, members trained again.
    """

    count: int = Field(ge=2, le=99, description="the first seed is that of the profile's own lines")
    models: tuple[Name, ...] = Field(min_length=1, description="members and merges")
    own_rows: bool = Field(
        default=False,
        description="every seed has rows of its own, so that their spread is that of other training data too; "
        "`corpus.train_rows` is then shared out among the seeds",
    )


class Comparison(Frozen):
    """Models beside the one they are compared with."""

    baseline: Name | None = None
    models: tuple[Name, ...] = ()


class IncrementalModels(Comparison):
    """Models before and after new data arrive, beside the one that is retrained on everything."""

    core_ratios: tuple[Name, ...] = Field(default=(), description="updates that differ in their old data, ascending")
    weights: tuple[Name, ...] = Field(default=(), description="updates that differ in their weight, ascending")


class Granularities(Frozen):
    """Merges of one model a dataset, a family of tasks, or a cluster of datasets."""

    dataset: Name | None = None
    family: Name | None = None
    cluster: Name | None = None


class Experiments(Frozen):
    """Which models answer which question: tables, figures, claims and notebooks read it, and no model is made by it."""

    full: Name | None = Field(default=None, description="the member of the full corpus, batch-level shuffled")
    boom: Name | None = Field(default=None, description="of `variants`, the one that `full` is compared with first")
    sampled: tuple[Name, ...] = Field(default=(), description="members of samples of all old datasets, and `full`")
    variants: tuple[Name, ...] = Field(default=(), description="merges of `sampled` by Multi-SLERP")
    controls: tuple[Name, ...] = Field(default=(), description="other averages of `sampled`")
    scheduling: Comparison = Field(default=Comparison(), description="members of the same batches in other orders")
    granularities: Granularities = Granularities()
    methods: tuple[tuple[Name, ...], ...] = Field(default=(), description="each: merges of the same members")
    incremental: IncrementalModels = IncrementalModels()

    @model_validator(mode="before")
    @classmethod
    def _null_takes_away(cls, values: Any) -> Any:
        return (
            {key: value for key, value in values.items() if value is not None} if isinstance(values, dict) else values
        )

    @property
    def averages(self) -> tuple[str, ...]:
        """Plain averages of the weights of ``sampled``."""
        return (*self.controls, *self.variants)

    def names(self) -> list[tuple[str, str]]:
        """Every name in it, behind the key that it is found under."""
        return [(f"experiments.{key}", name) for key, value in self.model_dump().items() for name in _names_in(value)]

    def of(self, models: Collection[str]) -> Experiments:
        """What is left of it with some models only; one that is left alone is compared with nothing."""
        kept = _with_names(self.model_dump(), models)
        alone = [key for key in ("scheduling", "incremental") if len({*_names_in(kept[key])}) < 2]
        return Experiments.model_validate(kept | dict.fromkeys(alone))


def _names_in(value: Any) -> list[str]:
    parts = value.values() if isinstance(value, dict) else value or ()
    return [value] if isinstance(value, str) else [name for part in parts for name in _names_in(part)]


def _with_names(value: Any, names: Collection[str]) -> Any:
    if isinstance(value, dict):
        return {key: _with_names(part, names) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(kept for part in value if (kept := _with_names(part, names)))
    return value if value in names else None


class EvaluationConfig(Frozen):
    """Tasks of the corpus and mteb benchmarks by domain, at least one of either, and how intervals are made."""

    in_domain: tuple[Name, ...] = ()
    out_of_domain: tuple[Name, ...] = ()
    in_domain_benchmarks: tuple[str, ...] = Field(default=(), description="names of mteb benchmarks")
    out_of_domain_benchmarks: tuple[str, ...] = Field(default=(), description="names of mteb benchmarks")
    query_template: str = Field(
        default=QUERY_TEMPLATE,
        pattern=r"^[^{}]*\{instruction\}[^{}]*$",
        description="stands before a query when models are scored; as in training unless it says another",
    )
    precision: MachinePrecision = Field(default="fp32", description="of weights and passes in scoring")
    reference: Name = Field(description="the model every other one is compared with")
    confidence: float = Field(default=0.95, gt=0, lt=1)


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
    evaluation: EvaluationConfig
    interaction: InteractionConfig | None = None
    watch: WatchConfig | None = None
    seeds: SeedsConfig | None = None
    experiments: Experiments = Experiments()
    sources: Mapping[str, str] = Field(
        default={}, description="dotted key -> where its value comes from (`config_checks.SOURCES`), colon, note"
    )
    _folder: Path = PrivateAttr(default=PROFILES)

    @model_validator(mode="after")
    def _names_resolve(self) -> Profile:
        problems = [*repeated(self), *unresolved(self)]
        if problems:
            raise ValueError("; ".join(problems))
        return self

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

    def member_facts(self) -> dict[str, dict[str, Any]]:
        """Every member's config, and the share of the new data it is trained on (None: of none)."""
        return {
            member.name: {**member.model_dump(mode="json"), "new_data": self.subset(member.subset).new_data}
            for member in self.members
        }

    def new_datasets(self, subset: SubsetConfig) -> tuple[str, ...]:
        """New datasets that ``subset`` draws from: all, or none."""
        return self.corpus.new_datasets if subset.new_data is not None else ()

    def trained_members(self, model: str) -> list[str]:
        """The members behind a model; see `trained_members`."""
        return trained_members(model, {merge.name: merge.members for merge in self.merges})

    def merge_weights(self, merge: MergeConfig) -> list[float]:
        """One weight a member of ``merge``, in its order, not normalised."""
        if merge.weights == "equal":
            return [1.0] * len(merge.members)
        if merge.weights == "ratio":
            return [self.member_ratio(member) for member in merge.members]
        return [float(weight) for weight in merge.weights]

    @property
    def model_names(self) -> list[str]:
        """Every model the study makes, in the order tables show them."""
        first = ["random", "base"] if isinstance(self.base_model, TinyBase) else ["base"]
        return [*first, *(member.name for member in self.members), *(merge.name for merge in self.merges)]

    @property
    def scored_models(self) -> list[str]:
        """Those of `model_names` that are scored."""
        silent = {member.name for member in self.members if not member.scored}
        silent |= {merge.name for merge in self.merges if not merge.scored}
        return [name for name in self.model_names if name not in silent]


def extended(raw: Any, path: Path) -> Any:
    """The content of a profile's file that ``extends`` another one: what that says, with this one's values in it.

    Mappings are joined key by key; anything else takes the place of what was there. ``members+`` instead of ``members``
    (also of subsets and merges) adds to the list: an entry takes the place of its namesake, or comes last.

    Raises:
        ConfigError: There is no such profile, or it extends another one itself.
    """
    if not isinstance(raw, dict) or "extends" not in raw:
        return raw
    other = raw["extends"]
    found = _place_of(str(other), path.parent)
    if found is None:
        raise ConfigError(
            f"there is no profile '{other}' to extend{nearest(str(other), profile_names())}",
            where=path.name,
            expected=f"one of {', '.join(profile_names())}, or the path of a .yaml file",
        )
    below = read_yaml(found, ConfigError)
    if isinstance(below, dict) and "extends" in below:
        raise ConfigError(f"'{other}' extends a profile itself", where=path.name, fix="extend that one directly")
    return _joined(below, {key: value for key, value in raw.items() if key != "extends"})


def _joined(below: Any, above: Any) -> Any:
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    found = dict(below)
    for key, value in above.items():
        name = str(key).removesuffix("+")
        found[name] = _joined(below.get(name), value) if name == key else _added(below.get(name), value, str(key))
    return found


def _added(below: Any, above: Any, key: str) -> list[Any]:
    for entries in (below, above):
        if not isinstance(entries, list) or not all(isinstance(entry, dict) and "name" in entry for entry in entries):
            raise ConfigError(f"'{key}' adds to a list of entries with names, and nothing else can be added to")
    named = {entry["name"]: entry for entry in above}
    kept = [named.pop(entry["name"], entry) for entry in below]
    return [*kept, *(entry for entry in above if entry["name"] in named)]


def trained_members(model: str, merges: Mapping[str, Sequence[str]]) -> list[str]:
    """The members behind a model: itself, or those of a merge and of the merges in it, each once.

    Args:
        model: Any name; one that is no merge stands for itself.
        merges: Name of every merge -> what it merges.
    """
    if model not in merges:
        return [model]
    return list(dict.fromkeys(name for part in merges[model] for name in trained_members(part, merges)))


def profile_names() -> list[str]:
    """Names of the profiles that come with the kit."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def _place_of(name_or_path: str, folder: Path) -> Path | None:
    """The file of a profile by name or by path, relative to ``folder``; None where there is none."""
    named = name_or_path.endswith((".yaml", ".yml"))
    path = folder / name_or_path if named else PROFILES / f"{name_or_path}.yaml"
    return path if path.is_file() else None


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
    path = _place_of(str(name_or_path), Path())
    if path is None:
        raise ConfigError(
            f"there is no profile '{name_or_path}'{nearest(str(name_or_path), profile_names())}",
            expected=f"one of {', '.join(profile_names())}, or the path of a .yaml file",
        )
    profile = parse(Profile, extended(read_yaml(path, ConfigError), path), path.name, ConfigError)
    # Where the file is makes no other study: it is no field, so that no record names a place on one machine.
    profile._folder = path.resolve().parent
    if isinstance(profile.base_model, PretrainedBase):
        profile.base_model._folder = profile._folder
    return profile
