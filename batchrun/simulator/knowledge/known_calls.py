"""Targets that are calls of functions, or JSON: said rightly in any order, or with one mistake."""

import json
import math
import re
from random import Random
from typing import Any

import msgspec

Item = dict[str, Any]
_encode = msgspec.json.Encoder().encode


def calls_of(target: Any) -> list[tuple[str, Item]] | None:
    """Calls as names and lists of accepted values, `""` for what may be left out; None: words."""
    if isinstance(target, str) and target.lstrip()[:1] in ("[", "{"):
        try:
            target = json.loads(target)
        except ValueError:
            return None
    if not isinstance(target, list) or not all(isinstance(one, dict) for one in target):
        return None
    calls = []
    for one in target:
        if "name" in one and isinstance(one.get("arguments"), dict):
            calls.append((one["name"], {name: [value] for name, value in one["arguments"].items()}))
        elif len(one) == 1 and isinstance(next(iter(one.values())), dict):
            ((name, arguments),) = one.items()
            calls.append((name, arguments))
        else:
            return None
    return calls or None


def call_parts(
    calls: list[tuple[str, Item]], functions: list[Item], rng: Random, *, is_right: bool
) -> list[Item]:
    """The calls in any order; where they are to be wrong, with one thing in them that is."""
    offered = {_plain_name(tool["name"]): str(tool["name"]) for tool in functions}
    made = []
    for name, accepted in calls:
        chosen = {name: _chosen(values, rng) for name, values in accepted.items()}
        arguments = {name: value for name, value in chosen.items() if value != ""}
        made.append((offered.get(_plain_name(name), name), arguments))
    if not is_right:
        made = _spoilt(made, calls, rng)
    rng.shuffle(made)
    if not made:
        return [{"type": "output_text", "text": "No function fits this."}]
    return [
        {"type": "call", "name": name, "text": _encode(arguments).decode()}
        for name, arguments in made
    ]


def _plain_name(name: str) -> str:
    """Without what the API does not take in a name, such as the dot of `math.sqrt`."""
    return re.sub(r"[^A-Za-z0-9]", "_", name)


def _chosen(values: Any, rng: Random) -> Any:
    """One of the accepted values; an object of lists is an object of chosen values."""
    if not isinstance(values, list):
        return values
    some = [value for value in values if value != ""] or [""]
    value = rng.choice(some)
    if isinstance(value, dict):
        chosen = {name: _chosen(one, rng) for name, one in value.items()}
        return {name: one for name, one in chosen.items() if one != ""}
    if isinstance(value, list):
        return [_chosen([one], rng) if isinstance(one, dict) else one for one in value]
    return value


def _spoilt(
    made: list[tuple[str, Item]], calls: list[tuple[str, Item]], rng: Random
) -> list[tuple[str, Item]]:
    """One call too few, one too many, or one with a value that is not accepted."""
    at = rng.randrange(len(made))
    name, arguments = made[at]
    way = rng.choice(("fewer", "more", "value") if arguments else ("fewer", "more"))
    if way == "fewer":
        return [*made[:at], *made[at + 1 :]]
    if way == "more":
        return [*made, (name, arguments)]
    changed = rng.choice(sorted(arguments))
    accepted = calls[at][1][changed]
    value = _other_value(arguments[changed], accepted)
    return [*made[:at], (name, {**arguments, changed: value}), *made[at + 1 :]]


def _other_value(value: Any, accepted: Any) -> Any:
    """A value of the same type that is not accepted."""
    numbers = [one for one in accepted if isinstance(one, int | float)]
    if isinstance(value, bool):
        return "neither"
    if isinstance(value, int | float):
        return math.floor(max(numbers, default=0)) + 7
    if isinstance(value, str):
        return f"{value} of another kind"
    return [] if isinstance(value, list) and value else {"other": 1}


def changed_leaf(target: Any, rng: Random) -> Any:
    """An object, or a list of them, with one leaf that is wrong."""
    if isinstance(target, dict) and target:
        name = rng.choice(sorted(target))
        return {**target, name: changed_leaf(target[name], rng)}
    if isinstance(target, list) and target:
        at = rng.randrange(len(target))
        return [*target[:at], changed_leaf(target[at], rng), *target[at + 1 :]]
    return _other_value(target, [target])
