import re

import pytest

from batchrun.scoring.score import BadTarget, Score, target_texts, text_of
from batchrun.scoring.text_match import exact, includes, normaliser, regex


@pytest.mark.parametrize(
    ("text", "target", "options", "value"),
    [
        ("Paris", "Paris", {}, 1),
        (" Paris\n", "Paris", {}, 1),
        ("paris", "Paris", {}, 0),
        ("paris", "Paris", {"ignore_case": True}, 1),
        ("Paris.", "Paris", {}, 0),
        ("“Paris”.", "Paris", {"ignore_punctuation": True}, 1),
        ("e.g. this", "eg this", {"ignore_punctuation": True}, 1),
        # What makes numbers different is no punctuation.
        ("3.14", "314", {"ignore_punctuation": True}, 0),
        ("-5", "5", {"ignore_punctuation": True}, 0),
        ("\u22125", "-5", {"ignore_punctuation": True}, 1),
        ("-$5", "$5", {"ignore_punctuation": True}, 0),
        (".5", "5", {"ignore_punctuation": True}, 0),
        ("60%", "60", {"ignore_punctuation": True}, 0),
        ("1/2", "12", {"ignore_punctuation": True}, 0),
        ("1,5", "15", {"ignore_punctuation": True}, 0),
        ("1,000", "1000", {"ignore_punctuation": True}, 1),
        ("(5)", "5", {"ignore_punctuation": True}, 1),
        ("5.", "5", {"ignore_punctuation": True}, 1),
        ("COVID-19", "COVID19", {"ignore_punctuation": True}, 1),
        ("\uff28\uff29", "HI", {"normalize": "nfkc"}, 1),
        ("The  Eiffel Tower!", "eiffel tower", {"normalize": "squad"}, 1),
        ("The answer is -5", "answer is 5", {"normalize": "squad"}, 0),
        ("3.14", "314", {"normalize": "squad"}, 0),
    ],
)
def test_exact(text: str, target: str, options: dict[str, object], value: int) -> None:
    found = exact(text, (target,), normaliser(**options))  # type: ignore[arg-type]
    assert found.value == value
    assert (found.reason is None) == bool(value)


def test_any_target_of_several_will_do() -> None:
    assert exact("b", ("a", "b")).value == 1
    assert exact("c", ("a", "b")) == Score(0, "c", "different")


@pytest.mark.parametrize(
    ("text", "target", "options", "value"),
    [
        ("The capital is PARIS.", "Paris", {}, 1),
        ("The capital is PARIS.", "Paris", {"ignore_case": False}, 0),
        ("comparison", "Paris", {}, 1),
        ("comparison", "Paris", {"word": True}, 0),
        ("in Paris, of course", "Paris", {"word": True}, 1),
        # A number is not found within a longer one.
        ("It is 25", "5", {}, 0),
        ("It is 150", "15", {}, 0),
        ("It is 5.2", "5", {}, 0),
        ("It is 3.5", "5", {}, 0),
        ("It is -5", "5", {}, 0),
        ("It is \u22125", "5", {}, 0),
        ("It is -5", "-5", {}, 1),
        ("It is 1,500", "500", {}, 0),
        ("It is 1,500", "1", {}, 0),
        ("It is 60%", "60", {}, 0),
        ("It is 3/5", "5", {}, 0),
        ("It is .5", "5", {}, 0),
        ("It is 25 or 5.", "5", {}, 1),
        ("(3, 5)", "5", {}, 1),
        ("10-5", "5", {}, 1),
    ],
)
def test_includes(text: str, target: str, options: dict[str, bool], value: int) -> None:
    assert includes(text, (target,), **options).value == value


def test_includes_wants_one_target_or_all() -> None:
    assert includes("salt and pepper", ("pepper", "sugar")) == Score(1, "pepper")
    found = includes("salt and pepper", ("pepper", "sugar"), every=True)
    assert found[:3] == (0, None, "not_included")
    assert "sugar" in str(found.explanation)
    assert includes("salt and pepper", ("pepper", "salt"), every=True).value == 1


def test_regex_compares_the_group_that_it_finds() -> None:
    pattern = re.compile(r"Answer: (\w+)")
    text = "Answer: one\nNo. Answer: two"
    assert regex(text, ("two",), pattern).value == 1
    assert regex(text, ("one",), pattern).value == 0
    assert regex(text, ("one",), pattern, which="first").value == 1
    assert regex(text, ("TWO",), pattern, normalise=normaliser(ignore_case=True)).value == 1
    assert regex("nothing", ("one",), pattern) == Score(0, None, "no_match")


def test_regex_without_target_wants_a_match() -> None:
    assert regex("I am sorry", None, re.compile("(?i)i'?m|i am")) == Score(1, "I am")
    assert regex("No", None, re.compile("(?i)i am")).value == 0


@pytest.mark.parametrize("target", ["", " \n", None, [], ["right", ""]])
def test_an_empty_target_is_an_error_and_no_match(target: object) -> None:
    with pytest.raises(BadTarget):
        target_texts(target)


def test_a_target_that_normalising_empties_is_an_error() -> None:
    with pytest.raises(BadTarget, match="empty once it is normalised"):
        exact("anything", ("the",), normaliser(normalize="squad"))
    with pytest.raises(BadTarget):
        exact("", ("!?",), normaliser(ignore_punctuation=True))


def test_values_as_text() -> None:
    assert [text_of(one) for one in (42, 42.0, 0.5, True, {"a": 1}, "x")] == [
        *("42", "42", "0.5", "true", '{"a":1}', "x")
    ]
    assert target_texts(["a", 2]) == ("a", "2")
