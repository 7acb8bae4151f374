"""Which models of a profile answer which question: declared by its author, read by tables, figures and notebooks."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pydantic import Field

from boom_utils.yaml_files import Frozen, Name

CURVE = "interpolation"
"""What a hypothesis is against where it is no model: the curve of `Interpolation`."""


class Comparison(Frozen):
    """Models beside the one they are compared with."""

    baseline: Name | None = None
    models: tuple[Name, ...] = ()


class IncrementalModels(Comparison):
    """Models before and after new data arrive, beside the one that is retrained on everything."""

    core_ratios: tuple[Name, ...] = ()  # updates that differ in their old data, ascending
    weights: tuple[Name, ...] = ()  # updates that differ in their weight, ascending


class Granularities(Frozen):
    """Merges of one model a dataset, a family of tasks, or a cluster of datasets."""

    dataset: Name | None = None
    family: Name | None = None
    cluster: Name | None = None


class Interpolation(Frozen):
    """Models on the line from the base through a trained one: base + weight (trained - base), a weight each."""

    of: Name | None = None
    models: tuple[Name, ...] = ()


class Hypothesis(Frozen):
    """That a model differs from another one, or from the interpolation curve at its own score in the other domain."""

    model: Name
    against: Name  # a model, or `interpolation`


class Hypotheses(Frozen):
    """What a study was made to decide, written down before it: in and out of domain each."""

    primary: tuple[Hypothesis, ...] = ()
    secondary: tuple[Hypothesis, ...] = ()

    def of(self, models: Collection[str]) -> Hypotheses:
        """Those that name nothing but ``models``."""

        def known(found: tuple[Hypothesis, ...]) -> tuple[Hypothesis, ...]:
            return tuple(one for one in found if {one.model, one.against} <= {*models})

        return Hypotheses(primary=known(self.primary), secondary=known(self.secondary))


class Experiments(Frozen):
    """Which models answer which question: tables, figures, claims and notebooks read it, and no model is made by it."""

    full: Name | None = None  # the member of the full corpus, batch-level shuffled
    boom: Name | None = None  # of `variants`, the one that `full` is compared with first
    sampled: tuple[Name, ...] = ()  # members of samples of all old datasets, and `full`
    variants: tuple[Name, ...] = ()  # merges of `sampled` by Multi-SLERP
    controls: tuple[Name, ...] = ()  # other averages of `sampled`
    scheduling: Comparison = Comparison()  # members of the same batches in other orders
    granularities: Granularities = Granularities()
    methods: tuple[tuple[Name, ...], ...] = ()  # each: merges of the same members
    incremental: IncrementalModels = IncrementalModels()
    interpolation: Interpolation = Field(default=Interpolation(), exclude_if=lambda found: not found.models)
    # beside the base, `full` and the curve: what answers the question of the hypotheses
    frontier: tuple[Name, ...] = Field(default=(), exclude_if=lambda found: not found)
    hypotheses: Hypotheses = Field(default=Hypotheses(), exclude_if=lambda found: found == Hypotheses())

    @property
    def averages(self) -> tuple[str, ...]:
        """Plain averages of the weights of ``sampled``."""
        return (*self.controls, *self.variants)

    def names(self) -> list[tuple[str, str]]:
        """Every name in it, behind the key that it is found under."""
        found = self.model_dump().items()
        return [(f"experiments.{key}", name) for key, value in found for name in _names_in(value) if name != CURVE]

    def of(self, models: Collection[str]) -> Experiments:
        """What is left of it with some models only; one that is left alone is compared with nothing."""
        kept = _with_names(self.model_dump(exclude={"hypotheses"}), models)
        compared = ("scheduling", "incremental", "interpolation")
        alone = [key for key in compared if len({*_names_in(kept.get(key))}) < 2]
        if self.interpolation.of not in models:
            alone.append("interpolation")
        known = models if "interpolation" in alone else {*models, CURVE}
        left = {key: value for key, value in kept.items() if key not in alone}
        return Experiments.model_validate({**left, "hypotheses": self.hypotheses.of(known)})


def _names_in(value: Any) -> list[str]:
    parts = value.values() if isinstance(value, dict) else value or ()
    return [value] if isinstance(value, str) else [name for part in parts for name in _names_in(part)]


def _with_names(value: Any, names: Collection[str]) -> Any:
    if isinstance(value, dict):
        return {key: _with_names(part, names) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(kept for part in value if (kept := _with_names(part, names)))
    return value if value in names else None
