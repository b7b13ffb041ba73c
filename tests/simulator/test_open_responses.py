"""What the compliance suite of Open Responses demands of a server, over a real socket.

The suite is a program of its own, written in TypeScript; what it demands is listed here anew, from
the published schema: the fields that every response has, the items that may be in it, the events
of a stream. The requests are of the kinds that it sends.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import aiohttp
import pytest

Start = Callable[..., Awaitable[str]]
Http = aiohttp.ClientSession

_NONE = type(None)
# every field that a response must have, and the types that its value may be of
_RESPONSE: dict[str, tuple[type, ...]] = {
    "id": (str,),
    "object": (str,),
    "created_at": (int,),
    "completed_at": (int, _NONE),
    "status": (str,),
    "incomplete_details": (dict, _NONE),
    "model": (str,),
    "previous_response_id": (str, _NONE),
    "instructions": (str, _NONE),
    "output": (list,),
    "error": (dict, _NONE),
    "tools": (list,),
    "tool_choice": (str, dict),
    "truncation": (str,),
    "parallel_tool_calls": (bool,),
    "text": (dict,),
    "top_p": (int, float),
    "presence_penalty": (int, float),
    "frequency_penalty": (int, float),
    "top_logprobs": (int,),
    "temperature": (int, float),
    "reasoning": (dict, _NONE),
    "usage": (dict, _NONE),
    "max_output_tokens": (int, _NONE),
    "max_tool_calls": (int, _NONE),
    "store": (bool,),
    "background": (bool,),
    "service_tier": (str,),
    "metadata": (dict,),
    "safety_identifier": (str, _NONE),
    "prompt_cache_key": (str, _NONE),
}
_ITEMS: dict[str, dict[str, tuple[type, ...]]] = {
    "message": {"id": (str,), "status": (str,), "role": (str,), "content": (list,)},
    "function_call": dict.fromkeys(("id", "call_id", "name", "arguments", "status"), (str,)),
    "reasoning": {"id": (str,), "summary": (list,)},
    "compaction": {"id": (str,), "encrypted_content": (str,)},
}
_USAGE = dict.fromkeys(("input_tokens", "output_tokens", "total_tokens"), (int,))
_FUNCTION = {"description": (str, _NONE), "parameters": (dict, _NONE), "strict": (bool, _NONE)}
_LOGPROB = {"token": (str,), "logprob": (float,), "bytes": (list,), "top_logprobs": (list,)}
# what the events of a stream have besides `type` and `sequence_number`
_AT = {"item_id": (str,), "output_index": (int,), "content_index": (int,)}
_EVENTS: dict[str, dict[str, tuple[type, ...]]] = {
    "response.created": {"response": (dict,)},
    "response.in_progress": {"response": (dict,)},
    "response.completed": {"response": (dict,)},
    "response.output_item.added": {"output_index": (int,), "item": (dict,)},
    "response.output_item.done": {"output_index": (int,), "item": (dict,)},
    "response.content_part.added": {**_AT, "part": (dict,)},
    "response.content_part.done": {**_AT, "part": (dict,)},
    "response.output_text.delta": {**_AT, "delta": (str,), "logprobs": (list,)},
    "response.output_text.done": {**_AT, "text": (str,), "logprobs": (list,)},
    "response.function_call_arguments.delta": {
        "item_id": (str,),
        "output_index": (int,),
        "delta": (str,),
    },
    "response.function_call_arguments.done": {
        "item_id": (str,),
        "output_index": (int,),
        "arguments": (str,),
    },
}
_WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Tells the weather at a place",
    "parameters": {
        "type": "object",
        "properties": {"location": {"type": "string"}},
        "required": ["location"],
    },
}
_PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6"
    "kgAAAABJRU5ErkJggg=="
)


def _user(content: Any) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": content}


def _assistant(content: str, **more: str) -> dict[str, Any]:
    return {"type": "message", "role": "assistant", "content": content, **more}


_QUESTION = [_user("How is the weather in Lisbon?")]
_TOOL = {"input": _QUESTION, "tools": [_WEATHER]}
_REQUESTS: dict[str, dict[str, Any]] = {
    "text": {"input": [_user("Greet me in three words.")]},
    "phases": {
        "input": [
            _assistant("I look for the number.", phase="commentary"),
            _assistant("It is five.", phase="final_answer"),
            _user("Which number?"),
        ]
    },
    "system": {
        "input": [
            {"type": "message", "role": "system", "content": "Talk like a sailor."},
            _user("Greet me."),
        ]
    },
    "image": {
        "input": [
            _user(
                [
                    {"type": "input_text", "text": "What is in the picture?"},
                    {"type": "input_image", "image_url": _PIXEL},
                ]
            )
        ]
    },
    "file": {
        "input": [
            _user(
                [
                    {"type": "input_text", "text": "What is the title?"},
                    {
                        "type": "input_file",
                        "filename": "a.pdf",
                        "file_data": "data:application/pdf;base64,JVBERi0xLjEK",
                    },
                ]
            )
        ]
    },
    "turns": {
        "input": [
            _user("I am called Bob."),
            _assistant("Hello Bob."),
            _user("What am I called?"),
        ]
    },
    "logprobs": {
        "input": [_user("Count to three.")],
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 3,
    },
}


def _check(value: Any, fields: Mapping[str, tuple[type, ...]]) -> None:
    assert isinstance(value, dict)
    for name, types in fields.items():
        assert name in value, name
        is_of_type = isinstance(value[name], types)
        assert is_of_type, (name, value[name])
        assert not isinstance(value[name], bool) or bool in types, name


def _check_item(item: Any) -> None:
    _check(item, _ITEMS[item["type"]])
    for part in item.get("content", ()):
        _check(part, {"text": (str,), "annotations": (list,), "logprobs": (list,)})
        for one in part["logprobs"]:
            _check(one, _LOGPROB)


def _check_response(response: Any) -> None:
    _check(response, _RESPONSE)
    assert response["object"] == "response"
    for item in response["output"]:
        _check_item(item)
    for tool in response["tools"]:
        _check(tool, {"name": (str,), **_FUNCTION})
    assert set(response["reasoning"]) >= {"effort", "summary"}
    assert response["text"]["format"]["type"] == "text"
    if response["usage"] is not None:
        _check(response["usage"], _USAGE)
        _check(response["usage"]["input_tokens_details"], {"cached_tokens": (int,)})
        _check(response["usage"]["output_tokens_details"], {"reasoning_tokens": (int,)})


async def _respond(http: Http, base_url: str, **fields: Any) -> dict[str, Any]:
    body = {"model": "gpt-4o-mini", "stream": False, **fields}
    async with http.post(f"{base_url}/responses", json=body) as response:
        answer = json.loads(await response.read())
        assert response.status == 200, answer
    _check_response(answer)
    assert (answer["status"], answer["output"] != []) == ("completed", True)
    return dict(answer)


async def _stream(http: Http, base_url: str, **fields: Any) -> list[dict[str, Any]]:
    """The events; each chunk that arrives holds whole events, as the suite's own reader needs."""
    body = {"model": "gpt-4o-mini", "stream": True, **fields}
    events = []
    async with http.post(f"{base_url}/responses", json=body) as response:
        assert response.status == 200
        for block in (await response.text()).split("\n\n")[:-1]:
            name, data = block.split("\n")
            events.append(json.loads(data.removeprefix("data:")))
            assert name.removeprefix("event:").strip() == events[-1]["type"]
    for number, event in enumerate(events):
        assert event["sequence_number"] == number
        _check(event, _EVENTS[event["type"]])
        for one in event.get("logprobs", ()):
            _check(one, _LOGPROB)
        if "response" in event:
            _check_response(event["response"])
        if "item" in event:
            _check_item(event["item"])
    assert events[-1]["response"]["status"] == "completed"
    return events


