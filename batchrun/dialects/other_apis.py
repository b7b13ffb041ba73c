"""Names the API that an answer belongs to where it is none of the Responses API. No I/O.

Such an answer was paid for and can never be read: the base URL leads to another API.
"""

from typing import Any

from batchrun.formats.json_text import decode, text

_CHAT = "chat.completion"
_OLDER = "text_completion"
_ANTHROPIC = ("message", "message_start", "content_block_start", "content_block_delta")


def other_api(data: bytes) -> str | None:
    """What this answer or event is, in words; None where nothing says so."""
    try:
        value = decode(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    return _by_name(text(value, "object") or "", text(value, "type")) or _by_fields(value)


def _by_name(name: str, kind: str | None) -> str | None:
    if name.startswith(_CHAT):
        return f"a chat completion ({name})"
    if name == _OLDER:
        return f"a completion ({name})"
    return f"a message of the Messages API ({kind})" if kind in _ANTHROPIC else None


def _by_fields(value: dict[str, Any]) -> str | None:
    """Servers that leave out what names an answer."""
    if "output" in value or "response" in value:
        return None
    choices = value.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        is_chat = not {"delta", "message"}.isdisjoint(choices[0])
        return "a chat completion" if is_chat else "a completion"
    if isinstance(value.get("candidates"), list):
        return "an answer of the Gemini API (candidates)"
    return None
