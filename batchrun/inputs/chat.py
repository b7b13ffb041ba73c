"""Rows of other forms to Responses input: chat messages, and lines of the OpenAI Batch API.

Raises `RowProblem` with the place of what cannot be converted. Shapes: the `openai` package's
types of both endpoints.
"""

from typing import Any

from batchrun.inputs.rows import RowProblem, decode, sent_text
from batchrun.records import JsonObject

URL = "/v1/responses"
COLUMNS = frozenset({"body", "method", "url"})


def is_batch_line(data: JsonObject) -> bool:
    """Whether the row is meant as a Batch line: a column `body` may be any text besides."""
    body = data.get("body")
    if type(body) is dict:
        return True
    if body is None:
        return False
    meant = data.get("url") is not None or data.get("method") is not None
    return meant or (type(body) is str and body.lstrip().startswith("{"))


def batch_body(data: JsonObject) -> JsonObject:
    """The request that the line asks for. Raises `RowProblem`."""
    url = data.get("url")
    if url is not None and url != URL:
        raise RowProblem(
            f"`url` is {url!r:.80}, but batchrun sends to {URL} alone; "
            + (
                "for a chat request put `messages` at the top level of the row"
                if isinstance(url, str) and "chat" in url
                else "take the row out, or write the request for that address"
            )
        )
    method = data.get("method")
    if method is not None and str(method).upper() != "POST":
        raise RowProblem(f"`method` is {method!r:.40}; it must be POST")
    body = data["body"]
    if type(body) is str:
        try:
            body = decode(body)
        except RowProblem as problem:
            raise RowProblem(f"`body` is text that holds no request: {problem.message}") from None
    if type(body) is not dict:
        raise RowProblem("`body` must be an object: the request as the API takes it")
    return dict(body)


SETTINGS = frozenset(
    {
        "tools",
        "functions",
        "tool_choice",
        "function_call",
        "response_format",
        "max_tokens",
        "max_completion_tokens",
    }
)
_PASSED = ("input_text", "input_image", "input_file", "output_text")


def read_structure(value: Any, name: str) -> Any:
    """The value, read as JSON where it is text."""
    if type(value) is not str:
        return value
    try:
        return decode(value)
    except RowProblem as problem:
        raise RowProblem(f"`{name}` is text that holds no JSON: {problem.message}") from None


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
        body["text"] = {"format": _format(data["response_format"])}
    for name in ("max_tokens", "max_completion_tokens"):
        value = data.get(name)
        if value is not None:
            if type(value) is float and value.is_integer():
                value = int(value)  # an integer column with nulls is one of floats to pandas
            if type(value) is not int:
                raise RowProblem(f"`{name}` is {value!r:.60}; it must be an integer")
            body["max_output_tokens"] = value
    return body


def flat_tools(tools: Any, name: str = "tools") -> list[Any]:
    """Tools in the Responses shape; those that have it already are left as they are."""
    tools = read_structure(tools, name)
    if type(tools) is not list:
        raise RowProblem(f"`{name}` must be a list of tools")
    return [_flat_tool(tool, f"{name}[{at}]", name) for at, tool in enumerate(tools)]


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


def _flat_tool(tool: Any, place: str, name: str) -> Any:
    if type(tool) is not dict:
        raise RowProblem(f"{place} must be an object")
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
            flat["parameters"] = read_structure(flat["parameters"], f"{place}.parameters")
    form = flat.get("format") if kind == "custom" else None
    if type(form) is dict and type(form.get("grammar")) is dict:
        flat["format"] = {"type": "grammar", **form["grammar"]}
    return flat


def _format(value: Any) -> JsonObject:
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
    talk = _Talk()
    for at, message in enumerate(messages):
        talk.add(message, f"{name}[{at}]")
    return talk.items


