"""What of a request is counted, and what is noted as not counted."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrun.estimate.tokens import read_body_text

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)


def test_text_as_input_and_the_instructions_are_a_message_each() -> None:
    said = read_body_text({"input": "Hi", "instructions": "Be brief.", "model": "m"})
    assert (said.own, said.shared, said.messages) == (["Hi"], ["Be brief."], 2)
    assert not said.unseen


def test_messages_calls_and_their_results_are_read_in_their_order() -> None:
    items = [
        {"role": "system", "content": "You are terse."},
        {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {"type": "function_call", "call_id": "c", "name": "look", "arguments": '{"at":"Rome"}'},
        {"type": "function_call_output", "call_id": "c", "output": "sunny"},
        {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "Look."}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
    ]
    said = read_body_text({"input": items})
    assert said.own == ["Weather?", "look", '{"at":"Rome"}', "sunny", "Look.", "No."]
    assert said.shared == ["You are terse."]
    assert said.messages == len(items)
    assert not said.unseen


def test_tools_and_schemas_count_as_compact_json() -> None:
    tool = {"type": "function", "name": "look", "parameters": {"type": "object"}}
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    form = {"format": {"type": "json_schema", "name": "x", "schema": schema}}
    said = read_body_text({"input": "Hi", "tools": [tool], "text": form})
    assert [json.loads(text) for text in said.shared] == [tool, schema]
    assert all(" " not in text for text in said.shared)
    assert not said.unseen


@pytest.mark.parametrize(
    "body",
    [
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:x"}]}]},
        {"input": [{"type": "item_reference", "id": "msg_1"}]},
        {"input": [{"type": "reasoning", "summary": [], "encrypted_content": "xyz"}]},
        {"input": [{"type": "computer_call", "action": {"type": "click"}, "image_url": "data:x"}]},
        {"input": "Go on.", "previous_response_id": "resp_1"},
        {"prompt": {"id": "pmpt_1"}},
        {"input": "Look it up.", "tools": [{"type": "web_search"}]},
    ],
)
def test_what_is_no_text_is_noted(body: dict[str, Any]) -> None:
    said = read_body_text(body)
    assert said.unseen
    assert said.hosted == ("tools" in body)
    assert not any("data:x" in text or "xyz" in text for text in said.own)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["input", "tools", "text", "instructions", "prompt"]), JSON))
def test_any_body_is_read(body: dict[str, Any]) -> None:
    said = read_body_text(body)
    assert all(isinstance(text, str) for text in (*said.own, *said.shared))


@settings(deadline=None)
@given(st.lists(JSON, max_size=3))
def test_any_items_are_read(items: list[Any]) -> None:
    read_body_text({"input": [*items, *({"role": "user", "content": item} for item in items)]})
