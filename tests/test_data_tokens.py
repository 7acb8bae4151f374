"""Token tables: texts as views of a memory-mapped file, and what is refused before training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from boom_utils.data import tokens
from boom_utils.data.examples import TrainingExample, iter_examples
from boom_utils.data.tokens import TextRules, TokenTable, write_tokens
from boom_utils.errors import DataError
from boom_utils.models import Encoder

PLAIN = TextRules("", "", 40, 40)


def words_as_tokens(texts: Sequence[str], limit: int) -> list[list[int]]:
    return [[sum(map(ord, word)) % 5000 for word in text.split()][:limit] for text in texts]


def many(count: int) -> Iterator[TrainingExample]:
    rng = np.random.default_rng(3)
    for number in range(count):
        drawn = rng.integers(12, size=(4, 3))
        texts = [" ".join(f"w{word}" for word in row) for row in drawn]
        yield TrainingExample(f"query {number}", tuple(texts[: 1 + number % 2]), tuple(texts[2 : 2 + number % 3]))


def test_prompts_stand_before_queries_and_on_passages_only_where_asked(encoder: Encoder, tmp_path: Path) -> None:
    example = TrainingExample("sort the values", ("order them",), ("draw a line",))
    for passage_prompt in ("", "Instruct: find it\nQuery: "):
        rules = TextRules("Instruct: find it\nQuery: ", passage_prompt, 40, 40)
        write_tokens(tmp_path / "toy.arrow", [example], rules, encoder.tokenize)
        table = TokenTable(tmp_path / "toy.arrow")
        both = table.query(0), table.positive(0, 0)
        texts = [encoder.tokenizer.decode(ids, skip_special_tokens=True) for ids in both]
        assert texts == ["Instruct: find it\nQuery: sort the values", f"{passage_prompt}order them"]
    rules = TextRules("Instruct: a very long instruction indeed\nQuery: ", "", 8, 40)
    with pytest.raises(DataError, match=r"(?s)leaves no room.*query_max_len = 8"):
        write_tokens(tmp_path / "toy.arrow", [example], rules, encoder.tokenize)


@pytest.mark.parametrize(
    ("kind", "example"),
    [
        ("query", TrainingExample("", ("b",), ("c",))),
        ("positive", TrainingExample("a", ("b", ""), ("c",))),
        ("negative", TrainingExample("a", ("b",), ("c", ""))),
    ],
)
def test_a_text_that_tokenises_to_nothing_is_an_error_that_names_its_row(
    encoder: Encoder, tmp_path: Path, kind: str, example: TrainingExample
) -> None:
    good = TrainingExample("sort", ("order",), ("draw",))
    with pytest.raises(DataError, match=rf"(?s)a {kind} of 'toy' has no tokens.*row 2"):
        write_tokens(tmp_path / "toy.arrow", [good, good, example], PLAIN, encoder.tokenize)
    with pytest.raises(DataError, match=r"(?s)a query of 'toy' has no tokens.*row 0"):
        prompted = TextRules("Instruct: find it\nQuery: ", "", 40, 40)
        write_tokens(tmp_path / "toy.arrow", [TrainingExample("", ("b",))], prompted, encoder.tokenize)
    assert not (tmp_path / "toy.arrow").exists()


@pytest.mark.parametrize(("rows", "most"), [(0, 3), (1, 3), (11, 3), (9, 3)])
def test_every_text_comes_back_as_it_was_tokenised_also_across_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, most: int
) -> None:
    monkeypatch.setattr(tokens, "_ROWS_A_BATCH", most)
    monkeypatch.setattr(tokens, "_TEXTS_AT_ONCE", 2)
    examples = list(many(rows))
    assert write_tokens(tmp_path / "toy.arrow", iter(examples), PLAIN, words_as_tokens) == rows
    table = TokenTable(tmp_path / "toy.arrow")
    assert len(table) == rows
    assert table.positive_counts.tolist() == [len(example.pos) for example in examples]
    assert table.negative_counts.tolist() == [len(example.neg) for example in examples]
    for row, example in enumerate(examples):
        found = [table.query(row), *(table.positive(row, draw) for draw in range(len(example.pos)))]
        found += [table.negative(row, draw) for draw in range(len(example.neg))]
        assert [one.tolist() for one in found] == words_as_tokens([example.query, *example.pos, *example.neg], 40)
        assert not any(one.flags.writeable or one.flags.owndata for one in found), "views of the file"
    for call in (lambda: table.query(rows), lambda: table.positive(0, 9), lambda: table.negative(0, 9)):
        with pytest.raises(IndexError):
            call()
    (tmp_path / "toy.arrow").write_bytes((tmp_path / "toy.arrow").read_bytes()[:100])
    with pytest.raises(DataError, match="not a token table"):
        TokenTable(tmp_path / "toy.arrow")


def test_rows_without_tokens_are_numbered_over_all_batches_and_no_table_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "_ROWS_A_BATCH", 3)
    rows = [TrainingExample("a", ("b",), ("" if number in (3, 5, 6) else "c",)) for number in range(8)]
    with pytest.raises(DataError, match=r"(?s)a negative of 'toy'.*row 3, 5 \(from 0\)"):
        write_tokens(tmp_path / "toy.arrow", iter(rows), PLAIN, words_as_tokens)
    (tmp_path / "toy.jsonl").write_bytes(b'{"query": "q", "pos": ["p"], "neg": []}\n{"query": "cut o')
    with pytest.raises(DataError, match=r"toy\.jsonl:2"):
        write_tokens(tmp_path / "toy.arrow", iter_examples(tmp_path / "toy.jsonl"), PLAIN, words_as_tokens)
    assert [path.name for path in tmp_path.iterdir()] == ["toy.jsonl"]
