import re
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.simulator.patterns import matching


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
    made = [matching(pattern, Random(seed)) for seed in range(20)]
    texts = [text for text in made if text is not None]
    assert texts
    assert all(re.search(pattern, text) for text in texts)


@pytest.mark.parametrize(
    "pattern", [r"^(?=a)b", r"(a)\1", "(", "[a", "*", r"\p{L}", "a{9,2}", "\\"]
)
def test_what_is_beyond_it_gives_nothing(pattern: str) -> None:
    assert matching(pattern, Random(1)) is None


@given(st.text(alphabet="ab01^$.*+?{}[]()|\\d-,:<>=!P", max_size=12), st.integers(0, 3))
def test_any_text_as_a_pattern_gives_a_match_or_nothing(pattern: str, seed: int) -> None:
    made = matching(pattern, Random(seed))
    assert made is None or re.search(pattern, made)
