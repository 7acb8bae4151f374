"""`boom push` against a made-up hub: what goes there, what never does, and everything the hub may answer."""

from __future__ import annotations

import io
import json
import logging
import shutil
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch
import yaml
from conftest import bert_folder, plain_smoke
from huggingface_hub import CommitOperationAdd
from huggingface_hub.errors import HfHubHTTPError
from safetensors.torch import save_file

from boom_utils.artifacts import Node, write_json
from boom_utils.cards import CARD, Card, write_card
from boom_utils.cli import main
from boom_utils.config import load_profile
from boom_utils.errors import CheckpointError, ConfigError, UploadError
from boom_utils.study.graph import Study
from boom_utils.study.push import STAYS, Upload, find_model, prepare, push

REPO, WRITER = "owner/boom", "hf_canarythatmaywrite0123"


class Hub:
    """What of `huggingface_hub.HfApi` a push uses: repositories as dictionaries of bytes, and answers that refuse."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.commits: list[list[str]] = []
        self.asked: list[str] = []
        self.refusals: dict[str, Exception] = {}

    def __call__(self, endpoint: str | None) -> Hub:
        return self

    def _asked(self, what: str) -> None:
        self.asked.append(what)
        if what in self.refusals:
            raise self.refusals[what]

    def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> None:
        self._asked("create")
        if repo not in self.repos:
            self.repos[repo], self.private = {".gitattributes": b""}, self.private | ({repo} if private else set())

    def model_info(self, repo: str) -> Any:
        files = [SimpleNamespace(rfilename=name) for name in self.repos[repo]]
        return SimpleNamespace(private=repo in self.private, siblings=files, sha="1" * 40)

    def create_commit(self, repo: str, files: list[CommitOperationAdd], *, commit_message: str, **_: str) -> Any:
        self._asked("commit")
        for one in files:
            with one.as_file() as handle:
                self.repos[repo][one.path_in_repo] = handle.read()
        self.commits.append([one.path_in_repo for one in files])
        return SimpleNamespace(commit_url=f"https://hub/{repo}/commit/1")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as sentence-transformers writes it, with a card."""
    folder = bert_folder(tmp_path_factory.mktemp("push") / "model")
    write_card(folder, Card("toy", "A toy.", {}))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "model")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The hub, and a token that may write there."""
    made_up = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", made_up)
    monkeypatch.setenv("HF_TOKEN", WRITER)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return made_up


def upload(folder: Path, repo: str = REPO, *, public: bool = False) -> Upload:
    return prepare(find_model(str(folder), "smoke"), repo, public=public)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        upload(folder)
    return str(caught.value)


# --- what goes there --------------------------------------------------------------------------------------------------


def test_what_is_pushed_is_the_folder_byte_for_byte_in_one_private_commit_each_time_and_what_the_kit_keeps_stays(
    folder: Path, hub: Hub
) -> None:
    sent = contents(folder)
    for name in STAYS:
        (folder / name).write_text('{"secret": "place"}', encoding="utf-8")
    for times in (1, 2):
        (folder / CARD).write_text((folder / CARD).read_text() + "\nMore.\n", encoding="utf-8")
        looked = upload(folder)
        assert sorted(looked.stays) == sorted(STAYS) and all(name in looked.text() for name in STAYS)
        assert push(looked).endswith(f"{REPO}/commit/1")
        sent[CARD] = (folder / CARD).read_bytes()
        sent[CARD] = sent[CARD].replace(b"OWNER/NAME", REPO.encode())
        assert {name: content for name, content in hub.repos[REPO].items() if name != ".gitattributes"} == sent
        assert [sorted(names) for names in hub.commits] == [sorted(sent)] * times
    assert hub.private == {*hub.repos} == {REPO}


def test_it_is_private_unless_public_is_said_and_nothing_is_mixed_with_what_is_there(folder: Path, hub: Hub) -> None:
    looked = upload(folder, public=True)
    assert "PUBLIC" in looked.text() and "PUBLIC" not in upload(folder).text()
    push(looked)
    assert hub.private == set()
    with pytest.raises(UploadError, match=r"(?s)is public.*--public"):
        push(upload(folder))
    hub.repos["owner/other"], hub.private = {"model-00001-of-00002.safetensors": b""}, {"owner/other"}
    with pytest.raises(UploadError, match=r"(?s)not this model's.*model-00001-of-00002"):
        push(upload(folder, "owner/other"))
    assert len(hub.commits) == 1


# --- what never goes --------------------------------------------------------------------------------------------------


STRANGE = ("optimizer.pt", "trainer_state.json", "checkpoints/3/model.safetensors", "run.log", ".env", "1_Pooling/x")


def test_a_folder_with_anything_that_is_no_file_of_a_model_is_refused(folder: Path) -> None:
    for name in STRANGE:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}", encoding="utf-8")
        assert name in refused(folder)
        (folder / name).unlink()
    (folder / "LICENSE").symlink_to(folder.parent / "elsewhere")
    assert "LICENSE (a link" in refused(folder)
    (folder / "LICENSE").unlink()
    save_file({"x": torch.zeros(1)}, folder / "extra.safetensors")
    assert "belongs to nothing: extra.safetensors" in refused(folder)
    (folder / "extra.safetensors").unlink()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "pickle" in refused(folder)


@pytest.mark.promise(36)
@pytest.mark.parametrize("name", [CARD, "config.json"])
def test_a_token_or_a_place_on_this_machine_in_a_file_is_refused_and_not_shown(
    folder: Path, name: str, hub: Hub
) -> None:
    kept = (folder / name).read_text(encoding="utf-8")
    for secret in (WRITER, f"{Path.home()}/private/place"):
        text = json.dumps({**json.loads(kept), "note": secret}) if name != CARD else kept + secret
        (folder / name).write_text(text, encoding="utf-8")
        assert name in refused(folder)
        assert secret not in refused(folder)


def test_names_that_the_hub_does_not_take_are_refused_before_it_is_asked(folder: Path) -> None:
    for repo in ("name", "a/b/c", "../x", "owner/na me", "owner/x.git", "owner/a--b", "/x", ""):
        with pytest.raises(ConfigError, match="OWNER/NAME"):
            upload(folder, repo)


def test_what_is_no_model_or_not_made_is_an_error_and_is_not_made_by_a_push(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / CARD).unlink()
    with pytest.raises(ConfigError, match="no folder of a model with a card"):
        find_model(str(folder), "smoke")
    monkeypatch.setenv("BOOM_HOME", str(tmp_path / "home"))
    with pytest.raises(ConfigError, match=r"'boomm' is neither a folder nor a model .*did you mean 'boom'"):
        find_model("boomm", "smoke")
    with pytest.raises(ConfigError, match=r"(?s)not made yet.*boom run --profile smoke"):
        find_model("boom", "smoke")
    assert not (tmp_path / "home").exists()


# --- models of a study ------------------------------------------------------------------------------------------------


@pytest.fixture
def study(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study whose stages write made-up files in no time."""
    monkeypatch.setenv("BOOM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("boom_utils.artifacts._git_commit", lambda: None)
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(plain_smoke()), encoding="utf-8")
    study = Study(load_profile(path))
    monkeypatch.setattr("boom_utils.study.push.Study", lambda _: study)
    names = study.profile.corpus.datasets
    cost = {"seed": 0, "steps": 1, "examples": 2, "tokens": 3, "rows": {names[0]: 2}}
    facts = {"steps": 1, "examples": 2, "tokens": 3, "mean_loss_last_tenth": 1.0, "trained": {"m": cost}}
    said = {
        "examples": {"rows": {f"train/{one.id}": 9 for one in study.manifest.datasets}},
        "plan": {"datasets": list(names)},
        "member": facts,
        "merge": {"trained": {"m": cost}},
    }

    def make(node: Node, out: Path) -> dict[str, Any]:
        if node.stage in ("member", "merge"):
            shutil.copytree(made, out, dirs_exist_ok=True)
        if node.stage == "scores":
            values = [0.5, 0.75 if "boom" in node.label else 0.5, 1.0]
            samples = {"metric": "ndcg_at_10", "ids": ["0", "1", "2"], "columns": {"value": values}}
            write_json(out / "samples.json", samples)
        return said.get(node.stage, {})

    for node in study.nodes.values():
        object.__setattr__(node, "make", lambda out, _, node=node: make(node, out))
    return study


