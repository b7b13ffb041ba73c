import itertools
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.job.scorer_sections import ToolCallsJob
from batchrun.scoring.call_match import (
    REASONS,
    Call,
    call_match,
    expected_calls,
    folded,
    given_call,
)
from batchrun.scoring.score import BadTarget, Score

# bfcl-eval 2026.3.23 (Berkeley Function Calling Leaderboard v4), Apache-2.0.
_BFCL = Path(__file__).parents[3] / "shared" / "data" / "bfcl_parallel_answers.jsonl"
Given = tuple[str, dict[str, Any]]


def _rules(**options: Any) -> ToolCallsJob:
    return ToolCallsJob(name="calls", kind="tool_calls", **options)


def scored(given_calls: Sequence[Given], expected: object, **rules: Any) -> Score:
    calls = [given_call(name, json.dumps(arguments)) for name, arguments in given_calls]
    return call_match(calls, expected_calls(expected), _rules(**rules))


def f(**arguments: object) -> Given:
    return "f", arguments


def want(**arguments: object) -> dict[str, object]:
    return {"name": "f", "arguments": arguments}


@pytest.mark.parametrize(
    ("calls", "expected", "rules", "value", "reason"),
    [
        ([f(a=1)], [want(a=1)], {}, 1, None),
        ([], [], {}, 1, None),
        ([f(a=1)], [], {}, 0, "wrong_count"),
        ([], [want(a=1)], {}, 0, "wrong_count"),
        ([f(a=1), f(a=1)], [want(a=1)], {}, 0, "wrong_count"),
        ([f(a=1), f(a=2)], [want(a=2)], {"count": "at_least"}, 1, None),
        ([f(a=1), f(a=3)], [want(a=2)], {"count": "at_least"}, 0, "wrong_value"),
        ([("g", {})], [want()], {}, 0, "wrong_name"),
        ([f()], [want(a=1)], {}, 0, "missing_argument"),
        ([f(a=1, b=1)], [want(a=1)], {}, 0, "unexpected_argument"),
        ([f(a=1, b=1)], [want(a=1)], {"extra_arguments": "allowed"}, 1, None),
        ([f(a="1")], [want(a=1)], {}, 0, "wrong_type"),
        ([f(a=True)], [want(a=1)], {}, 0, "wrong_type"),
        ([f(a=1)], [want(a=True)], {"types": "python"}, 0, "wrong_type"),
        ([f(a=2)], [want(a=1)], {}, 0, "wrong_value"),
        ([f(a=5.0)], [want(a=5)], {}, 1, None),
        ([f(a=5.0)], [want(a=5)], {"types": "python"}, 0, "wrong_type"),
        ([f(a=5)], [want(a=5.0)], {"types": "python"}, 1, None),
        ([f(a=9007199254740993)], [want(a=9007199254740992)], {}, 0, "wrong_value"),
        ([f(a="New York")], [want(a="new york")], {}, 0, "wrong_value"),
        ([f(a="New-York, NY")], [want(a="new york ny")], {"strings": "fold"}, 1, None),
        ([f(a="1.5")], [want(a="15")], {"strings": "fold"}, 0, "wrong_value"),
        ([f(a=[1, {"b": "x"}])], [want(a=[1.0, {"b": "x"}])], {}, 1, None),
        ([f(a=[2, 1])], [want(a=[1, 2])], {}, 0, "wrong_value"),
        ([f(a=None)], [want(a=None)], {}, 1, None),
        ([f(a=2)], [want(a=[1, 2])], {"values": "any_of"}, 1, None),
        ([f()], [want(a=[1, ""])], {"values": "any_of"}, 1, None),
        ([f()], [want(a=[1])], {"values": "any_of"}, 0, "missing_argument"),
        ([f(a=3)], [want(a=[1, 2])], {"values": "any_of"}, 0, "wrong_value"),
        ([f(a={"b": 2})], [want(a=[{"b": [1, 2], "c": [1, ""]}])], {"values": "any_of"}, 1, None),
        ([f(a={})], [want(a=[{"b": [1, 2]}])], {"values": "any_of"}, 0, "wrong_value"),
        ([f(a=1), f(a=2)], [want(a=2), want(a=1)], {}, 1, None),
        ([f(a=1), f(a=2)], [want(a=2), want(a=1)], {"order": "same"}, 0, "wrong_value"),
        (
            [f(a=1), f(a=9), f(a=2)],
            [want(a=1), want(a=2)],
            {"order": "same", "count": "at_least"},
            1,
            None,
        ),
        ([f(a=1), f(a=3)], [want(a=1), want(a=2)], {"partial": True}, 1 / 2, "wrong_value"),
        ([f(a=1)], [want(a=1), want(a=2)], {"partial": True}, 1 / 2, "wrong_count"),
        ([f(a=1), f(a=3), f(a=4)], [want(a=1)], {"partial": True}, 1 / 3, "wrong_count"),
        (
            [f(a=2), f(a=1)],
            [want(a=1), want(a=2)],
            {"partial": True, "order": "same"},
            1 / 2,
            "wrong_value",
        ),
    ],
)
def test_calls(
    calls: list[Given], expected: object, rules: dict[str, Any], value: float, reason: str | None
) -> None:
    found = scored(calls, expected, **rules)
    assert (found.value, found.reason) == (value, reason)