class _Talk:
    """Items so far, and the calls that wait for their results."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self._calls = 0
        self._custom: set[str] = set()
        self._waiting: dict[str, str] = {}  # call_id to name

    def add(self, message: Any, place: str) -> None:
        if type(message) is not dict:
            raise RowProblem(f"{place} must be an object with `role` and `content`")
        role = message.get("role")
        if role in ("system", "developer", "user"):
            content = message.get("content")
            if content is None:
                raise RowProblem(f"{place} has no `content`")
            self.items.append({"role": role, "content": content_parts(content, role, place)})
        elif role == "assistant":
            self._assistant(message, place)
        elif role in ("tool", "function"):
            self._result(message, place)
        else:
            raise RowProblem(
                f"{place} has the role {role!r:.40}; known are system, developer, user, assistant, "
                "tool and function"
            )

    def _assistant(self, message: JsonObject, place: str) -> None:
        calls = read_structure(message.get("tool_calls"), f"{place}.tool_calls") or []
        legacy = read_structure(message.get("function_call"), f"{place}.function_call")
        content, refusal = message.get("content"), message.get("refusal")
        parts = content_parts(content, "assistant", place) if content else content
        if refusal:
            said = [{"type": "output_text", "text": parts}] if isinstance(parts, str) else parts
            parts = [*((said or []) if content else []), {"type": "refusal", "refusal": refusal}]
        if parts or (parts is not None and not calls and not legacy):
            self.items.append({"role": "assistant", "content": parts})
        elif not calls and not legacy:
            raise RowProblem(f"{place} has neither `content` nor `tool_calls`")
        if type(calls) is not list:
            raise RowProblem(f"{place}.tool_calls must be a list")
        for at, call in enumerate(calls):
            self._call(call, f"{place}.tool_calls[{at}]")
        if legacy:
            self._call({"function": legacy}, f"{place}.function_call")

    def _call(self, call: Any, place: str) -> None:
        kind = call.get("type") or "function" if type(call) is dict else None
        inner = call.get(kind) if kind in ("function", "custom") else None
        if type(inner) is not dict or type(inner.get("name")) is not str:
            raise RowProblem(f"{place} is no tool call: `function` with `name` is missing")
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
            arguments = "{}" if arguments is None else sent_text(arguments)
        self.items.append({"type": "function_call", **item, "arguments": arguments})

    def _result(self, message: JsonObject, place: str) -> None:
        call_id = message.get("tool_call_id")
        if call_id is None:  # older shapes tell the function's name, or nothing
            name = message.get("name")
            named = [key for key, value in self._waiting.items() if name in (None, value)]
            if not named:
                raise RowProblem(f"{place} has no `tool_call_id`, and no call waits for a result")
            call_id = named[0]
        call_id = str(call_id)
        self._waiting.pop(call_id, None)
        content = message.get("content")
        if type(content) is list:
            output = content_parts(content, "tool", place)
        elif type(content) is str:
            output = content
        else:
            output = "" if content is None else sent_text(content)
        kind = "custom_tool_call_output" if call_id in self._custom else "function_call_output"
        self.items.append({"type": kind, "call_id": call_id, "output": output})


def content_parts(content: Any, role: str, place: str) -> Any:
    """A message's content: text as it is, a list of parts converted."""
    if type(content) is str:
        return content
    if type(content) is dict:
        content = [content]
    if type(content) is not list:
        raise RowProblem(f"{place}.content must be text or a list of parts")
    return [_part(part, role, f"{place}.content[{at}]") for at, part in enumerate(content)]


def _part(part: Any, role: str, place: str) -> JsonObject:
    text_type = "output_text" if role == "assistant" else "input_text"
    if type(part) is str:
        return {"type": text_type, "text": part}
    if type(part) is not dict:
        raise RowProblem(f"{place} must be an object with `type`")
    kind = part.get("type")
    if kind in _PASSED:
        return part
    if kind == "text" and type(part.get("text")) is str:
        return {"type": text_type, "text": part["text"]}
    if role == "assistant":
        if kind == "refusal" and type(part.get("refusal")) is str:
            return {"type": "refusal", "refusal": part["refusal"]}
    elif kind == "image_url" and part.get("image_url"):
        image = part["image_url"]
        image = image if type(image) is dict else {"url": image}
        if type(image.get("url")) is not str:
            raise RowProblem(f"{place}.image_url has no `url`")
        detail = {"detail": image["detail"]} if image.get("detail") else {}
        return {"type": "input_image", "image_url": image["url"], **detail}
    elif kind == "input_audio" and type(part.get("input_audio")) is dict:
        return {"type": "input_audio", "input_audio": part["input_audio"]}
    elif kind == "file" and type(part.get("file")) is dict:
        known = ("file_id", "filename", "file_data")
        return {"type": "input_file", **{k: part["file"][k] for k in known if k in part["file"]}}
    raise RowProblem(
        f"{place} has the type {kind!r:.40}, which cannot be sent in a message of role {role}; "
        "known are text, image_url, input_audio, file and, for assistant, refusal"
    )
