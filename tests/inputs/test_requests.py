import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchrun.dialects.responses import REQUEST_FIELDS
from batchrun.inputs.rows import encode_sorted
from batchrun.records import BadRow, Request

Read = Callable[..., Any]
Write = Callable[..., Path]

USER = [{"role": "user", "content": "hi"}]


def bodies(rows: list[Any]) -> list[Any]:
    return [json.loads(row.body) for row in rows]


def test_forms_are_recognised_row_by_row_in_order(write: Write, read: Read) -> None:
    path = write(
        {"body": {"input": "1", "x": 1}, "messages": USER, "input": "no", "prompt": "no"},
        {"messages": USER, "input": "no", "prompt": "no"},
        {"prompt": USER, "input": "no"},
        {"input": "4", "prompt": "no"},
        {"prompt": {"id": "pmpt_1"}, "other": 1},
        {"prompt": "6", "max_tokens": 9, "temperature": 1},
        {"input": [{"role": "user", "content": "7"}], "temperature": 1, "stream": True, "seed": 7},
        {"body": None, "messages": None, "input": None, "prompt": "8"},
    )
    _, rows = read(path)
    assert bodies(rows) == [
        {"input": "1", "x": 1, "model": "m"},
        {"input": USER, "model": "m"},
        {"input": USER, "model": "m"},
        {"input": "4", "model": "m"},
        {"prompt": {"id": "pmpt_1"}, "model": "m"},
        {"input": "6", "max_output_tokens": 9, "model": "m"},
        {"input": [{"role": "user", "content": "7"}], "temperature": 1, "model": "m"},
        {"input": "8", "model": "m"},
    ]


def test_of_a_responses_body_known_fields_are_sent_and_others_carried(
    write: Write, read: Read
) -> None:
    row: dict[str, Any] = dict.fromkeys(
        sorted(REQUEST_FIELDS.keys() - {"prompt", "stream", "background"}), "value"
    )
    row |= {"input": "x", "model": "own", "category": "maths", "level": 3}
    survey, rows = read(write(row))
    assert bodies(rows) == [{k: v for k, v in row.items() if k not in ("category", "level")}]
    assert rows[0].carried == ("maths", 3)
    assert survey.carried == ("category", "level")
    assert set(survey.sent) == REQUEST_FIELDS.keys() - {"prompt", "stream", "background"}


def test_nulls_that_were_written_are_sent_but_a_null_model_is_none(
    write: Write, read: Read
) -> None:
    path = write({"input": "x", "temperature": None, "model": None})
    _, rows = read(path, {"model": "m", "temperature": 0.5})
    assert bodies(rows) == [{"input": "x", "temperature": None, "model": "m"}]


def test_json_as_text_is_read_where_a_structure_is_meant(write: Write, read: Read) -> None:
    path = write(
        {"messages": json.dumps(USER), "tools": '[{"type": "web_search"}]', "tool_choice": "auto"},
        {"input": '["a text prompt"]', "tools": '[{"type": "web_search"}]', "text": "{"},
        {"input": "x", "reasoning": '{"effort": "low"}', "tool_choice": '{"type": "mcp"}'},
        {"prompt": '[{"role": "user"}]'},
    )
    _, rows = read(path)
    assert bodies([rows[0]]) == [
        {"input": USER, "tools": [{"type": "web_search"}], "tool_choice": "auto", "model": "m"}
    ]
    assert rows[1].message.startswith("`text` is text that holds no JSON")
    assert bodies(rows[2:]) == [
        {
            "input": "x",
            "reasoning": {"effort": "low"},
            "tool_choice": {"type": "mcp"},
            "model": "m",
        },
        {"input": '[{"role": "user"}]', "model": "m"},
    ]


