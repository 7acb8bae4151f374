"""Plans, losses and the loop, against the rules of FlagEmbedding's same-dataset batches and naive references."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TEXTS, tiny_config
from hypothesis import given
from hypothesis import strategies as st

from boom_utils.config import TrainingConfig
from boom_utils.data.examples import TrainingExample
from boom_utils.data.tokens import TextRules, TokenTable, write_tokens
from boom_utils.errors import DataError, TrainingError
from boom_utils.models import Encoder
from boom_utils.training.base_model import random_encoder
from boom_utils.training.loop import TrainingJob, batch_loss, train
from boom_utils.training.losses import info_nce
from boom_utils.training.plan import (
    Batch,
    BatchPlan,
    DatasetRules,
    PlanInput,
    PlanOptions,
    draw_negatives,
    plan_batches,
)

OPTIONS = PlanOptions(per_device_train_batch_size=4, train_group_size=3, seed=1)
CONFIG = TrainingConfig(
    learning_rate=1e-2,
    per_device_train_batch_size=4,
    temperature=0.1,
    train_group_size=3,
    query_max_len=40,
    passage_max_len=40,
    tokens_per_micro_batch=64,
)


def data(rows: int, rules: DatasetRules | None = None, negatives: int = 5, positives: int = 2) -> PlanInput:
    full = np.full(rows, positives), np.full(rows, negatives)
    return PlanInput(rules or DatasetRules(), np.arange(rows, dtype=np.uint32), *full)


def same(left: BatchPlan, right: BatchPlan) -> bool:
    pairs = zip(left.batches, right.batches, strict=True)
    return all(
        a.dataset == b.dataset
        and all(np.array_equal(getattr(a, n), getattr(b, n)) for n in ("rows", "positives", "negatives"))
        for a, b in pairs
    )


# --- the plan ---------------------------------------------------------------------------------------------------------


@pytest.mark.promise(10)
@given(st.dictionaries(st.sampled_from("abcd"), st.integers(4, 40), min_size=1), st.integers(0, 5))
def test_every_row_is_in_at_most_one_batch_and_only_the_last_incomplete_batch_is_left_out(
    sizes: dict[str, int], seed: int
) -> None:
    plan = plan_batches({name: data(size) for name, size in sizes.items()}, replace(OPTIONS, seed=seed))
    for name, size in sizes.items():
        rows = [row for batch in plan.batches if batch.dataset == name for row in batch.rows.tolist()]
        assert len(rows) == len(set(rows)) == size - size % 4
        assert plan.left_out[name] == size % 4


def test_batches_of_all_datasets_are_shuffled_together() -> None:
    plan = plan_batches({"a": data(80), "b": data(80)}, OPTIONS)
    order = "".join(batch.dataset for batch in plan.batches)
    assert "ab" in order
    assert "ba" in order


def test_symmetric_types_have_half_as_many_queries_a_batch() -> None:
    plan = plan_batches({"a": data(40), "s": data(40, DatasetRules(halve_batch=True))}, OPTIONS)
    assert {batch.dataset: len(batch.rows) for batch in plan.batches} == {"a": 4, "s": 2}


def test_a_global_batch_has_as_many_queries_as_all_processes_together() -> None:
    plan = plan_batches({"a": data(40)}, replace(OPTIONS, processes=2))
    assert {len(batch.rows) for batch in plan.batches} == {8}


@pytest.mark.parametrize(
    ("rule", "first_row", "expected"),
    [
        ("train_group_size", 9, 3),
        ("one_negative", 9, 2),
        ("first_row", 1, 2),
        ("first_row", 9, 3),
        ("positive_only", 0, 1),
    ],
)
def test_the_group_size_follows_the_type(rule: str, first_row: int, expected: int) -> None:
    plan = plan_batches({"a": data(8, DatasetRules(group=rule), negatives=first_row)}, OPTIONS)  # type: ignore[arg-type]
    assert {batch.group_size for batch in plan.batches} == {expected}


@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(0, 15), st.integers(0, 9))
def test_negatives_are_drawn_without_replacement_and_repeated_only_when_too_few(
    counts: list[int], size: int, seed: int
) -> None:
    drawn = draw_negatives(np.array(counts), size, np.random.default_rng(seed))
    assert drawn.shape == (len(counts), size)
    for row, count in zip(drawn.tolist(), counts, strict=True):
        most = -(-size // count) if size else 0
        assert all(0 <= index < count for index in row)
        assert max((row.count(index) for index in row), default=0) <= most


def test_every_negative_is_about_equally_likely() -> None:
    drawn = draw_negatives(np.full(6000, 6), 2, np.random.default_rng(0))
    assert np.abs(np.bincount(drawn.ravel().astype(int)) / 12000 - 1 / 6).max() < 0.02


def test_adding_a_dataset_leaves_the_batches_of_the_others_as_they_are() -> None:
    alone = plan_batches({"a": data(40)}, OPTIONS)
    both = plan_batches({"a": data(40), "b": data(40)}, OPTIONS)
    assert sorted(batch.rows.tolist() for batch in alone.batches) == sorted(
        batch.rows.tolist() for batch in both.batches if batch.dataset == "a"
    )


def test_only_rows_of_the_subset_are_planned() -> None:
    some = replace(data(40), rows=np.array([3, 9, 11, 20, 33, 34, 35, 36], dtype=np.uint32))
    rows = [row for batch in plan_batches({"a": some}, OPTIONS).batches for row in batch.rows.tolist()]
    assert sorted(rows) == some.rows.tolist()


@pytest.mark.promise(10)
def test_a_plan_comes_back_from_its_file_unchanged_and_with_the_same_bytes(tmp_path: Path) -> None:
    plan = plan_batches({"a": data(40), "b": data(13, DatasetRules(group="one_negative"))}, OPTIONS)
    plan.save(tmp_path / "one.npz")
    plan.save(tmp_path / "two.npz")
    loaded = BatchPlan.load(tmp_path / "one.npz")
    assert same(plan, loaded)
    assert (loaded.left_out, loaded.options) == (plan.left_out, plan.options)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


def test_a_damaged_plan_is_an_error(tmp_path: Path) -> None:
    plan_batches({"a": data(40)}, OPTIONS).save(tmp_path / "plan.npz")
    (tmp_path / "plan.npz").write_bytes((tmp_path / "plan.npz").read_bytes()[:200])
    with pytest.raises(DataError, match="not a batch plan"):
        BatchPlan.load(tmp_path / "plan.npz")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (data(0, positives=1), "has no rows"),
        (data(8, positives=0), "no positive"),
        (data(8, negatives=0), "no negative"),
        (data(3), "no dataset fills a single batch"),
    ],
)
def test_data_that_cannot_be_planned_is_an_error(broken: PlanInput, message: str) -> None:
    with pytest.raises(DataError, match=message):
        plan_batches({"a": broken}, OPTIONS)


# --- the losses -------------------------------------------------------------------------------------------------------


def naive_loss(queries: np.ndarray, passages: np.ndarray, temperature: float, in_batch: bool) -> float:
    """InfoNCE as two loops in float64."""
    group, losses = len(passages) // len(queries), []
    for number, query in enumerate(queries):
        own = range(number * group, (number + 1) * group)
        candidates = range(len(passages)) if in_batch else own
        scores = {index: float(query @ passages[index]) / temperature for index in candidates}
        losses.append(np.log(sum(np.exp(score) for score in scores.values())) - scores[own[0]])
    return float(np.mean(losses))


@pytest.mark.promise(15)
@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_the_loss_is_that_of_two_loops_in_float64(in_batch: bool, group: int) -> None:
    rng = np.random.default_rng(group)
    queries, passages = rng.normal(size=(5, 8)), rng.normal(size=(5 * group, 8))
    ours = info_nce(torch.tensor(queries), torch.tensor(passages), 0.7, in_batch_negatives=in_batch)
    assert float(ours) == pytest.approx(naive_loss(queries, passages, 0.7, in_batch), abs=2e-6)


def test_without_in_batch_negatives_other_rows_do_not_matter() -> None:
    rng = np.random.default_rng(0)
    queries, passages = torch.tensor(rng.normal(size=(3, 4))), torch.tensor(rng.normal(size=(6, 4)))
    rows = [info_nce(queries[i : i + 1], passages[2 * i : 2 * i + 2], 1.0, in_batch_negatives=False) for i in range(3)]
    together = info_nce(queries, passages, 1.0, in_batch_negatives=False)
    assert float(together) == pytest.approx(float(torch.stack(rows).mean()), abs=1e-6)


def test_the_loss_is_that_of_sentence_transformers(encoder_folder: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    rng = np.random.default_rng(1)
    queries, positives, negatives = (
        torch.nn.functional.normalize(torch.tensor(rng.normal(size=(4, 32)), dtype=torch.float32), dim=-1)
        for _ in range(3)
    )
    peer = MultipleNegativesRankingLoss(SentenceTransformer(str(encoder_folder), device="cpu"), scale=50.0)
    theirs = peer.compute_loss_from_embeddings([queries, positives, negatives], None)
    ours = info_nce(queries, torch.stack([positives, negatives], dim=1).flatten(0, 1), 0.02)
    assert float(ours) == pytest.approx(float(theirs), abs=1e-5)


def test_passages_that_do_not_divide_into_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="5 passages do not divide"):
        info_nce(torch.zeros(2, 3), torch.zeros(5, 3), 1.0)


# --- the loop ---------------------------------------------------------------------------------------------------------


def toy_job(encoder: Encoder, folder: Path, in_batch: bool = True, config: TrainingConfig = CONFIG) -> TrainingJob:
    """Eight examples whose positive repeats the query; two long, six short."""
    examples = [
        TrainingExample(text, (f"{text} {text}" * (1 + 2 * (number % 4 == 0)),), (TEXTS[number - 1], TEXTS[number - 2]))
        for number, text in enumerate(TEXTS)
    ]
    path = folder / "toy.arrow"
    write_tokens(path, examples, TextRules("Instruct: find it\nQuery: ", "", 40, 40), encoder.tokenize)
    table, rules = TokenTable(path), DatasetRules(in_batch_negatives=in_batch)
    given = PlanInput(rules, np.arange(8, dtype=np.uint32), table.positive_counts, table.negative_counts)
    options = PlanOptions(config.per_device_train_batch_size, 3, config.num_train_epochs)
    return TrainingJob({"toy": table}, {"toy": rules}, plan_batches({"toy": given}, options), config)


@pytest.mark.parametrize("in_batch", [True, False])
def test_loss_and_gradient_are_those_of_one_text_at_a_time(encoder: Encoder, tmp_path: Path, in_batch: bool) -> None:
    job = toy_job(encoder, tmp_path, in_batch)
    batch = job.plan.batches[0]
    loss, _ = batch_loss(encoder, batch, job)
    loss.backward()
    ours = [parameter.grad.clone() for parameter in encoder.transformer.parameters()]
    encoder.transformer.zero_grad()
    table = job.tokens["toy"]
    queries = torch.cat([encoder.embed([table.query(int(row))]) for row in batch.rows])
    groups = [
        [table.positive(int(row), int(positive)), *(table.negative(int(row), int(draw)) for draw in negatives)]
        for row, positive, negatives in zip(batch.rows, batch.positives, batch.negatives, strict=True)
    ]
    passages = torch.cat([encoder.embed([text]) for group in groups for text in group])
    reference = info_nce(queries, passages, 0.1, in_batch_negatives=in_batch)
    reference.backward()
    assert loss.item() == pytest.approx(reference.item(), abs=1e-5)
    theirs = [parameter.grad for parameter in encoder.transformer.parameters()]
    distance = sum(float((a - b).square().sum()) for a, b in zip(ours, theirs, strict=True)) ** 0.5
    assert distance < 1e-5 * sum(float(b.square().sum()) for b in theirs) ** 0.5


@pytest.mark.promise(18)
def test_the_same_seed_gives_the_same_weights_byte_for_byte(tmp_path: Path) -> None:
    folders = []
    for name in ("one", "two"):
        encoder = random_encoder(TEXTS, tiny_config(), {})
        (tmp_path / name).mkdir()
        train(encoder, toy_job(encoder, tmp_path / name), tmp_path / name / "log.jsonl")
        encoder.save(tmp_path / name / "model")
        folders.append(tmp_path / name)
    for file in ("log.jsonl", "model/model.safetensors"):
        assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes()


def test_training_lowers_the_loss_and_logs_every_step(encoder: Encoder, tmp_path: Path) -> None:
    job = toy_job(encoder, tmp_path, config=CONFIG.model_copy(update={"num_train_epochs": 10}))
    facts = train(encoder, job, tmp_path / "log.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(lines) == facts["steps"] == 20
    assert {"step", "dataset", "loss", "learning_rate", "grad_norm", "tokens", "queries"} <= set(lines[0])
    assert np.mean([line["loss"] for line in lines[-4:]]) < 0.5 * np.mean([line["loss"] for line in lines[:4]])


def test_the_learning_rate_warms_up_linearly_and_decays_to_nearly_zero(encoder: Encoder, tmp_path: Path) -> None:
    job = toy_job(encoder, tmp_path, config=CONFIG.model_copy(update={"num_train_epochs": 10}))
    train(encoder, job, tmp_path / "log.jsonl")
    rates = [json.loads(line)["learning_rate"] / 1e-2 for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    expected = [0.0, 0.5, *[(20 - step) / 18 for step in range(2, 20)]]
    assert rates == pytest.approx(expected)


def test_gradients_are_clipped(encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []
    step = torch.optim.AdamW.step

    def spy(self: torch.optim.AdamW, *args: object, **kwargs: object) -> object:
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.stack([gradient.norm() for gradient in gradients]).norm()))
        return step(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    train(
        encoder, toy_job(encoder, tmp_path, config=CONFIG.model_copy(update={"max_grad_norm": 0.01})), tmp_path / "log"
    )
    assert max(norms) <= 0.01 + 1e-6


@pytest.mark.promise(14)
def test_a_loss_that_is_not_finite_stops_before_the_optimizer_step(encoder: Encoder, tmp_path: Path) -> None:
    job = toy_job(encoder, tmp_path)
    with torch.no_grad():
        encoder.transformer.norm.weight[0] = float("nan")
    before = {name: value.clone() for name, value in encoder.transformer.state_dict().items()}
    with pytest.raises(TrainingError, match=r"(?s)loss is nan.*step 0, dataset 'toy', rows \["):
        train(encoder, job, tmp_path / "log.jsonl")
    after = encoder.transformer.state_dict()
    assert all(torch.equal(before[name], after[name]) or "norm.weight" in name for name in before)
    assert not (tmp_path / "log.jsonl").exists()


def test_a_plan_of_other_data_is_refused(encoder: Encoder, tmp_path: Path) -> None:
    job = toy_job(encoder, tmp_path)
    foreign = Batch("toy", np.array([99], dtype=np.uint32), np.array([0]), np.zeros((1, 2), dtype=np.uint32))
    with pytest.raises(TrainingError, match="does not belong to these tokens"):
        batch_loss(encoder, foreign, job)


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_prompts_stand_before_queries_and_on_passages_only_where_asked(encoder: Encoder, tmp_path: Path) -> None:
    example = TrainingExample("sort the values", ("order them",), ("draw a line",))
    for passage_prompt in ("", "Instruct: find it\nQuery: "):
        write_tokens(
            tmp_path / "toy.arrow",
            [example],
            TextRules("Instruct: find it\nQuery: ", passage_prompt, 40, 40),
            encoder.tokenize,
        )
        table = TokenTable(tmp_path / "toy.arrow")
        texts = [
            encoder.tokenizer.decode(ids, skip_special_tokens=True) for ids in (table.query(0), table.positive(0, 0))
        ]
        assert texts == ["Instruct: find it\nQuery: sort the values", f"{passage_prompt}order them"]


def test_a_prompt_that_leaves_no_room_for_the_text_is_an_error(encoder: Encoder, tmp_path: Path) -> None:
    rules = TextRules("Instruct: a very long instruction indeed\nQuery: ", "", 8, 40)
    with pytest.raises(DataError, match=r"(?s)leaves no room.*query_max_len = 8"):
        write_tokens(tmp_path / "toy.arrow", [TrainingExample("a", ("b",))], rules, encoder.tokenize)
