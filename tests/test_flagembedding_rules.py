"""The rules of FlagEmbedding's same-dataset batches that the authors train with, each on a small fixture that names it.

They stand in AbsDataset.AbsEmbedderSameDatasetTrainDataset and AbsModeling of FlagEmbedding, whose files hide them in
folder names and type strings; here they are a manifest's `Dataset` and the plan made from it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TEXTS, TOY

from boom_utils.data.examples import read_examples
from boom_utils.data.manifest import Dataset
from boom_utils.data.tokens import TextRules, TokenTable, write_tokens
from boom_utils.models import Encoder
from boom_utils.training.gradients import batch_texts
from boom_utils.training.losses import info_nce
from boom_utils.training.plan import BatchPlan, DatasetRules, PlanInput, PlanOptions, plan_batches

OPTIONS = PlanOptions(per_device_train_batch_size=4, train_group_size=4, seed=3)
PROMPT = "Instruct: find it\nQuery: "


def rows(count: int, negatives: int = 5, kind: str = "normal") -> list[dict[str, Any]]:
    return [
        {
            "query": f"query {number} {TEXTS[number % 8]}",
            "pos": [f"positive {number}", f"second {number}"],
            "neg": [f"negative {number} {other}" for other in range(negatives)],
            "prompt": "find it",
            "type": kind,
            "pos_scores": [0.9, 0.8],
            "neg_scores": [0.1] * negatives,
        }
        for number in range(count)
    ]


def declared(kind: str, **changes: Any) -> Dataset:
    """A dataset of that FlagEmbedding type, as a manifest declares it."""
    meaning = {
        "halve_batch": kind.startswith("symmetric"),
        "instruction_on_passages": kind in ("symmetric_sts", "symmetric_clustering"),
        "group_size": {"only_1neg": "one_negative", "symmetric_class": "first_row"}.get(kind, "train_group_size"),
    }
    given = {"id": "a", "family": "retrieval", "role": "train", "prompt": "Find the text.", "example_type": kind}
    described = {"in_batch_negatives": True, "description": "A fixture.", **meaning, **changes}
    return Dataset.model_validate({**given, **described})


def table_of(encoder: Encoder, folder: Path, given: list[dict[str, Any]], kind: str = "normal") -> TokenTable:
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")
    passage_prompt = PROMPT if declared(kind).instruction_on_passages else ""
    rules = TextRules(PROMPT, passage_prompt, 48, 48)
    write_tokens(folder / "a.arrow", read_examples(path), rules, encoder.tokenize)
    return TokenTable(folder / "a.arrow")


def planned(table: TokenTable, kind: str = "normal", options: PlanOptions = OPTIONS) -> BatchPlan:
    dataset = declared(kind)
    rules = DatasetRules(dataset.in_batch_negatives, dataset.halve_batch, dataset.group_size)
    every = np.arange(len(table), dtype=np.uint32)
    return plan_batches({"a": PlanInput(rules, every, table.positive_counts, table.negative_counts)}, options)


def text(encoder: Encoder, ids: np.ndarray) -> str:
    return str(encoder.tokenizer.decode(ids.tolist(), skip_special_tokens=True))


def test_rule_2_a_batch_is_of_one_dataset_and_each_epoch_drops_its_own_last_incomplete_batch(
    encoder: Encoder, tmp_path: Path
) -> None:
    table = table_of(encoder, tmp_path, rows(22))
    plan = planned(table, options=replace(OPTIONS, num_train_epochs=2, processes=2))
    assert [len(batch.rows) for batch in plan.batches] == [8] * 4
    epochs = [np.concatenate([batch.rows for batch in plan.batches[start : start + 2]]) for start in (0, 2)]
    assert all(len(set(epoch)) == 16 for epoch in epochs)
    assert set(epochs[0]) != set(epochs[1]), "the rows left out are drawn anew"
    assert plan.left_out == {"a": 12}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("normal", 4), ("only_1neg", 4), ("symmetric_sts", 2), ("symmetric_class", 2), ("symmetric_clustering", 2)],
)
def test_rule_3_symmetric_types_halve_the_batch(encoder: Encoder, tmp_path: Path, kind: str, expected: int) -> None:
    assert {len(batch.rows) for batch in planned(table_of(encoder, tmp_path, rows(16)), kind).batches} == {expected}


@pytest.mark.parametrize(
    ("kind", "negatives", "expected"),
    [
        ("normal", 9, 4),
        ("only_1neg", 9, 2),
        ("symmetric_class", 2, 3),
        ("symmetric_class", 9, 4),
        ("symmetric_sts", 9, 4),
    ],
)
def test_rule_4_the_group_size_is_by_type(
    encoder: Encoder, tmp_path: Path, kind: str, negatives: int, expected: int
) -> None:
    plan = planned(table_of(encoder, tmp_path, rows(16, negatives)), kind)
    assert {batch.group_size for batch in plan.batches} == {expected}


def test_rule_5_any_positive_and_negatives_without_replacement_their_list_repeated_when_too_short(
    encoder: Encoder, tmp_path: Path
) -> None:
    many = planned(table_of(encoder, tmp_path, rows(400)))
    positives = np.concatenate([batch.positives for batch in many.batches])
    assert abs(positives.mean() - 0.5) < 0.1
    assert all(len(set(drawn)) == 3 for batch in many.batches for drawn in batch.negatives.tolist())
    few = planned(table_of(encoder, tmp_path, rows(16, negatives=2)))
    assert all(set(drawn) == {0, 1} for batch in few.batches for drawn in batch.negatives.tolist())


@pytest.mark.parametrize("kind", ["normal", "symmetric_class", "symmetric_sts", "symmetric_clustering"])
def test_rule_6_queries_carry_the_instruction_and_passages_only_for_sts_and_clustering(
    encoder: Encoder, tmp_path: Path, kind: str
) -> None:
    table = table_of(encoder, tmp_path, rows(4), kind)
    assert text(encoder, table.query(0)).startswith(PROMPT + "query 0")
    both = kind in ("symmetric_sts", "symmetric_clustering")
    assert text(encoder, table.positive(1, 0)) == (PROMPT if both else "") + "positive 1"
    assert text(encoder, table.negative(1, 2)) == (PROMPT if both else "") + "negative 1 2"


def test_rule_7_without_in_batch_negatives_a_row_sees_its_own_group_only(encoder: Encoder, tmp_path: Path) -> None:
    table = table_of(encoder, tmp_path, rows(8))
    batch = planned(table).batches[0]
    queries, passages = (encoder.embed(texts).detach() for texts in batch_texts(batch, {"a": table}))
    own = [info_nce(queries[n : n + 1], passages[4 * n : 4 * n + 4], 0.02, in_batch_negatives=False) for n in range(4)]
    whole = info_nce(queries, passages, 0.02, in_batch_negatives=False)
    assert float(whole) == pytest.approx(float(torch.stack(own).mean()), abs=1e-6)


def test_rule_8_across_devices_every_query_is_compared_with_the_passages_of_all(
    encoder: Encoder, tmp_path: Path
) -> None:
    """The gathered order of two devices is that of the global batch, so the loss is that of one device with both."""
    table = table_of(encoder, tmp_path, rows(16))
    batch = planned(table, options=replace(OPTIONS, processes=2)).batches[0]
    shares = [batch_texts(batch.share(rank, 2), {"a": table}) for rank in (0, 1)]
    gathered = [encoder.embed([ids for share in shares for ids in share[side]]).detach() for side in (0, 1)]
    whole = [encoder.embed(texts).detach() for texts in batch_texts(batch, {"a": table})]
    assert float(info_nce(*gathered, 0.02)) == pytest.approx(float(info_nce(*whole, 0.02)), abs=1e-5)
    assert TOY.negatives_cross_device, "as in the authors' script"
