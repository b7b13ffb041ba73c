"""The whole response object: fields of the request echoed as the API does, defaults filled in."""

from typing import Any

from batchrun.simulator import search
from batchrun.simulator.requests import Asked

Item = dict[str, Any]
_TIERS = {"auto": "default", "fast": "priority"}


def whole_response(
    asked: Asked,
    items: list[Item],
    usage: Item,
    whole: bool,
    id_: str,
    times: tuple[int, int],
) -> Item:
    """`whole` is false where the answer was cut; `times` are those of creation and completion."""
    given = asked.fields
    conversation = given.get("conversation")
    response = {
        "id": id_,
        "object": "response",
        "created_at": times[0],
        "status": "completed" if whole else "incomplete",
        "background": given.get("background") is True,
        "completed_at": times[1] if whole else None,
        "error": None,
        "incomplete_details": None if whole else {"reason": "max_output_tokens"},
        "instructions": given.get("instructions"),
        "max_output_tokens": given.get("max_output_tokens"),
        "max_tool_calls": given.get("max_tool_calls"),
        "model": asked.model,
        "output": items,
        "parallel_tool_calls": given.get("parallel_tool_calls") is not False,
        "previous_response_id": given.get("previous_response_id"),
        "prompt_cache_key": given.get("prompt_cache_key"),
        "prompt_cache_retention": given.get("prompt_cache_retention"),
        "reasoning": {"effort": None, "summary": None, **(given.get("reasoning") or {})},
        "safety_identifier": given.get("safety_identifier"),
        "service_tier": _service_tier(given.get("service_tier")),
        "store": given.get("store") is not False,
        "temperature": _or_one(given.get("temperature")),
        "text": _echoed_text(given.get("text") or {}),
        "tool_choice": given.get("tool_choice") or "auto",
        "tools": [_echoed_tool(tool) for tool in given.get("tools") or []],
        "top_logprobs": given.get("top_logprobs") or 0,
        "top_p": _or_one(given.get("top_p")),
        "truncation": given.get("truncation") or "disabled",
        "usage": usage,
        "user": given.get("user"),
        "metadata": given.get("metadata") or {},
    }
    if conversation:
        response["conversation"] = (
            {"id": conversation} if isinstance(conversation, str) else conversation
        )
    if search.is_offered(given):
        response["tool_usage"] = search.usage(items)
    return response


def _service_tier(asked: str | None) -> str:
    return _TIERS.get(asked, asked) if asked else "default"


def _or_one(value: float | None) -> float:
    return 1.0 if value is None else float(value)


def _echoed_text(text: Item) -> Item:
    echoed = {"verbosity": "medium", **text}
    format_ = text.get("format") or {"type": "text"}
    if format_["type"] == "json_schema":
        format_ = {"description": None, "strict": False, **format_}
    echoed["format"] = format_
    return echoed


def _echoed_tool(tool: Item) -> Item:
    if tool["type"] != "function":
        return tool
    return {"description": None, "strict": True, "parameters": None, **tool}
