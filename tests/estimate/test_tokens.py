"""Which vocabulary a model has, and what a text counts in it."""

import pytest

from batchrun.estimate.tokens import BYTES, CL100K, O200K, OTHER_FACTOR, counter, vocabulary_of


@pytest.mark.parametrize(
    ("model", "vocabulary"),
    [
        *((name, O200K) for name in ("gpt-4o", "gpt-4.1", "gpt-4.1-mini", "gpt-5", "gpt-5.1-mini")),
        *((name, O200K) for name in ("o1", "o3-mini", "o4-mini-2025-04-16", "chatgpt-4o-latest")),
        *((name, O200K) for name in ("gpt-oss-120b", "gpt-4.5-preview", "openai/gpt-4.1-data")),
        *((name, CL100K) for name in ("gpt-4", "gpt-4-turbo-2024-04-09", "gpt-3.5-turbo")),
        *((name, CL100K) for name in ("gpt-35-turbo", "azure/gpt-4-32k")),
    ],
)
def test_openai_s_models_have_their_own_vocabulary(model: str, vocabulary: str) -> None:
    assert vocabulary_of(model) == (vocabulary, 1.0)


@pytest.mark.parametrize("model", ["qwen3-8b", "claude-sonnet-4", "", None, "orca-2", "my-gpt-4"])
def test_others_are_counted_as_openai_s_with_a_factor(model: str | None) -> None:
    assert vocabulary_of(model) == (O200K, OTHER_FACTOR)


def test_known_counts() -> None:
    # As tiktoken counts them.
    assert counter(O200K)("hello world") == 2
    assert counter(CL100K)("hello world") == 2
    assert counter(O200K)("antidisestablishmentarianism") == 6
    assert counter(O200K)("") == 0


def test_a_lone_surrogate_counts_as_a_question_mark() -> None:
    assert counter(O200K)("a \ud83d b") == counter(O200K)("a ? b")


def test_words_that_steer_a_model_are_plain_text() -> None:
    assert counter(O200K)("<|endoftext|>") > 1


def test_a_text_of_millions_of_letters_is_counted() -> None:
    assert counter(O200K)("word " * 300_000) >= 300_000


def test_without_a_vocabulary_four_bytes_are_a_token() -> None:
    count = counter(BYTES)
    assert [count(text) for text in ("", "a", "abcd", "abcde", "äöü", "\ud83d")] == [
        0,
        1,
        1,
        2,
        2,
        1,
    ]
