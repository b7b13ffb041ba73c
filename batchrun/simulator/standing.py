"""The same response at another time or with another end: queued, cancelled, failed, filtered."""

from typing import Any

from batchrun.simulator.kinds import Fault

Item = dict[str, Any]
OUTCOMES = frozenset({Fault.FAILED, Fault.FAILED_PROMPT, Fault.CONTENT_FILTER})
_ERRORS = {
    Fault.FAILED: ("server_error", "The model had an error while it answered. Please retry."),
    Fault.FAILED_PROMPT: ("invalid_prompt", "The prompt was flagged as against the usage policy."),
    Fault.STREAM_ERROR_FAILED: ("server_error", "The model had an error while it answered."),
}


def unfinished(response: Item, status: str) -> Item:
    """As it stands before its end, `queued` or `in_progress`; or `cancelled`."""
    return {
        **response,
        "status": status,
        "completed_at": None,
        "incomplete_details": None,
        "output": [],
        "usage": None,
    }


def ended_by(response: Item, fault: Fault) -> Item:
    """As a fault among `OUTCOMES` leaves it: failed, or cut by a filter."""
    if fault is Fault.CONTENT_FILTER:
        return _filtered(response)
    code, message = _ERRORS[fault]
    return {**unfinished(response, "failed"), "error": {"code": code, "message": message}}


def _filtered(response: Item) -> Item:
    output = list(response["output"])
    if output and output[-1]["type"] == "message":
        last = output[-1]
        content = [_half(part) for part in last["content"]]
        output[-1] = {**last, "status": "incomplete", "content": content}
    return {
        **response,
        "status": "incomplete",
        "completed_at": None,
        "incomplete_details": {"reason": "content_filter"},
        "output": output,
    }


def _half(part: Item) -> Item:
    if part["type"] != "output_text":
        return part
    text = part["text"][: len(part["text"]) // 2]
    marks = [mark for mark in part["annotations"] if mark["end_index"] <= len(text)]
    return {**part, "text": text, "annotations": marks}
