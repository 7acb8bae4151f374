"""Writes `data_manifests/README.md` and `data_manifests/cards/`, from the manifests alone.

The page says what is in each corpus and under which licence. A card says what a reader has to know before using one:
where it comes from, under which terms, in which languages and families, how surely its facts are known, what was left
out and what is wrong with it. A test compares the committed files with what is written here; the page says how to write
them anew.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence

from boom_utils.data.fetching import files_of
from boom_utils.data.files import MEGABYTE
from boom_utils.data.manifest import (
    MANIFESTS,
    Dataset,
    HttpsFiles,
    HubFiles,
    HubOrigin,
    LocalFiles,
    Manifest,
    Origin,
    load_manifest,
    manifest_names,
)

PAGE, CARDS = MANIFESTS / "README.md", MANIFESTS / "cards"
HEAD = """# Corpora

One YAML file states a corpus: where it comes from, its datasets and how they are evaluated. This page is written from
these files; to write it anew after a change of one of them:

    .venv/bin/python -m pytest tests/test_data_manifest_page.py --regenerate-golden

`boom data fetch --manifest NAME` downloads the files of a corpus, each checked against its sha256. No data are part
of this repository. Licences are as stated where the data are; "unknown" and "undeclared" mean that nothing is stated
there, not that there are no terms. `cards/` has a data card of every corpus.

Files of the Hugging Face hub are asked for through huggingface_hub, so that `HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN` and
`HF_HUB_OFFLINE` mean what they always mean. What a manifest leaves open there (which files, their sha256, the revision
where none is chosen) is noted in a lock file beside the files at the first download, and holds from then on.

## Your own data

`boom fit` takes rows in jsonl, json, csv, tsv, parquet or arrow (plain, `.gz`, `.zst`, `.bz2`, `.lz4`) as they are. A
study of your own states them in a manifest like the one below; files are relative to it, or
`hf://datasets/owner/name@revision/path`. The names of the columns say what a row is:

| columns | family | |
| --- | --- | --- |
| `query`, `pos`, `neg`; `prompt`, `type` | retrieval, code | FlagEmbedding's; one text or a list |
| `anchor`, `positive`, `negative`, `negative_1`… | the same | sentence-transformers'; also `question`, `answer` |
| `sentence1`, `sentence2`, `score` | sts | scores from 0 to 5, or from 0 to 1 |
| `text`, `label` | classification | |

Rows without negatives get as many as `hard_negatives` of the profile says, mined with BM25 among the answers of others;
with `hard_negatives: 0`, or `group_size: positive_only`, pairs keep to the negatives of their batch.

{example}
Rows of the share that is held out are chosen by a hash of their query (first sentence, text). They become a task of the
dataset's family; the documents of a retrieval task are the passages of these rows. Training rows that hold one of these
queries, or what is relevant to it, are dropped (`overlap: report` in a profile keeps and counts them).
"""
EXAMPLE = """name: my_data
description: Questions to our help desk and the answers that solved them.
source: {kind: local_files}
datasets:
  - id: help_desk
    family: retrieval
    role: train
    prompt: Given a question to the help desk, retrieve the answer that solves it.
    in_batch_negatives: true
    halve_batch: false
    instruction_on_passages: false
    group_size: train_group_size
    example_type: normal
    description: Question -> the answer that solved it, with answers to similar questions.
    local: {files: [help_desk.jsonl], licence: internal, held_out: 0.1}
tasks:
  - {id: help_desk_held_out, dataset: help_desk, family: retrieval, held_out: false}
"""
"""A manifest of a user's own rows, as the page shows it."""


def hubs(manifest: Manifest) -> dict[str, HubOrigin]:
    """Dataset -> its files on the hub."""
    return {dataset.id: dataset.hub for dataset in manifest.datasets if dataset.hub is not None}


def manifests_page() -> str:
    """The page about all manifests that come with the kit, as Markdown."""
    head = HEAD.format(example=textwrap.indent(EXAMPLE, "    "))
    return "\n".join([head, *(_corpus(load_manifest(name)) for name in manifest_names())])


def _corpus(manifest: Manifest) -> str:
    lines = [f"## {manifest.name}", "", manifest.description, ""]
    if isinstance(manifest.source, HttpsFiles):
        rows = (_file_row(manifest, one, one.origin) for one in manifest.datasets if one.origin)
        lines += [_summary(manifest), "", *table(_FILE_HEAD, rows)]
    elif isinstance(manifest.source, HubFiles):
        lines += [*_hub_tables(manifest), *notes(manifest)]
    else:
        mined_rows = ([one.id, one.family, uses(manifest, one), languages(one)] for one in manifest.datasets)
        lines += [
            *table(("dataset", "family", "roles", "languages"), mined_rows),
            "",
            "Mined from these distributions:",
            "",
        ]
        mined = manifest.installed
        lines += table(
            ("distribution", "version", "licence", "held out"),
            ([one.name, one.version, one.licence, "yes" if one.held_out else ""] for one in mined.distributions),
        )
        if mined.standard_library:
            lines += ["", "and from the standard library of the running Python (PSF licence)."]
    return "\n".join([*lines, ""])


