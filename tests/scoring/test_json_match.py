import pytest

from batchrun.scoring.json_match import json_match, schema_match, validity
from batchrun.scoring.score import BadTarget


@pytest.mark.parametrize(
    ("text", "target", "options", "value"),
    [
        ('{"a": 1, "b": [2]}', '{"b": [2], "a": 1.0}', {}, 1),
        ('```json\n{"a": 1}\n```', '{"a": 1}', {}, 1),
        ("true", "1", {}, 0),
        ("9007199254740993", "9007199254740992", {}, 0),
        ('"1"', "1", {}, 0),
        ("null", "0", {}, 0),
        ("[1, 2]", "[2, 1]", {}, 0),
        ("[1, 2]", "[2, 1]", {"unordered": True}, 1),
        ('[{"a": [1, 2]}, 3]', '[3, {"a": [2, 1]}]', {"unordered": True}, 1),
        ("[1, 1, 2]", "[1, 2, 2]", {"unordered": True}, 0),
        ('{"a": 1, "b": 2}', '{"a": 1}', {}, 0),
        ('{"a": 1, "b": 2}', '{"a": 1, "b": 3}', {"partial": True}, 1 / 3),
        ('{"a": 1, "b": 2}', '{"a": 1}', {"partial": True}, 1 / 2),
        ("[1, 2, 3]", "[3, 2, 1, 0]", {"unordered": True, "partial": True}, 3 / 4),
        ("{}", "{}", {"partial": True}, 1),
        ('{"a": {"b": [0, 7]}, "c": 1}', '{"a": {"b": [1, 7]}, "c": 2}', {"paths": ["a.b[1]"]}, 1),
        ('{"a": 1, "c": 1}', '{"a": 1, "c": 2}', {"paths": ["a", "c"]}, 0),
        ('{"a": 1, "c": 1}', '{"a": 1, "c": 2}', {"paths": ["a", "c"], "partial": True}, 1 / 2),
        ("{}", '{"a": null}', {"paths": ["a"]}, 0),
        ("not json", "{}", {}, 0),
        ("NaN", "0", {}, 0),
        ("", "{}", {}, 0),
        ("[" * 20_000, "[]", {}, 0),
        ("1e999999999999999999999", "1", {}, 0),
    ],
)
def test_json(text: str, target: str, options: dict[str, object], value: float) -> None:
    assert json_match(text, (target,), **options).value == value  # type: ignore[arg-type]


def test_leaves_that_are_all_there_in_other_places_are_not_the_same() -> None:
    one, other = '[{"a":1,"b":2},{"a":3,"b":4}]', '[{"a":1,"b":4},{"a":3,"b":2}]'
    value = json_match(one, (other,), unordered=True, partial=True).value
    assert value is not None
    assert 0.99 < value < 1


def test_what_differs_is_said() -> None:
    assert json_match('{"a": {"b": 1}}', ({"a": {"b": 2}},)).explanation == '"a"."b" differs'
    assert json_match("no", ("{}",)).reason == "not_json"


def test_targets_that_cannot_be() -> None:
    with pytest.raises(BadTarget, match="is not JSON"):
        json_match("{}", ("Paris",))
    with pytest.raises(BadTarget, match="nothing at a"):
        json_match("{}", ("{}",), paths=["a"])


def test_schema() -> None:
    is_valid = validity({"type": "object", "required": ["a"]})
    assert schema_match('{"a": 1}', is_valid).value == 1
    assert schema_match("{}", is_valid)[:3] == (0, "{}", "not_valid")
    assert schema_match("no", is_valid).reason == "not_json"
    for wrong in ({"type": "objekt"}, {"$ref": "https://example.org/other.json"}):
        with pytest.raises(ValueError, match=r"."):
            validity(wrong)