def test_a_model_of_a_study_goes_with_its_scores_once_it_has_them(study: Study, hub: Hub) -> None:
    study.build("merge/boom")
    assert not find_model("boom", "smoke").scored
    for model in ("boom", study.profile.evaluation.reference):
        study.build_all(f"scores/{model}/")
    found = find_model("boom", "smoke")
    assert found.scored
    assert "## Scores" in found.card
    looked = prepare(found, REPO)
    assert looked.stays == ("record.json",)
    push(looked)
    card = hub.repos[REPO][CARD].decode()
    assert "model-index" in card
    assert "record.json" not in hub.repos[REPO]
    assert (study.build("merge/boom").path / CARD).read_text(encoding="utf-8") != card, "artifacts stay as they are"


def test_a_folder_and_a_model_of_one_name_are_told_apart(
    study: Study, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.build("merge/boom")
    monkeypatch.chdir(folder.parent)
    folder.rename("boom")
    assert find_model("./boom", "smoke").folder == Path("boom")
    assert find_model("boom", "smoke").folder == study.build("merge/boom").path
    Path("boom").rename("mine")
    assert find_model("mine", "smoke").folder == Path("mine")


# --- the command ------------------------------------------------------------------------------------------------------


def test_a_dry_run_shows_all_and_asks_no_server(
    folder: Path, hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert main(["push", str(folder), "--repo", REPO, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in contents(folder))
    assert f"to {REPO} (private)" in said
    assert hub.asked == []
    assert main(["card", str(folder)]) == 0
    assert capsys.readouterr().out == (folder / CARD).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("answer", "words", "outcome"),
    [("y\n", [], (0, 1)), ("\n", [], (0, 0)), ("", [], (0, 0)), (None, [], (2, 0)), (None, ["--yes"], (0, 1))],
)
def test_a_person_is_asked_first_and_a_script_has_to_say_yes(
    folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, answer: str | None, words: list[str], outcome: object
) -> None:
    terminal = io.StringIO(answer)
    terminal.isatty = lambda: answer is not None  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", terminal)
    assert (main(["push", str(folder), "--repo", REPO, *words]), len(hub.commits)) == outcome
    assert hub.commits or hub.asked == []


# --- what the hub answers ---------------------------------------------------------------------------------------------


REFUSALS = [
    *[("create", 401, "does not show it to this token"), ("create", 403, "does not let this token do this")],
    *[("commit", 404, "has no such repository"), ("commit", 409, "changed meanwhile"), ("create", 0, "cannot be used")],
    *[("commit", 500, "the server answers 500"), ("commit", 400, "front matter of the card")],
]


@pytest.mark.promise(36)
@pytest.mark.parametrize(("at", "status", "sentence"), REFUSALS)
def test_each_refusal_is_one_clear_error_without_the_token(
    folder: Path, hub: Hub, caplog: pytest.LogCaptureFixture, at: str, status: int, sentence: str
) -> None:
    request = httpx.Request("POST", "https://hub", headers={"authorization": f"Bearer {WRITER}"})
    answer: Exception = HfHubHTTPError(f"no, {WRITER}", response=httpx.Response(status or 500, request=request))
    hub.refusals[at] = {0: httpx.ConnectError(WRITER), 400: ValueError(WRITER)}.get(status, answer)
    caplog.set_level(logging.DEBUG)
    with pytest.raises(UploadError, match=sentence) as caught:
        push(upload(folder))
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + caplog.text
    assert WRITER not in shown and "During handling" not in shown
    assert hub.commits == []


def test_no_token_and_offline_are_errors_of_their_own(folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = upload(folder)
    with monkeypatch.context() as patch, pytest.raises(UploadError, match="offline"):
        patch.setenv("HF_HUB_OFFLINE", "1")
        push(looked)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UploadError, match=r"(?s)no access token.*HF_TOKEN"):
        push(looked)
    assert hub.asked == []
