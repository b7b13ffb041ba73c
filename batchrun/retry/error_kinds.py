"""An error answer, whatever its shape, to its `ErrorKind`: what it says, and one table.

Code before type before message before HTTP status, since gateways flatten the first ones into
the last (PROTOCOL B.2; for the codes of reselling gateways B.6).
"""

import html
import re
from collections.abc import Iterable

from msgspec import Struct

from batchrun.errors import ErrorKind
from batchrun.formats.amounts import PART, duration_s
from batchrun.formats.json_text import beginning, compact, decode, is_bool, text

_LONGEST = 8_000  # characters of a message: some servers send the whole input back
_PAGE = 8 * 1024  # bytes of a page that are looked at
_TITLE = re.compile(r"(?is)<title[^>]*>(.*?)</title>")
_TAG = re.compile(r"(?is)<(script|style)\b.*?</\1>|<[^>]*>")


class ErrorBody(Struct, frozen=True):
    """What an error body says, whatever its shape."""

    message: str
    code: str | None = None
    type: str | None = None
    is_html: bool = False


def parse_error(body: bytes) -> ErrorBody:
    """What a body that came with a status other than 2xx says."""
    if not body.strip():
        return ErrorBody("the answer had no body")
    try:
        value = decode(body)
    except ValueError:
        is_html = body.lstrip()[:1] == b"<"
        return ErrorBody(_page(body) if is_html else beginning(body), is_html=is_html)
    return find_error(value) or ErrorBody(beginning(body))


def find_error(value: object) -> ErrorBody | None:
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
        return ErrorBody(message[:_LONGEST], code, text(inner, "type") or outer[2])
    for name in ("error", "detail", "message", "msg", "error_msg", "title"):
        if words := value.get(name):
            return ErrorBody(_message(words)[:_LONGEST], *outer[1:])
    return None


def _message(value: object) -> str:
    """Text as it is; a list of problems (FastAPI's) as the places and what is wrong there."""
    if isinstance(value, str):
        return value
    problems = []
    for problem in value if isinstance(value, list) else ():
        what = text(problem, "msg")
        if what is None:
            return compact(value)
        steps = problem.get("loc")
        where = ".".join(str(step) for step in steps) if isinstance(steps, list) else ""
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


# Found anywhere in code, type or message: money or quota is used up, and waiting does not help.
_BILLING = re.compile(
    "insufficient_quota|credit_balance_exhausted|organization_spend_limit_exceeded|"
    "project_spend_limit_exceeded|organization_usage_limit_exceeded|enforced_spend_limit_reached|"
    "billing_hard_limit_reached|billing_not_active|account_deactivated|insufficient_user_quota|"
    "pre_consume_token_quota_failed|额度不足|额度已用尽|预扣费"
)

_WORDS = {
    word: kind
    for kind, words in {
        ErrorKind.RATE_LIMIT: "rate_limit_exceeded rate_limit_error too_many_requests "
        "throttling_error ratelimitreached slow_down",
        ErrorKind.OVERLOADED: "server_is_overloaded service_unavailable_error overloaded_error",
        ErrorKind.SERVER_ERROR: "vector_store_timeout failed_to_download_image do_request_failed",
        ErrorKind.UNREADABLE: "bad_response_body",
        ErrorKind.TOO_LONG: "context_length_exceeded exceed_context_size_error "
        "string_above_max_length",
        ErrorKind.CONTENT_POLICY: "invalid_prompt content_policy_violation "
        "image_content_policy_violation misalignment_policy_violation content_filter "
        "sensitive_words_detected prompt_blocked bio_policy",
        ErrorKind.UNAUTHORIZED: "invalid_api_key authentication_error",
        ErrorKind.FORBIDDEN: "permission_error unsupported_country_region_territory",
        ErrorKind.NOT_FOUND: "api_not_implemented",
        # First 500s of a gateway that come back the same at every attempt, then reasons of a
        # `failed` response, within a 200, that are about the request.
        ErrorKind.BAD_REQUEST: "invalid_request count_token_failed model_price_error "
        "convert_request_failed "
        "data_residency_mismatch invalid_image invalid_image_format invalid_base64_image "
        "invalid_image_url invalid_image_mode image_too_large image_too_small image_parse_error "
        "image_file_too_large image_file_not_found unsupported_image_media_type empty_image_file",
    }.items()
    for word in words.split()
}

