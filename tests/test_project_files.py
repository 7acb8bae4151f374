"""Files for those who use, cite or carry on the kit say what is there, and what is built holds what is needed."""

from __future__ import annotations

import json
import os
import re
import shlex
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
from pydantic import BaseModel

from boom_utils import __version__, cli
from boom_utils.artifacts import PROJECT_ROOT
from boom_utils.cards import TEMPLATE
from boom_utils.config import Profile, load_profile, profile_names
from boom_utils.data.manifest import manifest_names
from boom_utils.merging.recipe import load_recipe


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
    assert citation in read("docs/paper.md")


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_what_a_guide_names_is_there(name: str) -> None:
    quoted = re.findall(r"`([^`\s]+)`", read(name))
    named = [one for one in quoted if re.search(r"/|\.(py|md|lock|toml|yaml)$", one) and "NAME" not in one]
    missing = [one for one in named if not any((PROJECT_ROOT / top / one).exists() for top in ("", "boom_utils"))]
    assert not missing
    assert f"({name})" in read("README.md")


PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "results/README.md", "data_manifests/README.md"]
PAGES += sorted(f"docs/{path.name}" for path in (PROJECT_ROOT / "docs").glob("*.md"))
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What links within a page may lead to: its headings, as code hosts name them."""
    prose = FENCED.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_every_link_within_the_repository_leads_somewhere(name: str) -> None:
    """Links into tables of the reading (``table.md#row/column``) are held by `tests/test_reporting_readme.py`."""
    prose, page = FENCED.sub("", read(name)), PROJECT_ROOT / name
    for target in re.findall(r"\]\(([^()\s]+)\)", prose):
        place, _, anchor = target.partition("#")
        if ":" in target:
            continue
        led = page.parent / place if place else page
        assert led.exists(), target
        assert "/" in anchor or not anchor or anchor in anchors(led), target


def test_the_readme_is_short_and_links_every_page_of_the_docs_once() -> None:
    text = read("README.md")
    assert len(text.splitlines()) <= 150
    tables = [line for line in text.splitlines() if line.startswith("|") and set(line) <= {*"|-: "}]
    assert all(line.count("|") <= 7 for line in tables), "at most six columns"
    for page in (PROJECT_ROOT / "docs").glob("*.md"):
        assert text.count(f"(docs/{page.name})") == 1, page.name


def commands(name: str) -> list[str]:
    """Command lines of a page: those in its blocks of shell code, and those of `boom` in its text."""
    text = read(name)
    blocks = [code for language, code in FENCED.findall(text) if language in ("bash", "sh")]
    blocks += [*re.findall(r"^    (?=\S*(?:make|boom|python) ).*$", text, re.MULTILINE)]
    inline = re.findall(r"`(?:[\w.]+=\S+ )*((?:\.venv/bin/)?(?:boom|make) [^`]+)`", FENCED.sub("", text))
    inline = [line if " -" in line else f"{line} --help" for line in inline]  # a command's name alone
    return [line.strip() for line in [*"\n".join(blocks).splitlines(), *inline] if line.strip()]


@pytest.mark.parametrize("name", [name for name in PAGES if name != "CHANGELOG.md"])
def test_every_command_of_a_page_is_one(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    targets = re.findall(r"^([a-z]+):", read("Makefile"), re.MULTILINE)
    for line in commands(name):
        program, *words = shlex.split(line, comments=True)
        if Path(program).name == "boom":
            try:
                cli._parser().parse_args(words)
            except SystemExit as left:
                assert left.code == 0, f"{line}: {capsys.readouterr().err}"
        elif program == "make":
            assert all(word in targets for word in words if "=" not in word and word != "--help"), line
        named = [word for word in (program, *words) if re.match(r"(benchmarks|tests|workflow|tools)/", word)]
        assert all((PROJECT_ROOT / word).exists() for word in named), line


def test_every_key_of_a_profile_is_explained() -> None:
    def keys(model: type[BaseModel]) -> set[str]:
        schema = model.model_json_schema()
        return {key for part in (schema, *schema["$defs"].values()) for key in part.get("properties", ())}

    page = read("docs/profiles.md")
    assert not [key for key in keys(Profile) if f"`{key}`" not in page and f"`{key}:" not in page]


def test_what_the_page_about_the_paper_names_is_shown_by_reports() -> None:
    shown = yaml.safe_load(read("boom_utils/reporting/page.yaml"))
    rows = [line.split("|") for line in read("docs/paper.md").splitlines() if line.startswith("| ")]
    for kind, column in (("figures", 2), ("tables", 3)):
        named = {name for row in rows for name in re.findall("`(.*?)`", row[column])}
        assert named and named <= {*shown[kind]}


def test_every_profile_and_recipe_of_the_docs_is_one(tmp_path: Path) -> None:
    shown = [code for page in PAGES for language, code in FENCED.findall(read(page)) if language == "yaml"]
    assert len(shown) >= 2
    for code in shown:
        path = tmp_path / "shown.yaml"
        path.write_text(code, encoding="utf-8")
        assert load_recipe(path) if "merge_method:" in code else load_profile(path)


def test_hooks_need_no_network_and_keep_outputs_out_of_notebooks() -> None:
    (repo,) = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    assert repo["repo"] == "local"
    assert all(hook["language"] == "system" and hook["entry"].startswith(".venv/bin/") for hook in repo["hooks"])
    (hook,) = [hook for hook in repo["hooks"] if hook["id"] == "notebooks-without-outputs"]
    assert re.search(hook["files"], "notebooks/01_data.ipynb")
