"""Scheduling strategies: which datasets are shuffled together, and in which order the stages follow.

The paper compares four (section on data scheduling): batch-level shuffling of everything, one dataset after another,
one task family after another with batch-level shuffling inside, and two stages over a partition of the corpus. The
paper's orders and its partition are not known: both are the profile's to state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from boom_utils.config import ScheduleConfig
from boom_utils.errors import ConfigError

Stages = tuple[tuple[str, ...], ...]
"""Names of the datasets of every stage, in the order of training."""


def schedule_stages(schedule: ScheduleConfig, families: Mapping[str, str], sizes: Mapping[str, int]) -> Stages:
    """The stages that a schedule makes of a corpus.

    Args:
        schedule: The strategy, its order, and the partition of `two_stage`.
        families: Dataset -> task family, in the order the profile gives.
        sizes: Dataset -> rows to train on; orders by size look at it.

    Returns:
        Every dataset once; ``order`` applies to the stages, not to what is inside them.

    Raises:
        ConfigError: The partition of ``two_stage`` is not one of the corpus' families.

    >>> families = {"nq": "retrieval", "fiqa": "retrieval", "imdb": "classification"}
    >>> schedule_stages(ScheduleConfig(schedule="sequential_families"), families, {})
    (('nq', 'fiqa'), ('imdb',))
    """
    if schedule.schedule == "batch_shuffled":
        return (tuple(families),)
    if schedule.schedule == "two_stage":
        return _partition(schedule.stages, families)
    if schedule.schedule == "sequential_datasets":
        stages: list[tuple[str, ...]] = [(dataset,) for dataset in families]
    else:
        stages = [_of(families, [family]) for family in dict.fromkeys(families.values())]
    if schedule.order == "given":
        return tuple(stages)
    if schedule.order == "reversed":
        return tuple(reversed(stages))
    largest_first = schedule.order == "largest_first"
    return tuple(sorted(stages, key=lambda stage: sum(sizes[name] for name in stage), reverse=largest_first))


def _partition(stages: Sequence[Sequence[str]], families: Mapping[str, str]) -> Stages:
    named = [family for stage in stages for family in stage]
    known = set(families.values())
    if sorted(named) != sorted(known):
        raise ConfigError(
            "the stages of `two_stage` must be a partition of the families",
            expected=f"every one of {', '.join(sorted(known))} once",
            found=", ".join(sorted(named)),
        )
    return tuple(_of(families, stage) for stage in stages)


def _of(families: Mapping[str, str], wanted: Sequence[str]) -> tuple[str, ...]:
    return tuple(dataset for dataset, family in families.items() if family in wanted)