def test_pairing_does_not_take_the_first_call_that_fits() -> None:
    """The error of a greedy matching: the first call takes what the second one alone needs."""
    expected = [{"f": {"a": [1, 2]}}, {"f": {"a": [1]}}]
    for calls in ([f(a=1), f(a=2)], [f(a=2), f(a=1)]):
        for some in (expected, expected[::-1]):
            assert scored(calls, some, values="any_of").value == 1


def test_expected_calls_in_other_forms() -> None:
    one = (Call("f", {"a": 1}),)
    assert expected_calls('[{"name": "f", "arguments": {"a": 1}}]') == one
    assert expected_calls({"name": "f", "arguments": '{"a": 1}'}) == one
    assert expected_calls([{"f": {"a": 1}}]) == one
    wrong: object
    for wrong in ("f(1)", "3", [3], [{"name": "f", "arguments": 3}], [{"f": {}, "g": {}}]):
        with pytest.raises(BadTarget):
            expected_calls(wrong)


def test_names_that_cannot_be_on_the_wire_are_as_requests_have_them() -> None:
    assert scored([("spotify_play", {})], [{"spotify.play": {}}]).value == 1
    assert scored([("spotify.play", {})], [{"spotify.play": {}}]).value == 1


def test_arguments_that_are_no_json() -> None:
    for arguments in ("{", "[1]", "NaN"):
        found = call_match([given_call("f", arguments)], expected_calls([want(a=1)]), _rules())
        assert (found.value, found.reason) == (0, "wrong_type")
    assert call_match([given_call("f", "")], expected_calls([want()]), _rules()).value == 1


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("It's 5 o'clock", 'it"s 5 o"clock', True),
        ("2026-05-01", "2026/05/01", True),
        ("1,000", "1000", True),
        ("1.5", "15", False),
        ("1,5", "15", False),
        ("1/2", "12", False),
        ("-5", "5", False),
    ],
)
def test_folding_leaves_numbers_what_they_are(one: str, other: str, same: bool) -> None:
    assert (folded(one) == folded(other)) == same


# Few values, so that calls fit several expected ones.
_ARGUMENTS = st.dictionaries(st.sampled_from("ab"), st.integers(1, 3), max_size=2)
_CALLS = st.lists(st.tuples(st.sampled_from("fg"), _ARGUMENTS), max_size=4)
_ACCEPTED = st.dictionaries(
    st.sampled_from("ab"),
    st.lists(st.sampled_from([1, 2, 3, "", "x"]), min_size=1, max_size=3),
    max_size=2,
)
_EXPECTED = st.lists(st.tuples(st.sampled_from("fg"), _ACCEPTED), max_size=4)


def _why(call: Call, expected: Call, rules: ToolCallsJob) -> str:
    """What is wrong with a single call, as a scorer of one call says; empty where it fits."""
    return call_match([call], [expected], rules).reason or ""


def _pairings(expected: int, calls: int) -> Iterator[list[tuple[int, int]]]:
    if expected <= calls:
        for places in itertools.permutations(range(calls), expected):
            yield list(enumerate(places))
    else:
        for places in itertools.permutations(range(expected), calls):
            yield [(at, place) for place, at in enumerate(places)]


