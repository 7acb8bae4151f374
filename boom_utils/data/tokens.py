"""Tokenise training examples once, into Arrow tables that are memory-mapped during training.

One table a dataset, one row an example: ``query`` list<int32>, ``pos`` and ``neg`` list<list<int32>>. The tokenizer is
passed in as a function; this module knows no model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from boom_utils.artifacts import atomic_path, sha256_file
from boom_utils.data.examples import TrainingExample, batches
from boom_utils.errors import DataError, some_of

Tokenize = Callable[[Sequence[str], int], list[list[int]]]
"""(texts, most tokens) -> token ids of each text, special tokens included."""

_ROWS_A_BATCH = 24_576
"""Rows that are in memory together, and form one record batch; a text they share is tokenised once."""
_TEXTS_AT_ONCE = 8192
"""Texts that are tokenised in one call: a tokenizer's lists take some ten times the memory of arrays."""
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
    """Write the token table of one dataset, batch after batch: only one batch of examples is in memory.

    Returns:
        Rows written.

    Raises:
        DataError: The prompt leaves no room for the text, or a text has no tokens.
    """
    queries = _Texts(path.stem, "query", rules.query_prompt, rules.query_max_len, tokenize)
    passages = _Texts(path.stem, "passage", rules.passage_prompt, rules.passage_max_len, tokenize)
    rows = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, pa.ipc.new_file(str(temporary), SCHEMA) as writer:
        for part in batches(examples, _ROWS_A_BATCH):
            (query,) = queries.lists({"query": [[example.query] for example in part]}, rows)
            both = {"positive": [example.pos for example in part], "negative": [example.neg for example in part]}
            writer.write_batch(pa.record_batch([query.values, *passages.lists(both, rows)], schema=SCHEMA))
            rows += len(part)
    return rows


@dataclass
class _Texts:
    """The texts of one dataset that stand behind one prompt, and their limit in tokens."""

    dataset: str
    kind: str
    prompt: str
    limit: int
    tokenize: Tokenize

    def __post_init__(self) -> None:
        self.bare = self.tokenize([self.prompt], 10**6)[0]
        if len(self.bare) >= self.limit:
            what, found = f"the {self.kind} prompt of '{self.dataset}' leaves no room for the text", len(self.bare)
            fix = f"raise {self.kind}_max_len = {self.limit}, or shorten the prompt in the manifest"
            raise DataError(what, found=f"{found} tokens: {self.prompt!r}", fix=fix)

    def lists(self, columns: Mapping[str, Sequence[Sequence[str]]], first: int) -> list[pa.ListArray]:
        """Tokens of columns of a batch, whose rows are groups of texts; ``first`` is the number of the first row."""
        groups = {kind: pa.array(column, pa.list_(pa.large_string())) for kind, column in columns.items()}
        texts = pa.concat_arrays([column.values for column in groups.values()]).dictionary_encode()
        calls = batches((self.prompt + text for text in texts.dictionary.to_pylist()), _TEXTS_AT_ONCE)
        chunks = [pa.array(self.tokenize(some, self.limit), _TEXT) for some in calls]
        tokens = pa.chunked_array(chunks, _TEXT).combine_chunks()
        # A text may add no token to those of the prompt and of the tokenizer itself.
        short = np.flatnonzero(tokens.value_lengths().to_numpy() <= len(self.bare)).tolist()
        empty = np.isin(texts.indices, [number for number in short if tokens[number].as_py() in ([], self.bare)])
        found, start = [], 0
        for kind, column in groups.items():
            end = start + len(column.values)
            if empty[start:end].any():
                rows = first + np.unique(pc.list_parent_indices(column).to_numpy()[empty[start:end]])
                where, fix = f"row {some_of(rows)} (from 0)", "remove or repair the text"
                raise DataError(f"a {kind} of '{self.dataset}' has no tokens", where=where, fix=fix)
            found.append(pa.ListArray.from_arrays(column.offsets, tokens.take(texts.indices[start:end])))
            start = end
        return found


class TokenTable:
    """Memory-mapped tokens of one dataset; a text is a view of the file, nothing is copied.

    ``positive_counts`` and ``negative_counts`` are int32 (rows,): passages of each example.

    Args:
        path: A file of `write_tokens`.
    """

    def __init__(self, path: Path) -> None:
        self.name, self.path = path.stem, path
        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except (pa.ArrowInvalid, OSError) as error:
            fix = "tokenise the corpus again"
            raise DataError("this is not a token table", where=path, found=error, fix=fix) from None
        self._query, self._positives, self._negatives = table.columns
        self.positive_counts, self.negative_counts = (
            np.asarray(pc.list_value_length(one)) for one in table.columns[1:]
        )

    def __len__(self) -> int:
        return len(self._query)

    @property
    def fingerprint(self) -> str:
        """sha256 of the file (hex)."""
        return sha256_file(self.path)

    def query(self, row: int) -> np.ndarray:
        """Token ids of one query, int32 (tokens,)."""
        return np.asarray(self._query[row].values)

    def positive(self, row: int, draw: int) -> np.ndarray:
        """Token ids of one positive of an example, int32 (tokens,)."""
        return np.asarray(self._positives[row].values[draw].values)

    def negative(self, row: int, draw: int) -> np.ndarray:
        """Token ids of one negative of an example, int32 (tokens,)."""
        return np.asarray(self._negatives[row].values[draw].values)


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
