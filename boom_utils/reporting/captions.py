"""Titles and captions of the tables and figures of a report, for readers of its page: a title, then sentences."""

from __future__ import annotations

_PAIRED = "Differences are paired over the same queries."
_JUDGED = "Better and worse are said where the interval of a difference excludes zero,"
_UNCORRECTED = "before any correction for the number of comparisons."
_VERDICT = (_JUDGED, _UNCORRECTED)
_AGAINST = "Paired differences of means in and out of domain, with intervals."

TABLES: dict[str, tuple[str, ...]] = {
    "headline": (
        "BOOM and training on the full corpus",
        "Mean score (0 to 100) in and out of domain with intervals, difference to the full corpus,",
        "and the examples that had to be trained on for it.",
        "The plain mean of the weights of the same members is a control.",
        "Over tasks too: the interval if tasks are drawn anew as well, for other tasks of the same kind.",
        *(_PAIRED, *_VERDICT),
    ),
    "models": (
        "All models",
        "Mean score (0 to 100) over the tasks of each domain, with intervals, and the difference to the reference.",
        _PAIRED,
        "A corpus pass is the cost of training once on all old data, summed over the members behind a model.",
        "Means are over all seeds of a model, differences over those that both models have. For models that know new",
        "data its tasks are no longer out of domain: see the incremental setting.",
    ),
    "checks": (
        "What has to hold for the study to mean anything",
        "The base beats random weights and fine-tuned models beat the base, in domain.",
        "Where one does not, comparisons of that model say little.",
    ),
    "schedules": (
        "Schedules on the same batches",
        "Members trained on the same batches in another order.",
        *(_PAIRED, *_VERDICT),
    ),
    "incremental": (
        "When new data arrive",
        "Models that know the new data, on old, new and other tasks, beside the model retrained on everything;",
        "and what has to be trained when the new data arrive.",
        *(_PAIRED, *_VERDICT),
    ),
    "granularities": (
        "Merging granularities",
        "Merges of one model a dataset, family or cluster, beside the reference and BOOM.",
        *(_PAIRED, *_VERDICT),
    ),
    "methods": (
        "Merge methods on the same members",
        "Every method on the weights or the task vectors of the same members.",
        *(_PAIRED, *_VERDICT),
    ),
    "variants": (
        "BOOM with other members and weights",
        "Ratios are shares of every dataset, in per cent, that the members were trained on.",
        *(_PAIRED, *_VERDICT),
    ),
    "pareto": (
        "Quality for cost",
        "A model is not dominated if no other is as good at less cost, or better at the same.",
        "A step up is judged against the next cheaper model of that line.",
    ),
    "datasets": (
        "Interaction of datasets",
        "Change of a dataset's held-out loss when it is trained with another one, in thousandths of a nat:",
        "below zero they help each other.",
    ),
    "reach": (
        "What it would take to see smaller differences",
        "Detectable: the true difference that such a comparison finds with a power of 80 %, not corrected for others.",
        "Queries (pairs, texts): times those of every task, at the present number of seeds.",
        "Seeds: runs a side, on the present queries.",
        "No number: the other of the two alone moves the result too far, as far as these runs can tell.",
    ),
    "seeds": (
        "What seeds move",
        "Standard deviation of the mean score over the seeds of each model, in points, beside the one expected if",
        "every trained member moved by as much, and merges by the mean of their members: intervals are made with that.",
        "Few seeds: a deviation of three is known to a factor of two or so.",
    ),
    "tasks": (
        "Every model on every task",
        "Score (0 to 100) with its interval over queries, and seeds where there are some.",
    ),
    "corpus": ("The corpus", "Rows and the median number of words of every set."),
    "members": ("What each member was trained on", "The loss is InfoNCE in nats, over the last tenth of the steps."),
    "costs": (
        "What training took",
        "From the training logs. Seconds are of the machine the study ran on, without evaluation and merging.",
    ),
    "paper": (
        "Ours beside the paper's tables",
        "The paper's numbers are not part of this repository: a reader fills them into",
        "`results/published/paper_tables.csv`.",
        "Compare signs of differences, not heights: corpora, models and tasks differ.",
    ),
}
FIGURES: dict[str, tuple[str, ...]] = {
    "model_means": (
        "Mean scores of all models",
        "Points are means over the tasks of a domain, lines their intervals; the dashed line marks the reference.",
    ),
    "task_deltas": (
        "Against the reference, task by task",
        "Paired difference to the reference on every task, with intervals; blue in domain, orange out of domain.",
    ),
    "variant_comparison": ("Variants of BOOM against the reference", _AGAINST),
    "pareto": (
        "Quality for cost",
        "Mean score against training cost. Squares are merges, circles members;",
        "filled: no model is as good at less cost. The line joins these,",
        "solid where the step is certain, dashed where its interval includes zero.",
    ),
    "schedule_comparison": ("Schedules against batch-level shuffling", _AGAINST),
    "schedule_strips": ("What each schedule trained on", "One cell a step, one colour a dataset."),
    "schedule_losses": ("Losses under each schedule", "When a dataset is seen, and at which loss; a panel a dataset."),
    "incremental_comparison": (
        "Updates beside retraining",
        "Means on old, new and other tasks with intervals, and the examples that have to be trained;",
        "the dashed line marks the retrained model.",
    ),
    "core_ratio_sweep": ("How much old data an update needs", "Means by the share of old data beside the new."),
    "merge_weight_sweep": ("How much an update should weigh", "Means by the weight of the update in the merge."),
    "granularity_comparison": ("Merging granularities against the reference", _AGAINST),
    "method_comparison": (
        "Merge methods against the reference",
        _AGAINST,
        "The dashed line marks Multi-SLERP on the weights of the same members.",
    ),
    "interaction": (
        "Interaction of datasets",
        "Change of a dataset's held-out loss when it is trained together with another one; below zero they help.",
    ),
    "task_vector_geometry": (
        "Geometry of the members",
        "Angles between the members' changes from the base, in degrees; their distances and the size of each change,",
        "in per cent of the base's length.",
    ),
    "layer_updates": ("Where members changed", "Relative size of each member's change from the base, by layer."),
    "training_losses": (
        "Training losses",
        "Running mean of the InfoNCE loss of every member trained with batch-level shuffling, a panel a dataset.",
    ),
    "corpus_rows": ("What members were trained on", "Training examples of every member by dataset."),
}
"""In the order of the page."""


def title_and_caption(kind: str, name: str) -> tuple[str, str]:
    """Title and caption of one of the ``tables`` or ``figures``; its name in words where none is known.

    >>> title_and_caption("figures", "new_thing")
    ('New thing', '')
    """
    words = name.replace("_", " ")
    title, *sentences = {"tables": TABLES, "figures": FIGURES}[kind].get(name, (words[:1].upper() + words[1:],))
    return title, " ".join(sentences)
