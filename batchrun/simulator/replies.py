"""The answer to a request: reasoning, calls, searches, text or a refusal, and its usage.

No I/O. What an answer says is drawn from the seed, the body and, unless the temperature is 0, how
often that body was answered before; ids and times differ from one attempt to the next.
"""

import re
import sys
from math import log
from random import Random
from typing import Any

import msgspec
from msgspec import Struct

from batchrun.simulator import random_values
from batchrun.simulator.knowledge.known_answers import Draw, KnownAnswers
from batchrun.simulator.requests import CheckedRequest, RequestBody, logprobs_asked
from batchrun.simulator.schema_values import make_invalid, make_value
from batchrun.simulator.settings import SimulatorSettings
from batchrun.simulator.streaming import split_text

Item = dict[str, Any]
_encode = msgspec.json.Encoder().encode
_CALL_TOKENS = 4  # of a call, besides its name and arguments
_LONGEST = 32_000  # tokens of an answer, however the draw falls
_REASONING_STEP = 64  # reasoning tokens come in multiples of this
_EFFORTS = {"minimal": 0.0, "low": 96.0, "high": 1_000.0, "xhigh": 2_500.0, "max": 5_000.0}
_EFFORT = 320.0  # median of reasoning tokens where no effort, or medium, is asked for
_CACHED_FROM = 1_024  # the shortest input that is cached, and the step beyond it:
_CACHED_STEP = 128
_OBJECT_KEYS = ("id", "title", "count", "note", "done")
_TOOL_DEFAULTS = {"description": None, "strict": True, "parameters": None}
_ECHOED_IF_GIVEN = ("access_programs", "conversation", "image", "prompt", "prompt_cache_options")
_WORD = re.compile("[a-z0-9]{4,}")
_ITEM_TYPES = {"call": ("fc", "function_call"), "search": ("ws", "web_search_call")}
_SERVICE_TIERS = {"auto": "default", "fast": "priority"}
_SOURCES = "web_search_call.action.sources"  # sent only where `include` names them
_SEARCH_SHARE = 0.8  # of the requests that leave it to the model
_OPEN_SHARE = 0.4
_CITE_EVERY = 2  # sentences


class _ToolChoice(Struct, frozen=True):
    """What `tool_choice` allows and requires."""

    functions: tuple[dict[str, Any], ...]  # that may be called; empty: text
    must: bool  # one at least
    single: bool  # one at most


class SimulatedAnswer(Struct, frozen=True):
    """A response, the same as bytes, and what it is billed for."""

    response: Item
    body: bytes
    tokens: tuple[int, int, int]  # of input, output and reasoning


def make_answer(
    request: CheckedRequest,
    settings: SimulatorSettings,
    attempt: int,
    now_s: float,
    latency_s: float = 0.0,
    *,
    before: int = 0,
    known: KnownAnswers | None = None,
) -> SimulatedAnswer:
    """The response to a request; `attempt` counts those at the same body and changes only ids.

    `before`: how many answers that body had; `known`: the targets that the model knows.
    """
    number = before if request.fields.get("temperature", 1) else 0
    again = f" {number}" if number else ""
    rng = random_values.random_source(settings.seed, request.key, f"answer{again}")
    reasoning_tokens = _reasoning_tokens(request, settings, rng) if request.reasons else 0
    parts = _parts(request, settings, rng, number, known)
    ids = random_values.random_source(settings.seed, request.key, f"ids {attempt}")
    limit: int = request.fields.get("max_output_tokens", sys.maxsize)
    items, is_whole = [], True
    if request.reasons:
        reasoning_tokens = min(reasoning_tokens, limit)
        items.append(_reasoning_item(request, ids, rng))
    left = limit - reasoning_tokens
    for part in parts:
        item, tokens, is_whole = _make_item(part, left, ids)
        if item is not None:
            items.append(item)
        left -= tokens
        if not is_whole:
            left = 0
            break
    output_tokens = limit - left
    cached_tokens = _cached_tokens(request.input_tokens, rng)
    usage = _usage(request.input_tokens, cached_tokens, output_tokens, reasoning_tokens)
    top = logprobs_asked(request.fields)
    if top is not None:
        source = random_values.random_source(settings.seed, request.key, f"logprobs{again}")
        _add_logprobs(items, top, source)
    times = (int(now_s), int(now_s + latency_s))
    response = _response(request, items, usage, is_whole, _new_id("resp", ids), times)
    billed = (request.input_tokens, output_tokens, reasoning_tokens)
    return SimulatedAnswer(response, _encode(response), billed)