_FILE_HEAD = ("dataset", "family", "roles", "languages", "files", "MB", "licence", "homepage")


def _summary(manifest: Manifest) -> str:
    files = files_of(manifest.datasets)
    size = sum(file.bytes or 0 for file in files) / MEGABYTE
    return f"{len(manifest.datasets)} datasets, {len(files)} files, {size:.1f} MB. A file that serves two counts once."


def _file_row(manifest: Manifest, dataset: Dataset, origin: Origin) -> list[str]:
    licence = origin.licence if origin.licence_note is None else f"{origin.licence}; {origin.licence_note}"
    title, page = origin.homepage["dataset"], origin.homepage.get("url", origin.repository)
    counts = [str(len(origin.files)), f"{sum(file.bytes for file in origin.files) / MEGABYTE:.1f}"]
    names = [dataset.id, dataset.family, uses(manifest, dataset), languages(dataset)]
    return [*names, *counts, cell(licence), f"[{cell(title).translate(_NO_LINK)}]({page})"]


_HUB_HEAD = ("dataset", "split", "family", "roles", "languages", "rows", "count is", "repository")


def _hub_tables(manifest: Manifest) -> list[str]:
    included = {one.id: name for name in manifest.includes for one in load_manifest(name).datasets}
    own = {name: hub for name, hub in hubs(manifest).items() if name not in included}
    rows = (_hub_row(manifest, manifest.dataset(name), hub) for name, hub in own.items())
    lines = [f"{len(manifest.datasets)} datasets. {rows_known(manifest)}", ""]
    if included:
        lines += [f"{len(included)} of them are those of {', '.join(manifest.includes)}; the others:", ""]
    return [*lines, *table(_HUB_HEAD, rows), "", *excluded(manifest)]


def _hub_row(manifest: Manifest, dataset: Dataset, hub: HubOrigin) -> list[str]:
    names = [dataset.id, hub.split or "", dataset.family, uses(manifest, dataset), languages(dataset)]
    about = hub.rows.note is not None and hub.rows.note.startswith("about")
    count = "" if hub.rows.value is None else ("about " if about else "") + f"{hub.rows.value:,}"
    if hub.select is not None:
        count = f"{hub.select:,} of {count or 'an unknown number'}"
    return [*names, count, hub.rows.source, f"[{hub.repo}]({hub.homepage})"]


def rows_known(manifest: Manifest) -> str:
    """How many rows the datasets of a hub corpus have, by how surely that is known."""
    sources = dict.fromkeys(hub.rows.source for hub in hubs(manifest).values())
    parts = []
    for source in sorted(sources):
        some = [hub.rows for hub in hubs(manifest).values() if hub.rows.source == source]
        total = "" if source == "unknown" else f", {sum(one.value or 0 for one in some):,} rows together"
        parts.append(f"{source} for {len(some)}{total}")
    return f"Numbers of rows: {'; '.join(parts)}. They are counted at the first download."


def excluded(manifest: Manifest) -> list[str]:
    """The datasets a corpus leaves out, as a table; nothing where there are none."""
    if not manifest.excluded:
        return []
    rows = ([name, cell(reason)] for name, reason in manifest.excluded.items())
    return ["Left out:", "", *table(("dataset", "reason, and its rows"), rows), ""]


def notes(manifest: Manifest) -> list[str]:
    """What to know about a corpus, one line each."""
    return [f"- {cell(note)}" for note in manifest.notes]


_NO_LINK = {ord("["): "(", ord("]"): ")"}
"""A bracket in a link's text would end it."""


def uses(manifest: Manifest, dataset: Dataset) -> str:
    """What a dataset is for, in words."""
    held_out = {task.held_out for task in manifest.tasks if task.dataset == dataset.id}
    places = [name for name, is_one in (("in-domain", False), ("out-of-domain", True)) if is_one in held_out]
    return ", ".join(([] if dataset.role == "evaluation" else [dataset.role.replace("_", " ")]) + places)


def languages(dataset: Dataset) -> str:
    """The languages of a dataset."""
    return ", ".join(dataset.languages)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; numbers stand right."""
    numbers = ("files", "MB", "rows", "datasets", "trained on", "their rows", "of unknown size")
    rule = ["---:" if name in numbers else "---" for name in head]
    return ["| " + " | ".join(cells) + " |" for cells in (head, rule, *rows)]


def cell(text: str) -> str:
    """Text of a manifest as it may stand in a table: on one line, and no part of it read as Markdown or HTML."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


