import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.dialects.work_state import WorkState, begun_state, work_state

RUNNING = WorkState("r", is_running=True)
ENDED = WorkState("r", has_ended=True)
NOTHING = WorkState()


def _body(**fields: object) -> bytes:
    return json.dumps({"id": "r", "object": "response", "output": [], **fields}).encode()


@pytest.mark.parametrize(
    ("status", "state"),
    [
        *((word, RUNNING) for word in ("queued", "in_progress", "pending", "processing")),
        *((word, RUNNING) for word in ("CREATED", "In-Progress", "inProgress", "in queue")),
        *((word, ENDED) for word in ("completed", "incomplete", "failed", "COMPLETED", "Stop")),
        ("cancelled", WorkState("r", has_ended=True, is_cancelled=True)),
        ("CANCELED", WorkState("r", has_ended=True, is_cancelled=True)),
        ("odd", WorkState("r")),
        (7, WorkState("r")),
        (None, WorkState("r")),
    ],
)
def test_a_status_is_known_in_any_spelling(status: object, state: WorkState) -> None:
    assert work_state(_body(status=status)) == state


def test_output_beside_a_status_that_nobody_knows_is_an_answer() -> None:
    assert work_state(_body(status="max_tokens", output=[{"type": "message"}])) == ENDED
    assert work_state(_body(status="queued", output=[{"type": "message"}])) == RUNNING


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"{",
        b"[]",
        b"null",
        b'{"id":"r","status":"comp',
        b'{"error":{"message":"m"}}',
        b'{"status":"error","message":"no route"}',
    ],
)
def test_what_is_no_response_says_nothing(body: bytes) -> None:
    state = work_state(body)
    assert (state.is_running, state.has_ended) == (False, False)


def test_a_create_answer_goes_on_unless_something_ends_it() -> None:
    assert begun_state(_body()) == RUNNING
    assert begun_state(_body(status="soon")) == RUNNING
    assert begun_state(_body(status="completed")) == ENDED
    assert begun_state(_body(output=[{"type": "message"}])) == ENDED
    assert not begun_state(_body(error={"message": "m"})).is_running
    assert not begun_state(_body(object="chat.completion")).is_running
    assert not begun_state(b'{"object":"response"}').is_running


def test_the_id_is_found_in_a_create_answer_that_was_cut() -> None:
    body = _body(status="in_progress")
    assert begun_state(body[:-1]) == RUNNING
    assert begun_state(body[:-3]) == NOTHING
    assert begun_state(_body(status="completed")[:-1]) == NOTHING
    assert begun_state(b"<" + body) == NOTHING
    assert begun_state(body[:6]) == NOTHING


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_have_a_state(body: bytes) -> None:
    for state in (work_state(body), begun_state(body), begun_state(_body() + body)):
        assert not (state.is_running and state.has_ended)
