"""Odd answers, in every mode: statuses, usage, what is empty, calls (items 6, 12 to 15 and 19)."""

import copy
import json
from collections.abc import Callable
from functools import partial
from typing import Any

from tests.odd_servers.cases import ANSWER, Case, Json, Table
from tests.odd_servers.good_answers import words

table = Table(ANSWER)


# 6. Statuses


def _status(case: Case, said: str, meant: str = "completed", reason: str | None = None) -> None:
    case.served["status"] = said
    case.meant["status"] = meant
    if meant == "incomplete":
        case.meant["incomplete_details"] = {"reason": reason or said}


for _word in (
    "stop",
    "success",
    "COMPLETED",
    "done",
    "Finished",
    "end_turn",
    "tool_calls",
    "weird",
):
    table.add(f"6.status={_word}", "status", partial(_status, said=_word))
for _word in ("length", "max_tokens", "MAX_TOKENS", "content_filter"):
    table.add(f"6.status={_word}", "status", partial(_status, said=_word, meant="incomplete"))


def _reason(case: Case, status: str, reason: str) -> None:
    case.both(incomplete_details={"reason": reason})
    _status(case, status, "incomplete", reason)


for _word in ("max_tokens", "length", "max_output_tokens", "content_filter", "steered"):
    for _said in ("incomplete", "completed"):
        _apply = partial(_reason, status=_said, reason=_word)
        table.add(f"6.{_said}+{_word}", "status", _apply)


@table.named("6.reason_that_is_none", "status")
def _(case: Case) -> None:
    case.served["incomplete_details"] = case.draw.choice(({}, {"reason": None}, {"reason": "stop"}))


@table.named("6.reason_as_text", "status")
def _(case: Case) -> None:
    case.served["incomplete_details"] = "length"
    _status(case, "incomplete", "incomplete", "length")


@table.named("6.no_status", "status", excludes=("background", "4."))
def _(case: Case) -> None:
    del case.served["status"]


@table.named("6.items_with_other_statuses", "item status")
def _(case: Case) -> None:
    word = case.draw.choice(("stop", "COMPLETED", "success", None, "in_progress", "odd"))
    for item in case.served["output"]:
        item["status"] = word
    case.meant["output"] = copy.deepcopy(case.served["output"])


# 12. Usage


def _spelt(case: Case, spell: Callable[[Json], Any]) -> None:
    usage = case.served["usage"]
    case.served["usage"] = spell(
        {
            "read": usage["input_tokens"],
            "cached": usage["input_tokens_details"]["cached_tokens"],
            "written": usage["output_tokens"],
            "thought": usage["output_tokens_details"]["reasoning_tokens"],
            "all": usage["total_tokens"],
        }
    )


def _chat(n: Json) -> Json:
    return {
        "prompt_tokens": n["read"],
        "completion_tokens": n["written"],
        "total_tokens": n["all"],
        "prompt_tokens_details": {"cached_tokens": n["cached"], "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": n["thought"]},
    }


def _camel(n: Json) -> Json:
    return {
        "inputTokens": n["read"],
        "outputTokens": n["written"],
        "totalTokens": n["all"],
        "cacheReadInputTokens": n["cached"],
        "reasoningTokens": n["thought"],
    }


def _as_text(n: Json) -> Json:
    return {
        "input_tokens": str(n["read"]),
        "output_tokens": f"{n['written']:,}",
        "total_tokens": str(n["all"]),
        "input_tokens_details": {"cached_tokens": str(n["cached"])},
        "output_tokens_details": {"reasoning_tokens": str(n["thought"])},
    }


