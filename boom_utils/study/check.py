"""What a study would meet on this machine, before it starts: versions, devices, memory, disk, corpus, hub."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import re
import shutil
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from boom_utils.artifacts import PROJECT_ROOT, default_workspace
from boom_utils.config import load_profile
from boom_utils.data.fetching import chosen_datasets, files_of, hub_set
from boom_utils.data.files import downloads_folder, hub_paths, mirror, offline
from boom_utils.data.manifest import Dataset, HttpsFiles, InstalledDistributions, LocalFiles, Manifest, load_manifest
from boom_utils.data.mining import corpus_deviations
from boom_utils.errors import BoomError

log = logging.getLogger(__name__)
NEEDED_BYTES = 2 * 2**30
"""Disk the smoke profile may take, with room: it takes a tenth of it."""


@dataclass(frozen=True)
class Finding:
    """One line of the check: ``ok``, ``note`` (works, but numbers may differ) or ``problem``."""

    status: str
    text: str


def check_machine(profile: str) -> int:
    """Log every finding; 1 when something would stop a run, else 0."""
    findings = [*_packages(), *_corpus(profile), *_devices(), *_disk(), *_hub()]
    for finding in findings:
        log.info("%-8s %s", finding.status, finding.text)
    return int(any(finding.status == "problem" for finding in findings))


def _packages() -> Iterator[Finding]:
    lock = PROJECT_ROOT / "requirements.lock"
    wanted = dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", lock.read_text(encoding="utf-8"), flags=re.M))
    differing = [f"{name} {have} (locked: {want})" for name, want in wanted.items() if (have := _version(name)) != want]
    if differing:
        yield Finding("note", "other versions than results were made with: " + ", ".join(differing))
    else:
        yield Finding("ok", f"all {len(wanted)} packages as locked")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name).split("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def _corpus(profile: str) -> Iterator[Finding]:
    loaded = load_profile(profile)
    manifest = load_manifest(loaded.manifest)
    if isinstance(manifest.source, HttpsFiles):
        yield _files(manifest, chosen_datasets(manifest, loaded))
        return
    if not isinstance(manifest.source, InstalledDistributions):
        yield _ready_files(manifest, chosen_datasets(manifest, loaded))
        return
    for text in corpus_deviations(manifest):
        yield Finding("note", f"corpus {manifest.name}: {text}; the corpus gets its own fingerprint")
    yield Finding("ok", f"corpus {manifest.name}: {len(manifest.source.distributions)} distributions looked at")


def _ready_files(manifest: Manifest, datasets: Sequence[Dataset]) -> Finding:
    """Whether the files of the hub, or a user's own, are there; asks nobody."""
    begin = f"corpus {manifest.name}"
    if isinstance(manifest.source, LocalFiles):
        names = [file for one in datasets if one.local for file in one.local.files]
        own = [manifest.folder / name for name in names if not name.startswith("hf://")]
        absent = [path.name for path in own if not path.is_file()]
        text = f"{begin}: {len(own) - len(absent)} of {len(own)} files are there"
        return Finding("problem", f"{text}, not {', '.join(absent)}") if absent else Finding("ok", text)
    absent = []
    for dataset in datasets:
        try:
            hub_paths(hub_set(dataset, downloads_folder()))
        except BoomError:
            absent.append(dataset.id)
    text = f"{begin}: files of {len(datasets) - len(absent)} of {len(datasets)} hub datasets are here"
    if absent:
        return Finding("problem" if offline() else "note", f"{text}; boom data fetch gets the others")
    return Finding("ok", text)


def _files(manifest: Manifest, datasets: Sequence[Dataset]) -> Finding:
    """Whether the files of a corpus are there or can be had; asks the network for one of them at most."""
    files, folder = files_of(datasets), downloads_folder()
    missing = [file for file in files if not (folder / file.path).is_file()]
    begin = f"corpus {manifest.name}: {len(files) - len(missing)} of {len(files)} files are in the workspace"
    if not missing:
        return Finding("ok", begin)
    if (source := mirror()) is not None:
        absent = sum(not (source / file.path).is_file() for file in missing)
        more = f"{absent} of the others are not in BOOM_MIRROR" if absent else "BOOM_MIRROR has the others"
        return Finding("problem" if absent else "ok", f"{begin}, {more}")
    if offline():
        return Finding("problem", f"{begin}, and HF_HUB_OFFLINE forbids to fetch the others; set BOOM_MIRROR")
    if reason := _unreachable(missing[0].url):
        return Finding("problem", f"{begin}, and the network does not give the others ({reason}); set BOOM_MIRROR")
    return Finding("ok", f"{begin}, the network has the others (asked for one)")


def _unreachable(url: str) -> str | None:
    """Why a file cannot be asked for, or None."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=5).close()
    except (OSError, ValueError) as error:
        return str(error)
    return None


def _devices() -> Iterator[Finding]:
    import torch

    devices = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    shown = ", ".join(devices) if devices else "no CUDA device"
    yield Finding("ok", f"torch {torch.__version__}, {torch.get_num_threads()} threads, {shown}")


def _disk() -> Iterator[Finding]:
    workspace = default_workspace()
    place = next(path for path in (workspace, *workspace.resolve().parents) if path.exists())
    free = shutil.disk_usage(place).free
    status = "ok" if free > NEEDED_BYTES else "problem"
    yield Finding(
        status, f"workspace: {free / 2**30:.0f} GiB free, {NEEDED_BYTES / 2**30:.0f} GiB are enough for smoke"
    )
    writable = os.access(place, os.W_OK)
    yield Finding("ok" if writable else "problem", f"workspace is {'' if writable else 'not '}writable (set BOOM_HOME)")


def _hub() -> Iterator[Finding]:
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        yield Finding("ok", "hub: offline by HF_HUB_OFFLINE; smoke needs no network")
        return
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(endpoint, timeout=5).close()
        yield Finding("ok", "hub: reachable")
    except (OSError, ValueError) as error:
        yield Finding("note", f"hub: not reachable ({error}); smoke needs no network")
