"""`data_manifests/cards/`: one data card a corpus, written from its manifest alone.

A card says what a reader has to know before using a corpus: where it comes from, under which terms, in which languages
and families, how surely its facts are known, what was left out and what is wrong with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from boom_utils.data.corpus_files import MEGABYTE, files_of
from boom_utils.data.manifest import MANIFESTS, Dataset, Manifest, load_manifest, manifest_names
from boom_utils.data.manifest_page import cell, excluded, notes, rows_known, table, variants

CARDS = MANIFESTS / "cards"
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
    if manifest.hubs:
        lines += ["## How surely it is known", "", rows_known(manifest), "", *_marks(manifest), ""]
    if left_out := [*excluded(manifest), *variants(manifest)]:
        lines += ["## Exclusions and variants", "", *left_out]
    issues = [*notes(manifest), *_issues(manifest.datasets)]
    return "\n".join([*lines, "## Known issues", "", *(issues or ["None is known."]), ""])


def _source(manifest: Manifest) -> list[str]:
    if manifest.hubs:
        pins = dict.fromkeys((hub.repo, hub.revision, hub.homepage) for hub in manifest.hubs.values())
        head = ("repository of the Hugging Face hub", "revision")
        return table(head, ([f"[{repo}]({page})", revision or "not chosen yet"] for repo, revision, page in pins))
    if manifest.origins:
        files = files_of(manifest.datasets)
        size = sum(file.bytes or 0 for file in files) / MEGABYTE
        return [f"{len(files)} files of {size:.1f} MB, each pinned by commit and sha256; ../README.md lists them."]
    if manifest.locals:
        return ["Files of the user."]
    return ["Mined from installed distributions; ../README.md lists them."]


def _row_numbers(datasets: Iterable[Dataset]) -> list[str]:
    """How many are trained on, with how many rows as far as a manifest states them, and of how many it does not."""
    trained = [dataset.stated_rows for dataset in datasets if dataset.role != "evaluation"]
    total = sum(count for count in trained if count is not None)
    return [str(len(trained)), f"{total:,}" if total else "", str(trained.count(None))]


def _licences(manifest: Manifest) -> list[str]:
    licences: Counter[str] = Counter()
    for dataset in manifest.datasets:
        for place in (dataset.origin, dataset.hub):
            if place is not None:
                licences[place.licence + (f"; {place.licence_note}" if place.licence_note else "")] += 1
        licences.update([dataset.local.licence] if dataset.local else [])
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
    counts = {key: Counter(getattr(hub.known, key) for hub in manifest.hubs.values()) for key in FACTS}
    rows = ([FACTS[key], *(str(count[mark] or "") for mark in marks)] for key, count in counts.items())
    return table(("datasets whose … is", *marks), rows)


def _issues(datasets: Iterable[Dataset]) -> list[str]:
    found = []
    for dataset in datasets:
        for place in (dataset.origin, dataset.hub):
            if place is not None:
                texts = place.oddities if hasattr(place, "oddities") else place.notes
                found += [f"- {dataset.id}: {cell(text)}" for text in texts]
    return found
