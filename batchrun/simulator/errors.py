"""The errors of the API, and those that gateways, proxies and other servers send.

A request that the API would not take raises `ApiError`. `fault_error` is the answer to an attempt
that a fault turns into an error.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from math import ceil

import msgspec

from batchrun.simulator.settings import Fault

JSON = "application/json"
_encode = msgspec.json.encode
_TYPE_NAMES = {
    type(None): "null",
    bool: "a boolean",
    int: "an integer",
    float: "a decimal",
    str: "a string",
    list: "an array",
}


@dataclass(eq=False)
class ApiError(Exception):
    """A request that is answered with an error body."""

    message: str
    param: str | None = None
    code: str | None = None
    status: int = 400
    type: str = "invalid_request_error"
    headers: dict[str, str] = field(default_factory=dict)

    def render(self) -> bytes:
        return render_error(self.message, self.type, self.code, self.param)


def render_error(
    message: str, type_: str, code: str | int | None = None, param: str | None = None
) -> bytes:
    """The body of an error, as JSON."""
    return _encode({"error": {"message": message, "type": type_, "param": param, "code": code}})


def is_of_type(value: object, types: tuple[type, ...]) -> bool:
    """The value is of one of the types; a boolean only where `bool` is among them."""
    return isinstance(value, types) and (bool in types or not isinstance(value, bool))


def check_type(param: str, value: object, expected: str, *types: type) -> None:
    """Raises `ApiError` for a value of none of the types; `expected` names them."""
    if not is_of_type(value, types):
        got = _TYPE_NAMES.get(type(value), "an object")
        message = f"Invalid type for '{param}': expected {expected}, but got {got} instead."
        raise ApiError(message, param, "invalid_type")


def missing(param: str) -> ApiError:
    message = f"Missing required parameter: '{param}'."
    return ApiError(message, param, "missing_required_parameter")


def wrong_value(param: str, value: object, known: tuple[str, ...]) -> ApiError:
    listed = ", ".join(f"'{word}'" for word in known)
    message = f"Invalid value: '{value}'. Supported values are: {listed}."
    return ApiError(message, param, "invalid_value")


def refused_key(given: str | None) -> ApiError:
    """401; of the given key at most the last four characters are shown."""
    if given is None:
        message = (
            "You didn't provide an API key. You need to provide your API key in an Authorization "
            "header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
        )
        return ApiError(message, status=401)
    shown = "*" * 8 + (given[-4:] if len(given) >= 16 else "")
    message = f"Incorrect API key provided: {shown}."
    return ApiError(message, code="invalid_api_key", status=401)


def unknown_model(model: str) -> ApiError:
    message = f"The model `{model}` does not exist or you do not have access to it."
    return ApiError(message, "model", "model_not_found", status=404)


def unknown_response(id_: str) -> ApiError:
    return ApiError(f"Response with id '{id_}' not found.", status=404)


def unknown_previous_response(id_: str) -> ApiError:
    message = f"Previous response with id '{id_}' not found."
    return ApiError(message, "previous_response_id", "previous_response_not_found")


def quota_used_up() -> ApiError:
    return ApiError(
        "You exceeded your current quota, please check your plan and billing details.",
        code="insufficient_quota",
        status=429,
        type="insufficient_quota",
    )


def retry_headers(wait_s: float) -> dict[str, str]:
    """`Retry-After` in whole seconds, and the same exactly in `retry-after-ms`."""
    return {
        "Retry-After": str(max(ceil(wait_s), 1)),
        "retry-after-ms": str(max(ceil(wait_s * 1000), 1)),
    }


def render_duration(seconds: float) -> str:
    """12ms, 9.816s, 6m0s, 1h0m5s: rounded up to the millisecond."""
    thousandths = ceil(seconds * 1000 - 1e-6)
    if thousandths < 1000:
        return f"{thousandths}ms"
    whole, rest = divmod(thousandths, 1000)
    hours, within = divmod(whole, 3600)
    minutes, left = divmod(within, 60)
    tail = f"{left}.{rest:03d}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{tail}"
    return f"{minutes}m{tail}" if minutes else tail


@dataclass(frozen=True, slots=True)
class GatewayError:
    """A whole HTTP answer that is an error."""

    status: int
    body: bytes
    content_type: str = JSON  # empty: no such header
    headers: dict[str, str] = field(default_factory=dict)
    has_limit_headers: bool = False  # x-ratelimit-* go with it, where there are limits


_Errors = dict[Fault, GatewayError | Callable[[float], GatewayError]]  # some depend on a wait


def fault_error(fault: Fault, retry_after_s: float) -> GatewayError | None:
    """The answer; None for a fault of the connection, or of an answer that is sent."""
    found = _API_ERRORS.get(fault) or _GATEWAY_ERRORS.get(fault)
    return found(retry_after_s) if callable(found) else found


def html_page(title: str) -> bytes:
    """A page as nginx makes it."""
    page = (
        f"<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n"
        f"<center><h1>{title}</h1></center>\r\n</body>\r\n</html>\r\n"
    )
    return page.encode()


def _json(status: int, value: object) -> GatewayError:
    return GatewayError(status, _encode(value))


def _error(
    status: int,
    message: str,
    type_: str,
    code: str | int | None = None,
    param: str | None = None,
    headers: dict[str, str] | None = None,
) -> GatewayError:
    return GatewayError(status, render_error(message, type_, code, param), headers=headers or {})


def _with_limits(status: int, message: str, type_: str, code: str | None = None) -> GatewayError:
    return replace(_error(status, message, type_, code), has_limit_headers=True)


def _limit(message: str = "Rate limit reached for requests.", **headers: str) -> GatewayError:
    return _error(429, message, "requests", "rate_limit_exceeded", headers=headers)


def _new_api(status: int, message: str, code: str) -> GatewayError:
    message += " (request id: 20260821093015123456789AbCdEfGh)"
    return _error(status, message, "new_api_error", code, "")


def _page(status: int, title: str) -> GatewayError:
    return GatewayError(status, html_page(title), "text/html")


def _cloudflare(status: int, title: str) -> GatewayError:
    page = (
        '<!DOCTYPE html>\n<html class="no-js" lang="en-US">\n<head>\n'
        f"<title>gateway.example | {title}</title>\n</head>\n<body>\n"
        f'<div id="cf-wrapper"><h1>{title}</h1><span>Cloudflare Ray ID: 8f0a1b2c3d4e5f60</span>'
        "</div>\n</body>\n</html>\n"
    )
    return GatewayError(status, page.encode(), "text/html; charset=UTF-8")


def _hint(wait_s: float) -> GatewayError:
    message = f"Rate limit reached. Please try again in {render_duration(wait_s)}."
    return replace(_limit(message, **retry_headers(wait_s)), has_limit_headers=True)


def _azure(wait_s: float) -> GatewayError:
    whole = max(round(wait_s), 1)
    message = (
        "Requests to the Responses_Create Operation have exceeded the call rate limit of your "
        f"current pricing tier. Please retry after {whole} second{'s' if whole > 1 else ''}."
    )
    return _json(429, {"error": {"code": "429", "message": message}})


_API_ERRORS: _Errors = {
    Fault.RATE_LIMIT_HINT: _hint,
    Fault.RATE_LIMIT_BARE: _limit("Too many requests."),
    Fault.QUOTA: GatewayError(429, quota_used_up().render(), has_limit_headers=True),
    Fault.ERROR_200: _with_limits(
        200, "The upstream answered with an error.", "server_error", "server_error"
    ),
    Fault.SERVER_ERROR_JSON: _with_limits(
        500,
        "The server had an error while processing your request. Sorry about that!",
        "server_error",
    ),
    Fault.SERVER_ERROR_HTML: _page(500, "500 Internal Server Error"),
    Fault.SERVER_ERROR_EMPTY: GatewayError(500, b"", ""),
    Fault.BAD_GATEWAY_JSON: _with_limits(
        502, "The upstream server did not answer.", "server_error", "bad_gateway"
    ),
    Fault.BAD_GATEWAY_HTML: _page(502, "502 Bad Gateway"),
    Fault.BAD_GATEWAY_EMPTY: GatewayError(502, b"", ""),
    Fault.UNAVAILABLE_JSON: _with_limits(
        503,
        "The engine is currently overloaded, please try again later.",
        "service_unavailable_error",
        "server_is_overloaded",
    ),
    Fault.UNAVAILABLE_HTML: _page(503, "503 Service Temporarily Unavailable"),
    Fault.UNAVAILABLE_EMPTY: GatewayError(503, b"", ""),
}
_FLATTENED = (
    "litellm.RateLimitError: RateLimitError: OpenAIException - "
    '{"error": {"message": "You exceeded your current quota, please check your plan and billing '
    'details.", "type": "insufficient_quota", "param": null, "code": "insufficient_quota"}}'
    ". Received Model Group=gpt-4.1\nAvailable Model Group Fallbacks=None"
)
_SSE_ERROR = b"data: %b\n\ndata: [DONE]\n\n" % render_error(
    "Internal server error", "internal_server_error", "500"
)
_GATEWAY_ERRORS: _Errors = {
    Fault.RATE_LIMIT_EMPTY: GatewayError(429, b"", ""),
    Fault.RATE_LIMIT_MS: lambda wait_s: _limit(
        **{"retry-after-ms": str(max(round(wait_s * 1000), 1))}
    ),
    Fault.RATE_LIMIT_FLOAT: lambda wait_s: _limit(**{"Retry-After": f"{wait_s:.3f}"}),
    # a date has no fractions: one more second, or it might be over before it is read
    Fault.RATE_LIMIT_DATE: lambda wait_s: _limit(
        **{"Retry-After": formatdate(time.time() + wait_s + 1, usegmt=True)}
    ),
    Fault.RATE_LIMIT_RENAMED: lambda wait_s: _limit(**{"llm_provider-retry-after": f"{wait_s:g}"}),
    Fault.RATE_LIMIT_WORDS: lambda wait_s: _limit(
        "Rate limit reached for gpt-4.1 on requests per min (RPM): Limit 500, Used 500, "
        f"Requested 1. Please try again in {render_duration(wait_s)}."
    ),
    Fault.RATE_LIMIT_AZURE: _azure,
    Fault.RATE_LIMIT_DAY: _limit(**{"Retry-After": "86400"}),
    Fault.RATE_LIMIT_CHINESE: _new_api(429, "您已达到请求数限制,1分钟内最多请求60次", ""),
    Fault.SLOW_DOWN: _error(
        429,
        "Your request rate rises too fast. Slow down, and raise it gradually.",
        "rate_limit_error",
        "slow_down",
    ),
    Fault.TOO_LARGE_FOR_LIMIT: _error(
        429,
        "Request too large for gpt-4.1 on tokens per min (TPM): Limit 30000, Requested 36278. "
        "The input or output tokens must be reduced in order to run successfully.",
        "tokens",
        "rate_limit_exceeded",
    ),
    Fault.RESOURCE_UNAVAILABLE: _error(
        429, "Resource Unavailable", "resource_unavailable", "resource_unavailable"
    ),
    Fault.CREDIT: _error(
        429, "Your credit balance is exhausted.", "insufficient_quota", "credit_balance_exhausted"
    ),
    Fault.QUOTA_FLATTENED: _error(429, _FLATTENED, "throttling_error", "429"),
    Fault.PAYMENT: _error(402, "Payment required.", "billing_error", "billing_not_active"),
    Fault.KEY: _error(
        401, "Incorrect API key provided: ********.", "invalid_request_error", "invalid_api_key"
    ),
    Fault.KEY_QUOTA: _new_api(401, "该令牌额度已用尽 TokenStatusExhausted[sk-***]", ""),
    Fault.USER_QUOTA: _new_api(403, "用户额度不足, 剩余额度: 0", "insufficient_user_quota"),
    Fault.CHARGE_QUOTA: _new_api(
        403,
        "预扣费额度失败, 用户剩余额度: ¥0.01, 需要预扣费额度: ¥0.35",
        "pre_consume_token_quota_failed",
    ),
    Fault.REGION: _error(
        403,
        "Country, region, or territory not supported",
        "request_forbidden",
        "unsupported_country_region_territory",
    ),
    Fault.FIREWALL: _cloudflare(403, "Attention Required!"),
    Fault.LLAMA: _error(400, "'input' must be a string or array", "invalid_request_error", 400),
    Fault.CONTEXT: _json(
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
    Fault.POLICY: _error(
        400,
        "Your request was rejected as a result of our safety system.",
        "invalid_request_error",
        "content_policy_violation",
    ),
    Fault.SHOULD_RETRY: _error(
        400, "Try this once more.", "invalid_request_error", headers={"x-should-retry": "true"}
    ),
    Fault.WRONG_URL: _error(404, "Invalid URL (POST /v1/responses)", "invalid_request_error"),
    Fault.TIMED_OUT: _error(408, "The request took too long.", "timeout_error", "request_timeout"),
    Fault.CONFLICT: _error(
        409, "Could not get the lock in time.", "conflict_error", "lock_timeout"
    ),
    Fault.BODY_TOO_LARGE: _new_api(413, "request body too large", "read_request_body_failed"),
    Fault.DETAIL_LIST: _json(
        422,
        {
            "detail": [
                {"loc": ["body", "input"], "msg": "field required", "type": "value_error.missing"}
            ]
        },
    ),
    Fault.DETAIL_TEXT: _json(422, {"detail": "Unexpected fields in the request: {'metadata'}"}),
    Fault.REDIRECT: GatewayError(307, b"", "", {"Location": "/elsewhere/v1/responses"}),
    Fault.CONVERT: _new_api(500, "not implemented", "convert_request_failed"),
    Fault.INVALID: _new_api(500, "field input is required", "invalid_request"),
    Fault.SENSITIVE: _new_api(
        500, "用户敏感词检测不通过: user sensitive words detected", "sensitive_words_detected"
    ),
    Fault.COUNT: _new_api(500, "failed to count tokens", "count_token_failed"),
    Fault.PRICE: _new_api(
        500, "模型 gpt-4.1 倍率或价格未配置, 请联系管理员设置", "model_price_error"
    ),
    Fault.BAD_BODY: _new_api(
        500, "invalid character '<' looking for beginning of value", "bad_response_body"
    ),
    Fault.DO_REQUEST: _new_api(500, "upstream error: do request failed", "do_request_failed"),
    Fault.SHOULD_NOT_RETRY: _error(
        500, "This will not get better.", "server_error", headers={"x-should-retry": "false"}
    ),
    Fault.SSE_500: GatewayError(500, _SSE_ERROR, "text/event-stream; charset=utf-8"),
    Fault.TEXT_500: GatewayError(500, b"Internal Server Error", "text/plain; charset=utf-8"),
    Fault.ERROR_TEXT: _json(500, {"error": "the upstream went away"}),
    Fault.SUCCESS_FALSE: _json(500, {"success": False, "message": "the upstream went away"}),
    Fault.MESSAGE: _json(500, {"message": "the upstream went away"}),
    Fault.MSG: _json(500, {"msg": "the upstream went away"}),
    Fault.ERROR_MSG: _json(500, {"error_msg": "the upstream went away"}),
    Fault.RESPONSE_ERROR: _json(
        500, {"response": {"error": {"code": "server_error", "message": "the upstream went away"}}}
    ),
    Fault.NOT_IMPLEMENTED: _error(
        501, "API not implemented", "new_api_error", "api_not_implemented", ""
    ),
    Fault.NO_CHANNEL: _new_api(503, "分组 default 下模型 gpt-4.1 无可用渠道", "model_not_found"),
    Fault.GATEWAY_TIMEOUT_HTML: _page(504, "504 Gateway Time-out"),
    Fault.CLOUDFLARE_UNKNOWN: _cloudflare(520, "520: Web server is returning an unknown error"),
    Fault.CLOUDFLARE_TIMEOUT: _cloudflare(524, "524: A timeout occurred"),
    Fault.CLOUDFLARE_PROBLEM: GatewayError(
        524,
        _encode(
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
    Fault.OVERLOADED: _error(529, "Overloaded", "overloaded_error"),
    Fault.HTML_200: _page(200, "Welcome to nginx!"),
    Fault.EMPTY_200: GatewayError(200, b""),
}
GATEWAY_FAULTS = frozenset(_GATEWAY_ERRORS)
