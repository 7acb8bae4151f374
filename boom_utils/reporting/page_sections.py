"""The sections of a report's page that are words and short lists, from a study's facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import pandas as pd

from boom_utils.reporting.claims import INCONCLUSIVE, REFUTED, SUPPORTED, UNTESTED
from boom_utils.reporting.deviations import UNKNOWN
from boom_utils.reporting.headline import BOOM, WIDER
from boom_utils.reporting.page_parts import facts_list, number_of, points
from boom_utils.reporting.published import Published, measured_scores, released, table_name
from boom_utils.reporting.results import Results

PAPER_ADDRESS = "https://arxiv.org/abs/2602.05787"
_TITLE_ENDS = {"in-domain": "in domain", "out-of-domain": "out of domain"}


def standfirst(results: Results) -> str:
    """What this is, in two sentences below the title."""
    study = results.study
    text = (
        f"{len(results.models)} models scored on {len(study['tasks'])} tasks. Every number is this study's own unless "
        "it is said to be another's, and is drawn from the files beside this page."
    )
    link = f'<a href="{PAPER_ADDRESS}">arXiv 2602.05787</a>'
    return f'<p class="standfirst">{escape(text)} The paper: {link}.</p>\n'


def headline_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """The headline table for a page: the wider intervals and the examples stand small below what they belong to."""
    shown = frame.drop(columns="examples")
    shown["corpus passes note"] = [f"{count:,} examples" for count in frame["examples"]]
    for wide in [str(name) for name in frame if str(name).endswith(WIDER)]:
        bounds = [f"{wide} low", f"{wide} high"]
        said = [f"tasks too: [{points(low, True)}, {points(high, True)}]" for low, high in frame[bounds].to_numpy()]
        shown[f"{wide.removesuffix(WIDER)} note"] = pd.Series(said, frame.index).where(frame[wide].notna())
        shown = shown.drop(columns=[wide, *bounds])
    return shown


def headline_text(results: Results, frame: pd.DataFrame | None) -> str:
    """The difference of BOOM and the full corpus in a sentence a domain, and what limits it."""
    if frame is None:
        return "<p>This study has no merge of members on samples to compare with full-corpus training.</p>\n"
    full = str(results.full)
    boom = next(row for row in frame.to_dict("records") if row["what"] == BOOM)
    said = []
    for domain in results.domains:
        name = f"{domain} minus {full}"
        value, low, high = (points(boom[column], sign=True) for column in (name, f"{name} low", f"{name} high"))
        said.append(f"{_TITLE_ENDS[domain]} {value} [{low}, {high}] ({boom[f'{domain} verdict']})")
    text = f"<code>{escape(str(boom['model']))}</code> minus <code>{escape(full)}</code>, in points of 100: "
    return f"<p>{text}<strong>{escape('; '.join(said))}</strong>.</p>\n"


def limits(results: Results) -> str:
    """What the intervals are, and what they leave out, as the ledger says it."""
    confidence = f"{100 * results.bootstrap.confidence:g} %"
    text = f"Intervals are {confidence} bootstrap intervals ({results.bootstrap.draws:,} draws)."
    seeds = results.study.get("seeds", {})
    if len(seeds) > 1:
        count = min(map(len, seeds.values()))
        text += f" They are over queries and seeds: {', '.join(seeds)} were made with {count} seeds each,"
        text += " and the spread they show is given to every other model, too."
    else:
        text += " Every model was trained once: intervals are over queries only, and another seed may differ."
    return f"<p>{escape(text)} The ledger of claims says of every comparison what limits it.</p>\n"


def studied(results: Results) -> str:
    """Profile, models, corpus and seeds as a list."""
    study = results.study
    members, merges, scored = study["members"], study["merges"], {*results.models}
    seeds = sorted({facts["seed"] for facts in members.values() if "seed" in facts})
    domains = ", ".join(f"{len(results.tasks(domain))} {_TITLE_ENDS[domain]}" for domain in results.domains)
    families: dict[str, list[str]] = {}
    for name, family in study.get("families", {}).items():
        families.setdefault(family, []).append(name.replace("_", " "))
    corpus = "; ".join(f"{family}: {_few(names)}" for family, names in families.items())
    counts = [len({*members} & scored), len({*merges} & scored), len(scored - {*members, *merges})]
    facts = {
        "Profile": str(study.get("profile", "")),
        "Models": "{} scored: {} members, {} merges, {} they start from; ".format(len(scored), *counts)
        + f"{len(members)} members trained in all",
        "Tasks": f"{len(study['tasks'])}: {domains}",
        "Datasets": corpus or "not stated",
        "Seeds of members": _few([str(seed) for seed in seeds]),
        "Reference": f"{results.reference}: every difference is to it unless a column says otherwise",
    }
    return facts_list(facts)


def _few(names: Sequence[str], most: int = 12) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def task_frame(results: Results) -> pd.DataFrame:
    """One row a task: family, domain, metric, number of values behind a score."""
    model, rows = results.reference, []
    for task in results.study["tasks"]:
        samples = results.samples(model)[task["name"]]
        row = {"task": task["name"], "family": task["family"], "domain": task["domain"]}
        row |= {"of the new data": "yes" if task["new_data"] else "", "metric": samples.metric}
        rows.append(row | {"values behind a score": len(samples.ids)})
    return pd.DataFrame(rows)


def claim_counts(counts: Mapping[str, int], results: Results) -> str:
    """How many rows of the ledger have each verdict."""
    order = (SUPPORTED, REFUTED, INCONCLUSIVE, UNTESTED)
    tones = {SUPPORTED: "good", REFUTED: "bad"}
    cells = "".join(
        f'<li class="{tones.get(name, "open")}"><b>{counts.get(name, 0)}</b> {escape(name)}</li>' for name in order
    )
    level = f"{1 - results.bootstrap.confidence:.2g}"
    return (
        f'<ul class="counts">{cells}</ul>\n<p>Rows are comparisons: a claim may have several. A verdict needs a '
        f"corrected p value below {level} and the whole interval on one side. <em>Not supported</em> means that our "
        "models show the opposite; it says nothing of other models and data.</p>\n"
    )


def deviation_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """The ledger with a first column that says whether a value differs; those that do come first."""
    known = frame["paper's value"].fillna(UNKNOWN) != UNKNOWN
    same = frame["this study"] == frame["paper's value"]
    status = pd.Series("ours", index=frame.index).mask(known & same, "same").mask(known & ~same, "differs")
    order = {"differs": 0, "same": 1}
    shown = frame.assign(status=status)
    shown = shown.sort_values("status", key=lambda column: column.map(lambda name: order.get(name, 2)), kind="stable")
    return shown[["key", "status", *(name for name in frame if name != "key")]]


def two_decimals(cell: object) -> object:
    """A published score with as many decimals as the others; anything else as it is."""
    number = number_of(cell)
    return cell if number is None else f"{number:.2f}"


def published_intro() -> str:
    """Whose the published scores are."""
    return (
        "<p>Scores of the models that the authors released, as filed in the results repository of the mteb project: "
        "<strong>theirs, not measured here</strong>, and not verified to be numbers of the paper. The mteb version "
        "stands below each score; the revision of a model stands in its name. A mean is shown only over a complete "
        "set of tasks.</p>\n"
    )


def published_text(results: Results, published: Published, benchmark: str) -> tuple[str, str, str]:
    """Name, title and caption of the table of a benchmark."""
    ours = bool(measured_scores(results, published.tasks[benchmark]))
    shown = [entry for entry in published.entries[benchmark] if entry.label in released(published, benchmark)]
    revisions = ", ".join(f"{entry.model} at {entry.revision[:8]}" for entry in shown)
    who = "ours beside the released models'" if ours else "the released models', theirs"
    note = (
        "Beside a score of theirs stands what keeps it from being compared: another mteb version, another prompt. "
        if ours
        else "This study has scored no task of this benchmark. "
    )
    return table_name(benchmark), f"{benchmark}: {who}", f"{note}Revisions: {revisions}."


def published_figure_text(name: str) -> tuple[str, str]:
    """Title and caption of the figure of a benchmark."""
    words = name.removeprefix("published_").replace("_", " ")
    return f"Published scores and ours: {words}", "Hollow: mteb version not stated, or not that of the first model."


def environment(results: Results) -> str:
    """Versions and machine, as the record of the base model states them."""
    stated = results.study.get("environment")
    if not stated:
        return "<p>These results do not state their environment.</p>\n"
    packages = ", ".join(f"{name} {version}" for name, version in stated["packages"].items() if version)
    facts = {
        "Python": str(stated["python"]),
        "Machine": str(stated["machine"]),
        "Device of training": str(stated.get("device") or "not recorded apart from the machine"),
        "Packages": packages,
        "Commit of the kit": str(stated.get("git_commit") or "not known"),
    }
    return facts_list(facts)


def notebooks(results: Results, names: Sequence[str]) -> str:
    """Where the executed notebooks are, and the commands that make this page and say where its files come from."""
    profile = escape(str(results.study.get("profile", "")))
    place = f"../../workspace/executed/{profile}"
    links = "".join(f'<li><a class="workspace" href="{place}/{name}.html">{escape(name)}</a></li>' for name in names)
    commands = (f"boom report --profile {profile}", f"boom trace results/{profile}/tables/models.csv")
    lines = "\n".join((*commands, f"boom run --profile {profile}"))
    return (
        f"<p>The executed notebooks are in the workspace, <code>executed/{profile}/</code>, as .ipynb and .html. The "
        "links lead there from <code>results/</code> of the project while its workspace is <code>workspace/</code> "
        "beside it; with <code>BOOM_HOME</code> set, look there.</p>\n"
        f"<ul>{links}</ul>\n<p>This page again from the files beside it; the way back from any of them to the data; "
        f"and the whole study:</p>\n<pre><code>{lines}</code></pre>\n"
        '<p class="from">from results: <a href="study.json">study.json</a>, '
        '<a href="provenance.json">provenance.json</a></p>\n'
    )
