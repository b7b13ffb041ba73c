"""An answer's body to a `Response` or to what the server says is wrong: total over any JSON.

Nothing is validated strictly: fields of a wrong type count as absent, and unknown output items
are kept verbatim (PROTOCOL 0.1, A.3, A.4). What JSON refuses but servers send (lone surrogates,
NaN) is mended once and read again.
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, Struct

from batchrun.errors import ErrorKind
from batchrun.parse.body import Body, Item, read_body, read_items
from batchrun.parse.error_body import ErrorAnswer, find_error
from batchrun.parse.json_text import beginning, count, decode, is_bool, mended, text
from batchrun.parse.schemas import output_fits
from batchrun.parse.tool_call import read_tool_call
from batchrun.records import Citation, Failure, Request, Response, ToolCall, Usage

_Count = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None


class Unreadable(Struct, frozen=True):
    """A complete body that is neither a response nor an error."""

    message: str


class _Details(Struct):
    cached_tokens: _Count = None
    cache_write_tokens: _Count = None
    reasoning_tokens: _Count = None


_NO_DETAILS = _Details()


class _Usage(Struct):
    """Usage as it should be."""

    input_tokens: _Count = None
    output_tokens: _Count = None
    total_tokens: _Count = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None
    cost: float | None = None


_raws_decoder = msgspec.json.Decoder(list[Raw])
_usage_decoder = msgspec.json.Decoder(_Usage)


def parse_response(
    body: bytes, request: Request, reported_cost_usd: float | None = None
) -> Response | ErrorAnswer | Unreadable:
    """What a 2xx body says."""
    try:
        return _response(body, request, reported_cost_usd)
    except (ValueError, RecursionError):
        pass  # once more, mended
    try:
        return _response(mended(body), request, reported_cost_usd)
    except (ValueError, RecursionError):
        return Unreadable(f"the answer is no JSON object: {beginning(body)}")


def _response(
    body: bytes, request: Request, reported_cost_usd: float | None
) -> Response | ErrorAnswer | Unreadable:
    answer = read_body(body)
    output = bytes(answer.output)
    has_items = output[:1] == b"["
    if not has_items:
        output = b"[]"
    is_response = answer.object == "response" or has_items
    status = answer.status or ("completed" if has_items else None)
    if not is_response or (answer.error and status not in ("failed", "cancelled")):
        said = find_error(decode(body)) if answer.error or not is_response else None
        return said or Unreadable(f"the answer is no response: {beginning(body)}")
    if status not in ("completed", "incomplete", "failed", "cancelled"):
        return Unreadable(f"the answer's status is {status}, which is no end")
    usage, cost_usd = _usage(answer.usage)
    reason = answer.incomplete_details.reason if answer.incomplete_details else None
    parts = _parts(output, request)
    output_text = "".join(parts.texts) if parts.texts else answer.output_text or None
    return Response(
        id=answer.id,
        status=status,
        model=answer.model,
        service_tier=answer.service_tier,
        output=output.decode(),
        output_text=output_text,
        refusal="".join(parts.refusals) if parts.refusals else None,
        reasoning_summary="\n\n".join(parts.summaries) if parts.summaries else None,
        citations=tuple(parts.citations),
        tool_calls=tuple(parts.tool_calls),
        usage=usage,
        usage_json=_usage_json(answer),
        truncated=_is_truncated(status, reason, usage, request.max_output_tokens),
        incomplete_reason=reason,
        reported_cost_usd=cost_usd if reported_cost_usd is None else reported_cost_usd,
        failure=_failure(status, answer.error),
        output_parsed_ok=output_fits(output_text, request.body),
    )


def _is_truncated(status: str, reason: str | None, usage: Usage, most: int | None) -> bool:
    """Some servers say completed when the limit cut the answer (PROTOCOL A.3)."""
    if status == "incomplete":
        return reason in (None, "max_output_tokens")
    return (
        status == "completed"
        and most is not None
        and usage.output_tokens is not None
        and usage.output_tokens >= most
    )


def _failure(status: str, error: object) -> Failure | None:
    if status not in ("failed", "cancelled"):
        return None
    kind = ErrorKind.CANCELLED if status == "cancelled" else ErrorKind.SERVER_ERROR
    said = find_error({"error": error}) if error else None
    if said is None:
        return Failure(kind, f"the response is {status}")
    return Failure(kind, said.message, said.code or said.type)


class _Parts(Struct):
    """What the output items hold, gathered."""

    texts: list[str] = []
    refusals: list[str] = []
    summaries: list[str] = []
    citations: list[Citation] = []
    tool_calls: list[ToolCall] = []


def _parts(output: bytes, request: Request) -> _Parts:
    parts = _Parts()
    raws: list[Raw] = []  # the items once more, verbatim: hardly any answer needs them
    for position, item in enumerate(read_items(output)):
        kind = item.type or ""
        if kind == "message":
            _read_message(item, parts)
        elif kind == "reasoning":
            parts.summaries += [part.text for part in item.summary or () if part.text]
        elif kind.endswith("_call"):
            raws = raws or _raws_decoder.decode(output)
            call = read_tool_call(position, kind, bytes(raws[position]), request)
            parts.tool_calls.append(call)
    return parts


def _read_message(item: Item, parts: _Parts) -> None:
    content = item.content
    if isinstance(content, str):
        parts.texts.append(content)
        return
    for part in content or ():
        kind = part.type
        if kind in ("output_text", "text"):
            parts.texts.append(part.text or "")
            for note in part.annotations or ():
                if isinstance(note, dict):
                    parts.citations.append(_citation(note))
        elif kind == "refusal":
            parts.refusals.append(part.refusal or "")


def _citation(note: dict[str, Any]) -> Citation:
    return Citation(
        type=text(note, "type") or "unknown",
        url=text(note, "url"),
        title=text(note, "title") or text(note, "filename"),
        file_id=text(note, "file_id"),
        start_index=count(note.get("start_index", note.get("index"))),
        end_index=count(note.get("end_index")),
    )


def _usage(raw: Raw) -> tuple[Usage, float | None]:
    """Any count may be missing or null (PROTOCOL A.3); the cost is a gateway's own."""
    try:
        said = _usage_decoder.decode(raw)
    except msgspec.ValidationError:
        return _odd_usage(raw)
    inputs = said.input_tokens_details or _NO_DETAILS
    outputs = said.output_tokens_details or _NO_DETAILS
    known = Usage(
        said.input_tokens,
        inputs.cached_tokens,
        inputs.cache_write_tokens,
        said.output_tokens,
        outputs.reasoning_tokens,
        said.total_tokens,
    )
    return known, said.cost


