"""Odd servers of background work: what they say to the create call and to polls (item 4)."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from tests.odd_servers.cases import SEQUENCE, Case, Json, Table, Wire
from tests.odd_servers.good_answers import written

table = Table(SEQUENCE)
MODES = ("background",)
_PAGE = b"<html><title>502 Bad Gateway</title></html>"


def running(case: Case, status: Any = "in_progress", **fields: Any) -> Wire:
    """What the server says of work that goes on."""
    state = {"id": case.meant["id"], "object": "response", "status": status, "output": []}
    return Wire(json.dumps({**state, **fields}).encode())


def begin(case: Case) -> None:
    """The create call and the polls of a good exchange."""
    case.create = running(case, "queued", model=case.meant["model"], error=None, usage=None)
    case.polls = [running(case, error=None) for _ in range(case.draw.randint(0, 2))]


# What the create call brings


def _created(case: Case, **fields: Any) -> None:
    case.create = running(case, **fields)


for _word in ("pending", "processing", "CREATED", "In Progress", "accepted", "", None):
    _apply = partial(_created, status=_word)
    table.add(f"4.create={_word}", "create", _apply, modes=MODES)


def _without(case: Case, *names: str) -> None:
    state = json.loads(case.create.body)
    case.create.body = json.dumps({k: v for k, v in state.items() if k not in names}).encode()


table.add("4.create_no_status", "create", lambda case: _without(case, "status"), modes=MODES)
table.add("4.create_no_output", "create", lambda case: _without(case, "output"), modes=MODES)
table.add("4.create_no_object", "create", lambda case: _without(case, "object"), modes=MODES)


@table.named("4.create_202", "create", modes=MODES)
def _(case: Case) -> None:
    case.create.status = case.draw.choice((201, 202))


@table.named("4.create_cut", "create", modes=MODES)
def _(case: Case) -> None:
    case.create.body = case.create.body[: -case.draw.randint(1, 10)]


@table.named("4.create_cut_in_frame", "create", modes=MODES)
def _(case: Case) -> None:
    case.create.framing, case.create.has_end, case.create.end = "chunked", False, "close"


@table.named("4.create_streams", "create", modes=MODES)
def _(case: Case) -> None:
    begun = {**json.loads(case.create.body), "status": "in_progress"}
    kept, case.events = case.events, [{"type": "response.created", "response": begun}]
    case.create = Wire(written(case, case.events), type="text/event-stream", framing="chunked")
    case.create.has_end, case.create.end = case.draw.random() < 0.5, "close"
    case.events = kept


@table.named("4.answers_at_once", "create", modes=MODES, excludes=("poll", "forgets", "4."))
def _(case: Case) -> None:
    case.create, case.polls = case.wire, []


# What polls bring before the answer


def _polls(case: Case, make: Callable[[Case], Wire]) -> None:
    for _ in range(case.draw.randint(1, 2)):
        case.polls.insert(case.draw.randint(0, len(case.polls)), make(case))


def _fixed(_case: Case, body: bytes, status: int = 200) -> Wire:
    html = body.startswith(b"<")
    return Wire(body, status, "text/html" if html else "application/json")


_ODD: dict[str, tuple[bytes, int]] = {
    "404": (b'{"error":{"message":"Response not found","code":"not_found"}}', 404),
    "404_empty": (b"", 404),
    "500": (b"Internal Server Error", 500),
    "502": (_PAGE, 502),
    "503": (b"", 503),
    "429": (b'{"error":{"message":"slow","code":"rate_limit_exceeded"}}', 429),
    "400": (b'{"error":{"message":"try later"}}', 400),
    "408": (b"", 408),
    "403_html": (_PAGE, 403),
    "200_html": (_PAGE, 200),
    "200_empty": (b"", 200),
    "200_half": (b'{"id": "resp_1", "object": "response", "status": "comp', 200),
    "200_null": (b"null", 200),
    "200_object": (b"{}", 200),
    "200_error": (b'{"error": {"message": "no such worker"}}', 200),
    "200_status_error": (b'{"status": "error"}', 200),
    "200_list": (b"[]", 200),
    "204": (b"", 204),
}
for _name, (_body, _status) in _ODD.items():
    _make = partial(_fixed, body=_body, status=_status)
    table.add(f"4.poll_{_name}", f"poll {_name}", partial(_polls, make=_make), modes=MODES)


@table.named("4.poll_reset", "poll reset", modes=MODES)
def _(case: Case) -> None:
    _polls(case, lambda _case: Wire(is_silent=True, end="reset"))


@table.named("4.poll_cut", "poll cut", modes=MODES)
def _(case: Case) -> None:
    def cut(case: Case) -> Wire:
        state = running(case)
        return Wire(state.body[:30], framing="chunked", has_end=False, end="close")

    _polls(case, cut)


@table.named("4.poll_odd_status", "poll odd status", modes=MODES)
def _(case: Case) -> None:
    _polls(case, lambda case: running(case, case.draw.choice(("weird", None, "RUNNING", "new"))))


@table.named("4.404_at_first", "poll at first", modes=MODES)
def _(case: Case) -> None:
    missing = Wire(b'{"error":{"message":"not found"}}', 404)
    case.polls[0:0] = [missing] * case.draw.randint(1, 3)


# A server that was restarted has forgotten the work


@table.named("4.forgets", "forgets", modes=MODES, excludes=("poll", "instead"))
def _(case: Case) -> None:
    case.forgets = 1


@table.named("4.forgets_twice", "forgets", modes=MODES, excludes=("poll", "instead", "before"))
def _(case: Case) -> None:
    case.forgets = 2


# Work that fails, and is begun once more


@table.named(
    "4.fails_once", "work", modes=MODES, excludes=("forgets", "before", "instead", "at_once")
)
def _(case: Case) -> None:
    state: Json = json.loads(running(case, "failed", model="m").body)
    state["error"] = {"code": "server_error", "message": "it broke"}
    case.failed_poll = Wire(json.dumps(state).encode(), cost="unknown")
    case.kinds.append("server_error")
