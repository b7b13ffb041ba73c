"""Which fault an attempt gets, and what faults and quirks change in a response and its events.

No I/O. A fault is drawn from the seed, the body and how many times that body was let in before: a
run can be repeated whatever the order of its requests, and a retry draws again.
"""

from itertools import accumulate
from typing import Any

import msgspec

from batchrun.simulator import random_values
from batchrun.simulator.settings import Fault, Quirk, SimulatorSettings

Item = dict[str, Any]
RESPONSE_FAULTS = frozenset({Fault.FAILED, Fault.FAILED_PROMPT, Fault.CONTENT_FILTER})
_encode_json = msgspec.json.Encoder().encode
_SURROGATE = "\ue000"  # JSON as text cannot hold a lone one: `encode` puts it in for this
_NAN = msgspec.Raw(b"NaN")
_BROKE_OFF = "The upstream broke off."
_FLAT_ERROR = {"type": "error", "code": "server_error", "message": _BROKE_OFF, "param": None}
_ERRORS = {
    Fault.FAILED: ("server_error", "The model had an error while it answered. Please retry."),
    Fault.FAILED_PROMPT: ("invalid_prompt", "The prompt was flagged as against the usage policy."),
    Fault.STREAM_ERROR_FAILED: ("server_error", "The model had an error while it answered."),
}
_OTHER_ECHO: Item = {
    "instructions": "You are an astrologer.",
    "metadata": {"answered": "another request"},
    "max_output_tokens": None,
    "temperature": 0.7,
    "tool_choice": "auto",
    "tools": [
        {
            "type": "function",
            "name": "get_horoscope",
            "description": "Get today's horoscope for an astrological sign.",
            "parameters": {"type": "object", "properties": {"sign": {"type": "string"}}},
            "strict": True,
        }
    ],
}
_UNKNOWN: Item = {"id": "tp_1", "type": "telepathy_call", "status": "completed", "thought": "4"}
_COUNTS = ("input_tokens", "output_tokens", "total_tokens")


def _nested_error(type_: str, code: str | None, message: str = _BROKE_OFF) -> Item:
    error = {"type": type_, "code": code, "message": message, "param": None}
    return {"type": "error", "error": error}


_STREAM_ERRORS: dict[Fault, Item] = {
    Fault.STREAM_ERROR_FLAT: _FLAT_ERROR,
    Fault.STREAM_ERROR_NESTED: _nested_error("server_error", "server_error"),
    Fault.STREAM_ERROR_NULL_CODE: _nested_error("server_error", None),
    Fault.STREAM_ERROR_RENAMED: {
        "type": "response.error",
        "error": {"type": "upstream_error", "code": "do_request_failed", "message": _BROKE_OFF},
    },
    Fault.STREAM_ERROR_FAILED: _FLAT_ERROR,
    Fault.STREAM_ERROR_QUOTA: _nested_error(
        "insufficient_quota", "credit_balance_exhausted", "Your credit balance is exhausted."
    ),
    Fault.STREAM_ERROR_RATE: _nested_error(
        "too_many_requests", "too_many_requests", "Too many requests. Please retry after 1 second."
    ),
}
_BEFORE_DELTAS = frozenset({Fault.STREAM_ERROR_QUOTA, Fault.STREAM_ERROR_RATE})
NOT_BILLED = frozenset({Fault.FAILED, Fault.FAILED_PROMPT, *_STREAM_ERRORS})
_IN_STREAM = {Fault.RESET_WITHIN: Fault.STREAM_RESET, Fault.TRUNCATED_JSON: Fault.STREAM_END}
_IN_PLAIN = {
    **{in_stream: plain for plain, in_stream in _IN_STREAM.items()},
    **dict.fromkeys(_STREAM_ERRORS, Fault.ERROR_200),
}


class FaultSampler:
    """Draws faults at the rates of the settings."""

    def __init__(self, settings: SimulatorSettings) -> None:
        self._seed = settings.seed
        rates = settings.rates()
        self._steps = list(zip(accumulate(rates.values()), rates, strict=True))

    def draw(self, key: bytes, attempt: int) -> Fault | None:
        """What the attempt gets; `attempt` counts those at the same body, from 0."""
        if not self._steps:
            return None
        share = random_values.uniform(self._seed, key, "fault", attempt)
        return next((fault for bound, fault in self._steps if share < bound), None)


def takes_work(fault: Fault) -> bool:
    """The error comes after the time of an answer; a refusal comes at once."""
    return fault.value[0] != "4" and fault is not Fault.QUOTA


def equivalent_fault(fault: Fault, *, streams: bool) -> Fault:
    """The fault that has the same effect on a stream, or on an answer in one piece."""
    return (_IN_STREAM if streams else _IN_PLAIN).get(fault, fault)


def encode(value: Any, quirks: tuple[Quirk, ...] = ()) -> bytes:
    """As JSON, with the lone surrogates of the quirk for them."""
    data = _encode_json(value)
    return data.replace(_SURROGATE.encode(), b"\\ud83d") if Quirk.SURROGATES in quirks else data


def unfinished(response: Item, status: str) -> Item:
    """The response before its end, `queued` or `in_progress`; or `cancelled`."""
    return {
        **response,
        "status": status,
        "completed_at": None,
        "incomplete_details": None,
        "output": [],
        "usage": None,
    }