def _odd_usage(raw: Raw) -> tuple[Usage, float | None]:
    """Usage of which something is of a wrong type: that counts as absent."""
    usage = decode(bytes(raw))
    if not isinstance(usage, dict):
        return Usage(), None
    inputs = usage.get("input_tokens_details")
    outputs = usage.get("output_tokens_details")
    inputs = inputs if isinstance(inputs, dict) else {}
    outputs = outputs if isinstance(outputs, dict) else {}
    cost = usage.get("cost")
    known = Usage(
        input_tokens=count(usage.get("input_tokens")),
        cached_tokens=count(inputs.get("cached_tokens")),
        cache_write_tokens=count(inputs.get("cache_write_tokens")),
        output_tokens=count(usage.get("output_tokens")),
        reasoning_tokens=count(outputs.get("reasoning_tokens")),
        total_tokens=count(usage.get("total_tokens")),
    )
    return known, float(cost) if isinstance(cost, int | float) and not is_bool(cost) else None


def _usage_json(answer: Body) -> str | None:
    usage, tool_usage = bytes(answer.usage).strip(), bytes(answer.tool_usage).strip()
    if tool_usage == b"null":
        return None if usage == b"null" else usage.decode()
    if usage[:1] == b"{":
        inner = usage[1:-1].strip()
        return (
            b"{" + inner + (b"," if inner else b"") + b'"tool_usage":' + tool_usage + b"}"
        ).decode()
    return (b'{"tool_usage":' + tool_usage + b"}").decode()
