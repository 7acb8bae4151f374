"""Stage: the examples of any corpus, whatever it is made from: fetched first where it is made of files.

Which module does the work follows from the manifest's source; studies know only this one.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from boom_utils.config import CorpusConfig
from boom_utils.data import convert, own_examples, python_docs
from boom_utils.data.fetching import fetch_datasets
from boom_utils.data.manifest import Dataset, InstalledDistributions, Manifest
from boom_utils.data.manifest_files import HttpsFiles
from boom_utils.data.manifest_hub import HubFiles, LocalFiles
from boom_utils.data.mining import corpus_fingerprint

log = logging.getLogger(__name__)


def used_datasets(manifest: Manifest, corpus: CorpusConfig, tasks: Sequence[str]) -> list[Dataset]:
    """The datasets that are trained on or evaluated, each once.

    Args:
        manifest: The corpus.
        corpus: Names those trained on.
        tasks: Evaluation tasks.

    Raises:
        ManifestError: The manifest lacks one of them.
    """
    names = [*corpus.datasets, *corpus.new_datasets, *(manifest.task(name).dataset for name in tasks)]
    if isinstance(manifest.source, InstalledDistributions):
        names += [dataset.id for dataset in manifest.datasets if dataset.role == "new_data"]
    return [manifest.dataset(name) for name in dict.fromkeys(names)]


def unread_fields(manifest: Manifest) -> set[str]:
    """Fields of the corpus config that change nothing of what is written.

    New datasets of a mined corpus are always mined with the rest: which of them a study uses makes no other corpus.
    """
    return {"new_datasets"} if isinstance(manifest.source, InstalledDistributions) else set()


def found_now(manifest: Manifest, corpus: CorpusConfig) -> dict[str, Any]:
    """What the examples depend on that no manifest pins: versions of what is installed, content of a user's own files.

    It belongs into the key of the artifact. Files to download are pinned by their sha256, those of the hub by their
    revision and the lock file of the first download.

    Raises:
        DataError: A user's file is not there.
    """
    if isinstance(manifest.source, InstalledDistributions):
        return corpus_fingerprint(manifest)
    if isinstance(manifest.source, LocalFiles):
        return own_examples.own_fingerprint(manifest, corpus, Path())
    return {}


def make_examples(
    manifest: Manifest, corpus: CorpusConfig, tasks: Sequence[str], downloads: Path, out: Path
) -> dict[str, Any]:
    """Write training rows and evaluation sets; files that are not there yet are fetched.

    Args:
        manifest: The corpus.
        corpus: Datasets, limits and seed.
        tasks: Evaluation tasks to write.
        downloads: As `boom_utils.data.files.downloads_folder` gives it.
        out: Empty folder; gets ``train/``, ``evaluation/`` and ``summary.json``.

    Returns:
        Rows of every set, ``fingerprint``, ``deviations``, ``dropped`` and ``shared_texts``.

    Raises:
        DownloadError: Files cannot be had.
        DataError: What was read breaks a rule, or a set has no rows.
    """
    if isinstance(manifest.source, InstalledDistributions):
        return python_docs.make_examples(manifest, corpus, tasks, out)
    if isinstance(manifest.source, HttpsFiles | HubFiles):
        log.info("%s: %s", manifest.name, fetch_datasets(used_datasets(manifest, corpus, tasks), downloads))
    if isinstance(manifest.source, HttpsFiles):
        return convert.make_examples(manifest, corpus, tasks, downloads, out)
    return own_examples.make_examples(manifest, corpus, downloads, out)
