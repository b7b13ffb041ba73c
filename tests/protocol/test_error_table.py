"""What follows each error: waited out, tried again, or not (PROTOCOL B.2 and B.6)."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from batchrun.errors import ErrorKind, RunStopped
from batchrun.job.sections import RetryJob
from batchrun.records import Failure
from batchrun.retry.next_step import Again, GiveUp, Halt, judge

Complete = Callable[..., Any]
Make = Callable[..., dict[str, Any]]

K = ErrorKind
PAGE = b"<html><head><title>Attention Required!</title></head></html>"
# How often a row is tried before it fails, or that the run stops.
TO_THE_END, THRICE, TWICE, ONCE, STOPS = 6, 3, 2, 1, 0


class Case(NamedTuple):
    """An error answer, its kind, and how many tries it gets."""

    status: int
    kind: ErrorKind
    tries: int
    code: Any = None
    type: str | None = None
    message: str = "because"
    raw: bytes | None = None

    @property
    def step(self) -> dict[str, Any]:
        error = {"message": self.message, "type": self.type, "code": self.code}
        return {"status": self.status, "body": {"error": error} if self.raw is None else self.raw}


_BILLING = """insufficient_quota credit_balance_exhausted organization_spend_limit_exceeded
    project_spend_limit_exceeded organization_usage_limit_exceeded billing_hard_limit_reached
    billing_not_active account_deactivated insufficient_user_quota pre_consume_token_quota_failed
    enforced_spend_limit_reached"""
CASES: dict[str, Case] = {
    **{
        f"B.2.billing {where} {word}": Case(429, K.QUOTA, STOPS, **{where: word})  # type: ignore[arg-type]
        for word in _BILLING.split()
        for where in ("code", "type", "message")
    },
    "B.6.quota words": Case(403, K.QUOTA, STOPS, message="用户额度不足, 剩余额度: 0"),
    "B.6.bad_token used up": Case(401, K.QUOTA, STOPS, message="该令牌额度已用尽 [sk-xx]"),
    "B.6.quota other words": Case(403, K.QUOTA, STOPS, message="预扣费额度失败"),
    "B.2.billing 402": Case(402, K.QUOTA, STOPS),
    "0.4 billing flattened": Case(
        429, K.QUOTA, STOPS, "429", "throttling_error", 'x: {"code": "insufficient_quota"}'
    ),
    "B.2.server code": Case(500, K.SERVER_ERROR, TO_THE_END, "server_error"),
    "B.2.server flattened": Case(500, K.SERVER_ERROR, TO_THE_END, "500"),
    "B.2.server overloaded": Case(503, K.OVERLOADED, TO_THE_END, "server_is_overloaded"),
    "B.2.server overloaded by type": Case(
        503, K.OVERLOADED, TO_THE_END, None, "service_unavailable_error"
    ),
    "B.2.server overloaded 529": Case(529, K.OVERLOADED, TO_THE_END, None, "overloaded_error"),
    **{
        f"B.2.server {status}": Case(status, K.SERVER_ERROR, TO_THE_END)
        for status in (500, 502, 520, 521, 522, 523, 525, 526, 527, 530)
    },
    "B.2.server 503": Case(503, K.OVERLOADED, TO_THE_END),
    "B.2.server 529": Case(529, K.OVERLOADED, TO_THE_END),
    **{f"B.2.lost {status}": Case(status, K.BUSY, TO_THE_END) for status in (408, 409, 425)},
    **{
        f"B.2.gateway_timeout {status}": Case(status, K.GATEWAY_TIMEOUT, TWICE)
        for status in (504, 524)
    },
    "B.2.too_long code": Case(400, K.TOO_LONG, ONCE, "context_length_exceeded"),
    "B.1.3 too long by its type": Case(400, K.TOO_LONG, ONCE, 400, "exceed_context_size_error"),
    "B.2.too_long text": Case(400, K.TOO_LONG, ONCE, "string_above_max_length"),
    "B.6.too_large": Case(413, K.TOO_LONG, ONCE, "read_request_body_failed"),
    "0.4 too long flattened": Case(
        400, K.TOO_LONG, ONCE, "400", None, "x - {'error': {'code': 'context_length_exceeded'}}"
    ),
    **{
        f"B.2.policy {code}": Case(400, K.CONTENT_POLICY, ONCE, code)
        for code in (
            "invalid_prompt",
            "content_policy_violation",
            "content_filter",
            "sensitive_words_detected",
            "prompt_blocked",
            "bio_policy",
        )
    },
    **{
        f"B.2.other_4xx {status}": Case(status, K.BAD_REQUEST, ONCE)
        for status in (400, 405, 406, 415, 422, 431)
    },
    "B.2.refused key": Case(401, K.UNAUTHORIZED, STOPS, "invalid_api_key"),
    "B.6.bad_token": Case(401, K.UNAUTHORIZED, STOPS, "", "new_api_error"),
    "B.2.refused region": Case(403, K.FORBIDDEN, STOPS, "unsupported_country_region_territory"),
    "B.6.forbidden group": Case(
        403, K.FORBIDDEN, STOPS, "", "new_api_error", "no access to the group"
    ),
    "B.2.refused model": Case(404, K.NOT_FOUND, STOPS, "model_not_found"),
    "B.6.not_implemented path": Case(
        404, K.NOT_FOUND, STOPS, None, None, "Invalid URL (POST /v1/responses)"
    ),
    "B.6.not_implemented": Case(501, K.NOT_FOUND, STOPS, "api_not_implemented"),
    "B.2.firewall": Case(403, K.FIREWALL, THRICE, raw=PAGE),
    "B.2.redirect 301": Case(301, K.REDIRECT, STOPS, raw=b""),
    "B.2.redirect 307": Case(307, K.REDIRECT, STOPS, raw=b""),
    # What new-api and one-api make of it.
    "B.6.no_channel": Case(503, K.OVERLOADED, TO_THE_END, "model_not_found", None, "无可用渠道"),
    "B.6.permanent_500 invalid_request": Case(500, K.BAD_REQUEST, ONCE, "invalid_request"),
    "B.6.permanent_500 words": Case(500, K.CONTENT_POLICY, ONCE, "sensitive_words_detected"),
    "B.6.permanent_500 count": Case(500, K.BAD_REQUEST, ONCE, "count_token_failed"),
    "B.6.permanent_500 price": Case(500, K.BAD_REQUEST, ONCE, "model_price_error"),
    "B.6.permanent_500 convert": Case(500, K.BAD_REQUEST, ONCE, "convert_request_failed"),
    "B.6.unreachable": Case(500, K.SERVER_ERROR, TO_THE_END, "do_request_failed", "new_api_error"),
    "B.6.upstream_status": Case(
        520, K.SERVER_ERROR, TO_THE_END, "bad_response_status_code", "upstream_error"
    ),
    "B.6.bad_body": Case(500, K.UNREADABLE, THRICE, "bad_response_body"),
    "B.6.error_in_200": Case(200, K.SERVER_ERROR, TO_THE_END, None, "upstream_error"),
    "B.6.one_api 503": Case(503, K.OVERLOADED, TO_THE_END, None, "one_api_error"),
    "B.6.one_api 401": Case(401, K.UNAUTHORIZED, STOPS, None, "one_api_error"),
    "B.6.one_api 403": Case(403, K.FORBIDDEN, STOPS, None, "one_api_error"),
    "B.6.quota code": Case(403, K.QUOTA, STOPS, "insufficient_user_quota", "new_api_error"),
    "B.6.quota before": Case(403, K.QUOTA, STOPS, "pre_consume_token_quota_failed"),
    "B.2.too_long 413": Case(413, K.TOO_LONG, ONCE),
    "B.2.not_there 501": Case(501, K.NOT_FOUND, STOPS),
    "B.2.not_there 503": Case(503, K.OVERLOADED, TO_THE_END, "model_not_found"),
    "B.6.upstream_status remapped": Case(418, K.OVERLOADED, TO_THE_END, "overloaded_error"),
}


@pytest.mark.parametrize("name", CASES)
async def test_each_error_has_its_kind_and_its_number_of_attempts(
    complete: Complete, name: str
) -> None:
    case = CASES[name]
    if case.tries == STOPS:
        with pytest.raises(RunStopped):
            await complete([case.step])
        return
    outcome = await complete([case.step])
    kinds = [attempt.error_kind for attempt in outcome.attempts]
    assert kinds == [case.kind] * case.tries
    assert outcome.result.kind is case.kind
    assert outcome.result.status == ("failed" if case.tries == ONCE else "no_answer")


LIMITS: dict[str, tuple[int, Any, str | None, str]] = {
    "B.2.rate_limit requests": (429, "rate_limit_exceeded", "requests", "Rate limit reached"),
    "B.2.rate_limit tokens": (429, "rate_limit_exceeded", "tokens", "Limit 3, Used 2, Requested 2"),
    "B.2.rate_limit Azure": (429, "too_many_requests", "too_many_requests", ""),
    "B.2.rate_limit Azure too": (429, "RateLimitReached", None, ""),
    "B.2.rate_limit flattened": (429, "429", "throttling_error", ""),
    "B.2.rate_limit bare": (429, None, None, ""),
    "B.2.slow_down 429": (429, "slow_down", "rate_limit_error", ""),
    "B.2.slow_down 503": (503, "slow_down", None, ""),
    "B.2.flex": (429, None, None, "Resource Unavailable"),
    "B.2.flex with a code": (429, "resource_unavailable", None, "Resource Unavailable"),
    "B.6.limits of a user": (429, None, None, "您已达到请求数限制\uff1a1分钟内最多请求60次"),
    "B.6.limits of all": (429, None, None, "您已达到总请求数限制\uff1a1分钟\uff0c包括失败次数"),
    "B.6.limits of the upstream": (429, None, None, "当前分组上游负载已饱和\uff0c请稍后再试"),
    "B.6.limits remapped": (400, None, "upstream_error", "当前分组上游负载已饱和"),
    "B.6.limits in a 200": (200, "rate_limit_exceeded", None, ""),
}


@pytest.mark.parametrize("name", LIMITS)
async def test_a_rate_limit_is_waited_out_and_uses_up_no_try(
    complete: Complete, answer: Make, name: str
) -> None:
    status, code, error_type, message = LIMITS[name]
    error = {"error": {"message": message or "slow", "type": error_type, "code": code}}
    limited = {"status": status, "body": error, "headers": {"retry-after-ms": "1"}}
    retry = RetryJob(max_attempts=1, max_wait_s=0.01)
    outcome = await complete([limited, limited, limited, {"body": answer()}], retry=retry)
    kinds = [attempt.error_kind for attempt in outcome.attempts]
    assert kinds == [K.RATE_LIMIT] * 3 + [None]


async def test_a_request_above_the_whole_limit_fails_and_one_below_it_waits(
    complete: Complete, answer: Make
) -> None:
    def limited(requested: int) -> dict[str, Any]:
        message = f"Request too large for m (TPM): Limit 30000, Requested {requested}. See"
        error = {"message": message, "type": "tokens", "code": "rate_limit_exceeded"}
        return {"status": 429, "body": {"error": error}, "headers": {"retry-after-ms": "1"}}

    outcome = await complete([limited(36278)])
    assert (outcome.result.kind, len(outcome.attempts)) == (K.OVER_LIMIT, 1)
    assert (await complete([limited(546), {"body": answer()}])).ok


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        ({"pieces": [], "end": "reset"}, K.CUT),
        ({"pieces": [b'{"id":'], "end": "reset"}, K.CUT),
        ({"pieces": [b'{"id":'], "end": "cut"}, K.CUT),
        ({"body": b'{"id":'}, K.UNREADABLE),
        ({"body": b"not gzip", "headers": {"Content-Encoding": "gzip"}}, K.UNREADABLE),
    ],
)
async def test_an_answer_that_is_lost_on_the_way_is_retried(
    complete: Complete, answer: Make, step: dict[str, Any], kind: ErrorKind
) -> None:
    outcome = await complete([step, {"body": answer()}])
    assert [attempt.error_kind for attempt in outcome.attempts] == [kind, None]


async def test_no_address_no_tls_and_no_server_are_retried(complete: Complete) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
    retry = RetryJob(max_attempts=2, max_wait_s=0.01)

    async def plain(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(plain, "127.0.0.1", 0)
    no_tls = server.sockets[0].getsockname()[1]
    for base_url in (
        "http://no-such-host.invalid/v1",
        f"https://127.0.0.1:{no_tls}/v1",
        f"http://127.0.0.1:{port}/v1",
    ):
        outcome = await complete([{}], base_url=base_url, retry=retry)
        assert [attempt.error_kind for attempt in outcome.attempts] == [K.CONNECTION] * 2
        assert outcome.result.status == "no_answer"
    server.close()


async def test_what_may_still_run_is_retried_once_and_the_message_advises(
    complete: Complete,
) -> None:
    for status in (504, 524):
        outcome = await complete([{"status": status, "body": PAGE}])
        assert len(outcome.attempts) == 2
        assert "use --mode stream or background" in outcome.result.message


async def test_a_redirect_is_not_followed_and_names_the_base_url(complete: Complete) -> None:
    step = {"status": 302, "headers": {"Location": "http://127.0.0.1:9/v1/responses"}}
    with pytest.raises(RunStopped, match="check --base-url"):
        await complete([step])


async def test_code_goes_before_type_before_message_before_status(complete: Complete) -> None:
    def of(case: Case) -> Any:
        return complete([case.step], retry=RetryJob(max_attempts=1, max_wait_s=0.01))

    by_code = Case(500, K.CONTENT_POLICY, ONCE, "invalid_prompt", "server_error", '"code":"x"')
    by_type = Case(500, K.TOO_LONG, ONCE, "unknown", "exceed_context_size_error", "负载已饱和")
    by_message = Case(400, K.OVERLOADED, ONCE, "400", None, '{"type": "overloaded_error"}')
    by_status = Case(400, K.BAD_REQUEST, ONCE, "unknown", "unknown", "unknown")
    for case in (by_code, by_type, by_message, by_status):
        assert (await of(case)).result.kind is case.kind


def _judged(failures: list[Failure]) -> Again | GiveUp | Halt:
    return judge(
        failures,
        hint_s=None,
        should_retry=None,
        elapsed_s=0.0,
        settings=RetryJob(),
        give_up_after_s=1800.0,
        has_succeeded=False,
        jitter=0.5,
    )


def test_an_id_in_a_message_does_not_hide_that_an_error_came_back_the_same() -> None:
    failures = [
        Failure(K.SERVER_ERROR, f"no parser (request id: 2026{number})", "tool_parser", 500)
        for number in range(3)
    ]
    assert isinstance(_judged(failures[:2]), Again)
    assert _judged(failures) == GiveUp("failed", "the same 3 times")


@pytest.mark.parametrize("code", [None, "500", "server_error", "bad_response_status_code"])
def test_a_server_that_is_down_is_no_error_that_comes_back(code: str | None) -> None:
    assert isinstance(_judged([Failure(K.SERVER_ERROR, "down", code, 500)] * 5), Again)
