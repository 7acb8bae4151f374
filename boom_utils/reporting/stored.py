"""The numbers of a study as tables, one parquet file each: the same rows give the same bytes, and all are read at once.

``samples``: one row a value behind a score (the query, pair, test row or experiment is its ``unit``; where a score is
made of several values a unit, such as ``gold`` and ``predicted``, each is a ``column``). ``scores``: one row a model
and task, with all that it was made with and mteb's own result. ``training``: one row a step. ``losses``: one row a
batch that was watched. A model of another seed than the first has the same name and another number in ``seed``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from boom_utils.artifacts import atomic_path
from boom_utils.errors import ResultsError
from boom_utils.evaluation.statistics import TaskSamples

RUN = ["model", "seed"]
_SCORE = ["task", "column", *RUN]
_SEED = re.compile(r"(?P<model>.+)\.seed(?P<seed>\d+)")


@dataclass(frozen=True)
class Numbers:
    """All numbers of a study.

    Args:
        samples: Run (a model of one seed) and task -> the values behind its score.
        scores: One row a run and task: ``metric``, ``value``, versions, keys, and mteb's ``result`` as JSON.
        training: One row a step of a run, as its training log has it.
        losses: One row a watched batch of a run: ``step``, ``share``, ``dataset``, ``batch``, ``loss`` and more.
    """

    samples: Mapping[tuple[str, str], TaskSamples] = field(default_factory=dict)
    scores: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=[*RUN, "task"]))
    training: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=RUN))
    losses: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=RUN))


def run_name(model: str, seed: int) -> str:
    """Name of the run of a model with a seed, the first of which has the model's own name."""
    return model if seed == 1 else f"{model}.seed{seed}"


def run_of(name: str) -> dict[str, Any]:
    """Model and number of the seed of a run, as `run_name` puts them together."""
    found = _SEED.fullmatch(name)
    return {"model": found["model"], "seed": int(found["seed"])} if found else {"model": name, "seed": 1}


def rows_of(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows of one run."""
    run = run_of(name)
    found: pd.DataFrame = frame[(frame["model"] == run["model"]) & (frame["seed"] == run["seed"])]
    return found


def read_numbers(folder: Path) -> Numbers:
    """The numbers in a results folder.

    Raises:
        ResultsError: A file is missing or no such table, or a score has too few values.
    """
    frame = _read(folder / "samples.parquet", [*_SCORE, "metric", "unit", "value"])
    values_N, units = frame["value"].to_numpy(), frame["unit"].to_numpy(dtype=object)
    columns: dict[tuple[str, str], dict[str, np.ndarray]] = defaultdict(dict)
    samples: dict[tuple[str, str], TaskSamples] = {}
    places: Any = frame.groupby([*_SCORE, "metric"], observed=True, sort=False).indices
    for (task, column, model, seed, metric), rows in sorted(places.items(), key=lambda item: int(item[1][0])):
        key = (run_name(model, seed), task)
        columns[key][column] = values_N[rows]
        samples[key] = TaskSamples(metric, tuple(units[rows]), columns[key])
    for (name, task), one in samples.items():
        checked(one, f"{folder / 'samples.parquet'}: {name}/{task}")
    scores = _read(folder / "scores.parquet", [*RUN, "task", "metric", "value"])
    return Numbers(samples, scores, *(_read(folder / f"{name}.parquet", RUN) for name in ("training", "losses")))


def write_numbers(folder: Path, numbers: Numbers) -> None:
    """Write the four tables, in an order that does not depend on how they were gathered."""
    _write(folder / "samples.parquet", _sample_frame(numbers.samples), _SCORE)
    _write(folder / "scores.parquet", numbers.scores, ["task", *RUN])
    _write(folder / "training.parquet", numbers.training, RUN)
    _write(folder / "losses.parquet", numbers.losses, RUN)


def _sample_frame(samples: Mapping[tuple[str, str], TaskSamples]) -> pd.DataFrame:
    """One row a value."""
    parts = [
        {"task": task, "column": column, **run_of(name), "metric": one.metric, "unit": one.ids, "value": values_S}
        for (name, task), one in samples.items()
        for column, values_S in one.columns.items()
    ]
    if not parts:
        return pd.DataFrame(columns=[*_SCORE, "metric", "unit", "value"])
    sizes = [len(part["unit"]) for part in parts]
    frame = {name: np.repeat([part[name] for part in parts], sizes) for name in (*_SCORE, "metric")}
    many = {name: np.concatenate([part[name] for part in parts]) for name in ("unit", "value")}
    return pd.DataFrame({**frame, **many}).astype({"unit": "category"})


def _write(path: Path, frame: pd.DataFrame, order: list[str]) -> None:
    """A table without an index and without versions of pandas; names that repeat are stored once."""
    named = {name: "category" for name in ("task", "column", "model", "metric", "dataset") if name in frame}
    frame = frame.sort_values(order, kind="stable").astype({**named, "seed": "int16"})
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    repeated = [name for name in frame if isinstance(frame[name].dtype, pd.CategoricalDtype)]
    options = {"compression": "zstd", "compression_level": 19, "store_schema": False}
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, use_dictionary=repeated, row_group_size=max(1, len(frame)), **options)


def _read(path: Path, columns: list[str]) -> pd.DataFrame:
    """A table that has at least some columns, without holes in these."""
    try:
        frame: pd.DataFrame = pq.read_table(path).to_pandas()
    except FileNotFoundError:
        raise ResultsError("a results file is missing", where=path, fix="run the study again") from None
    except (pa.ArrowException, OSError) as error:
        raise ResultsError("this is no readable parquet file", where=path, found=error, fix="make it again") from None
    if missing := [name for name in columns if name not in frame or frame[name].isna().any()]:
        raise ResultsError("a table of the results lacks values", where=path, found=f"holes in {', '.join(missing)}")
    return frame


def checked(samples: TaskSamples, where: str) -> TaskSamples:
    """The values behind a score, if there are some and as many in every column.

    Raises:
        ResultsError: There are not.
    """
    columns = samples.columns.values()
    if not columns or any(len(values_S) != len(samples.ids) or not len(values_S) for values_S in columns):
        raise ResultsError("a score without values, or with too few", where=where, fix="evaluate the model again")
    return samples