def test_columns_to_send_besides_go_by_their_names(write: Write, read: Read) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    path = write({"q": "a", "tools": json.dumps([tool]), "effort": "x"}, {"q": "b", "tools": None})
    request = {"input": "{{ q }}", "model": "m", "tools": []}
    _, rows = read(path, request, send=("tools",))
    assert bodies(rows) == [
        {
            "tools": [{"type": "function", "name": "f", "parameters": {}, "strict": False}],
            "input": "a",
            "model": "m",
        },
        {"input": "b", "model": "m", "tools": []},
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "no request can be made of it .*it is empty"),
        ({"promt": "x"}, "none of body, messages, input and prompt .its columns are promt"),
        ({"input": 5}, "`input` is 5; it must be text or a list"),
        ({"input": {"role": "user"}}, "must be text or a list"),
        ({"prompt": 5}, "`prompt` is 5"),
        ({"body": {"input": {"a": 1}}}, "`input` is an object, .*; it must be text"),
        ({"body": {"model": "m"}}, "neither `input` nor `prompt`"),
        ({"input": "x", "model": 5}, "`model` is 5"),
        ({"input": "x", "model": ""}, '`model` is ""'),
    ],
)
def test_a_row_without_a_form_says_why(
    write: Write, read: Read, row: dict[str, Any], message: str
) -> None:
    _, rows = read(write(row, {"prompt": "fine"}))
    assert isinstance(rows[0], BadRow)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(rows[0].message)
    assert isinstance(rows[1], Request)


def test_a_model_is_needed_unless_a_prompt_object_brings_it(write: Write, read: Read) -> None:
    path = write(
        {"prompt": "x"},
        {"prompt": {"id": "p"}},
        {"body": {"input": "x", "model": "own"}},
        {"messages": USER, "model": "seen but not sent"},
    )
    _, rows = read(path, {})
    assert [type(row) for row in rows] == [BadRow, Request, Request, BadRow]
    assert "--model NAME" in rows[0].message
    assert (rows[1].model, rows[2].model) == (None, "own")
    assert "not sent unless [input] send names it" in rows[3].message


def test_a_prompt_object_in_the_job_is_a_way_for_any_row(write: Write, read: Read) -> None:
    request = {"prompt": {"id": "p", "variables": {"q": "{{ q }}"}}}
    _, rows = read(write({"q": "a"}, {"q": "b", "input": "own"}), request)
    assert bodies(rows) == [
        {"prompt": {"id": "p", "variables": {"q": "a"}}},
        {"input": "own", "prompt": {"id": "p", "variables": {"q": "b"}}},
    ]


def test_text_is_sent_as_utf8_as_it_is(write: Write, read: Read) -> None:
    _, rows = read(write({"prompt": "你好 ä 😀"}))
    assert rows[0].body == '{"input":"你好 ä 😀","model":"m"}'.encode()


def test_the_hash_is_over_the_body_with_sorted_keys(write: Write, read: Read) -> None:
    path = write(
        {"input": "x", "temperature": 1, "metadata": {"a": 1, "b": 2}},
        {"metadata": {"b": 2, "a": 1}, "temperature": 1, "input": "x"},
        {"input": "x", "temperature": 2, "metadata": {"a": 1, "b": 2}},
    )
    _, rows = read(path)
    assert rows[0].hash == rows[1].hash != rows[2].hash
    assert rows[0].body != rows[1].body
    text = json.dumps(json.loads(rows[0].body), sort_keys=True, separators=(",", ":"))
    assert rows[0].hash == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_what_is_carried_is_not_in_the_hash(write: Write, read: Read) -> None:
    _, rows = read(write({"prompt": "x", "note": "a"}, {"prompt": "x", "note": "b"}))
    assert rows[0].hash == rows[1].hash


def test_a_bad_row_is_known_by_its_line(write: Write, read: Read) -> None:
    _, rows = read(write(b"{", b"{\r", b"{ "))
    assert len({row.hash for row in rows}) == 1
    assert rows[0].hash == hashlib.sha256(b"{").hexdigest()[:16]


KEYS = st.sampled_from(
    [
        "body",
        "messages",
        "input",
        "prompt",
        "tools",
        "url",
        "method",
        "model",
        "id",
        "custom_id",
        "role",
        "content",
        "type",
        "text",
        "response_format",
        "tool_choice",
        "stream",
        "note",
    ]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.sampled_from(["user", "function", "/v1/responses", "POST", "{}", "[1]"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=st.lists(st.dictionaries(KEYS, VALUES, max_size=5), min_size=1, max_size=6))
def test_any_rows_become_requests_or_bad_rows(
    write: Write, read: Read, rows: list[dict[str, Any]]
) -> None:
    numbered = [{**row, "custom_id": f"c{at}"} for at, row in enumerate(rows)]
    survey, read_rows = read(write(*numbered))
    for row in read_rows:
        if isinstance(row, Request):
            body = msgspec.json.decode(row.body)
            assert "stream" not in body
            assert row.model == body.get("model")
            assert len(encode_sorted(body)) == len(row.body)
        assert len(row.carried) == len(survey.layout.columns)
