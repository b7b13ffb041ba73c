"""Responses that can be asked for again: stored ones, and those that are made in background.

What is stored are bytes, bounded in count and size; the oldest responses are forgotten first.
Times are those of the event loop.
"""

import asyncio
import re
from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import msgspec

from batchrun.simulator.errors import (
    ApiError,
    check_type,
    unknown_previous_response,
    unknown_response,
    wrong_value,
)
from batchrun.simulator.requests import CheckedRequest
from batchrun.simulator.stats import Delivery

Item = dict[str, Any]
_MOST_RESPONSES = 20_000
_MOST_BYTES = 32 << 20
_QUEUED = 0.2  # of the time of a background response
_decode = msgspec.json.decode
_ID_PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "reasoning": "rs",
}
_ORDERS = ("asc", "desc")
_MOST_ITEMS = 100  # on a page
_ITEMS = 20


class BackgroundWork:
    """The making of one response in background."""

    def __init__(
        self,
        delivery: Delivery,
        latency_s: float,
        destroyed_by: str | None,
        when_over: Callable[[], None],
    ) -> None:
        """It ends by itself; `destroyed_by` is the fault by which the response's id is lost."""
        loop = asyncio.get_running_loop()
        self.key = delivery.key
        self.polls = 0
        self.latency_s = latency_s
        self.begun_s = loop.time()
        self._delivery = delivery
        self._when_over = when_over
        self._due_s = self.begun_s + latency_s
        self._timer = loop.call_at(self._due_s, self._finish, destroyed_by)

    def cancel(self, now_s: float) -> bool:
        """Whether it was still to be done; what is done stays so."""
        if self.is_cancelled or now_s >= self._due_s:
            return False
        self._timer.cancel()
        self._delivery.billed = None
        self._delivery.end()
        self._when_over()
        return True

    @property
    def is_cancelled(self) -> bool:
        return self._timer.cancelled()

    def status(self, now_s: float) -> str | None:
        """Queued, in_progress or cancelled; None: it is done."""
        if self.is_cancelled:
            return "cancelled"
        if now_s >= self._due_s:
            self._delivery.finish()  # timers may be late; what is sent as done is counted
            return None
        is_queued = now_s < self.begun_s + self.latency_s * _QUEUED
        return "queued" if is_queued else "in_progress"

    def _finish(self, destroyed_by: str | None) -> None:
        self._delivery.finish(destroyed_by)
        self._when_over()


class StoredResponse(msgspec.Struct):
    """One response, as it was before what a gateway changes in it."""

    id: str
    request: bytes  # its body
    response: bytes
    context_tokens: int  # of its input and its output
    work: BackgroundWork | None = None  # by which it is made in background


class _Bounded:
    """Responses by id, the oldest forgotten where they are too many or too large."""

    def __init__(self, most_responses: int, most_bytes: int) -> None:
        self._most_responses = most_responses
        self._most_bytes = most_bytes
        self._bytes = 0
        self._by_id: OrderedDict[str, StoredResponse] = OrderedDict()

    def find(self, id_: str) -> StoredResponse | None:
        return self._by_id.get(id_)

    def add(self, stored: StoredResponse) -> None:
        self._by_id[stored.id] = stored
        self._bytes += len(stored.request) + len(stored.response)
        while len(self._by_id) > self._most_responses or self._bytes > self._most_bytes:
            self.remove(next(iter(self._by_id)))

    def remove(self, id_: str) -> StoredResponse | None:
        stored = self._by_id.pop(id_, None)
        if stored is not None:
            self._bytes -= len(stored.request) + len(stored.response)
        return stored


