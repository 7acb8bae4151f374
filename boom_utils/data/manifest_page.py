"""`data_manifests/README.md`: what is in each corpus, under which licence, written from the manifests alone.

The committed page is compared with `manifests_page()` by a test; the page itself says how to write it anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from boom_utils.data.corpus_files import MEGABYTE, files_of
from boom_utils.data.manifest import MANIFESTS, Dataset, Manifest, load_manifest, manifest_names

PAGE = MANIFESTS / "README.md"
HEAD = """# Corpora

One YAML file states a corpus: where it comes from, its datasets and how they are evaluated. This page is written from
these files; to write it anew after a change of one of them:

    .venv/bin/python -m pytest tests/test_data_manifest_page.py --regenerate-golden

`boom data fetch --manifest NAME` downloads the files of a corpus, each checked against its sha256. No data are part
of this repository. Licences are as stated where the data are; "unknown" means that nothing is stated there, not that
there are no terms.
"""
USES = {"train": "train", "new_data": "new data", "in_domain": "in-domain", "out_of_domain": "out-of-domain"}


def manifests_page() -> str:
    """The page about all manifests that come with the kit, as Markdown."""
    return "\n".join([HEAD, *(_corpus(load_manifest(name)) for name in manifest_names())])


def _corpus(manifest: Manifest) -> str:
    lines = [f"## {manifest.name}", "", manifest.description, ""]
    if manifest.origins:
        lines += [_summary(manifest), "", *_table(_FILE_HEAD, (_file_row(manifest, one) for one in manifest.datasets))]
    else:
        rows = ([one.id, one.family, _uses(manifest, one), _languages(one)] for one in manifest.datasets)
        lines += [*_table(("dataset", "family", "roles", "languages"), rows), "", "Mined from these distributions:", ""]
        mined = manifest.installed
        lines += _table(
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


def _file_row(manifest: Manifest, dataset: Dataset) -> list[str]:
    origin = manifest.origins[dataset.id]
    licence = origin.licence if origin.licence_note is None else f"{origin.licence}; {origin.licence_note}"
    link = f"[{_cell(origin.homepage.dataset).translate(_NO_LINK)}]({origin.homepage.url or origin.repository})"
    counts = [str(len(origin.files)), f"{origin.bytes / MEGABYTE:.1f}"]
    names = [dataset.id, dataset.family, _uses(manifest, dataset), _languages(dataset)]
    return [*names, *counts, _cell(licence), link]


_NO_LINK = {ord("["): "(", ord("]"): ")"}
"""A bracket in a link's text would end it."""


def _uses(manifest: Manifest, dataset: Dataset) -> str:
    return ", ".join(USES[use] for use in manifest.uses(dataset))


def _languages(dataset: Dataset) -> str:
    return ", ".join(dataset.languages)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    numbers = ("files", "MB")
    rule = ["---:" if name in numbers else "---" for name in head]
    return ["| " + " | ".join(cells) + " |" for cells in (head, rule, *rows)]


def _cell(text: str) -> str:
    """Text of a manifest as it may stand in a table: on one line, and no part of it read as Markdown or HTML."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
