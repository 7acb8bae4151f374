"""Profiles: one YAML declares a whole study, checked completely before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, PrivateAttr, model_validator

from boom_utils.config_checks import repeated, unresolved
from boom_utils.config_parts import (
    QUERY_TEMPLATE,
    BaseModelConfig,
    CorpusConfig,
    EvaluationConfig,
    Frozen,
    InteractionConfig,
    LoraConfig,
    MemberConfig,
    MergeConfig,
    MergeMethod,
    Name,
    Pooling,
    PretrainedBase,
    Ratio,
    ScheduleConfig,
    SeedsConfig,
    SubsetConfig,
    TinyBase,
    TrainingConfig,
    WatchConfig,
    query_prompt,
)
from boom_utils.errors import ConfigError, nearest
from boom_utils.yaml_files import parse, read_yaml

PROFILES = Path(__file__).parent / "profiles"

__all__ = [
    "PROFILES",
    "QUERY_TEMPLATE",
    "BaseModelConfig",
    "CorpusConfig",
    "EvaluationConfig",
    "Frozen",
    "InteractionConfig",
    "LoraConfig",
    "MemberConfig",
    "MergeConfig",
    "MergeMethod",
    "Name",
    "Pooling",
    "PretrainedBase",
    "Profile",
    "Ratio",
    "ScheduleConfig",
    "SeedsConfig",
    "SubsetConfig",
    "TinyBase",
    "TrainingConfig",
    "WatchConfig",
    "load_profile",
    "profile_names",
    "query_prompt",
    "trained_members",
]


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