def _both_with_zeros(n: Json) -> Json:
    good = {
        "input_tokens": n["read"],
        "output_tokens": n["written"],
        "input_tokens_details": {"cached_tokens": n["cached"]},
        "output_tokens_details": {"reasoning_tokens": n["thought"]},
    }
    return {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": n["all"], **good}


def _details_swapped(n: Json) -> Json:
    return {
        "prompt_tokens": n["read"],
        "output_tokens": n["written"],
        "total_tokens": n["all"],
        "input_tokens_details": {"cached_tokens": n["cached"]},
        "completion_tokens_details": {"reasoning_tokens": n["thought"]},
    }


def _deepseek(n: Json) -> Json:
    return {
        **_chat(n),
        "prompt_tokens_details": None,
        "prompt_cache_hit_tokens": n["cached"],
        "prompt_cache_miss_tokens": n["read"] - n["cached"],
    }


def _floats(n: Json) -> Json:
    return {
        "input_tokens": float(n["read"]),
        "output_tokens": float(n["written"]),
        "total_tokens": float(n["all"]),
        "input_tokens_details": {"cached_tokens": float(n["cached"])},
        "output_tokens_details": {"reasoning_tokens": float(n["thought"])},
    }


for _spell in (_chat, _camel, _as_text, _both_with_zeros, _details_swapped, _deepseek, _floats):
    _apply = partial(_spelt, spell=_spell)
    table.add(f"12.usage{_spell.__name__}", "usage", _apply)


@table.named("12.anthropic", "usage")
def _(case: Case) -> None:
    """Cached tokens beside the input, not in it: together they are the total."""
    usage = case.served["usage"]
    cached = usage["input_tokens_details"]["cached_tokens"]
    case.served["usage"] = {
        "input_tokens": usage["input_tokens"] - cached,
        "cache_read_input_tokens": cached,
        "output_tokens": usage["output_tokens"],
        "total_tokens": usage["total_tokens"],
        "output_tokens_details": usage["output_tokens_details"],
    }


@table.named("12.zero", "usage", needs=("text", "no search"))
def _(case: Case) -> None:
    zeros = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    case.served["usage"] = zeros
    case.meant["usage"] = None


@table.named("12.missing", "usage")
def _(case: Case) -> None:
    case.served["usage"] = case.draw.choice((None, {}, [], "none"))
    case.meant["usage"] = None


@table.named("12.no_field", "usage")
def _(case: Case) -> None:
    del case.served["usage"]
    case.meant["usage"] = None


@table.named("12.null_details", "usage")
def _(case: Case) -> None:
    for usage in (case.served["usage"], case.meant["usage"]):
        usage |= {"input_tokens_details": None, "output_tokens_details": None}


def _cost(case: Case, said: Any) -> None:
    case.served["usage"]["cost"] = said
    case.meant["reported_cost"] = float(said)


table.add("12.cost_as_text", "usage", partial(_cost, said="0.00125"))
table.add("12.cost_as_number", "usage", partial(_cost, said=0.00125))


# 13. Paid and empty


def _nothing(case: Case, output: Any) -> None:
    case.row.pop("text", None)
    case.both(output=output)
    case.kind = "empty_output"


_REASONED = {"type": "reasoning", "id": "rs_1", "summary": [], "content": []}
_EMPTY_OUTPUTS: dict[str, Any] = {
    "none": [],
    "reasoning": [{**_REASONED, "encrypted_content": "x"}],
    "no_content": [{"type": "message", "id": "msg_1", "role": "assistant", "content": []}],
    "blank": [
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "content": [{"type": "output_text", "text": " \n ", "annotations": []}],
        }
    ],
}
for _name, _empty in _EMPTY_OUTPUTS.items():
    _apply = partial(_nothing, output=_empty)
    table.add(f"13.empty={_name}", "content", _apply, excludes=("6.", "1.", "2.all", "12.zero"))


@table.named("13.unfit", "content", needs=("text", "schema", "no call"), excludes=("6.", "calls"))
def _(case: Case) -> None:
    for output in (case.served["output"], case.meant["output"]):
        for item in output:
            for part in item.get("content") or ():
                if part["type"] == "output_text":
                    part["text"] = "no JSON: " + json.dumps({"a": "x"})
    case.kind = "invalid_output"


# 14. An error that is none; calls

_NO_ERRORS: tuple[Any, ...] = (
    {},
    {"message": "", "code": None, "type": ""},
    {"code": None, "message": None},
    False,
    "",
    [],
    0,
)


@table.named("14.empty_error", "error")
def _(case: Case) -> None:
    case.served["error"] = case.draw.choice(_NO_ERRORS)


@table.named("14.no_error_field", "error")
def _(case: Case) -> None:
    del case.served["error"]
    case.served.pop("incomplete_details", None) if case.meant["status"] == "completed" else None


def _calls(case: Case, **fields: Any) -> None:
    for output in (case.served["output"], case.meant["output"]):
        for item in output:
            if item["type"] == "function_call":
                item.update(fields)


@table.named("14.empty_arguments", "calls", needs=("call",))
def _(case: Case) -> None:
    _calls(case, name="now", arguments="")


@table.named("14.not_offered", "calls", needs=("call",))
def _(case: Case) -> None:
    _calls(case, name="no_such_tool", arguments="{}")


# 15. Calls inside text

_STRAY = (
    '<tool_call>\n{"name": "look_up", "arguments": {"key": "x"}}\n</tool_call>',
    "<|tool_calls_section_begin|>look_up",
    '[TOOL_CALLS][{"name": "look_up"}]',
)


@table.named("15.calls_in_text", "content", needs=("text", "no schema"))
def _(case: Case) -> None:
    stray = case.draw.choice(_STRAY)
    for output in (case.served["output"], case.meant["output"]):
        for item in output:
            for part in item.get("content") or ():
                if part["type"] == "output_text":
                    part["text"] = stray
    case.row.pop("text", None)


@table.named("15.chat_tool_calls", "content", needs=("text",))
def _(case: Case) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    for output in (case.served["output"], case.meant["output"]):
        for item in output:
            if item["type"] == "message":
                item["tool_calls"] = [call]


# 19, and what the protocol has: fields beside, and items that nobody knows


@table.named("19.reasoning_as_text", "content", needs=("text",))
def _(case: Case) -> None:
    text = words(case.draw)
    for output in (case.served["output"], case.meant["output"]):
        output.insert(0, {"type": "reasoning", "id": f"rs_t_{case.id}", "content": text})


@table.named("0.unknown_items", "content", needs=("text",), excludes=("1.",))
def _(case: Case) -> None:
    odd = {"type": "new_kind", "id": "x1", "x": [1, 2.5, None], "status": "odd"}
    for output in (case.served["output"], case.meant["output"]):
        output.append(odd)


@table.named("0.no_object", "object")
def _(case: Case) -> None:
    del case.served["object"]


@table.named("0.odd_fields", "fields")
def _(case: Case) -> None:
    odd: Json = {"choices": [], "created_at": "yesterday", "temperature": "hot", "error_code": 0}
    case.served |= odd | {"output_text": None, "success": False, "message": "ok", "detail": "x"}
