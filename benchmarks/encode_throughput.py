"""Our encoding beside sentence-transformers' ``encode``: the same texts, weights and process, alternating.

    python benchmarks/encode_throughput.py --pairs 5 [--output results/benchmarks/encode_throughput.json]

Texts are the distinct queries and passages of `peers/make_workload.py`, in random order, with the lengths of real
retrieval data. Models have random weights: a Qwen3 of the smoke profile's shape (its maximum length raised to the
workload's, so that lengths differ) and a BERT of MiniLM's. Both sides read the same model folder.

Every line is one JSON object, a model each; the last is the result: ``ratio`` is their texts-per-second ratio, ours
divided by theirs, the median over all pairs (none is dropped) of the model where it is smallest; ``max_difference`` the
largest difference of any embedding's element. ``cpu_ratio``, of processor seconds, says the same on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent / "peers"))

import numpy as np
import sentence_transformers
import torch
from make_workload import WorkloadOptions, write_workload
from sentence_transformers import SentenceTransformer
from train_throughput import machine
from transformers import AutoModel, AutoTokenizer
from workload import load_workload

from boom_utils.artifacts import write_json
from boom_utils.config import TinyBase, load_profile
from boom_utils.model_folder import EncoderSpec
from boom_utils.models import Encoder
from boom_utils.training.base_model import random_encoder

MODELS = ("smoke", "minilm")


@dataclass(frozen=True)
class Side:
    """What one encoding took."""

    seconds: float
    cpu_seconds: float
    vectors_ND: np.ndarray  # noqa: N815


def make_texts(folder: Path, options: WorkloadOptions, count: int) -> list[str]:
    """Distinct texts of the workload in ``folder``, which is written first, in random order."""
    write_workload(folder, options)
    steps = load_workload(folder).steps
    groups = [text for step in steps for group in step.groups for text in group]
    texts = list(dict.fromkeys([*(query for step in steps for query in step.queries), *groups]))
    order = np.random.default_rng(options.seed).permutation(len(texts))[:count]
    return [texts[row] for row in order]


def make_model(name: str, workload: Path, texts: list[str], max_length: int) -> Path:
    """The folder of a random model, as sentence-transformers lays it out."""
    if name == "smoke":
        base = load_profile("smoke").base_model
        if not isinstance(base, TinyBase):
            raise TypeError("the smoke profile's base is no tiny model")
        encoder = random_encoder(texts, base.model_copy(update={"max_seq_length": max_length}), {})
    else:
        plain = workload / "models" / name
        model, tokenizer = (
            AutoModel.from_pretrained(plain, add_pooling_layer=False),
            AutoTokenizer.from_pretrained(plain),
        )
        encoder = Encoder(model.eval(), tokenizer, EncoderSpec("mean", True, max_length))
    encoder.save(workload / "encoders" / name)
    return workload / "encoders" / name


def measure(encode: Callable[[list[str]], np.ndarray], texts: list[str]) -> Side:
    """Encode all texts once."""
    began, cpu = time.perf_counter(), time.process_time()
    vectors_ND = encode(texts)
    return Side(time.perf_counter() - began, time.process_time() - cpu, vectors_ND)


def compare(name: str, folder: Path, texts: list[str], pairs: int) -> dict[str, Any]:
    """Alternate the two sides on one model, after a warm-up of each, and sum up."""
    theirs, ours = SentenceTransformer(str(folder)).eval(), Encoder.load(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    theirs.to(device)
    ours.transformer.to(device)
    sides: dict[str, Callable[[list[str]], np.ndarray]] = {
        "theirs": lambda some: np.asarray(theirs.encode(some, show_progress_bar=False)),
        "ours": ours.encode,
    }
    for encode in sides.values():
        encode(texts[:64])
    found = []
    for number in range(pairs):
        order = list(sides) if number % 2 == 0 else list(sides)[::-1]
        both = {side: measure(sides[side], texts) for side in order}
        found.append((both["ours"], both["theirs"]))
    lengths = [len(row) for row in ours.tokenize(texts)]
    return {"model": name, **summary(found), "texts": len(texts), "tokens": sum(lengths), "longest": max(lengths)}


def summary(found: list[tuple[Side, Side]]) -> dict[str, Any]:
    """Medians over all pairs of (ours, theirs); the largest difference of all."""
    ratios = [theirs.seconds / ours.seconds for ours, theirs in found]
    return {
        "ratio": round(statistics.median(ratios), 3),
        "pairs": [round(ratio, 3) for ratio in ratios],
        "cpu_ratio": round(statistics.median(theirs.cpu_seconds / ours.cpu_seconds for ours, theirs in found), 3),
        "seconds": {
            "ours": round(statistics.median(ours.seconds for ours, _ in found), 4),
            "theirs": round(statistics.median(theirs.seconds for _, theirs in found), 4),
        },
        "max_difference": max(float(np.abs(ours.vectors_ND - theirs.vectors_ND).max()) for ours, theirs in found),
    }


def result_of(lines: list[dict[str, Any]]) -> dict[str, float]:
    """The last line: the slowest model's ratio and the largest difference."""
    worst = max(line["max_difference"] for line in lines)
    return {"ratio": min(line["ratio"] for line in lines), "max_difference": worst}


def main() -> None:
    """Compare as the command line asks; the last line printed is the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="runs of each side (5)")
    parser.add_argument("--texts", type=int, default=1000, help="texts at most (1000)")
    parser.add_argument("--steps", type=int, default=24, help="size of the workload the texts are from (24)")
    parser.add_argument("--max-length", type=int, default=256, help="tokens a text is cut to (256)")
    parser.add_argument("--vocabulary", type=int, default=WorkloadOptions.vocabulary, help="of the BERT")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--output", type=Path, help="also write a record with all lines")
    asked = parser.parse_args()
    options = WorkloadOptions(steps=asked.steps, max_length=asked.max_length, vocabulary=asked.vocabulary)
    lines = []
    with tempfile.TemporaryDirectory() as temporary:
        texts = make_texts(Path(temporary), options, asked.texts)
        for name in asked.models:
            folder = make_model(name, Path(temporary), texts, asked.max_length)
            lines.append(compare(name, folder, texts, asked.pairs))
            print(json.dumps(lines[-1]), flush=True)  # noqa: T201
    result = result_of(lines)
    if asked.output:
        facts = {"sentence_transformers": sentence_transformers.__version__, "torch": torch.__version__}
        facts |= {"machine": machine(), "threads": torch.get_num_threads()}
        measured = {"measured": time.strftime("%Y-%m-%d", time.gmtime())}
        write_json(asked.output, {**result, "models": lines, **facts, **measured})
    print(json.dumps(result))  # noqa: T201


if __name__ == "__main__":
    main()
