import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.dialects.responses import StreamAnswer
from batchrun.dialects.sse import Event

ITEM = {"type": "message", "content": [{"type": "output_text", "text": "hi"}]}
WHOLE = {"id": "resp_1", "object": "response", "status": "completed", "output": [ITEM]}


def _event(kind: str, name: str = "", **fields: Any) -> Event:
    return Event(name, json.dumps({"type": kind, **fields}).encode())


def _body(*events: Event) -> Any:
    answer = StreamAnswer()
    for event in events:
        answer.take(event)
    body = answer.body()
    return None if body is None else json.loads(body)


@pytest.mark.parametrize("status", ["completed", "incomplete", "failed"])
def test_the_terminal_event_carries_the_answer(status: str) -> None:
    whole = {**WHOLE, "status": status}
    created = _event("response.created", response={"id": "resp_1", "status": "in_progress"})
    assert _body(created, _event(f"response.{status}", response=whole)) == whole


def test_the_status_within_rules_not_the_events_name() -> None:
    whole = {**WHOLE, "status": "incomplete"}
    assert _body(_event("response.completed", response=whole))["status"] == "incomplete"


def test_without_a_type_in_the_data_the_event_line_rules() -> None:
    event = Event("response.completed", json.dumps({"response": WHOLE}).encode())
    assert _body(event) == WHOLE


def test_a_terminal_event_without_output_is_filled_from_the_finished_items() -> None:
    items = [_event("response.output_item.done", output_index=n, item={"n": n}) for n in (1, 0)]
    empty = {**WHOLE, "output": []}
    assert _body(*items, _event("response.completed", response=empty))["output"] == [
        {"n": 0},
        {"n": 1},
    ]
    assert _body(*items, _event("response.completed"))["status"] == "completed"


def test_a_stream_without_a_terminal_event_is_no_answer() -> None:
    reasoning = {"type": "reasoning", "summary": []}
    added = _event("response.output_item.added", output_index=0, item=ITEM)
    said = _event("response.output_text.delta", output_index=0, delta="hi")
    assert _body(added, said) is None
    assert _body(_event("response.output_item.done", output_index=0, item=reasoning)) is None
    assert _body(Event("", b"[DONE]")) is None


def test_duplicated_events_change_nothing() -> None:
    created = _event("response.created", response={"id": "resp_1"})
    item = _event("response.output_item.done", output_index=0, item=ITEM)
    done = _event("response.completed", response={**WHOLE, "output": []})
    assert _body(*[created] * 150, item, item, done, done) == WHOLE


def test_errors_come_flat_and_nested() -> None:
    flat = _event("error", code="server_error", message="oops", sequence_number=3)
    assert _body(flat) == {"error": {"code": "server_error", "message": "oops"}}
    nested = _event("error", error={"type": "t", "code": None, "message": "oops"})
    assert _body(nested)["error"]["message"] == "oops"
    named = _event("response.error", error={"message": "oops"})
    assert _body(named)["error"]["message"] == "oops"
    bare = Event("", b'{"error":{"message":"oops"}}')
    assert _body(bare)["error"]["message"] == "oops"


def test_a_failed_response_after_an_error_is_kept_with_its_usage() -> None:
    failed = {**WHOLE, "status": "failed", "error": {"code": "server_error", "message": "m"}}
    body = _body(_event("error", message="oops"), _event("response.failed", response=failed))
    assert body["error"]["code"] == "server_error"
    silent = {**failed, "error": None}
    body = _body(_event("error", message="oops"), _event("response.failed", response=silent))
    assert body["error"]["message"] == "oops"
    assert body["output"] == failed["output"]


def test_the_first_token_is_the_first_delta_that_is_not_empty() -> None:
    answer = StreamAnswer()
    for event in (
        _event("response.created", response={"id": "resp_1"}),
        _event("response.output_text.delta", delta=""),
    ):
        answer.take(event)
        assert not answer.has_begun
    answer.take(_event("response.reasoning_summary_text.delta", delta="h"))
    assert answer.has_begun
    assert answer.response_id == "resp_1"


def test_lone_surrogates_in_an_event_do_not_lose_the_answer() -> None:
    data = json.dumps({"type": "response.completed", "response": WHOLE}).encode()
    assert _body(Event("", data.replace(b'"hi"', rb'"\ud83d"')))["output"][0]["content"][0] == {
        "type": "output_text",
        "text": "�",
    }


def test_an_error_that_is_nested_too_deeply_is_no_exception() -> None:
    answer = StreamAnswer()
    answer.take(Event("", b'{"type":"x","error":1,"item":%b1%b}' % (b"[" * 5000, b"]" * 5000)))
    answer.take(_event("response.failed", response={"status": "failed"}))
    assert answer.error_message is None
    assert json.loads(answer.body() or b"")["status"] == "failed"


@given(st.lists(st.binary() | st.sampled_from([b"{}", b"null", b'{"type":5}', b'{"error":1}'])))
def test_any_events_end_without_an_exception(datas: list[bytes]) -> None:
    answer = StreamAnswer()
    for data in datas:
        answer.take(Event("response.completed", data))
    answer.body()
