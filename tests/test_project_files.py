"""Files for those who use, cite or carry on the kit say what is there, and what is built holds what is needed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from boom_utils import __version__
from boom_utils.artifacts import PROJECT_ROOT
from boom_utils.cards import TEMPLATE
from boom_utils.config import profile_names
from boom_utils.data.manifest import manifest_names


def read(name: str) -> str:
    return (PROJECT_ROOT / name).read_text(encoding="utf-8")


@pytest.mark.promise(42)
def test_every_requirement_admits_what_is_locked_and_the_python_of_conda() -> None:
    lock = dict(re.findall(r"^([\w.-]+)==(\S+)", read("requirements.lock"), flags=re.MULTILINE))
    locked = {name.lower().replace("_", "-"): version for name, version in lock.items()}
    assert locked["torch"] == "2.13.0"
    project = tomllib.loads(read("pyproject.toml"))["project"]
    for text in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(locked[requirement.name.lower()]), text
    environment = yaml.safe_load(read("environment.yml"))
    assert environment["channels"] == ["conda-forge"]
    assert "-r requirements.lock" in environment["dependencies"][-1]["pip"]
    (python,) = [one for one in environment["dependencies"] if "python=" in str(one)]
    assert SpecifierSet(project["requires-python"]).contains(python.removeprefix("python="))


@pytest.mark.promise(42)
def test_sdist_and_wheel_hold_manifests_and_profiles_and_a_wheel_finds_them(tmp_path: Path) -> None:
    """As pip does it: the wheel is built from what is in the sdist."""
    listed = subprocess.check_output(["git", "-C", str(PROJECT_ROOT), "ls-files", "-co", "--exclude-standard"])
    for name in filter(None, listed.decode().splitlines()):
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PROJECT_ROOT / name, tmp_path / "source" / name)
    _build("sdist", tmp_path / "source", tmp_path)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    for name in ("Makefile", "requirements.lock", "environment.yml", "notebooks/01_data.ipynb", "tests/conftest.py"):
        assert (source / name).is_file(), name
    _build("wheel", source, tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(tmp_path / "site")
    code = (
        "import json; from boom_utils.config import load_profile, profile_names;"
        "from boom_utils.data.manifest import load_manifest, manifest_names;"
        "load_manifest(load_profile('smoke').manifest);"
        "print(json.dumps([profile_names(), manifest_names(), __import__('boom_utils').__file__]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    said = subprocess.check_output([sys.executable, "-c", code], env=environment, cwd=tmp_path, text=True)
    profiles, manifests, place = json.loads(said)
    assert place.startswith(str(tmp_path / "site"))
    assert (profiles, manifests) == (profile_names(), manifest_names())


def _build(kind: str, source: Path, out: Path) -> None:
    code = f"from setuptools.build_meta import build_{kind}; build_{kind}({str(out)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_citation_file_has_what_its_format_asks_for_and_cites_the_paper() -> None:
    cited = yaml.safe_load(read("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors"} <= {*cited}
    assert cited["version"] == __version__
    paper = cited["preferred-citation"]
    assert {"type", "title", "authors"} <= {*paper}
    citation = re.search(r"```bibtex\n(.*?)\n```", TEMPLATE.read_text(encoding="utf-8"), re.DOTALL)[1]  # type: ignore[index]
    authors = " and ".join(f"{one['family-names']}, {one['given-names']}" for one in paper["authors"])
    for text in (f"title={{{paper['title']}}}", f"author={{{authors}}}", f"year={{{paper['year']}}}", paper["journal"]):
        assert text in citation
    assert citation in read("README.md")


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_what_a_guide_names_is_there(name: str) -> None:
    quoted = re.findall(r"`([^`\s]+)`", read(name))
    named = [one for one in quoted if re.search(r"/|\.(py|md|lock|toml|yaml)$", one) and "NAME" not in one]
    missing = [one for one in named if not any((PROJECT_ROOT / top / one).exists() for top in ("", "boom_utils"))]
    assert not missing
    assert f"({name})" in read("README.md")


def test_hooks_need_no_network_and_keep_outputs_out_of_notebooks() -> None:
    (repo,) = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    assert repo["repo"] == "local"
    assert all(hook["language"] == "system" and hook["entry"].startswith(".venv/bin/") for hook in repo["hooks"])
    (hook,) = [hook for hook in repo["hooks"] if hook["id"] == "notebooks-without-outputs"]
    assert re.search(hook["files"], "notebooks/01_data.ipynb")
