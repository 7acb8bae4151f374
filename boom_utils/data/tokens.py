"""Tokenise training examples once, into Arrow tables that are memory-mapped during training.

One table a dataset, one row an example: ``query`` list<int32>, ``pos`` and ``neg`` list<list<int32>>. The tokenizer is
passed in as a function; this module knows no model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa

from boom_utils.data.examples import TrainingExample
from boom_utils.errors import DataError

Tokenize = Callable[[Sequence[str], int], list[list[int]]]
"""(texts, most tokens) -> token ids of each text, special tokens included."""

_TEXT = pa.list_(pa.int32())
SCHEMA = pa.schema([("query", _TEXT), ("pos", pa.list_(_TEXT)), ("neg", pa.list_(_TEXT))])


@dataclass(frozen=True)
class TextRules:
    """How the texts of one dataset become tokens.

    Args:
        query_prompt: Put before every query.
        passage_prompt: Put before every passage: empty, except for ``instruction_on_passages`` datasets.
        query_max_len: Most tokens of a query, prompt included.
        passage_max_len: Most tokens of a passage, prompt included.
    """

    query_prompt: str
    passage_prompt: str
    query_max_len: int
    passage_max_len: int


def write_tokens(path: Path, examples: Sequence[TrainingExample], rules: TextRules, tokenize: Tokenize) -> None:
    """Write the token table of one dataset.

    Raises:
        DataError: The prompt leaves no room for the text, or a text has no tokens.
    """
    _check_room(path.stem, rules, tokenize)
    queries = tokenize([rules.query_prompt + example.query for example in examples], rules.query_max_len)
    positives = _nested([example.pos for example in examples], rules, tokenize)
    negatives = _nested([example.neg for example in examples], rules, tokenize)
    for kind, tokens in (("query", queries), ("positive", chain(*positives)), ("negative", chain(*negatives))):
        if any(not row for row in tokens):
            raise DataError(f"a {kind} of '{path.stem}' has no tokens", where=path.stem, fix="remove the empty text")
    table = pa.table({"query": queries, "pos": positives, "neg": negatives}, schema=SCHEMA)
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_table(table)


def _check_room(dataset: str, rules: TextRules, tokenize: Tokenize) -> None:
    for kind, prompt, limit in (
        ("query", rules.query_prompt, rules.query_max_len),
        ("passage", rules.passage_prompt, rules.passage_max_len),
    ):
        used = len(tokenize([prompt], 10**6)[0])
        if used >= limit:
            raise DataError(
                f"the {kind} prompt of '{dataset}' leaves no room for the text",
                expected=f"a prompt shorter than {kind}_max_len = {limit} tokens",
                found=f"{used} tokens: {prompt!r}",
                fix=f"raise {kind}_max_len or shorten the prompt in the manifest",
            )


def _nested(texts: Sequence[Sequence[str]], rules: TextRules, tokenize: Tokenize) -> list[list[list[int]]]:
    """Tokens of every text, each distinct text tokenised once."""
    distinct = list(dict.fromkeys(chain.from_iterable(texts)))
    rows = tokenize([rules.passage_prompt + text for text in distinct], rules.passage_max_len) if distinct else []
    tokens = dict(zip(distinct, rows, strict=True))
    return [[tokens[text] for text in group] for group in texts]


class TokenTable:
    """Memory-mapped tokens of one dataset.

    Args:
        path: A file of `write_tokens`.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        self._table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @property
    def positive_counts(self) -> np.ndarray:
        """Int (rows,), positives of each example."""
        return self._counts("pos")

    @property
    def negative_counts(self) -> np.ndarray:
        """Int (rows,), negatives of each example."""
        return self._counts("neg")

    def query(self, row: int) -> list[int]:
        """Token ids of one query."""
        return list(self._table["query"][row].as_py())

    def positive(self, row: int, draw: int) -> list[int]:
        """Token ids of one positive of an example."""
        return list(self._table["pos"][row][draw].as_py())

    def negative(self, row: int, draw: int) -> list[int]:
        """Token ids of one negative of an example."""
        return list(self._table["neg"][row][draw].as_py())

    def _counts(self, column: str) -> np.ndarray:
        counts = [np.diff(chunk.offsets.to_numpy()) for chunk in self._table[column].chunks]
        return np.concatenate(counts) if counts else np.zeros(0, dtype=np.int64)


def open_tokens(folder: Path) -> dict[str, TokenTable]:
    """All token tables of a folder, by dataset."""
    return {path.stem: TokenTable(path) for path in sorted(folder.glob("*.arrow"))}
