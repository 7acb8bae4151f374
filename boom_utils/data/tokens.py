"""Tokenise training examples once, into Arrow tables that are memory-mapped during training.

One table a dataset, one row an example: ``query`` list<int32>, ``pos`` and ``neg`` list<list<int32>>. The tokenizer is
passed in as a function; this module knows no model.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa

from boom_utils.artifacts import atomic_path, sha256_file
from boom_utils.data.examples import TrainingExample, batches
from boom_utils.errors import DataError

Tokenize = Callable[[Sequence[str], int], list[list[int]]]
"""(texts, most tokens) -> token ids of each text, special tokens included."""

_ROWS_A_BATCH = 8192
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
            (query,) = queries.lists({"query": [(example.query,) for example in part]}, rows)
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
            raise DataError(
                f"the {self.kind} prompt of '{self.dataset}' leaves no room for the text",
                expected=f"a prompt shorter than {self.kind}_max_len = {self.limit} tokens",
                found=f"{len(self.bare)} tokens: {self.prompt!r}",
                fix=f"raise {self.kind}_max_len or shorten the prompt in the manifest",
            )

    def lists(self, columns: Mapping[str, Sequence[Sequence[str]]], first: int) -> list[pa.ListArray]:
        """Tokens of columns of a batch, whose rows are groups of texts; ``first`` is the number of the first row."""
        distinct = list(dict.fromkeys(text for groups in columns.values() for group in groups for text in group))
        place = {text: number for number, text in enumerate(distinct)}
        tokens = [pa.array([], _TEXT)]
        for some in batches(distinct, _TEXTS_AT_ONCE):
            tokens.append(pa.array(self.tokenize([self.prompt + text for text in some], self.limit), _TEXT))
        all_tokens = pa.concat_arrays(tokens)
        # A text may add no token to those of the prompt and of the tokenizer itself.
        short = np.flatnonzero(all_tokens.value_lengths().to_numpy() <= len(self.bare)).tolist()
        empty = {distinct[number] for number in short if all_tokens[number].as_py() in ([], self.bare)}
        found = []
        for kind, groups in columns.items():
            if bad := [row for row, group in enumerate(groups, first) if not empty.isdisjoint(group)]:
                raise DataError(
                    f"a {kind} of '{self.dataset}' has no tokens",
                    where=f"row {', '.join(map(str, bad[:10]))} (from 0)",
                    fix="remove or repair the text: the tokenizer makes nothing of it",
                )
            taken = all_tokens.take(pa.array([place[text] for group in groups for text in group], pa.int32()))
            found.append(pa.ListArray.from_arrays(np.cumsum([0, *map(len, groups)], dtype=np.int32), taken))
        return found


class TokenTable:
    """Memory-mapped tokens of one dataset; a text is a view of the file, nothing is copied.

    Args:
        path: A file of `write_tokens`.
    """

    def __init__(self, path: Path) -> None:
        self.name, self.path = path.stem, path
        try:
            stored = pa.ipc.open_file(pa.memory_map(str(path)))
            parts = [stored.get_batch(number) for number in range(stored.num_record_batches)]
        except (pa.ArrowInvalid, OSError) as error:
            fix = "tokenise the corpus again"
            raise DataError("this is not a token table", where=path, found=error, fix=fix) from None
        self._views = {name: [_views(part[name]) for part in parts] for name in SCHEMA.names}
        self._starts = list(accumulate((len(part) for part in parts), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def positive_counts(self) -> np.ndarray:
        """Int (rows,), positives of each example."""
        return self._counts("pos")

    @property
    def negative_counts(self) -> np.ndarray:
        """Int (rows,), negatives of each example."""
        return self._counts("neg")

    def _counts(self, column: str) -> np.ndarray:
        return np.concatenate([np.zeros(0, np.int32), *(np.diff(groups) for groups, _, _ in self._views[column])])

    @property
    def fingerprint(self) -> str:
        """sha256 of the file (hex)."""
        return sha256_file(self.path)

    def query(self, row: int) -> np.ndarray:
        """Token ids of one query, int32 (tokens,)."""
        return self._text("query", row, 0)

    def positive(self, row: int, draw: int) -> np.ndarray:
        """Token ids of one positive of an example, int32 (tokens,)."""
        return self._text("pos", row, draw)

    def negative(self, row: int, draw: int) -> np.ndarray:
        """Token ids of one negative of an example, int32 (tokens,)."""
        return self._text("neg", row, draw)

    def _text(self, column: str, row: int, draw: int) -> np.ndarray:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of '{self.name}', which has {len(self)}")
        part = bisect_right(self._starts, row) - 1
        groups, texts, tokens = self._views[column][part]
        group = row - self._starts[part]
        first, end = groups[group], groups[group + 1]
        if not 0 <= draw < end - first:
            raise IndexError(f"text {draw} of a row that has {end - first}")
        return tokens[texts[first + draw] : texts[first + draw + 1]]


_Views = tuple[Sequence[int], Sequence[int], np.ndarray]


def _views(column: pa.ListArray) -> _Views:
    """Where each row's texts start, where each text's tokens start, and the tokens: views of one record batch."""
    if column.type == _TEXT:  # one text a row
        return range(len(column) + 1), memoryview(column.offsets.to_numpy()), column.values.to_numpy()
    texts = column.values  # a memoryview gives plain integers, faster than an array gives its own
    return memoryview(column.offsets.to_numpy()), memoryview(texts.offsets.to_numpy()), texts.values.to_numpy()


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
