"""Attempts that fail before a good answer, and rows that get none (items 2, 3, 8, 11, 16, 19)."""

import copy
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from tests.odd_servers.cases import MOST_ATTEMPTS, SAME_ENDS, SEQUENCE, Case, Json, Table, Wire
from tests.odd_servers.good_answers import events_of, written

table = Table(SEQUENCE)
# Kinds of attempts that cost nothing: refused before any work was done (docs/errors.md).
FREE = frozenset(
    (
        *("quota", "unauthorized", "forbidden", "not_found", "redirect", "rate_limit", "busy"),
        *("overloaded", "firewall", "over_limit", "too_long", "content_policy", "bad_request"),
    )
)
_PAGE = b"<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"


def error(message: str, **fields: Any) -> bytes:
    return json.dumps({"error": {"message": message, **fields}}).encode()


def failing(kind: str, status: int, body: bytes, type_: str = "application/json") -> Wire:
    cost = "free" if kind in FREE else "unknown"
    return Wire(body, status, type_, cost=cost)


# 11, 14. Attempts that fail, and whose row is answered at the next

_PASSING: dict[str, tuple[str, int, bytes]] = {
    "421": ("busy", 421, b"Misdirected Request"),
    "423": ("busy", 423, error("locked")),
    "424": ("server_error", 424, error("Failed Dependency", type="invalid_request_error")),
    "460": ("server_error", 460, b""),
    "498": ("overloaded", 498, error("capacity exceeded for the flex tier")),
    "499": ("server_error", 499, b'{"code":"499","message":"Client Closed Request"}'),
    "408": ("busy", 408, b""),
    "409": ("busy", 409, error("lock timeout")),
    "425": ("busy", 425, b""),
    "500": ("server_error", 500, b"Internal Server Error"),
    "500_json": ("server_error", 500, error("The server had an error", type="server_error")),
    "500_detail": ("server_error", 500, b'{"detail":"EngineDeadError"}'),
    "502": ("server_error", 502, _PAGE),
    "503": ("overloaded", 503, b"no healthy upstream"),
    "503_channel": ("overloaded", 503, error("no channel", code="model_not_found")),
    "520": ("server_error", 520, b"error code: 520"),
    "529": ("overloaded", 529, error("Overloaded", type="overloaded_error")),
    "504": ("gateway_timeout", 504, _PAGE),
    "524": ("gateway_timeout", 524, b"error code: 524"),
    "429": ("rate_limit", 429, b""),
    "429_json": ("rate_limit", 429, error("slow", code="rate_limit_exceeded")),
    "400_rate": ("rate_limit", 400, error("Rate limit reached for requests")),
    "400_throttling": ("rate_limit", 400, b'{"__type":"ThrottlingException","message":"Rate"}'),
    "403_429": ("rate_limit", 403, error("upstream said: status code: 429")),
    "401_2009": ("rate_limit", 401, b'{"errors":[{"code":2009,"message":"Unauthorized"}]}'),
    "200_html": ("unreadable", 200, _PAGE),
    "200_empty": ("unreadable", 200, b""),
    "200_blank": ("unreadable", 200, b" \n "),
    "200_text": ("unreadable", 200, b"upstream connect error"),
    "200_half": ("unreadable", 200, b'{"id": "resp_1", "object": "response", "outp'),
    "200_null": ("unreadable", 200, b"null"),
    "200_object": ("unreadable", 200, b"{}"),
    "200_error": ("server_error", 200, error("upstream failed", code="do_request_failed")),
    "200_error_500": ("server_error", 200, error("upstream failed", code=500)),
    "200_error_429": ("rate_limit", 200, error("Too Many Requests", code="429")),
    "200_overloaded": ("overloaded", 200, error("busy", type="overloaded_error")),
    "403_html": ("firewall", 403, _PAGE),
}


def _before(case: Case, kind: str, status: int, body: bytes) -> None:
    html = body.startswith(b"<")
    wire = failing(kind, status, body, "text/html" if html else "application/json")
    case.before.append(wire)
    case.kinds.append(kind)


