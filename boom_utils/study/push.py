"""Put one model on the Hugging Face hub, when somebody asks for it: no stage and no run ever does.

A folder goes up only if every file in it is a file of a model that the kit knows, or one that the kit itself wrote
beside a model and that stays here. All files are one commit, and weights are safetensors. The token is the business of
huggingface_hub (``HF_TOKEN`` or its login); no text of the server and no token gets into a message or a file.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from boom_utils.artifacts import RECORD
from boom_utils.cards import CARD
from boom_utils.config import load_profile
from boom_utils.data.files import TOKENS, hub_errors, offline
from boom_utils.errors import CheckpointError, ConfigError, UploadError, bullet_list
from boom_utils.model_folder import INDEX, RUN_FILES, check_folder, find_weight_files, model_files
from boom_utils.reporting.model_cards import named_card, read_card, scored_card
from boom_utils.reporting.results import Results
from boom_utils.study.gathering import numbers_of, study_facts
from boom_utils.study.graph import Study

STAYS = RUN_FILES | {RECORD, "mergekit_config.yaml"}
"""What the kit writes beside a model: how it was made, with keys and places of this workspace. The card says enough."""
MESSAGE = "Upload a model and its card"
_ON_HUB_ONLY = frozenset({".gitattributes"})
_TEXTS = frozenset({".json", ".txt", ".md", ".jinja", ""})


@dataclass(frozen=True)
class Model:
    """A model that may be published.

    Args:
        folder: Where it is.
        card: Text of its card.
        scored: The card has scores of a study.
    """

    folder: Path
    card: str
    scored: bool = False


@dataclass(frozen=True)
class Upload:
    """What would go to the hub.

    Args:
        model: The model.
        repo: ``owner/name``.
        private: Whether only its owner may see it.
        files: Paths in the folder, in order.
        stays: Files of the folder that do not go.
    """

    model: Model
    repo: str
    private: bool
    files: tuple[Path, ...]
    stays: tuple[str, ...]

    def text(self) -> str:
        """For people: repository, files with their sizes, and what stays."""
        sizes = {path.relative_to(self.model.folder).as_posix(): path.stat().st_size for path in self.files}
        sizes[CARD] = len(self.model.card.encode())
        rows = [*sorted(sizes.items()), ("together", sum(sizes.values()))]
        lines = [f"to {self.repo} ({'private' if self.private else 'PUBLIC: everybody can read and copy it'}):"]
        lines += [f"  {name:{max(map(len, sizes))}}  {size / 1e6:10.3f} MB" for name, size in rows]
        lines += [f"stays here: {', '.join(self.stays)}"] if self.stays else []
        lines += [f"scores: {'on the card' if self.model.scored else 'none on the card that this study made'}"]
        lines += ["licences: look at those of the data on the card (boom card); it states none of the weights:"]
        return "\n".join([*lines, "  add one if you know that you may"])


def find_model(name: str, profile: str) -> Model:
    """A model of a study, with its scores as far as they are made, or any model folder with a card.

    Nothing is made: a model has to be finished.

    Args:
        name: Of a model of the profile, or a folder (``./boom`` where a model has that name too).
        profile: Name of a profile, or a file.

    Raises:
        ConfigError: There is no such model or folder, it is not made yet, or the folder has no card.
    """
    study = Study(load_profile(profile))
    folder, artifact = study.model_folder(name)
    card = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).is_file() else f"# {name}\n"
    if artifact is not None:
        if (results := _results(study, name)) is not None:
            card = scored_card(card, results, name)
        return Model(folder, card, results is not None)
    if not (folder / CARD).is_file():
        fix = f"name a model of the profile, or write {CARD}: what the model is, and what it was trained on"
        raise ConfigError("this is no folder of a model with a card", where=folder, expected=CARD, fix=fix)
    return Model(folder, card)


def _results(study: Study, name: str) -> Results | None:
    """Scores of the model, and of the one it is compared with if these are made; None if its own are not."""
    behind = {model: study.results_behind([model]) for model in (name, study.whole.evaluation.reference)}
    made = study.workspace.find_all({one: study.node(one) for names in behind.values() for one in names})
    scored = [model for model in behind if model in study.whole.scored_models and {*behind[model]} <= {*made}]
    if name not in scored:
        return None
    found = {one: made[one] for model in scored for one in behind[model]}
    return Results(study.workspace.root, study_facts(study.whole, study.manifest, found), numbers_of(found))


def prepare(model: Model, repo: str, *, public: bool = False) -> Upload:
    """Look at everything that would go to the hub; asks no server.

    Raises:
        ConfigError: The repository's name is not valid, or the card is not readable.
        CheckpointError: The folder is no complete model of safetensors and known files, or one of its texts holds an
            access token or a place on this machine.
    """
    try:
        validate_repo_id(repo if "/" in repo else "")
    except HFValidationError:
        what = "this is not the name of a repository of the hub"
        raise ConfigError(what, expected="--repo OWNER/NAME", found=repo) from None
    from boom_utils.study.runner import scrub  # papermill takes seconds to import

    check_folder(folder := model.folder)
    wanted = {folder / CARD, *find_weight_files(folder)[0], *model_files(folder), folder / INDEX}
    found = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    stays = [path for path in found if path.relative_to(folder).as_posix() in STAYS]
    known = [path for path in found if path in wanted and not path.is_symlink() and path.is_file()]
    if strange := [path for path in found if path not in known and path not in stays]:
        names = [f"{path.relative_to(folder)}{' (a link)' if path.is_symlink() else ''}" for path in strange]
        raise CheckpointError(
            "the folder holds what is no file of a model" + bullet_list(names),
            where=folder,
            fix="copy the model's own files to a new folder, and push that",
        )
    card = named_card(model.card, repo)
    read_card(card)
    texts = {path.name: path.read_text(encoding="utf-8") for path in known if path.suffix in _TEXTS}
    private = [name for name, text in (*texts.items(), (CARD, card)) if scrub(text) != text]
    if private:
        raise CheckpointError(
            "an access token, or a place on this machine, is written in a file to upload",
            where=folder,
            found=", ".join(dict.fromkeys(private)),
            fix="take it out of the file",
        )
    files = tuple(path for path in known if path != folder / CARD)
    return Upload(replace(model, card=card), repo, not public, files, tuple(path.name for path in stays))


def push(upload: Upload) -> str:
    """Make the repository if there is none, and commit all files at once.

    Returns:
        Address of the commit.

    Raises:
        UploadError: There is no token, the hub refuses or cannot be reached, the repository is public and was meant to
            be private, or holds files that are not this model's.
    """
    import huggingface_hub

    if offline():
        raise UploadError("huggingface_hub is offline", fix="unset HF_HUB_OFFLINE, and start again")
    if not huggingface_hub.get_token():
        fix = f"make one that may write ({TOKENS}); set HF_TOKEN to it, or `hf auth login`"
        raise UploadError("there is no access token", fix=fix)
    api = huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT", "").rstrip("/") or None)
    repo, folder = upload.repo, upload.model.folder
    files: dict[str, Path | bytes] = {path.relative_to(folder).as_posix(): path for path in upload.files}
    files[CARD] = upload.model.card.encode()
    with hub_errors(repo, UploadError):
        api.create_repo(repo, private=upload.private, exist_ok=True)
        there = api.model_info(repo)
    if upload.private and not there.private:
        fix = "--public if that is meant; or name another repository"
        raise UploadError("the repository is public", where=repo, fix=fix)
    if others := {one.rfilename for one in there.siblings or ()} - {*files} - _ON_HUB_ONLY:
        raise UploadError(
            "the repository holds files that are not this model's" + bullet_list(sorted(others)),
            where=repo,
            fix="name a new repository, or delete these on the hub",
        )
    additions = [huggingface_hub.CommitOperationAdd(name, content) for name, content in files.items()]
    try:
        with hub_errors(repo, UploadError):
            commit = api.create_commit(repo, additions, commit_message=MESSAGE, parent_commit=there.sha)
    except ValueError:  # of the library, when the hub refuses the card
        fix = "boom card shows it; correct it"
        raise UploadError("the hub does not accept the front matter of the card", where=CARD, fix=fix) from None
    return str(commit.commit_url)
