"""The files of a corpus: which of them a study needs, fetching them, and where they lie afterwards."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from boom_utils.artifacts import digest_of
from boom_utils.config import CorpusConfig, Profile
from boom_utils.data.files import HUB, MEGABYTE, HubSet, RemoteFile, fetch, fetch_hub
from boom_utils.data.manifest import Dataset, InstalledDistributions, Manifest
from boom_utils.errors import ConfigError, bullet_list, nearest, some_of

log = logging.getLogger(__name__)


def used_datasets(manifest: Manifest, corpus: CorpusConfig, tasks: Iterable[str]) -> list[Dataset]:
    """The datasets that are trained on, then those that are only evaluated, each once.

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


def chosen_datasets(manifest: Manifest, profile: Profile | None = None, only: Sequence[str] = ()) -> list[Dataset]:
    """The datasets to fetch.

    Args:
        manifest: The corpus.
        profile: Only what this profile trains on or evaluates; None takes all.
        only: Of these, only the ones named here; empty takes all.

    Raises:
        ConfigError: ``only`` names what is not there; all such names are listed.
        ManifestError: The profile names what the manifest does not have.
    """
    datasets: Sequence[Dataset] = manifest.datasets
    if profile is not None:
        asked = (*profile.evaluation.in_domain, *profile.evaluation.out_of_domain)
        # A corpus that is evaluated with benchmarks of mteb has no files for their tasks.
        datasets = used_datasets(manifest, profile.corpus, asked if not manifest.benchmarks else ())
    names = [dataset.id for dataset in datasets]
    if unknown := [f"no dataset '{name}'{nearest(name, names)}" for name in dict.fromkeys(only) if name not in names]:
        owner = f"corpus '{manifest.name}' has" if profile is None else f"profile '{profile.name}' uses"
        raise ConfigError(
            f"--only names other datasets than {owner}", found=bullet_list(unknown), expected=some_of(names)
        )
    return [dataset for dataset in datasets if not only or dataset.id in only]


def files_of(datasets: Iterable[Dataset]) -> list[RemoteFile]:
    """The https files of some datasets, each once although several may be made from it."""
    files = (file for dataset in datasets if dataset.origin for file in dataset.origin.files)
    return list({file.url: file for file in files}.values())


def hub_set(dataset: Dataset, folder: Path) -> HubSet:
    """The files of a hub dataset; its lock file has another name where the manifest names other files.

    Args:
        dataset: With a ``hub`` section.
        folder: As `boom_utils.data.files.downloads_folder` gives it.
    """
    assert dataset.hub is not None
    asked = digest_of([dataset.hub.revision, [file.model_dump() for file in dataset.hub.files]])[:8]
    lock = folder / HUB.partition("://")[2] / "datasets" / dataset.hub.repo / f"{dataset.id}-{asked}.lock.json"
    return HubSet(dataset.hub.repo, dataset.hub.revision, dataset.hub.files, lock)


def fetch_datasets(datasets: Sequence[Dataset], folder: Path) -> str:
    """Fetch all files of some datasets, by https or from the hub; what is there already stays and is hashed.

    Args:
        datasets: As `chosen_datasets` gives them.
        folder: As `boom_utils.data.files.downloads_folder` gives it.

    Returns:
        One sentence: how many files there are, and how many came now.

    Raises:
        DownloadError: Files cannot be had, or are not those the manifest names.
        ConfigError: The mirror is no folder, or the hub does not have what the manifest names.
    """
    began, files = time.monotonic(), files_of(datasets)
    came = fetch(files, folder)
    for dataset in datasets:
        if dataset.hub is not None:
            paths = fetch_hub(hub_set(dataset, folder))
            size = sum(path.stat().st_size for path in paths.values())
            log.info("%s: %d files of datasets/%s, %.1f MB", dataset.id, len(paths), dataset.hub.repo, size / MEGABYTE)
    size, seconds = sum(file.bytes for file in files), time.monotonic() - began
    there = f"{len(files)} files by https, {size / MEGABYTE:.1f} MB, {len(came)} of them came now"
    return f"{len(datasets)} datasets: {there}; all files are right ({seconds:.1f} s)"
