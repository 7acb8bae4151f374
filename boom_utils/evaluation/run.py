"""Score one encoder on one task with mteb, and keep the values behind the score.

The revision mteb files a score under is the content hash of everything it depends on (weights, tokenizer, prompts,
pooling, normalisation, length, dtype): mteb tells scores apart by revision alone.
"""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mteb
import torch
from mteb.models import ModelMeta
from sklearn.exceptions import UndefinedMetricWarning

from boom_utils.artifacts import digest_of, write_json, write_text
from boom_utils.errors import EvaluationError
from boom_utils.evaluation.benchmarks import (
    BenchmarkTask,
    load_benchmark_data,
    make_benchmark_task,
    mteb_version,
    random_state_kept,
)
from boom_utils.evaluation.encoding import Ensemble, MtebEncoder
from boom_utils.evaluation.samples import compare_as_model, table
from boom_utils.evaluation.statistics import TaskSamples
from boom_utils.evaluation.tasks import LocalTask, build_task
from boom_utils.machine import Precision, dtype_of
from boom_utils.model_folder import content_hash
from boom_utils.models import Encoder

SYMMETRIC = ("classification", "clustering", "sts", "pair_classification")
"""Kinds of local tasks all of whose texts are queries: every text gets the prompt. Tasks of mteb tell by themselves."""


@dataclass(frozen=True)
class Scoring:
    """How a model is scored, besides what its folder says.

    Args:
        template: What was filled with the task's instruction to give the prompt; only recorded.
        precision: Of weights and passes; embeddings are float32 whatever it is.
        downloads: Where the data of benchmarks are; None leaves them to the Hugging Face libraries.
        passage_prompt: Put before documents of tasks whose texts are not all queries.
    """

    template: str = ""
    precision: Precision = "fp32"
    downloads: Path | None = None
    passage_prompt: str = ""


@functools.lru_cache(maxsize=1)
def _loaded(folders: tuple[Path, ...], precision: Precision) -> tuple[Encoder | Ensemble, str]:
    """The encoder of a folder, or of several, and its content hash; the last one stays loaded for the next task."""
    encoders = [Encoder.load(folder, dtype_of(precision)) for folder in folders]
    if torch.cuda.is_available():
        for encoder in encoders:
            encoder.to("cuda")
    hashes = [content_hash(folder) for folder in folders]
    return (encoders[0], hashes[0]) if len(folders) == 1 else (Ensemble(encoders), digest_of(hashes)[:40])


def evaluate_task(
    model: str,
    folder: Path | Sequence[Path],
    task: LocalTask | BenchmarkTask,
    out: Path,
    scoring: Scoring | None = None,
) -> dict[str, Any]:
    """Score the encoder of ``folder`` on one task; write mteb's result JSON and the values behind it to ``out``.

    Args:
        model: Name in tables; mteb's name is ``boom/<model>``.
        folder: An encoder folder that does not change while it exists; several are scored by the mean of their
            embeddings.
        task: What to score it on; its prompt stands before queries.
        out: Gets ``<task>.json`` (mteb's TaskResult, without its times) and ``samples.json``.
        scoring: Everything else.

    Returns:
        Facts: main score, metric, number of samples, revision, and all that the score was made with.

    Raises:
        EvaluationError: mteb failed, the data of a benchmark are not there, or its score and the kept values disagree;
            embeddings of several folders have no mean.
    """
    scoring = scoring or Scoring()
    folders = (folder,) if isinstance(folder, Path) else tuple(folder)
    encoder, revision = _loaded(folders, scoring.precision)
    symmetric = isinstance(task, LocalTask) and task.kind in SYMMETRIC
    meta, passage_prompt = _meta(model, revision), scoring.passage_prompt
    wrapped = MtebEncoder(encoder, meta, task.prompt, prompt_documents=symmetric, passage_prompt=passage_prompt)
    with random_state_kept(), warnings.catch_warnings():
        # The precision of a class that nobody predicts is 0, without a warning an experiment of a classification.
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        made = build_task(task) if isinstance(task, LocalTask) else make_benchmark_task(task)
        if isinstance(task, BenchmarkTask):
            load_benchmark_data(made, task, scoring.downloads and scoring.downloads.parent / "datasets")
        compare_as_model(made, wrapped.similarity_name)
        metric = made.metadata.main_score
        options = {"cache": None, "co2_tracker": False, "show_progress_bar": False, "prediction_folder": out}
        encoding = {"batch_size": 1024, "show_progress_bar": False}
        result = mteb.evaluate(wrapped, made, encode_kwargs=encoding, **options).task_results[0]
    # When, and how long it took: that says nothing of the score, and files of the same scores shall be the same.
    untimed = result.model_copy(update={"evaluation_time": None, "date": None, "evaluation_phases": None})
    untimed.to_disk(out / f"{task.name}.json")
    score, samples = float(result.get_score()), table(metric, made.samples)
    # mteb rounds nDCG, MAP and mean accuracy to 5 digits; a rank correlation of a constant is NaN for it and 0 here.
    if abs((again := TaskSamples.from_json(samples).score) - score) > 1e-4:
        what, fix = "the values behind the score do not make up mteb's score", "use the locked version of mteb"
        raise EvaluationError(what, where=task.name, expected=score, found=again, fix=fix)
    write_json(out / "samples.json", samples)
    made_with = {"prompt": task.prompt, "template": scoring.template, "dtype": scoring.precision}
    if passage_prompt:
        made_with["passage_prompt"] = passage_prompt
    if isinstance(task, BenchmarkTask):
        made_with["instruction_from"] = task.instruction[1]
    return {
        "main_score": score,
        "metric": metric,
        "samples": len(samples["ids"]),
        "revision": revision,
        "mteb_version": mteb_version(),
        **made_with,
        **_spec(encoder),
    }


def write_result(model: str, revision: str, result: Mapping[str, Any], out: Path) -> None:
    """Write a result of mteb where `mteb.ResultCache` reads it: of one model and revision, on the task it names."""
    folder = out / "results" / f"boom__{model}" / revision
    meta = _meta(model, revision).to_dict()
    write_json(folder / "model_meta.json", json.loads(json.dumps(meta, default=str)))
    text = json.dumps(result, indent=2, ensure_ascii=False)  # with mteb's NaN
    write_text(folder / f"{result['task_name']}.json", text)


def _meta(model: str, revision: str) -> ModelMeta:
    return ModelMeta.create_empty({"name": f"boom/{model}", "revision": revision})


def _spec(encoder: Encoder | Ensemble) -> dict[str, Any]:
    """Length, pooling and normalisation, as the model's folder says, and what else of it is not as usual."""
    spec = getattr(encoder, "spec", None)
    known = {} if spec is None else asdict(spec)
    usual = {"similarity": "cosine", "truncate_dim": None, "beyond": ()}
    left_out = {name for name, value in usual.items() if known.get(name) == value} | {"prompts", "default_prompt_name"}
    return {name: value for name, value in known.items() if name not in left_out}
