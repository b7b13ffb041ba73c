"""Rows of other forms to Responses input: lines of the OpenAI Batch API, and chat messages.

Raises `RowProblem`, which names the part that cannot be converted. Shapes: the `openai` package's
types of both endpoints. `older`: as hash rule 2 had it, for runs that were begun with it.
"""

from collections.abc import Collection, Iterator
from typing import Any

from batchrun.dialects.responses import INPUT_ALTERNATIVES, PATH, REQUEST_FIELDS
from batchrun.formats.json_text import shown
from batchrun.inputs.forms.tools import flat_choice, flat_tools, read_structure
from batchrun.inputs.rows import RowProblem, to_json_text
from batchrun.records import JsonObject

BATCH_COLUMNS = frozenset({"body", "method", "url"})
_TOKEN_LIMITS = ("max_tokens", "max_completion_tokens")
_TOOL_SETTINGS = ("tools", "functions", "tool_choice", "function_call")
OLDER_SETTINGS = frozenset((*_TOOL_SETTINGS, *_TOKEN_LIMITS, "response_format"))
CHAT_SETTINGS = OLDER_SETTINGS | {"reasoning_effort", "verbosity"}
URL, _CHAT_URL = f"/v1{PATH}", "/v1/chat/completions"
# Fields of a chat request that a Responses request has too, under the same name.
_IN_BOTH = frozenset(REQUEST_FIELDS) - {"input", "prompt", "tools", "tool_choice"}
CONVERTED = CHAT_SETTINGS | _IN_BOTH | {"messages"}


def is_batch_line(data: JsonObject) -> bool:
    """Whether the row is meant as a Batch line: a column `body` may be any text besides."""
    body = data.get("body")
    if body is None or type(body) is dict:
        return body is not None
    meant = data.get("url") is not None or data.get("method") is not None
    return meant or (type(body) is str and body.lstrip().startswith("{"))


def is_chat_line(data: JsonObject) -> bool:
    """Whether the body of a Batch line is a chat request."""
    url = data.get("url")
    if url is not None:
        return type(url) is str and url.rstrip("/") == _CHAT_URL
    body = data.get("body")
    if type(body) is str:
        body = read_structure(body, "body", "request")
    if type(body) is not dict or body.get("messages") is None:
        return False
    return all(body.get(name) is None for name in ("input", *INPUT_ALTERNATIVES))


def batch_body(data: JsonObject) -> JsonObject:
    """The request that the line asks for."""
    url, method = data.get("url"), data.get("method")
    if url is not None and url != URL:
        raise RowProblem(
            f"`url` is {shown(url)}, but batchrun sends to {URL} alone, and converts what is for "
            f"{_CHAT_URL}; take the row out, or write the request for one of these"
        )
    if method is not None and str(method).upper() != "POST":
        raise RowProblem(f"`method` is {shown(method)}; it must be POST")
    return dict(read_body(data))


def read_body(data: JsonObject) -> JsonObject:
    """The body of a Batch line, as it stands there."""
    body = read_structure(data["body"], "body", "request")
    if type(body) is not dict:
        raise RowProblem("`body` must be an object: the request as the API takes it")
    return body


def chat_line_body(data: JsonObject, send: Collection[str] = ()) -> JsonObject:
    """The chat request of a Batch line, converted; `send` names fields to send besides."""
    method, chat = data.get("method"), read_body(data)
    if method is not None and str(method).upper() != "POST":
        raise RowProblem(f"`method` is {shown(method)}; it must be POST")
    if chat.get("messages") is None:
        raise RowProblem("`body` has no `messages`, which a chat request needs")
    body: JsonObject = {"input": input_items(chat["messages"], "body.messages")}
    for name, value in chat.items():
        # Null is what a chat request says for a field that it leaves out.
        if value is not None and (name in _IN_BOTH or (name in send and name not in CONVERTED)):
            body[name] = value
    if chat.get("logprobs") is True:
        said = body.get("include")
        body["include"] = [*(said if type(said) is list else ()), "message.output_text.logprobs"]
    return with_settings(body, chat_settings(chat))


