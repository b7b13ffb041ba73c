"""An error body, whatever its shape, to what it says (PROTOCOL B.1)."""

from msgspec import Struct

from batchrun.parse.json_text import beginning, compact, decode, is_bool, text


class ErrorAnswer(Struct, frozen=True):
    """What an error body says, whatever its shape."""

    message: str
    code: str | None = None
    type: str | None = None
    is_html: bool = False


def parse_error(body: bytes) -> ErrorAnswer:
    """What a body that came with a status other than 2xx says."""
    if not body.strip():
        return ErrorAnswer("the answer had no body")
    try:
        value = decode(body)
    except ValueError:
        return ErrorAnswer(beginning(body), is_html=body.lstrip()[:1] == b"<")
    return find_error(value) or ErrorAnswer(beginning(body))


def find_error(value: object) -> ErrorAnswer | None:
    """The error in any of the shapes that servers and gateways use; null where there is none."""
    if isinstance(value, list) and value:
        return find_error(value[0])
    if not isinstance(value, dict):
        return None
    inner = value.get("error")
    if isinstance(inner, dict):
        message = text(inner, "message") or text(inner, "detail") or compact(inner)
        return ErrorAnswer(message, _code(inner.get("code")), text(inner, "type"))
    nested = value.get("response")
    if isinstance(nested, dict) and nested.get("error"):
        return find_error(nested)
    for name in ("error", "detail", "message", "msg", "error_msg", "title"):
        said = value.get(name)
        if said:
            message = said if isinstance(said, str) else compact(said)
            return ErrorAnswer(message, _code(value.get("code")), text(value, "type"))
    return None


def _code(value: object) -> str | None:
    if isinstance(value, str):
        return value or None
    return str(value) if isinstance(value, int) and not is_bool(value) else None
