import pytest

from batchrun.scoring.choice import choice
from batchrun.scoring.score import BadTarget


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("B", "B"),
        ("b", "B"),
        (" B.\n", "B"),
        ("**B**", "B"),
        ("(B)", "B"),
        ("B) Paris", "B"),
        ("B. Paris", "B"),
        ("Answer: B", "B"),
        ("ANSWER: b", "B"),
        ("**Answer:** B", "B"),
        ("**Answer**: (B)", "B"),
        ("The answer is B because of A.", "B"),
        ("The correct answer is **(B)**.", "B"),
        ("The correct answer is: B", "B"),
        ("The answer is option B.", "B"),
        ("The answer should be B", "B"),
        (r"So \boxed{B}", "B"),
        (r"So $\boxed{\text{B}}$", "B"),
        (r"The answer is $\boxed{B}$.", "B"),
        ("Answer: A\nNo. Answer: B", "B"),
        ("(A) is wrong.\nSo (B)", "B"),
        ("Answer: A or B", "ambiguous"),
        ("The answer is (A) and (C).", "ambiguous"),
        ("It is (A) or (B)", "ambiguous"),
        ("A or B", "ambiguous"),
        ("A, C", "ambiguous"),
        ("A and all that", None),
        ("A dog is an animal", None),
        ("The answer is a dog", None),
        ("The answer is not A", None),
        ("Answer: Because", None),
        ("", None),
        ("E", None),
    ],
)
def test_the_letter_that_is_chosen(text: str, found: str | None) -> None:
    score = choice(text, ("B",))
    if found == "ambiguous":
        assert score[:3] == (0, None, "ambiguous")
    elif found is None:
        assert score[:3] == (0, None, "no_choice")
    else:
        assert score.answer == found
        assert score.value == (found == "B")


def test_choices_count_by_their_texts_too() -> None:
    choices = ["Berlin", "Paris", "Rome", "Madrid", "Oslo"]
    for target in ("B", "Paris", "paris", 1):
        for text in ("B", "Paris.", "Answer: Paris", "I think so.\nThe answer is: **Paris**"):
            score = choice(text, (str(target),), choices=choices)
            assert (score.value, score.answer) == (1, "B")
    assert choice("E", ("Oslo",), choices=choices).value == 1


@pytest.mark.parametrize("target", ["E", "Paris", "7", "AB"])
def test_a_target_that_is_no_choice_is_an_error(target: str) -> None:
    with pytest.raises(BadTarget, match="none of the choices"):
        choice("A", (target,))


def test_other_letters() -> None:
    assert choice("Answer: 2", ("2",), letters="1234").value == 1
    assert choice("Answer: j", ("J",), letters="ABCDEFGHIJ").value == 1