# --- cards ------------------------------------------------------------------------------------------------------------

FACTS = {
    "family": "family",
    "prompt": "instruction",
    "type": "type of the rows",
    "in_batch_negatives": "in-batch negatives",
}
"""What `known` of a hub dataset marks, in words."""


def data_cards() -> dict[str, str]:
    """Name of every manifest that comes with the kit -> its data card, as Markdown."""
    return {name: data_card(load_manifest(name)) for name in manifest_names()}


def data_card(manifest: Manifest) -> str:
    """The data card of one corpus.

    Args:
        manifest: Any corpus.
    """
    families = dict.fromkeys(dataset.family for dataset in manifest.datasets)
    in_family = {name: [one for one in manifest.datasets if one.family == name] for name in families}
    languages = Counter(language for dataset in manifest.datasets for language in dataset.languages)
    lines = [f"# {manifest.name}", "", manifest.description, "", *_source(manifest), "", "## Families", ""]
    rows = ([name, str(len(some)), *_row_numbers(some)] for name, some in in_family.items())
    lines += [*table(("family", "datasets", "trained on", "their rows", "of unknown size"), rows), ""]
    lines += ["## Languages", "", ", ".join(f"{name} ({count})" for name, count in sorted(languages.items())), ""]
    lines += ["(number of datasets; ISO 639, and names of programming languages)", "", "## Licences", ""]
    lines += [*_licences(manifest), "", "## Evaluation", "", *_evaluation(manifest), ""]
    if hubs(manifest):
        lines += ["## How surely it is known", "", rows_known(manifest), "", *_marks(manifest), ""]
    if manifest.excluded:
        lines += ["## Exclusions", "", *excluded(manifest)]
    issues = [*notes(manifest), *_issues(manifest.datasets)]
    return "\n".join([*lines, "## Known issues", "", *(issues or ["None is known."]), ""])


def _source(manifest: Manifest) -> list[str]:
    if isinstance(manifest.source, HubFiles):
        pins = dict.fromkeys((hub.repo, hub.revision, hub.homepage) for hub in hubs(manifest).values())
        head = ("repository of the Hugging Face hub", "revision")
        return table(head, ([f"[{repo}]({page})", revision or "not chosen yet"] for repo, revision, page in pins))
    if isinstance(manifest.source, HttpsFiles):
        files = files_of(manifest.datasets)
        size = sum(file.bytes or 0 for file in files) / MEGABYTE
        return [f"{len(files)} files of {size:.1f} MB, each pinned by commit and sha256; ../README.md lists them."]
    if isinstance(manifest.source, LocalFiles):
        return ["Files of the user."]
    return ["Mined from installed distributions; ../README.md lists them."]


def _row_numbers(datasets: Iterable[Dataset]) -> list[str]:
    """How many are trained on, with how many rows as far as a manifest states them, and of how many it does not."""
    trained = [dataset.stated_rows for dataset in datasets if dataset.role != "evaluation"]
    total = sum(count for count in trained if count is not None)
    return [str(len(trained)), f"{total:,}" if total else "", str(trained.count(None))]


def _licences(manifest: Manifest) -> list[str]:
    places = [dataset.place for dataset in manifest.datasets if dataset.place is not None]
    licences = Counter(one.licence + (f"; {one.licence_note}" if one.licence_note else "") for one in places)
    if not licences:
        return table(("distribution", "licence"), ([one.name, one.licence] for one in manifest.installed.distributions))
    rows = ([cell(licence), str(count)] for licence, count in licences.most_common())
    return table(("licence, as stated where the data are", "datasets"), rows)


def _evaluation(manifest: Manifest) -> list[str]:
    held_out = sum(task.held_out for task in manifest.tasks)
    lines = [f"Benchmarks of mteb: {', '.join(manifest.benchmarks)}."] if manifest.benchmarks else []
    if manifest.tasks:
        inside = len(manifest.tasks) - held_out
        lines.append(f"{inside} tasks in domain and {held_out} out of domain, from data of the corpus itself.")
    return lines


def _marks(manifest: Manifest) -> list[str]:
    """How many datasets have a fact stated, inferred and so on."""
    marks = ("stated", "third party", "inferred", "ours", "unknown")
    counts = {key: Counter(hub.known.get(key) for hub in hubs(manifest).values()) for key in FACTS}
    rows = ([FACTS[key], *(str(count[mark] or "") for mark in marks)] for key, count in counts.items())
    return table(("datasets whose … is", *marks), rows)


def _issues(datasets: Iterable[Dataset]) -> list[str]:
    return [f"- {one.id}: {cell(text)}" for one in datasets if one.place is not None for text in one.place.notes]
