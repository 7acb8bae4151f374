"""Model cards: what the hub reads, what a reader runs, and that a card says the same of the same model."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import TEXTS, tiny_config
from huggingface_hub import ModelCard
from safetensors.numpy import load_file

from boom_utils.cards import CARD, TEMPLATE, Card, Cost, Provenance, front_matter, training_data, write_card
from boom_utils.data.manifest import load_manifest, manifest_names
from boom_utils.merging.recipe import load_recipe, make_recipe
from boom_utils.merging.writer import MergeOptions, merge
from boom_utils.model_folder import EncoderSpec, write_spec
from boom_utils.training.base_model import random_encoder

PROMPTS = {"nq": "Instruct: find it\nQuery: ", "own": "query: ", "bare": ""}


def cost(seed: int, passes: float | None = None, **rows: int) -> Cost:
    return Cost(seed=seed, steps=10, examples=1000, tokens=5000, passes=passes, rows=rows)


def provenance(manifest: str, trained: dict[str, Cost]) -> Provenance:
    loaded = load_manifest(manifest)
    whole = Provenance(data=training_data(loaded, [one.id for one in loaded.datasets]), trained=trained)
    return Provenance.model_validate(whole.model_dump(mode="json"))  # as another process is given it


def blocks(card: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", card, flags=re.MULTILINE | re.DOTALL)


def sections(card: str) -> dict[str, str]:
    parts = re.split(r"^## (.+)\n", card, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three members with cards."""
    folder = tmp_path_factory.mktemp("members")
    for number, name in enumerate(("s20", "s40", "full")):
        encoder = random_encoder(TEXTS, tiny_config(seed=0), PROMPTS)
        with torch.no_grad():
            encoder.transformer.norm.weight += number / 10
        encoder.save(folder / name)
    return folder


def written(members: Path, tmp_path: Path, spec: EncoderSpec | None = None, **said: Any) -> str:
    out = shutil.copytree(members / "full", tmp_path / "model", dirs_exist_ok=True)
    if spec is not None:
        write_spec(out, spec, 32)
    write_card(out, Card("full", "A member.", {}, **said))
    return (out / CARD).read_text(encoding="utf-8")


def test_a_card_says_what_is_known_of_the_model_its_prompts_data_and_cost(members: Path, tmp_path: Path) -> None:
    trained = {"s20": cost(1, 0.2, stsbenchmark=5, banking77=1200), "full": cost(2, 1.0, stsbenchmark=30)}
    found = sections(written(members, tmp_path, merged=True, provenance=provenance("open_text", trained)))
    count = sum(weight.size for weight in load_file(members / "full" / "model.safetensors").values())
    for text in (f"| parameters | {count:,} |", "| dimensions | 32 |", "| pooling | last token |", "| 48 tokens"):
        assert text in found["Model"].replace("max length | ", "")
    shown = yaml.safe_load(blocks(found["Prompts"], "yaml")[0])
    assert shown["instructions"] == {"nq": "find it"}
    assert shown["query_template"].format(instruction="find it") == PROMPTS["nq"]
    assert shown["prompts"] == {"own": "query: "}
    assert re.search(r"\| stsbenchmark \| sts \| 30 \|", found["Data"])
    assert re.search(r"\| banking77 \| classification \| 1,200 \|", found["Data"])
    assert load_manifest("open_text").dataset("banking77").place.licence in found["Data"]
    assert "data_manifests/cards/open_text.md" in found["Data"]
    assert "| all |  | 20 | 2,000 | 10,000 | 1.2 |" in found["Cost"]
    assert "seed 1, 2" in found["Limits"]
    assert "other languages" in found["Limits"]
    (cited,) = blocks(TEMPLATE.read_text(encoding="utf-8"), "bibtex")
    assert cited in found["Citation"]


@pytest.mark.parametrize(("name", "merged"), [(one, n % 2 == 0) for n, one in enumerate(manifest_names())])
def test_the_front_matter_is_what_the_hub_library_reads_back(name: str, merged: bool) -> None:
    loaded = load_manifest(name)
    trained = {"full": cost(1, **{one.id: 3 for one in loaded.datasets})}
    names = ["sentence-transformers/all-MiniLM-L6-v2", "s20", "../a place/s40", "base+adapter"]
    front = front_matter(
        Card("x", "", {}, base_models=names, merged=merged, provenance=provenance(name, trained))
    ).to_dict()
    assert front["base_model"] == names[:2]
    assert front["base_model_relation"] == ("merge" if merged else "finetune")
    assert ModelCard(f"---\n{yaml.safe_dump(front)}---\n\n# x\n").data.to_dict() == front
    assert all(re.fullmatch(r"[a-z]{2,3}|code", language) for language in front["language"])
    hubs = {one.hub.repo for one in loaded.datasets if one.hub}
    assert set(front.get("datasets", [])) == hubs


def test_the_recipe_on_a_card_makes_the_same_merge_beside_folders_of_these_names(members: Path, tmp_path: Path) -> None:
    models = [
        {"model": str(members / name), "parameters": {"weight": weight}}
        for name, weight in (("s20", 0.2), ("s40", 0.4), ("full", 1.0))
    ]
    recipe = make_recipe({"merge_method": "multislerp", "models": models, "dtype": "float32"})
    names = {members / name: name for name in ("s20", "s40", "full")}
    merge(recipe, tmp_path / "boom", MergeOptions(names))
    card = (tmp_path / "boom" / CARD).read_text(encoding="utf-8")
    (copied,) = blocks(sections(card)["Merge recipe"], "yaml")
    (members / "recipe.yaml").write_text(copied, encoding="utf-8")
    merge(load_recipe(members / "recipe.yaml"), tmp_path / "again", MergeOptions(names))
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("boom", "again"))
    assert one == two
    assert (tmp_path / "again" / CARD).read_text(encoding="utf-8") == card
    assert ModelCard(card).data.base_model == ["s20", "s40", "full"]


def test_the_snippet_of_a_card_runs_with_and_without_prompts(
    members: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = written(members, tmp_path / "bare", EncoderSpec("mean", False, 16, {"nq": ""}))
    assert "Nothing is put before queries" in bare and "| normalisation | none |" in bare
    assert "prompt_name" not in bare and "other instructions" not in bare
    for card, folder in ((bare, tmp_path / "bare"), (written(members, tmp_path), tmp_path)):
        (snippet,) = blocks(card, "python")
        exec(snippet.replace("OWNER/NAME", str(folder / "model")), {})
        assert capsys.readouterr().out.startswith("tensor([[")


def test_a_card_of_what_is_no_encoder_leaves_out_what_nobody_knows(tmp_path: Path) -> None:
    tmp_path.joinpath("modules.json").write_text('[{"path": "", "type": "x.Transformer"}]', encoding="utf-8")
    write_card(tmp_path, Card("merged", "Merged.", {"a|b": "c\nd"}, parents=["a"], merged=True))
    card = (tmp_path / CARD).read_text(encoding="utf-8")
    assert not {"Model", "Use", "Prompts", "Cost"} & {*sections(card)}
    assert "said on their own cards" in card
    assert "| a\\|b | c d |" in card
