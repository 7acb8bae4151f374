"""Writes what README.md and `docs/results.md` show of the results, between their markers, and the figures of README.

Nothing of it is typed: all comes from the files in ``results/``. A test compares pages and figures with these files;
with ``--regenerate-golden`` it writes them anew.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from manifest_pages import cell, table
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from boom_utils.artifacts import PROJECT_ROOT, atomic_path
from boom_utils.config import PROFILES
from boom_utils.errors import ResultsError
from boom_utils.reporting import panels
from boom_utils.reporting.claims import INCONCLUSIVE, UNTESTED, counts_of
from boom_utils.reporting.figures import study_figures
from boom_utils.reporting.page import read_table
from boom_utils.reporting.published import Published, means_of, read_published
from boom_utils.reporting.results import PAGE, read_json_object, read_results
from boom_utils.reporting.tables import markdown, with_interval

RESULTS = PROJECT_ROOT / "results"
UNCOMMITTED = ("smoke",)
"""Profiles whose results are made on the spot and not committed."""
_DECIDED = "hypotheses"
"""The table of a study that was made to decide something."""
_BLOCK = re.compile(r"(<!-- (\w+): begin[^>]*-->)\n.*?(<!-- \2: end -->)", re.DOTALL)
_ARMS = ("corpus passes", "seeds", "model", "in-domain", "out-of-domain", "out-of-domain minus curve")
_HEADLINE = ("model", "corpus passes", "in-domain", "in-domain minus full", "out-of-domain", "out-of-domain minus full")
"""Columns of a study's tables that stand in the README."""
Facts = Mapping[str, Any]


def with_results(page: str, root: Path = RESULTS, links: str = "results") -> str:
    """A page with what the results say now between its markers, ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``.

    Args:
        page: Markdown.
        root: The folder of results.
        links: Where that folder is, as seen from the page.

    Raises:
        ResultsError: Markers do not come in pairs, or name nothing in `BLOCKS`; a committed file is malformed.
    """
    names = [found[1] for found in _BLOCK.findall(page)]
    if not names or {*names} - {*BLOCKS} or len(re.findall("<!-- .*: (?:begin|end)", page)) != 2 * len(names):
        expected = f"pairs of <!-- NAME: begin --> and <!-- NAME: end -->, NAME one of {', '.join(BLOCKS)}"
        raise ResultsError("the page has no place for results", expected=expected, found=", ".join(names) or "none")

    def filled(found: re.Match[str]) -> str:
        text = "\n\n".join(BLOCKS[found[2]](root, links))
        return f"{found[1]}\n\n{text}\n\n{found[3]}"

    return _BLOCK.sub(filled, page)


# --- studies ----------------------------------------------------------------------------------------------------------


def _studies(root: Path) -> list[Path]:
    """Folders of the kit's profiles whose results are committed; those that decide something come first."""
    names = [path.stem for path in sorted(PROFILES.glob("*.yaml")) if path.stem not in UNCOMMITTED]
    found = [root / name for name in names if (root / name / "study.json").is_file()]
    return sorted(found, key=lambda folder: not _table(folder, _DECIDED).is_file())


def _table(folder: Path, name: str) -> Path:
    return folder / "tables" / f"{name}.csv"


def _answer(root: Path, links: str) -> Iterator[str]:
    """What the deciding study says of its primary hypotheses, and how far it is."""
    for folder in _studies(root):
        if not _table(folder, _DECIDED).is_file():
            continue
        frame = read_table(_table(folder, _DECIDED))
        primary = frame[frame["rank"] == "primary"]
        decided = sum(primary["verdict"] != INCONCLUSIVE)
        made, wanted = _seeds(read_json_object(folder / "study.json"), str(primary["model"].iloc[0]))
        far = f"so far, with {made} of {wanted} seeds" if made < wanted else f"with {made} seeds"
        yield f"**{decided} of the {len(primary)} comparisons that `{folder.name}` was made for are decided {far}:**"
        pairs = primary.groupby(["model", "against"], sort=False)
        lines = (
            f"- {model} minus {other}: {'; '.join(map(_difference, rows.to_dict('records')))}"
            for (model, other), rows in pairs
        )
        yield "\n".join(lines)


