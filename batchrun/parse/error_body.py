"""An error body, whatever its shape, to what it says (PROTOCOL B.1)."""

import html
import re

from msgspec import Struct

from batchrun.parse.json_text import beginning, compact, decode, is_bool, text

_LONGEST = 8_000  # characters of a message: some servers send the whole input back
_PAGE = 8 * 1024  # bytes of a page that are looked at
_TITLE = re.compile(r"(?is)<title[^>]*>(.*?)</title>")
_TAG = re.compile(r"(?is)<(script|style)\b.*?</\1>|<[^>]*>")


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
        is_html = body.lstrip()[:1] == b"<"
        return ErrorAnswer(_page(body) if is_html else beginning(body), is_html=is_html)
    return find_error(value) or ErrorAnswer(beginning(body))


def find_error(value: object) -> ErrorAnswer | None:
    """The error in any of the shapes that servers and gateways use; null where there is none."""
    if isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, dict):
        return None
    nested = value.get("response")
    if not value.get("error") and isinstance(nested, dict) and nested.get("error"):
        value = nested
    outer = (text(value, "message"), _code(value.get("code")), text(value, "type"))
    inner = value.get("error")
    if isinstance(inner, dict):
        # Each field from within, else from without: servers do both (PROTOCOL 0.8).
        message = text(inner, "message") or text(inner, "detail") or outer[0] or compact(inner)
        code = _code(inner.get("code")) or outer[1]
        return ErrorAnswer(message[:_LONGEST], code, text(inner, "type") or outer[2])
    for name in ("error", "detail", "message", "msg", "error_msg", "title"):
        said = value.get(name)
        if said:
            return ErrorAnswer(_said(said)[:_LONGEST], *outer[1:])
    return None


def _said(value: object) -> str:
    """Text as it is; a list of problems (FastAPI's) as the places and what is wrong there."""
    if isinstance(value, str):
        return value
    problems = []
    for problem in value if isinstance(value, list) else ():
        place, what = (
            problem.get("loc") if isinstance(problem, dict) else None,
            text(problem, "msg"),
        )
        if what is None:
            return compact(value)
        where = ".".join(str(step) for step in place) if isinstance(place, list) else ""
        problems.append(f"{where}: {what}" if where else what)
    return beginning("; ".join(problems).encode()) if problems else compact(value)


def _page(body: bytes) -> str:
    """A page's title, else its words."""
    page = body[:_PAGE].decode(errors="replace")
    title = _TITLE.search(page)
    words = html.unescape(_TAG.sub(" ", title[1] if title else page))
    return beginning(" ".join(words.split()).encode()) if words.strip() else beginning(body)


def _code(value: object) -> str | None:
    if isinstance(value, str):
        return value or None
    return str(value) if isinstance(value, int) and not is_bool(value) else None