def with_settings(body: JsonObject, settings: JsonObject) -> JsonObject:
    """The body with these fields, objects joined key by key."""
    for name, value in settings.items():
        both = type(value) is dict and type(body.get(name)) is dict
        body[name] = {**body[name], **value} if both else value
    return body


def chat_settings(data: JsonObject, *, older: bool = False) -> JsonObject:
    """What a chat row says besides its messages, as fields of a request."""
    body: JsonObject = {}
    for name in ("tools", "functions"):
        if data.get(name) is not None:
            tools = flat_tools(data[name], name, older=older)
            body["tools"] = [*body.get("tools", ()), *tools]
    for name in ("function_call", "tool_choice"):
        if data.get(name) is not None:
            body["tool_choice"] = flat_choice(data[name], name)
    if data.get("response_format") is not None:
        body["text"] = {"format": _text_format(data["response_format"])}
    if not older and data.get("verbosity") is not None:
        body["text"] = {**body.get("text", {}), "verbosity": data["verbosity"]}
    if not older and data.get("reasoning_effort") is not None:
        body["reasoning"] = {"effort": data["reasoning_effort"]}
    for name in _TOKEN_LIMITS:
        value = data.get(name)
        if value is not None:
            if type(value) is float and value.is_integer():
                value = int(value)  # an integer column with nulls is one of floats to pandas
            if type(value) is not int:
                raise RowProblem(f"`{name}` is {shown(value)}; it must be an integer")
            body["max_output_tokens"] = value
    return body


def _text_format(value: Any) -> JsonObject:
    if type(value) is str and not value.lstrip().startswith(("{", '"')):
        return {"type": value}
    value = read_structure(value, "response_format")
    if type(value) is not dict or type(value.get("type")) is not str:
        raise RowProblem('`response_format` must be an object such as {"type": "json_schema", …}')
    inner = value.get("json_schema")
    if value["type"] != "json_schema" or inner is None:
        return value
    inner = read_structure(inner, "response_format.json_schema")
    if type(inner) is not dict:
        raise RowProblem("`response_format.json_schema` must be an object")
    return {"type": "json_schema", **inner}


def input_items(messages: Any, name: str = "messages", *, takes_items: bool = False) -> list[Any]:
    """The messages as input items; `takes_items`: some may be items already."""
    messages = read_structure(messages, name)
    if type(messages) is not list:
        raise RowProblem(f"`{name}` is {shown(messages)}; it must be a list of messages")
    if not messages:
        raise RowProblem(f"`{name}` is empty")
    conversation = _Conversation(takes_items=takes_items)
    for at, message in enumerate(messages):
        conversation.add(message, f"{name}[{at}]")
    return conversation.items


# What of a message is sent, by its role; ...
_SENT = {
    **dict.fromkeys(("system", "developer", "user"), frozenset({"role", "content"})),
    "assistant": frozenset({"role", "content", "refusal", "tool_calls", "function_call"}),
    **dict.fromkeys(("tool", "function"), frozenset({"role", "content", "tool_call_id", "name"})),
}
_SENT_OF_SHAREGPT = frozenset({"from", "value"})
# ... and what of its parts and calls, beside the field that is named like their type.
_SENT_OF_PART = {
    "image_url": frozenset({"url", "detail"}),
    "file": frozenset({"file_id", "filename", "file_data"}),
}
_SENT_OF_CALL = frozenset({"id", "type", "function", "custom", "index"})  # `index`: of a stream


def unsent_fields(messages: Any) -> set[str]:
    """Fields of chat messages, of their parts and calls, that say something and are not sent."""
    found: set[str] = set()
    for message in messages if type(messages) is list else ():
        if type(message) is not dict:
            continue
        role = message.get("role")
        if role is None and "from" in message:
            sent, content = _SENT_OF_SHAREGPT, message.get("value")
        elif type(role) is str and role in _SENT:
            sent, content = _SENT[role], message.get("content")
        else:
            continue
        if not sent >= message.keys():
            found.update(_saying(message, sent, ""))
        for part in content if type(content) is list else (content,):
            kind = _kind(part)
            if type(part) is not dict:
                continue
            if kind in _CHAT_PARTS or kind in ("input_audio", "refusal"):
                found.update(_saying(part, {"type", kind}, "content."))
                known = _SENT_OF_PART.get(kind)
                if known is not None and type(part.get(kind)) is dict:
                    found.update(_saying(part[kind], known, f"content.{kind}."))
        calls = message.get("tool_calls")
        for call in calls if type(calls) is list else ():
            if type(call) is dict:
                found.update(_saying(call, _SENT_OF_CALL, "tool_calls."))
    return found


