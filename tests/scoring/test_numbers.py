import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.scoring.numbers import number, numbers_in
from batchrun.scoring.score import BadTarget

# Outputs that others have scored: openai/grade-school-math at 3101c7d5, MIT.
_GSM8K = Path(__file__).parents[3] / "shared" / "data" / "evals" / "gsm8k_model_solutions.jsonl"
_RIGHT = {
    "6b_finetuning": 286,
    "6b_verification": 515,
    "175b_finetuning": 458,
    "175b_verification": 742,
}


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1,234", ["1234"]),
        ("1,00,000", ["100000"]),
        ("1{,}234", ["1234"]),
        ("1\u202f234", ["1234"]),
        ("1,5", ["1", "5"]),
        ("1,2345", ["1", "2345"]),
        ("150", ["150"]),
        ("3.14", ["3.14"]),
        ("3.140", ["3.14"]),
        ("It is 5.", ["5"]),
        (".5", ["0.5"]),
        ("-5", ["-5"]),
        ("\u22125", ["-5"]),
        ("-$5", ["-5"]),
        ("16-3=13", ["16", "3", "13"]),
        ("(7)-3", ["7", "3"]),
        ("1.5e3", ["1500"]),
        ("2E-2", ["0.02"]),
        ("1.5 \u00d7 10^3", ["1500"]),
        (r"2 \times 10^{-3}", ["0.002"]),
        ("60%", ["0.6"]),
        (r"60\%", ["0.6"]),
        ("½", ["0.5"]),
        ("2½", ["2.5"]),
        ("⅓", ["1/3"]),
        ("3/4", ["0.75"]),
        ("2/6", ["1/3"]),
        (r"\frac{3}{4}", ["0.75"]),
        (r"\boxed{-\frac{3}{4}}", ["-0.75"]),
        ("5/0", []),
        ("on 1/2/2026", []),
        ("B12 and H2O", []),
        ("USD5 and Rs.6", ["5", "6"]),
        ("12345678901234567890123", ["12345678901234567890123"]),
        ("٤٢", ["42"]),
        ("1e400000", ["1E+400000"]),
        ("9" * 2_000, []),
        ("none", []),
    ],
)
def test_numbers_are_read(text: str, numbers: list[str]) -> None:
    assert [str(one) for one in numbers_in(text)] == numbers


@pytest.mark.parametrize(
    ("text", "target", "value"),
    [
        ("It is 42.", "42", 1),
        ("It is 42.0", "42", 1),
        ("It is 0042", "42", 1),
        # Errors that other tools make.
        ("123457", "123456", 0),
        ("9007199254740993", "9007199254740992", 0),
        ("25", "5", 0),
        ("150", "15", 0),
        ("314", "3.14", 0),
        ("5", "-5", 0),
        ("60%", "60", 0),
        ("3/4", "4", 0),
        ("2 x 10^3", "3", 0),
        ("0.3333333333", "1/3", 0),
        ("2/6", "1/3", 1),
        ("50%", "1/2", 1),
        ("first 3, then 42", "3", 0),
        ("It has 3 steps.\n#### 1,234", "so 1000 + 234\n#### 1,234", 1),
        ("forty-two", "42", 0),
    ],
)
def test_number(text: str, target: str, value: int) -> None:
    assert number(text, (target,)).value == value


@pytest.mark.parametrize("which", ["last", "first", "only"])
def test_a_target_that_explains_its_steps_is_what_stands_at_its_mark(
    which: Literal["last", "first", "only"],
) -> None:
    target = "She sells 16 - 3 = <<16-3=13>>13 eggs.\n#### 1,013"
    for after in (None, re.compile("Answer:")):
        text = "Answer: 1013"
        assert number(text, (target,), after=after, which=which).value == 1
        score = number("Answer: 16", (target,), after=after, which=which)
        assert (score.value, score.answer, score.target) == (0, "16", "1013")
    assert number("5", ("5",)).target is None


def test_which_number_counts() -> None:
    text = "I see 3 cats. Answer: 5 cats, not 7"
    after = re.compile("Answer:")
    assert number(text, ("7",)).value == 1
    assert number(text, ("3",), which="first").value == 1
    assert number(text, ("5",), after=after, which="first").value == 1
    assert number("no marker, 5", ("5",), after=after)[:3] == (0, None, "no_match")
    assert number(text, ("7",), which="only")[:3] == (0, None, "ambiguous")
    assert number("5, I say 5.0", ("5",), which="only").value == 1
    assert number("nothing", ("7",), which="only")[:3] == (0, None, "no_number")
    assert number("It is 1/2/2026 and 5", ("5",)).value == 1
    assert number("It is 5 on 1/2/2026", ("5",)).value == 1
    assert number("It is 5 (see B12)", ("5",)).value == 1


def test_the_answer_is_the_same_text_however_it_was_written() -> None:
    answers = {number(text, ("1",)).answer for text in ("1,500", "1500.00", "1.5e3", "3000/2")}
    assert answers == {"1500"}


def test_tolerances() -> None:
    assert number("3.15", ("3.14",), abs_tol=Decimal("0.01")).value == 1
    assert number("3.1501", ("3.14",), abs_tol=Decimal("0.01")).value == 0
    assert number("-101", ("-100",), rel_tol=Decimal("0.01")).value == 1
    assert number("-101.1", ("-100",), rel_tol=Decimal("0.01")).value == 0
    assert number("0.33", ("1/3",), abs_tol=Decimal("0.01")).value == 1


def test_a_target_without_a_number_is_an_error() -> None:
    with pytest.raises(BadTarget, match="no number"):
        number("5", ("five",))
    with pytest.raises(BadTarget, match="several numbers"):
        number("5", ("5 of 7",), which="only")


@given(
    st.decimals(
        allow_nan=False, allow_infinity=False, places=3, min_value=-(10**20), max_value=10**20
    )
)
def test_any_decimal_is_found_as_it_was_written(value: Decimal) -> None:
    written = [f"{value:f}", f"{value:,f}"]
    for one in written:
        for text in (
            one,
            f"So 7 is not it. It is {one}",
            f"{'word ' * 30}{one}.",
            f"{one} {'word ' * 30}",
        ):
            assert number(text, (f"{value:f}",)).value == 1, text
            assert number(text, (f"{value + Decimal('0.001'):f}",)).value == 0, text


@given(st.text(alphabet="0123456789.,-+/%eE ½$x()\\^{}"), st.text(alphabet="ab 1"))
def test_the_last_number_is_the_last_of_all(text: str, rest: str) -> None:
    whole = f"{text}{rest * 20}"
    found = list(numbers_in(whole))
    score = number(whole, ("1",))
    assert score.answer == (str(found[-1]) if found else None)


@pytest.mark.skipif(not _GSM8K.exists(), reason="the shared data is not here")
def test_all_verdicts_of_gsm8k_are_those_that_were_given() -> None:
    rows = [json.loads(line) for line in _GSM8K.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 1_319
    for method, right in _RIGHT.items():
        values = [number(row[method]["solution"], (row["ground_truth"],)).value for row in rows]
        assert values == [float(row[method]["is_correct"]) for row in rows]
        assert sum(value or 0 for value in values) == right
