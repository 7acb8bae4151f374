"""A study against its interpolation curve, with seeds of own rows: nothing is compared with what it is not paired with.

Limits of simulations are four standard errors of a binomial share around what is promised.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from boom_utils.errors import ResultsError
from boom_utils.evaluation.statistics import Measured, TaskSamples
from boom_utils.experiments import Experiments
from boom_utils.reporting.ablations import merge_table, seed_table
from boom_utils.reporting.controls import PLACE, domain_table, equal_cost_table, hypothesis_table, what_limits
from boom_utils.reporting.frontier import frontier
from boom_utils.reporting.results import Numbers, Results, run_name
from boom_utils.reporting.tables import model_table, task_table

TASKS = {"known-1": "in-domain", "known-2": "in-domain", "other": "out-of-domain", "code": "out-of-domain"}
QUALITY = {
    "base": (0.60, 0.73),
    "half-way": (0.65, 0.74),
    "full": (0.67, 0.70),
    "boom": (0.66, 0.735),
    "soup": (0.66, 0.72),
    "s20": (0.62, 0.73),
}
"""True means in and out of domain: the curve has 0.72 where `boom` is, which has 0.015 more; `soup` lies on it."""
SEEDS = {"full": 5, "half-way": 5, "boom": 5, "soup": 3, "s20": 3}
EXPERIMENTS: dict[str, Any] = {
    "full": "full",
    "boom": "boom",
    "interpolation": {"of": "full", "models": ["half-way"]},
    "frontier": ["boom", "soup"],
    "hypotheses": {
        "primary": [{"model": "boom", "against": "interpolation"}, {"model": "boom", "against": "soup"}],
        "secondary": [{"model": "soup", "against": "interpolation"}],
    },
}
MEMBER = {"start": None, "schedule": "batch_shuffled", "new_data": None, "ratio": 1.0}
MEMBERS = {name: {**MEMBER, "passes": passes} for name, passes in {"full": 1.0, "s20": 0.2}.items()}
MERGES = {
    "half-way": {"method": "task_arithmetic", "members": ["full"], "weights": [0.5]},
    "boom": {"method": "multislerp", "members": ["s20", "full"], "weights": [0.2, 1.0]},
    "soup": {"method": "linear", "members": ["s20", "full"], "weights": [1.0, 1.0]},
}


def made_up(
    rng: np.random.Generator,
    *,
    seeds: Mapping[str, int] = SEEDS,
    own_rows: bool = True,
    queries: int = 60,
    spread: tuple[float, float] = (0.004, 0.003),
    noise: float = 0.03,
) -> Results:
    """A study: ``spread`` is what the rows of a seed do to all that is trained on them, and what each model adds."""
    common, samples = rng.normal(0, spread[0], (9, 2)), {}
    hard = {task: rng.normal(0, 0.2, queries) for task in TASKS}
    for model, means in QUALITY.items():
        own = {task: rng.normal(0, noise, queries) for task in TASKS}
        for seed in range(1, seeds.get(model, 1) + 1):
            move = np.zeros(2) if model == "base" else common[seed] + rng.normal(0, spread[1], 2)
            for task, domain in TASKS.items():
                place = int(domain == "out-of-domain")
                values = means[place] + move[place] + hard[task] + own[task]
                ids = tuple(map(str, range(queries)))
                samples[run_name(model, seed), task] = TaskSamples("ndcg_at_10", ids, {"value": values})
    study = {
        "models": [*QUALITY],
        "members": MEMBERS,
        "merges": {name: {"parameters": {}, "task_vectors": False, **facts} for name, facts in MERGES.items()},
        "seeds": {model: [run_name(model, n + 1) for n in range(count)] for model, count in seeds.items() if count > 1},
        "tasks": [
            {"name": name, "family": "code" if name == "code" else "retrieval", "domain": domain, "new_data": False}
            for name, domain in TASKS.items()
        ],
        "evaluation": {"reference": "full", "confidence": 0.95, "seen_by_base": ["other"]},
        "experiments": EXPERIMENTS,
    } | ({"own_rows": True} if own_rows else {})
    return Results(Path("made-up"), study, Numbers(samples))


@pytest.fixture(scope="module")
def study() -> Results:
    return made_up(np.random.default_rng(0))


def means_of(results: Results, model: str, seeds: int) -> np.ndarray:
    """Means in and out of domain of some seeds (S, 2), by hand."""
    runs = [run_name(model, n + 1 if model != "base" else 1) for n in range(seeds)]
    tasks = [[task for task in TASKS if TASKS[task] == domain] for domain in ("in-domain", "out-of-domain")]
    samples = results.numbers.samples
    return np.array([[np.mean([samples[run, t].values[0].mean() for t in some]) for some in tasks] for run in runs])


# --- the curve --------------------------------------------------------------------------------------------------------


def test_the_curve_runs_from_the_base_over_ascending_shares_and_is_gone_with_an_end_of_it(study: Results) -> None:
    assert study.interpolation == [(0.0, "base"), (0.5, "half-way"), (1.0, "full")]
    known = Experiments.model_validate(EXPERIMENTS)
    assert ("experiments.hypotheses", "soup") in known.names() and "interpolation" not in dict(known.names()).values()
    left = known.of(["base", "half-way", "boom", "soup"])
    assert (left.interpolation.models, left.frontier) == ((), ("boom", "soup"))
    assert [one.against for one in (*left.hypotheses.primary, *left.hypotheses.secondary)] == ["soup"]
    bare = Results(study.folder, {**study.study, "experiments": {}}, study.numbers)
    assert bare.interpolation == []
    two = {**EXPERIMENTS, "interpolation": {"of": "full", "models": ["half-way", "boom"]}}
    merges = {**study.study["merges"], "boom": {**study.study["merges"]["boom"], "weights": [0.7]}}
    seeds = {**study.study["seeds"], "half-way": study.study["seeds"]["boom"][:1]}
    fewer = Results(study.folder, {**study.study, "experiments": two, "merges": merges, "seeds": seeds}, study.numbers)
    assert fewer.interpolation == [(0.0, "base"), (0.7, "boom"), (1.0, "full")]
    with pytest.raises(ResultsError, match="no interpolation curve"):
        bare.surplus("boom", "out-of-domain")


def test_the_surplus_is_as_worked_out_by_hand() -> None:
    exact = made_up(np.random.default_rng(0), seeds={}, noise=0.0, spread=(0.0, 0.0))
    found = exact.surplus("boom", "out-of-domain")
    assert (found.measured.value, found.share) == pytest.approx((0.015, 0.75))
    assert (found.beyond, found.seeds) == (False, 1) and "seeds" not in found.measured.levels
    assert exact.surplus("soup", "out-of-domain").measured.value == pytest.approx(0.0, abs=1e-12)
    inside = exact.surplus("boom", "in-domain")  # 0.735 is on the way from the base to half-way, at 0.625, and again
    assert (inside.measured.value, inside.share) == pytest.approx((0.66 - 0.6525, 0.5625))
    assert exact.surplus("base", "out-of-domain").measured.value == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("domain", ["in-domain", "out-of-domain"])
def test_its_variance_is_that_of_drawing_queries_again_and_of_the_surplus_of_every_seed(domain: str) -> None:
    """The reference draws queries of every task anew, and reads the curve anew each time."""
    results = made_up(np.random.default_rng(1), noise=0.004, spread=(0.001, 0.0005))
    rng = np.random.default_rng(2)
    found = results.surplus("boom", domain)
    held, gained = (0, 1) if domain == "out-of-domain" else (1, 0)
    names = ["base", "half-way", "full", "boom"]
    means = {name: means_of(results, name, 5) for name in names}

    def above(at: Mapping[str, np.ndarray]) -> float:
        best = -math.inf
        for a, b in (("base", "half-way"), ("half-way", "full")):
            way = (at["boom"][held] - at[a][held]) / (at[b][held] - at[a][held])
            best = max(best, (1 - way) * at[a][gained] + way * at[b][gained]) if 0 <= way <= 1 else best
        return float(at["boom"][gained] - best)

    assert found.measured.value == pytest.approx(above({name: rows.mean(axis=0) for name, rows in means.items()}))
    values = {
        name: [
            np.mean([results.numbers.samples[run, t].values[0] for run in results.seeds(name)], axis=0) for t in TASKS
        ]
        for name in names
    }
    drawn = []
    for _ in range(1500):
        rows = [rng.integers(0, 60, 60) for _ in TASKS]
        scores = {name: [v[r].mean() for v, r in zip(values[name], rows, strict=True)] for name in names}
        drawn.append(above({name: np.array([np.mean(s[:2]), np.mean(s[2:])]) for name, s in scores.items()}))
    assert math.sqrt(found.measured.levels["queries"][0]) == pytest.approx(np.std(drawn), rel=0.1)
    variance, freedom = found.measured.levels["seeds"]
    assert (freedom, found.seeds) == (4, 5)
    step = 1e-6  # the surplus of one seed: the derivative of the whole one in the direction of what it moves
    middle = {name: rows.mean(axis=0) for name, rows in means.items()}
    moves = [
        above({name: middle[name] + step * (means[name][n] - middle[name]) for name in names}) / step for n in range(5)
    ]
    assert variance == pytest.approx(np.var(moves, ddof=1) / 5, rel=1e-3)


def test_beyond_the_curve_its_nearest_end_is_compared_with_and_over_tasks_is_wider(study: Results) -> None:
    better = dict(study.numbers.samples)
    for (run, task), one in study.numbers.samples.items():
        if run.startswith("boom") and TASKS[task] == "in-domain":
            better[run, task] = TaskSamples(one.metric, one.ids, {"value": one.columns["value"] + 0.05})
    found = Results(study.folder, study.study, Numbers(better)).surplus("boom", "out-of-domain")
    gap = means_of(study, "boom", 5)[:, 1] - means_of(study, "full", 5)[:, 1]
    assert (found.beyond, found.share) == (True, 1.0)
    assert found.measured.value == pytest.approx(gap.mean())
    assert found.measured.levels["seeds"][0] == pytest.approx(gap.var(ddof=1) / 5)
    wide = study.surplus("boom", "out-of-domain", over_tasks=True).measured
    assert {*wide.levels} == {"tasks", "seeds"}
    assert wide.value == pytest.approx(study.surplus("boom", "out-of-domain").measured.value)


def test_a_model_that_is_not_surely_beyond_a_turn_of_the_curve_may_have_nothing_over_it(study: Results) -> None:
    def raised(by: float) -> Results:
        samples = dict(study.numbers.samples)
        for (run, task), one in study.numbers.samples.items():
            if run.startswith("boom") and TASKS[task] == "out-of-domain":
                samples[run, task] = TaskSamples(one.metric, one.ids, {"value": one.columns["value"] + by})
        return Results(study.folder, study.study, Numbers(samples))

    ahead = study.comparison("half-way", "boom", study.tasks("out-of-domain")).value
    near, far = raised(ahead + 1e-4), raised(ahead + 0.05)
    place, sure = near.surplus("boom", "in-domain"), far.surplus("boom", "in-domain")
    assert (place.share, place.beyond) == (sure.share, sure.beyond) == (0.5, True)
    gap = means_of(study, "boom", 5)[:, 0].mean() - means_of(study, "half-way", 5)[:, 0].mean()
    assert place.measured.value == pytest.approx(gap) and place.measured.estimate().low > 0
    assert place.estimate.low < 0 < place.estimate.high and place.p_value == 1.0
    assert sure.estimate == sure.measured.estimate() and sure.p_value == sure.measured.p_value
    rows = hypothesis_table(near).set_index(["model", "against", "domain"])
    row = rows.loc["boom", "interpolation", "in-domain"]
    assert (row["verdict"], row["what limits it"]) == ("inconclusive", PLACE)


# --- seeds with own rows ----------------------------------------------------------------------------------------------


def test_seeds_with_own_rows_are_compared_in_pairs_over_those_that_both_sides_have(study: Results) -> None:
    tasks = study.tasks("out-of-domain")
    for ours, theirs, seeds in (("boom", "full", 5), ("boom", "soup", 3), ("full", "base", 5), ("soup", "base", 3)):
        gaps = [
            one[1] - other[1] for one, other in zip(*(means_of(study, m, seeds) for m in (ours, theirs)), strict=True)
        ]
        found = study.comparison(ours, theirs, tasks)
        assert found.value == pytest.approx(np.mean(gaps))
        assert found.levels["seeds"] == pytest.approx((np.var(gaps, ddof=1) / seeds, seeds - 1))
    alone = study.comparison("soup", None, tasks)
    assert alone.value == pytest.approx(means_of(study, "soup", 3)[:, 1].mean())
    assert alone.levels["seeds"] == pytest.approx((means_of(study, "soup", 3)[:, 1].var(ddof=1) / 3, 2))
    assert "seeds" not in study.comparison("base", None, tasks).levels
    pooled = made_up(np.random.default_rng(0), own_rows=False).comparison("boom", "soup", tasks)
    assert pooled.levels["seeds"][1] > 2, "with the same rows the spread of all models together stays"


@pytest.mark.parametrize("ours", ["boom", "full", "soup", "curve"])
def test_intervals_of_seeds_with_own_rows_cover_as_often_as_they_say(ours: str) -> None:
    """Against the base what the rows of a seed do to all models counts, between trained ones it is in both."""
    trials, hits, truth = 300, 0, {"boom": 0.015, "full": -0.03, "soup": -0.01, "curve": 0.0}[ours]
    for number in range(trials):
        results = made_up(np.random.default_rng([number, len(ours)]), queries=30)
        if ours == "curve":
            found = results.surplus("soup", "out-of-domain").measured.estimate()
        else:
            other = "soup" if ours == "boom" else "base"
            found = results.difference(ours, other, results.tasks("out-of-domain"))
        hits += found.low <= truth <= found.high
    assert hits / trials == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / trials))


# --- tables -----------------------------------------------------------------------------------------------------------


def clear(**more: Any) -> Results:
    """A study in which queries and seeds move little, so that what is true is seen."""
    return made_up(np.random.default_rng(3), noise=0.004, spread=(0.002, 0.0005), queries=200, **more)


def test_arms_stand_beside_base_full_and_curve_and_those_of_one_cost_from_best_to_worst() -> None:
    results = clear()
    table = equal_cost_table(results).set_index("model")
    assert list(table.index) == ["base", "full", "boom", "soup"]
    assert table["corpus passes"].to_list() == [0.0, 1.0, 1.2, 1.2] and table["seeds"].to_list() == [1, 5, 5, 3]
    above = results.surplus("boom", "out-of-domain").measured.estimate()
    assert table.loc["boom", "out-of-domain minus curve"] == pytest.approx(100 * above.value, abs=1e-4)
    assert table.loc[["base", "full"], "out-of-domain minus curve"].isna().all(), "they are on the curve"
    assert float(table["place on the curve"].to_dict()["boom"]) == pytest.approx(0.75, abs=0.05)
    gap = results.difference("soup", "full", results.tasks("in-domain"))
    assert table.loc["soup", "in-domain minus full low"] == pytest.approx(100 * gap.low, abs=1e-4)
    assert table["seeds minus full"].dropna().to_dict() == {"soup": 3}, "where not all of a model's seeds are in it"
    worse = Results(results.folder, {**results.study, "experiments": {**EXPERIMENTS, "frontier": []}}, results.numbers)
    assert equal_cost_table(worse).empty and domain_table(worse).empty
    model = model_table(results).set_index("model")
    assert model.loc["half-way", "what"] == "task_arithmetic of full, weights 0.5"
    assert merge_table(results).set_index("model").loc["boom", "seeds minus mean part"] == 3
    assert not [name for name in seed_table(results) if "expected" in str(name) or "variance" in str(name)]


def test_an_ensemble_costs_all_of_its_members_in_training_and_at_inference_and_stands_beside_them() -> None:
    results = clear()
    made = {**results.study["merges"]}
    ensembles = {"soup": {"members": made.pop("soup")["members"]}}
    asked = Results(results.folder, {**results.study, "merges": made, "ensembles": ensembles}, results.numbers)
    table = equal_cost_table(asked).set_index("model")
    assert table["models asked"].to_dict() == {"base": 1, "full": 1, "boom": 1, "soup": 2}
    assert table["what"].to_dict()["soup"] == "mean of the embeddings of 2 members"
    assert table["corpus passes"].to_dict()["soup"] == 1.2
    assert asked.shares("soup") == results.shares("soup")
    pd.testing.assert_frame_equal(merge_table(asked).drop(columns="what"), merge_table(results).drop(columns="what"))


def test_code_stands_apart_out_of_domain_and_tasks_that_the_base_was_trained_on_are_marked() -> None:
    results = clear()
    table, tasks = domain_table(results).set_index("model"), task_table(results)
    for group, task in (("code", "code"), ("other", "other"), ("new to the base", "code")):
        expected = 100 * results.mean("boom", [task]).value
        assert table[f"out-of-domain {group}"].to_dict()["boom"] == pytest.approx(expected, abs=1e-3)
    assert {*tasks.loc[tasks["in the base's training data"] == "yes", "task"]} == {"other"}


def test_a_hypothesis_is_judged_after_the_correction_for_all_and_says_what_it_is_limited_to() -> None:
    def row(results: Results, *names: str) -> dict[str, Any]:
        found = {
            (one["model"], one["against"], one["domain"]): one for one in hypothesis_table(results).to_dict("records")
        }
        return {str(key): value for key, value in found[names[0], names[1], names[2]].items()}

    boom, results = ("boom", "interpolation", "out-of-domain"), clear()
    assert hypothesis_table(results)["rank"].to_list() == ["primary"] * 4 + ["secondary"] * 2
    found = row(results, *boom)
    assert found["verdict"] == "higher" and found["p (corrected)"] == pytest.approx(4 * found["p"], rel=1e-2)
    assert found["seeds"] == 5 and found["difference low"] > 0
    assert row(results, "soup", *boom[1:])["verdict"] == "inconclusive"
    assert row(made_up(np.random.default_rng(0), queries=200), *boom)["verdict"] == "higher on these tasks"
    alone = row(clear(seeds={}), "boom", "soup", "out-of-domain")
    assert (
        alone["verdict"] == "higher on these tasks and trainings"
        and "no variance between seeds" in alone["what limits it"]
    )


@pytest.mark.parametrize(
    ("queries", "seeds", "said"),
    [
        (1e-6, 2e-6, "seeds, within half a point"),
        (1e-6, 2e-5, "seeds: 21 instead of 5 would do"),
        (8e-6, 1e-7, "queries: 1.3 times as many would do"),
        (8e-6, 2e-5, "queries and seeds: 7.4 times as many of both would do"),
    ],
)
def test_what_would_make_an_interval_half_a_point_wide_is_counted(queries: float, seeds: float, said: str) -> None:
    found = Measured(0.0, {"queries": (queries, 1e9), "seeds": (seeds, 4.0)})
    assert what_limits(found, 5, 0.95) == said


def test_a_clear_verdict_is_that_of_a_bootstrap_over_queries_with_any_seed() -> None:
    results = made_up(np.random.default_rng(4), seeds={}, noise=0.02, spread=(0.0, 0.0))
    tasks, words = results.tasks("out-of-domain"), []
    for ours, theirs in (("boom", "full"), ("soup", "base"), ("boom", "half-way")):
        gaps = np.array([results.samples(ours)[t].values[0] - results.samples(theirs)[t].values[0] for t in tasks])
        found, drawn = results.difference(ours, theirs, tasks), []
        for seed in range(10):
            rows = np.random.default_rng(seed).integers(0, 60, (len(tasks), 2000, 60))
            means = np.mean([gap[row].mean(axis=1) for gap, row in zip(gaps, rows, strict=True)], axis=0)
            drawn.append(np.sign(np.quantile(means, [0.025, 0.975])).sum() / 2)
        words.append(np.sign([found.low, found.high]).sum() / 2)
        assert {*drawn} == {words[-1]}
    assert words == [1, -1, 0]


def test_an_arm_without_some_of_the_seeds_stands_at_its_difference_to_the_full_run(study: Results) -> None:
    axis = frontier(study).axes[0]
    soup, full = means_of(study, "soup", 3), means_of(study, "full", 5)
    expected = 100 * (full.mean(axis=0) + (soup - full[:3]).mean(axis=0))
    places = [one.get_offsets()[0] for one in axis.collections if len(one.get_offsets()) == 1]
    assert any(np.allclose(place, expected, atol=1e-3) for place in places)
    assert not any(np.allclose(place, 100 * soup.mean(axis=0), atol=1e-3) for place in places)
