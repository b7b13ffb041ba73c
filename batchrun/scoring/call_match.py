"""Tool calls against those expected (`tool_calls`).

A call fits an expected one when the name is the same, no required argument is missing, and each
argument that is given is known and has an accepted value. Calls are paired with expected ones by
the assignment in which least is wrong, found by shortest augmenting paths (R. Jonker and A.
Volgenant, Computing 38, 1987): neither verdict nor reason depends on the order of calls, as they do
where each call takes the first that fits.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from msgspec import Struct

from batchrun.formats.amounts import plural
from batchrun.formats.json_text import shown
from batchrun.job.scorer_sections import ToolCallsJob
from batchrun.scoring.json_match import canonical, read_json
from batchrun.scoring.score import BadTarget, Score

# What can be wrong, the worst first.
REASONS = (
    *("wrong_count", "wrong_name", "missing_argument", "unexpected_argument"),
    *("wrong_type", "wrong_value"),
)
_FITS = ""
_MAY_BE_ABSENT = ""  # among the accepted values of an argument
_UNFIT_FOR_NAMES = re.compile(r"[^a-zA-Z0-9_-]")  # no function's name on the wire has such
_MOST_NAME = 64


class Call(Struct, frozen=True):
    """One call, as given or as expected."""

    name: str
    arguments: Mapping[str, Any] | None  # null: what was written is no JSON object


def given_call(name: str | None, arguments: str | None) -> Call:
    """A call as a model made it."""
    try:
        value = read_json(arguments or "{}")
    except ValueError:
        value = None
    return Call(name or "", value if isinstance(value, dict) else None)


def expected_calls(target: Any) -> tuple[Call, ...]:
    """Those of a target: `[{name, arguments}]`, `[{NAME: arguments}]` as BFCL has it, or its JSON.

    Raises `BadTarget`.
    """
    value = target
    try:
        text = target if isinstance(target, str) else json.dumps(target, default=float)
        value = read_json(text)
    except (ValueError, TypeError):
        raise BadTarget(f"the expected calls are not JSON: {shown(text, 80)}") from None
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise BadTarget(f"the expected calls are not a list: {shown(text, 80)}")
    return tuple(_expected(one) for one in value)


def _expected(value: Any) -> Call:
    name = arguments = None
    if isinstance(value, dict) and isinstance(value.get("name"), str):
        name, arguments = value["name"], value.get("arguments", {})
        if isinstance(arguments, str):
            arguments = given_call(name, arguments).arguments
    elif isinstance(value, dict) and len(value) == 1:
        ((name, arguments),) = value.items()
    if name is None or not isinstance(arguments, dict):
        shown = json.dumps(value, default=str)
        raise BadTarget(
            f"an expected call is neither {{name, arguments}} nor {{NAME: arguments}}: {shown:.80}"
        )
    return Call(name, arguments)


def call_match(calls: Sequence[Call], expected: Sequence[Call], rules: ToolCallsJob) -> Score:
    """1 where the calls are those expected; with `partial` the share that is, of the larger number.

    `count` at_least: further calls do no harm. `order` same: the calls in their order; further ones
    may stand between.
    """
    answer = json.dumps([_shown(call) for call in calls], ensure_ascii=False, default=_plain)
    wrong = [[_difference(call, one, rules) for call in calls] for one in expected]
    same_order, at_least = rules.order == "same", rules.count == "at_least"
    pairs = _in_order(wrong, len(calls)) if same_order else _assigned(wrong, len(calls))
    fits = sum(wrong[at][place][0] == _FITS for at, place in pairs)
    of = len(expected) if at_least else max(len(expected), len(calls))
    value = fits / of if of else 1.0
    if value == 1:
        return Score(1.0, answer)
    least = value if rules.partial else 0.0
    if len(calls) < len(expected) or (len(calls) > len(expected) and not at_least):
        said = f"{plural(len(calls), 'call')}, expected {len(expected)}"
        return Score(least, answer, "wrong_count", said)
    if same_order:
        reason, said = _out_of_order(wrong, pairs, len(calls))
    else:
        found = (wrong[at][place] for at, place in pairs)
        reason, said = min((one for one in found if one[0] != _FITS), key=_by_weight)
    return Score(least, answer, reason, said)


def _shown(call: Call) -> dict[str, Any]:
    return {"name": call.name, "arguments": call.arguments}


def _plain(value: Decimal) -> Any:
    return int(value) if value == value.to_integral_value() else float(value)


_Difference = tuple[str, str]  # the reason, empty where the call fits; in words


def _by_weight(difference: _Difference) -> tuple[int, str]:
    """The worst first."""
    return REASONS.index(difference[0]), difference[1]


def _out_of_order(
    wrong: Sequence[Sequence[_Difference]], pairs: Sequence[tuple[int, int]], calls: int
) -> _Difference:
    """What is wrong with the calls in their places; where there are more, with the nearest."""
    if all(wrong[at][place][0] == _FITS for at, place in _assigned(wrong, calls)):
        suffix = " (all calls are there, in another order)"
    else:
        suffix = ""
    if len(wrong) == calls:
        found = [row[at] for at, row in enumerate(wrong) if row[at][0] != _FITS]
    else:
        rest = [row for at, row in enumerate(wrong) if at not in dict(pairs)]
        unfit = [[one for one in row if one[0] != _FITS] for row in rest]
        found = [max(row, key=_by_weight) for row in unfit if row] or [("wrong_value", "")]
    reason, said = min(found, key=_by_weight)
    return reason, said + suffix


def _difference(call: Call, expected: Call, rules: ToolCallsJob) -> _Difference:
    """The worst thing that is wrong with a call, whatever the order of arguments."""
    if not _same_name(call.name, expected.name):
        return "wrong_name", f"{call.name}, expected {expected.name}"
    given = call.arguments
    if given is None:
        return "wrong_type", f"{call.name}: the arguments are not a JSON object"
    wanted = expected.arguments or {}
    for name in sorted(wanted):
        if name not in given and not _may_be_absent(wanted[name], rules):
            return "missing_argument", f"{call.name}: {name} is missing"
    extra = sorted(name for name in given if name not in wanted)
    if extra and rules.extra_arguments == "forbidden":
        return "unexpected_argument", f"{call.name}: {extra[0]} is not expected"
    worst: _Difference = (_FITS, "")
    for name in sorted(given.keys() & wanted.keys()):
        accepted = wanted[name]
        if rules.values == "exact" or not isinstance(accepted, list):
            accepted = [accepted]
        reasons = [_value_difference(given[name], one, rules) for one in accepted]
        if _FITS not in reasons:
            said = f"{call.name}: {name} is {_written(given[name])}, expected {_or(accepted)}"
            if "wrong_value" not in reasons:
                return "wrong_type", said
            worst = worst if worst[0] else ("wrong_value", said)
    return worst


def _same_name(given: str, expected: str) -> bool:
    """An expected name may hold what no name on the wire can: there such letters are `_`."""
    return given == expected or given == _UNFIT_FOR_NAMES.sub("_", expected)[:_MOST_NAME]


def _may_be_absent(accepted: Any, rules: ToolCallsJob) -> bool:
    return rules.values == "any_of" and isinstance(accepted, list) and _MAY_BE_ABSENT in accepted


def _written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=_plain)[:200]


def _or(accepted: Sequence[Any]) -> str:
    return " or ".join(map(_written, accepted))[:300]


def _value_difference(given: Any, accepted: Any, rules: ToolCallsJob) -> str:
    """Empty where the value is accepted, else wrong_type or wrong_value."""
    if not _same_type(given, accepted, rules.types):
        return "wrong_type"
    match accepted:
        case str():
            same = given == accepted or (
                rules.strings == "fold" and folded(given) == folded(accepted)
            )
        case list():
            inner = _within_list(rules)
            same = len(given) == len(accepted) and not any(map(inner, given, accepted))
        case dict():
            same = _same_object(given, accepted, rules)
        case _:
            same = canonical(given) == canonical(accepted)
    return _FITS if same else "wrong_value"


def _within_list(rules: ToolCallsJob) -> Callable[[Any, Any], str]:
    return lambda given, accepted: _value_difference(given, accepted, rules)


def _same_object(
    given: Mapping[str, Any], accepted: Mapping[str, Any], rules: ToolCallsJob
) -> bool:
    """With `any_of`, fields of an accepted object have lists of accepted values as well."""
    if any(name not in accepted for name in given):
        return False
    for name, value in accepted.items():
        if name not in given:
            if not _may_be_absent(value, rules):
                return False
            continue
        values = value if rules.values == "any_of" and isinstance(value, list) else [value]
        if all(_value_difference(given[name], one, rules) for one in values):
            return False
    return True


def _same_type(given: Any, accepted: Any, types: str) -> bool:
    """`json`: all numbers are of one type. `python`: an integer is a float, and not the reverse."""
    mine, theirs = _kind(given), _kind(accepted)
    if mine == theirs:
        return True
    if types == "json":
        return {mine, theirs} == {"integer", "float"}
    return (mine, theirs) == ("integer", "float")


def _kind(value: Any) -> str:
    match value:
        case bool():
            return "bool"
        case int():
            return "integer"
        case float() | Decimal():
            return "float"
        case str():
            return "text"
        case list() | tuple():
            return "list"
        case None:
            return "null"
    return "object"


# What folding leaves out, but for a point between digits, a slash of a fraction, a number's sign.
_FOLDED = re.compile(
    r"(?P<kept>(?<=\d)\.(?=\d)|(?<![\d/])\d+/\d+(?![\d/])|(?<![^\s(])-(?=\.?\d)"
    r"|(?<=\d),(?=\d)(?!\d{3}(?!\d)))|[ ,./\-_*^]"
)


def folded(text: str) -> str:
    """Lower case, `"` for `'`, without blanks and `, . / - _ * ^`.

    What makes numbers different stays: the point of `1.5`, the comma of `1,5`, the slash of `1/2`,
    the sign of `-5`; the comma of `1,000` goes.
    """
    kept = _FOLDED.sub(lambda found: found["kept"] or "", text)
    return kept.lower().replace("'", '"')


def _in_order(wrong: Sequence[Sequence[_Difference]], calls: int) -> list[tuple[int, int]]:
    """The most pairs that fit, in the order of both: places of expected ones and of calls."""
    best = [[0] * (calls + 1) for _ in range(len(wrong) + 1)]
    for at in reversed(range(len(wrong))):
        for place in reversed(range(calls)):
            taken = best[at + 1][place + 1] + 1 if wrong[at][place][0] == _FITS else 0
            best[at][place] = max(taken, best[at + 1][place], best[at][place + 1])
    found = []
    at = place = 0
    while at < len(wrong) and place < calls:
        if wrong[at][place][0] == _FITS and best[at][place] == best[at + 1][place + 1] + 1:
            found.append((at, place))
            at, place = at + 1, place + 1
        elif best[at][place] == best[at + 1][place]:
            at += 1
        else:
            place += 1
    return found


def _assigned(wrong: Sequence[Sequence[_Difference]], calls: int) -> list[tuple[int, int]]:
    """Pairs of places of expected ones and of calls, as many as there are of both.

    As many fit as can, and of what does not fit the worst is as rare as can be.
    """
    if not wrong or not calls:
        return []
    base = max(len(wrong), calls) + 1
    costs = {reason: base ** (len(REASONS) - at) for at, reason in enumerate(REASONS)}
    unfit = sum(costs.values()) * base  # one more that fits is worth any number of others
    rows = [[0 if not one[0] else unfit + costs[one[0]] for one in row] for row in wrong]
    if len(rows) <= calls:
        return list(enumerate(_least_cost(rows)))
    columns = [list(column) for column in zip(*rows, strict=True)]
    return [(at, place) for place, at in enumerate(_least_cost(columns))]


def _least_cost(costs: Sequence[Sequence[int]]) -> Iterator[int]:
    """The column of each row in the assignment of least cost; at least as many columns as rows.

    Shortest augmenting paths with potentials; integers, so nothing is rounded.
    """
    columns = len(costs[0])
    row_of = [-1] * (columns + 1)  # by column; the last one stands for the row that is added
    of_row, of_column = [0] * len(costs), [0] * (columns + 1)  # potentials
    for row in range(len(costs)):
        row_of[columns] = row
        least: list[int | None] = [None] * columns
        before = [columns] * columns
        done = [False] * (columns + 1)
        at = columns
        while row_of[at] >= 0:
            done[at] = True
            current = row_of[at]
            step, following = None, -1
            for column in range(columns):
                if done[column]:
                    continue
                cost = costs[current][column] - of_row[current] - of_column[column]
                known = least[column]
                if known is None or cost < known:
                    least[column], before[column] = cost, at
                    known = cost
                if step is None or known < step:
                    step, following = known, column
            assert step is not None  # noqa: S101 - there are enough columns
            for column in range(columns + 1):
                if done[column]:
                    of_row[row_of[column]] += step
                    of_column[column] -= step
                elif (known := least[column] if column < columns else None) is not None:
                    least[column] = known - step
            at = following
        while at != columns:
            row_of[at] = row_of[before[at]]
            at = before[at]
    place = {row: column for column, row in enumerate(row_of[:columns]) if row >= 0}
    return (place[row] for row in range(len(costs)))
