"""Rows of other forms to Responses input: lines of the OpenAI Batch API, and chat messages.

Raises `RowProblem`, which names the part that cannot be converted. Shapes: the `openai` package's
types of both endpoints.
"""

from typing import Any

from batchrun.dialects.responses import PATH
from batchrun.inputs.rows import RowProblem, decode, to_json_text
from batchrun.records import JsonObject

BATCH_COLUMNS = frozenset({"body", "method", "url"})
_TOKEN_LIMITS = ("max_tokens", "max_completion_tokens")
_TOOL_SETTINGS = ("tools", "functions", "tool_choice", "function_call")
CHAT_SETTINGS = frozenset((*_TOOL_SETTINGS, *_TOKEN_LIMITS, "response_format"))
_URL = f"/v1{PATH}"


def is_batch_line(data: JsonObject) -> bool:
    """Whether the row is meant as a Batch line: a column `body` may be any text besides."""
    body = data.get("body")
    if body is None or type(body) is dict:
        return body is not None
    meant = data.get("url") is not None or data.get("method") is not None
    return meant or (type(body) is str and body.lstrip().startswith("{"))


def batch_body(data: JsonObject) -> JsonObject:
    """The request that the line asks for."""
    url, method, body = data.get("url"), data.get("method"), data["body"]
    if url is not None and url != _URL:
        cure = "take the row out, or write the request for that address"
        if isinstance(url, str) and "chat" in url:
            cure = "for a chat request put `messages` at the top level of the row"
        raise RowProblem(f"`url` is {url!r:.80}, but batchrun sends to {_URL} alone; {cure}")
    if method is not None and str(method).upper() != "POST":
        raise RowProblem(f"`method` is {method!r:.40}; it must be POST")
    body = read_structure(body, "body", "request")
    if type(body) is not dict:
        raise RowProblem("`body` must be an object: the request as the API takes it")
    return dict(body)


def read_structure(value: Any, name: str, what: str = "JSON") -> Any:
    """The value, read as JSON where it is text."""
    if type(value) is not str:
        return value
    try:
        return decode(value)
    except RowProblem as problem:
        raise RowProblem(f"`{name}` is text that holds no {what}: {problem.message}") from None


def chat_settings(data: JsonObject) -> JsonObject:
    """What a chat row says besides its messages, as fields of a request."""
    body: JsonObject = {}
    for name in ("tools", "functions"):
        if data.get(name) is not None:
            body["tools"] = [*body.get("tools", ()), *flat_tools(data[name], name)]
    for name in ("function_call", "tool_choice"):
        if data.get(name) is not None:
            body["tool_choice"] = flat_choice(data[name], name)
    if data.get("response_format") is not None:
        body["text"] = {"format": _text_format(data["response_format"])}
    for name in _TOKEN_LIMITS:
        value = data.get(name)
        if value is not None:
            if type(value) is float and value.is_integer():
                value = int(value)  # an integer column with nulls is one of floats to pandas
            if type(value) is not int:
                raise RowProblem(f"`{name}` is {value!r:.60}; it must be an integer")
            body["max_output_tokens"] = value
    return body


def flat_tools(tools: Any, name: str = "tools") -> list[Any]:
    """Tools in the Responses shape; those that have it already stay as they are."""
    tools = read_structure(tools, name)
    if type(tools) is not list:
        raise RowProblem(f"`{name}` must be a list of tools")
    return [_flat_tool(tool, f"{name}[{at}]", name) for at, tool in enumerate(tools)]


def _flat_tool(tool: Any, where: str, name: str) -> Any:
    if type(tool) is not dict:
        raise RowProblem(f"{where} must be an object")
    kind = tool.get("type", "function")
    inner = tool.get(kind) if kind in ("function", "custom") else None
    if name == "functions":
        kind, inner = "function", tool
    if type(inner) is not dict:
        return tool
    flat = {"type": kind, **inner}
    if kind == "function" and name != "tool_choice.tools":
        # Chat completions leave schemas loose by default, Responses make them strict.
        flat.setdefault("strict", False)
        if "parameters" in flat:
            flat["parameters"] = read_structure(flat["parameters"], f"{where}.parameters")
    form = flat.get("format") if kind == "custom" else None
    if type(form) is dict and type(form.get("grammar")) is dict:
        flat["format"] = {"type": "grammar", **form["grammar"]}
    return flat


def flat_choice(choice: Any, name: str = "tool_choice") -> Any:
    """A tool choice in the Responses shape."""
    if type(choice) is str:
        if not choice.lstrip().startswith("{"):
            return choice
        choice = read_structure(choice, name)
    if type(choice) is not dict:
        raise RowProblem(f"`{name}` must be text or an object")
    kind = choice.get("type", "function")
    inner = choice.get(kind) if type(kind) is str else None
    if type(inner) is not dict:
        return {"type": "function", **choice} if "name" in choice else choice
    if kind == "allowed_tools":
        inner = {**inner, "tools": flat_tools(inner.get("tools", []), f"{name}.tools")}
    return {"type": kind, **inner}


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


def input_items(messages: Any, name: str = "messages") -> list[Any]:
    """The messages as input items."""
    messages = read_structure(messages, name)
    if type(messages) is not list:
        raise RowProblem(f"`{name}` must be a list of messages")
    if not messages:
        raise RowProblem(f"`{name}` is empty")
    conversation = _Conversation()
    for at, message in enumerate(messages):
        conversation.add(message, f"{name}[{at}]")
    return conversation.items


class _Conversation:
    """The items so far, and the calls that wait for their results."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self._calls = 0
        self._custom: set[str] = set()
        self._waiting: dict[str, str] = {}  # call_id to name

    def add(self, message: Any, where: str) -> None:
        if type(message) is not dict:
            raise RowProblem(f"{where} must be an object with `role` and `content`")
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
                f"{where} has the role {role!r:.40}; known are system, developer, user, assistant, "
                "tool and function"
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
            raise RowProblem(f"{where} is no tool call: `function` with `name` is missing")
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
        f"{where} has the type {kind!r:.40}, which cannot be sent in a message of role {role}; "
        "known are text, image_url, input_audio, file and, for assistant, refusal"
    )