def _difference(row: Mapping[Any, Any]) -> str:
    low, high = row["difference low"], row["difference high"]
    domain = str(row["domain"]).replace("-", " ")
    return f"{with_interval(row['difference'], low, high, sign=True)} points {domain}, {row['verdict']}"


def _seeds(study: Facts, model: str) -> tuple[int, int]:
    """How many seeds of a model are scored, and how many there will be."""
    made = {*study["seeds"].get(model, [model])}
    return len(made), len(made | {name for name in study.get("unfinished", ()) if name.partition(".seed")[0] == model})


def _main_tables(root: Path, links: str) -> Iterator[str]:
    """The arms of studies that decide something, and the headline of those that test claims."""
    shown = [folder for folder in _studies(root) if (folder / "tables" / "headline.md").is_file()]
    if not shown:
        yield "No profile's results are committed yet; `make reproduce` makes those of `smoke`."
    for folder in shown:
        name, decides = folder.name, _table(folder, _DECIDED).is_file()
        frame = _arms(folder) if decides else read_table(_table(folder, "headline"))
        place = f"{links}/{name}"
        more = [
            f"[{one}]({place}/tables/{one}.md)"
            for one in ((_DECIDED, "equal_cost", "models") if decides else ("models",))
        ]
        more += [f"[claims]({place}/claims.md)", f"[`{PAGE}`]({place}/{PAGE})"]
        yield f"**Study `{name}`.** {_verdicts(folder)} More: {', '.join(more)}."
        yield markdown(_columns(frame, _ARMS if decides else _HEADLINE)).rstrip("\n")


def _columns(frame: pd.DataFrame, columns: Iterable[str]) -> pd.DataFrame:
    """Some columns with their intervals, in that order."""
    return frame[[name for one in columns for name in (one, f"{one} low", f"{one} high") if name in frame]]


def _arms(folder: Path) -> pd.DataFrame:
    """Of the arms by cost: those of the hypotheses, base and full, and the best of each cost."""
    arms, decided = read_table(_table(folder, "equal_cost")), read_table(_table(folder, _DECIDED))
    named = arms["model"].isin({"base", "full", *decided["model"], *decided["against"]})
    return arms[named | ~arms["corpus passes"].round(2).duplicated()]


def _verdicts(folder: Path) -> str:
    """How many comparisons of the claims ledger have each verdict."""
    if not (folder / "claims.csv").is_file():
        return "It tests no claim of the paper."
    counts = counts_of(pd.read_csv(folder / "claims.csv")["verdict"])
    if not any(count for name, count in counts.items() if name != UNTESTED):
        return "It tests no claim of the paper."
    return f"Claims of the paper: {', '.join(f'{count} {name}' for name, count in counts.items() if count)}."


def _all_studies(root: Path, links: str) -> Iterator[str]:
    """One line a study."""
    rows = [
        [
            f"[`{one.name}`]({links}/{one.name}/tables/models.md)",
            f"[`{PAGE}`]({links}/{one.name}/{PAGE})",
            _verdicts(one),
        ]
        for one in _studies(root)
    ]
    yield "\n".join(table(["study, with its models", "page", "claims"], rows))


# --- published by others ----------------------------------------------------------------------------------------------


def _published(root: Path, links: str) -> Iterator[str]:
    """Means of the released models, over complete sets of tasks only."""
    published = read_published(root / "published")
    columns = [f"{name}, {len(published.tasks(name))} tasks" for name in published.benchmarks]
    means = _released(published)
    rows = [[model, *(found.get(name, "") for name in published.benchmarks)] for model, found in means.items()]
    yield "\n".join(table(["model", *columns], rows))