def end_response(response: Item, fault: Fault) -> Item:
    """The response as one of `RESPONSE_FAULTS` ends it: failed, or cut by a filter."""
    if fault is not Fault.CONTENT_FILTER:
        code, message = _ERRORS[fault]
        return {**unfinished(response, "failed"), "error": {"code": code, "message": message}}
    output = list(response["output"])
    if output and output[-1]["type"] == "message":
        content = [_first_half(part) for part in output[-1]["content"]]
        output[-1] = {**output[-1], "status": "incomplete", "content": content}
    return {
        **response,
        "status": "incomplete",
        "completed_at": None,
        "incomplete_details": {"reason": "content_filter"},
        "output": output,
    }


def change_response(response: Item, quirks: tuple[Quirk, ...]) -> Item:
    """The response as a gateway with these quirks passes it on."""
    changed = {**response}
    for quirk in quirks:
        match quirk:
            case Quirk.NO_USAGE:
                changed.pop("usage", None)
            case Quirk.NULL_USAGE:
                changed["usage"] = None
            case Quirk.ZERO_USAGE:
                changed["usage"] = _with_details(dict.fromkeys(_COUNTS, 0), 0)
            case Quirk.NULL_DETAILS if changed.get("usage"):
                changed["usage"] = _with_details(changed["usage"], None)
            case Quirk.NO_DETAILS if changed.get("usage"):
                changed["usage"] = {name: changed["usage"][name] for name in _COUNTS}
            case Quirk.COMPLETED_THOUGH_CUT if changed["status"] == "incomplete":
                changed |= {"status": "completed", "incomplete_details": None}
            case Quirk.NAN:
                changed |= {"temperature": _NAN, "top_p": _NAN}
            case Quirk.SURROGATES:
                changed["output"] = [_with_surrogates(item) for item in changed["output"]]
            case Quirk.RENAMED_MODEL:
                changed["model"] += "-data"
            case Quirk.FLOAT_TIMES:
                changed["created_at"] += 0.25
            case Quirk.OTHER_ECHO:
                changed |= _OTHER_ECHO
            case Quirk.UNKNOWN_ITEM if changed["status"] != "failed":
                changed["output"] = [*changed["output"], _UNKNOWN]
            case _:
                pass  # it changes nothing in a response
    if Quirk.EXTRAS in quirks:
        changed |= {"content_filters": None, "output_text": _output_text(changed)}
        if changed.get("usage"):
            changed["usage"] = {**changed["usage"], "cost": 0.00042}
    return changed


def change_events(
    events: list[Item], quirks: tuple[Quirk, ...], fault: Fault | None = None
) -> list[Item]:
    """The events as a gateway passes them on, or as a fault breaks them off."""
    if fault is not None:
        events = _broken_off(events, fault)
    else:
        last = {**events[-1], "response": {**events[-1]["response"]}}
        if Quirk.NO_FINAL_OUTPUT in quirks:
            last["response"].pop("output")
        if Quirk.COMPLETED_INCOMPLETE in quirks:
            last["type"] = "response.completed"
        events = [*events[:-1], last]
    if Quirk.REPEATED_CREATED in quirks:
        events = [events[0]] * 3 + events[1:]
    if Quirk.NO_SEQUENCE_NUMBERS in quirks:
        events = [
            {name: value for name, value in event.items() if name != "sequence_number"}
            for event in events
        ]
    return events


def _broken_off(events: list[Item], fault: Fault) -> list[Item]:
    """The events before the fault, and the error event of the fault itself."""
    sent = events[: 2 if fault in _BEFORE_DELTAS else max(2, (len(events) - 1) * 3 // 5)]
    error = _STREAM_ERRORS.get(fault)
    if error is not None:
        sent = [*sent, {**error, "sequence_number": len(sent)}]
    if fault is Fault.STREAM_ERROR_FAILED:
        failed = end_response(events[-1]["response"], fault)
        sent.append({"type": "response.failed", "response": failed, "sequence_number": len(sent)})
    return sent


def _first_half(part: Item) -> Item:
    if part["type"] != "output_text":
        return part
    text = part["text"][: len(part["text"]) // 2]
    marks = [mark for mark in part["annotations"] if mark["end_index"] <= len(text)]
    ends = accumulate(len(one["token"]) for one in part["logprobs"])
    whole = sum(end <= len(text) for end in ends)
    return {**part, "text": text, "annotations": marks, "logprobs": part["logprobs"][:whole]}


def _with_details(usage: Item, count: int | None) -> Item:
    return {
        **usage,
        "input_tokens_details": {"cached_tokens": count},
        "output_tokens_details": {"reasoning_tokens": count},
    }


def _with_surrogates(item: Item) -> Item:
    if item["type"] != "message":
        return item
    content = [
        {**part, "text": f"{part['text']}{_SURROGATE}"} if "text" in part else part
        for part in item["content"]
    ]
    return {**item, "content": content}


def _output_text(response: Item) -> str:
    parts = (
        part.get("text", "")
        for item in response["output"]
        if item["type"] == "message"
        for part in item["content"]
    )
    return "".join(parts)
