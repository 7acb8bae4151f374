"""The smoke study as a user runs it, in a process of its own: the tests that need it wait for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from boom_utils.artifacts import PROJECT_ROOT, Workspace
from boom_utils.config import load_profile
from boom_utils.study.graph import Study

CANARY = "hf_canary0123456789abcdefghij"


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "boom_utils", *arguments]


def environment(home: Path, **more: str) -> dict[str, str]:
    """No hub, no way out through a proxy, a token to look for, a random hash seed, a plain locale."""
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    fixed = {
        "HF_HUB_OFFLINE": "1",
        "HF_TOKEN": CANARY,
        "PYTHONHASHSEED": "random",
        "LC_ALL": "C",
        "no_proxy": "127.0.0.1",
    }
    return {**os.environ, **nowhere, **fixed, "BOOM_HOME": str(home), **more}


def source_files() -> dict[str, int]:
    """Every file of the project that is not a cache, with its time of change."""
    skipped = {
        ".git",
        ".venv",
        "workspace",
        "results",
        "__pycache__",
        ".pytest_cache",
        ".ruff_cache",
        ".mypy_cache",
        ".hypothesis",
    }
    found = {}
    for folder, names, files in os.walk(PROJECT_ROOT):
        names[:] = [name for name in names if name not in skipped and not name.endswith(".egg-info")]
        found |= {str(Path(folder, name)): Path(folder, name).stat().st_mtime_ns for name in files}
    return found


@dataclass(frozen=True)
class Run:
    """A finished run of the smoke profile."""

    home: Path
    results: Path
    output: str
    source_untouched: bool

    @property
    def study(self) -> Study:
        return Study(load_profile("smoke"), Workspace(self.home))

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_csv(self.results / "tables" / f"{name}.csv")


@dataclass(frozen=True)
class Started:
    """A run of the smoke profile that is under way in ``root``."""

    root: Path
    process: subprocess.Popen[bytes]
    sources: dict[str, int]

    @classmethod
    def begin(cls, root: Path) -> Started:
        """Start it, without waiting for it."""
        sources, arguments = source_files(), command("run", "--profile", "smoke", "--results", str(root / "results"))
        with (root / "output").open("wb") as output:
            process = subprocess.Popen(
                arguments,
                cwd=root,
                env=environment(root / "wörk späce"),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return cls(root, process, sources)

    def finished(self, timeout: float) -> Run:
        """Wait for its end, which has to be a good one."""
        status = self.process.wait(timeout)
        output = (self.root / "output").read_text(encoding="utf-8", errors="replace")
        assert status == 0, output[-4000:]
        return Run(self.root / "wörk späce", self.root / "results" / "smoke", output, source_files() == self.sources)

    def stop(self) -> None:
        """End it with its kernels, if it is still running."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
