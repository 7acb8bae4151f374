"""Write a synthetic fine-tuning workload that any trainer can run batch for batch, from a fixed seed.

    python benchmarks/peers/make_workload.py OUT [--steps 48] [--batch 16] [--negatives 3] [--seed 0]

The folder holds

- ``data/<dataset>.jsonl``: rows ``{"query", "pos", "neg", "prompt", "type"}``; the names of datasets whose queries meet
  only their own negatives end in ``_no_in_batch_neg`` (the convention of FlagEmbedding),
- ``plan.jsonl``: one line a step, ``{"dataset", "rows", "in_batch_neg"}``, the exact batches in order,
- ``models/{qwen3_tiny,minilm}``: configuration, random weights and a tokenizer trained on the texts,
- ``meta.json``: temperature, learning rate, formats and text lengths in tokens.

Texts are words of an invented language with Zipf frequencies and topics, with the length spread of real retrieval
data: a trainer's speed depends on lengths, not on meaning. The same arguments give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]

WORDS, TOPICS, TOPIC_WORDS, LABELS = 9000, 160, 40, 24
COMMON_WORDS = 300  # the most frequent words belong to no topic
ONSETS = [*"bcdfghklmnprstvw", "br", "cl", "dr", "gr", "st", "tr", "pl", "sh", "th"]
NUCLEI = [*"aeiou", "ai", "ea", "io", "ou"]
CODAS = ["", *"nrstlm", "nd", "st", "ck"]

SHARES = {"retrieval": 0.5, "sts": 0.15, "classification": 0.2, "clustering": 0.15}  # of all steps
PROMPTS = {
    "retrieval": "Given a web search query, retrieve relevant passages that answer the query.",
    "sts": "Retrieve semantically similar text.",
    "classification": "Classify the intent of the given user message into its category.",
    "clustering": "Identify the topic or theme of the given titles.",
}
QUERY_FORMAT = "Instruct: {prompt}\nQuery: {query}"
SYMMETRIC_TYPES = ["symmetric_sts", "symmetric_clustering"]  # their passages carry the prompt as well

END, PAD, CLS, SEP = "<|endoftext|>", "<|pad|>", "[CLS]", "[SEP]"  # in the order of their ids, 0 to 3


@dataclass(frozen=True)
class WorkloadOptions:
    """What a workload is made of.

    Attributes:
        steps: Batches in the plan, over all datasets.
        batch: Queries a batch.
        negatives: Negatives a query.
        seed: Seed of texts, plan and weights.
        max_length: Tokens a text is cut to.
        vocabulary: Rows of the models' embedding tables; at most so many tokens are trained.
        models: Whether to write the models too, which needs torch and transformers.

    Raises:
        ValueError: If a number is out of range.
    """

    steps: int = 48
    batch: int = 16
    negatives: int = 3
    seed: int = 0
    max_length: int = 256
    vocabulary: int = 8192
    models: bool = True

    def __post_init__(self) -> None:
        if self.steps < len(SHARES):
            raise ValueError(f"steps is {self.steps}; every one of the {len(SHARES)} datasets needs a step")
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}; it must be at least 1")
        if not 1 <= self.negatives < LABELS:
            raise ValueError(f"negatives is {self.negatives}; with {LABELS} labels it must be 1 to {LABELS - 1}")


@dataclass(frozen=True)
class Dataset:
    """Rows, and whether the other queries' passages of a batch count as negatives."""

    rows: list[Row]
    in_batch_negatives: bool


