"""The errors that gateways, proxies and other servers make up: what each of them looks like.

Pure. `gateway_error` knows the kinds that the API itself has not got; those are in `faults`.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate

from batchrun.simulator.api_errors import render_error
from batchrun.simulator.kinds import Fault
from batchrun.simulator.limits import render_duration

JSON = "application/json"
_TOO_MANY = "Rate limit reached for requests."
_NEW_API = "new_api_error"
_ID = " (request id: 20260821093015123456789AbCdEfGh)"  # new-api's messages end so


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """An answer that is an error."""

    status: int
    body: bytes
    content_type: str = JSON
    headers: dict[str, str] = field(default_factory=dict)
    tells_limits: bool = False  # x-ratelimit-* go with it, where there are limits


def gateway_error(fault: Fault, retry_after_s: float) -> ErrorAnswer | None:
    """What is answered; null for a fault that is no gateway's error."""
    if fault in _FIXED:
        return _FIXED[fault]
    make = _HINTING.get(fault)
    return make(retry_after_s) if make is not None else None


def html_page(title: str) -> bytes:
    """A page as nginx makes it."""
    page = (
        f"<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n"
        f"<center><h1>{title}</h1></center>\r\n</body>\r\n</html>\r\n"
    )
    return page.encode()


def _cloudflare_page(title: str) -> bytes:
    page = (
        '<!DOCTYPE html>\n<html class="no-js" lang="en-US">\n<head>\n'
        f"<title>gateway.example | {title}</title>\n</head>\n<body>\n"
        f'<div id="cf-wrapper"><h1>{title}</h1><span>Cloudflare Ray ID: 8f0a1b2c3d4e5f60</span>'
        "</div>\n</body>\n</html>\n"
    )
    return page.encode()


def _said(
    status: int,
    message: str,
    type_: str,
    code: str | int | None = None,
    param: str | None = None,
    headers: dict[str, str] | None = None,
) -> ErrorAnswer:
    body = _dumped({"error": {"message": message, "type": type_, "param": param, "code": code}})
    return ErrorAnswer(status, body, headers=headers or {})


def _of_new_api(status: int, message: str, code: str) -> ErrorAnswer:
    return _said(status, message + _ID, _NEW_API, code, "")


def _shape(status: int, value: object) -> ErrorAnswer:
    return ErrorAnswer(status, _dumped(value))


