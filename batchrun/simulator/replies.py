"""The answer to a request: reasoning, calls, searches, text or a refusal, and its usage.

Pure: what an answer says is drawn from the seed and the body alone; only its ids and times differ
from one attempt to the next.
"""

from random import Random
from typing import Any

import msgspec
from msgspec import Struct

from batchrun.simulator import draws, fitting, search, texts
from batchrun.simulator.behavior import Behavior
from batchrun.simulator.echo import whole_response
from batchrun.simulator.requests import Asked
from batchrun.simulator.tools import Choice, choose

Item = dict[str, Any]
_encode = msgspec.json.Encoder().encode
_CALL_TOKENS = 4  # what a call takes besides its name and arguments
_LONGEST = 32_000  # tokens of an answer, however the draw falls
_THOUGHT_STEP = 64  # reasoning tokens come in these
_EFFORTS = {"minimal": 0.0, "low": 96.0, "high": 1_000.0, "xhigh": 2_500.0, "max": 5_000.0}
_EFFORT = 320.0  # median of reasoning tokens where no effort, or medium, is asked for
_CACHED_FROM = 1_024  # the shortest input that is cached, and the step beyond it:
_CACHED_STEP = 128
_ABOUT_JSON = ("id", "title", "count", "note", "done")


class Answer(Struct, frozen=True):
    """A response, the same as it goes over the wire, and what it is billed for."""

    response: Item
    body: bytes
    input_tokens: int
    output_tokens: int
    reasoning_tokens: int

    def with_response(self, response: Item, body: bytes) -> "Answer":
        """Told otherwise, billed the same."""
        return Answer(response, body, self.input_tokens, self.output_tokens, self.reasoning_tokens)


def make_answer(
    asked: Asked, behavior: Behavior, turn: int, now_s: float, latency_s: float = 0.0
) -> Answer:
    """The response to a request; `turn` tells attempts at the same body apart, in ids alone."""
    rng = draws.source(behavior.seed, asked.key, "answer")
    thoughts = _reasoning_tokens(asked, behavior, rng) if asked.reasons else 0
    parts = _parts(asked, behavior, rng)
    room = asked.fields.get("max_output_tokens")
    ids = draws.source(behavior.seed, asked.key, f"ids {turn}")
    items: list[Item] = []
    left = room
    if asked.reasons:
        if left is not None:
            thoughts = min(thoughts, left)
            left -= thoughts
        items.append(_reasoning_item(asked, ids, rng))
    spent, whole = thoughts, True
    for part in parts:
        item, tokens, whole = _item(part, left, ids)
        if item is not None:
            items.append(item)
        spent += tokens
        if not whole:
            break
        if left is not None:
            left -= tokens
    if not whole and room is not None:
        spent = room
    cached = _cached_tokens(asked.input_tokens, rng)
    usage = {
        "input_tokens": asked.input_tokens,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": spent,
        "output_tokens_details": {"reasoning_tokens": thoughts},
        "total_tokens": asked.input_tokens + spent,
    }
    times = (int(now_s), int(now_s + latency_s))
    response = whole_response(asked, items, usage, whole, _new_id("resp", ids), times)
    return Answer(response, _encode(response), asked.input_tokens, spent, thoughts)


def _parts(asked: Asked, behavior: Behavior, rng: Random) -> list[Item]:
    """What the model says after its thoughts: parts of type refusal, text, call or search."""
    refuses, calls_none, speaks_first = rng.random(), rng.random(), rng.random()
    if refuses < behavior.refusals:
        return [{"type": "refusal", "text": texts.refusal(rng)}]
    choice = choose(asked.fields)
    if choice.functions and (
        choice.must or (calls_none < 0.9 and not _has_result(asked.fields.get("input")))
    ):
        said = [{"type": "output_text", "text": "Let me look that up."}]
        first = said if speaks_first < 0.1 and not choice.must else []
        return first + _calls(choice, behavior, rng)
    if search.is_offered(asked.fields) and search.is_used(asked.fields, rng.random()):
        return _searched(asked, behavior, rng)
    return [{"type": "output_text", "text": _text(asked, behavior, rng)}]


def _searched(asked: Asked, behavior: Behavior, rng: Random) -> list[Item]:
    """Searches, and a text that cites what they found; structured output has no room for that."""
    actions, pages = search.look_up(asked.fields, rng)
    said: Item = {"type": "output_text", "text": _text(asked, behavior, rng)}
    if _format(asked)["type"] == "text":
        said["text"], said["annotations"] = search.cite(said["text"], pages, rng)
    return [*({"type": "search", "action": action} for action in actions), said]


def _has_result(given: Any) -> bool:
    """The last item is what a function gave: now is the time for words."""
    return (
        isinstance(given, list) and bool(given) and given[-1].get("type") == "function_call_output"
    )


