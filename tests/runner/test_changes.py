"""What changed in a request, field by field."""

import json
from typing import Any

import pytest

from batchrun.records import BadRow, Request
from batchrun.runner.changes import request_changes, setting_changes

_LONG = "The same beginning of a long text that goes on and on. " * 4


def _request(body: dict[str, Any]) -> Request:
    return Request(0, "a", "s", json.dumps(body).encode(), "0" * 16, None, None, ())


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ({"model": "old"}, {"model": "new"}, ["request.model: old -> new"]),
        ({}, {"top_p": 0.5}, ["request.top_p: (absent) -> 0.5"]),
        ({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 2}}}, ["request.a.b.c: 1 -> 2"]),
        ({"a": True}, {"a": 1}, ["request.a: true -> 1"]),
        ({"a": 1}, {"a": 1.0}, ["request.a: 1 -> 1.0"]),
        ({"a": ["x", {"y": 1}]}, {"a": ["x", {"y": 2}]}, ["request.a[1].y: 1 -> 2"]),
        ({"a": [1]}, {"a": [1, 2, 3]}, ["request.a: 1 item -> 3 items"]),
        ({"a": "x\n"}, {"a": ""}, [r'request.a: x\n -> ""']),
        ({"a": {}}, {"a": "text"}, ["request.a: {} -> text"]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, []),
    ],
)
def test_each_field_that_differs_is_said(before: Any, now: Any, said: list[str]) -> None:
    assert request_changes(json.dumps(before), _request(now)) == said


def test_of_long_texts_the_place_is_shown_where_they_part() -> None:
    before, now = {"input": f"{_LONG}one{_LONG}"}, {"input": f"{_LONG}two{_LONG}"}
    (said,) = request_changes(json.dumps(before), _request(now))
    assert said.startswith("request.input: …oes on and on. one")
    assert " -> …" in said
    assert "on and on. two" in said
    assert len(said) < 200


def test_few_of_many_fields_are_said() -> None:
    before = {f"f{at}": at for at in range(9)}
    said = request_changes(json.dumps(before), _request({}))
    assert len(said) == 6
    assert said[-1] == "and 4 more"


def test_a_row_that_became_bad_says_why() -> None:
    row = BadRow(0, "a", "s", 1, "no model", "0" * 16)
    assert request_changes("{}", row) == ["it cannot be sent any more: no model"]


def test_settings_that_requests_are_not_made_by_do_not_count() -> None:
    before = {"request": {"model": "a"}, "input": {"path": "x", "send": ["t"]}, "limits": {"a": 1}}
    now = {"request": {"model": "b"}, "input": {"path": "y", "send": []}, "limits": {}}
    assert setting_changes(before, now) == [
        "request.model: a -> b",
        "input.send: 1 item -> 0 items",
    ]