for _name, (_kind, _status, _body) in _PASSING.items():
    _apply = partial(_before, kind=_kind, status=_status, body=_body)
    table.add(f"11.{_name}", f"before {_kind}", _apply)


@table.named("14.retry_after_moment", "before rate_limit")
def _(case: Case) -> None:
    _before(case, "rate_limit", 429, b"")
    case.before[-1].headers["Retry-After"] = str(int(time.time()))  # now, in whole seconds


@table.named("11.aws_header", "before rate_limit")
def _(case: Case) -> None:
    _before(case, "rate_limit", 400, b'{"message":"x"}')
    case.before[-1].headers["x-amzn-errortype"] = "ThrottlingException:http://internal/"


@table.named("11.no_retry_hint", "before busy")
def _(case: Case) -> None:
    _before(case, "busy", 409, error("x"))
    case.before[-1].headers["retry-after-ms"] = case.draw.choice(("3", "0", "-1", "soon"))


def _lost(case: Case, end: str, kind: str, body: bytes = b"") -> None:
    wire = Wire(body, framing="chunked", has_end=False, end=end, cost="unknown")
    wire.is_silent = not body
    case.before.append(wire)
    case.kinds.append(kind)


table.add("11.reset", "before lost", partial(_lost, end="reset", kind="connection"))
table.add("11.cut", "before cut", partial(_lost, end="close", kind="cut", body=b'{"id": "resp_1"'))
table.add("11.cut_reset", "before cut", partial(_lost, end="reset", kind="cut", body=b'{"id": '))


@table.named("19.failed", "before failed")
def _(case: Case) -> None:
    failed = {**case.served, "status": case.draw.choice(("failed", "FAILED", "error", "expired"))}
    failed |= {"error": {"code": "server_error", "message": "it broke"}, "usage": None}
    failed["id"] = f"resp_failed_{case.id}"
    failed["incomplete_details"] = None
    case.piece = failed
    case.before.append(Wire(json.dumps(failed).encode(), cost="unknown"))
    case.kinds.append("server_error")


@table.named("19.failed_and_billed", "before failed")
def _(case: Case) -> None:
    usage = {"input_tokens": 11, "output_tokens": 7, "total_tokens": 18}
    failed = {**case.served, "status": "failed", "usage": usage, "incomplete_details": None}
    failed |= {"error": {"code": "server_error", "message": "it broke"}}
    failed["id"] = f"resp_failed_{case.id}"
    case.piece = failed
    case.before.append(Wire(json.dumps(failed).encode(), cost="18 tokens"))
    case.kinds.append("server_error")


# 2. Streams that fail

STREAM = ("stream",)
_FAILED_EVENT = {
    "type": "response.failed",
    "response": {"id": "r", "status": "failed", "error": {"code": "server_error", "message": "m"}},
}
_ERRORS: dict[str, tuple[str, bytes]] = {
    "error_flat": ("server_error", b'{"type":"error","code":null,"message":"it broke"}'),
    "error_nested": ("server_error", b'{"type":"error","error":{"message":"it broke"}}'),
    "error_rate": ("rate_limit", b'{"type":"error","code":"rate_limit_exceeded","message":"x"}'),
    "error_detail": ("server_error", b'{"detail":"it broke"}'),
    "error_untyped": ("server_error", b'{"error":{"message":"it broke","code":500}}'),
    "error_failed": ("server_error", json.dumps(_FAILED_EVENT).encode()),
}


def _stream(body: bytes, **fields: Any) -> Wire:
    wire = Wire(body, type="text/event-stream", framing="chunked", cost="unknown")
    for name, value in fields.items():
        setattr(wire, name, value)
    return wire


def _in_stream(case: Case, kind: str, data: bytes, *, said: bool) -> None:
    begun = b""
    if said:
        created = {"type": "response.created", "response": {"id": "resp_x", "object": "response"}}
        delta = {"type": "response.output_text.delta", "output_index": 0, "delta": "Half a"}
        begun = b"".join(b"data: %b\n\n" % json.dumps(one).encode() for one in (created, delta))
    wire = _stream(begun + b"data: " + data + b"\n\n")
    if kind in FREE and not said:
        wire.cost = "free"
    case.before.append(wire)
    case.kinds.append(kind)