@pytest.mark.parametrize("kind", _REQUESTS)
async def test_a_response_has_every_field(kind: str, http: Http, start: Start) -> None:
    await _respond(http, await start(), **_REQUESTS[kind])


@pytest.mark.parametrize("kind", _REQUESTS)
async def test_a_stream_has_every_field_of_its_events(kind: str, http: Http, start: Start) -> None:
    events = await _stream(http, await start(), **_REQUESTS[kind])
    kinds = [event["type"] for event in events]
    assert kinds.count("response.output_text.done") == 1


@pytest.mark.parametrize("seed", range(12))
async def test_a_question_for_a_function_gets_a_call(seed: int, http: Http, start: Start) -> None:
    base_url = await start(seed=seed)
    answer = await _respond(http, base_url, **_TOOL)
    assert "function_call" in [item["type"] for item in answer["output"]]
    events = await _stream(http, base_url, **_TOOL)
    assert {f"response.function_call_arguments.{end}" for end in ("delta", "done")} <= {
        event["type"] for event in events
    }
    for end in ("added", "done"):
        at_end = [e["item"] for e in events if e["type"] == f"response.output_item.{end}"]
        assert "function_call" in [item["type"] for item in at_end]


async def test_what_a_function_returned_is_answered(http: Http, start: Start) -> None:
    base_url = await start()
    choice = {"type": "function", "name": "get_weather"}
    called = await _respond(http, base_url, **_TOOL, tool_choice=choice)
    (call,) = called["output"]
    returned = {"type": "function_call_output", "call_id": call["call_id"], "output": "Sunny."}
    again = {"input": [*_QUESTION, call, returned], "tools": [_WEATHER]}
    answer = await _respond(http, base_url, **again)
    assert [item["type"] for item in answer["output"]] == ["message"]
    then = {"input": [returned], "tools": [_WEATHER], "previous_response_id": called["id"]}
    answer = await _respond(http, base_url, **then)
    assert [item["type"] for item in answer["output"]] == ["message"]


async def test_a_response_goes_on_from_the_one_before(http: Http, start: Start) -> None:
    base_url = await start()
    first = await _respond(http, base_url, input="The word is plum. Say OK.")
    then = await _respond(
        http, base_url, input="Which word was it?", previous_response_id=first["id"]
    )
    assert then["previous_response_id"] == first["id"]


async def test_a_conversation_is_compacted(http: Http, start: Start) -> None:
    url = f"{await start()}/responses/compact"
    given = [_user("We start on Monday."), _assistant("Noted: Monday.")]
    body = {"model": "gpt-4o-mini", "prompt_cache_key": "key", "input": given}
    async with http.post(url, json=body) as response:
        made = json.loads(await response.read())
        assert response.status == 200, made
    _check(made, {"id": (str,), "created_at": (int,), "output": (list,), "usage": (dict,)})
    assert made["object"] == "response.compaction"
    assert [item["type"] for item in made["output"]] == ["message", "compaction"]
    _check(made["usage"], _USAGE)
    del body["model"]
    async with http.post(url, json=body) as response:
        assert response.status == 400
