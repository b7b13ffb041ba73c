import re
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.simulator import random_values
from batchrun.simulator.random_values import text_for_pattern

_KEYS = st.binary(min_size=1, max_size=32)


@given(st.integers(), _KEYS, st.integers(min_value=0))
def test_a_draw_lies_between_0_and_1_and_repeats(seed: int, key: bytes, attempt: int) -> None:
    share = random_values.uniform(seed, key, "fault", attempt)
    assert 0 < share <= 1
    assert share == random_values.uniform(seed, key, "fault", attempt)


def test_seed_body_purpose_and_turn_each_change_the_draw() -> None:
    shares = {
        random_values.uniform(0, b"body", "fault", 0),
        random_values.uniform(1, b"body", "fault", 0),
        random_values.uniform(0, b"other", "fault", 0),
        random_values.uniform(0, b"body", "latency", 0),
        random_values.uniform(0, b"body", "fault", 1),
    }
    assert len(shares) == 5


def test_draws_are_spread_evenly() -> None:
    shares = [random_values.uniform(0, b"body", "fault", attempt) for attempt in range(5_000)]
    for tenth in range(10):
        assert 400 < sum(tenth <= share * 10 < tenth + 1 for share in shares) < 600


def test_half_of_a_lognormal_lies_below_its_median() -> None:
    assert random_values.lognormal(0.5, 3.0, 0.8) == 3.0
    assert random_values.lognormal(0.9, 3.0, 0.8) > 6.0
    assert random_values.lognormal(0.1, 3.0, 0.0) == 3.0
    assert random_values.lognormal(1.0, 3.0, 0.8) < 1_000


def test_a_source_repeats_and_another_purpose_has_another() -> None:
    assert (
        random_values.random_source(0, b"body", "ids").random()
        == random_values.random_source(0, b"body", "ids").random()
    )
    assert (
        random_values.random_source(0, b"body", "ids").random()
        != random_values.random_source(0, b"body", "answer").random()
    )


@given(st.text(), st.integers(-5, 50))
def test_a_cut_text_is_a_beginning_within_its_tokens(text: str, tokens: int) -> None:
    cut = random_values.first_tokens(text, tokens)
    assert text.startswith(cut)
    assert random_values.token_count(cut) <= max(tokens, 0)


def test_prose_is_about_as_long_as_wished() -> None:
    for wished in (10, 100, 1_000):
        lengths = [
            random_values.token_count(random_values.prose("So.", wished, Random(n)))
            for n in range(50)
        ]
        assert 0.5 * wished - 10 < sum(lengths) / 50 < 1.3 * wished + 10


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "^abc$",
        r"^\d{4}-\d{2}-\d{2}$",
        r"^[A-Z]{3}(-[A-Z]{2})?$",
        r"^(?:red|green|blue)$",
        r"^[^@\s]+@[^@\s]+\.[a-z]{2,}$",
        r"^\+?[1-9]\d{1,14}$",
        r"^#([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$",
        r"^https?://\S+$",
        r"^[\w.-]+$",
        r"^a*b+c?d{0,2}e{3,}$",
        r"^\u4e2d[一-十]$",
        r"^(?P<year>\d{4})Q[1-4]$",
        r"^[]a]+?$",
        r"^ax$|^x$",
        r"\bword\b",
        r"^[\d\-]+$",
        r"^.{1,3}\D\W\S$",
    ],
)
def test_what_is_made_matches(pattern: str) -> None:
    made = [text_for_pattern(pattern, Random(seed)) for seed in range(20)]
    texts = [text for text in made if text is not None]
    assert texts
    assert all(re.search(pattern, text) for text in texts)


@pytest.mark.parametrize(
    "pattern",
    [r"^(?=a)b", r"(a)\1", "(", "[a", "*", r"\p{L}", "a{9,2}", "\\", "((a{9999}){9999}){9999}"],
)
def test_what_is_beyond_it_gives_nothing(pattern: str) -> None:
    assert text_for_pattern(pattern, Random(1)) is None


@given(st.text(alphabet="ab01^$.*+?{}[]()|\\d-,:<>=!P", max_size=12), st.integers(0, 3))
def test_any_text_as_a_pattern_gives_a_match_or_nothing(pattern: str, seed: int) -> None:
    made = text_for_pattern(pattern, Random(seed))
    assert made is None or re.search(pattern, made)