for _name, (_kind, _data) in _ERRORS.items():
    for _said in (False, True):
        table.add(
            f"2.{_name}{'_after_text' if _said else ''}",
            "before stream",
            partial(_in_stream, kind=_kind, data=_data, said=_said),
            modes=STREAM,
        )


@table.named("2.error_in_words", "before stream", modes=STREAM)
def _(case: Case) -> None:
    words = case.draw.choice((b"event: error\ndata: upstream died\n\n", b"upstream died"))
    case.before.append(_stream(words))
    case.kinds.append("server_error")


@table.named("2.broken_off", "before stream", modes=STREAM, excludes=("13.empty",))
def _(case: Case) -> None:
    """The good stream itself, cut anywhere, or closed in the midst of its last text."""
    events = events_of(case.meant, case.meant["status"], case.draw)
    is_clean = case.draw.random() < 0.5
    least = 1
    if is_clean:
        kinds = [str(event["type"]) for event in events]
        last = max(at for at, kind in enumerate(kinds) if kind.endswith(".added"))
        until = next(at for at, kind in enumerate(kinds) if at > last and kind.endswith("done"))
        least, events = len(written(case, events[: last + 1])) + 2, events[:until]
    else:
        del events[-2:]
    whole = written(case, events)
    wire = _stream(whole[: case.draw.randint(least, max(least, len(whole)))])
    wire.has_end, wire.end = is_clean, case.draw.choice(("close", "reset"))
    wire.cut = case.draw.choice((0, 1, 50))
    case.before.append(wire)
    case.kinds.append("cut")


@table.named("2.closed_without_final", "before stream", modes=STREAM, excludes=("13.empty",))
def _(case: Case) -> None:
    """All its items are done; but this server's other streams have a last event."""
    events = events_of(case.meant, case.meant["status"], case.draw)[:-1]
    case.before.append(_stream(written(case, events)))
    case.kinds.append("cut")


# 8. Rows that are refused, and stop nothing


def _instead(
    case: Case, kind: str, status: int, body: bytes, posts: int, row: Json, type_: str
) -> None:
    case.wire, case.instead = failing(kind, status, body, type_), True
    case.kind, case.posts = kind, posts
    case.status = "failed"
    case.row |= row
    case.is_verbatim = False


def _refused(
    name: str, kind: str, status: int, body: bytes, row: Json | None = None, posts: int = 1
) -> None:
    type_ = "text/html" if body.startswith(b"<") else "application/json"
    table.add(
        f"8.{name}",
        "instead",
        partial(
            _instead, kind=kind, status=status, body=body, posts=posts, row=row or {}, type_=type_
        ),
        excludes=_ONLY_ANSWERS,
    )


# What changes the answer itself changes nothing of a refusal.
_ONLY_ANSWERS = (
    *("status", "item status", "usage", "content", "error", "calls", "object", "fields"),
    *("1.", "2.", "4."),
)
_PREVIOUS = {"previous_response_id": "resp_0123456789"}
_ECHO = "insufficient balance, rate limit exceeded, 余额不足, invalid api key"
_refused("403_moderation", "content_policy", 403, error("Your input was flagged by moderation"))
_refused("400_policy", "content_policy", 400, error("x", code="content_policy_violation"))
_refused(
    "404_previous",
    "bad_request",
    404,
    error("Previous response with id 'resp_0123456789' not found.", param="previous_response_id"),
    _PREVIOUS,
)
_refused(
    "400_previous",
    "bad_request",
    400,
    error("Previous response resp_0123456789 has expired.", code="previous_response_not_found"),
    _PREVIOUS,
)
_refused("403_previous", "bad_request", 403, error("No access to resp_0123456789"), _PREVIOUS)
_refused(
    "404_vector_store",
    "bad_request",
    404,
    error("Vector store with id vs_0123456789 not found"),
    {"tools": [{"type": "file_search", "vector_store_ids": ["vs_0123456789"]}]},
)
_refused(
    "404_file",
    "bad_request",
    404,
    error("No such File object: file-0123456789"),
    {"metadata": {"file": "file-0123456789"}},
)
_refused("400_param", "bad_request", 400, error("Unknown parameter: 'x'", param="x"))
_refused("422_detail", "bad_request", 422, b'{"detail":[{"loc":["body","x"],"msg":"no"}]}')
_refused("400_long", "too_long", 400, error("x", code="context_length_exceeded"))
_refused("413", "too_long", 413, b"")
_refused(
    "429_over_limit",
    "over_limit",
    429,
    error("Request too large for m (TPM): Limit 30000, Requested 36278. See", type="tokens"),
)
_refused(
    "400_echo",
    "bad_request",
    400,
    error(f"Invalid input: {_ECHO}", param="input"),
    {"instructions": _ECHO},
)
_refused("500_same", "server_error", 500, error("x", code="convert_failed"), posts=SAME_ENDS)
_refused("500_request", "bad_request", 500, error("x", code="invalid_request"))


