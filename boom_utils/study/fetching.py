"""``boom data fetch``: the files of a corpus, and the data of the benchmarks a profile is evaluated with."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from boom_utils.config import Profile, load_profile
from boom_utils.data.fetching import chosen_datasets, fetch_datasets
from boom_utils.data.files import MEGABYTE, downloads_folder
from boom_utils.data.manifest import HttpsFiles, HubFiles, LocalFiles, load_manifest
from boom_utils.evaluation.benchmarks import fetch_benchmarks
from boom_utils.study.scoring import profile_benchmarks

log = logging.getLogger(__name__)


def fetch_corpus(manifest: str | None, profile: str | None, only: Sequence[str]) -> None:
    """Download what a corpus, or a profile, needs into the workspace; what is there stays.

    Args:
        manifest: All of this data manifest.
        profile: Or what this profile trains on and is evaluated with.
        only: Only these datasets, and no benchmarks; empty takes all.

    Raises:
        DownloadError: Files cannot be had, or are not those they should be.
        ConfigError: There is no such profile, dataset or benchmark.
    """
    asked = None if profile is None else load_profile(profile)
    corpus = load_manifest(str(manifest) if asked is None else asked.manifest)
    datasets = chosen_datasets(corpus, asked, only)
    if isinstance(corpus.source, HttpsFiles | HubFiles):
        log.info("%s: %s, in %s", corpus.name, fetch_datasets(datasets, downloads_folder()), downloads_folder())
    else:
        own = isinstance(corpus.source, LocalFiles)
        why = "its files are your own" if own else "it is mined from installed distributions"
        log.info("%s: nothing to fetch, %s", corpus.name, why)
    if asked is not None and not only:
        _fetch_benchmarks(asked)


def _fetch_benchmarks(profile: Profile) -> None:
    found = profile_benchmarks(profile)
    for name, tasks in found.members.items():
        log.info("%s: %d tasks", name, len(tasks))
    if found.tasks:
        sizes = fetch_benchmarks(found.tasks.values())
        log.info("benchmark data: %d repositories, %.1f MB", len(sizes), sum(sizes.values()) / MEGABYTE)
