"""JSON compared as values (`json`): all of it, its share of equal leaves, or some paths of it.

Numbers are compared as decimals, so 1 equals 1.0, true never equals 1, and integers above 2^53
differ where their digits do.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from jsonschema_rs import ReferencingError, ValidationError, validator_for

from batchrun.formats.json_text import shown
from batchrun.scoring.score import BadTarget, Score

_FENCE = re.compile(r"\A\s*```[\w-]*\s*\n(.*?)\n?\s*```\s*\Z", re.DOTALL)
_STEP = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]")
_MISSING = object()
_MOST_DIGITS = 4_000


def _unfenced(text: str) -> str:
    fenced = _FENCE.match(text)
    return fenced[1] if fenced else text


def _refuse(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


def read_json(text: str) -> Any:
    """The value, numbers exact; a fence of three backticks around it is taken off.

    Raises `ValueError` where it is no JSON.
    """
    try:
        return json.loads(
            _unfenced(text),
            parse_float=_decimal,
            parse_int=_integer,
            parse_constant=_refuse,
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _decimal(digits: str) -> Decimal:
    try:
        return Decimal(digits)
    except InvalidOperation:
        raise ValueError("a number out of range") from None


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError("a number of too many digits")
    return int(digits)


def canonical(value: Any, *, unordered: bool = False) -> Any:
    """A value that can be hashed, and equals that of another exactly where both are the same JSON.

    `unordered`: lists are the same in any order.
    """
    match value:
        case dict():
            return (
                "object",
                frozenset((k, canonical(v, unordered=unordered)) for k, v in value.items()),
            )
        case list():
            parts = [canonical(one, unordered=unordered) for one in value]
            if unordered:
                return ("list", frozenset(Counter(parts).items()))
            return ("list", tuple(parts))
        case bool():
            return ("bool", value)
    return value


def equals(one: Any, other: Any) -> bool:
    """Whether both are the same JSON."""
    return bool(canonical(one) == canonical(other))


def leaves(value: Any, *, unordered: bool = False, path: str = "") -> Iterator[tuple[str, Any]]:
    """Each value that is no container, and each empty one, with its path.

    `unordered`: places in lists have no number.
    """
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, unordered=unordered, path=f"{path}.{json.dumps(key)}")
    elif isinstance(value, list) and value:
        for at, inner in enumerate(value):
            step = "[*]" if unordered else f"[{at}]"
            yield from leaves(inner, unordered=unordered, path=path + step)
    else:
        yield path, canonical(value)


def shared_leaves(one: Any, other: Any, *, unordered: bool = False) -> float:
    """Leaves that both have, over those that either has: 1 where they are the same."""
    mine, theirs = (Counter(leaves(value, unordered=unordered)) for value in (one, other))
    return (mine & theirs).total() / (mine | theirs).total()


def at_path(value: Any, path: str) -> Any:
    """The value at `a.b[0].c`; `_MISSING` where there is none."""
    for key, place in _STEP.findall(path):
        if place and isinstance(value, list) and int(place) < len(value):
            value = value[int(place)]
        elif key and isinstance(value, dict) and key in value:
            value = value[key]
        else:
            return _MISSING
    return value


def json_match(
    text: str,
    targets: Sequence[Any],
    *,
    paths: Sequence[str] = (),
    unordered: bool = False,
    partial: bool = False,
) -> Score:
    """1 where the text is the JSON of one of the targets, which are values or JSON text.

    `paths`: only what stands there is compared. `partial`: the share of leaves that are equal, of
    all that either has; for `paths`, the share of these. `unordered`: lists are the same in any
    order. Raises `BadTarget` for what is no JSON, or lacks a path.
    """
    wanted = [_target(one, paths) for one in targets]
    try:
        value = read_json(text)
        answer = json.dumps(value, ensure_ascii=False, sort_keys=True, default=_number)
        shares = [_share(value, one, paths, unordered=unordered) for one in wanted]
    except (ValueError, RecursionError) as error:
        return Score(0.0, None, "not_json", str(error)[:200])
    best = max(shares)
    if best == 1:
        return Score(1.0, answer)
    return Score(best if partial else 0.0, answer, "different", _difference(value, wanted, paths))


_ALMOST = 1 - 1e-9  # all leaves are there, in other places


def _share(value: Any, target: Any, paths: Sequence[str], *, unordered: bool) -> float:
    if paths:
        return sum(_same_at(value, target, path, unordered) for path in paths) / len(paths)
    if canonical(value, unordered=unordered) == canonical(target, unordered=unordered):
        return 1.0
    return min(shared_leaves(value, target, unordered=unordered), _ALMOST)


def _same_at(value: Any, target: Any, path: str, unordered: bool) -> bool:
    found = at_path(value, path)
    if found is _MISSING:
        return False
    wanted = canonical(at_path(target, path), unordered=unordered)
    return bool(canonical(found, unordered=unordered) == wanted)


def _difference(value: Any, wanted: Sequence[Any], paths: Sequence[str]) -> str | None:
    """Of a single target, the first path that differs."""
    if len(wanted) != 1:
        return None
    (target,) = wanted
    if not paths:
        mine, theirs = dict(leaves(value)), dict(leaves(target))
        found = (p for p in (*theirs, *mine) if mine.get(p, _MISSING) != theirs.get(p, _MISSING))
        path = next(found, None)
    else:
        path = next((p for p in paths if not _same_at(value, target, p, unordered=False)), None)
    return None if path is None else f"{path.removeprefix('.') or 'the whole'} differs"


def validity(schema: Any) -> Callable[[Any], bool]:
    """What says whether a value is valid. Raises `ValueError` where the schema is none."""
    try:
        is_valid: Callable[[Any], bool] = validator_for(schema, retriever=_refuse).is_valid
    except (ValidationError, ReferencingError) as error:
        raise ValueError(str(error).partition("\n")[0]) from None
    return is_valid


def schema_match(text: str, is_valid: Callable[[Any], bool]) -> Score:
    """1 where the text is JSON that is valid, as `is_valid` says of its value."""
    try:
        value = json.loads(_unfenced(text), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        return Score(0.0, None, "not_json", str(error)[:200])
    answer = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return Score(1.0, answer) if is_valid(value) else Score(0.0, answer, "not_valid")


def _target(target: Any, paths: Sequence[str]) -> Any:
    if isinstance(target, str):
        try:
            target = read_json(target)
        except ValueError as error:
            raise BadTarget(f"the target is not JSON ({error}): {shown(target, 80)}") from None
    for path in paths:
        if at_path(target, path) is _MISSING:
            raise BadTarget(f"the target has nothing at {path}")
    return target


def _number(value: Any) -> Any:
    return int(value) if value == value.to_integral_value() else float(value)
