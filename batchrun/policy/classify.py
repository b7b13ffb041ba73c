"""An error answer's facts to its `ErrorKind`: one pure table.

Code before type before message before HTTP status, since gateways flatten the first ones into
the last (PROTOCOL B.2; for the codes of reselling gateways B.6).
"""

import re

from batchrun.errors import ErrorKind

# Found anywhere in code, type or message: money or quota is used up, and waiting does not help.
_BILLING = (
    "insufficient_quota",
    "credit_balance_exhausted",
    "organization_spend_limit_exceeded",
    "project_spend_limit_exceeded",
    "organization_usage_limit_exceeded",
    "enforced_spend_limit_reached",
    "billing_hard_limit_reached",
    "billing_not_active",
    "account_deactivated",
    "insufficient_user_quota",
    "pre_consume_token_quota_failed",
    "额度不足",
    "额度已用尽",
    "预扣费",
)

_WORDS: dict[str, ErrorKind] = {
    "rate_limit_exceeded": ErrorKind.RATE_LIMIT,
    "rate_limit_error": ErrorKind.RATE_LIMIT,
    "too_many_requests": ErrorKind.RATE_LIMIT,
    "throttling_error": ErrorKind.RATE_LIMIT,
    "ratelimitreached": ErrorKind.RATE_LIMIT,
    "slow_down": ErrorKind.RATE_LIMIT,
    "server_is_overloaded": ErrorKind.OVERLOADED,
    "service_unavailable_error": ErrorKind.OVERLOADED,
    "overloaded_error": ErrorKind.OVERLOADED,
    "server_error": ErrorKind.SERVER_ERROR,
    "internal_server_error": ErrorKind.SERVER_ERROR,
    "vector_store_timeout": ErrorKind.SERVER_ERROR,
    "failed_to_download_image": ErrorKind.SERVER_ERROR,
    "do_request_failed": ErrorKind.SERVER_ERROR,
    "context_length_exceeded": ErrorKind.TOO_LONG,
    "exceed_context_size_error": ErrorKind.TOO_LONG,
    "string_above_max_length": ErrorKind.TOO_LONG,
    "invalid_prompt": ErrorKind.CONTENT_POLICY,
    "content_policy_violation": ErrorKind.CONTENT_POLICY,
    "image_content_policy_violation": ErrorKind.CONTENT_POLICY,
    "misalignment_policy_violation": ErrorKind.CONTENT_POLICY,
    "content_filter": ErrorKind.CONTENT_POLICY,
    "sensitive_words_detected": ErrorKind.CONTENT_POLICY,
    "prompt_blocked": ErrorKind.CONTENT_POLICY,
    "bio_policy": ErrorKind.CONTENT_POLICY,
    "invalid_api_key": ErrorKind.UNAUTHORIZED,
    "authentication_error": ErrorKind.UNAUTHORIZED,
    "permission_error": ErrorKind.FORBIDDEN,
    "unsupported_country_region_territory": ErrorKind.FORBIDDEN,
    "api_not_implemented": ErrorKind.NOT_FOUND,
    # 500s of a gateway that come back the same however often they are tried:
    "invalid_request": ErrorKind.BAD_REQUEST,
    "count_token_failed": ErrorKind.BAD_REQUEST,
    "model_price_error": ErrorKind.BAD_REQUEST,
    "convert_request_failed": ErrorKind.BAD_REQUEST,
}

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

_OVER_LIMIT = re.compile(
    r"(?is)request too large.*?limit:?\s*(\d+).*?requested:?\s*(\d+)",
)

_HINT = re.compile(
    r"(?i)(?:try again|retry) (?:in|after) ((?:\d+(?:\.\d+)? ?(?:ms|s|m|h|seconds?|minutes?)\b ?|"
    r"\d+(?:\.\d+)?(?:h|m))+)"
)
_DURATION = re.compile(r"(?i)(\d+(?:\.\d+)?) ?(ms|seconds?|minutes?|s|m|h)")
_UNITS = {
    "ms": 0.001,
    "s": 1.0,
    "second": 1.0,
    "seconds": 1.0,
    "m": 60.0,
    "minute": 60.0,
    "minutes": 60.0,
    "h": 3600.0,
}


def classify(
    http_status: int,
    code: str | None,
    error_type: str | None,
    message: str,
    *,
    is_html: bool = False,
) -> ErrorKind:
    """The kind of an error answer; `http_status` may be 2xx where the body is an error."""
    facts = f"{code or ''} {error_type or ''} {message}"
    if any(word in facts for word in _BILLING):
        return ErrorKind.QUOTA
    kind = _of_words(http_status, code, error_type)
    if kind is None:
        kind = _of_status(_status_meant(http_status, code), error_type, is_html=is_html)
    if kind is ErrorKind.RATE_LIMIT:
        over = _OVER_LIMIT.search(message)
        # The same words come with requests below the limit: then waiting does help.
        if over and int(over[2]) > int(over[1]):
            return ErrorKind.OVER_LIMIT
    return kind


def hint_in(message: str) -> float | None:
    """Seconds that a message asks to wait: `try again in 9.816s`, `20ms`, `6m0s`, `6 seconds`."""
    found = _HINT.search(message)
    if found is None:
        return None
    parts = _DURATION.findall(found[1])
    return sum(float(number) * _UNITS[unit.lower()] for number, unit in parts) if parts else None


def _of_words(http_status: int, code: str | None, error_type: str | None) -> ErrorKind | None:
    for word in (code, error_type):
        if word is None:
            continue
        if word == "model_not_found":
            # 503 is a gateway without a channel for the model, perhaps only for now.
            return ErrorKind.OVERLOADED if http_status == 503 else ErrorKind.NOT_FOUND
        kind = _WORDS.get(word.lower())
        if kind is not None:
            return kind
    return None


def _status_meant(http_status: int, code: str | None) -> int:
    """A 2xx whose error carries a status as its code means that status."""
    if http_status < 300 and code is not None and code.isascii() and code.isdigit():
        meant = int(code)
        if 400 <= meant < 600:
            return meant
    return http_status


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
