import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrun.inputs.chat import batch_body, is_batch_line
from batchrun.inputs.rows import RowProblem, decode

Read = Callable[..., Any]
Write = Callable[..., Path]

BODY = {"model": "own", "input": "hello", "unknown_field": {"x": None}, "temperature": None}
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def test_the_whole_body_is_sent_and_defaults_fill_what_it_leaves_out(
    write: Write, read: Read
) -> None:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": BODY, "tag": 1}
    survey, rows = read(write(line), {"model": "default", "temperature": 0.5, "top_p": 0.1})
    assert json.loads(rows[0].body) == {**BODY, "top_p": 0.1}
    assert list(json.loads(rows[0].body)) == [*BODY, "top_p"]
    assert (rows[0].custom_id, rows[0].model, rows[0].carried) == ("a", "own", (1,))
    assert (survey.sent, survey.carried) == (("body",), ("tag",))


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(st.text(), JSON, max_size=6))
def test_any_json_passes_untouched(body: dict[str, Any]) -> None:
    line = json.dumps({"body": body}).encode()
    assert batch_body(decode(line)) == decode(json.dumps(body).encode())


def test_a_body_may_be_json_as_text(write: Write, read: Read) -> None:
    _, rows = read(write({"body": json.dumps(BODY)}))
    assert json.loads(rows[0].body) == BODY


def test_stream_and_background_are_dropped(write: Write, read: Read) -> None:
    _, rows = read(write({"body": {**BODY, "stream": True, "background": True}}))
    assert json.loads(rows[0].body) == BODY


def test_text_called_body_is_no_batch_line_unless_it_is_meant(write: Write, read: Read) -> None:
    assert not is_batch_line({"body": "Dear all", "prompt": "Summarize"})
    _, rows = read(write({"body": "Dear all", "prompt": "Summarize"}, {"body": "Dear all"}))
    assert rows[0].carried == ("Dear all",)
    assert "--prompt '{{ body }}'" in rows[1].message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"url": "/v1/chat/completions", "body": {}}, "sends to /v1/responses alone; for a chat"),
        ({"url": "/v1/embeddings", "body": {}}, "sends to /v1/responses alone; take the row out"),
        ({"url": 5, "body": {}}, "`url` is 5"),
        ({"method": "GET", "body": {}}, "must be POST"),
        ({"url": "/v1/responses", "body": "{"}, "text that holds no request"),
        ({"url": "/v1/responses", "body": [1]}, "must be an object"),
    ],
)
def test_what_is_no_request_is_said(line: dict[str, Any], message: str) -> None:
    assert is_batch_line(line)
    with pytest.raises(RowProblem, match=message):
        batch_body(line)


def test_a_chat_body_in_a_batch_line_is_a_problem_with_a_hint(write: Write, read: Read) -> None:
    _, rows = read(write({"body": {"model": "m", "messages": []}}))
    assert "at the top level of the row" in rows[0].message
