"""Tokenise training examples once, into Arrow tables that are memory-mapped during training.

One table a dataset, one row an example: ``query`` list<int32>, ``pos`` and ``neg`` list<list<int32>>. The tokenizer is
passed in as a function; this module knows no model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa

from boom_utils.artifacts import atomic_path, sha256_file
from boom_utils.data.examples import TrainingExample, batches
from boom_utils.errors import DataError

Tokenize = Callable[[Sequence[str], int], list[list[int]]]
"""(texts, most tokens) -> token ids of each text, special tokens included."""

_ROWS_A_CHUNK = 65_536
_TOKENS_A_CHUNK = 2**24
"""A chunk with more tokens is full: it is what is kept in memory, and Arrow's list offsets are 32 bits wide."""
_ROWS_AT_ONCE = 1024
"""Rows whose new texts are tokenised in one call: a tokenizer's lists take some ten times the memory of arrays."""
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


def write_tokens(path: Path, examples: Iterable[TrainingExample], rules: TextRules, tokenize: Tokenize) -> int:
    """Write the token table of one dataset, chunk after chunk: only one chunk of examples is in memory.

    Returns:
        Rows written.

    Raises:
        DataError: The prompt leaves no room for the text, or a text has no tokens.
    """
    bare = _prompt_tokens(path.stem, rules, tokenize)
    queries = _Texts(rules.query_prompt, rules.query_max_len, tokenize, bare["query"])
    passages = _Texts(rules.passage_prompt, rules.passage_max_len, tokenize, bare["passage"])
    columns = {"query": _Column(queries), "positive": _Column(passages), "negative": _Column(passages)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        atomic_path(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, SCHEMA) as writer,
    ):
        for part in batches(examples, min(_ROWS_AT_ONCE, _ROWS_A_CHUNK)):
            tokens = sum(column.tokens for column in columns.values())
            if columns["query"].rows + len(part) > _ROWS_A_CHUNK or tokens > _TOKENS_A_CHUNK:
                _flush(writer, columns)
            queries.learn([example.query for example in part])
            passages.learn([text for example in part for text in (*example.pos, *example.neg)])
            columns["query"].add([(example.query,) for example in part])
            columns["positive"].add([example.pos for example in part])
            columns["negative"].add([example.neg for example in part])
        _flush(writer, columns)
        _check_texts(path.stem, columns)
    return columns["query"].all_rows


def _flush(writer: pa.ipc.RecordBatchFileWriter, columns: Mapping[str, _Column]) -> None:
    """Write what the columns hold as one record batch, and empty them."""
    if columns["query"].rows:
        query, positives, negatives = (column.array() for column in columns.values())
        writer.write_batch(pa.record_batch([query.values, positives, negatives], schema=SCHEMA))
    for column in columns.values():
        column.clear()


class _Texts:
    """The distinct texts of a chunk, each tokenised once, behind one prompt."""

    def __init__(self, prompt: str, limit: int, tokenize: Tokenize, bare: Sequence[int]) -> None:
        self._prompt, self._limit, self._tokenize, self._bare = prompt, limit, tokenize, bare
        self.clear()

    def clear(self) -> None:
        self.numbers: dict[str, int] = {}
        self.lengths: list[int] = []
        self.empty: set[int] = set()
        self._tokens: list[np.ndarray] = []

    def learn(self, texts: Sequence[str]) -> None:
        """Tokenise those of the texts that are new."""
        new = [text for text in dict.fromkeys(texts) if text not in self.numbers]
        rows = self._tokenize([self._prompt + text for text in new], self._limit) if new else []
        for text, row in zip(new, rows, strict=True):
            if not row or row == self._bare:  # the text adds no token to the prompt (and the tokenizer's own end token)
                self.empty.add(len(self.numbers))
            self.numbers[text] = len(self.numbers)
            self.lengths.append(len(row))
        self._tokens.append(np.fromiter(chain.from_iterable(rows), dtype=np.int32))

    def array(self) -> pa.ListArray:
        """Tokens of every distinct text."""
        offsets = np.cumsum([0, *self.lengths], dtype=np.int32)
        return pa.ListArray.from_arrays(offsets, np.concatenate(self._tokens))


class _Column:
    """Groups of texts, one group a row: numbers of texts while a chunk is gathered, tokens when it is written."""

    def __init__(self, texts: _Texts) -> None:
        self._texts, self.all_rows = texts, 0
        self.empty_rows: list[int] = []
        self.clear()

    def clear(self) -> None:
        """Forget the chunk; rows go on being counted."""
        self.tokens = 0
        self._numbers: list[int] = []
        self._starts = [0]
        self._texts.clear()

    @property
    def rows(self) -> int:
        """Rows of the chunk so far."""
        return len(self._starts) - 1

    def add(self, groups: Sequence[Sequence[str]]) -> None:
        """Add rows, whose texts are known."""
        for group in groups:
            numbers = [self._texts.numbers[text] for text in group]
            if not self._texts.empty.isdisjoint(numbers):
                self.empty_rows.append(self.all_rows)
            self.tokens += sum(self._texts.lengths[number] for number in numbers)
            self._numbers += numbers
            self._starts.append(len(self._numbers))
            self.all_rows += 1

    def array(self) -> pa.ListArray:
        """The chunk: a list of texts a row."""
        texts = self._texts.array().take(pa.array(self._numbers, pa.int32()))
        return pa.ListArray.from_arrays(pa.array(self._starts, pa.int32()), texts)


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


def _check_texts(dataset: str, columns: Mapping[str, _Column]) -> None:
    """Refuse texts that have no tokens of their own."""
    for kind, column in columns.items():
        if column.empty_rows:
            raise DataError(
                f"a {kind} of '{dataset}' has no tokens",
                where=f"row {column.empty_rows[0]} (from 0); {len(column.empty_rows)} such row(s) in all",
                fix="remove or repair the text: the tokenizer makes nothing of it",
            )


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
    """All token tables of the folders, by dataset.

    Args:
        folders: Each with one ``.arrow`` file a dataset; a later folder wins where two have the same dataset.

    Returns:
        Dataset -> its table, memory-mapped.

    Raises:
        DataError: A file is not a table of this kit.

    >>> from boom_utils.config import load_profile
    >>> from boom_utils.study.graph import Study
    >>> tables = open_tokens(Study(load_profile("smoke")).build("tokens").path)
    >>> len(tables["exception_class"]) > 100
    True
    """
    return {path.stem: TokenTable(path) for folder in folders for path in sorted(folder.glob("*.arrow"))}
