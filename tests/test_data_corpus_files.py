"""`boom data fetch`: what it takes, from where, and what it says; `boom check` about files."""

from __future__ import annotations

import hashlib
import os
import socket
import urllib.request
from pathlib import Path

import pytest
import yaml
from conftest import SHARED, plain_smoke
from test_data_manifest_files import address, raw_dataset, raw_file, raw_manifest

from boom_utils.cli import main
from boom_utils.config import Profile
from boom_utils.data.corpus_files import chosen_datasets, downloads_folder, fetch_datasets, files_of
from boom_utils.data.download import FetchOptions
from boom_utils.data.manifest import load_manifest
from boom_utils.errors import ConfigError, ManifestError
from boom_utils.study.check import check_machine

MIRROR = SHARED / "mirror"


class Corpus:
    """A manifest of two datasets with three files, a mirror of them, and an empty workspace."""

    def __init__(self, folder: Path) -> None:
        self.mirror, self.workspace, self.manifest = folder / "mirror", folder / "wörk space", folder / "tiny.yaml"
        self.texts = {"a.tsv": b"one\n", "b.tsv": b"two two\n", "both.tsv": b"three\n"}
        both = self.file("both.tsv")
        datasets = [raw_dataset("one", self.file("a.tsv"), both), raw_dataset("two", self.file("b.tsv"), both)]
        self.manifest.write_text(yaml.safe_dump(raw_manifest(*datasets)), encoding="utf-8")

    def file(self, name: str) -> dict[str, object]:
        text = self.texts[name]
        path = self.mirror / address(name).removeprefix("https://")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
        return raw_file(name, sha256=hashlib.sha256(text).hexdigest(), bytes=len(text))

    def place(self, name: str) -> Path:
        return self.workspace / "downloads" / address(name).removeprefix("https://")

    def fetch(self, *options: str) -> int:
        return main(["data", "fetch", "--manifest", str(self.manifest), *options])

    @property
    def there(self) -> list[str]:
        return [name for name in self.texts if self.place(name).exists()]


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    made = Corpus(tmp_path)
    monkeypatch.setenv("BOOM_HOME", str(made.workspace))
    monkeypatch.setenv("BOOM_MIRROR", str(made.mirror))
    return made