def _dumped(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _page(status: int, body: bytes, content_type: str = "text/html; charset=UTF-8") -> ErrorAnswer:
    return ErrorAnswer(status, body, content_type)


def _limited(message: str = _TOO_MANY, **headers: str) -> ErrorAnswer:
    return _said(429, message, "requests", "rate_limit_exceeded", headers=headers)


def _in_words(wait_s: float) -> ErrorAnswer:
    return _limited(
        "Rate limit reached for gpt-4.1 on requests per min (RPM): Limit 500, Used 500, "
        f"Requested 1. Please try again in {render_duration(wait_s)}."
    )


def _as_azure(wait_s: float) -> ErrorAnswer:
    whole = max(round(wait_s), 1)
    message = (
        "Requests to the Responses_Create Operation have exceeded the call rate limit of your "
        f"current pricing tier. Please retry after {whole} second{'s' if whole > 1 else ''}."
    )
    return _shape(429, {"error": {"code": "429", "message": message}})


def _in_milliseconds(wait_s: float) -> ErrorAnswer:
    return _limited(**{"retry-after-ms": str(max(round(wait_s * 1000), 1))})


def _as_date(wait_s: float) -> ErrorAnswer:
    # a date has no fractions: one more second, or it might be over before it is read
    return _limited(**{"Retry-After": formatdate(time.time() + wait_s + 1, usegmt=True)})


_HINTING: dict[Fault, Callable[[float], ErrorAnswer]] = {
    Fault.RATE_LIMIT_MS: _in_milliseconds,
    Fault.RATE_LIMIT_FLOAT: lambda wait_s: _limited(**{"Retry-After": f"{wait_s:.3f}"}),
    Fault.RATE_LIMIT_DATE: _as_date,
    Fault.RATE_LIMIT_RENAMED: lambda wait_s: _limited(
        **{"llm_provider-retry-after": f"{wait_s:g}"}
    ),
    Fault.RATE_LIMIT_WORDS: _in_words,
    Fault.RATE_LIMIT_AZURE: _as_azure,
}
_ORIGINAL = {
    "error": {
        "message": "You exceeded your current quota, please check your plan and billing details.",
        "type": "insufficient_quota",
        "param": None,
        "code": "insufficient_quota",
    }
}
_FLATTENED = (
    "litellm.RateLimitError: RateLimitError: OpenAIException - "
    + json.dumps(_ORIGINAL)
    + ". Received Model Group=gpt-4.1\nAvailable Model Group Fallbacks=None"
)
_SSE_ERROR = b"data: %b\n\ndata: [DONE]\n\n" % render_error(
    "Internal server error", type_="internal_server_error", code="500"
)
_FIXED: dict[Fault, ErrorAnswer] = {
    Fault.RATE_LIMIT_EMPTY: ErrorAnswer(429, b"", ""),
    Fault.RATE_LIMIT_DAY: _limited(**{"Retry-After": "86400"}),
    Fault.RATE_LIMIT_CHINESE: _of_new_api(429, "您已达到请求数限制,1分钟内最多请求60次", ""),
    Fault.SLOW_DOWN: _said(
        429,
        "Your request rate rises too fast. Slow down, and raise it gradually.",
        "rate_limit_error",
        "slow_down",
    ),
    Fault.TOO_LARGE_FOR_LIMIT: _said(
        429,
        "Request too large for gpt-4.1 on tokens per min (TPM): Limit 30000, Requested 36278. "
        "The input or output tokens must be reduced in order to run successfully.",
        "tokens",
        "rate_limit_exceeded",
    ),
    Fault.RESOURCE_UNAVAILABLE: _said(
        429, "Resource Unavailable", "resource_unavailable", "resource_unavailable"
    ),
    Fault.CREDIT: _said(
        429, "Your credit balance is exhausted.", "insufficient_quota", "credit_balance_exhausted"
    ),
    Fault.QUOTA_FLATTENED: _said(429, _FLATTENED, "throttling_error", "429"),
    Fault.PAYMENT: _said(402, "Payment required.", "billing_error", "billing_not_active"),
    Fault.KEY: _said(
        401, "Incorrect API key provided: ********.", "invalid_request_error", "invalid_api_key"
    ),
    Fault.KEY_QUOTA: _of_new_api(401, "该令牌额度已用尽 TokenStatusExhausted[sk-***]", ""),
    Fault.USER_QUOTA: _of_new_api(403, "用户额度不足, 剩余额度: 0", "insufficient_user_quota"),
    Fault.CHARGE_QUOTA: _of_new_api(
        403,
        "预扣费额度失败, 用户剩余额度: ¥0.01, 需要预扣费额度: ¥0.35",
        "pre_consume_token_quota_failed",
    ),
    Fault.REGION: _said(
        403,
        "Country, region, or territory not supported",
        "request_forbidden",
        "unsupported_country_region_territory",
    ),
    Fault.FIREWALL: _page(403, _cloudflare_page("Attention Required!")),
    Fault.LLAMA: _said(400, "'input' must be a string or array", "invalid_request_error", 400),
    Fault.CONTEXT: _shape(
        400,
        {
            "error": {
                "code": 400,
                "message": "the request exceeds the available context size",
                "type": "exceed_context_size_error",
                "n_prompt_tokens": 40_000,
                "n_ctx": 32_768,
            }
        },
    ),
    Fault.POLICY: _said(
        400,
        "Your request was rejected as a result of our safety system.",
        "invalid_request_error",
        "content_policy_violation",
    ),
    Fault.SHOULD_RETRY: _said(
        400, "Try this once more.", "invalid_request_error", headers={"x-should-retry": "true"}
    ),
    Fault.WRONG_URL: _said(404, "Invalid URL (POST /v1/responses)", "invalid_request_error"),
    Fault.TIMED_OUT: _said(408, "The request took too long.", "timeout_error", "request_timeout"),
    Fault.CONFLICT: _said(409, "Could not get the lock in time.", "conflict_error", "lock_timeout"),
    Fault.BODY_TOO_LARGE: _of_new_api(413, "request body too large", "read_request_body_failed"),
    Fault.DETAIL_LIST: _shape(
        422,
        {
            "detail": [
                {"loc": ["body", "input"], "msg": "field required", "type": "value_error.missing"}
            ]
        },
    ),
    Fault.DETAIL_TEXT: _shape(422, {"detail": "Unexpected fields in the request: {'metadata'}"}),
    Fault.REDIRECT: ErrorAnswer(307, b"", "", {"Location": "/elsewhere/v1/responses"}),
    Fault.CONVERT: _of_new_api(500, "not implemented", "convert_request_failed"),
    Fault.INVALID: _of_new_api(500, "field input is required", "invalid_request"),
    Fault.SENSITIVE: _of_new_api(
        500, "用户敏感词检测不通过: user sensitive words detected", "sensitive_words_detected"
    ),
    Fault.COUNT: _of_new_api(500, "failed to count tokens", "count_token_failed"),
    Fault.PRICE: _of_new_api(
        500, "模型 gpt-4.1 倍率或价格未配置, 请联系管理员设置", "model_price_error"
    ),
    Fault.BAD_BODY: _of_new_api(
        500, "invalid character '<' looking for beginning of value", "bad_response_body"
    ),
    Fault.DO_REQUEST: _of_new_api(500, "upstream error: do request failed", "do_request_failed"),
    Fault.SHOULD_NOT_RETRY: _said(
        500, "This will not get better.", "server_error", headers={"x-should-retry": "false"}
    ),
    Fault.SSE_500: ErrorAnswer(500, _SSE_ERROR, "text/event-stream; charset=utf-8"),
    Fault.TEXT_500: _page(500, b"Internal Server Error", "text/plain; charset=utf-8"),
    Fault.ERROR_TEXT: _shape(500, {"error": "the upstream went away"}),
    Fault.SUCCESS_FALSE: _shape(500, {"success": False, "message": "the upstream went away"}),
    Fault.MESSAGE: _shape(500, {"message": "the upstream went away"}),
    Fault.MSG: _shape(500, {"msg": "the upstream went away"}),
    Fault.ERROR_MSG: _shape(500, {"error_msg": "the upstream went away"}),
    Fault.RESPONSE_ERROR: _shape(
        500, {"response": {"error": {"code": "server_error", "message": "the upstream went away"}}}
    ),
    Fault.NOT_IMPLEMENTED: _said(
        501, "API not implemented", _NEW_API, "api_not_implemented", param=""
    ),
    Fault.NO_CHANNEL: _of_new_api(503, "分组 default 下模型 gpt-4.1 无可用渠道", "model_not_found"),
    Fault.GATEWAY_TIMEOUT_HTML: _page(504, html_page("504 Gateway Time-out"), "text/html"),
    Fault.CLOUDFLARE_UNKNOWN: _page(
        520, _cloudflare_page("520: Web server is returning an unknown error")
    ),
    Fault.CLOUDFLARE_TIMEOUT: _page(524, _cloudflare_page("524: A timeout occurred")),
    Fault.CLOUDFLARE_PROBLEM: _page(
        524,
        _dumped(
            {
                "type": "https://developers.cloudflare.com/support/troubleshooting/"
                "http-status-codes/cloudflare-5xx-errors/error-524/",
                "title": "A timeout occurred",
                "status": 524,
                "detail": "The origin web server did not answer in time.",
            }
        ),
        "application/problem+json",
    ),
    Fault.OVERLOADED: _said(529, "Overloaded", "overloaded_error"),
    Fault.HTML_200: _page(200, html_page("Welcome to nginx!"), "text/html"),
    Fault.EMPTY_200: ErrorAnswer(200, b""),
}
