from random import Random

from hypothesis import given
from hypothesis import strategies as st

from batchrun.simulator import texts


@given(st.text(), st.integers(-5, 50))
def test_a_cut_text_is_a_beginning_within_its_tokens(text: str, tokens: int) -> None:
    cut = texts.cut(text, tokens)
    assert text.startswith(cut)
    assert texts.token_count(cut) <= max(tokens, 0)


def test_prose_is_about_as_long_as_wished() -> None:
    for wished in (10, 100, 1_000):
        lengths = [texts.token_count(texts.prose("So.", wished, Random(n))) for n in range(50)]
        assert 0.5 * wished - 10 < sum(lengths) / 50 < 1.3 * wished + 10


def test_a_default_helps_where_a_pattern_is_beyond_us() -> None:
    schema = {"type": "string", "pattern": "^(?=b)b$", "default": "b"}
    assert texts.text(schema, Random(1)) == "b"


def test_a_pattern_that_is_none_does_no_harm() -> None:
    assert texts.text({"pattern": "[a-", "default": "b"}, Random(1))
