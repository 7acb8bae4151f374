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

from boom_utils.artifacts import atomic_path, sha256_file
from boom_utils.data.examples import TrainingExample
from boom_utils.errors import DataError

Tokenize = Callable[[Sequence[str], int], list[list[int]]]
"""(texts, most tokens) -> token ids of each text, special tokens included."""

_ROWS_A_CHUNK = 65_536
"""Offsets of an Arrow list are 32 bits wide: a chunk has to stay below two billion tokens."""
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
    bare = _prompt_tokens(path.stem, rules, tokenize)
    queries = tokenize([rules.query_prompt + example.query for example in examples], rules.query_max_len)
    positives = _nested([example.pos for example in examples], rules, tokenize)
    negatives = _nested([example.neg for example in examples], rules, tokenize)
    _check_texts(path.stem, "query", [[row] for row in queries], bare["query"])
    _check_texts(path.stem, "positive", positives, bare["passage"])
    _check_texts(path.stem, "negative", negatives, bare["passage"])
    table = pa.table({"query": queries, "pos": positives, "neg": negatives}, schema=SCHEMA)
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        atomic_path(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, SCHEMA) as writer,
    ):
        writer.write_table(table, max_chunksize=_ROWS_A_CHUNK)


def _prompt_tokens(dataset: str, rules: TextRules, tokenize: Tokenize) -> dict[str, list[int]]:
    """Tokens of the prompts alone; an error when one leaves no room for a text."""
    bare = {}
    for kind, prompt, limit in (
        ("query", rules.query_prompt, rules.query_max_len),
        ("passage", rules.passage_prompt, rules.passage_max_len),
    ):
        bare[kind] = tokenize([prompt], 10**6)[0]
        if len(bare[kind]) >= limit:
            raise DataError(
                f"the {kind} prompt of '{dataset}' leaves no room for the text",
                expected=f"a prompt shorter than {kind}_max_len = {limit} tokens",
                found=f"{len(bare[kind])} tokens: {prompt!r}",
                fix=f"raise {kind}_max_len or shorten the prompt in the manifest",
            )
    return bare


def _check_texts(dataset: str, kind: str, groups: Sequence[Sequence[Sequence[int]]], bare: Sequence[int]) -> None:
    """Refuse texts that add no token to the prompt (and the tokenizer's own end token)."""
    empty = [row for row, group in enumerate(groups) if any(not text or text == bare for text in group)]
    if empty:
        raise DataError(
            f"a {kind} of '{dataset}' has no tokens",
            where=f"row {empty[0]} (from 0); {len(empty)} such row(s) in all",
            fix="remove or repair the text: the tokenizer makes nothing of it",
        )


def _nested(texts: Sequence[Sequence[str]], rules: TextRules, tokenize: Tokenize) -> list[list[list[int]]]:
    """Tokens of every text, each distinct text tokenised once."""
    distinct = list(dict.fromkeys(chain.from_iterable(texts)))
    rows = tokenize([rules.passage_prompt + text for text in distinct], rules.passage_max_len) if distinct else []
    tokens = dict(zip(distinct, rows, strict=True))
    return [[tokens[text] for text in group] for group in texts]


class TokenTable:
    """Memory-mapped tokens of one dataset; a text is a view of the file, nothing is copied.

    Args:
        path: A file of `write_tokens`.
    """

    def __init__(self, path: Path) -> None:
        self.name, self.path = path.stem, path
        self._chunks = [_Chunk(batch) for batch in _record_batches(path)]
        self._starts = np.cumsum([0, *(len(chunk.query) - 1 for chunk in self._chunks)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def positive_counts(self) -> np.ndarray:
        """Int (rows,), positives of each example."""
        return self._counts([chunk.pos for chunk in self._chunks])

    @property
    def negative_counts(self) -> np.ndarray:
        """Int (rows,), negatives of each example."""
        return self._counts([chunk.neg for chunk in self._chunks])

    @property
    def fingerprint(self) -> str:
        """sha256 of the file (hex)."""
        return sha256_file(self.path)

    def query(self, row: int) -> np.ndarray:
        """Token ids of one query, int32 (tokens,)."""
        chunk, row = self._chunk(row)
        return _slice(chunk.query_tokens, chunk.query, row)

    def positive(self, row: int, draw: int) -> np.ndarray:
        """Token ids of one positive of an example, int32 (tokens,)."""
        chunk, row = self._chunk(row)
        return _text_of(chunk.pos, chunk.pos_texts, chunk.pos_tokens, row, draw)

    def negative(self, row: int, draw: int) -> np.ndarray:
        """Token ids of one negative of an example, int32 (tokens,)."""
        chunk, row = self._chunk(row)
        return _text_of(chunk.neg, chunk.neg_texts, chunk.neg_tokens, row, draw)

    def _chunk(self, row: int) -> tuple[_Chunk, int]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of '{self.name}', which has {len(self)}")
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._chunks[number], row - int(self._starts[number])

    @staticmethod
    def _counts(offsets: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([np.diff(part) for part in offsets]) if offsets else np.zeros(0, dtype=np.int64)


class _Chunk:
    """Offsets and values of one Arrow record batch as NumPy views (Arrow's list layout)."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.query, self.query_tokens = _offsets(batch["query"]), batch["query"].values.to_numpy()
        self.pos, self.pos_texts, self.pos_tokens = _nested_views(batch["pos"])
        self.neg, self.neg_texts, self.neg_tokens = _nested_views(batch["neg"])


def _record_batches(path: Path) -> list[pa.RecordBatch]:
    try:
        stored = pa.ipc.open_file(pa.memory_map(str(path)))
        return [stored.get_batch(number) for number in range(stored.num_record_batches)]
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError("this is not a token table", where=path, found=error, fix="tokenise the corpus again") from None


def _offsets(column: pa.ListArray) -> np.ndarray:
    return np.asarray(column.offsets.to_numpy())


def _nested_views(column: pa.ListArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return _offsets(column), _offsets(column.values), column.values.values.to_numpy()


def _text_of(groups: np.ndarray, texts: np.ndarray, tokens: np.ndarray, row: int, draw: int) -> np.ndarray:
    if not 0 <= draw < groups[row + 1] - groups[row]:
        raise IndexError(f"text {draw} of a row that has {groups[row + 1] - groups[row]}")
    return _slice(tokens, texts, int(groups[row]) + draw)


def _slice(tokens: np.ndarray, offsets: np.ndarray, number: int) -> np.ndarray:
    text: np.ndarray = tokens[offsets[number] : offsets[number + 1]]
    return text


def open_tokens(*folders: Path) -> dict[str, TokenTable]:
    """All token tables of the folders, by dataset."""
    return {path.stem: TokenTable(path) for folder in folders for path in sorted(folder.glob("*.arrow"))}
