"""How often an answer's hosted tools searched, which is billed besides its tokens."""

from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Struct

from batchrun.records import NO_SEARCHES, Searches

# Types of output items that may be billed by the piece.
SEARCHING = ("web_search_call", "file_search_call")
_LOOKING = ("open_page", "find_in_page", "find")  # a page is read, nothing is searched


class _Action(Struct):
    type: Any = None


class _Item(Struct):
    action: _Action | None = None


class _Web(Struct):
    num_requests: Any = None


class _ToolUsage(Struct):
    web_search: _Web | None = None


class _Usage(Struct):
    tool_usage: _ToolUsage | None = None


_decode_item = msgspec.json.Decoder(_Item).decode
_decode_usage = msgspec.json.Decoder(_Usage).decode


def count_searches(
    usage_json: str | None, calls: Iterable[tuple[str, str | None, str]]
) -> Searches:
    """Of an answer with this usage and these calls: type, status and item of each.

    Of the web, what the server itself counts; else the calls that searched and did not fail.
    """
    web = file = 0
    for kind, status, item in calls:
        if kind not in SEARCHING or status == "failed":
            continue
        if kind == "file_search_call":
            file += 1
        else:
            web += _has_searched(item)
    if usage_json is not None and '"tool_usage"' in usage_json:
        said = _said(usage_json)
        web = web if said is None else said
    return Searches(web, file) if web or file else NO_SEARCHES


def _has_searched(item: str) -> bool:
    try:
        action = _decode_item(item).action
    except (msgspec.MsgspecError, UnicodeError, RecursionError):  # cut, or of an unknown shape
        return True
    return action is None or action.type not in _LOOKING


def _said(usage_json: str) -> int | None:
    try:
        told = _decode_usage(usage_json).tool_usage
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    count = told.web_search.num_requests if told and told.web_search else None
    is_count = isinstance(count, int) and not isinstance(count, bool) and count >= 0
    return count if is_count else None
