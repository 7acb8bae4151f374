"""Token tables: texts as views of a memory-mapped file, and what is refused before training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from boom_utils.data import tokens
from boom_utils.data.examples import TrainingExample
from boom_utils.data.tokens import TextRules, TokenTable, write_tokens
from boom_utils.errors import DataError
from boom_utils.models import Encoder

PLAIN = TextRules("", "", 40, 40)


def test_prompts_stand_before_queries_and_on_passages_only_where_asked(encoder: Encoder, tmp_path: Path) -> None:
    example = TrainingExample("sort the values", ("order them",), ("draw a line",))
    for passage_prompt in ("", "Instruct: find it\nQuery: "):
        write_tokens(
            tmp_path / "toy.arrow",
            [example],
            TextRules("Instruct: find it\nQuery: ", passage_prompt, 40, 40),
            encoder.tokenize,
        )
        table = TokenTable(tmp_path / "toy.arrow")
        texts = [
            encoder.tokenizer.decode(ids, skip_special_tokens=True) for ids in (table.query(0), table.positive(0, 0))
        ]
        assert texts == ["Instruct: find it\nQuery: sort the values", f"{passage_prompt}order them"]


def test_a_prompt_that_leaves_no_room_for_the_text_is_an_error(encoder: Encoder, tmp_path: Path) -> None:
    rules = TextRules("Instruct: a very long instruction indeed\nQuery: ", "", 8, 40)
    with pytest.raises(DataError, match=r"(?s)leaves no room.*query_max_len = 8"):
        write_tokens(tmp_path / "toy.arrow", [TrainingExample("a", ("b",))], rules, encoder.tokenize)


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


def test_every_text_comes_back_as_it_was_tokenised_also_across_chunks(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "_ROWS_A_CHUNK", 3)
    rng = np.random.default_rng(0)
    words = ["sort", "mean of the array", "file", "draw a line of text", "inverse"]

    def some(least: int) -> tuple[str, ...]:
        return tuple(rng.choice(words, size=rng.integers(least, 4)))

    examples = [TrainingExample(str(rng.choice(words)), some(1), some(0)) for _ in range(11)]
    write_tokens(tmp_path / "toy.arrow", examples, PLAIN, encoder.tokenize)
    table = TokenTable(tmp_path / "toy.arrow")
    assert len(table) == 11
    assert table.positive_counts.tolist() == [len(example.pos) for example in examples]
    assert table.negative_counts.tolist() == [len(example.neg) for example in examples]
    for row, example in enumerate(examples):
        assert table.query(row).tolist() == encoder.tokenize([example.query])[0]
        for draw, text in enumerate(example.pos):
            assert table.positive(row, draw).tolist() == encoder.tokenize([text])[0]
        for draw, text in enumerate(example.neg):
            assert table.negative(row, draw).tolist() == encoder.tokenize([text])[0]
    assert not table.query(0).flags.writeable, "a view of the file"
    for call in (lambda: table.query(11), lambda: table.query(-1), lambda: table.positive(0, 9)):
        with pytest.raises(IndexError):
            call()


def test_a_damaged_table_is_an_error(encoder: Encoder, tmp_path: Path) -> None:
    path = tmp_path / "toy.arrow"
    write_tokens(path, [TrainingExample("a", ("b",))], PLAIN, encoder.tokenize)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="not a token table"):
        TokenTable(path)
