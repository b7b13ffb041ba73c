import json
import math
import statistics
from typing import Any

import jsonschema  # type: ignore[import-untyped] # it ships no types
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response

from batchrun.simulator.replies import make_answer
from batchrun.simulator.requests import check_request, read_body
from batchrun.simulator.settings import SimulatorSettings

_WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather in a city.",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            "days": {"type": ["integer", "null"], "minimum": 1, "maximum": 14},
        },
        "required": ["city", "unit", "days"],
        "additionalProperties": False,
    },
    "strict": True,
}
_CLOCK: dict[str, Any] = {"type": "function", "name": "get_time", "parameters": None}
_SEARCH: dict[str, Any] = {"type": "web_search_preview"}
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "answer": {"type": "integer"},
        "steps": {"type": "array", "items": {"type": "string"}, "minItems": 1},
    },
    "required": ["answer", "steps"],
    "additionalProperties": False,
}
_FORMAT = {"format": {"type": "json_schema", "name": "solution", "schema": _SCHEMA, "strict": True}}


def _raw(behavior: SimulatorSettings | None = None, attempt: int = 0, **fields: Any) -> bytes:
    body = {"model": "gpt-4.1", "input": "hello", **fields}
    asked = check_request(read_body(json.dumps(body).encode()))
    return make_answer(asked, behavior or SimulatorSettings(), attempt, 1_700_000_000.5, 0.7).body


def _answer(
    behavior: SimulatorSettings | None = None, attempt: int = 0, **fields: Any
) -> dict[str, Any]:
    """The answer, which must first pass the SDK's own model strictly."""
    raw = _raw(behavior, attempt, **fields)
    Response.model_validate_json(raw, strict=True)
    answer: dict[str, Any] = json.loads(raw)
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["output_tokens_details"]["reasoning_tokens"] <= usage["output_tokens"]
    assert usage["input_tokens_details"]["cached_tokens"] <= usage["input_tokens"]
    return answer


def _answers(behavior: SimulatorSettings | None = None, rows: int = 60, **fields: Any) -> list[Any]:
    return [_answer(behavior, **{"input": f"row {row}", **fields}) for row in range(rows)]


