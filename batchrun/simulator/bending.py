"""What quirks and faults make of a response and of the events of a stream. Pure.

JSON cannot hold two of them, NaN and lone surrogates: `encode` writes these.
"""

from typing import Any

import msgspec

from batchrun.simulator import standing
from batchrun.simulator.kinds import Fault, Quirk

Item = dict[str, Any]
_plain = msgspec.json.Encoder().encode
_SURROGATE = "\ue000"  # stands for one until it is written
_NAN = msgspec.Raw(b"NaN")
_REPEATS = 3
_MESSAGE = "The upstream broke off."
_STREAM_ERRORS: dict[Fault, Item] = {
    Fault.STREAM_ERROR_FLAT: {
        "type": "error",
        "code": "server_error",
        "message": _MESSAGE,
        "param": None,
    },
    Fault.STREAM_ERROR_NESTED: {
        "type": "error",
        "error": {
            "type": "server_error",
            "code": "server_error",
            "message": _MESSAGE,
            "param": None,
        },
    },
    Fault.STREAM_ERROR_NULL_CODE: {
        "type": "error",
        "error": {"type": "server_error", "code": None, "message": _MESSAGE, "param": None},
    },
    Fault.STREAM_ERROR_RENAMED: {
        "type": "response.error",
        "error": {"type": "upstream_error", "code": "do_request_failed", "message": _MESSAGE},
    },
    Fault.STREAM_ERROR_FAILED: {
        "type": "error",
        "code": "server_error",
        "message": _MESSAGE,
        "param": None,
    },
    Fault.STREAM_ERROR_QUOTA: {
        "type": "error",
        "error": {
            "type": "insufficient_quota",
            "code": "credit_balance_exhausted",
            "message": "Your credit balance is exhausted.",
            "param": None,
        },
    },
    Fault.STREAM_ERROR_RATE: {
        "type": "error",
        "error": {
            "type": "too_many_requests",
            "code": "too_many_requests",
            "message": "Too many requests. Please retry after 1 second.",
            "param": None,
        },
    },
}
_AT_THE_START = frozenset({Fault.STREAM_ERROR_QUOTA, Fault.STREAM_ERROR_RATE})
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


def encode(value: Any, quirks: tuple[Quirk, ...] = ()) -> bytes:
    """As JSON; with the quirk for it, lone surrogates stand where texts were marked."""
    data = _plain(value)
    return data.replace(_SURROGATE.encode(), b"\\ud83d") if Quirk.SURROGATES in quirks else data


def bend(response: Item, quirks: tuple[Quirk, ...]) -> Item:
    """The response as a gateway with these quirks passes it on."""
    bent = {**response}
    for quirk in quirks:
        match quirk:
            case Quirk.NO_USAGE:
                bent.pop("usage", None)
            case Quirk.NULL_USAGE:
                bent["usage"] = None
            case Quirk.ZERO_USAGE:
                bent["usage"] = _with_details(dict.fromkeys(_COUNTS, 0), 0)
            case Quirk.NULL_DETAILS if bent.get("usage"):
                bent["usage"] = _with_details(bent["usage"], None)
            case Quirk.NO_DETAILS if bent.get("usage"):
                bent["usage"] = {name: bent["usage"][name] for name in _COUNTS}
            case Quirk.COMPLETED_THOUGH_CUT if bent["status"] == "incomplete":
                bent |= {"status": "completed", "incomplete_details": None}
            case Quirk.NAN:
                bent |= {"temperature": _NAN, "top_p": _NAN}
            case Quirk.SURROGATES:
                bent["output"] = [_marked(item) for item in bent["output"]]
            case Quirk.RENAMED_MODEL:
                bent["model"] += "-data"
            case Quirk.FLOAT_TIMES:
                bent["created_at"] += 0.25
            case Quirk.OTHER_ECHO:
                bent |= _OTHER_ECHO
            case Quirk.UNKNOWN_ITEM if bent["status"] != "failed":
                bent["output"] = [*bent["output"], _UNKNOWN]
            case _:
                pass  # not of the response
    if Quirk.EXTRAS in quirks:
        bent |= {"content_filters": None, "output_text": _said(bent)}
        if bent.get("usage"):
            bent["usage"] = {**bent["usage"], "cost": 0.00042}
    return bent


def bend_events(
    events: list[Item], response: Item, quirks: tuple[Quirk, ...], fault: Fault | None = None
) -> list[Item]:
    """The events as a gateway passes them on, or as a fault breaks them off."""
    *before, last = events
    bent = dict(last["response"])
    if Quirk.NO_FINAL_OUTPUT in quirks:
        bent.pop("output")
    type_ = last["type"]
    if Quirk.COMPLETED_INCOMPLETE in quirks:
        type_ = "response.completed"
    events = [*before, {**last, "type": type_, "response": bent}]
    if fault is not None:
        events = _broken(events, response, fault)
    if Quirk.REPEATED_CREATED in quirks:
        events = [events[0]] * _REPEATS + events[1:]
    if Quirk.NO_SEQUENCE_NUMBERS in quirks:
        events = [
            {name: value for name, value in event.items() if name != "sequence_number"}
            for event in events
        ]
    return events


_COUNTS = ("input_tokens", "output_tokens", "total_tokens")


def _with_details(usage: Item, count: int | None) -> Item:
    return {
        **usage,
        "input_tokens_details": {"cached_tokens": count},
        "output_tokens_details": {"reasoning_tokens": count},
    }


def _broken(events: list[Item], response: Item, fault: Fault) -> list[Item]:
    """What comes of the events before the fault, and what it says itself."""
    told = events[: 2 if fault in _AT_THE_START else max(2, (len(events) - 1) * 3 // 5)]
    error = _STREAM_ERRORS.get(fault)
    if error is None:
        return told
    told = [*told, {**error, "sequence_number": len(told)}]
    if fault is Fault.STREAM_ERROR_FAILED:
        failed = standing.ended_by(response, fault)
        event = {"type": "response.failed", "response": failed, "sequence_number": len(told)}
        told.append(event)
    return told


def _marked(item: Item) -> Item:
    if item["type"] != "message":
        return item
    content = [
        {**part, "text": f"{part['text']}{_SURROGATE}"} if "text" in part else part
        for part in item["content"]
    ]
    return {**item, "content": content}


def _said(response: Item) -> str:
    parts = (
        part.get("text", "")
        for item in response["output"]
        if item["type"] == "message"
        for part in item["content"]
    )
    return "".join(parts)
