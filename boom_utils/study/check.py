"""What a study would meet on this machine, before it starts: versions, devices, memory, disk, corpus, hub."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import re
import shutil
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

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
    wanted = dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", lock, flags=re.M))
    differing = [f"{name} {have} (locked: {want})" for name, want in wanted.items() if (have := _version(name)) != want]
    text = f"other versions than results were made with: {', '.join(differing)}"
    yield ("note", text) if differing else ("ok", f"all {len(wanted)} packages as locked")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name).split("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def _corpus(profile: str) -> Iterator[Finding]:
    loaded = load_profile(profile)
    manifest = load_manifest(loaded.manifest)
    name, datasets = f"corpus {manifest.name}", chosen_datasets(manifest, loaded)
    if isinstance(manifest.source, InstalledDistributions):
        for text in corpus_deviations(manifest):
            yield "note", f"{name}: {text}; the corpus gets its own fingerprint"
        yield "ok", f"{name}: {len(manifest.source.distributions)} distributions looked at"
        return
    files = _files(manifest, datasets)
    missing = [one for one, there in files.items() if not there]
    begin = f"{name}: {len(files) - len(missing)} of {len(files)} files are in the workspace"
    if not missing:
        yield "ok", begin
    elif isinstance(manifest.source, LocalFiles):
        yield "problem", f"{begin}, not {', '.join(map(str, missing))}"
    elif isinstance(manifest.source, HttpsFiles) and (source := mirror()) is not None:
        absent = sum(not (source / one.path).is_file() for one in missing)
        others = f"{absent} of the others are not in BOOM_MIRROR" if absent else "BOOM_MIRROR has the others"
        yield "problem" if absent else "ok", f"{begin}, {others}"
    elif offline():
        yield "problem", f"{begin}, and HF_HUB_OFFLINE forbids to fetch the others; set BOOM_MIRROR"
    elif isinstance(manifest.source, HttpsFiles) and (reason := _unreachable(missing[0].url)):
        yield "problem", f"{begin}, and the network does not give the others ({reason}); set BOOM_MIRROR"
    else:
        yield "ok", f"{begin}; boom data fetch gets the others"


def _files(manifest: Manifest, datasets: Sequence[Dataset]) -> dict[Any, bool]:
    """Every file of a corpus (of the hub: every dataset), and whether it is here; asks nobody."""
    folder = downloads_folder()
    if isinstance(manifest.source, HttpsFiles):
        return {file: (folder / file.path).is_file() for file in files_of(datasets)}
    if isinstance(manifest.source, LocalFiles):
        names = [file for one in datasets if one.local for file in one.local.files]
        return {name: (manifest.folder / name).is_file() for name in names if not name.startswith("hf://")}
    found = {}
    for dataset in datasets:
        with suppress(BoomError):
            found[dataset.id] = False
            found[dataset.id] = bool(hub_paths(hub_set(dataset, folder)))
    return found


def _unreachable(url: str) -> str | None:
    """Why an address cannot be asked for, or None."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=5).close()
    except (OSError, ValueError) as error:
        return str(error)
    return None


def _devices() -> Iterator[Finding]:
    import torch

    devices = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    shown = ", ".join(devices) or "no CUDA device"
    yield "ok", f"torch {torch.__version__}, {torch.get_num_threads()} threads, {shown}"


def _disk() -> Iterator[Finding]:
    workspace = default_workspace()
    place = next(path for path in (workspace, *workspace.resolve().parents) if path.exists())
    free, writable = shutil.disk_usage(place).free, os.access(place, os.W_OK)
    needed = f"{NEEDED_BYTES / 2**30:.0f} GiB are enough for smoke"
    yield "ok" if free > NEEDED_BYTES else "problem", f"workspace: {free / 2**30:.0f} GiB free, {needed}"
    yield "ok" if writable else "problem", f"workspace is {'' if writable else 'not '}writable (set BOOM_HOME)"


def _hub() -> Iterator[Finding]:
    if offline():
        yield "ok", "hub: offline by HF_HUB_OFFLINE; smoke needs no network"
    elif reason := _unreachable(os.environ.get("HF_ENDPOINT", "https://huggingface.co")):
        yield "note", f"hub: not reachable ({reason}); smoke needs no network"
    else:
        yield "ok", "hub: reachable"
