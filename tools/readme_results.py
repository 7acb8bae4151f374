"""Writes the section "Results" of the project's README from what is committed; a test compares the two.

Nothing in it is typed: benchmarks from ``results/benchmarks``, the released models' means from ``results/published``,
and the headline table of every committed profile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from manifest_pages import cell, table

from boom_utils.artifacts import PROJECT_ROOT
from boom_utils.config import PROFILES
from boom_utils.errors import ResultsError
from boom_utils.reporting.claims import UNTESTED, counts_of
from boom_utils.reporting.page import read_table
from boom_utils.reporting.published import Published, means_of, read_published
from boom_utils.reporting.results import PAGE, read_json_object
from boom_utils.reporting.tables import markdown

BEGIN, END = "<!-- results: begin, written by tools/readme_results.py -->", "<!-- results: end -->"
UNCOMMITTED = ("smoke",)
"""Profiles whose results are made on the spot and not committed."""
_GENERATE = ".venv/bin/python -m pytest tests/test_reporting_readme.py --regenerate-golden"
_HYPOTHESES = ("verdict", "rank", "model", "against", "domain", "difference", "seeds")
_ARMS = ("corpus passes", "model", "in-domain", "out-of-domain", "out-of-domain minus curve", "place on the curve")
"""Columns of a study's tables that stand in the README."""
Facts = Mapping[str, Any]


def results_section(root: Path = PROJECT_ROOT / "results") -> str:
    """The text between the markers, for a folder of results.

    Raises:
        ResultsError: A committed file is malformed.
    """
    published = root / "published"
    parts = [
        f"Written from the files in `results/`; to write it anew: `{_GENERATE}`.",
        *_profiles(root),
        *(_published(read_published(published)) if published.is_dir() else ()),
        *_benchmarks(root / "benchmarks"),
    ]
    return "\n\n".join(parts)