def make_compaction(body: RequestBody, kept: list[Item], attempt: int, now_s: float) -> Item:
    """The answer to `POST /v1/responses/compact`: the messages kept, and all else in one item."""
    ids = random_values.random_source(0, body.key, f"compaction {attempt}")
    item = {"id": _new_id("cmp", ids), "type": "compaction"}
    secret = f"{ids.getrandbits(1024):0256x}"
    return {
        "id": _new_id("resp", ids),
        "object": "response.compaction",
        "created_at": int(now_s),
        "output": [*kept, {**item, "encrypted_content": secret}],
        "usage": _usage(body.input_tokens, 0, len(secret) // random_values.BYTES_A_TOKEN, 0),
    }


def _usage(input_: int, cached: int, output: int, reasoning: int) -> Item:
    return {
        "input_tokens": input_,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": input_ + output,
    }


def _response(
    request: CheckedRequest,
    items: list[Item],
    usage: Item,
    is_whole: bool,
    id_: str,
    times: tuple[int, int],
) -> Item:
    """The response object: the request's fields echoed as the API does, defaults filled in.

    `is_whole` is false where the answer was cut; `times` are those of creation and completion.
    """
    given = request.fields
    tier = given.get("service_tier", "default")
    response = {
        "id": id_,
        "object": "response",
        "created_at": times[0],
        "status": "completed" if is_whole else "incomplete",
        "background": given.get("background", False),
        "completed_at": times[1] if is_whole else None,
        "error": None,
        "frequency_penalty": float(given.get("frequency_penalty", 0)),
        "incomplete_details": None if is_whole else {"reason": "max_output_tokens"},
        "instructions": given.get("instructions"),
        "max_output_tokens": given.get("max_output_tokens"),
        "max_tool_calls": given.get("max_tool_calls"),
        "model": request.model,
        "output": items,
        "parallel_tool_calls": given.get("parallel_tool_calls", True),
        "presence_penalty": float(given.get("presence_penalty", 0)),
        "previous_response_id": given.get("previous_response_id"),
        "prompt_cache_key": given.get("prompt_cache_key"),
        "prompt_cache_retention": given.get("prompt_cache_retention"),
        "reasoning": {"effort": None, "summary": None, **given.get("reasoning", {})},
        "safety_identifier": given.get("safety_identifier"),
        "service_tier": _SERVICE_TIERS.get(tier, tier),
        "store": given.get("store", True),
        "temperature": float(given.get("temperature", 1)),
        "text": {"verbosity": "medium", **given.get("text", {}), "format": _format(given)},
        "tool_choice": given.get("tool_choice", "auto"),
        "tools": [
            {**_TOOL_DEFAULTS, **tool} if tool["type"] == "function" else tool
            for tool in given.get("tools", [])
        ],
        "top_logprobs": given.get("top_logprobs", 0),
        "top_p": float(given.get("top_p", 1)),
        "truncation": given.get("truncation", "disabled"),
        "usage": usage,
        "user": given.get("user"),
        "metadata": given.get("metadata", {}),
    }
    for name in _ECHOED_IF_GIVEN:
        if name in given:
            response[name] = _echo(name, given[name])
    if _offers_search(given):
        response["tool_usage"] = _tool_usage(items)
    return response


def _echo(name: str, value: Any) -> Any:
    """What the response has for a field that it has only where it was given."""
    match name:
        case "conversation" if isinstance(value, str):
            return {"id": value}
        case "image":
            is_off = value.get("context_compression") == "disabled"
            return {"context_compression": "disabled" if is_off else "enabled"}
        case "prompt_cache_options":
            return {"mode": "implicit", "ttl": "30m", **value}
    return value


def _format(fields: Item) -> Item:
    """What `text.format` asks for, defaults filled in."""
    format_: Item = fields.get("text", {}).get("format") or {"type": "text"}
    if format_["type"] == "json_schema":
        return {"description": None, "strict": False, **format_}
    return format_


def _parts(
    request: CheckedRequest,
    settings: SimulatorSettings,
    rng: Random,
    number: int,
    known: KnownAnswers | None,
) -> list[Item]:
    """What the model says after its reasoning: parts of type refusal, output_text, call, search."""
    fields = request.fields
    refuses, calls_none, speaks_first = rng.random(), rng.random(), rng.random()
    if refuses < settings.refusals:
        return [{"type": "refusal", "text": rng.choice(random_values.REFUSALS)}]
    if known is not None:
        draw = Draw(settings.seed, request.key, number, request.model)
        length = random_values.lognormal(
            rng.random() or 0.5, settings.output_tokens, settings.output_spread
        )
        parts = known.parts(fields, draw, min(length, _LONGEST))
        if parts is not None:
            return parts
    choice, given = _choose_functions(fields), fields.get("input")
    if choice.functions and (
        choice.must
        or (
            not _ends_with_result(given)
            and (calls_none < 0.9 or _is_mentioned(choice.functions, given))
        )
    ):
        said = [{"type": "output_text", "text": "Let me look that up."}]
        first = said if speaks_first < 0.1 and not choice.must else []
        return first + _calls(choice, settings, rng)
    actions, pages = _search(fields, rng) if _searches(fields, rng) else ([], [])
    text: Item = {"type": "output_text", "text": _text(request, settings, rng)}
    if actions and _format(fields)["type"] == "text":  # structured output cites nothing
        text["text"], text["annotations"] = cite_pages(text["text"], pages, rng)
    return [*({"type": "search", "action": action} for action in actions), text]


def _choose_functions(fields: dict[str, Any]) -> _ToolChoice:
    """Which functions may be called, whether one must be, and whether several may be."""
    functions = [tool for tool in fields.get("tools", []) if tool["type"] == "function"]
    choice = fields.get("tool_choice", "auto")
    single = fields.get("parallel_tool_calls") is False
    must = choice == "required"
    if choice == "none":
        functions = []
    elif isinstance(choice, dict):
        names = []
        if choice["type"] == "function":
            names = [choice["name"]]
            must = single = True
        elif choice["type"] == "allowed_tools":
            names = [tool.get("name") for tool in choice["tools"]]
            must = choice["mode"] == "required"
        functions = [tool for tool in functions if tool["name"] in names]
    return _ToolChoice(tuple(functions), must, single)


def _is_mentioned(functions: tuple[dict[str, Any], ...], given: Any) -> bool:
    """The last message has a word of a function's name, as `weather` of get_weather."""
    last = given[-1] if isinstance(given, list) and given else given
    said = last.get("content") if isinstance(last, dict) else last
    if isinstance(said, list):
        said = " ".join(str(part.get("text", "")) for part in said if isinstance(part, dict))
    words = set(_WORD.findall(str(said).lower()))
    return any(words.intersection(_WORD.findall(tool["name"].lower())) for tool in functions)


def _ends_with_result(given: Any) -> bool:
    """The last item is what a function returned: the model now answers in words."""
    last = given[-1] if isinstance(given, list) and given else {}
    return bool(last.get("type") == "function_call_output")


def _calls(choice: _ToolChoice, settings: SimulatorSettings, rng: Random) -> list[Item]:
    count = 1 if choice.single else rng.choices((1, 2, 3, 4), (35, 30, 20, 15))[0]
    calls = []
    for _ in range(count):
        function = rng.choice(choice.functions)
        schema = function.get("parameters") or {"type": "object", "properties": {}}
        arguments = _structured(schema, settings.bad_arguments, rng)
        calls.append({"type": "call", "name": function["name"], "text": arguments})
    return calls


def _text(request: CheckedRequest, settings: SimulatorSettings, rng: Random) -> str:
    length = random_values.lognormal(
        rng.random() or 0.5, settings.output_tokens, settings.output_spread
    )
    length = min(length, _LONGEST)
    format_ = _format(request.fields)
    if format_["type"] == "json_schema":
        return _structured(format_["schema"], settings.bad_output, rng)
    if format_["type"] == "json_object":
        made = {name: random_values.words(rng) for name in _OBJECT_KEYS[: rng.randint(1, 5)]}
        made["text"] = random_values.prose("A simulated answer.", length, rng)
        text = _encode(made).decode()
        return _malformed(text, rng) if rng.random() < settings.bad_output else text
    return random_values.prose(f"Simulated answer {request.key.hex()[:8]}.", length, rng)


def _structured(schema: dict[str, Any], bad: float, rng: Random) -> str:
    """JSON that fits; at the rate `bad`, half of it is malformed and half does not fit."""
    value = make_value(schema, rng)
    share = rng.random()
    if bad / 2 <= share < bad:
        wrong = make_invalid(schema, value, rng)
        if wrong is not None:
            return _encode(wrong).decode()
        share = 0.0
    text = _encode(value).decode()
    return _malformed(text, rng) if share < bad else text


def _malformed(text: str, rng: Random) -> str:
    return rng.choice((text[:-1], text[: len(text) // 2], f"{text}}}", f"```json\n{text}\n```"))


def _reasoning_tokens(request: CheckedRequest, settings: SimulatorSettings, rng: Random) -> int:
    effort = request.fields.get("reasoning", {}).get("effort")
    median = _EFFORTS.get(effort, _EFFORT)
    share = rng.random() or 0.5
    if not median:
        return 0
    tokens = min(random_values.lognormal(share, median, settings.output_spread), _LONGEST)
    return max(round(tokens / _REASONING_STEP), 1) * _REASONING_STEP


def _cached_tokens(input_tokens: int, rng: Random) -> int:
    is_cached = rng.random() < 0.5
    if input_tokens < _CACHED_FROM or not is_cached:
        return 0
    steps = (input_tokens - _CACHED_FROM) // _CACHED_STEP
    return _CACHED_FROM + _CACHED_STEP * rng.randint(0, steps)


def _reasoning_item(request: CheckedRequest, ids: Random, rng: Random) -> Item:
    summary = []
    if request.fields.get("reasoning", {}).get("summary"):
        summary = [{"type": "summary_text", "text": rng.choice(random_values.REASONING)}]
    item = {"id": _new_id("rs", ids), "type": "reasoning", "summary": summary}
    if "reasoning.encrypted_content" in request.fields.get("include", ()):
        item["encrypted_content"] = f"{ids.getrandbits(1024):0256x}"
    return item


def _make_item(part: Item, left: int, ids: Random) -> tuple[Item | None, int, bool]:
    """A part as an output item, cut after the tokens left; its tokens; whether it is whole."""
    kind, text, name = part["type"], part.get("text", ""), part.get("name")
    extra = _CALL_TOKENS + random_values.token_count(name) if name else 0
    tokens = extra + random_values.token_count(text)
    is_whole = tokens <= left
    if not is_whole:
        if left <= extra:
            return None, 0, False
        text = random_values.first_tokens(text, left - extra)
    prefix, type_ = _ITEM_TYPES.get(kind, ("msg", "message"))
    status = "completed" if is_whole else "incomplete"
    item: Item = {"id": _new_id(prefix, ids), "type": type_, "status": status}
    if kind == "search":
        item["action"] = part["action"]
    elif kind == "call":
        call_id = f"call_{ids.getrandbits(96):024x}"
        item |= {"arguments": text, "call_id": call_id, "name": name}
    elif kind == "refusal":
        item |= {"content": [{"type": kind, "refusal": text}], "role": "assistant"}
    else:
        marks = [mark for mark in part.get("annotations", ()) if mark["end_index"] <= len(text)]
        content = {"type": kind, "annotations": marks, "logprobs": [], "text": text}
        item |= {"content": [content], "role": "assistant"}
    return item, tokens, is_whole


def _add_logprobs(items: list[Item], top: int, rng: Random) -> None:
    """Adds logprobs to each text, with `top` alternatives for each token, the likeliest first."""
    for item in items:
        for part in item.get("content", ()) if item["type"] == "message" else ():
            if part["type"] == "output_text":
                part["logprobs"] = [_logprob(token, top, rng) for token in split_text(part["text"])]


def _logprob(token: str, top: int, rng: Random) -> Item:
    """A token, and the likeliest ones at its place, among which it need not be."""
    share = 1 - 0.9 * rng.random() ** 3  # its probability; of the rest, each other takes half
    likely = [(share, token)]
    for other in random_values.other_tokens(token, top, rng):
        likely.append(((1 - share) / 2 ** len(likely), other))
    likely.sort(key=lambda one: -one[0])
    given = [_token(text, share) for share, text in likely[:top]]
    return {**_token(token, share), "top_logprobs": given}


def _token(text: str, share: float) -> Item:
    return {"token": text, "logprob": log(share), "bytes": list(text.encode())}


def _new_id(kind: str, ids: Random) -> str:
    return f"{kind}_{ids.getrandbits(192):048x}"


def _is_search(type_: Any) -> bool:
    """The tool is web search, of any date."""
    return isinstance(type_, str) and type_.startswith("web_search")


def _offers_search(fields: Item) -> bool:
    return any(_is_search(tool.get("type")) for tool in fields.get("tools", []))


def _searches(fields: Item, rng: Random) -> bool:
    """The model searches the web."""
    if not _offers_search(fields):
        return False
    share = rng.random()  # for where the choice is its own
    choice = fields.get("tool_choice", "auto")
    if isinstance(choice, dict):
        if choice.get("type") == "allowed_tools":
            return any(_is_search(tool.get("type")) for tool in choice["tools"])
        return _is_search(choice.get("type"))
    return choice == "required" or (choice == "auto" and share < _SEARCH_SHARE)


def _search(fields: Item, rng: Random) -> tuple[list[Item], list[Item]]:
    """The actions taken, and the pages found: a search first, then perhaps more."""
    pages = [_page(rng) for _ in range(rng.randint(2, 5))]
    queries = [random_values.words(rng) for _ in range(rng.randint(1, 3))]
    search: Item = {"type": "search", "query": queries[0], "queries": queries}
    if _SOURCES in fields.get("include", ()):
        search["sources"] = [{"type": "url", "url": page["url"]} for page in pages]
    actions, url = [search], pages[0]["url"]
    if rng.random() < _OPEN_SHARE:
        actions.append({"type": "open_page", "url": url})
        if rng.random() < _OPEN_SHARE:
            pattern = random_values.word(rng)
            actions.append({"type": "find_in_page", "url": url, "pattern": pattern})
    return actions, pages


def _page(rng: Random) -> Item:
    title = random_values.words(rng)
    where = random_values.word(rng)
    ending = f" | {where} 🙂" if rng.random() < 0.2 else ""
    return {
        "url": f"https://{where}.example.com/{title.replace(' ', '-')}?utm_source=openai",
        "title": title.capitalize() + ending,
    }


def cite_pages(text: str, pages: list[Item], rng: Random) -> tuple[str, list[Item]]:
    """The text with links to pages in it, and the annotations that say where each is.

    Indexes count characters; `text[start_index:end_index]` is the link.
    """
    sentences = text.split(". ")
    made, annotations = "", []
    for index, sentence in enumerate(sentences):
        made += sentence + (". " if index < len(sentences) - 1 else "")
        if index % _CITE_EVERY:
            continue
        page = rng.choice(pages)
        link = f"([{page['title']}]({page['url']}))"
        start = len(made)
        span = {"start_index": start, "end_index": start + len(link)}
        annotations.append({"type": "url_citation", **span, **page})
        made += link + " "
    return made.rstrip(" "), annotations


def _tool_usage(items: list[Item]) -> Item:
    """Searches are billed, opening and reading a page is not."""
    count = sum(
        item["type"] == "web_search_call" and item["action"]["type"] == "search" for item in items
    )
    none = {"image_tokens": 0, "text_tokens": 0}
    return {
        "image_gen": {
            "input_tokens": 0,
            "input_tokens_details": none,
            "output_tokens": 0,
            "output_tokens_details": none,
            "total_tokens": 0,
        },
        "web_search": {"num_requests": count},
    }