def test_a_corpus_is_fetched_from_a_mirror_and_the_second_time_kept(
    corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    assert corpus.fetch() == 0
    assert {name: corpus.place(name).read_bytes() for name in corpus.texts} == corpus.texts
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["family", "datasets", "files", "MB", "there", "before", "from", "mirror"]
    assert lines[1:3] == [["retrieval", "2", "3", "0.0", "0", "3"], ["all", "2", "3", "0.0", "0", "3"]]
    assert corpus.fetch("--verify") == 0
    assert capsys.readouterr().out.splitlines()[2].split() == ["all", "2", "3", "0.0", "3", "0"]


def test_only_some_datasets_are_fetched_if_so_asked(corpus: Corpus) -> None:
    assert corpus.fetch("--only", "two") == 0
    assert corpus.there == ["b.tsv", "both.tsv"]


def test_all_unknown_datasets_are_named_with_the_nearest_and_nothing_is_fetched(
    corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    assert corpus.fetch("--only", "tow", "ones", "--only", "two") == 2
    said = capsys.readouterr().out
    assert "no dataset 'tow'; did you mean 'two'?" in said
    assert "no dataset 'ones'; did you mean 'one'?" in said
    assert not corpus.workspace.exists()


def test_a_wrong_file_of_the_mirror_is_an_error_and_never_gets_its_name(
    corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    (corpus.mirror / address("b.tsv").removeprefix("https://")).write_bytes(b"two tow\n")
    assert corpus.fetch() == 1
    assert corpus.there == ["a.tsv", "both.tsv"]
    said = capsys.readouterr().out
    assert hashlib.sha256(b"two two\n").hexdigest() in said
    assert "BOOM_MIRROR" in said


@pytest.mark.promise(3)
def test_verify_notices_a_file_that_changed_behind_its_date(corpus: Corpus, capsys: pytest.CaptureFixture[str]) -> None:
    assert corpus.fetch() == 0
    facts = corpus.place("a.tsv").stat()
    corpus.place("a.tsv").write_bytes(b"eno\n")
    os.utime(corpus.place("a.tsv"), ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert corpus.fetch("--verify") == 1
    assert "is not the file the manifest names" in capsys.readouterr().out
    assert corpus.place("a.tsv").read_bytes() == b"eno\n"


@pytest.mark.promise(6)
@pytest.mark.parametrize("way", ["--offline", "HF_HUB_OFFLINE"])
def test_offline_opens_no_connection_and_names_what_is_missing(
    corpus: Corpus, way: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert corpus.fetch("--only", "one") == 0
    monkeypatch.delenv("BOOM_MIRROR")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0" if way == "--offline" else "1")
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("opened a connection"))
    options = [way] if way == "--offline" else []
    assert corpus.fetch("--only", "one", *options) == 0
    capsys.readouterr()
    assert corpus.fetch(*options) == 1
    said = capsys.readouterr().out
    assert "offline, and 1 of 3 files are not there" in said
    assert address("b.tsv") in said


def test_ctrl_c_exits_with_130_and_says_how_to_go_on(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("boom_utils.data.corpus_files.fetch", interrupted)
    assert corpus.fetch() == 130
    assert "To go on: boom data fetch --manifest" in capsys.readouterr().out


def test_a_corpus_of_installed_distributions_has_nothing_to_fetch(
    corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    for given in (["--manifest", "python_docs"], ["--profile", "smoke"]):
        assert main(["data", "fetch", *given]) == 0
        assert "nothing to fetch, it is mined from installed distributions" in capsys.readouterr().out
    assert not corpus.workspace.exists()


def test_a_misspelt_manifest_exits_with_2_and_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "fetch", "--manifest", "open_txt"]) == 2
    assert "did you mean 'open_text'?" in capsys.readouterr().out


# --- of a profile -----------------------------------------------------------------------------------------------------


def profile_of_files(**corpus: object) -> Profile:
    raw = plain_smoke()
    raw["corpus"] |= {"manifest": "open_text", "datasets": ["squad_nqg"], "new_datasets": ["conala"], **corpus}
    raw["evaluation"] |= {"in_domain": ["squad_dev"], "out_of_domain": ["cisi"]}
    return Profile.model_validate(raw)


def test_a_profile_fetches_what_it_trains_on_and_what_it_evaluates_and_no_more() -> None:
    manifest = load_manifest("open_text")
    chosen = chosen_datasets(manifest, profile_of_files())
    assert [dataset.id for dataset in chosen] == ["squad_nqg", "squad_dev", "cisi", "conala"]
    assert len(files_of(chosen)) == 2 + 48 + 3 + 2
    with pytest.raises(ConfigError, match="no dataset 'cosqa'"):
        chosen_datasets(manifest, profile_of_files(), ["cosqa"])
    with pytest.raises(ManifestError, match="did you mean 'squad_nqg'"):
        chosen_datasets(manifest, profile_of_files(datasets=["squad_nqq"]))


def test_a_file_of_two_datasets_is_fetched_once() -> None:
    manifest = load_manifest("open_text")
    both = [manifest.dataset("arxiv_s2s"), manifest.dataset("arxiv_p2p")]
    assert len(files_of(both)) == 1
    assert len(files_of(manifest.datasets)) == sum(len(one.files) for one in manifest.origins.values()) - 1


# --- the real files ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not MIRROR.is_dir(), reason="../shared/mirror, a copy of the real files, is not here")
def test_two_real_datasets_come_from_the_mirror_with_the_sha256_of_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOOM_HOME", str(tmp_path))
    monkeypatch.setenv("BOOM_MIRROR", str(MIRROR))
    assert main(["data", "fetch", "--manifest", "open_text", "--only", "conala", "stsb_multi_cmn"]) == 0
    manifest = load_manifest("open_text")
    for name in ("conala", "stsb_multi_cmn"):
        for file in manifest.origins[name].files:
            found = (tmp_path / "downloads" / file.path).read_bytes()
            assert (len(found), hashlib.sha256(found).hexdigest()) == (file.bytes, file.sha256)


# --- boom check -------------------------------------------------------------------------------------------------------


@pytest.fixture
def check(corpus: Corpus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):  # type: ignore[no-untyped-def]
    """What the check says of the corpus, and its exit code."""
    manifest = load_manifest(corpus.manifest)
    raw = profile_of_files(datasets=["one"], new_datasets=["two"]).model_dump(mode="json")
    raw["evaluation"] |= {"in_domain": ["one"], "out_of_domain": ["two"]}
    for name in ("_packages", "_devices", "_disk", "_hub"):
        monkeypatch.setattr(f"boom_utils.study.check.{name}", list)
    monkeypatch.setattr("boom_utils.study.check.load_profile", lambda _: Profile.model_validate(raw))
    monkeypatch.setattr("boom_utils.study.check.load_manifest", lambda _: manifest)

    def asked() -> tuple[int, str]:
        caplog.clear()
        with caplog.at_level("INFO", logger="boom_utils"):
            return check_machine("tiny"), caplog.text

    return asked


def test_check_says_whether_the_mirror_has_the_files(corpus: Corpus, check) -> None:  # type: ignore[no-untyped-def]
    code, said = check()
    assert code == 0
    assert "corpus tiny: 0 of 3 files are in the workspace, BOOM_MIRROR has the others" in said
    (corpus.mirror / address("a.tsv").removeprefix("https://")).unlink()
    code, said = check()
    assert code == 1
    assert "1 of the others are not in BOOM_MIRROR" in said


def test_check_asks_the_host_once_and_not_when_offline_or_all_is_there(
    corpus: Corpus,
    check,  # type: ignore[no-untyped-def]
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    requests: list[urllib.request.Request] = []

    def refused(request: urllib.request.Request, timeout: float) -> None:
        requests.append(request)
        raise OSError("connection refused")

    monkeypatch.delenv("BOOM_MIRROR")
    monkeypatch.setattr(urllib.request, "urlopen", refused)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, said = check()
    assert (code, requests) == (1, [])
    assert "HF_HUB_OFFLINE forbids" in said
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    code, said = check()
    assert (code, [request.get_method() for request in requests]) == (1, ["HEAD"])
    assert "the network does not give the others (connection refused); set BOOM_MIRROR" in said
    fetch_datasets(load_manifest(corpus.manifest).datasets, downloads_folder(), FetchOptions(mirror=corpus.mirror))
    code, said = check()
    assert (code, len(requests)) == (0, 1)
    assert "3 of 3 files are in the workspace" in said