@given(_CALLS, _EXPECTED, st.sampled_from(["exact", "at_least"]), st.randoms(use_true_random=False))
def test_verdict_and_reason_are_the_best_of_all_pairings(
    given_calls: list[Given], accepted: list[Given], count: Any, rng: random.Random
) -> None:
    rules = _rules(values="any_of", count=count, partial=True)
    calls = [given_call(name, json.dumps(arguments)) for name, arguments in given_calls]
    expected = [Call(name, arguments) for name, arguments in accepted]
    best, best_reasons = -1, list[int]()
    for pairs in _pairings(len(expected), len(calls)):
        why = [_why(calls[place], expected[at], rules) for at, place in pairs]
        fits = why.count("")
        reasons = sorted(REASONS.index(one) for one in why if one)
        # The most that fit; then the fewest of the worst, of the second worst, ...
        weights = [reasons.count(one) for one in range(len(REASONS))]
        known = [best_reasons.count(one) for one in range(len(REASONS))]
        if fits > best or (fits == best and weights < known):
            best, best_reasons = fits, reasons
    of = len(expected) if count == "at_least" else max(len(expected), len(calls))
    value = best / of if of else 1
    reason = None if value == 1 else REASONS[best_reasons[0]] if best_reasons else None
    if value < 1 and (
        len(calls) < len(expected) or (len(calls) != len(expected) and count == "exact")
    ):
        reason = "wrong_count"
    for _ in range(3):
        found = call_match(calls, expected, rules)
        assert (found.value, found.reason) == (value, reason)
        rng.shuffle(calls)
        rng.shuffle(expected)


def _right(expected: Sequence[dict[str, dict[str, list[Any]]]], rng: random.Random) -> list[Given]:
    """Calls that are right, some arguments left out where they may be."""
    calls = []
    for one in expected:
        ((name, accepted),) = one.items()
        arguments = {}
        for argument, values in accepted.items():
            present = [value for value in values if value != ""]
            if present and not ("" in values and rng.random() < 0.5):
                arguments[argument] = _instance(rng.choice(present), rng)
        calls.append((name.replace(".", "_"), arguments))
    return calls


def _instance(value: Any, rng: random.Random) -> Any:
    """Of an accepted object, whose fields have lists of accepted values."""
    if isinstance(value, dict):
        chosen = {key: [one for one in inner if one != ""] for key, inner in value.items()}
        return {key: _instance(rng.choice(some), rng) for key, some in chosen.items() if some}
    return [_instance(one, rng) for one in value] if isinstance(value, list) else value


@pytest.mark.skipif(not _BFCL.exists(), reason="the shared data is not here")
def test_answers_of_bfcl_right_permuted_and_broken() -> None:
    rng = random.Random(7)
    reasons = set()
    for line in _BFCL.read_text(encoding="utf-8").splitlines():
        target = json.loads(line)["ground_truth"]
        expected = expected_calls(target)
        right = _right(target, rng)
        at = rng.randrange(len(right))
        arguments = right[at][1]
        required = [one for one, values in expected[at].arguments.items() if "" not in values]  # type: ignore[union-attr]
        broken: list[tuple[str | None, list[Given]]] = [
            (None, right),
            ("wrong_count", [*right, right[at]]),
            ("wrong_count", right[1:]),
            ("wrong_name", [*right[:at], ("other", arguments), *right[at + 1 :]]),
            ("unexpected_argument", _with(right, at, {**arguments, "zzz": 1})),
        ]
        for argument in required[:1]:
            less = {one: value for one, value in arguments.items() if one != argument}
            broken += [
                ("missing_argument", _with(right, at, less)),
                (
                    "wrong_type",
                    _with(right, at, {**arguments, argument: _of_other_type(arguments[argument])}),
                ),
                (
                    "wrong_value",
                    _with(right, at, {**arguments, argument: _other(arguments[argument])}),
                ),
            ]
        for reason, calls in broken:
            for _ in range(3):
                rng.shuffle(calls)
                found = scored(calls, target, values="any_of", types="python")
                assert (found.value, found.reason) == (float(reason is None), reason), (line, calls)
            reasons.add(reason)
    assert reasons == {None, *REASONS}


def _with(calls: list[Given], at: int, arguments: dict[str, Any]) -> list[Given]:
    return [*calls[:at], (calls[at][0], arguments), *calls[at + 1 :]]


def _of_other_type(value: Any) -> Any:
    return 3 if isinstance(value, dict) else {"never": ["seen"]}


def _other(value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 987_654
    if isinstance(value, list):
        return [*value, *value, *(["never seen"] if not value else [])]
    return {"never": "seen"} if isinstance(value, dict) else f"{value} never seen"