def with_results(readme: str, section: str) -> str:
    """README with the section between its markers.

    Raises:
        ResultsError: The markers are not there once each, in order.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ResultsError("the README has no place for results", expected=f"{BEGIN} and, below it, {END}, once each")
    return f"{before}{BEGIN}\n\n{section}\n\n{END}{after}"


def _profiles(root: Path) -> Iterator[str]:
    """The headline of every profile of the kit whose results are committed."""
    names = [path.stem for path in sorted(PROFILES.glob("*.yaml")) if path.stem not in UNCOMMITTED]
    found = [name for name in names if (root / name / "study.json").is_file()]
    found.sort(key=lambda name: not _table(root / name, "hypotheses").is_file())  # what decides first
    if not found:
        known = ", ".join(names)
        yield f"**Studies.** No profile's results are committed yet ({known}); `make reproduce` makes `smoke`'s."
    for name in found:
        yield f"**Study `{name}`.** {_verdicts(root / name)} Page: [`{PAGE}`](results/{name}/{PAGE})."
        if _table(root / name, "hypotheses").is_file():
            yield from _decided(root / name)
            continue
        headline = root / name / "tables" / "headline.md"
        if headline.is_file():
            yield headline.read_text(encoding="utf-8").rstrip("\n")


def _table(folder: Path, name: str) -> Path:
    return folder / "tables" / f"{name}.csv"


def _decided(folder: Path) -> Iterator[str]:
    """What a study was made to decide: its hypotheses, and the arms by what they cost."""
    unfinished = read_json_object(folder / "study.json").get("unfinished", ())
    if unfinished:
        yield f"The study is not finished: {len(unfinished)} of its models, each seed counted, are not scored yet."
    wanted = {"hypotheses": _HYPOTHESES, "equal_cost": _ARMS}
    for name, columns in wanted.items():
        frame = read_table(_table(folder, name))
        ends = {f"{column}{end}" for column in columns for end in ("", " low", " high")}
        yield markdown(frame[[column for column in frame if column in ends]]).rstrip("\n")


def _verdicts(folder: Path) -> str:
    """How many comparisons of the claims ledger have each verdict."""
    path = folder / "claims.csv"
    if not path.is_file():
        return ""
    counts = counts_of(pd.read_csv(path)["verdict"])
    if not any(count for name, count in counts.items() if name != UNTESTED):
        return f"It tests no claim of the paper; [its models](results/{folder.name}/tables/models.md)."
    words = ", ".join(f"{count} {name}" for name, count in counts.items())
    return f"Comparisons that test claims of the paper: {words}."


def _published(published: Published) -> Iterator[str]:
    """Means of the released models, over complete sets of tasks only."""
    yield (
        "**Published by others.** Means (task) of the models that the authors released, as mteb's results repository "
        "has their scores; not measured here, not verified to be the paper's. Versions of mteb differ, so do prompts."
    )
    rows: dict[str, dict[str, str]] = {}
    sizes = {benchmark: published.tasks(benchmark) for benchmark in published.benchmarks}
    for benchmark, types in sizes.items():
        for label, scores in published.released(benchmark).groupby("label", sort=False):
            means = means_of(scores.set_index("task")["main_score"], types)
            missing = f"n/a (missing: {', '.join(sorted({*types} - {*scores['task']}))})"
            versions = " and ".join(sorted(scores["mteb"].replace("", "not stated").unique()))
            model = f"{str(label).partition(' @')[0]} at {scores['revision'].iloc[0][:8]}"
            rows.setdefault(model, {})[benchmark] = f"{f'{means[0]:.2f}' if means else missing}, mteb {versions}"
    columns = {name: f"{name}, {len(types)} tasks" for name, types in sizes.items()}
    yield _lines(
        ["model", *columns.values()],
        [[model, *(cells.get(name, "") for name in columns)] for model, cells in rows.items()],
    )


def _benchmarks(folder: Path) -> Iterator[str]:
    """One line a benchmark."""
    rows = []
    for path in sorted(folder.glob("*.json")):
        facts = read_json_object(path)
        what, peer, found = next((read for name, read in _READ.items() if path.stem.startswith(name)), _plain)(
            path.stem, facts
        )
        measured = f"{facts.get('machine', 'not stated')}; {facts.get('measured', 'no date')}"
        rows.append([what, peer, found, measured, f"[`{path.stem}`](results/benchmarks/{path.name})"])
    if rows:
        yield (
            "**Benchmarks.** A ratio above 1 is in our favour; beside another program it is the median over "
            "alternating pairs of runs, none dropped."
        )
        yield _lines(["what", "beside", "result", "machine; day", "record"], rows)


Row = tuple[str, str, str]


def _plain(name: str, facts: Facts) -> Row:
    """Any benchmark with a ratio: what it is called, and every ratio it has."""
    ratios = {key: value for key, value in facts.items() if key.startswith("ratio") and isinstance(value, int | float)}
    found = "; ".join(f"{key.replace('_', ' ')} {value:.2f}" for key, value in ratios.items())
    return name.replace("_", " "), _peer(facts), found or "see the record"


def _peer(facts: Facts) -> str:
    if len(facts.get("implementations", ())) > 1:
        return str(facts["implementations"][1]).removesuffix(" fp32").removesuffix(" bf16")
    if "sentence_transformers" in facts:
        return f"sentence-transformers {facts['sentence_transformers']}"
    return ""


def _training(name: str, facts: Facts) -> Row:
    speed, memory = facts["examples_per_second"], facts["peak_memory_mb"]
    what = f"training, {name.rsplit('_', 1)[-1]}: examples a second"
    found = f"ratio {facts['ratio']:.2f} ({speed['ours']:.1f} against {speed['theirs']:.1f})"
    return what, _peer(facts), f"{found}; peak memory {memory['ours']:,} MB against {memory['theirs']:,} MB"


def _merging(name: str, facts: Facts) -> Row:
    members, dtype = len(facts["weights"]), facts["dtypes"]["inputs"]
    what = f"merging {members} models of {facts['family']['parameters'] / 1e6:,.0f} M parameters, {dtype}"
    floor = f"{facts['ratio_floor']:.2f} times what reading and writing the bytes takes"
    memory = f"{facts['anonymous_gib']:.2f} GiB of memory besides the files"
    peer = f"mergekit {facts['versions']['mergekit']['mergekit']}"
    return what, peer, f"ratio {facts['ratio_mergekit']:.2f}; {floor}; {memory}"


def _memory(name: str, facts: Facts) -> Row:
    batch, whole, chunked = (facts[key][-1] for key in ("batch", "whole_mb", "chunked_mb"))
    what = f"memory of a training step, {batch} queries, {facts['tokens'][-1]:,} tokens"
    ratio = f"{whole / chunked:.2f} times less ({chunked:,} MB against {whole:,} MB)"
    return what, "the same step at once", f"{ratio}, in {facts['time_ratio'][-1]:.2f} times the time"


def _scale(name: str, facts: Facts) -> Row:
    scale = facts["scale"]
    rates = f"{facts['convert_rows_s']:,.0f} rows a second converted, {facts['tokenise_rows_s']:,.0f} tokenised"
    seconds = f"sampled in {facts['sampling_s']:.1f} s and planned in {facts['planning_s']:.1f} s"
    plan = f"{scale['planned_rows']:,} rows {seconds}"
    return f"data: {scale['rows']:,} rows", "", f"{rates}; {plan}; at most {facts['peak_gib']:.2f} GiB"


def _bytes(name: str, facts: Facts) -> Row:
    shapes = "; ".join(
        f"{shape}: {one['kib_a_token_and_layer']:.0f} KiB a token and layer, {one['mib_a_token']:.1f} MiB in all, "
        f"{one['resident_gb']:.1f} GB of weights and moments, {one['tokens_in_memory']:,} tokens kept at once"
        for shape, one in facts["shapes"].items()
    )
    return f"memory of training, counted for a device of {facts['device_gb']:.0f} GB", "", shapes


_READ: dict[str, Callable[[str, Facts], Row]] = {
    "train_throughput": _training,
    "merge_throughput": _merging,
    "train_memory": _memory,
    "training_bytes": _bytes,
    "data_scale": _scale,
}
"""How benchmarks are told whose record holds more than a ratio, by how the file's name begins."""


def _lines(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; nothing in a cell is read as Markdown's or HTML's own signs."""
    return "\n".join(table(head, [[cell(text) for text in row] for row in rows]))