class PseudoLanguage:
    """Words of one to three syllables with Zipf frequencies, and topics that prefer words of their own.

    Args:
        rng: Generator of all draws. The order of the draws is part of the format: another order gives other bytes.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.words = self._invent_words()
        frequencies = 1 / np.arange(1, WORDS + 1) ** 1.05
        self.frequencies = frequencies / frequencies.sum()
        rare = np.arange(COMMON_WORDS, WORDS)
        self.topic_words = [rng.choice(rare, TOPIC_WORDS, replace=False) for _ in range(TOPICS)]

    def _invent_words(self) -> list[str]:
        """``WORDS`` different words, the most frequent first."""
        words: dict[str, None] = {}  # a set that keeps its order
        while len(words) < WORDS:
            syllables = int(self.rng.choice([1, 2, 3], p=[0.35, 0.45, 0.2]))
            words["".join(self._syllable() for _ in range(syllables))] = None
        return list(words)

    def _syllable(self) -> str:
        return str(self.rng.choice(ONSETS) + self.rng.choice(NUCLEI) + self.rng.choice(CODAS))

    def topic(self) -> int:
        """A topic, all equally likely."""
        return int(self.rng.integers(TOPICS))

    def topic_word(self, topic: int) -> str:
        """One of the topic's own words."""
        return self.words[int(self.rng.choice(self.topic_words[topic]))]

    def length(self, median: float, spread: float, low: int, high: int) -> int:
        """A log-normal number of words between ``low`` and ``high``; ``spread`` is the deviation of its logarithm."""
        return int(np.clip(self.rng.lognormal(math.log(median), spread), low, high))

    def text(self, topic: int, length: int, topic_share: float = 0.45, punctuate: bool = True) -> str:
        """``length`` words, of which about ``topic_share`` are the topic's own; long texts get punctuation."""
        common = self.rng.choice(WORDS, length, p=self.frequencies)
        own = self.topic_words[topic][self.rng.integers(0, TOPIC_WORDS, length)]
        is_own = self.rng.random(length) < topic_share
        words = [self.words[index] for index in np.where(is_own, own, common)]
        if punctuate and length > 8:
            for position in range(7, length, 11):
                words[position] += "." if position % 2 else ","
            words[0] = words[0].capitalize()
        return " ".join(words)


def _row(query: str, positive: str, negatives: list[str], prompt: str, kind: str) -> Row:
    return {"query": query, "pos": [positive], "neg": negatives, "prompt": PROMPTS[prompt], "type": kind}


def retrieval_rows(language: PseudoLanguage, count: int, negatives: int) -> list[Row]:
    """Long passages from one pool; negatives of the same topic first, as a miner would find them."""
    rng = language.rng
    pool: list[str] = []
    topics: list[int] = []
    for _ in range(max(60, int(count * 2.5))):
        topics.append(language.topic())
        pool.append(language.text(topics[-1], language.length(70, 0.62, 8, 400)))
    by_topic: list[list[int]] = [[] for _ in range(TOPICS)]
    for index, topic in enumerate(topics):
        by_topic[topic].append(index)
    rows = []
    for _ in range(count):
        positive = int(rng.integers(len(pool)))
        chosen = [index for index in by_topic[topics[positive]] if index != positive]
        rng.shuffle(chosen)
        chosen = chosen[:negatives]
        while len(chosen) < negatives:
            # Skewed to the front of the pool, so that some texts repeat within a batch, as mined negatives do.
            filler = int(len(pool) * rng.random() ** 2)
            if filler != positive and filler not in chosen:
                chosen.append(filler)
        query = _words_of(language, pool[positive])
        rows.append(_row(query, pool[positive], [pool[index] for index in chosen], "retrieval", "normal"))
    return rows


def _words_of(language: PseudoLanguage, passage: str) -> str:
    """A search query: a few words of the passage."""
    words = passage.replace(".", "").replace(",", "").lower().split()
    count = min(language.length(6, 0.4, 2, 20), len(words))
    return " ".join(language.rng.choice(words, count, replace=False))


def sts_rows(language: PseudoLanguage, count: int, negatives: int) -> list[Row]:
    """Sentences and copies with a quarter of the words replaced; half of the negatives share the topic."""
    rng, rows = language.rng, []

    def sentence(topic: int) -> str:
        return language.text(topic, language.length(9, 0.4, 4, 40))

    for _ in range(count):
        topic = language.topic()
        query = sentence(topic)
        copy = " ".join(w if rng.random() > 0.25 else language.topic_word(topic) for w in query.split())
        others = [sentence(topic if rng.random() < 0.5 else language.topic()) for _ in range(negatives)]
        rows.append(_row(query, copy, others, "sts", "symmetric_sts"))
    return rows


def classification_rows(language: PseudoLanguage, count: int, negatives: int) -> list[Row]:
    """Messages and short label texts; the negatives are other labels."""
    rng, rows = language.rng, []
    labels = [language.text(label, 3, topic_share=0.9, punctuate=False) for label in range(LABELS)]
    for _ in range(count):
        label = int(rng.integers(LABELS))
        others = rng.choice([other for other in range(LABELS) if other != label], negatives, replace=False)
        message = language.text(label, language.length(14, 0.6, 3, 120))
        wrong = [labels[other] for other in others]
        rows.append(_row(message, labels[label], wrong, "classification", "symmetric_class"))
    return rows