def _released(published: Published) -> dict[str, dict[str, str]]:
    """Released model at its revision -> benchmark -> its mean, or what is missing of it."""
    rows: dict[str, dict[str, str]] = {}
    for benchmark in published.benchmarks:
        types = published.tasks(benchmark)
        for label, scores in published.released(benchmark).groupby("label", sort=False):
            means = means_of(scores.set_index("task")["main_score"], types)
            missing = f"n/a (missing: {', '.join(sorted({*types} - {*scores['task']}))})"
            versions = " and ".join(sorted(scores["mteb"].replace("", "not stated").unique()))
            model = f"{str(label).partition(' @')[0]} at {scores['revision'].iloc[0][:8]}"
            rows.setdefault(model, {})[benchmark] = f"{f'{means[0]:.2f}' if means else missing}, mteb {versions}"
    return rows


# --- benchmarks -------------------------------------------------------------------------------------------------------


def _benchmarks(root: Path, links: str) -> Iterator[str]:
    """One short line a benchmark that compares something: the first thing it found."""
    rows = [
        [f"[{cell(what)}]({links}/benchmarks/{path.name})", cell(peer), cell(found.partition(";")[0])]
        for path, (what, peer, found) in _records(root)
        if peer
    ]
    yield "\n".join(table(["what", "beside", "result"], rows))


def _all_benchmarks(root: Path, links: str) -> Iterator[str]:
    """Everything a benchmark found, and on which machine."""
    rows = []
    for path, (what, peer, found) in _records(root):
        facts = read_json_object(path)
        measured = f"{facts.get('machine', 'not stated')}; {facts.get('measured', 'no date')}"
        record = f"[`{path.stem}`]({links}/benchmarks/{path.name})"
        rows.append([*map(cell, (what, peer, found, measured)), record])
    yield "\n".join(table(["what", "beside", "result", "machine; day", "record"], rows))


Row = tuple[str, str, str]


def _records(root: Path) -> Iterator[tuple[Path, Row]]:
    """Every record of a benchmark, told in words."""
    for path in sorted((root / "benchmarks").glob("*.json")):
        read = next((read for name, read in _READ.items() if path.stem.startswith(name)), _plain)
        yield path, read(path.stem, read_json_object(path))


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


BLOCKS: Mapping[str, Callable[[Path, str], Iterator[str]]] = {
    "answer": _answer,
    "studies": _main_tables,
    "benchmarks": _benchmarks,
    "all_studies": _all_studies,
    "published": _published,
    "all_benchmarks": _all_benchmarks,
}
"""What stands between a page's markers, by their name, in paragraphs."""


# --- figures ----------------------------------------------------------------------------------------------------------

_FIGURE = re.compile(r"\]\((docs/figures/([a-z0-9.-]+)-([a-z_]+)\.png)\)")
_COLOURS = 64
"""Of a PNG: its lines and letters need no more."""
_SOURCE = "Source"


def figures_of(readme: str) -> dict[str, tuple[str, str]]:
    """PNG files that a page shows, ``docs/figures/PROFILE-FIGURE.png`` -> profile and figure."""
    return {found[1]: (found[2], found[3]) for found in _FIGURE.finditer(readme)}


def drawn_from(image: Path) -> str | None:
    """Sha256 of the SVG that a PNG shows; None where there is no such file, or nothing says so."""
    if not image.is_file():
        return None
    with Image.open(image) as opened:
        return opened.info.get(_SOURCE)


def source_of(profile: str, figure: str) -> str:
    """Sha256 of the committed SVG of a figure."""
    return hashlib.sha256((RESULTS / profile / "figures" / f"{figure}.svg").read_bytes()).hexdigest()


def draw(profile: str, figure: str, image: Path) -> None:
    """Draw a figure of a committed study as PNG on white; it says which SVG it is the same as.

    Raises:
        ResultsError: The results of the profile are damaged.
    """
    results = read_results(RESULTS / profile)
    said, pixels = PngInfo(), BytesIO()
    said.add_text(_SOURCE, source_of(profile, figure))
    with mpl.rc_context(panels.STYLE):
        study_figures(results)[figure](results).savefig(pixels, format="png", facecolor="white")
    with atomic_path(image) as fresh, Image.open(pixels) as drawn:
        drawn.convert("RGB").quantize(_COLOURS).save(fresh, format="png", optimize=True, pnginfo=said)