class StoredResponses:
    """The responses of one server that can be asked for again."""

    def __init__(
        self, most_responses: int = _MOST_RESPONSES, most_bytes: int = _MOST_BYTES
    ) -> None:
        # apart, so that what is done never displaces what is still being made
        self._done = _Bounded(most_responses, most_bytes)
        self._in_work = _Bounded(most_responses, most_bytes)

    def find(self, id_: str) -> StoredResponse:
        """Raises `ApiError` where it is unknown."""
        stored = self._done.find(id_) or self._in_work.find(id_)
        if stored is None:
            raise unknown_response(id_)
        return stored

    def add(self, stored: StoredResponse) -> None:
        """A response that is done."""
        self._done.add(stored)

    def begin(
        self, stored: StoredResponse, delivery: Delivery, latency_s: float, lost_by: str | None
    ) -> BackgroundWork:
        """A response that is made in background; `lost_by` is the fault by which its id is lost."""

        def settle() -> None:
            if self._in_work.remove(stored.id) is not None:
                self._done.add(stored)

        work = stored.work = BackgroundWork(delivery, latency_s, lost_by, settle)
        self._in_work.add(stored)
        return work

    def delete(self, id_: str) -> Item:
        """What is answered. Work in background goes on. Raises `ApiError` where it is unknown."""
        if self._done.remove(id_) is None and self._in_work.remove(id_) is None:
            raise unknown_response(id_)
        return {"id": id_, "object": "response", "deleted": True}

    def with_context(self, request: CheckedRequest) -> CheckedRequest:
        """The request with the tokens of the responses that it goes on from, which are billed too.

        Raises `ApiError` where the response before is unknown.
        """
        id_ = request.fields.get("previous_response_id")
        if not id_:
            return request
        try:
            before = self.find(id_)
        except ApiError as error:
            raise unknown_previous_response(id_) from error
        tokens = request.input_tokens + before.context_tokens
        return msgspec.structs.replace(request, input_tokens=tokens)


def input_items(given: Any, owner: str) -> list[Item]:
    """The items of an input, in order, with all that the API adds; `owner` makes their ids."""
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    return [_whole_item(item, f"{owner} {index}") for index, item in enumerate(given or [])]


def list_items(stored: StoredResponse, query: Any) -> Item:
    """A page of the input items of a response, the last first unless `order` says `asc`.

    Raises `ApiError` for what the query may not hold.
    """
    items = input_items(_decode(stored.request).get("input"), stored.id)
    order = query.get("order", "desc")
    if order not in _ORDERS:
        raise wrong_value("order", order, _ORDERS)
    if order == "desc":
        items.reverse()
    after = query.get("after")
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise ApiError(f"Item with id '{after}' not found.", "after", status=404)
        del items[: ids.index(after) + 1]
    limit = query_number(query, "limit", _ITEMS)
    if not 1 <= limit <= _MOST_ITEMS:
        message = f"Invalid 'limit': expected a value from 1 to {_MOST_ITEMS}, but got {limit}."
        raise ApiError(message, "limit", "invalid_value")
    page = items[:limit]
    ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {}
    none = {"first_id": None, "last_id": None}
    return {"object": "list", "data": page, **none, **ends, "has_more": len(items) > limit}


def is_set(query: Any, name: str, *, default: bool = False) -> bool:
    """A flag of a query. Raises `ApiError` where it is neither true nor false."""
    text = query.get(name)
    if text is None:
        return default
    check_type(name, {"true": True, "false": False}.get(text.lower(), text), "a boolean", bool)
    return bool(text.lower() == "true")


def query_number(query: Any, name: str, default: int) -> int:
    """Raises `ApiError` where it is no whole number."""
    text = query.get(name)
    if text is None:
        return default
    value = int(text) if re.fullmatch("[0-9]{1,9}", text) else text
    check_type(name, value, "an integer", int)
    return int(value)


def _whole_item(item: Item, owner: str) -> Item:
    type_ = item.get("type", "message")
    digest = sha256(owner.encode("utf-8", "replace")).hexdigest()[:48]
    whole: Item = {"id": f"{_ID_PREFIXES.get(type_, 'item')}_{digest}", "status": "completed"}
    whole |= {name: value for name, value in item.items() if value is not None}
    whole["type"] = type_
    if type_ == "message":
        says = item["role"] == "assistant"
        content = item["content"]
        if isinstance(content, str):
            content = [{"type": "output_text" if says else "input_text", "text": content}]
        whole["content"] = [_whole_part(part) for part in content]
    return whole


def _whole_part(part: Any) -> Any:
    match part:
        case {"type": "output_text"}:
            return {"annotations": [], "logprobs": [], **part}
        case {"type": "input_image"}:
            return {"detail": "auto", **part}
    return part