def clustering_rows(language: PseudoLanguage, count: int, negatives: int) -> list[Row]:
    """Titles of one topic; the negatives are titles of any topic."""
    rows = []

    def title(topic: int) -> str:
        return language.text(topic, language.length(8, 0.35, 3, 30))

    for _ in range(count):
        topic = language.topic()
        others = language.rng.choice(TOPICS, negatives)
        query, positive = title(topic), title(topic)
        wrong = [title(int(other)) for other in others]
        rows.append(_row(query, positive, wrong, "clustering", "symmetric_clustering"))
    return rows


def make_datasets(rng: np.random.Generator, options: WorkloadOptions) -> dict[str, Dataset]:
    """All four datasets, by file name, with whole batches of rows."""
    steps = {name: max(1, round(options.steps * share)) for name, share in SHARES.items()}
    steps["retrieval"] += options.steps - sum(steps.values())
    language = PseudoLanguage(rng)
    makers = {
        "retrieval": retrieval_rows,
        "sts": sts_rows,
        "classification": classification_rows,
        "clustering": clustering_rows,
    }
    datasets = {}
    for name, make in makers.items():
        in_batch = name in ("retrieval", "sts")  # other rows of the same label or cluster are no negatives
        rows = make(language, steps[name] * options.batch, options.negatives)
        datasets[name if in_batch else f"{name}_no_in_batch_neg"] = Dataset(rows, in_batch)
    return datasets


def make_plan(rng: np.random.Generator, datasets: dict[str, Dataset], batch: int) -> list[dict[str, Any]]:
    """Batches of one dataset each, in random order; every row is used once."""
    plan = []
    for name, dataset in datasets.items():
        order = rng.permutation(len(dataset.rows)).tolist()
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            plan.append({"dataset": name, "rows": rows, "in_batch_neg": dataset.in_batch_negatives})
    rng.shuffle(plan)
    return plan


def make_meta(options: WorkloadOptions) -> dict[str, Any]:
    """What a trainer must know beside the rows and the plan."""
    return {
        "seed": options.seed,
        "batch": options.batch,
        "negs": options.negatives,
        "steps": options.steps,
        "max_len": options.max_length,
        "temperature": 0.02,
        "query_format": QUERY_FORMAT,
        "symmetric_types_prompt_passages": SYMMETRIC_TYPES,
        "lr": 2e-4,
        "warmup_ratio": 0.1,
        "weight_decay": 0.0,
        "grad_clip": 1.0,
    }


def _passages(rows: Iterable[Row]) -> list[str]:
    return [text for row in rows for text in row["pos"] + row["neg"]]


def train_tokenizer(datasets: dict[str, Dataset], vocabulary: int) -> Any:
    """A byte-level BPE ``tokenizers.Tokenizer`` of the workload's texts, without a template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    rows = [row for dataset in datasets.values() for row in dataset.rows]
    texts = [row["query"] for row in rows] + _passages(rows)
    # Prompts a few times, so that they become few tokens, as in a real tokenizer.
    texts += [row["prompt"] for dataset in datasets.values() for row in dataset.rows[:50]]
    texts += [QUERY_FORMAT.format(prompt="", query="")] * 50
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END, PAD, CLS, SEP],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _fast_tokenizer(tokenizer: Any, template: str, max_length: int, **options: str) -> Any:
    """The tokenizer with a template (``$A`` stands for the text) as a ``PreTrainedTokenizerFast``."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    special = [(token, tokenizer.token_to_id(token)) for token in template.split() if token != "$A"]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, model_max_length=max_length, **options)


def _random_models(options: WorkloadOptions) -> tuple[Any, Any]:
    """A tiny Qwen3 and a BERT of MiniLM's size; torch's global random state is left as it was."""
    import torch
    from transformers import BertConfig, BertModel, Qwen3Config, Qwen3Model

    qwen3 = Qwen3Config(
        vocab_size=options.vocabulary,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=1024,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        pad_token_id=1,
        eos_token_id=0,
        bos_token_id=0,
    )
    bert = BertConfig(
        vocab_size=options.vocabulary,
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=6,
        num_attention_heads=12,
        max_position_embeddings=512,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=1,
        type_vocab_size=2,
    )
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(options.seed)
        return Qwen3Model(qwen3), BertModel(bert, add_pooling_layer=False)


