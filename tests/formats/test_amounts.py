import pytest

from batchrun.formats.amounts import plural, seconds


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0123, "0.012 s"),
        (0.9996, "1.00 s"),
        (1.239, "1.24 s"),
        (9.999, "10.0 s"),
        (725.0, "12:05"),
    ],
)
def test_seconds_have_about_three_digits(value: float, said: str) -> None:
    assert seconds(value) == said


def test_attempts_are_counted_in_words() -> None:
    assert [plural(count, "attempt") for count in (1, 1319)] == [
        "1 attempt",
        "1,319 attempts",
    ]
