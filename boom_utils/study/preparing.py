"""What a study needs on this machine before it starts: a check of it, and the files of its corpus and benchmarks."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import re
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from boom_utils.artifacts import PROJECT_ROOT, default_workspace, free_disk
from boom_utils.config import load_profile
from boom_utils.data.fetching import chosen_datasets, fetch_datasets, files_of, hub_set
from boom_utils.data.files import MEGABYTE, downloads_folder, hub_paths, mirror, offline
from boom_utils.data.manifest import Dataset, InstalledDistributions, LocalFiles, Manifest, load_manifest
from boom_utils.data.mining import corpus_deviations
from boom_utils.errors import BoomError, some_of
from boom_utils.evaluation.benchmarks import fetch_benchmarks
from boom_utils.study.scoring import profile_benchmarks

log = logging.getLogger(__name__)
NEEDED_BYTES = 2 * 2**30
"""Disk the smoke profile may take, with room: it takes a tenth of it."""

Finding = tuple[str, str]
"""A line of the check: ``ok``, ``note`` (works, but numbers may differ) or ``problem``; and a text."""


def check_machine(profile: str) -> int:
    """Log every finding; 1 when something would stop a run, else 0."""
    findings = [*_packages(), *_corpus(profile), *_devices(), *_disk(), *_hub()]
    for status, text in findings:
        log.info("%-8s %s", status, text)
    return int(any(status == "problem" for status, _ in findings))


def _packages() -> Iterator[Finding]:
    lock = (PROJECT_ROOT / "requirements.lock").read_text(encoding="utf-8")
    lines, installed = re.findall(r"^([\w.-]+)==(\S+)", lock, flags=re.M), importlib.metadata.distributions()
    wanted = {name.lower().replace("_", "-"): version for name, version in lines}
    have = {one.name.lower().replace("_", "-"): one.version.split("+")[0] for one in installed}
    differing = [f"{n} {have.get(n)} (locked: {version})" for n, version in wanted.items() if have.get(n) != version]
    text = f"other versions than results were made with: {some_of(differing)}"
    yield ("note", text) if differing else ("ok", f"all {len(wanted)} packages as locked")


def _corpus(profile: str) -> Iterator[Finding]:
    loaded = load_profile(profile)
    manifest = load_manifest(loaded.manifest)
    name, datasets = f"corpus {manifest.name}", chosen_datasets(manifest, loaded)
    if isinstance(manifest.source, InstalledDistributions):
        for text in corpus_deviations(manifest):
            yield "note", f"{name}: {text}; the corpus gets its own fingerprint"
        yield "ok", f"{name}: {len(manifest.source.distributions)} distributions looked at"
        return
    missing = [one.id for one in datasets if not _is_here(one, manifest, downloads_folder())]
    begin = f"{name}: files of {len(datasets) - len(missing)} of {len(datasets)} datasets are here"
    if not missing:
        yield "ok", begin
    elif isinstance(manifest.source, LocalFiles):
        yield "problem", f"{begin}, not of {some_of(missing)}"
    elif offline() and mirror() is None:
        yield "problem", f"{begin}, and HF_HUB_OFFLINE forbids to fetch the others; set BOOM_MIRROR"
    else:
        yield "ok", f"{begin}; boom data fetch gets the others"


def _is_here(dataset: Dataset, manifest: Manifest, folder: Path) -> bool:
    """Whether all files of a dataset are on this machine; asks nobody."""
    if dataset.hub is not None:
        with suppress(BoomError):
            return bool(hub_paths(hub_set(dataset, folder)))
        return False
    own = [manifest.folder / name for name in (dataset.local.files if dataset.local else ()) if "://" not in name]
    return all(path.is_file() for path in (*own, *(folder / file.path for file in files_of([dataset]))))


def _devices() -> Iterator[Finding]:
    import torch

    devices = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    shown = ", ".join(devices) or "no CUDA device"
    yield "ok", f"torch {torch.__version__}, {torch.get_num_threads()} threads, {shown}"


def _disk() -> Iterator[Finding]:
    free, place = free_disk(default_workspace())
    writable = os.access(place, os.W_OK)
    needed = f"{NEEDED_BYTES / 2**30:.0f} GiB are enough for smoke"
    yield "ok" if free > NEEDED_BYTES else "problem", f"workspace: {free / 2**30:.0f} GiB free, {needed}"
    yield "ok" if writable else "problem", f"workspace is {'' if writable else 'not '}writable (set BOOM_HOME)"


def _hub() -> Iterator[Finding]:
    if offline():
        yield "ok", "hub: offline by HF_HUB_OFFLINE; smoke needs no network"
        return
    try:
        urllib.request.urlopen(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), timeout=5).close()
    except (OSError, ValueError) as error:
        yield "note", f"hub: not reachable ({error}); smoke needs no network"
    else:
        yield "ok", "hub: reachable"


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
    if isinstance(corpus.source, LocalFiles):
        log.info("%s: nothing to fetch, its files are your own", corpus.name)
    elif isinstance(corpus.source, InstalledDistributions):
        log.info("%s: nothing to fetch, it is mined from installed distributions", corpus.name)
    else:
        log.info("%s: %s, in %s", corpus.name, fetch_datasets(datasets, downloads_folder()), downloads_folder())
    if asked is None or only:
        return
    found = profile_benchmarks(asked)
    for name, tasks in found.members.items():
        log.info("%s: %d tasks", name, len(tasks))
    if found.tasks:
        sizes = fetch_benchmarks(found.tasks.values())
        log.info("benchmark data: %d repositories, %.1f MB", len(sizes), sum(sizes.values()) / MEGABYTE)