def _calls(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return [item for item in answer["output"] if item["type"] == "function_call"]


def _said(answer: dict[str, Any]) -> str:
    return "".join(
        part.get("text", "")
        for item in answer["output"]
        if item["type"] == "message"
        for part in item["content"]
    )


def test_an_answer_in_text_has_every_field_of_the_api() -> None:
    answer = _answer(metadata={"a": "1"}, instructions="Be brief.", temperature=0.5)
    assert answer["status"] == "completed"
    assert answer["error"] is None
    assert answer["model"] == "gpt-4.1"
    assert (answer["metadata"], answer["instructions"]) == ({"a": "1"}, "Be brief.")
    assert (answer["temperature"], answer["top_p"]) == (0.5, 1.0)
    assert (answer["tools"], answer["tool_choice"]) == ([], "auto")
    assert (answer["created_at"], answer["completed_at"]) == (1_700_000_000, 1_700_000_001)
    assert _said(answer).startswith("Simulated answer ")


def test_the_same_request_gives_the_same_answer_but_other_ids() -> None:
    first, again = _answer(attempt=0), _answer(attempt=1)
    assert _said(first) == _said(again)
    assert first["usage"] == again["usage"]
    assert first["id"] != again["id"]
    assert _raw(stream=False) == _raw()


def test_another_seed_or_another_body_gives_another_answer() -> None:
    assert _said(_answer(SimulatorSettings(seed=1))) != _said(_answer())
    assert _said(_answer(input="hullo")) != _said(_answer())


def test_lengths_are_long_tailed_around_their_median() -> None:
    lengths = [answer["usage"]["output_tokens"] for answer in _answers(rows=400)]
    assert 40 < statistics.median(lengths) < 80
    assert max(lengths) > 4 * statistics.median(lengths)
    longer = _answers(SimulatorSettings(output_tokens=600), rows=100)
    assert statistics.median(one["usage"]["output_tokens"] for one in longer) > 300


def test_long_inputs_are_cached_at_times() -> None:
    cached = [
        answer["usage"]["input_tokens_details"]["cached_tokens"]
        for answer in (_answer(input=f"{row} " + "x" * 9_000) for row in range(20))
    ]
    assert 0 in cached
    assert max(cached) >= 1_024
    assert all(tokens % 128 == 0 for tokens in cached)


def test_several_calls_come_at_once_with_arguments_that_fit() -> None:
    answers = _answers(tools=[_WEATHER, _CLOCK, _SEARCH], tool_choice="required")
    assert {len(_calls(answer)) for answer in answers} == {1, 2, 3, 4}
    validator = jsonschema.Draft202012Validator(_WEATHER["parameters"])
    names = set()
    for answer in answers:
        calls = _calls(answer)
        assert calls == answer["output"]
        assert len({call["call_id"] for call in calls}) == len(calls)
        for call in calls:
            names.add(call["name"])
            arguments = json.loads(call["arguments"])
            if call["name"] == "get_weather":
                validator.validate(arguments)
            else:
                assert arguments == {}
    assert names == {"get_weather", "get_time"}


def test_auto_calls_mostly_and_sometimes_talks() -> None:
    counts = [len(_calls(answer)) for answer in _answers(rows=100, tools=[_WEATHER])]
    assert 0 < counts.count(0) < 30


def test_none_never_calls() -> None:
    assert not any(
        _calls(answer) for answer in _answers(tools=[_WEATHER], tool_choice="none", rows=30)
    )


def test_one_call_at_most_where_parallel_calls_are_off() -> None:
    answers = _answers(tools=[_WEATHER, _CLOCK], tool_choice="required", parallel_tool_calls=False)
    assert {len(_calls(answer)) for answer in answers} == {1}
    assert answers[0]["parallel_tool_calls"] is False


def test_a_named_function_is_called_once() -> None:
    choice = {"type": "function", "name": "get_time"}
    for answer in _answers(tools=[_WEATHER, _CLOCK], tool_choice=choice, rows=20):
        assert [call["name"] for call in _calls(answer)] == ["get_time"]
        assert answer["tool_choice"] == choice


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_allowed_tools_alone_are_called(mode: str) -> None:
    choice = {
        "type": "allowed_tools",
        "mode": mode,
        "tools": [{"type": "function", "name": "get_time"}],
    }
    answers = _answers(tools=[_WEATHER, _CLOCK], tool_choice=choice)
    assert {call["name"] for answer in answers for call in _calls(answer)} == {"get_time"}
    assert any(not _calls(answer) for answer in answers) is (mode == "auto")


def test_hosted_tools_are_not_called() -> None:
    for fields in ({}, {"tool_choice": _SEARCH}, {"tool_choice": "required"}):
        assert _said(_answer(tools=[_SEARCH], **fields))


def test_what_a_function_gave_is_answered_in_words() -> None:
    given = [
        {"role": "user", "content": "what time is it?"},
        {"type": "function_call", "call_id": "c", "name": "get_time", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "12:00"},
    ]
    assert _said(_answer(input=given, tools=[_CLOCK]))
    assert _calls(_answer(input=given, tools=[_CLOCK], tool_choice="required"))


def test_bad_arguments_come_at_their_rate_half_malformed_and_half_not_fitting() -> None:
    validator = jsonschema.Draft202012Validator(_WEATHER["parameters"])
    behavior = SimulatorSettings(bad_arguments=0.4)
    calls = malformed = unfit = 0
    for answer in _answers(behavior, rows=300, tools=[_WEATHER], tool_choice="required"):
        for call in _calls(answer):
            calls += 1
            try:
                arguments = json.loads(call["arguments"])
            except json.JSONDecodeError:
                malformed += 1
            else:
                unfit += not validator.is_valid(arguments)
    assert 0.14 < malformed / calls < 0.26
    assert 0.14 < unfit / calls < 0.26


def test_structured_output_fits_its_schema() -> None:
    validator = jsonschema.Draft202012Validator(_SCHEMA)
    for answer in _answers(text=_FORMAT):
        validator.validate(json.loads(_said(answer)))
        assert answer["text"]["format"]["schema"] == _SCHEMA


def test_bad_output_comes_at_its_rate() -> None:
    validator = jsonschema.Draft202012Validator(_SCHEMA)
    malformed = unfit = 0
    for answer in _answers(SimulatorSettings(bad_output=0.4), rows=300, text=_FORMAT):
        try:
            unfit += not validator.is_valid(json.loads(_said(answer)))
        except json.JSONDecodeError:
            malformed += 1
    assert 35 < malformed < 85
    assert 35 < unfit < 85


def test_a_json_object_is_one_unless_set_otherwise() -> None:
    fields: dict[str, Any] = {
        "text": {"format": {"type": "json_object"}},
        "instructions": "Answer in JSON.",
    }
    assert all(isinstance(json.loads(_said(one)), dict) for one in _answers(rows=20, **fields))
    for answer in _answers(SimulatorSettings(bad_output=1), rows=20, **fields):
        with pytest.raises(json.JSONDecodeError):
            json.loads(_said(answer))


def test_refusals_come_at_their_rate_as_completed_answers() -> None:
    refused = 0
    for answer in _answers(SimulatorSettings(refusals=0.25), rows=200, text=_FORMAT):
        assert answer["status"] == "completed"
        refused += answer["output"][0]["content"][0]["type"] == "refusal"
    assert 30 < refused < 75


def test_reasoning_comes_first_and_is_billed() -> None:
    plain, efforts = _answer(model="o4-mini"), {}
    assert [item["type"] for item in plain["output"]] == ["reasoning", "message"]
    assert plain["output"][0]["summary"] == []
    for effort in ("minimal", "low", "medium", "high"):
        answers = _answers(model="gpt-5", reasoning={"effort": effort}, rows=40)
        efforts[effort] = statistics.median(
            one["usage"]["output_tokens_details"]["reasoning_tokens"] for one in answers
        )
        assert answers[0]["reasoning"] == {"effort": effort, "summary": None}
    assert efforts["minimal"] == 0
    assert 0 < efforts["low"] < efforts["medium"] < efforts["high"]


def test_a_summary_and_encrypted_reasoning_come_where_asked_for() -> None:
    item = _answer(
        reasoning={"summary": "auto"}, include=["reasoning.encrypted_content"], tools=[_WEATHER]
    )["output"][0]
    assert item["type"] == "reasoning"
    assert item["summary"][0]["text"]
    assert item["encrypted_content"]


def test_an_answer_that_is_too_long_is_cut_and_bills_the_whole_limit() -> None:
    cut = [one for one in _answers(max_output_tokens=30) if one["status"] == "incomplete"]
    assert cut
    for answer in cut:
        assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
        assert answer["completed_at"] is None
        assert answer["usage"]["output_tokens"] == 30
        assert answer["output"][-1]["status"] == "incomplete"
        assert len(_said(answer).encode()) <= 30 * 4


def test_an_answer_that_fits_its_limit_is_whole() -> None:
    assert all(one["status"] == "completed" for one in _answers(max_output_tokens=40_000, rows=20))


def test_a_cut_call_is_marked_and_thinking_can_use_up_everything() -> None:
    cut = [
        one
        for one in _answers(tools=[_WEATHER], tool_choice="required", max_output_tokens=20)
        if one["status"] == "incomplete"
    ]
    assert cut
    assert any(call["status"] == "incomplete" for one in cut for call in _calls(one))
    thinking = _answer(model="o3", max_output_tokens=16)
    assert [item["type"] for item in thinking["output"]] == ["reasoning"]
    assert thinking["status"] == "incomplete"
    assert thinking["usage"]["output_tokens_details"]["reasoning_tokens"] == 16


def test_what_was_asked_is_echoed_with_the_api_s_defaults() -> None:
    answer = _answer(
        tools=[{"type": "function", "name": "f"}],
        conversation="conv_1",
        service_tier="fast",
        store=False,
        user="somebody",
    )
    assert answer["tools"] == [
        {
            "description": None,
            "strict": True,
            "parameters": None,
            "type": "function",
            "name": "f",
        }
    ]
    assert answer["conversation"] == {"id": "conv_1"}
    assert answer["service_tier"] == "priority"
    assert answer["store"] is False
    assert answer["user"] == "somebody"


def test_fields_have_the_value_that_was_sent_or_the_default() -> None:
    plain = _answer()
    assert (plain["presence_penalty"], plain["frequency_penalty"]) == (0.0, 0.0)
    sent: dict[str, Any] = {
        "presence_penalty": 1,
        "frequency_penalty": -0.5,
        "max_output_tokens": 4_000,
        "max_tool_calls": 3,
        "metadata": {"a": "b"},
        "parallel_tool_calls": False,
        "previous_response_id": "resp_1",
        "prompt": {"id": "pmpt_1", "version": "2"},
        "prompt_cache_key": "key",
        "prompt_cache_retention": "24h",
        "safety_identifier": "s",
        "temperature": 0.5,
        "top_logprobs": 3,
        "top_p": 0.25,
        "truncation": "auto",
        "user": "u",
    }
    answer = _answer(**sent)
    assert {name: answer[name] for name in sent} == sent
    changed = _answer(
        image={"context_compression": "auto"},
        prompt_cache_options={"mode": "explicit"},
        access_programs={"cyber": "standard"},
    )
    assert changed["image"] == {"context_compression": "enabled"}
    assert changed["prompt_cache_options"] == {"mode": "explicit", "ttl": "30m"}
    assert changed["access_programs"] == {"cyber": "standard"}


@pytest.mark.parametrize(
    ("asked", "top"),
    [
        ({"include": ["message.output_text.logprobs"]}, 0),
        ({"include": ["message.output_text.logprobs"], "top_logprobs": 5}, 5),
        ({"top_logprobs": 20}, 20),
    ],
)
def test_logprobs_come_where_asked_for(asked: dict[str, Any], top: int) -> None:
    answer = _answer(**asked)
    assert _said(answer) == _said(_answer(**asked, attempt=1))
    logprobs = answer["output"][0]["content"][0]["logprobs"]
    assert "".join(one["token"] for one in logprobs) == _said(answer)
    for one in logprobs:
        assert bytes(one["bytes"]).decode() == one["token"]
        assert one["logprob"] < 0
        likely = [other["logprob"] for other in one["top_logprobs"]]
        assert (len(likely), likely) == (top, sorted(likely, reverse=True))
        assert len({other["token"] for other in one["top_logprobs"]}) == top
        assert sum(map(math.exp, likely)) <= 1 + 1e-9
    assert _answer()["output"][0]["content"][0]["logprobs"] == []


def test_a_function_that_is_meant_is_called() -> None:
    texts = [f"What is the weather in city {row}?" for row in range(60)]
    for text in texts:
        part = {"type": "input_text", "text": text}
        for asked in (text, [{"role": "user", "content": [part]}]):
            assert _calls(_answer(input=asked, tools=[_WEATHER]))


@settings(max_examples=150)
@given(
    st.text(max_size=20),
    st.sampled_from(["gpt-4.1", "gpt-5", "o3", "gpt-6.1-terra"]),
    st.none() | st.integers(16, 400),
    st.sampled_from([[], [_WEATHER], [_WEATHER, _CLOCK, _SEARCH]]),
    st.sampled_from([None, {"format": {"type": "text"}}, _FORMAT]),
    st.floats(0, 1),
)
def test_every_answer_passes_the_sdk_s_model_and_keeps_to_its_limit(
    text: str,
    model: str,
    most: int | None,
    tools: list[Any],
    format_: dict[str, Any] | None,
    bad: float,
) -> None:
    behavior = SimulatorSettings(bad_arguments=bad, bad_output=bad, refusals=bad / 4)
    answer = _answer(
        behavior, input=text, model=model, max_output_tokens=most, tools=tools, text=format_
    )
    if most is not None:
        assert answer["usage"]["output_tokens"] <= most