def _saying(data: JsonObject, sent: Collection[str], where: str) -> Iterator[str]:
    for name, value in data.items():
        if name in sent or value is None or value in ("", [], {}):
            continue
        if not (name == "type" and value == "message"):
            yield where + name


def has_chat_messages(items: list[Any]) -> bool:
    """Whether a list that a template gives holds messages that are no input items as they are."""
    return any(type(one) is dict and _is_chat_message(one) for one in items)


def _is_chat_message(item: JsonObject) -> bool:
    if item.get("type") is not None:
        return False
    if "from" in item or item.get("tool_calls") or item.get("function_call"):
        return True
    if item.get("role") in ("tool", "function"):
        return True
    content = item.get("content")
    parts = content if type(content) is list else ()
    return any(type(part) is str or _kind(part) in _CHAT_PARTS for part in parts)


def _kind(part: Any) -> Any:
    return part.get("type") if type(part) is dict else None


_CHAT_PARTS = ("text", "image_url", "file")
_SPEAKERS = {
    "human": "user",
    "user": "user",
    "system": "system",
    "developer": "developer",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "function_call": "call",
    "tool_call": "call",
    "observation": "tool",
    "tool": "tool",
    "tool_response": "tool",
    "function": "tool",
    "function_response": "tool",
}


def _from_sharegpt(message: JsonObject, where: str) -> JsonObject:
    """A message with `from` and `value` as a chat message."""
    speaker, value = message["from"], message.get("value")
    role = _SPEAKERS.get(speaker.lower()) if type(speaker) is str else None
    if role is None:
        raise RowProblem(f"{where} is from {shown(speaker)}; known are {', '.join(_SPEAKERS)}")
    if role != "call":
        return {"role": role, "content": value}
    call = read_structure(value, f"{where}.value")
    if type(call) is not dict or type(call.get("name")) is not str:
        raise RowProblem(f"{where} is {shown(value)}; a call is an object with `name`")
    return {"role": "assistant", "tool_calls": [{"type": "function", "function": call}]}


