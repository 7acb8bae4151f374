"""Scores on benchmarks shared by several CUDA devices: one process each, all building artifacts of one workspace."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

from boom_utils.artifacts import Node, Workspace
from boom_utils.config import Profile
from boom_utils.progress import progress
from boom_utils.study.scoring import profile_benchmarks

log = logging.getLogger(__name__)

_STUDIES: dict[tuple[str, Path], Any] = {}
"""Studies this process has opened."""


def share_scores(profile: Profile, workspace: Workspace, missing: Mapping[str, Node]) -> None:
    """Build the scores on benchmarks among some nodes on all CUDA devices, if there are several; else do nothing.

    What fails is left to be built, and reported, by whoever asks for it next.

    Args:
        profile: The study's.
        workspace: Its workspace.
        missing: Nodes that are to be built, by name (``scores/full/SciFact``).
    """
    scores = [name for name in missing if name.startswith("scores/")]
    if not scores or not (tasks := profile_benchmarks(profile).tasks):
        return
    wanted = [name for name in scores if name.split("/")[-1] in tasks]
    wanted.sort(key=lambda name: tasks[name.split("/")[-1]].size, reverse=True)
    if len(wanted) > 1 and (devices := cuda_devices()) > 1:
        for model in {model: None for name in wanted for model in missing[name].inputs.values()}:
            workspace.build(model)  # once, before several processes ask for it
        build_together(profile, workspace.root, wanted, devices)


def cuda_devices() -> int:
    """How many CUDA devices there are, at least 1."""
    import torch

    return max(1, torch.cuda.device_count())


def build_together(profile: Profile, root: Path, names: Sequence[str], devices: int) -> None:
    """Build nodes in that order, each on the next device that is free.

    Args:
        profile: The study's; what the nodes are made of is there already.
        root: Its workspace.
        names: The nodes.
        devices: How many processes.
    """
    from boom_utils.evaluation.collection import device_pool

    with device_pool(min(devices, len(names))) as pool:
        futures = {pool.submit(build_one, profile, root, name): name for name in names}
        for future in progress(as_completed(futures), len(futures), f"scores on {devices} devices"):
            if (error := future.exception()) is not None:
                log.info("%s: %s", futures[future], str(error).partition("\n")[0])


def build_one(profile: Profile, root: Path, name: str) -> None:
    """Build one node of a study, which stays open for the next one."""
    from boom_utils.study.graph import Study

    key = (profile.model_dump_json(), root)
    if key not in _STUDIES:
        _STUDIES[key] = Study(profile, Workspace(root))
    _STUDIES[key].build(name)