_HTTP_STATUS = re.compile(r"[45][0-9][0-9]")

_STATUSES: dict[int, ErrorKind] = {
    401: ErrorKind.UNAUTHORIZED,
    402: ErrorKind.QUOTA,
    403: ErrorKind.FORBIDDEN,
    404: ErrorKind.NOT_FOUND,
    408: ErrorKind.BUSY,
    409: ErrorKind.BUSY,
    413: ErrorKind.TOO_LONG,
    425: ErrorKind.BUSY,
    429: ErrorKind.RATE_LIMIT,
    501: ErrorKind.NOT_FOUND,
    503: ErrorKind.OVERLOADED,
    504: ErrorKind.GATEWAY_TIMEOUT,
    524: ErrorKind.GATEWAY_TIMEOUT,
    529: ErrorKind.OVERLOADED,
}

_GENERIC = frozenset({"server_error", "internal_server_error"})

_OVER_LIMIT = re.compile(
    r"(?is)request too large.*?limit:?\s*(\d{1,18}).*?requested:?\s*(\d{1,18})",
)

_HINT = re.compile(
    rf"(?i)(?:try again|retry) (?:in|after) ((?:{PART} ?)+)(?![a-z])",
)
# A gateway that flattens an error keeps the first one's JSON (or its Python form) in the message.
_INNER = re.compile(
    r"""\\*["'](?:code|type)\\*["']\s*:\s*\\*["']([A-Za-z_]{1,60})\\*["']""",
)

# What gateways say without a code.
_PHRASES = (
    ("负载已饱和", ErrorKind.RATE_LIMIT),
    ("请求数限制", ErrorKind.RATE_LIMIT),
    ("rate limit reached", ErrorKind.RATE_LIMIT),
    ("无可用渠道", ErrorKind.OVERLOADED),
    ("maximum context length", ErrorKind.TOO_LONG),
)


def classify(
    http_status: int,
    code: str | None,
    error_type: str | None,
    message: str,
    *,
    is_html: bool = False,
) -> ErrorKind:
    """The kind of an error answer; `http_status` may be 2xx where the body is an error."""
    facts = f"{code or ''} {error_type or ''} {message}".lower()
    if _BILLING.search(facts):
        return ErrorKind.QUOTA
    kind = _of_words(http_status, (code, error_type, *_INNER.findall(message)))
    if kind is None:
        kind = next((kind for phrase, kind in _PHRASES if phrase in facts), None)
    if kind is None:
        # A 2xx whose error carries a status as its code means that status.
        is_status = http_status < 300 and code is not None and _HTTP_STATUS.fullmatch(code)
        status = int(code or 0) if is_status else http_status
        # A word that says no more than "error" gives way to a status that says more.
        if status not in _STATUSES and not _GENERIC.isdisjoint((code, error_type)):
            return ErrorKind.SERVER_ERROR
        kind = _of_status(status, error_type, is_html=is_html)
    if kind is ErrorKind.RATE_LIMIT:
        over = _OVER_LIMIT.search(message)
        # The same words come with requests below the limit: then waiting does help.
        if over and int(over[2]) > int(over[1]):
            return ErrorKind.OVER_LIMIT
    return kind


def hint_in(message: str) -> float | None:
    """Seconds that a message asks to wait: `try again in 9.816s`, `20ms`, `6m0s`, `6 seconds`."""
    found = _HINT.search(message)
    return None if found is None else duration_s(found[1])


def _of_words(http_status: int, words: Iterable[str | None]) -> ErrorKind | None:
    for word in words:
        if word is None:
            continue
        if word == "model_not_found":
            # 503 is a gateway without a channel for the model, perhaps only for now.
            return ErrorKind.OVERLOADED if http_status == 503 else ErrorKind.NOT_FOUND
        kind = _WORDS.get(word.lower())
        if kind is not None:
            return kind
    return None


def _of_status(status: int, error_type: str | None, *, is_html: bool) -> ErrorKind:
    if 300 <= status < 400:
        return ErrorKind.REDIRECT
    if status == 403 and is_html:
        return ErrorKind.FIREWALL
    if status in _STATUSES:
        return _STATUSES[status]
    if 400 <= status < 500:
        return ErrorKind.BAD_REQUEST
    if status < 300 and error_type == "invalid_request_error":
        return ErrorKind.BAD_REQUEST
    return ErrorKind.SERVER_ERROR
