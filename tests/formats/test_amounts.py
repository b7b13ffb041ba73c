import pytest

from batchrun.formats.amounts import number_of, plural, seconds


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0123, "0.012 s"),
        (0.9996, "1.00 s"),
        (1.239, "1.24 s"),
        (9.999, "10.0 s"),
        (725.0, "12 min 5 s"),
    ],
)
def test_seconds_have_about_three_digits(value: float, said: str) -> None:
    assert seconds(value) == said


def test_attempts_are_counted_in_words() -> None:
    assert [plural(count, "attempt") for count in (1, 1319)] == [
        "1 attempt",
        "1,319 attempts",
    ]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("60", 60),
        ("7.5", 7.5),
        ("1e6", 1_000_000),
        ("150,000", 150_000),
        (" 1,500,000 ", 1_500_000),
        ("1 500 000", 1_500_000),
        ("1\u202f500", 1500),
        ("1'500.5", 1500.5),
        ("1_500", 1500),
        ("100, 100", None),
        ("1,50", None),
        ("1,500 000", None),
        ("-1", None),
        ("nan", None),
        ("inf", None),
        ("", None),
        (None, None),
    ],
)
def test_numbers_are_read_with_their_separators(text: str | None, number: float | None) -> None:
    assert number_of(text) == number