def _calls(choice: Choice, behavior: Behavior, rng: Random) -> list[Item]:
    count = 1 if choice.single else rng.choices((1, 2, 3, 4), (35, 30, 20, 15))[0]
    calls = []
    for _ in range(count):
        function = rng.choice(choice.functions)
        schema = function.get("parameters") or {"type": "object", "properties": {}}
        arguments = _structured(schema, behavior.bad_arguments, rng)
        calls.append({"type": "call", "name": function["name"], "text": arguments})
    return calls


def _text(asked: Asked, behavior: Behavior, rng: Random) -> str:
    length = draws.lognormal(rng.random() or 0.5, behavior.output_tokens, behavior.output_spread)
    format_ = _format(asked)
    if format_["type"] == "json_schema":
        return _structured(format_["schema"], behavior.bad_output, rng)
    if format_["type"] == "json_object":
        made = {name: texts.words(rng) for name in _ABOUT_JSON[: rng.randint(1, 5)]}
        made["text"] = texts.prose("A simulated answer.", min(length, _LONGEST), rng)
        return _malformed_or(_json(made), behavior.bad_output, rng)
    opening = f"Simulated answer {asked.key.hex()[:8]}."
    return texts.prose(opening, min(length, _LONGEST), rng)


def _format(asked: Asked) -> Item:
    format_: Item = (asked.fields.get("text") or {}).get("format") or {"type": "text"}
    return format_


def _structured(schema: dict[str, Any], bad: float, rng: Random) -> str:
    """JSON that fits; at the rate given, half of it is malformed and half does not fit."""
    value = fitting.fit(schema, rng)
    share = rng.random()
    if bad / 2 <= share < bad:
        spoilt = fitting.spoil(schema, value, rng)
        if spoilt is not None:
            return _json(spoilt)
        share = 0.0
    return _malformed(_json(value), rng) if share < bad else _json(value)


def _malformed_or(text: str, bad: float, rng: Random) -> str:
    return _malformed(text, rng) if rng.random() < bad else text


def _malformed(text: str, rng: Random) -> str:
    return rng.choice((text[:-1], text[: len(text) // 2], f"{text}}}", f"```json\n{text}\n```"))


def _json(value: Any) -> str:
    return _encode(value).decode()


def _reasoning_tokens(asked: Asked, behavior: Behavior, rng: Random) -> int:
    effort = (asked.fields.get("reasoning") or {}).get("effort") or "medium"
    median = _EFFORTS.get(effort, _EFFORT)
    share = rng.random() or 0.5
    if not median:
        return 0
    tokens = min(draws.lognormal(share, median, behavior.output_spread), _LONGEST)
    return max(round(tokens / _THOUGHT_STEP), 1) * _THOUGHT_STEP


def _cached_tokens(input_tokens: int, rng: Random) -> int:
    hit = rng.random() < 0.5
    if input_tokens < _CACHED_FROM or not hit:
        return 0
    steps = (input_tokens - _CACHED_FROM) // _CACHED_STEP
    return _CACHED_FROM + _CACHED_STEP * rng.randint(0, steps)


def _reasoning_item(asked: Asked, ids: Random, rng: Random) -> Item:
    wishes = asked.fields.get("reasoning") or {}
    summary = []
    if wishes.get("summary"):
        summary = [{"type": "summary_text", "text": texts.thought(rng)}]
    item = {"id": _new_id("rs", ids), "type": "reasoning", "summary": summary}
    if "reasoning.encrypted_content" in (asked.fields.get("include") or ()):
        item["encrypted_content"] = f"{ids.getrandbits(1024):0256x}"
    return item


def _item(part: Item, room: int | None, ids: Random) -> tuple[Item | None, int, bool]:
    """A part as an output item, cut where there is no room; its tokens; whether it is whole."""
    if part["type"] == "search":
        made = {"id": _new_id("ws", ids), "type": "web_search_call", "status": "completed"}
        return {**made, "action": part["action"]}, 0, True
    is_call = part["type"] == "call"
    besides = _CALL_TOKENS + texts.token_count(part["name"]) if is_call else 0
    tokens = besides + texts.token_count(part["text"])
    whole = room is None or tokens <= room
    if not whole and room is not None:
        if room <= besides:
            return None, 0, False
        part = {**part, "text": texts.cut(part["text"], room - besides)}
    status = "completed" if whole else "incomplete"
    if is_call:
        item = {
            "id": _new_id("fc", ids),
            "type": "function_call",
            "status": status,
            "arguments": part["text"],
            "call_id": f"call_{ids.getrandbits(96):024x}",
            "name": part["name"],
        }
        return item, tokens, whole
    if part["type"] == "refusal":
        content = {"type": "refusal", "refusal": part["text"]}
    else:
        content = {
            "type": "output_text",
            "annotations": [
                mark
                for mark in part.get("annotations", ())
                if mark["end_index"] <= len(part["text"])
            ],
            "logprobs": [],
            "text": part["text"],
        }
    item = {
        "id": _new_id("msg", ids),
        "type": "message",
        "status": status,
        "content": [content],
        "role": "assistant",
    }
    return item, tokens, whole


def _new_id(kind: str, ids: Random) -> str:
    return f"{kind}_{ids.getrandbits(192):048x}"