class _Conversation:
    """The items so far, and the calls that wait for their results."""

    def __init__(self, *, takes_items: bool) -> None:
        """`takes_items`: an item of the Responses API among the messages stays as it is."""
        self._takes_items = takes_items
        self.items: list[Any] = []
        self._calls = 0
        self._custom: set[str] = set()
        self._waiting: dict[str, str] = {}  # call_id to name

    def add(self, message: Any, where: str) -> None:
        if type(message) is not dict:
            raise RowProblem(f"{where} must be an object with `role` and `content`")
        if message.get("role") is None and "from" in message:
            message = _from_sharegpt(message, where)
        elif self._takes_items and message.get("type") is not None:
            self.items.append(message)
            return
        role = message.get("role")
        if role in ("system", "developer", "user"):
            content = message.get("content")
            if content is None:
                raise RowProblem(f"{where} has no `content`")
            self.items.append({"role": role, "content": _content(content, role, where)})
        elif role == "assistant":
            self._add_assistant(message, where)
        elif role in ("tool", "function"):
            self._add_result(message, where)
        else:
            raise RowProblem(
                f"{where} has the role {shown(role)}; known are system, developer, user, "
                "assistant, tool and function"
            )

    def _add_assistant(self, message: JsonObject, where: str) -> None:
        calls = read_structure(message.get("tool_calls"), f"{where}.tool_calls") or []
        if type(calls) is not list:
            raise RowProblem(f"{where}.tool_calls must be a list")
        named = [(call, f"{where}.tool_calls[{at}]") for at, call in enumerate(calls)]
        legacy = read_structure(message.get("function_call"), f"{where}.function_call")
        if legacy:
            named.append(({"function": legacy}, f"{where}.function_call"))
        content, refusal = message.get("content"), message.get("refusal")
        parts = _content(content, "assistant", where) if content else content
        if refusal:
            said = [{"type": "output_text", "text": parts}] if isinstance(parts, str) else parts
            parts = [*(said or [] if content else []), {"type": "refusal", "refusal": refusal}]
        if parts or (parts is not None and not named):
            self.items.append({"role": "assistant", "content": parts})
        elif not named:
            raise RowProblem(f"{where} has neither `content` nor `tool_calls`")
        for call, part in named:
            self._add_call(call, part)

    def _add_call(self, call: Any, where: str) -> None:
        kind = call.get("type") or "function" if type(call) is dict else None
        inner = call.get(kind) if kind in ("function", "custom") else None
        if type(inner) is not dict or type(inner.get("name")) is not str:
            raise RowProblem(f"{where} is not a tool call: `function` with `name` is missing")
        self._calls += 1
        call_id = str(call.get("id") or f"call_{self._calls}")
        self._waiting[call_id] = inner["name"]
        item = {"call_id": call_id, "name": inner["name"]}
        if kind == "custom":
            self._custom.add(call_id)
            self.items.append({"type": "custom_tool_call", **item, "input": inner.get("input", "")})
            return
        arguments = inner.get("arguments")
        if type(arguments) is not str:
            arguments = "{}" if arguments is None else to_json_text(arguments)
        self.items.append({"type": "function_call", **item, "arguments": arguments})

    def _add_result(self, message: JsonObject, where: str) -> None:
        call_id = message.get("tool_call_id")
        if call_id is None:  # older shapes give the function's name, or nothing
            name = message.get("name")
            named = (key for key, value in self._waiting.items() if name in (None, value))
            call_id = next(named, None)
            if call_id is None:
                raise RowProblem(f"{where} has no `tool_call_id`, and no call waits for a result")
        call_id = str(call_id)
        self._waiting.pop(call_id, None)
        output = message.get("content")
        if type(output) is list:
            output = _content(output, "tool", where)
        elif type(output) is not str:
            output = "" if output is None else to_json_text(output)
        kind = "custom_tool_call_output" if call_id in self._custom else "function_call_output"
        self.items.append({"type": kind, "call_id": call_id, "output": output})


def _content(content: Any, role: str, where: str) -> Any:
    """A message's content: text as it is, a list of parts converted."""
    if type(content) is str:
        return content
    if type(content) is dict:
        content = [content]
    if type(content) is not list:
        raise RowProblem(f"{where}.content must be text or a list of parts")
    return [_part(part, role, f"{where}.content[{at}]") for at, part in enumerate(content)]


def _part(part: Any, role: str, where: str) -> JsonObject:
    text_type = "output_text" if role == "assistant" else "input_text"
    if type(part) is str:
        return {"type": text_type, "text": part}
    if type(part) is not dict:
        raise RowProblem(f"{where} must be an object with `type`")
    kind = part.get("type")
    inner = part.get(kind) if type(kind) is str else None
    match kind, inner:
        case (("input_text" | "input_image" | "input_file" | "output_text"), _):
            return part
        case "text", str():
            return {"type": text_type, "text": inner}
        case "refusal", str() if role == "assistant":
            return {"type": "refusal", "refusal": inner}
        case "image_url", _ if inner and role != "assistant":
            image = inner if type(inner) is dict else {"url": inner}
            if type(image.get("url")) is not str:
                raise RowProblem(f"{where}.image_url has no `url`")
            detail = {"detail": image["detail"]} if image.get("detail") else {}
            return {"type": "input_image", "image_url": image["url"], **detail}
        case "input_audio", dict() if role != "assistant":
            return {"type": "input_audio", "input_audio": inner}
        case "file", dict() if role != "assistant":
            known = ("file_id", "filename", "file_data")
            return {"type": "input_file", **{k: inner[k] for k in known if k in inner}}
    raise RowProblem(
        f"{where} has the type {shown(kind)}, which cannot be sent in a message of role {role}; "
        "known are text, image_url, input_audio, file and, for assistant, refusal"
    )
