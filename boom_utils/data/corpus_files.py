"""The files of a corpus: which of them a study needs, and fetching them into the workspace.

What is fetched, and how safely, is the downloader's work; this module chooses and reports.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from boom_utils.artifacts import default_workspace
from boom_utils.config import Profile
from boom_utils.data.download import FetchOptions, fetch
from boom_utils.data.hub_files import fetch_files, find_files, known_files
from boom_utils.data.manifest import Dataset, Manifest
from boom_utils.data.remote_files import RemoteFile
from boom_utils.errors import ConfigError, bullet_list, nearest

MEGABYTE = 10**6


def downloads_folder(workspace: Path | None = None) -> Path:
    """Where the files of all corpora lie, each at ``<host>/<path>``."""
    return (workspace or default_workspace()) / "downloads"


def chosen_datasets(manifest: Manifest, profile: Profile | None = None, only: Sequence[str] = ()) -> list[Dataset]:
    """The datasets to fetch, in the manifest's order.

    Args:
        manifest: The corpus.
        profile: Only what this profile trains on or evaluates; None takes all.
        only: Of these, only the ones named here; empty takes all.

    Raises:
        ConfigError: ``only`` names what is not there; all such names are listed.
        ManifestError: The profile names what the manifest does not have.
    """
    names = [dataset.id for dataset in manifest.datasets]
    if profile is not None:
        asked = (*profile.evaluation.in_domain, *profile.evaluation.out_of_domain)
        # A corpus that is evaluated with benchmarks of mteb has no files for their tasks.
        tasks = [manifest.task(name) for name in asked] if not manifest.benchmarks else []
        used = {*profile.corpus.datasets, *profile.corpus.new_datasets, *(task.dataset for task in tasks)}
        wanted = {manifest.dataset(name).id for name in sorted(used)}
        names = [name for name in names if name in wanted]
    if unknown := [f"no dataset '{name}'{nearest(name, names)}" for name in dict.fromkeys(only) if name not in names]:
        owner = f"corpus '{manifest.name}'" if profile is None else f"what profile '{profile.name}' uses"
        raise ConfigError(f"--only names what is not in {owner}", found=bullet_list(unknown))
    return [manifest.dataset(name) for name in names if not only or name in only]


def files_of(datasets: Iterable[Dataset]) -> list[RemoteFile]:
    """The files of some datasets that their manifest lists, each once although several may be made from it.

    Which files a dataset of the hub has is known after its first download only; see `hub_files_of`.
    """
    files = [file.remote() for dataset in datasets if dataset.origin for file in dataset.origin.files]
    return list({file.url: file for file in files}.values())


def hub_files_of(datasets: Iterable[Dataset], folder: Path) -> tuple[list[RemoteFile], list[str]]:
    """The files of those of some datasets that lie on the hub, as far as an earlier download noted them.

    Args:
        datasets: Others among them are passed over.
        folder: As `downloads_folder` gives it.

    Returns:
        The files, and the datasets of which nothing is noted.
    """
    known = {one.id: known_files(one.id, one.hub, folder) for one in datasets if one.hub is not None}
    files = [file for some in known.values() for file in some or ()]
    return files, [name for name, some in known.items() if some is None]


def files_there(files: Iterable[RemoteFile], folder: Path) -> list[RemoteFile]:
    """Those of some files that lie in a folder and have the right size; a quick look, nothing is read."""
    places = ((file, folder / file.path) for file in files)
    return [file for file, place in places if place.is_file() and place.stat().st_size == file.bytes]


@dataclass(frozen=True)
class Fetched:
    """What `fetch_datasets` did.

    Args:
        datasets: What it was asked for.
        kept: Files that were there before.
        fetched: Files that came now.
        source: Where from: mirror or network.
        seconds: How long it took.
        folder: Where they are.
        files: Dataset -> its files.
    """

    datasets: Sequence[Dataset]
    kept: Sequence[RemoteFile]
    fetched: Sequence[RemoteFile]
    source: str
    seconds: float
    folder: Path
    files: Mapping[str, Sequence[RemoteFile]]

    def table(self) -> str:
        """One line a family, then all together; a file of two families counts once in the last line."""
        families = dict.fromkeys(dataset.family for dataset in self.datasets)
        groups = {name: [one for one in self.datasets if one.family == name] for name in families}
        head = ("family", "datasets", "files", "MB", "there before", f"from {self.source}")
        lines = [head, *(self._line(name, group) for name, group in groups.items())]
        lines += [self._line("all", self.datasets)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
        return "\n".join("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines)

    def _line(self, name: str, datasets: Sequence[Dataset]) -> tuple[str, ...]:
        files = list({file.url: file for dataset in datasets for file in self.files[dataset.id]}.values())
        before = {file.url for file in self.kept}
        kept, size = sum(file.url in before for file in files), sum(file.bytes or 0 for file in files)
        return (name, str(len(datasets)), str(len(files)), f"{size / MEGABYTE:.1f}", str(kept), str(len(files) - kept))


def fetch_datasets(datasets: Sequence[Dataset], folder: Path, options: FetchOptions | None = None) -> Fetched:
    """Fetch all files of some datasets, by https or from the hub; what is there already stays and is checked.

    Args:
        datasets: As `chosen_datasets` gives them.
        folder: As `downloads_folder` gives it.
        options: How; by default as the environment says.

    Returns:
        What was there, and what came.

    Raises:
        DownloadError: Files cannot be had, or are not those the manifest names.
        ConfigError: The mirror is no folder.
    """
    options = options or FetchOptions()
    began = time.monotonic()
    hubs = {dataset.id: dataset.hub for dataset in datasets if dataset.hub is not None}
    listing = find_files(hubs, folder, options)
    listed = {one.id: [*files_of([one]), *listing.files.get(one.id, ())] for one in datasets}
    files = list({file.url: file for some in listed.values() for file in some}.values())
    kept = files_there(files, folder)
    fetch(files_of(datasets), folder, options)
    fetch_files(hubs, listing, folder, options)
    there = {file.url for file in kept}
    fetched = [file for file in files if file.url not in there]
    source = "network" if options.mirror is None else "mirror"
    return Fetched(datasets, kept, fetched, source, time.monotonic() - began, folder, listed)