def write_models(folder: Path, datasets: dict[str, Dataset], options: WorkloadOptions) -> dict[str, dict[str, float]]:
    """Write ``qwen3_tiny`` (last-token pooling) and ``minilm`` (mean pooling) to ``folder``.

    Returns:
        Text lengths in tokens, by dataset.
    """
    tokenizer = train_tokenizer(datasets, options.vocabulary)
    length = options.max_length
    tokenizers = {
        "qwen3_tiny": _fast_tokenizer(tokenizer, f"$A {END}", length, eos_token=END, padding_side="left"),
        "minilm": _fast_tokenizer(
            tokenizer, f"{CLS} $A {SEP}", length, cls_token=CLS, sep_token=SEP, padding_side="right"
        ),
    }
    for (name, fast), model in zip(tokenizers.items(), _random_models(options), strict=True):
        model.save_pretrained(folder / name)
        fast.save_pretrained(folder / name)
        # transformers 5 writes a class name that version 4, which some peers need, does not know.
        path = folder / name / "tokenizer_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        path.write_text(json.dumps(config, indent=1), encoding="utf-8")
    return {name: _lengths(dataset.rows, tokenizers["qwen3_tiny"], length) for name, dataset in datasets.items()}


def _lengths(rows: Sequence[Row], tokenizer: Any, max_length: int) -> dict[str, float]:
    """Median, mean and 95th percentile of the passages' tokens, and the median of the queries'."""

    def count(texts: list[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]]

    passages = count(_passages(rows))
    queries = count([QUERY_FORMAT.format(prompt=row["prompt"], query=row["query"]) for row in rows])
    return {
        "rows": len(rows),
        "pas_med": float(np.median(passages)),
        "pas_mean": float(np.mean(passages)),
        "pas_p95": float(np.percentile(passages, 95)),
        "q_med": float(np.median(queries)),
    }


def _write_lines(path: Path, records: Iterable[Row]) -> None:
    lines = "".join(json.dumps(record) + "\n" for record in records)
    path.write_text(lines, encoding="utf-8", newline="\n")  # the same bytes on every system


def write_workload(out: Path, options: WorkloadOptions) -> dict[str, Any]:
    """Write a workload to the folder ``out``, over files of the same names.

    Returns:
        The content of ``meta.json``.
    """
    rng = np.random.default_rng(options.seed)
    (out / "data").mkdir(parents=True, exist_ok=True)
    datasets = make_datasets(rng, options)
    for name, dataset in datasets.items():
        _write_lines(out / "data" / f"{name}.jsonl", dataset.rows)
    _write_lines(out / "plan.jsonl", make_plan(rng, datasets, options.batch))
    meta = make_meta(options)
    if options.models:
        meta["stats"] = write_models(out / "models", datasets, options)
    (out / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
    return meta


def workload_digest(folder: Path) -> str:
    """SHA-256 of the rows and the plan: equal where two workloads have the same batches."""
    digest = hashlib.sha256()
    for path in [*sorted((folder / "data").iterdir()), folder / "plan.jsonl"]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def main() -> None:
    """Write the workload that the command line asks for and print its digest as JSON."""
    parser = argparse.ArgumentParser(description="Write a synthetic fine-tuning workload.")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--steps", type=int, default=48, help="batches in the plan")
    parser.add_argument("--batch", type=int, default=16, help="queries a batch")
    parser.add_argument("--negatives", type=int, default=3, help="negatives a query")
    parser.add_argument("--seed", type=int, default=0, help="seed of texts, plan and weights")
    parser.add_argument("--max-length", type=int, default=256, help="tokens a text is cut to")
    parser.add_argument("--no-models", dest="models", action="store_false", help="only texts and plan: needs no torch")
    arguments = vars(parser.parse_args())
    out = arguments.pop("out")
    try:
        options = WorkloadOptions(**arguments)
    except ValueError as error:
        parser.error(str(error))
    meta = write_workload(out, options)
    print(json.dumps({"workload": str(out), "steps": meta["steps"], "sha256": workload_digest(out)}))  # noqa: T201


if __name__ == "__main__":
    main()