# 3. Rows that always fail


def _always(case: Case, kind: str, wire: Wire, posts: int) -> None:
    case.wire, case.instead = wire, True
    case.kind, case.posts, case.status = kind, posts, "no_answer"
    case.is_verbatim = False


def _fails(name: str, kind: str, wire: Callable[[], Wire], posts: int = MOST_ATTEMPTS) -> None:
    table.add(
        f"3.{name}",
        "instead",
        lambda case: _always(case, kind, wire(), posts),
        excludes=(*_ONLY_ANSWERS, "7.", "14.", "before", "10.", "11."),
    )


_fails("500", "server_error", partial(failing, "server_error", 500, b"Internal Server Error"))
_fails("503", "overloaded", partial(failing, "overloaded", 503, b""))
_fails("424", "server_error", partial(failing, "server_error", 424, error("dependency")))
_fails("504", "gateway_timeout", partial(failing, "gateway_timeout", 504, _PAGE), 2)
_fails("html", "unreadable", partial(failing, "unreadable", 200, _PAGE), 3)
_fails("half", "unreadable", partial(failing, "unreadable", 200, b'{"id": "resp_1", "obj'), 3)
_fails("reset", "connection", lambda: Wire(is_silent=True, end="reset", cost="unknown"))


@table.named(
    "3.always_failed", "instead", excludes=(*_ONLY_ANSWERS, "7.", "14.", "before", "10.", "11.")
)
def _(case: Case) -> None:
    """What a failed response has stands in the row."""
    failed = {**case.meant, "status": "failed", "usage": None, "id": f"resp_f_{case.id}"}
    failed["error"] = {"code": "server_error", "message": "it broke"}
    wire = Wire(json.dumps(failed).encode(), cost="unknown")
    _always(case, "server_error", wire, MOST_ATTEMPTS)
    case.piece = failed


@table.named(
    "3.always_broken",
    "instead",
    modes=STREAM,
    needs=("text",),
    excludes=(*_ONLY_ANSWERS, "7.", "14.", "before", "10.", "11."),
)
def _(case: Case) -> None:
    """What a stream said before it broke off stands in the row."""
    events = events_of(case.meant, case.meant["status"], case.draw)
    deltas = [at for at, one in enumerate(events) if one["type"] == "response.output_text.delta"]
    until = case.draw.choice(deltas) + 1
    place = (events[until - 1]["output_index"], events[until - 1]["content_index"])
    said = "".join(
        event["delta"]
        for event in events[:until]
        if event["type"] == "response.output_text.delta"
        and (event["output_index"], event["content_index"]) == place
    )
    items = copy.deepcopy(case.meant["output"][: place[0] + 1])
    items[-1]["content"] = items[-1]["content"][: place[1] + 1]
    items[-1]["content"][-1]["text"] = said
    wire = _stream(written(case, events[:until]), has_end=False, end="close")
    _always(case, "cut", wire, MOST_ATTEMPTS)
    case.piece = {**case.meant, "output": items, "usage": None}
