"""Tokens gathered row by row, and what they add up to."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrun.errors import InputError
from batchrun.estimate.tokens import (
    CL100K,
    MESSAGE_TOKENS,
    O200K,
    REQUEST_TOKENS,
    Kind,
    TokenCounts,
    counter,
)

TEXTS = st.lists(st.text(max_size=40), min_size=1, max_size=20)


def body(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "gpt-4.1", "input": text, **fields}


@settings(deadline=None)
@given(TEXTS)
def test_the_text_of_all_rows_is_what_the_tokenizer_counts(texts: list[str]) -> None:
    counts = TokenCounts()
    for row, text in enumerate(texts):
        counts.add(row, body(text, instructions="Be brief."))
    count = counter(O200K)
    found = counts.rows(bytes(len(texts)), len(texts))
    whole = sum(one.text_tokens * one.rows for one in found)
    assert whole == sum(count(text) for text in texts) + len(texts) * count("Be brief.")
    assert {one.kind for one in found} == {Kind("gpt-4.1", messages=2)}
    assert Kind("gpt-4.1", messages=2).form_tokens == 2 * MESSAGE_TOKENS + REQUEST_TOKENS


def test_complete_bad_and_unwanted_rows_are_left_out() -> None:
    counts = TokenCounts()
    for row in (0, 1, 3, 4):  # 2 and 5 are bad
        counts.add(row, body("word " * (row + 1)))
    found = counts.rows(bytearray([1, 0, 0, 0, 0, 0]), 4)
    assert sorted(one.text_tokens for one in found) == [
        counter(O200K)("word " * times) for times in (2, 4)
    ]
    assert counts.row(3).text_tokens == counter(O200K)("word " * 4)


def test_rows_differ_by_what_their_price_depends_on() -> None:
    counts = TokenCounts()
    counts.add(0, body("Hi", max_output_tokens=100, service_tier="flex"))
    counts.add(1, body("Hi", max_output_tokens=100.5))
    counts.add(2, body("Hi", tools=[{"type": "web_search"}]))
    kinds = {one.kind for one in counts.rows(bytes(3), 3)}
    assert kinds == {
        Kind("gpt-4.1", 100, "flex", messages=1),
        Kind("gpt-4.1", messages=1),
        Kind("gpt-4.1", messages=1, unseen=True, hosted=True),
    }


def test_models_to_compare_are_counted_in_their_own_vocabulary() -> None:
    text = "antidisestablishmentarianism, 12345678 and 東京都"
    counts = TokenCounts(["gpt-4.1", "gpt-4", "gpt-5"])
    counts.add(0, body(text))
    for model, vocabulary in (("gpt-4.1", O200K), ("gpt-4", CL100K), ("gpt-5", O200K)):
        (found,) = counts.rows(bytes(1), 1, model)
        assert (found.model, found.text_tokens) == (model, counter(vocabulary)(text))


def test_a_row_is_counted_in_the_vocabulary_of_its_own_model() -> None:
    text = "東京都 1234567890"
    counts = TokenCounts()
    counts.add(0, {"model": "gpt-4", "input": text})
    assert counts.row(0).text_tokens == counter(CL100K)(text)


def test_too_many_kinds_of_rows_are_refused() -> None:
    counts = TokenCounts(by_bytes=True)
    with pytest.raises(InputError, match="split the source"):
        for row in range(70_000):
            counts.add(row, body("Hi", max_output_tokens=row))


def test_tools_that_all_rows_share_are_counted_once_each() -> None:
    tools = [{"type": "function", "name": "look", "parameters": {"type": "object"}}]
    counts = TokenCounts()
    for row in range(3):
        counts.add(row, body("Hi", tools=json.loads(json.dumps(tools))))
    (found,) = counts.rows(bytes(3), 3)
    count = counter(O200K)
    assert found.text_tokens == count("Hi") + count(json.dumps(tools[0], separators=(",", ":")))
